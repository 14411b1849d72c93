"""Checkouts that differ from this one: other versions of the project, or this one on another kernel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bpfproxy.lab.place import PROJECT

Edits = Mapping[str, Mapping[str, str]]
"""By file: what takes the place of a text that has to be there."""


def copy(root: Path, edits: Edits, *, rebuild: bool = False) -> Path:
    """A copy of the code in `root`, edited; with `rebuild` its C is compiled."""
    leave = shutil.ignore_patterns("__pycache__", *(["_built"] if rebuild else []))
    for name in ("bpf", "bpfproxy"):
        shutil.copytree(PROJECT / name, root / name, ignore=leave)
    for name, changes in edits.items():
        text = (root / name).read_text()
        for before, after in changes.items():
            assert before in text, f"{name}: {before}"
            text = text.replace(before, after)
        (root / name).write_text(text)
    if rebuild:
        shutil.copy(PROJECT / "hatch_build.py", root)
        (root / "bpf" / "abi_check.c").unlink()  # it holds today's sizes
        subprocess.run([sys.executable, "hatch_build.py"], cwd=root, check=True)
    return root
