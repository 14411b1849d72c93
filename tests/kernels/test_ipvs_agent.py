"""The agent by its command line on a kernel that has IPVS: several modes on one node, a node that changes its mode
under traffic, and nothing left of any of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from itertools import product
from typing import Final

import pytest
from pyroute2 import IPRoute

from bpfproxy.lab import manifests, netns, remains
from bpfproxy.lab.cases import Port, Service, Via
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import Agent
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import PATIENCE, wait_until
from bpfproxy.model.address import format_address
from bpfproxy.netfilter.ipset import IpSets
from bpfproxy.proxiers.ipvs.servers import Servers

BOTH: Final = (Port(80, name="web"), Port(80, name="datagrams", protocol="UDP"))
FAMILIES: Final[tuple[Family, ...]] = (4, 6)
WAYS: Final[tuple[tuple[str, Via], ...]] = (("pod1c", "ClusterIP"), ("node1", "ClusterIP"), ("client", "NodePort"))
INTERVAL: Final = 0.1 * PATIENCE
"""Seconds between two requests of a load, so that an emulated processor has time for the rest."""
PACKETS: Final = ("--acceleration", "none", "--sync-period", "1")


@pytest.fixture
def lab() -> Iterator[Lab]:
    before = remains.leftovers(os.getpid())
    with Lab() as made:
        manifests.write(made.directory / "manifests", "nodes", manifests.nodes())
        yield made
    assert remains.leftovers(os.getpid()) <= before


def add_service(lab: Lab, mode: str = "") -> Scene:
    """A Service with two endpoints, to be served by `mode`."""
    scene = Scene(lab, lab.directory / "manifests", Service(BOTH, type="NodePort"))
    scene.put("pod1a", "pod2a")
    if mode:
        service, *slices = manifests.objects(scene.case)
        service["metadata"]["annotations"] = {"bpfproxy.io/proxy-mode": mode}
        manifests.write(scene.directory, scene.case.name, [service, *slices])
    return scene


def run(lab: Lab, mode: str) -> Agent:
    """The agent of node1, ready, in a mode."""
    options = ("--proxy-mode", mode, *PACKETS)
    agent = lab.agent("node1", manifests=lab.directory / "manifests", loader="prebuilt", options=options)
    agent.start()
    return agent


def must_serve(scene: Scene, ways: tuple[tuple[str, Via], ...] = WAYS) -> None:
    """Its endpoints answer whoever asks, in every way, and each of them does at some time."""
    seen: set[str] = set()
    for (client, via), family, port in product(ways, FAMILIES, range(len(BOTH))):
        shares = scene.shares(4, 2.0, client=client, via=via, family=family, port=port)
        assert shares.keys() <= {"pod1a", "pod2a"}, (client, via, family, port)
        seen |= shares.keys()
    assert seen == {"pod1a", "pod2a"}


def virtual_servers(lab: Lab, *, at_work: bool = True) -> set[str]:
    """The addresses of those on node1, all or (`at_work`) those that take new connections."""
    found = set()
    with netns.inside(lab.topology.netns("node1")), contextlib.closing(Servers()) as servers:
        for key, _ in servers.all():
            if not at_work or any(real.weight for real in servers.reals(key)):
                found.add(format_address(key.address))
    return found


def vips(scene: Scene) -> set[str]:
    return {scene.case.vip("ClusterIP", family) for family in FAMILIES}


def traces(lab: Lab) -> list[str]:
    """What proxiers have left on node1."""
    with netns.inside(lab.topology.netns("node1")):
        with IPRoute() as netlink:
            found = [f"device {index}" for index in netlink.link_lookup(ifname="kube-ipvs0")]
        ipsets = IpSets()
        found += [f"set {name}" for name in ipsets.all()]
        ipsets.close()
        for command in (["iptables-save"], ["ip6tables-save"], ["nft", "list", "ruleset"]):
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found += [line for line in text.splitlines() if "kube" in line.lower()]
    return found + [f"virtual server {address}" for address in virtual_servers(lab, at_work=False)]


def test_services_choose_their_mode(lab: Lab) -> None:
    """On a node whose own mode is ebpf."""
    on_ebpf, on_ipvs, on_iptables, on_nftables = (
        add_service(lab, mode) for mode in ("", "ipvs", "iptables", "nftables")
    )
    agent = run(lab, "ebpf")
    must_serve(on_ebpf, WAYS[:2])  # there is no packet level, for clients outside
    for scene in (on_ipvs, on_iptables, on_nftables):
        must_serve(scene)
    assert vips(on_ipvs) <= virtual_servers(lab)
    assert not virtual_servers(lab) & (vips(on_ebpf) | vips(on_iptables) | vips(on_nftables))
    on_ipvs.put("pod1a", "pod2a")  # without the annotation
    wait_until(lambda: not virtual_servers(lab), 20, "its virtual servers take nothing more")
    must_serve(on_ipvs, WAYS[:2])
    must_serve(on_iptables)
    agent.stop()
    done = agent.cleanup()
    assert done.returncode == 0, done.stderr
    assert traces(lab) == []
    assert not agent.state.exists()


def test_a_node_changes_its_mode(lab: Lab) -> None:
    """To ipvs and back: new connections are served at any time, and those that sockets translated go on."""
    scene = add_service(lab)
    run(lab, "ebpf")
    must_serve(scene, WAYS[:2])
    place = lab.places["pod1c"]
    with contextlib.ExitStack() as stack:
        flows = [scene.flow(family=family) for family in FAMILIES]
        held = [stack.enter_context(place.load(flow, hold=True, interval=INTERVAL)) for flow in flows]
        new = [stack.enter_context(place.load(flow, hold=False, interval=INTERVAL)) for flow in flows]
        lab.agents["node1"].stop()
        agent = run(lab, "ipvs")
        wait_until(lambda: vips(scene) <= virtual_servers(lab), 20, "IPVS serves")
        wait_until(lambda: "event=cleaned_up" in agent.said(), 20, "nothing of the former mode is left")
        must_serve(scene)
        reports = [load.stop() for load in new]
        agent.stop()
        agent = run(lab, "ebpf")
        wait_until(lambda: not virtual_servers(lab), 20, "IPVS takes nothing more")
        must_serve(scene, WAYS[:2])
        reports += [load.stop() for load in held]
    for report in reports:
        assert report.errors == {}
        assert report.answered == report.sent > 1
    agent.stop()
    done = agent.cleanup()
    assert done.returncode == 0, done.stderr
    assert traces(lab) == []
    assert not agent.state.exists()
