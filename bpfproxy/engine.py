"""From the objects to the proxiers: plans what changed, hands over the rows that differ, remembers what succeeded.

The engine has no clock and does no I/O of its own; whoever owns it calls `sync` when there is something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from bpfproxy.diff import diff_keys
from bpfproxy.errors import BpfproxyError, UnsupportedError
from bpfproxy.model.event import Update
from bpfproxy.model.frontend import Frontend, FrontendSpec, HealthCheck, NodePlan, ServicePlan
from bpfproxy.model.service import ObjectName
from bpfproxy.plan import Clash, NodeConfig, PlanIndex, plan_node, plan_service
from bpfproxy.proxiers.base import Failure, Key, Op, Proxier, Row, Rows
from bpfproxy.store import Store

Owner = ObjectName | None
"""Whose rows: a Service's, or (None) the node's."""


class MissingMode(Struct, frozen=True):
    """A Service asks for a proxier that cannot be had; the default one serves it."""

    service: ObjectName
    mode: str
    served_by: str
    reason: str

    def __str__(self) -> str:
        return f"Service {self.service}: no proxy mode {self.mode!r}: {self.reason}; served by {self.served_by}"


class SyncReport(Struct, frozen=True):
    """What a sync did."""

    planned: int
    """Services that were planned anew."""
    frontends: frozenset[Frontend]
    """Frontends that are new, different, or gone."""
    ops: int
    """Ops that were carried out, all proxiers together."""
    failures: tuple[Failure, ...]
    """Ops that were not; the next sync tries them again."""
    clashes: tuple[Clash, ...]
    """Frontends that a Service lost to another since the last sync."""
    missing_modes: tuple[MissingMode, ...]
    """Of Services whose plan changed in this sync."""
    nodes: frozenset[str]
    """Names of the Node objects that changed since the last sync."""
    service_events: int
    """Changes of Services since the last sync."""
    endpoint_events: int
    """Changes of EndpointSlices since the last sync."""


class Engine:
    """Holds the proxiers by mode. A Service is served by the one that it names (`Service.proxy_mode`), else by
    `default_mode`. For one thread at a time.

    A mode that a Service is the first to name is opened by `open_proxier`, which may raise BpfproxyError. `pause` is
    called when Services are served by another mode and before the former one lets go of them: a connection that is
    being opened may have passed where the one decides, and not yet where the other does.

    Until an update says `complete`, nothing is deleted: rows that an earlier run left may belong to a Service that the
    source has not delivered yet.
    """

    def __init__(
        self,
        proxiers: Mapping[str, Proxier],
        default_mode: str,
        node: NodeConfig,
        open_proxier: Callable[[str], Proxier] | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        if default_mode not in proxiers:
            raise ValueError(f"expected one of the proxiers {', '.join(proxiers)} as the default, not {default_mode!r}")
        self._tables = {mode: _Tables(proxier) for mode, proxier in proxiers.items()}
        self._default = default_mode
        self._open_proxier = open_proxier
        self._pause = pause
        self._node = node
        self._node_plan = plan_node(node)
        self._staged_node_plan: NodePlan | None = None
        self._store = Store()
        self._index = PlanIndex()
        self._health_checks: dict[ObjectName, HealthCheck] = {}
        self._plan_all = False
        # Both outlive a sync only if it raised.
        self._unplanned: dict[ObjectName, None] = {}
        self._unstaged: dict[ObjectName, ServicePlan | None] = {}
        self._pruned = False
        """The rows that an earlier run left have been dealt with."""

    @property
    def store(self) -> Store:
        """The objects, to be looked at."""
        return self._store

    @property
    def node(self) -> NodeConfig:
        """As given or last set."""
        return self._node

    @property
    def node_plan(self) -> NodePlan:
        """Where NodePorts answer."""
        return self._node_plan

    @property
    def proxiers(self) -> dict[str, Proxier]:
        """Those that are open, by mode."""
        return {mode: tables.proxier for mode, tables in self._tables.items()}

    def unused_modes(self) -> list[str]:
        """Those, but for the default one, that serve no Service and hold no row of any."""
        if not self._pruned:
            return []
        return [mode for mode, tables in self._tables.items() if mode != self._default and not tables.in_use]

    def preceded(self) -> frozenset[Frontend]:
        """Frontends that are served by a proxier that takes packets before conntrack sees them."""
        names = {name for tables in self._tables.values() if tables.proxier.precedes_conntrack for name in tables.rows}
        plans = [plan for name, plan in self._index.plans.items() if name in names]
        return frozenset(frontend for plan in plans for frontend in plan.frontends)

    def release(self, mode: str) -> None:
        """Let go of a proxier that is not in use. The others learn of it in the next sync."""
        del self._tables[mode]

    @property
    def pending(self) -> int:
        """How many rows the last sync wanted to change and could not."""
        return sum(len(tables.pending) for tables in self._tables.values())

    @property
    def clashes(self) -> tuple[Clash, ...]:
        """All frontends that a Service lost to another."""
        return self._index.clashes

    def plan_of(self, service: ObjectName) -> ServicePlan | None:
        """The plan in force since the last sync, without the frontends that other Services won."""
        return self._index.plans.get(service)

    def frontends(self) -> dict[Frontend, FrontendSpec]:
        """All frontends since the last sync."""
        return {frontend: spec for plan in self._index.plans.values() for frontend, spec in plan.frontends.items()}

    def health_checks(self) -> tuple[HealthCheck, ...]:
        """Of all Services, sorted by name."""
        return tuple(self._health_checks[name] for name in sorted(self._health_checks))

    def start(self) -> None:
        """Learn from each proxier what an earlier run left."""
        for tables in self._tables.values():
            tables.read()

    def update(self, update: Update) -> None:
        """Take in what a source says; `sync` acts on it."""
        self._store.update(update)

    def set_node(self, node: NodeConfig) -> None:
        """Replace what is known of the node; `sync` acts on it."""
        self._plan_all |= not node.plans_services_like(self._node)
        if node != self._node:
            self._node, self._node_plan = node, plan_node(node)

    def resync(self) -> SyncReport:
        """A sync that first reads back what the proxiers hold, so that what others changed is repaired."""
        self.start()
        return self.sync()

    def sync(self) -> SyncReport:
        """Bring the proxiers to what the objects ask for. What a proxier raises passes through; the next sync then
        reads that proxier's rows back first."""
        changes = self._store.take()
        self._unplanned.update(dict.fromkeys(changes.services))
        if self._plan_all:
            self._unplanned.update(dict.fromkeys(service.name for service in self._store.services()))
            self._plan_all = False
        plans = {
            name: plan_service(self._store.service(name), self._store.slices(name), self._node)
            for name in self._unplanned
        }
        delta = self._index.update(plans)
        self._unplanned = {}
        self._unstaged.update(delta.plans)
        missing_modes = self._stage(self._unstaged)
        self._unstaged = {}
        self._stage_node()
        ops = self._apply(prune=self._store.complete)
        return SyncReport(
            planned=len(plans),
            frontends=delta.frontends,
            ops=ops,
            failures=tuple(failure for tables in self._tables.values() for failure in tables.failures),
            clashes=delta.clashes,
            missing_modes=missing_modes,
            nodes=changes.nodes,
            service_events=changes.service_events,
            endpoint_events=changes.endpoint_events,
        )

    def _apply(self, *, prune: bool) -> int:
        """Bring all proxiers to what is staged. Returns how many ops were carried out."""
        everyone = self._tables.values()
        ops = 0
        if prune and not self._pruned:
            if len(everyone) > 1:  # a Service may have moved while nobody looked
                ops = sum(tables.apply(prune=False) for tables in everyone)
                self._pause()
            for tables in everyone:
                tables.compare_all = True
        ops += sum(tables.apply(prune=prune) for tables in everyone)
        if released := self._release_moved():
            self._pause()
            ops += sum(tables.apply(prune=prune) for tables in released)
        self._pruned = prune
        return ops

    def _stage(self, plans: Mapping[ObjectName, ServicePlan | None]) -> tuple[MissingMode, ...]:
        """Render changed plans for the proxiers that are to serve them, or still do."""
        missing: list[MissingMode] = []
        targets = {name: self._target(plan, missing) for name, plan in plans.items()}
        rows_of: dict[str, dict[Owner, Rows]] = {mode: {} for mode in self._tables}
        for name, plan in plans.items():
            self._note_health_check(name, plan)
            for mode, tables in self._tables.items():
                if mode == targets[name] or name in tables.rows:
                    rows_of[mode][name] = {} if plan is None else tables.proxier.render(plan)
                if mode == targets[name] or plan is None:
                    tables.leaving.discard(name)
                elif name in tables.rows:
                    tables.leaving.add(name)
        for mode, tables in self._tables.items():
            tables.stage(rows_of[mode])
        return tuple(missing)

    def _target(self, plan: ServicePlan | None, missing: list[MissingMode]) -> str:
        """The mode that is to serve a Service; opened if need be."""
        mode = plan.proxy_mode if plan is not None else None
        if plan is None or mode is None or mode in self._tables:
            return mode or self._default
        try:
            if self._open_proxier is None:
                raise UnsupportedError("not offered here")
            tables = _Tables(self._open_proxier(mode))
        except BpfproxyError as error:
            missing.append(MissingMode(plan.name, mode, self._default, str(error)))
            return self._default
        self._tables[mode] = tables
        if self._staged_node_plan is not None:
            tables.stage({None: tables.proxier.render_node(self._staged_node_plan)})
        return mode

    def _note_health_check(self, name: ObjectName, plan: ServicePlan | None) -> None:
        if plan is not None and plan.health_check is not None:
            self._health_checks[name] = plan.health_check
        else:
            self._health_checks.pop(name, None)

    def _stage_node(self) -> None:
        plan = replace(self._node_plan, shared=len(self._tables) > 1)
        if plan != self._staged_node_plan:
            for tables in self._tables.values():
                tables.stage({None: tables.proxier.render_node(plan)})
            self._staged_node_plan = plan

    def _release_moved(self) -> list[_Tables]:
        """Take Services that another proxier serves by now from those that they left. Returns the tables concerned."""
        released = []
        for tables in self._tables.values():
            others = [other for other in self._tables.values() if other is not tables]
            served = [name for name in tables.leaving if not any(other.is_pending(name) for other in others)]
            if served:
                tables.stage({name: {} for name in served})
                tables.leaving.difference_update(served)
                released.append(tables)
        return released


class _Tables:
    """One proxier's rows: those wanted, those applied, and those that still have to be brought into line."""

    def __init__(self, proxier: Proxier) -> None:
        self.proxier = proxier
        self.rows: dict[Owner, Rows] = {}
        """Wanted rows by owner; no two owners share a key."""
        self.leaving: set[ObjectName] = set()
        """Services that move to another proxier and stay here until that one serves them."""
        self.pending: dict[Key, Row | None] = {}
        """Wanted rows that may differ from the applied ones; None: no row is wanted."""
        self.compare_all = False
        """Compare all rows at the next `apply`, not only the pending ones."""
        self.failures: list[Failure] = []
        """Of the last `apply`."""
        self._applied: dict[Key, Row] = {}
        self._known = False
        """`_applied` is what the proxier holds."""

    def read(self) -> None:
        """Learn what the proxier holds."""
        self._applied = self.proxier.read()
        self._known = True
        self.compare_all = True

    def stage(self, changed: Mapping[Owner, Rows]) -> None:
        """Replace all rows of the owners in `changed`. A key may pass from one of them to another."""
        pending = self.pending
        for owner in changed:
            if owner in self.rows:
                pending.update(dict.fromkeys(self.rows.pop(owner)))
        for owner, rows in changed.items():
            if rows:
                self.rows[owner] = rows
                pending.update(rows)

    @property
    def in_use(self) -> bool:
        """Whether it has rows of a Service, or has still to get rid of some."""
        return bool(self.rows.keys() - {None} or self.leaving or self.pending or self.failures)

    def is_pending(self, owner: Owner) -> bool:
        """Whether some row of `owner` is not as wanted yet."""
        return any(key in self.pending for key in self.rows.get(owner, ()))

    def apply(self, *, prune: bool) -> int:
        """Bring the proxier's rows to the wanted ones; without `prune` none is deleted. What fails stays pending.
        Returns how many ops were carried out."""
        if not self._known:
            self.read()
        if self.compare_all:
            self.pending = self._all_wanted()
        if not prune:
            self.pending = {key: row for key, row in self.pending.items() if row is not None}
        ops = diff_keys(self._applied, self.pending, self.proxier.phase)
        self.failures = []
        if ops:
            self._known = False
            self.failures = self.proxier.apply(ops)
            self._known = True
        failed = {failure.op.key: failure.op.row for failure in self.failures}
        self._remember(ops, failed)
        self.pending = failed
        self.compare_all = False
        self.proxier.activate(complete=prune)
        return len(ops) - len(failed)

    def _all_wanted(self) -> dict[Key, Row | None]:
        wanted: dict[Key, Row | None] = dict.fromkeys(self._applied)
        for rows in self.rows.values():
            wanted.update(rows)
        return wanted

    def _remember(self, ops: Iterable[Op], failed: Mapping[Key, Row | None]) -> None:
        applied = self._applied
        for op in ops:
            if op.key in failed:
                continue
            if op.row is None:
                applied.pop(op.key, None)
            else:
                applied[op.key] = op.row
