"""For packet tests: the datapath under each loader, empty before each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

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
