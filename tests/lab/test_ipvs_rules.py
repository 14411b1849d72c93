"""The ipsets and chains of the ipvs proxier on this kernel, which may have no IPVS itself: they are accepted, read back
the same, and gone again, by both variants of iptables."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator

import pytest

from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import NodePlan
from bpfproxy.netfilter import command
from bpfproxy.netfilter.command import Iptables, Variant
from bpfproxy.netfilter.ipset import Entry, IpSets
from bpfproxy.netfilter.rows import ChainKey, RuleKey
from bpfproxy.netfilter.writer import RuleWriter
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.ipvs import chains, sets
from bpfproxy.proxiers.ipvs.render import FAMILIES, IpvsRenderer
from bpfproxy.proxiers.ipvs.rows import SetKey

NODE = NodePlan(cluster_networks=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/32")))


@pytest.fixture
def ipsets(namespace: str) -> Iterator[IpSets]:
    with contextlib.closing(IpSets()) as made:
        yield made


@pytest.mark.parametrize("variant", command.VARIANTS)
def test_rules_are_read_back_as_written(ipsets: IpSets, variant: Variant) -> None:
    renderer = IpvsRenderer()
    rows = renderer.render_node(NODE)
    for key, row in rows.items():
        if isinstance(key, SetKey):
            ipsets.create(sets.full_name(key.family, key.set), row, key.family)
    rules = {key: row for key, row in rows.items() if isinstance(key, ChainKey | RuleKey)}
    writer = RuleWriter({family: Iptables(family, variant) for family in FAMILIES}, chains.Layout())
    assert writer.apply(sorted(rules.items(), key=lambda item: renderer.phase(Op(*item)))) == []
    assert writer.read() == rules
    stale = sorted((Op(key, None) for key in rules), key=renderer.phase)
    assert writer.apply([(op.key, op.row) for op in stale]) == []
    assert writer.read() == {}
    for name in ipsets.all():
        ipsets.destroy(name)
    assert ipsets.all() == {}


VIP, POD, RANGE = parse_address("10.96.0.10"), parse_address("10.1.0.1"), parse_address("198.51.100.0")
VIP6, POD6, RANGE6 = parse_address("fd00:96::10"), parse_address("fd00:1::1"), parse_address("2001:db8:5::")


@pytest.mark.parametrize(
    ("type_", "entry", "entry6"),
    [
        ("hash:ip", Entry(VIP), Entry(VIP6)),
        ("hash:ip,port", Entry(VIP, 80, 6), Entry(VIP6, 80, 132)),
        ("hash:ip,port,ip", Entry(POD, 53, 17, POD), Entry(POD6, 53, 17, POD6)),
        ("hash:ip,port,net", Entry(VIP, 80, 6, RANGE, 24), Entry(VIP6, 80, 6, RANGE6, 48)),
        ("bitmap:port", Entry(port=30080), Entry(port=30081)),
    ],
)
def test_entries_come_and_go_however_often_asked(ipsets: IpSets, type_: str, entry: Entry, entry6: Entry) -> None:
    for family, one in zip(FAMILIES, (entry, entry6), strict=True):
        for _ in range(2):
            ipsets.create("test", type_, family)
            ipsets.add("test", type_, family, one)
            assert (ipsets.all()["test"].type, ipsets.all()["test"].entries) == (type_, [one])
        for _ in range(2):
            ipsets.delete("test", type_, family, one)
            assert ipsets.all()["test"].entries == []
        for _ in range(2):
            ipsets.destroy("test")
    ipsets.delete("test", type_, 4, entry)
    with pytest.raises(FileNotFoundError):
        ipsets.add("test", type_, 4, entry)
