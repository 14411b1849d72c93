"""The iptables proxier in network namespaces: what it writes is what it reads, and it leaves nothing behind."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as changed

from bpfproxy.config import IptablesVariant, Settings
from bpfproxy.diff import diff
from bpfproxy.errors import UnsupportedError
from bpfproxy.lab import cases, manifests
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Update
from bpfproxy.model.service import ObjectName
from bpfproxy.netfilter.command import FAMILIES, Iptables
from bpfproxy.netfilter.rules import Rule
from bpfproxy.netfilter.saved import Tables
from bpfproxy.plan import NodeConfig, plan_node, plan_service
from bpfproxy.proxiers.base import Key, Row
from bpfproxy.proxiers.iptables import lifecycle
from bpfproxy.proxiers.iptables.proxier import IptablesProxier
from bpfproxy.proxiers.iptables.rows import LOCALNET_RULE, FlowsKey
from bpfproxy.sources.files import load_manifests
from bpfproxy.store import Store

VARIANTS: tuple[IptablesVariant, ...] = ("nft", "legacy")

FOREIGN = {
    "filter": """*filter
:CNI-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A FORWARD -m comment --comment "CNI firewall" -j CNI-FORWARD
-A CNI-FORWARD -s 10.244.0.0/16 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
""",
    "nat": """*nat
:KUBE-IPTABLES-HINT - [0:0]
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT
-A POSTROUTING -s 10.244.0.0/16 ! -o lo -j MASQUERADE
COMMIT
""",
}


@pytest.fixture(params=VARIANTS)
def settings(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> Settings:
    return Settings(
        proxy_mode="iptables",
        iptables_variant=request.param,
        cluster_cidr=("10.244.0.0/16", "fd00:10:244::/48"),
        state_dir=tmp_path / "state",
    )


def everything(variant: IptablesVariant) -> dict[int, Tables]:
    assert variant != "auto"
    return {family: Iptables(family, variant).save(["filter", "nat"]) for family in FAMILIES}


def rules(tables: Mapping[int, Tables]) -> dict[tuple[int, str, str], list[Rule]]:
    """Rules of all chains that are ours or have any."""
    return {
        (family, table, name): chain.rules
        for family, one in tables.items()
        for table, chains in one.items()
        for name, chain in chains.items()
        if chain.rules or not chain.built_in
    }


def kernel_rows(rows: Mapping[Key, Row]) -> dict[Key, Row]:
    return {key: row for key, row in rows.items() if not isinstance(key, FlowsKey)}


class World:
    """All cases of the lab as Services, each of which can be put in one of several states, as one node sees them."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._renderer = lifecycle.renderer(settings)
        self._node = NodeConfig(
            "node1",
            zone="zone-a",
            cluster_cidrs=lifecycle.renderer(settings).cluster_networks,
            primary=(parse_address("172.18.0.11"),),
        )
        manifests.write(directory, "nodes", manifests.nodes())
        for case in cases.load():
            manifests.write(directory, case.name, manifests.objects(case))
        self._store = Store()
        self._store.update(Update(objects=tuple(load_manifests((directory,))), complete=True))
        self.names = sorted(self._store.take().services)
        self.wanted: dict[ObjectName, dict[Key, Row]] = {name: {} for name in self.names}
        self.node_rows = self._renderer.render_node(plan_node(self._node))

    def put(self, name: ObjectName, state: int) -> None:
        """0: gone; 1: as it is; 2: without endpoints; 3: with half of them; 4: with affinity."""
        service = self._store.service(name)
        slices = self._store.slices(name)
        if state == 2:
            slices = ()
        elif state == 3:
            slices = tuple(changed(one, endpoints=one.endpoints[::2]) for one in slices)
        elif state == 4 and service is not None:
            service = changed(service, affinity_timeout=600)
        plan = plan_service(service, slices, self._node) if state else None
        self.wanted[name] = dict(self._renderer.render(plan)) if plan else {}

    def put_all(self) -> None:
        for name in self.names:
            self.put(name, 1)

    def rows(self) -> dict[Key, Row]:
        """All rows that are wanted."""
        return {key: row for rows in (*self.wanted.values(), self.node_rows) for key, row in rows.items()}


def bring(proxier: IptablesProxier, applied: Mapping[Key, Row], wanted: Mapping[Key, Row]) -> int:
    """What the engine does; returns the number of ops."""
    ops = diff(applied, wanted, proxier.phase)
    assert proxier.apply(ops) == []
    proxier.activate(complete=True)
    return len(ops)


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return World(tmp_path / "manifests", settings)


def test_all_cases_are_read_back_as_written(settings: Settings, world: World) -> None:
    world.put_all()
    proxier = lifecycle.open_proxier(settings)
    assert proxier.read() == {}
    bring(proxier, {}, world.rows())
    assert proxier.read() == world.rows()
    again = lifecycle.open_proxier(settings)
    assert again.read() == kernel_rows(world.rows())
    for family in FAMILIES:
        last = everything(settings.iptables_variant)[family]["nat"]["KUBE-SERVICES"].rules[-1]
        assert last.target == "KUBE-NODEPORTS"


def test_cleanup_leaves_nothing(settings: Settings, world: World) -> None:
    before = rules(everything(settings.iptables_variant))
    localnet = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
    world.put_all()
    bring(lifecycle.open_proxier(settings), {}, world.rows())
    assert localnet.read_text() == "1\n"
    assert lifecycle.present(settings.state_dir)
    removed = lifecycle.cleanup(settings.state_dir)
    assert any("KUBE-SERVICES" in line for line in removed)
    assert rules(everything(settings.iptables_variant)) == before == {}
    assert localnet.read_text() == "0\n"
    assert not lifecycle.present(settings.state_dir)
    assert list(settings.state_dir.iterdir()) == []
    assert lifecycle.cleanup(settings.state_dir) == []


def test_rules_of_others_are_never_touched(settings: Settings, world: World) -> None:
    assert settings.iptables_variant != "auto"
    Iptables(4, settings.iptables_variant).restore("".join(FOREIGN.values()))
    before = rules(everything(settings.iptables_variant))
    world.put_all()
    proxier = lifecycle.open_proxier(settings)
    assert proxier.read().keys() <= world.rows().keys()
    bring(proxier, proxier.read(), world.rows())
    during = rules(everything(settings.iptables_variant))
    for name, one in before.items():
        assert [rule for rule in during[name] if rule in one] == one
    lifecycle.cleanup(settings.state_dir)
    assert rules(everything(settings.iptables_variant)) == before


def test_what_the_kubelet_keeps_stays(settings: Settings, world: World) -> None:
    assert settings.iptables_variant != "auto"
    firewall = str(LOCALNET_RULE)
    Iptables(4, settings.iptables_variant).restore(
        f"*filter\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-FIREWALL - [0:0]\n-A KUBE-FIREWALL {firewall}\n"
        "-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\nCOMMIT\n"
    )
    before = rules(everything(settings.iptables_variant))
    world.put_all()
    proxier = lifecycle.open_proxier(settings)
    bring(proxier, proxier.read(), world.rows())
    lifecycle.cleanup(settings.state_dir)
    assert rules(everything(settings.iptables_variant)) == before


@pytest.mark.parametrize("seed", range(3))
def test_any_changes_and_restarts(settings: Settings, world: World, seed: int) -> None:
    chance = random.Random(seed)
    proxier = lifecycle.open_proxier(settings)
    applied: dict[Key, Row] = proxier.read()
    for _ in range(8):
        for name in chance.sample(world.names, 6):
            world.put(name, chance.randrange(5))
        if chance.random() < 0.3:
            proxier = lifecycle.open_proxier(settings)
            applied = proxier.read()
        bring(proxier, applied, world.rows())
        applied = world.rows()
        assert proxier.read() == applied
    lifecycle.cleanup(settings.state_dir)
    assert rules(everything(settings.iptables_variant)) == {}


def test_a_restart_writes_nothing(settings: Settings, world: World) -> None:
    world.put_all()
    bring(lifecycle.open_proxier(settings), {}, world.rows())
    before = everything(settings.iptables_variant)
    again = lifecycle.open_proxier(settings)
    flows = [key for key in world.rows() if isinstance(key, FlowsKey)]
    assert bring(again, again.read(), world.rows()) == len(flows)
    assert everything(settings.iptables_variant) == before


def test_what_others_broke_is_repaired(settings: Settings, world: World) -> None:
    assert settings.iptables_variant != "auto"
    world.put_all()
    proxier = lifecycle.open_proxier(settings)
    bring(proxier, {}, world.rows())
    tools = Iptables(4, settings.iptables_variant)
    tools.restore("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n*filter\n-F FORWARD\nCOMMIT\n")
    assert bring(proxier, proxier.read(), world.rows()) > 0
    assert proxier.read() == world.rows()


def test_another_variant_takes_over(settings: Settings, world: World) -> None:
    world.put_all()
    bring(lifecycle.open_proxier(settings), {}, world.rows())
    other: IptablesVariant = "legacy" if settings.iptables_variant == "nft" else "nft"
    moved = lifecycle.open_proxier(replace(settings, iptables_variant=other))
    bring(moved, moved.read(), world.rows())
    assert moved.read() == world.rows()
    assert rules(everything(settings.iptables_variant)) == {}
    # Nobody asks for one: it stays with what it had.
    same = lifecycle.open_proxier(replace(settings, iptables_variant="auto"))
    assert same.read() == kernel_rows(world.rows())


def test_kube_proxys_rules_are_taken_over_by_the_default_proxier_alone(settings: Settings, world: World) -> None:
    assert settings.iptables_variant != "auto"
    Iptables(4, settings.iptables_variant).restore(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]\n"
        "-A KUBE-SERVICES -d 172.30.0.41 -p tcp --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O\n"
        "-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
    )
    before = everything(settings.iptables_variant)
    with pytest.raises(UnsupportedError, match=r"IPv4 nat KUBE-SERVICES belongs to another proxy of this node"):
        lifecycle.open_proxier(replace(settings, proxy_mode="ebpf"))
    assert everything(settings.iptables_variant) == before
    assert not lifecycle.present(settings.state_dir)
    assert lifecycle.cleanup(settings.state_dir) == []
    assert everything(settings.iptables_variant) == before
    proxier = lifecycle.open_proxier(settings)
    world.put_all()
    bring(proxier, proxier.read(), world.rows())
    assert proxier.read() == world.rows()


def test_check_says_what_is_used(settings: Settings) -> None:
    found = {one.name: one for one in lifecycle.check(settings, [])}
    assert found["iptables"].available
    assert found["iptables"].detail == f"{settings.iptables_variant}; installed: nft, legacy"
    assert found["capabilities"].available
    assert found["conntrack"].available
    assert not found["net.ipv4.ip_forward"].available
    assert rules(everything(settings.iptables_variant)) == {}
