"""Rules that mean the same are equal, however they are written. The right-hand sides are what iptables-save 1.8 prints
of the left-hand ones, in both variants."""

from __future__ import annotations

import pytest

from bpfproxy.netfilter.rules import Rule, quote, words
from bpfproxy.netfilter.saved import parse, restore_input

SAME = [
    (
        '-m comment --comment "ns/svc:p80 cluster IP" -m tcp -p tcp -d 10.0.0.1 --dport 80 -j KUBE-SVC-A',
        '-d 10.0.0.1/32 -p tcp -m comment --comment "ns/svc:p80 cluster IP" -m tcp --dport 80 -j KUBE-SVC-A',
    ),
    (
        "-m comment --comment ns/svc -m tcp -p tcp -d fd00::1 --dport 80 ! -s fd10::/16 -j KUBE-MARK-MASQ",
        '! -s fd10::/16 -d fd00::1/128 -p tcp -m comment --comment "ns/svc" -m tcp --dport 80 -j KUBE-MARK-MASQ',
    ),
    ("-s 0.0.0.0/0 -j RETURN", "-j RETURN"),
    ("-s ::/0 -j RETURN", "-j RETURN"),
    ("-s 10.1.2.3/8 -j RETURN", "-s 10.0.0.0/8 -j RETURN"),
    ("-p 132 -m sctp --dport 1 -j RETURN", "-p sctp -m sctp --dport 1 -j RETURN"),
    ("-j MARK --or-mark 0x4000", "-j MARK --set-xmark 0x4000/0x4000"),
    ("-j MARK --xor-mark 0x4000", "-j MARK --set-xmark 0x4000/0x0"),
    ("-j MARK --and-mark 0x4000", "-j MARK --set-xmark 0x0/0xffffbfff"),
    ("-j MARK --set-mark 0x1/0x2", "-j MARK --set-xmark 0x1/0x3"),
    ("-m mark ! --mark 16384/16384 -j RETURN", "-m mark ! --mark 0x4000/0x4000 -j RETURN"),
    ("-m mark --mark 0x1 -j RETURN", "-m mark --mark 0x1/0xffffffff -j RETURN"),
    (
        "-m recent --name KUBE-SEP-A --rcheck --seconds 10800 --reap -j KUBE-SEP-A",
        "-m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-A --mask 255.255.255.255 --rsource -j KUBE-SEP-A",
    ),
    (
        "-m recent --name KUBE-SEP-A --set -m tcp -p tcp -j DNAT --to-destination [fd00::1]:80",
        "-p tcp -m recent --set --name KUBE-SEP-A --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -m tcp "
        "-j DNAT --to-destination [fd00::1]:80",
    ),
    (
        "-m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-A",
        "-m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-A",
    ),
    (
        "-m statistic --mode random --probability 0.1428571429 -j KUBE-SEP-A",
        "-m statistic --mode random --probability 0.14285714272 -j KUBE-SEP-A",
    ),
    ("-p tcp -j REJECT", "-p tcp -j REJECT --reject-with icmp-port-unreachable"),
    ("-p tcp -j REJECT", "-p tcp -j REJECT --reject-with icmp6-port-unreachable"),
    (
        "-p tcp -j MASQUERADE --random-fully --to-ports 1024-61000",
        "-p tcp -j MASQUERADE --to-ports 1024-61000 --random-fully",
    ),
    (
        "-d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate ESTABLISHED,RELATED,DNAT -j DROP",
    ),
    ("--source 10.0.0.1 --protocol tcp --jump ACCEPT", "-s 10.0.0.1/32 -p tcp -j ACCEPT"),
]

DIFFERENT = [
    ("-d 10.0.0.1 -j A", "-d 10.0.0.2 -j A"),
    ("-d 10.0.0.1 -j A", "-s 10.0.0.1 -j A"),
    ("-d 10.0.0.1 -j A", "! -d 10.0.0.1 -j A"),
    ("! -s 0.0.0.0/0 -j A", "-j A"),
    ("-p tcp -j A", "-p udp -j A"),
    ("-p tcp -m tcp --dport 80 -j A", "-p tcp -m tcp --sport 80 -j A"),
    ("-p tcp -m tcp --dport 80 -j A", "-p tcp -m tcp ! --dport 80 -j A"),
    ("-s 10.0.0.1/255.0.0.255 -j A", "-s 10.0.0.1 -j A"),
    ("-j A", "-g A"),
    ("-j A", "-j B"),
    ('-m comment --comment "a" -j A', '-m comment --comment "b" -j A'),
    ("-j MARK --or-mark 0x4000", "-j MARK --xor-mark 0x4000"),
    ("-m mark --mark 0x4000/0x4000 -j A", "-m mark ! --mark 0x4000/0x4000 -j A"),
    ("-m statistic --mode random --probability 0.5 -j A", "-m statistic --mode random --probability 0.5000001 -j A"),
    ("-p tcp -j REJECT", "-p tcp -j REJECT --reject-with tcp-reset"),
    ("-p tcp -j MASQUERADE", "-p tcp -j MASQUERADE --random-fully"),
]


@pytest.mark.parametrize(("written", "printed"), SAME)
def test_the_same(written: str, printed: str) -> None:
    assert Rule(written) == Rule(printed)
    assert hash(Rule(written)) == hash(Rule(printed))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different(one: str, other: str) -> None:
    assert Rule(one) != Rule(other)


@pytest.mark.parametrize(
    ("text", "target"),
    [("-p tcp -j KUBE-SVC-A", "KUBE-SVC-A"), ("-p tcp", ""), ("-g X", "goto X"), ("-j LOG --log-prefix x", "LOG")],
)
def test_target(text: str, target: str) -> None:
    assert Rule(text).target == target


@pytest.mark.parametrize("comment", ["plain", "two words", 'a "quoted" one', "back\\slash", "-j ACCEPT", "!", "-x"])
def test_comments_may_hold_anything(comment: str) -> None:
    text = f"-m comment --comment {quote(comment)} -j A"
    assert words(text) == ["-m", "comment", "--comment", comment, "-j", "A"]
    assert Rule(text).target == "A"
    assert Rule(text) != Rule("-m comment --comment other -j A")


def test_parse_what_iptables_save_prints() -> None:
    tables = parse(
        """# Generated by iptables-nft-save v1.8.9 (nf_tables) on Sat Nov 21 09:55:58 2026
*filter
:INPUT ACCEPT [10:200]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
[3:180] -A INPUT -p tcp -j ACCEPT
-A INPUT
COMMIT
# Completed
*nat
:KUBE-SERVICES - [0:0]
COMMIT
"""
    )
    assert list(tables) == ["filter", "nat"]
    assert tables["filter"]["INPUT"].policy == "ACCEPT"
    assert tables["filter"]["INPUT"].built_in
    assert [rule.text for rule in tables["filter"]["INPUT"].rules] == [
        "-m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-p tcp -j ACCEPT",
        "",
    ]
    assert not tables["nat"]["KUBE-SERVICES"].built_in
    assert tables["nat"]["KUBE-SERVICES"].rules == []


def test_parse_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="expected a line of iptables-save, not 'what'"):
        parse("*nat\nwhat\n")


def test_restore_input_leaves_out_empty_sections() -> None:
    assert restore_input([("filter", []), ("nat", [":A - [0:0]", "-A A -j B"])]) == (
        "*nat\n:A - [0:0]\n-A A -j B\nCOMMIT\n"
    )
