"""The ipvs proxier on a kernel that has IPVS: what was rendered and applied is read back, whatever happened before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfproxy.config import Settings
from bpfproxy.model.address import ANY4, ANY6, parse_address
from bpfproxy.model.frontend import (
    Backend,
    Frontend,
    FrontendKind,
    FrontendSpec,
    NodePlan,
    ServicePlan,
    ServicePortName,
)
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.proxiers.base import Key, Op, Row
from bpfproxy.proxiers.ipvs import lifecycle
from bpfproxy.proxiers.ipvs.proxier import IpvsProxier
from bpfproxy.proxiers.ipvs.render import SCHEDULERS
from bpfproxy.proxiers.ipvs.rows import ServerKey, ServerRow

NODES = frozenset(map(parse_address, ("192.0.2.1", "2001:db8:2::1")))
NODE = NodePlan(node_port_addresses=NODES)
VIP, VIP6 = parse_address("10.96.0.10"), parse_address("fd00:96::10")
PODS = [parse_address(f"10.1.0.{n}") for n in range(1, 5)]
PODS6 = [parse_address(f"fd00:1::{n}") for n in range(1, 5)]

Rows = dict[Key, Row]


class Held:
    """A proxier, and what it was told last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.start()

    def start(self) -> None:
        self.proxier: IpvsProxier = lifecycle.open_proxier(self.settings)
        self.applied: Rows = self.proxier.read()

    def restart(self) -> None:
        self.proxier.close()
        self.start()

    def bring(self, *plans: ServicePlan, node: NodePlan = NODE) -> int:
        """Apply what differs; returns how many ops that were. What is read back is what was wanted."""
        wanted: Rows = dict(self.proxier.render_node(node))
        for plan in plans:
            wanted.update(self.proxier.render(plan))
        ops = [Op(key, None) for key in self.applied if key not in wanted]
        ops += [Op(key, row) for key, row in wanted.items() if self.applied.get(key) != row]
        failures = self.proxier.apply(sorted(ops, key=self.proxier.phase))
        assert failures == []
        self.applied = wanted
        found = self.proxier.read()
        assert found == wanted
        return len(ops)


@pytest.fixture
def held(node: str, state: Path) -> Iterator[Held]:
    made = Held(Settings(state_dir=state, cluster_cidr=("10.1.0.0/16", "fd00:1::/32")))
    yield made
    made.proxier.close()
    lifecycle.cleanup(state)
    assert not lifecycle.present(state)


def plan(
    name: str,
    *frontends: Frontend,
    pods: list[bytes] | None = None,
    kind: FrontendKind = FrontendKind.CLUSTER_IP,
    affinity: int = 0,
) -> ServicePlan:
    service = ObjectName("default", name)
    specs = {}
    for frontend in frontends:
        addresses = pods if pods is not None else (PODS if frontend.family == 4 else PODS6)
        backends = tuple(Backend(address, 8080, frontend.protocol, n == 0) for n, address in enumerate(addresses))
        port = ServicePortName(service, "", frontend.protocol)
        specs[frontend] = FrontendSpec(port, kind, backends=backends, affinity_timeout=affinity)
    return ServicePlan(service, specs)


def web(*pods: bytes, affinity: int = 0) -> ServicePlan:
    return plan("web", Frontend(VIP, 80, Protocol.TCP), pods=list(pods), affinity=affinity)


def test_a_service_of_each_kind(held: Held) -> None:
    everything = [
        plan("a", *(Frontend(VIP, 80, protocol) for protocol in Protocol), Frontend(VIP6, 80, Protocol.TCP)),
        plan(
            "b",
            *(Frontend(address, 30080, protocol) for protocol in Protocol for address in (ANY4, ANY6)),
            kind=FrontendKind.NODE_PORT,
        ),
    ]
    assert held.bring(*everything) > 0
    assert held.bring(*everything) == 0
    held.restart()
    assert held.bring(*everything) == 0
    assert held.bring() > 0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_scheduler(node: str, state: Path, scheduler: str) -> None:
    held = Held(Settings(state_dir=state, ipvs_scheduler=scheduler))  # type: ignore[arg-type]
    held.bring(web(*PODS[:2]))
    assert held.applied[ServerKey(VIP, 80, Protocol.TCP)] == ServerRow(scheduler)
    held.proxier.close()
    lifecycle.cleanup(state)
