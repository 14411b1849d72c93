"""Waiting for a descriptor without reading it."""

from __future__ import annotations

import asyncio


async def readable(descriptor: int) -> None:
    """Return when `descriptor` has something to read. Nothing is lost when this is cancelled."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
