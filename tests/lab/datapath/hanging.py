"""Tests that wait in the middle until their session is ended: `test_ended_sessions` runs them, nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from bpfproxy.datapath import attach, loader
from bpfproxy.datapath.attach import CgroupTarget
from bpfproxy.datapath.device import Hook
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.loader import Loaded
from bpfproxy.lab.lab import Lab
from tests.lab.datapath.conftest import Specs
from tests.lab.datapath.devices import Net
from tests.packet.datapath import datapath


def hang() -> None:
    print(f"hangs {os.getpid()}", flush=True)
    signal.pause()
    raise AssertionError("a signal came, and the session goes on")


def test_an_event_loop_that_handles_signals() -> None:
    """As that of an agent: whoever handled them before is forgotten."""

    async def handle() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    asyncio.run(handle())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_attachments(state: Path, links: Path, group: Path, specs: Specs, node: Net, loaded: Loaded) -> None:
    hooks = DeviceHooks(state / "bpf")
    hooks.attach(Hook.TC_IN, node.veth("eth0", "192.0.2.1/24"), loaded.programs["bp_tc_in"])
    with loader.load(specs(), "prebuilt") as sockets:
        attach.attach(links, "connect4", sockets.programs["bp_connect4"], CgroupTarget(group))
        hang()


def test_packets() -> None:
    with datapath("prebuilt"):
        hang()


def test_a_lab(lab: Lab) -> None:
    hang()
