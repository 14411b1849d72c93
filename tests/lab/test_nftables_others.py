"""The nftables proxier beside others on a real kernel: what is not ours is left alone, all that is ours goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfproxy.config import Settings
from bpfproxy.errors import UnsupportedError
from bpfproxy.netfilter import nft
from bpfproxy.proxiers.nftables import lifecycle
from bpfproxy.proxiers.nftables.rows import (
    ChainKey,
    OtherKey,
    SetKey,
)
from tests.lab.nftables import (
    bring_to,
    command,
    listing,
    new,
    rows_of_services,
    service,
)

FOREIGN = """
add table ip filter
add chain ip filter INPUT { type filter hook input priority 0 ; }
add rule ip filter INPUT ip daddr 192.0.2.1 drop
add table inet kube-proxy
add set inet kube-proxy s { type ipv4_addr ; }
add element inet kube-proxy s { 192.0.2.1 }
add table ip6 other
add chain ip6 other c
add chain ip6 other d
add rule ip6 other d jump c
"""
ADDITIONS = """
add counter ip kube-proxy c
add set ip kube-proxy mine { type ipv4_addr ; flags interval ; }
add element ip kube-proxy mine { 10.0.0.0/8 }
add map ip kube-proxy more { type ipv4_addr : verdict ; }
add chain ip kube-proxy one
add rule ip kube-proxy one ip saddr @mine counter name c accept
add chain ip kube-proxy two { type filter hook forward priority 5 ; policy drop ; }
add rule ip kube-proxy two jump one
add rule ip kube-proxy services tcp dport 99 drop
add element ip kube-proxy more { 10.0.0.1 : goto one }
add element ip kube-proxy service-ips { 10.0.0.1 . tcp . 80 : goto one }
add element ip kube-proxy cluster-ips { 10.0.0.1 }
delete element ip kube-proxy cluster-ips { 172.30.0.1 }
add element ip kube-proxy cluster-ips { 172.30.0.1 }
flush chain ip kube-proxy mark-for-masquerade
"""


def test_foreign_tables_are_left_alone(namespace: str) -> None:
    command("-f", "-", script=FOREIGN)
    before = listing()
    bring_to(new(), rows_of_services(service("a")))
    assert set(before.splitlines()) <= set(listing().splitlines())
    for family in ("ip", "ip6"):
        assert nft.delete_table(family, "kube-proxy")
    assert listing() == before


def test_what_others_put_into_the_table_goes(namespace: str) -> None:
    wanted = rows_of_services(service("a"))
    bring_to(new(), wanted)
    ours = command("-s", "list", "ruleset")
    command("-f", "-", script=ADDITIONS)
    stale = {op.key for op in bring_to(new(), wanted)}
    assert stale >= {
        OtherKey(4, "counter", "c"),
        SetKey(4, "mine"),
        SetKey(4, "more"),
        ChainKey(4, "one"),
        ChainKey(4, "two"),
        ChainKey(4, "services"),
        ChainKey(4, "mark-for-masquerade"),
    }
    assert new().read() == wanted
    assert sorted(command("-s", "list", "ruleset").split()) == sorted(ours.split())


def test_cleanup_leaves_nothing_of_ours_and_all_of_others(namespace: str, tmp_path: Path) -> None:
    command("-f", "-", script=FOREIGN)
    before = listing()
    chosen = Settings(state_dir=tmp_path / "state", proxy_mode="ebpf")
    assert not lifecycle.present(chosen.state_dir)
    proxier = lifecycle.open_proxier(chosen)
    assert listing() == before
    bring_to(proxier, rows_of_services(service("a")))
    assert lifecycle.present(chosen.state_dir)
    assert lifecycle.cleanup(chosen.state_dir) == ["table ip kube-proxy", "table ip6 kube-proxy"]
    assert listing() == before
    assert not lifecycle.present(chosen.state_dir)
    assert lifecycle.cleanup(chosen.state_dir) == []


def test_kube_proxys_table_is_neither_cleaned_up_nor_used_for_one_service(namespace: str, tmp_path: Path) -> None:
    command("add", "table", "ip", "kube-proxy")
    chosen = Settings(state_dir=tmp_path / "state")
    assert lifecycle.cleanup(chosen.state_dir) == []
    with pytest.raises(UnsupportedError, match="table ip kube-proxy belongs to another proxy"):
        lifecycle.open_proxier(chosen)
    assert "table ip kube-proxy" in listing()


def test_check(namespace: str, tmp_path: Path) -> None:
    found = {one.name: one for one in lifecycle.check(Settings(state_dir=tmp_path), [])}
    assert found["nftables"].available
    assert found["nftables"].detail.endswith("no tables yet")
    assert not found["net.ipv4.ip_forward"].available
    assert found["capabilities"].available
