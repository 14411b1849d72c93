"""A proxier over a dictionary that outlives it, with rows shaped like the ebpf proxier's.

Frontend → set → backends. It looks at itself after every single op, so that every prefix of a sync is seen; it can
refuse ops, and it can die after any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from msgspec import Struct

from bpfproxy.model.address import Address
from bpfproxy.model.frontend import (
    Backend,
    Frontend,
    FrontendSpec,
    NodePlan,
    OnEmpty,
    Pool,
    ServicePlan,
    ServicePortName,
)
from bpfproxy.proxiers.base import Failure, Key, Op, Row, Tended


class SetName(Struct, frozen=True):
    service_port: ServicePortName
    family: int
    pool: Pool


class SetMembers(Struct, frozen=True):
    backends: tuple[Backend, ...]
    draining: tuple[Backend, ...]
    on_empty: OnEmpty


class FrontendRow(Struct, frozen=True):
    set: SetName
    spec: FrontendSpec
    """Without its backends."""


class NodeAddress(Struct, frozen=True):
    address: Address | str


Kernel = dict[Key, Row]


class DiedError(Exception):
    """The process was killed between two ops."""


class SimProxier:
    """`refuses` says which ops the kernel will not do; `die_after` counts down the ops until the process dies."""

    def __init__(self, name: str, kernel: Kernel, look: Callable[[Kernel], None] = lambda kernel: None) -> None:
        self.name = name
        self.kernel = kernel
        self.look = look
        self.refuses: Callable[[Op], bool] = lambda op: False
        self.die_after: int | None = None
        self.ops: list[Op] = []
        """All that were carried out."""
        self.log: list[str] = []
        """Shared between proxiers by a test that looks at their order."""
        self.activations: list[bool] = []
        self.is_drained = True
        self.shared = False
        """What it was told last."""
        self.preceded: frozenset[Frontend] = frozenset()
        """What `drained` was asked with last."""
        self.closed = False
        self.tended: list[Tended | Exception] = []
        """What the next calls of `tend` are to say."""

    def render(self, plan: ServicePlan) -> dict[Key, Row]:
        rows: dict[Key, Row] = {}
        for frontend, spec in plan.frontends.items():
            name = SetName(spec.service_port, frontend.family, spec.pool)
            members = SetMembers(spec.backends, spec.draining, spec.on_empty)
            assert rows.setdefault(name, members) == members
            bare = FrontendSpec(
                spec.service_port,
                spec.kind,
                spec.pool,
                masquerade=spec.masquerade,
                affinity_timeout=spec.affinity_timeout,
                source_ranges=spec.source_ranges,
                scheduler=spec.scheduler,
                scoped=spec.scoped,
            )
            rows[frontend] = FrontendRow(name, bare)
        return rows

    def render_node(self, plan: NodePlan) -> dict[Key, Row]:
        self.shared = plan.shared
        keys = [NodeAddress(address) for address in plan.node_port_addresses]
        keys += [NodeAddress(f"localhost{family}") for family in plan.localhost_node_ports]
        keys += [NodeAddress(f"{device.name}: {device.role.name}") for device in plan.devices]
        keys += [NodeAddress(f"routes {plan.route_generation}")] if plan.route_generation > 1 else []
        return dict.fromkeys(keys, True)

    def phase(self, op: Op) -> int:
        order: list[type] = [SetName, Frontend, NodeAddress]
        place = order.index(type(op.key))
        return place if op.row is not None else 10 - place

    def read(self) -> dict[Key, Row]:
        return dict(self.kernel)

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        assert [self.phase(op) for op in ops] == sorted(self.phase(op) for op in ops)
        failures: list[Failure] = []
        failed: set[Key] = set()
        for op in ops:
            if self.die_after is not None:
                if not self.die_after:
                    raise DiedError
                self.die_after -= 1
            reason = self._refusal(op, failed)
            if reason:
                failures.append(Failure(op, reason))
                failed.add(op.key)
                continue
            if op.row is None:
                del self.kernel[op.key]
            else:
                self.kernel[op.key] = op.row
            self.ops.append(op)
            self.log.append(f"{self.name}: {'-' if op.row is None else '+'}{type(op.key).__name__}")
            self.look(self.kernel)
        return failures

    def _refusal(self, op: Op, failed: set[Key]) -> str | None:
        if self.refuses(op):
            return "refused"
        if isinstance(op.row, FrontendRow) and (op.row.set in failed or op.row.set not in self.kernel):
            return "its set could not be written"
        if isinstance(op.key, SetName) and op.row is None and op.key in leads_to(self.kernel).values():
            return "a frontend still leads to it"
        return None

    def activate(self, *, complete: bool) -> None:
        self.activations.append(complete)
        self.log.append(f"{self.name}: active")

    def tend(self) -> Tended:
        done = self.tended.pop(0) if self.tended else Tended()
        if isinstance(done, Exception):
            raise done
        return done

    @property
    def precedes_conntrack(self) -> bool:
        return self.name == "ebpf"

    def drained(self, preceded: Collection[Frontend]) -> bool:
        self.preceded = frozenset(preceded)
        return self.is_drained

    def close(self) -> None:
        self.closed = True


def leads_to(kernel: Kernel) -> dict[Frontend, SetName]:
    return {key: row.set for key, row in kernel.items() if isinstance(row, FrontendRow)}


def assert_sound(kernel: Kernel) -> None:
    """No frontend leads to a missing set."""
    for frontend, name in leads_to(kernel).items():
        assert name in kernel, f"{frontend} leads to {name}, which is not there"
