"""Rendered rules against golden files, written by hand in kube-proxy's format: text for text, since people read them.

Each `golden/iptables/NAME.yaml` holds the objects, and `NAME.txt` what becomes of them on the node n1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy.api import plan_manifests
from bpfproxy.config import Settings
from bpfproxy.diff import diff
from bpfproxy.model.address import format_address, parse_address
from bpfproxy.model.frontend import NodePlan, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.netfilter.command import FAMILIES
from bpfproxy.netfilter.rows import ChainKey, RuleKey, SharedChainKey
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.plan import plan_service
from bpfproxy.proxiers.base import Key, Op, Row
from bpfproxy.proxiers.iptables import lifecycle, names
from bpfproxy.proxiers.iptables.rows import FlowsKey, KubeLayout, SysctlKey
from tests.unit import strategies
from tests.unit.simtables import SimIptables

GOLDEN = Path(__file__).parent / "golden" / "iptables"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))
SETTINGS = Settings(node_name="n1", cluster_cidr=("10.0.0.0/8",))


def render(name: str, options: Settings = SETTINGS) -> dict[Key, Row]:
    plan = plan_manifests(Settings(manifests=(GOLDEN / f"{name}.yaml",), node_name="n1", cluster_cidr=("10.0.0.0/8",)))
    renderer = lifecycle.renderer(options)
    return {key: row for one in plan.services.values() for key, row in renderer.render(one).items()}


def texts(rows: Mapping[Key, Row]) -> tuple[dict[str, list[str]], dict[str, list[str]], set[str]]:
    """(rules of own chains in order, rules of other chains sorted, flows), keyed by `IPv4 nat CHAIN`."""
    own: dict[str, list[str]] = {}
    shared: defaultdict[str, list[str]] = defaultdict(list)
    flows = set()
    for key, row in rows.items():
        match key:
            case ChainKey():
                own[f"IPv{key.family} {key.table} {key.chain}"] = [rule.text for rule in row]
            case SharedChainKey():
                shared[f"IPv{key.family} {key.table} {key.chain}"] += []
            case RuleKey():
                shared[f"IPv{key.family} {key.table} {key.chain}"].append(key.rule.text)
            case FlowsKey():
                served = ", ".join(f"{format_address(address)} {port}" for address, port in sorted(row))
                flows.add(f"{format_address(key.address)} {key.port}: {served}")
    return own, {name: sorted(rules) for name, rules in shared.items()}, flows


def golden(name: str) -> tuple[dict[str, list[str]], dict[str, list[str]], set[str]]:
    """The same of a golden file. A chain that it declares is an own one, unless only rules of Services are in it."""
    own: dict[str, list[str]] = {}
    shared: defaultdict[str, list[str]] = defaultdict(list)
    flows = set()
    family = table = ""
    for line in (GOLDEN / f"{name}.txt").read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "#":
            family = rest
        elif family == "flows":
            flows.add(line)
        elif line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chain = f"{family} {table} {kind[1:]}"
            if kind[1:] in SHARED or (table, kind[1:]) == ("filter", "KUBE-FIREWALL"):
                shared[chain] += []
            else:
                own[chain] = []
        elif kind == "-A":
            chain, _, rule = rest.partition(" ")
            key = f"{family} {table} {chain}"
            (own[key] if key in own else shared[key]).append(rule)
    return own, {name: sorted(rules) for name, rules in shared.items()}, flows


SHARED = {"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"}


@pytest.mark.parametrize("name", CASES)
def test_services(name: str) -> None:
    assert texts(render(name)) == golden(name)


EVERYWHERE = NodePlan(localhost_node_ports=(4, 6), node_ports_everywhere=(4, 6))


def test_node() -> None:
    rows = lifecycle.renderer(SETTINGS).render_node(EVERYWHERE)
    assert texts(rows) == golden("node")
    assert {key.name: row for key, row in rows.items() if isinstance(key, SysctlKey)} == {
        "net/ipv4/conf/all/route_localnet": "1"
    }


@pytest.mark.parametrize("chain", ["INPUT", "FORWARD", "OUTPUT"])
def test_ways_in_stand_in_kube_proxys_order(chain: str) -> None:
    rows = lifecycle.renderer(SETTINGS).render_node(EVERYWHERE)
    keys = [
        key for key in rows if isinstance(key, RuleKey) and (key.family, key.table, key.chain) == (4, "filter", chain)
    ]
    found = [key.rule.text for key in keys]
    lines = [line for line in (GOLDEN / "node.txt").read_text().splitlines() if line.startswith(f"-A {chain} ")]
    assert found == [line.removeprefix(f"-A {chain} ") for line in lines[: len(found)]]


def node_ports(plan: NodePlan, options: Settings = SETTINGS) -> list[str]:
    """Where NodePorts answer: the destinations of the last rules, both families."""
    rows = lifecycle.renderer(options).render_node(plan)
    rules = [key.rule.text for key in rows if isinstance(key, RuleKey) and key.rule.target == "KUBE-NODEPORTS"]
    own = [rule for rule in rules if "NOTE: this must be the last rule in this chain" in rule]
    return [rule.split('chain" ')[1].removesuffix(" -j KUBE-NODEPORTS") for rule in own]


def test_node_ports_on_some_addresses() -> None:
    addresses = frozenset(parse_address(text) for text in ("192.0.2.2", "192.0.2.1", "2001:db8::1"))
    assert node_ports(NodePlan(addresses)) == ["-d 192.0.2.1", "-d 192.0.2.2", "-d 2001:db8::1"]
    assert node_ports(NodePlan(addresses, localhost_node_ports=(4, 6))) == [
        "-d 192.0.2.1",
        "-d 192.0.2.2",
        "-d 127.0.0.0/8",
        "-d 2001:db8::1",
    ]
    assert node_ports(NodePlan(addresses, node_ports_everywhere=(6,))) == [
        "-d 192.0.2.1",
        "-d 192.0.2.2",
        "-m addrtype --dst-type LOCAL ! -d ::1/128",
    ]


def test_without_node_ports_on_localhost() -> None:
    options = Settings(localhost_nodeports=False)
    assert node_ports(EVERYWHERE, options) == [
        "-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8",
        "-m addrtype --dst-type LOCAL ! -d ::1/128",
    ]
    keys = lifecycle.renderer(options).render_node(EVERYWHERE)
    assert not any(isinstance(key, SysctlKey) or "KUBE-FIREWALL" in str(key) for key in keys)


def test_the_bit_and_the_ports_of_masquerading() -> None:
    own, _, _ = texts(lifecycle.renderer(Settings(masquerade_bit=3, snat_ports="1024-32767")).render_node(EVERYWHERE))
    assert own["IPv6 nat KUBE-MARK-MASQ"] == ["-j MARK --or-mark 0x8"]
    assert own["IPv6 nat KUBE-POSTROUTING"][:2] == ["-m mark ! --mark 0x8/0x8 -j RETURN", "-j MARK --xor-mark 0x8"]
    assert all("--to-ports 32768-65535 --random-fully" in rule for rule in own["IPv6 nat KUBE-POSTROUTING"][2:5])


def test_masquerade_all() -> None:
    options = Settings(manifests=(GOLDEN / "cluster-ip.yaml",), node_name="n1", masquerade_all=True)
    (plan,) = plan_manifests(options).services.values()
    own, _, _ = texts(lifecycle.renderer(options).render(plan))
    assert own["IPv4 nat KUBE-SVC-XPGD46QRK7WJZT7O"][0] == (
        '-m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j KUBE-MARK-MASQ'
    )


def test_without_a_local_detector() -> None:
    options = Settings(manifests=(GOLDEN / "external-local-elsewhere.yaml",), node_name="n1")
    (plan,) = plan_manifests(options).services.values()
    own, _, _ = texts(lifecycle.renderer(options).render(plan))
    assert [rule.split('"')[1] for rule in own["IPv4 nat KUBE-EXT-GNZBNJ2PO5MGZ6GT"]] == [
        "masquerade LOCAL traffic for ns2/svc2:p80 external destinations",
        "route LOCAL traffic for ns2/svc2:p80 external destinations",
    ]
    assert not any("KUBE-MARK-MASQ" in rule for rule in own["IPv4 nat KUBE-SVC-GNZBNJ2PO5MGZ6GT"])


# ---- names: rule 19 ----------------------------------------------------------------------------------------------

NAMED = ServicePortName(ObjectName("ns1", "svc1"), "p80", Protocol.TCP)
UNNAMED = ServicePortName(ObjectName("ns1", "svc1"), "", Protocol.TCP)


def test_names_of_chains() -> None:
    assert names.port_hash(NAMED) == "XPGD46QRK7WJZT7O"
    assert names.port_hash(UNNAMED) == "AQI2S6QIMU7PVVRP"
    assert names.endpoint_chain(NAMED, "10.180.0.1:80") == "KUBE-SEP-SXIVWICOYRO3J4NJ"
    assert len(names.endpoint_chain(NAMED, "10.180.0.1:80")) <= 28


@pytest.mark.parametrize(
    ("chain", "ours"),
    [
        ("KUBE-SVC-XPGD46QRK7WJZT7O", True),
        ("KUBE-SEP-SXIVWICOYRO3J4NJ", True),
        ("KUBE-XLB-XPGD46QRK7WJZT7O", False),
        ("KUBE-SVC-XPGD46QRK7WJZT7OO", False),
        ("KUBE-SVC-lower46qrk7wjzt7", False),
        ("KUBE-SERVICES", False),
    ],
)
def test_hashed_names_are_told_from_others(chain: str, ours: bool) -> None:
    assert names.is_hashed(chain) is ours


# ---- properties --------------------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> list[dict[Key, Row]]:
    """The rows of several Services on one node."""
    node = draw(strategies.nodes())
    renderer = lifecycle.renderer(Settings(cluster_cidr=tuple(str(one) for one in node.cluster_cidrs)))
    found = []
    for name in strategies.SERVICES[:2]:
        service = draw(strategies.services(st.just(name)))
        plan = plan_service(service, draw(strategies.slice_lists(name)), node)
        if plan is not None:
            assert renderer.render(plan) == renderer.render(plan)
            found.append(renderer.render(plan))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_keys_of_services_are_disjoint(found: list[dict[Key, Row]]) -> None:
    # Two Services of the strategies may claim one frontend, which the index settles; its flows are shared then.
    keys = [{key for key in rows if not isinstance(key, FlowsKey)} for rows in found]
    assert sum(len(one) for one in keys) == len(set[Key]().union(*keys))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_no_chain_is_missing_and_none_is_unused(found: list[dict[Key, Row]]) -> None:
    node = {"KUBE-MARK-MASQ", "KUBE-NODEPORTS", "ACCEPT", "DROP", "REJECT", "DNAT", ""}
    for rows in found:
        chains = {(key.family, key.chain) for key in rows if isinstance(key, ChainKey)}
        rules = [(key.family, rule) for key, row in rows.items() if isinstance(key, ChainKey) for rule in row]
        rules += [(key.family, key.rule) for key in rows if isinstance(key, RuleKey)]
        targets = {(family, rule.target) for family, rule in rules if rule.target not in node}
        assert targets <= chains
        assert {one for one in chains - targets if "KUBE-SVC-" not in one[1]} == set()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_phases_put_chains_before_what_leads_to_them(found: list[dict[Key, Row]]) -> None:
    renderer = lifecycle.renderer(SETTINGS)
    for rows in found:
        made = {key.chain: renderer.phase(Op(key, row)) for key, row in rows.items() if isinstance(key, ChainKey)}
        gone = {key.chain: renderer.phase(Op(key, None)) for key in rows if isinstance(key, ChainKey)}
        for key, row in rows.items():
            for rule in row if isinstance(key, ChainKey) else [key.rule] if isinstance(key, RuleKey) else []:
                if rule.target in made:
                    assert made[rule.target] < renderer.phase(Op(key, row))
                    assert gone[rule.target] > renderer.phase(Op(key, None))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), plans())
def test_what_is_written_is_what_was_rendered(before: list[dict[Key, Row]], after: list[dict[Key, Row]]) -> None:
    renderer = lifecycle.renderer(SETTINGS)
    node = renderer.render_node(EVERYWHERE)
    kernel = {family: SimIptables(family) for family in FAMILIES}
    writer = RuleWriter(kernel, KubeLayout())
    applied: dict[Key, Row] = {}
    for services in (before, after, []):
        wanted = {key: row for rows in (node, *services) for key, row in rows.items()}
        wanted = {key: row for key, row in wanted.items() if not isinstance(key, FlowsKey | SysctlKey)}
        ops = diff(applied, wanted, renderer.phase)
        assert writer.apply([(op.key, op.row) for op in ops]) == []
        assert RuleWriter(kernel, KubeLayout()).read() == wanted
        applied = dict(wanted)


def test_rows_are_told_to_people() -> None:
    renderer = lifecycle.renderer(SETTINGS)
    rows = {**render("udp-ipv6"), **renderer.render_node(EVERYWHERE)}
    lines = {" | ".join(renderer.describe(key, row)) for key, row in rows.items()}
    assert "udp flows6 | [::]:30053 | stay with [fd00::1]:53, [fd00::2]:53" in lines
    assert "sysctl | net.ipv4.conf.all.route_localnet | 1" in lines
    assert "nat4 | KUBE-MARK-MASQ | -j MARK --or-mark 0x4000" in lines
    assert (
        "nat6 | KUBE-NODEPORTS | -m comment --comment ns1/dns -m udp -p udp --dport 30053"
        " -j KUBE-EXT-IIU7RI4YYSQY3FXW" in lines
    )
