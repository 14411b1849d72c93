"""From settings to a running datapath, and back to nothing.

    STATE/lock              held by the agent
    STATE/bpf               a bpffs of our own
    STATE/bpf/maps-VERSION  the service tables and the state of flows
    STATE/bpf/links         the attachments

VERSION is a digest of the ABI and the maps' sizes. An agent whose version differs fills maps of its own beside those
in force, then switches the links over one by one and removes the former maps.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bpfproxy.config import Settings
from bpfproxy.datapath import attach, bpffs, loader, probe, sockdestroy
from bpfproxy.datapath.files import c_tree
from bpfproxy.datapath.maps import Map
from bpfproxy.errors import NotRunningError
from bpfproxy.model.frontend import Scope
from bpfproxy.model.service import Scheduler
from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.proxiers.ebpf.view import View

HOOKS: Final = (
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sock_release",
    "post_bind4",
    "post_bind6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
)
"""The order of attaching: those that restore what a socket sees, before those that translate. Detached in reverse."""
