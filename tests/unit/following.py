"""A running `FilesSource`, for its tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from bpfproxy.errors import InputError
from bpfproxy.model.event import Object, ObjectKey, Update
from bpfproxy.sources.files import FilesSource
from bpfproxy.sources.manifest import key_of

DEADLINE = 10.0


def service(name: str, *, node_port: int = 0, port: int = 80) -> str:
    ports = [{"port": port, "nodePort": node_port}]
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": ports},
        }
    )


def services(*names: str) -> str:
    return "\n---\n".join(map(service, names))


BROKEN = "kind: [\n"


class Follower:
    """What a running source has delivered so far."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, Object] = {}
        self.updates: list[Update] = []
        self.errors: list[str] = []
        self._news = asyncio.Event()

    def sink(self, update: Update) -> None:
        self.updates.append(update)
        for item in update.objects:
            self.objects[key_of(item)] = item
        for key in update.removed:
            del self.objects[key]
        self._news.set()

    def on_error(self, error: InputError) -> None:
        assert "\n" not in str(error)
        self.errors.append(str(error))
        self._news.set()

    @property
    def names(self) -> list[str]:
        return sorted(key.name.name for key in self.objects)

    def complete(self) -> bool:
        return self.updates[-1].complete

    async def until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"still {self.names}, updates {self.updates}, errors {self.errors}")

    async def shows(self, *names: str) -> None:
        await self.until(lambda: bool(self.updates) and self.names == sorted(names))


@contextlib.asynccontextmanager
async def following(*paths: Path) -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(FilesSource(paths, follower.on_error).run(follower.sink))
    try:
        await follower.until(lambda: bool(follower.updates) or task.done())
        yield follower
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def live(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """A test that is a coroutine, on an event loop of its own."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 60))

    run.__name__ = test.__name__
    return run


def replace(path: Path, text: str) -> None:
    """As careful programs write: a temporary file beside it, then a rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)
