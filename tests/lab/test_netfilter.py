"""The netfilter layer against the kernel, in namespaces of its own: both variants, both families."""

from __future__ import annotations

import fcntl
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from bpfproxy.errors import DatapathError
from bpfproxy.model.address import Family, parse_address
from bpfproxy.netfilter import conntrack
from bpfproxy.netfilter.command import VARIANTS, Iptables, RestoreError, Variant, choose
from bpfproxy.netfilter.rows import ONCE, ChainKey, Kind, RuleKey, SharedChainKey, TableKey
from bpfproxy.netfilter.rules import Rule, words
from bpfproxy.netfilter.sysctl import Sysctls
from bpfproxy.netfilter.writer import RuleWriter


class Layout:
    tables: tuple[str, ...] = ("filter", "nat")

    def kind(self, table: str, chain: str) -> Kind:
        if chain.startswith("OWN-"):
            return "own"
        return "shared" if chain == "SHARED" else "joint" if chain == "JOINT" else "foreign"

    def owns(self, table: str, chain: str, rule: Rule) -> bool:
        return rule.target in ("SHARED", "JOINT") or "ours" in words(rule.text)

    def is_last(self, key: RuleKey) -> bool:
        return key.rule.target == "OWN-LAST"


@pytest.fixture(params=[(variant, family) for variant in VARIANTS for family in (4, 6)], ids=str)
def tools(request: pytest.FixtureRequest, namespace: str) -> Iptables:
    variant, family = request.param
    return Iptables(family, variant)


def example(family: Family) -> dict[TableKey, object]:
    vip, end = ("10.96.0.1", "10.244.0.1") if family == 4 else ("fd00:96::1", "fd00:244::1")
    target = f"{end}:80" if family == 4 else f"[{end}]:80"
    rules = [
        f'-m comment --comment "ns/a" -m tcp -p tcp -d {vip} --dport 80 -j OWN-A',
        f'-m comment --comment "ns/a cluster IP" -m udp -p udp -d {vip} --dport 80 -j OWN-A',
        '-m comment --comment "must be last" -m addrtype --dst-type LOCAL -j OWN-LAST',
    ]
    return {
        ChainKey(family, "nat", "OWN-END"): (
            Rule(f"-m comment --comment x -s {end} -j MARK --or-mark 0x4000"),
            Rule(f"-m recent --name OWN-END --set -m tcp -p tcp -j DNAT --to-destination {target}"),
        ),
        ChainKey(family, "nat", "OWN-LAST"): (),
        ChainKey(family, "nat", "OWN-A"): (
            Rule("-m recent --name OWN-END --rcheck --seconds 10800 --reap -j OWN-END"),
            Rule("-m statistic --mode random --probability 0.3333333333 -j OWN-END"),
            Rule("-m mark ! --mark 0x4000/0x4000 -j RETURN"),
            Rule("-j OWN-END"),
        ),
        SharedChainKey(family, "nat", "SHARED"): True,
        SharedChainKey(family, "filter", "SHARED"): True,
        SharedChainKey(family, "filter", "JOINT"): True,
        **{RuleKey(family, "nat", "SHARED", Rule(rule)): ONCE for rule in rules},
        RuleKey(family, "filter", "SHARED", Rule("-m udp -p udp --dport 99 -j REJECT")): ONCE,
        RuleKey(family, "filter", "JOINT", Rule('-m comment --comment "ours" -j DROP')): ONCE,
        RuleKey(family, "filter", "INPUT", Rule("-m conntrack --ctstate NEW -j SHARED")): ONCE,
        RuleKey(family, "nat", "PREROUTING", Rule("-j SHARED")): ONCE,
    }  # fmt: skip


def gone(rows: dict[TableKey, object]) -> list[tuple[TableKey, object]]:
    """The changes that remove them, what points first."""
    kinds: dict[type, int] = {RuleKey: 0, ChainKey: 1, SharedChainKey: 2}
    return [(key, None) for key in sorted(rows, key=lambda key: kinds[type(key)])]


def test_what_is_written_is_read_back_and_goes(tools: Iptables) -> None:
    writer = RuleWriter({tools.family: tools}, Layout())
    rows = example(tools.family)
    assert writer.read() == {}
    assert writer.apply(list(rows.items())) == []
    assert writer.read() == rows
    assert RuleWriter({tools.family: tools}, Layout()).read() == rows
    shared = tools.save(["nat"])["nat"]["SHARED"].rules
    assert [rule.target for rule in shared] == ["OWN-A", "OWN-A", "OWN-LAST"]
    assert shared[0] == Rule(next(key.rule.text for key in rows if isinstance(key, RuleKey)))
    assert writer.apply(gone(rows)) == []
    assert writer.read() == {}
    assert not any(not chain.built_in for chains in tools.save(["filter", "nat"]).values() for chain in chains.values())


def test_a_later_rule_goes_before_the_last_one(tools: Iptables) -> None:
    writer = RuleWriter({tools.family: tools}, Layout())
    writer.apply(list(example(tools.family).items()))
    key = RuleKey(tools.family, "nat", "SHARED", Rule("-p tcp -m tcp --dport 1 -j OWN-A"))
    assert writer.apply([(key, ONCE)]) == []
    assert [rule.target for rule in tools.save(["nat"])["nat"]["SHARED"].rules][-1] == "OWN-LAST"


def test_rules_of_others_stay(tools: Iptables) -> None:
    tools.restore("*filter\n:JOINT - [0:0]\n-A JOINT -p udp -j ACCEPT\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n")
    before = {name: chain.rules for name, chain in tools.save(["filter"])["filter"].items()}
    writer = RuleWriter({tools.family: tools}, Layout())
    rows = example(tools.family)
    writer.apply(list(rows.items()))
    assert writer.apply(gone(rows)) == []
    assert {name: chain.rules for name, chain in tools.save(["filter"])["filter"].items()} == before


def test_a_bad_rule_holds_up_nothing_else(tools: Iptables) -> None:
    writer = RuleWriter({tools.family: tools}, Layout())
    rows = example(tools.family)
    bad: dict[TableKey, object] = {
        ChainKey(tools.family, "nat", "OWN-BAD"): (Rule("-m statistic --mode nonsense -j RETURN"),),
        RuleKey(tools.family, "nat", "SHARED", Rule("-p tcp -m tcp --dport 5 -j OWN-BAD")): ONCE,
    }
    refused = writer.apply([*rows.items(), *bad.items()])
    assert [key for key, _ in refused] == list(bad)
    assert writer.read() == rows


def test_changes_of_others_are_no_failure(tools: Iptables) -> None:
    writer = RuleWriter({tools.family: tools}, Layout())
    rows = example(tools.family)
    writer.apply(list(rows.items()))
    key = next(key for key in rows if isinstance(key, RuleKey) and key.chain == "SHARED")
    tools.restore(f"*{key.table}\n-D {key.chain} {key.rule}\nCOMMIT\n")
    assert writer.apply([(key, None)]) == []
    tools.restore(f"*{key.table}\n-A {key.chain} {key.rule}\n-A {key.chain} {key.rule}\nCOMMIT\n")
    assert writer.read()[key] == 2
    assert writer.apply([(key, ONCE)]) == []
    assert writer.read() == rows


def test_a_refusal_is_one_line(tools: Iptables) -> None:
    with pytest.raises(RestoreError) as raised:
        tools.restore("*nat\n-A NOWHERE -j ACCEPT\nCOMMIT\n")
    assert "\n" not in str(raised.value)
    assert "restore: " in str(raised.value)


def test_a_lock_that_is_held_is_no_refusal_of_rules(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatapathError, match="xtables lock") as raised:
            Iptables(4, "legacy").restore("*nat\n:OWN-A - [0:0]\nCOMMIT\n")
        assert not isinstance(raised.value, RestoreError)


def test_looking_makes_no_table(tools: Iptables) -> None:
    found = tools.save(["nat", "filter", "mangle"])
    assert not any(chain.rules or not chain.built_in for chains in found.values() for chain in chains.values())
    there = subprocess.run(
        [f"ip{'' if tools.family == 4 else '6'}tables-{tools.variant}-save"], capture_output=True, check=True
    )
    assert there.stdout == b""


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kubelets_variant_is_chosen(namespace: str, variant: Variant) -> None:
    Iptables(4, variant).restore("*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n")
    assert choose() == variant
    assert choose("legacy") == "legacy"


# ---- conntrack ---------------------------------------------------------------------------------------------------

LOOPBACK: dict[Family, str] = {4: "127.0.0.1", 6: "::1"}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
TRACK = "*filter\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"


def dnat(family: Family, to: str, port: int, backend: int) -> str:
    here = LOOPBACK[family]
    end = f"{here}:{backend}" if family == 4 else f"[{here}]:{backend}"
    return f"*nat\n-A OUTPUT -d {to} -p udp -m udp --dport {port} -j DNAT --to-destination {end}\nCOMMIT\n"


def send(family: Family, port: int) -> tuple[conntrack.Endpoint, socket.socket]:
    client = socket.socket(AF[family], socket.SOCK_DGRAM)
    client.sendto(b"x", (LOOPBACK[family], port))
    return (parse_address(LOOPBACK[family]), client.getsockname()[1]), client


@pytest.mark.parametrize("everywhere", [False, True], ids=["vip", "node-port"])
@pytest.mark.parametrize("family", [4, 6])
def test_flows_of_endpoints_that_went_are_deleted(namespace: str, family: Family, everywhere: bool) -> None:
    here = parse_address(LOOPBACK[family])
    tools = Iptables(family, "nft")
    tools.restore(dnat(family, LOOPBACK[family], 53, 1053) + dnat(family, LOOPBACK[family], 54, 1054) + TRACK)
    sockets = [send(family, port) for port in (53, 54, 55)]
    try:
        assert {(flow.to[1], flow.server[1]) for flow in conntrack.flows(family)} == {
            (53, 1053),
            (54, 1054),
            (55, 55),
        }
        address = parse_address("0.0.0.0" if family == 4 else "::") if everywhere else here
        serving = {
            (address, 53): frozenset({(here, 1053)}),
            (address, 54): frozenset({(here, 1055)}),
        }
        assert conntrack.delete_stale(serving) == 1
        assert {flow.to[1] for flow in conntrack.flows(family)} == {53, 55}
        assert conntrack.delete_stale({(address, 53): frozenset(), (address, 55): frozenset()}) == 2
        assert conntrack.flows(family) == []
    finally:
        for _, one in sockets:
            one.close()


def test_flows_to_other_hosts_by_a_node_ports_number_stay(namespace: str) -> None:
    Iptables(4, "nft").restore("*filter\n-A OUTPUT -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n")
    with IPRoute() as ip:
        ip.route("add", dst="192.0.2.0/24", oif=1)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.sendto(b"x", ("192.0.2.1", 30053))
        assert [flow.to[1] for flow in conntrack.flows(4)] == [30053]
        assert conntrack.delete_stale({(parse_address("0.0.0.0"), 30053): frozenset()}) == 0
        assert len(conntrack.flows(4)) == 1


def test_conntrack_can_be_looked_at(namespace: str) -> None:
    assert conntrack.problem() == ""


def test_many_frontends_at_once(namespace: str) -> None:
    Iptables(4, "nft").restore(TRACK)
    _, client = send(4, 700)
    with closing(client):
        here = parse_address("127.0.0.1")
        serving: dict[conntrack.Endpoint, frozenset[conntrack.Endpoint]] = {
            (here, port): frozenset() for port in range(500, 900)
        }
        assert conntrack.delete_stale(serving) == 1
    assert conntrack.flows(4) == []


# ---- sysctl ------------------------------------------------------------------------------------------------------

NAME = "net/ipv4/conf/all/route_localnet"


def test_sysctls_are_put_back(namespace: str, tmp_path: Path) -> None:
    file = tmp_path / "state" / "sysctls.json"
    path = Path("/proc/sys") / NAME
    assert path.read_text() == "0\n"
    Sysctls(file).set(NAME, "1")
    Sysctls(file).set(NAME, "1")
    assert path.read_text() == "1\n"
    assert Sysctls(file).read() == {NAME: "1"}
    assert Sysctls(file).restore_all() == [NAME]
    assert path.read_text() == "0\n"
    assert Sysctls(file).read() == {}
    assert not file.exists()


def test_a_sysctl_that_nobody_set_is_left_alone(namespace: str, tmp_path: Path) -> None:
    Sysctls(tmp_path / "sysctls.json").restore(NAME)
    with pytest.raises(FileNotFoundError):
        Sysctls(tmp_path / "sysctls.json").set("net/ipv4/no/such", "1")
    assert list(tmp_path.iterdir()) == []
