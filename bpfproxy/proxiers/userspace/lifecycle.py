"""From settings to a userspace proxier that works, and back to nothing.

STATE/userspace/VERSION.sock  the socket of the process that relays
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bpfproxy.config import Settings
from bpfproxy.errors import UnsupportedError
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.netfilter import nft, privileges
from bpfproxy.proxiers.userspace import process, redirect
from bpfproxy.proxiers.userspace.process import Process
from bpfproxy.proxiers.userspace.proxier import UserspaceProxier
from bpfproxy.proxiers.userspace.rows import UserspaceRenderer


def renderer(settings: Settings) -> UserspaceRenderer:
    """The pure half, for which no kernel is needed."""
    return UserspaceRenderer()


def require() -> None:
    """Raises PermissionsError that names the capabilities that this process lacks."""
    privileges.require()


def open_proxier(settings: Settings) -> UserspaceProxier:
    """The process is started when it is first asked. Raises PermissionsError, UnsupportedError."""
    require()
    nft.version()
    directory = settings.state_dir / "userspace"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    relay = Process(directory, settings.max_connections, settings.conntrack_udp_stream)
    return UserspaceProxier(relay, relay.retire_others)


def check(settings: Settings, devices: Sequence[DevicePlan]) -> list[Finding]:
    """What this machine offers."""
    consequence = "nothing leads to the relaying process"
    held = privileges.check(consequence)
    try:
        return [held, Finding("nft", True, nft.version(), consequence, required=True)]
    except UnsupportedError as error:
        return [held, Finding("nft", False, str(error), consequence, required=True)]


def present(state_dir: Path) -> bool:
    """Whether there is a relaying process, or was one."""
    return (state_dir / "userspace").is_dir()


def cleanup(state_dir: Path) -> list[str]:
    """Remove the redirects and end the process; returns what was removed."""
    directory = state_dir / "userspace"
    if not directory.is_dir():
        return []
    removed = []
    if nft.delete_table(redirect.FAMILY, redirect.TABLE):
        removed.append(f"table {redirect.FAMILY} {redirect.TABLE}")
    removed += process.end_all(directory)
    shutil.rmtree(directory)
    return removed
