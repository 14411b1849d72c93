"""`python -m bpfproxy`: the command line."""

from __future__ import annotations

from bpfproxy.cli import main

if __name__ == "__main__":
    main()
