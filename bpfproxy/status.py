"""STATE/agent.json: what an agent says of itself, for the commands that look at a running node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from bpfproxy.errors import InputError

FILE = "agent.json"


class Counters(Struct):
    """What happened since the agent started."""

    syncs: int = 0
    resyncs: int = 0
    """Syncs that read back everything, among `syncs`."""
    failed_syncs: int = 0
    refused_rows: int = 0
    """Rows that a map or the kernel refused; each try counts."""
    refused_inputs: int = 0
    """Manifests, documents and objects that were refused."""
    clashes: int = 0
    """Frontends that a Service lost to another."""
    source_restarts: int = 0
    expired_flows: int = 0
    """Rows of flows that were removed because their time is over."""
    nearly_full_maps: int = 0
    """How often a map of flows became nearly full."""
    failed_upkeep: int = 0


class AgentStatus(Struct, kw_only=True):
    """The agent of a state directory. Moments are in UTC, ISO 8601."""

    pid: int | None
    """None after it ended."""
    version: str
    node: str
    started: str
    ready: bool = False
    """The first sync with all that the sources know is done."""
    last_sync: str | None = None
    last_sync_seconds: float = 0.0
    services: int = 0
    pending_rows: int = 0
    """Rows that were refused, and are tried again."""
    clashes: list[str] = field(default_factory=list)
    """Frontends that a Service lost to another, now."""
    counters: Counters = field(default_factory=Counters)
    settings: dict[str, Any] = field(default_factory=dict)


def write(state_dir: Path, status: AgentStatus) -> None:
    """Replace the file; readers see the former one or this."""
    fresh = state_dir / f".{FILE}.{os.getpid()}"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(status), indent=2))
    fresh.replace(state_dir / FILE)


def read(state_dir: Path) -> AgentStatus | None:
    """What the last agent wrote, None if there was none. Raises InputError on a file of another making."""
    try:
        return msgspec.json.decode((state_dir / FILE).read_bytes(), type=AgentStatus)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise InputError(f"{state_dir / FILE}: not written by this version of bpfproxy: {error}") from error
