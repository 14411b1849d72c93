"""Between syncs: each proxier is tended when it asks for it, and one that serves nothing any more is taken away."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol

from bpfproxy.errors import describe
from bpfproxy.events import emit
from bpfproxy.model.frontend import Frontend
from bpfproxy.proxiers.base import Proxier, Tended
from bpfproxy.runner import Backoff
from bpfproxy.status import Counters

log = logging.getLogger(__name__)

InWorker = Callable[[Callable[[], Any]], Awaitable[Any]]


class Modes(Protocol):
    """The open proxiers: a part of the engine."""

    @property
    def proxiers(self) -> Mapping[str, Proxier]:
        """By mode."""
        ...

    def unused_modes(self) -> list[str]:
        """Those that serve nothing."""
        ...

    def preceded(self) -> Collection[Frontend]:
        """Frontends served by those that take packets before conntrack sees them."""
        ...

    def release(self, mode: str) -> None:
        """Let go of one of them."""
        ...


class Upkeep:
    """Of the proxiers in `modes`. `in_worker` runs what may block in the kernel; `take_away` removes all that a mode
    has in the kernel, says how many things that were, and closes its proxier; `changed` is called when a counter has
    moved."""

    def __init__(
        self,
        modes: Modes,
        in_worker: InWorker,
        take_away: Callable[[str], int],
        counters: Counters,
        changed: Callable[[], None],
        backoff: Callable[[], Backoff],
    ) -> None:
        self._modes = modes
        self._in_worker = in_worker
        self._take_away = take_away
        self._counters = counters
        self._changed = changed
        self._backoff = backoff
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining: set[str] = set()

    def tend(self, group: asyncio.TaskGroup) -> None:
        """Tend those that are not yet."""
        for mode, proxier in self._modes.proxiers.items():
            if mode not in self._tasks:
                self._tasks[mode] = group.create_task(self._tend_forever(mode, proxier))

    def stop(self) -> None:
        """End all that `tend` has begun."""
        for task in self._tasks.values():
            task.cancel()

    async def retire(self) -> None:
        """Clean up after the proxiers that serve nothing, once no connection depends on them."""
        for mode in await self._in_worker(self._modes.unused_modes):
            proxier = self._modes.proxiers[mode]
            try:
                if not await self._in_worker(partial(self._drained, proxier)):
                    if mode not in self._draining:
                        self._draining.add(mode)
                        emit(log, logging.INFO, "draining", proxier=mode)
                    continue
                removed = await self._in_worker(partial(self._take_away, mode))
                self._modes.release(mode)
            except Exception as error:
                emit(log, logging.ERROR, "cleanup_failed", proxier=mode, error=describe(error))
                continue
            if mode in self._tasks:
                self._tasks.pop(mode).cancel()
            self._draining.discard(mode)
            emit(log, logging.INFO, "cleaned_up", proxier=mode, removed=removed)

    def _drained(self, proxier: Proxier) -> bool:
        return proxier.drained(self._modes.preceded())

    async def _tend_forever(self, mode: str, proxier: Proxier) -> None:
        backoff = self._backoff()
        delay = 0.0
        while delay < math.inf:
            await asyncio.sleep(delay)
            try:
                done: Tended = await self._in_worker(proxier.tend)
            except Exception as error:
                delay = backoff.failed()
                self._counters.failed_upkeep += 1
                level = logging.ERROR if backoff.failures == 1 else logging.DEBUG
                emit(log, level, "upkeep_failed", proxier=mode, error=describe(error), retry_seconds=delay)
                log.debug("event=upkeep_trace", exc_info=error)
            else:
                backoff.reset()
                delay = done.delay
                self._counters.expired_flows += done.expired_flows
                self._counters.nearly_full_maps += len(done.nearly_full)
                if not (done.expired_flows or done.nearly_full):
                    continue
                emit(log, logging.DEBUG, "upkeep", proxier=mode, expired_flows=done.expired_flows)
            self._changed()
