"""The pure parts of the bench's measures of packets: no kernel, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bpfproxy.bench import rules
from bpfproxy.bench.frame import check_frame
from bpfproxy.bench.traffic import ENDLESS, Traffic
from bpfproxy.model.address import Family

CLIENT: dict[Family, str] = {4: "10.200.0.1", 6: "fd00:200::1"}
VIP: dict[Family, str] = {4: "10.96.0.1", 6: "fd00:96::1"}
LOCAL: dict[Family, str] = {4: "10.128.0.7", 6: "fd00:128::7"}
REMOTE: dict[Family, str] = {4: "10.64.0.7", 6: "fd00:64::7"}
NODE: dict[Family, str] = {4: "192.0.3.1", 6: "2001:db8:3::1"}

FAMILIES = pytest.mark.parametrize("family", [4, 6])


def traffic(family: Family) -> Traffic:
    return Traffic(family, 0x0A600001 if family == 4 else (0xFD00_0096 << 96) + 1)


def frame(family: Family, source: str, destination: str, port: int) -> bytes:
    ip: Any = IP(src=source, dst=destination) if family == 4 else IPv6(src=source, dst=destination)
    ethernet = Ether(src="02:00:00:00:00:fe", dst="02:00:00:00:00:01")
    return bytes(ethernet / ip / UDP(sport=20000, dport=port) / bytes(24))


@FAMILIES
def test_a_local_backend_sees_the_client(family: Family) -> None:
    right = frame(family, CLIENT[family], LOCAL[family], 8080)
    assert check_frame(right, traffic(family), translated=True, remote=False) == ""
    snatted = frame(family, NODE[family], LOCAL[family], 8080)
    assert check_frame(snatted, traffic(family), translated=True, remote=False) == f"it comes from {NODE[family]}"


@FAMILIES
def test_a_remote_backend_sees_the_node(family: Family) -> None:
    right = frame(family, NODE[family], REMOTE[family], 8080)
    assert check_frame(right, traffic(family), translated=True, remote=True) == ""
    for wrong in (
        frame(family, CLIENT[family], REMOTE[family], 8080),
        frame(family, NODE[family], LOCAL[family], 8080),
    ):
        assert check_frame(wrong, traffic(family), translated=True, remote=True)


@FAMILIES
def test_what_is_not_translated_goes_on_to_the_vip(family: Family) -> None:
    same = frame(family, CLIENT[family], VIP[family], 53)
    assert check_frame(same, traffic(family), translated=False, remote=False) == ""
    assert check_frame(same, traffic(family), translated=True, remote=False) == f"it goes to {VIP[family]} port 53"


@FAMILIES
@pytest.mark.parametrize("at", [24, 34, -1])
def test_a_changed_bit_is_seen(family: Family, at: int) -> None:
    right = bytearray(frame(family, CLIENT[family], LOCAL[family], 8080))
    right[at] ^= 1
    assert check_frame(bytes(right), traffic(family), translated=True, remote=False)


def test_traffic_as_the_generator_takes_it() -> None:
    one = Traffic(4, 0x0A600001, flows=10, destinations=2, first=5)
    assert one.words() == [4, "10.200.0.1", 20000, "10.96.0.1", 53, 2, 10, 5, "02:00:00:00:00:01"]
    six = Traffic(6, (0xFD00_0096 << 96) + 1, flows=ENDLESS, port=8080)
    assert six.words() == [6, "fd00:200::1", 20000, "fd00:96::1", 8080, 1, 4294967295, 0, "02:00:00:00:00:01"]


def test_iptables_rules() -> None:
    assert rules.iptables("10.96.0.1", 53, ["10.64.0.1", "10.64.0.2", "10.64.0.3"], 8080).splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC - [0:0]",
        ":KUBE-MARK-MASQ - [0:0]",
        ":KUBE-POSTROUTING - [0:0]",
        ":KUBE-SEP-0 - [0:0]",
        ":KUBE-SEP-1 - [0:0]",
        ":KUBE-SEP-2 - [0:0]",
        "-A PREROUTING -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-SERVICES -d 10.96.0.1/32 -p udp -m udp --dport 53 -j KUBE-SVC",
        "-A KUBE-SVC -j KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        "-A KUBE-SVC -m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-0",
        "-A KUBE-SEP-0 -p udp -m udp -j DNAT --to-destination 10.64.0.1:8080",
        "-A KUBE-SVC -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-1",
        "-A KUBE-SEP-1 -p udp -m udp -j DNAT --to-destination 10.64.0.2:8080",
        "-A KUBE-SVC -j KUBE-SEP-2",
        "-A KUBE-SEP-2 -p udp -m udp -j DNAT --to-destination 10.64.0.3:8080",
        "COMMIT",
    ]


def test_nftables_rules() -> None:
    text = rules.nftables("10.96.0.1", 53, ["10.64.0.1", "10.64.0.2"], 8080)
    assert "elements = { 10.96.0.1 . udp . 53 : goto service }" in text
    assert "numgen random mod 2 vmap { 0 : goto endpoint-0, 1 : goto endpoint-1 }" in text
    assert "chain endpoint-1 { meta l4proto udp dnat to 10.64.0.2:8080; }" in text
