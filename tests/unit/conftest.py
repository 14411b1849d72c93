"""For unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent_world import World
from tests.unit.lab_traces import write_cases


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def all_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the manifests of all cases of the lab."""
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    """The agent freezes what the garbage collector would walk; tests share a process."""
    import gc

    yield
    gc.unfreeze()
