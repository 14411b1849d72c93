"""For packet tests: the datapath under each loader, empty before each test."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfproxy.datapath.device import Hook
from bpfproxy.datapath.hooks import DeviceHooks
from tests.packet.datapath import Datapath, datapath


@pytest.fixture(scope="session", params=["prebuilt", "bcc"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Datapath]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with datapath(request.param) as found:
        yield found


@pytest.fixture
def dp(loaded: Datapath) -> Datapath:
    loaded.clear()
    return loaded


@pytest.fixture
def attach(dp: Datapath) -> Iterator[Callable[[Hook, str, str], None]]:
    """Attaches a program to a device of the node; all are detached at the end."""
    hooks = DeviceHooks(Path(dp.top).parent)
    (Path(dp.top).parent / "links").mkdir(exist_ok=True)

    def now(hook: Hook, device: str, program: str) -> None:
        with dp.inside():
            hooks.attach(hook, socket.if_nametoindex(device), dp.loaded.programs[program])

    yield now
    with dp.inside():
        hooks.detach_all()
