"""For unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    """The agent freezes what the garbage collector would walk; tests share a process."""
    import gc

    yield
    gc.unfreeze()
