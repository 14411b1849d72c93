"""`python -m bpfproxy.proxiers.userspace SOCKET LIMIT IDLE`: see `server.main`."""

import sys

from bpfproxy.proxiers.userspace.server import main

main(*sys.argv[1:])
