"""For tests of the nftables proxier: a proxier, rows to write, and what `nft` says."""

from __future__ import annotations

import subprocess

from hypothesis import HealthCheck

from bpfproxy.diff import diff
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import NodePlan
from bpfproxy.model.service import ObjectName, Protocol, Service, ServicePort
from bpfproxy.plan import NodeConfig, plan_service
from bpfproxy.proxiers.base import Op, Rows
from bpfproxy.proxiers.nftables.proxier import NftablesProxier
from bpfproxy.proxiers.nftables.render import NftablesRenderer
from bpfproxy.proxiers.nftables.rows import (
    Key,
    Row,
)
from tests.unit import strategies

UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
RENDERER = NftablesRenderer(cluster_networks=strategies.CIDRS)
NODE_PLAN = NodePlan(frozenset({parse_address("192.0.2.7"), parse_address("fd02::7")}))


def command(*arguments: str, script: str | None = None) -> str:
    return subprocess.run(["nft", *arguments], input=script, capture_output=True, text=True, check=True).stdout


def listing() -> str:
    return command("list", "ruleset")


def new(batch: int = 3000) -> NftablesProxier:
    return NftablesProxier(RENDERER, batch=batch)


def bring_to(proxier: NftablesProxier, wanted: Rows) -> list[Op]:
    """A sync of a proxier that has just been started; returns the ops."""
    ops = diff(proxier.read(), wanted, proxier.phase)
    assert proxier.apply(ops) == []
    return ops


def service(name: str, address: str = "172.30.0.1", **fields: object) -> Service:
    ports = (ServicePort("http", Protocol.TCP, 80),)
    made = {"ports": ports, "cluster_ips": (parse_address(address),), **fields}
    return Service(ObjectName("ns", name), **made)  # type: ignore[arg-type]


def rows_of_services(*services: Service) -> dict[Key, Row]:
    rows = dict(RENDERER.render_node(NODE_PLAN))
    for one in services:
        plan = plan_service(one, [], NodeConfig("n1", cluster_cidrs=tuple(strategies.CIDRS)))
        assert plan is not None
        rows |= RENDERER.render(plan)
    return rows


NODE_ROWS = rows_of_services()
