"""Rendered rows against golden files, written by hand from the semantics; and what holds of every plan.

Each `golden/ipvs/NAME.yaml` holds the objects, and `NAME.txt` what becomes of them on the node n1.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.errors import InputError
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import NodePlan, OnEmpty, Scope, ServicePlan
from bpfproxy.model.service import EndpointSlice, Protocol, Service
from bpfproxy.netfilter.rows import ChainKey, RuleKey
from bpfproxy.plan import NodeConfig, plan_service
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.ipvs import chains, lifecycle, sets
from bpfproxy.proxiers.ipvs.entries import claimed
from bpfproxy.proxiers.ipvs.render import IpvsRenderer
from bpfproxy.proxiers.ipvs.rows import EntryKey, RealKey, ServerKey, SetKey, SysctlKey
from tests.unit import strategies

GOLDEN = Path(__file__).parent / "golden" / "ipvs"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
SETTINGS = Settings(node_name="n1", cluster_cidr=("10.1.0.0/16",))


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    plan = plan_manifests(Settings(manifests=(GOLDEN / f"{name}.yaml",), node_name="n1", cluster_cidr=("10.1.0.0/16",)))
    renderer = lifecycle.renderer(SETTINGS)
    found = [
        " | ".join(renderer.describe(key, row))
        for one in plan.services.values()
        for key, row in renderer.render(one).items()
    ]
    assert sorted(found) == sorted((GOLDEN / f"{name}.txt").read_text().splitlines())


@st.composite
def plans(draw: st.DrawFn) -> ServicePlan:
    service: Service = draw(strategies.services())
    slices: list[EndpointSlice] = draw(strategies.slice_lists(service.name))
    node: NodeConfig = draw(strategies.nodes())
    return plan_service(service, slices, node) or ServicePlan(service.name, {})


@given(plans())
def test_every_frontend_is_a_virtual_server_that_a_set_claims(plan: ServicePlan) -> None:
    rows = IpvsRenderer().render(plan)
    servers = {key for key in rows if isinstance(key, ServerKey)}
    assert servers == {ServerKey(one.address, one.port, one.protocol) for one in plan.frontends}
    claims = {server for key in rows if isinstance(key, EntryKey) and (server := claimed(key))}
    assert claims == servers
    assert all(key.server in servers for key in rows if isinstance(key, RealKey))


@given(plans())
def test_real_servers_are_the_backends_of_clients_inside(plan: ServicePlan) -> None:
    rows = IpvsRenderer().render(plan)
    for frontend, spec in plan.frontends.items():
        if frontend.scope is Scope.INTERNAL or not spec.scoped:
            key = ServerKey(frontend.address, frontend.port, frontend.protocol)
            chosen = {(one.address, one.port) for one in rows if isinstance(one, RealKey) and one.server == key}
            wanted = {(backend.address, backend.port) for backend in spec.backends}
            if frontend.protocol is not Protocol.TCP and wanted:
                wanted |= {(backend.address, backend.port) for backend in spec.draining}
            assert chosen == wanted


@given(plans())
def test_who_is_to_be_dropped_is_in_a_set_for_that(plan: ServicePlan) -> None:
    """Without real servers IPVS refuses; where the plan says `drop`, or clients outside get less than those inside, a
    rule has to be there."""
    rows = IpvsRenderer().render(plan)
    dropped = {
        (key.address, key.port, key.protocol)
        for key in rows
        if isinstance(key, EntryKey) and key.set in (sets.NO_LOCAL, sets.NO_LOCAL_EXTERNAL, sets.NO_LOCAL_NODE_PORT)
    }
    wanted = {
        (frontend.address, frontend.port, frontend.protocol)
        for frontend, spec in plan.frontends.items()
        if not spec.backends and spec.on_empty is OnEmpty.DROP
    }
    assert dropped == wanted


NODE = NodePlan(node_port_addresses=frozenset([parse_address("192.0.2.1")]))


def chain(renderer: IpvsRenderer, table: str, name: str, plan: NodePlan = NODE) -> list[str]:
    return [rule.text for rule in renderer.render_node(plan)[ChainKey(4, table, name)]]


def test_postrouting_leaves_out_the_ports_for_snat() -> None:
    renderer = lifecycle.renderer(Settings(snat_ports="50000-52000"))
    masquerade = [rule for rule in chain(renderer, "nat", chains.POSTROUTING) if "MASQUERADE" in rule]
    assert len(masquerade) == 8
    with_ports = [rule for rule in masquerade if rule.startswith("-p ")]
    assert len(with_ports) == 6
    assert all("-j MASQUERADE --to-ports 1024-49999 --random-fully" in rule for rule in with_ports)


def test_cluster_ips_are_masqueraded_by_source() -> None:
    detector = plan_manifests(Settings(cluster_cidr=("10.1.0.0/16",), node_name="n1")).node

    def rule(renderer: IpvsRenderer, plan: NodePlan) -> str:
        return next(text for text in chain(renderer, "nat", chains.SERVICES, plan) if "CLUSTER-IP" in text)

    assert rule(IpvsRenderer(), detector).startswith("! -s 10.1.0.0/16 ")
    assert "--match-set KUBE-CLUSTER-IP src,dst -j KUBE-IPVS-MARK-MASQ" in rule(IpvsRenderer(), NODE)
    everything = rule(IpvsRenderer(masquerade_all=True), detector)
    assert not everything.startswith("!")
    assert "dst,dst -j KUBE-IPVS-MARK-MASQ" in everything


def test_rules_speak_of_sets_and_chains_that_there_are() -> None:
    rows = IpvsRenderer().render_node(NODE)
    rules = [(key.family, rule) for key, row in rows.items() if isinstance(key, ChainKey) for rule in row]
    names = {sets.full_name(key.family, key.set) for key in rows if isinstance(key, SetKey)}
    made = {(key.family, key.chain) for key in rows if isinstance(key, ChainKey)}
    for family, rule in rules:
        words = rule.text.split()
        if "--match-set" in words:
            name = words[words.index("--match-set") + 1]
            assert name in names
            assert name.startswith("KUBE-6-") == (family == 6)
        if rule.target.startswith("KUBE-"):
            assert (family, rule.target) in made
    for key in rows:
        if isinstance(key, RuleKey):
            assert (key.family, key.rule.target) in made
            assert chains.Layout().owns(key.table, key.chain, key.rule)


def test_sysctls() -> None:
    def sysctls(*, strict_arp: bool) -> dict[str, str]:
        rows = lifecycle.renderer(Settings(ipvs_strict_arp=strict_arp)).render_node(NODE)
        return {key.name: row for key, row in rows.items() if isinstance(key, SysctlKey)}

    usual = {
        "net/ipv4/vs/conntrack": "1",
        "net/ipv4/vs/expire_nodest_conn": "1",
        "net/ipv4/vs/expire_quiescent_template": "1",
        "net/ipv4/ip_forward": "1",
    }
    assert sysctls(strict_arp=False) == usual
    strict = {"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}
    assert sysctls(strict_arp=True) == usual | strict


@given(plans())
def test_what_is_pointed_at_comes_first_and_goes_last(plan: ServicePlan) -> None:
    renderer = IpvsRenderer()
    rows = renderer.render_node(NODE) | renderer.render(plan)
    writing = [renderer.phase(Op(key, row)) for key, row in rows.items()]
    deleting = [renderer.phase(Op(key, None)) for key in rows]
    assert max(writing) < min(deleting)


def test_bad_excluded_ranges_are_refused() -> None:
    with pytest.raises(InputError, match="--ipvs-exclude-cidrs: expected ranges"):
        Settings(ipvs_exclude_cidrs=("10.0.0.0/8,none",))
