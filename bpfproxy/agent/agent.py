"""Serves one node: what the sources say goes to the engine, and what fails is told and tried again.

One asyncio loop holds the sources and the clock; everything that may block in the kernel runs in one worker thread,
which alone touches the engine and the proxiers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

import msgspec

import bpfproxy
from bpfproxy import status
from bpfproxy.agent import process
from bpfproxy.agent.parts import NodeParts, Parts, Source
from bpfproxy.agent.upkeep import Upkeep
from bpfproxy.config import Settings
from bpfproxy.engine import Engine, SyncReport
from bpfproxy.errors import InputError, describe
from bpfproxy.events import emit
from bpfproxy.model.address import Address
from bpfproxy.model.device import NetworkState
from bpfproxy.model.event import Update
from bpfproxy.model.service import Node
from bpfproxy.plan import NodeConfig, node_config
from bpfproxy.proxiers.base import Proxier
from bpfproxy.runner import Backoff, Runner

log = logging.getLogger(__name__)

_STATUS_PERIOD: Final = 1.0
"""Least time between two writes of the status file, seconds."""
_HANDOVER: Final = 0.25
"""Seconds from when a mode serves what another one has served to when that lets go."""
_SOURCE_IS_WELL: Final = 60.0
"""A source that ran for so many seconds is started again without much ado."""
_NUMBER: Final = re.compile(r"\d+")

T = TypeVar("T")


class Agent:
    """Serves one node under one set of settings. `run` once.

    `backoff` gives the pauses between syncs that fail, and a source's between its failures.
    """

    def __init__(
        self, settings: Settings, parts: Parts | None = None, backoff: Callable[[], Backoff] = Backoff
    ) -> None:
        self.settings = settings
        self._parts = parts or NodeParts(settings)
        self._worker = ThreadPoolExecutor(1, "bpfproxy-kernel")
        self._backoff = backoff
        self._runner = Runner(minimum=settings.min_sync_period, maximum=settings.sync_period, backoff=self._backoff())
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped_by: signal.Signals | None = None
        self._proxiers: dict[str, Proxier] = {}
        """Those that are open, by mode."""
        self._updates: list[Update] = []
        self._addresses: frozenset[Address] = frozenset()
        self._network = NetworkState()
        self._node: Node | None = None
        self._node_changed = False
        self._troubles: frozenset[str] = frozenset()
        """Reasons of refused rows and failed syncs that have been logged and last."""
        self._heard = False
        """A sync has taken in what the source of objects says: before, nothing can be missing."""
        self._incomplete = False
        self._status_changed = asyncio.Event()
        self.status = status.AgentStatus(
            pid=os.getpid(),
            version=bpfproxy.__version__,
            node=settings.node,
            started=_now(),
            settings=msgspec.to_builtins(settings, enc_hook=str),
        )

    def stop(self) -> None:
        """Make `run` return soon; the datapath stays in place. For the loop's thread."""
        self._stopping.set()

    def _interrupted(self, number: signal.Signals) -> None:
        self._stopped_by = number
        self.stop()

    async def run(self) -> signal.Signals | None:
        """Run until `stop`, SIGTERM or SIGINT, and return the signal.

        Raises InputError, AlreadyRunningError, PermissionsError, UnsupportedError or DatapathError where it cannot
        start; later, failures are logged and tried again.
        """
        self._config()  # bad settings, before anything is touched
        with self._parts.lock(), self._worker, process.signals(self._interrupted):
            try:
                await self._serve(await self._prepare())
            finally:
                await self._in_worker(self._close_proxiers)  # queued behind what the worker still does
                self.status.pid = None
                self._write_status()
        emit(log, logging.INFO, "stopped", signal=self._stopped_by and self._stopped_by.name)
        return self._stopped_by

    async def _prepare(self) -> Engine:
        """An engine with the default proxier, and those that an earlier run has left in the kernel: what they served
        moves over."""
        default = self.settings.proxy_mode
        await self._in_worker(partial(self._open_proxier, default))
        for mode in await self._in_worker(self._parts.modes_present):
            if mode != default:
                await self._in_worker(partial(self._open_proxier, mode))
        self._addresses = frozenset(await self._in_worker(self._parts.node_addresses))
        self._network = await self._in_worker(self._parts.network)
        gc.disable()  # until the first sync is done: among what is loaded there is no garbage, and much to walk
        engine = Engine(self._proxiers, default, self._config(), self._open_proxier, partial(time.sleep, _HANDOVER))
        await self._in_worker(engine.start)
        emit(log, logging.INFO, "started", version=self.status.version, node=self.status.node, pid=self.status.pid)
        return engine

    def _open_proxier(self, mode: str) -> Proxier:
        self._proxiers[mode] = proxier = self._parts.open_proxier(mode)
        return proxier

    def _close_proxiers(self) -> None:
        for proxier in self._proxiers.values():
            proxier.close()

    def _take_away(self, mode: str) -> int:
        """Remove all that a mode has in the kernel; returns how many things that were."""
        removed = self._parts.cleanup(mode)
        self._proxiers.pop(mode).close()
        return len(removed)

    async def _serve(self, engine: Engine) -> None:
        upkeep = Upkeep(
            engine,
            self._in_worker,
            self._take_away,
            self.status.counters,
            self._status_changed.set,
            self._backoff,
        )
        objects = self._parts.object_source(self._refuse)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._sync_forever(engine, upkeep, group)),
                group.create_task(self._keep("objects", objects, self._take)),
                group.create_task(self._keep("addresses", self._parts.address_source(), self._take_addresses)),
                group.create_task(self._keep("devices", self._parts.network_source(), self._take_network)),
                group.create_task(self._write_status_forever()),
            ]
            await self._stopping.wait()
            process.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            upkeep.stop()

    # ---- what the sources say -------------------------------------------------------------------------------------

    def _take(self, update: Update) -> None:
        for item in update.objects:
            if isinstance(item, Node) and item.name == self.status.node:
                self._node, self._node_changed = item, True
        for key in update.removed:
            if key.kind == "Node" and key.name.name == self.status.node:
                self._node, self._node_changed = None, True
        self._updates.append(update)
        self._request()

    def _take_addresses(self, addresses: frozenset[Address]) -> None:
        if addresses != self._addresses:
            self._addresses, self._node_changed = addresses, True
            self._request()

    def _take_network(self, network: NetworkState) -> None:
        if network != self._network:
            self._network, self._node_changed = network, True
            self._request()

    def _refuse(self, error: InputError) -> None:
        for line in str(error).splitlines():
            self.status.counters.refused_inputs += 1
            emit(log, logging.WARNING, "refused", input=line)
        self._status_changed.set()

    def _config(self) -> NodeConfig:
        return node_config(self.settings, self.settings.node, self._addresses, self._node, self._network)

    async def _keep(self, name: str, source: Source[T], sink: Callable[[T], None]) -> None:
        """Run a source for ever: one that fails is started again, later and later."""
        backoff = self._backoff()
        while True:
            begin = time.monotonic()
            error: Exception | None = None
            try:
                await source.run(sink)
            except Exception as caught:
                error = caught
            if time.monotonic() - begin > _SOURCE_IS_WELL:
                backoff.reset()
            pause = backoff.failed()
            self.status.counters.source_restarts += 1
            self._status_changed.set()
            emit(log, logging.ERROR, "source_failed", source=name, error=describe(error), retry_seconds=pause)
            log.debug("event=source_trace", exc_info=error)
            await asyncio.sleep(pause)

    # ---- syncs ----------------------------------------------------------------------------------------------------

    def _request(self) -> None:
        self._runner.request()
        self._wake.set()

    async def _sync_forever(self, engine: Engine, upkeep: Upkeep, group: asyncio.TaskGroup) -> None:
        while True:
            upkeep.tend(group)
            while (delay := self._runner.delay()) > 0:
                self._wake.clear()
                # Not wait_for(), which before Python 3.12 loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
            await self._sync_once(engine)
            if not self._troubles:
                await upkeep.retire()

    async def _sync_once(self, engine: Engine) -> None:
        full = self._runner.begin()
        updates, self._updates = self._updates, []
        self._heard |= bool(updates)
        node = self._config() if self._node_changed else None
        self._node_changed = False
        counters = self.status.counters
        counters.syncs += 1
        counters.resyncs += full
        try:
            report, seconds = await self._in_worker(partial(_sync, engine, updates, node, full=full))
        except Exception as error:
            counters.failed_syncs += 1
            log.debug("event=sync_trace", exc_info=error)
            self._settle({describe(error): []})
        else:
            counters.refused_rows += len(report.failures)
            self._tell(engine, report, seconds, full=full)
            keys: dict[str, list[object]] = {}
            for failure in report.failures:
                keys.setdefault(failure.reason, []).append(failure.op.key)
            self._settle(keys)
        self._runner.end(ok=not self._troubles)
        self._status_changed.set()

    def _tell(self, engine: Engine, report: SyncReport, seconds: float, *, full: bool) -> None:
        """Log what a sync did."""
        for clash in report.clashes:
            self.status.counters.clashes += 1
            emit(log, logging.WARNING, "clash", message=str(clash))
        for missing in report.missing_modes:
            emit(log, logging.WARNING, "refused", input=str(missing))
        emit(
            log,
            logging.INFO if report.ops or report.planned else logging.DEBUG,
            "resync" if full else "sync",
            services=report.planned,
            frontends=len(report.frontends),
            ops=report.ops,
            failures=len(report.failures),
            seconds=seconds,
        )
        state = self.status
        state.last_sync, state.last_sync_seconds = _now(), round(seconds, 6)
        state.services = len(engine.store.services())
        state.pending_rows = engine.pending
        state.clashes = [str(clash) for clash in engine.clashes]
        if not state.ready:
            self._look_if_ready(engine)
        if not gc.isenabled():
            gc.collect()
            gc.freeze()  # what was loaded stays: later collections need not walk it
            gc.enable()

    def _look_if_ready(self, engine: Engine) -> None:
        if engine.store.complete:
            self.status.ready = True
            emit(log, logging.INFO, "ready", services=self.status.services, frontends=len(engine.frontends()))
            process.notify("READY=1")
        elif self._heard and not self._incomplete:
            self._incomplete = True
            emit(
                log,
                logging.WARNING,
                "incomplete",
                message="input is unreadable: nothing is removed until it is repaired",
            )

    def _settle(self, reasons: Mapping[str, Sequence[object]]) -> None:
        """Log what went wrong (reason → keys of the rows; none: the whole sync), each kind of trouble once, and when
        all is well again."""
        troubles = {}
        for reason, keys in reasons.items():
            trouble = _NUMBER.sub("#", reason)
            if trouble not in self._troubles and trouble not in troubles:
                if keys:
                    emit(log, logging.ERROR, "refused", reason=reason, rows=len(keys), first=keys[0])
                else:
                    emit(log, logging.ERROR, "sync_failed", error=reason)
            troubles[trouble] = True
        if self._troubles and not troubles:
            emit(log, logging.INFO, "recovered", failed_tries=self._runner.failures)
        self._troubles = frozenset(troubles)

    # ---- surroundings ---------------------------------------------------------------------------------------------

    async def _in_worker(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, job)

    async def _write_status_forever(self) -> None:
        while True:
            self._status_changed.clear()
            self._write_status()
            await asyncio.sleep(_STATUS_PERIOD)
            await self._status_changed.wait()

    def _write_status(self) -> None:
        try:
            status.write(self.settings.state_dir, self.status)
        except OSError as error:
            emit(log, logging.WARNING, "status_failed", error=describe(error))


def _sync(engine: Engine, updates: list[Update], node: NodeConfig | None, *, full: bool) -> tuple[SyncReport, float]:
    """In the worker: the report, and how long it took."""
    begin = time.perf_counter()
    for update in updates:
        engine.update(update)
    if node is not None:
        engine.set_node(node)
    report = engine.resync() if full else engine.sync()
    return report, time.perf_counter() - begin


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
