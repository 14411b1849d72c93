"""What the nftables proxier writes, held against files written by hand: from the semantics, in kube-proxy's layout.

Names with their hashes are those of kube-proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfproxy.api import plan_objects
from bpfproxy.config import Settings
from bpfproxy.errors import InputError
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import Backend, NodePlan, ServicePlan, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol, Scheduler, Service, ServicePort
from bpfproxy.plan import NodeConfig, PlanIndex, plan_service
from bpfproxy.proxiers.base import Op, Rows
from bpfproxy.proxiers.nftables import lifecycle, names
from bpfproxy.proxiers.nftables.render import NftablesRenderer
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow, SetKey
from bpfproxy.proxiers.nftables.script import Script
from bpfproxy.sources.files import load_manifests
from tests.unit import strategies

GOLDEN = Path(__file__).with_name("golden") / "nftables"
SETTINGS = Settings(node_name="n1", cluster_cidr=("10.0.0.0/8",), service_cidr=("172.30.0.0/16",))
NODE = """
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
"""


def listing(rows: Rows) -> list[str]:
    """The commands that make the rows, without those that only make room."""
    lines = Script((Op(key, row) for key, row in rows.items()), {}, {}).lines
    hooks = {line.split(" {")[0] for line in lines if "{ type" in line}
    return [line for line in lines if not line.startswith(("add table", "flush", "delete")) and line not in hooks]


def by_object(lines: Iterable[str]) -> list[str]:
    """Rules of a chain in their order; all else sorted."""
    chosen = [line for line in lines if line and not line.startswith("#")]
    return sorted(chosen, key=lambda line: " ".join(line.split()[:5]) if line.startswith("add rule") else line)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_service(path: Path, tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(NODE)
    plan = plan_objects(load_manifests([path, tmp_path]), SETTINGS)
    [service] = plan.services.values()
    rows = lifecycle.renderer(SETTINGS).render(service)
    assert by_object(listing(rows)) == by_object(path.with_suffix(".nft").read_text().splitlines())


def node_plan() -> NodePlan:
    node, other = parse_address("192.168.0.2"), parse_address("192.168.0.3")
    return NodePlan(frozenset({node, other}), sources=(node,), node_ports_everywhere=(4, 6))


def node_listing(settings: Settings, family: str = "ip") -> list[str]:
    lines = listing(lifecycle.renderer(settings).render_node(node_plan()))
    return by_object(line for line in lines if f" {family} kube-proxy " in line)


def test_the_node() -> None:
    assert node_listing(SETTINGS) == by_object((GOLDEN / "node.nft").read_text().splitlines())


def test_both_families_have_the_same_chains_and_sets() -> None:
    def shape(family: str, loopback: str) -> set[str]:
        words = {f" {family} ": " ip ", f" {family[:2]}v{family[2:] or 4}_addr": " addr", loopback: "loopback"}
        found = set()
        for line in node_listing(Settings(nodeport_addresses=("0.0.0.0/0", "::/0")), family):
            for word, common in words.items():
                line = line.replace(word, common)
            found.add(line)
        return found

    assert shape("ip", "127.0.0.0/8") == shape("ip6", "::1")


def test_node_ports_everywhere() -> None:
    lines = node_listing(Settings(node_name="n1", nodeport_addresses=("0.0.0.0/0",)))
    assert not any("nodeport-ips" in line for line in lines)
    assert [line for line in lines if "@service-nodeports" in line] == [
        "add rule ip kube-proxy services fib daddr type local ip daddr != 127.0.0.0/8 "
        "meta l4proto . th dport vmap @service-nodeports"
    ]
    assert [line for line in lines if "vmap @no-endpoint-nodeports" in line] == [
        "add rule ip kube-proxy nodeport-endpoints-check ip daddr != 127.0.0.0/8 "
        "meta l4proto . th dport vmap @no-endpoint-nodeports"
    ]


def test_node_ports_on_chosen_addresses() -> None:
    lines = lifecycle.renderer(Settings(nodeport_addresses=("192.168.0.0/24",))).render_node(
        NodePlan(frozenset({parse_address("192.168.0.3"), parse_address("192.168.0.2")}))
    )
    assert {key for key in lines if isinstance(key, ElementKey)} == {
        ElementKey(4, "nodeport-ips", "192.168.0.2"),
        ElementKey(4, "nodeport-ips", "192.168.0.3"),
    }


def test_masquerading_follows_the_settings() -> None:
    lines = node_listing(Settings(masquerade_bit=3, snat_ports="1024-2000"))
    assert [line.split("kube-proxy ")[1] for line in lines if "mark" in line and "rule" in line] == [
        "mark-for-masquerade mark set mark or 0x8",
        "masquerading mark and 0x8 == 0 return",
        "masquerading mark set mark xor 0x8",
    ]
    assert any("masquerade to :2001-65535 fully-random" in line for line in lines)


def test_a_bad_range_is_named() -> None:
    with pytest.raises(InputError, match=r"service CIDR: expected a range .* not '10.96.0.0/33'"):
        lifecycle.renderer(Settings(service_cidr=("10.96.0.0/33",)))


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (["203.0.113.0/24"], "ip saddr != 203.0.113.0/24 drop"),
        (["203.0.113.7/32"], "ip saddr != 203.0.113.7 drop"),
        (["203.0.113.0/25", "203.0.113.128/25", "203.0.113.5/32"], "ip saddr != 203.0.113.0/24 drop"),
        (["203.0.113.0/24", "192.0.2.0/24"], "ip saddr != { 192.0.2.0/24, 203.0.113.0/24 } drop"),
        (["203.0.113.0/24", "2001:db8::/32"], "ip saddr != 203.0.113.0/24 drop"),
        (["2001:db8::/32"], None),
        (["0.0.0.0/0", "203.0.113.0/24"], None),
    ],
)
def test_source_ranges(texts: list[str], rule: str | None) -> None:
    service = Service(
        ObjectName("ns", "a"),
        (ServicePort("http", Protocol.TCP, 80),),
        type="LoadBalancer",
        cluster_ips=(parse_address("172.30.0.1"),),
        load_balancer_ips=(parse_address("198.51.100.1"),),
        source_ranges=tuple(ipaddress.ip_network(text) for text in texts),
    )
    plan = plan_service(service, [], NodeConfig("n1"))
    assert plan is not None
    rows = NftablesRenderer().render(plan)
    chains = {
        key.name: row.rules for key, row in rows.items() if isinstance(key, ChainKey) and isinstance(row, ChainRow)
    }
    firewall = [rules for name, rules in chains.items() if name.startswith("firewall-")]
    assert firewall == ([(rule,)] if rule else [])


def test_long_names_are_cut_and_still_differ() -> None:
    name = ServicePortName(ObjectName("n" * 63, "s" * 63), "p" * 63, Protocol.SCTP)
    backends = [Backend(parse_address(f"2001:db8:1111:2222:3333:4444:5555:{n}"), 65535, Protocol.SCTP) for n in (1, 2)]
    bases = [names.endpoint_base(name, backend) for backend in backends]
    assert [len(base) for base in bases] == [240, 240]
    assert bases[0].endswith("...")
    assert bases[0] != bases[1]
    assert names.path_of(f"endpoint-{bases[0]}") == names.path_of(f"service-{names.service_base(name)}")
    assert len(names.comment_of(name)) == 128


def test_no_name_can_end_a_command() -> None:
    name = ServicePortName(ObjectName("ns", 'a }\nflush ruleset\n"'), "p;q", Protocol.TCP)
    assert not set(names.service_base(name)) & set('"\\\n;{} ')
    assert not set(names.comment_of(name)) & set('"\\\n')


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_services_share_no_row_and_rendering_is_repeatable(data: st.DataObject) -> None:
    node = data.draw(strategies.nodes())
    index = PlanIndex()
    renderer = NftablesRenderer(cluster_networks=node.cluster_cidrs, default_scheduler=Scheduler.ROUND_ROBIN)
    plans: dict[ObjectName, ServicePlan | None] = {}
    for name in strategies.SERVICES:
        service = data.draw(strategies.services(st.just(name)))
        plans[name] = plan_service(service, data.draw(strategies.slice_lists(name)), node)
    index.update(plans)
    rendered = [renderer.render(plan) for plan in index.plans.values()]
    keys = [key for rows in rendered for key in rows]
    assert len(keys) == len(set(keys))
    assert rendered == [renderer.render(plan) for plan in index.plans.values()]
    for rows in rendered:
        assert_complete(rows)
        for key, row in rows.items():
            assert renderer.describe(key, row)[1]


def assert_complete(rows: Rows) -> None:
    """Whatever is named is there, or the node's; every chain but those of endpoints is led to."""
    chains = {(key.family, key.name) for key in rows if isinstance(key, ChainKey)}
    sets = {(key.family, key.name) for key in rows if isinstance(key, SetKey)}
    led_to: set[tuple[int, str]] = set()
    for key, row in rows.items():
        texts = [row.verdict] if isinstance(row, ElementRow) else row.rules if isinstance(row, ChainRow) else ()
        for text in texts:
            words = text.replace("} ", "").split()
            led_to |= {(key.family, to) for verb, to in pairwise(words) if verb in ("goto", "jump")}
            led_to |= {(key.family, word) for word in words if word.startswith("@")}
    own = {one for one in led_to if "/" in one[1]}
    assert {(family, name.removeprefix("@")) for family, name in own} <= chains | sets
    assert {one for one in chains if not one[1].startswith("endpoint-")} <= own
