"""The packet level comes when there is a device for it; where a kernel cannot have it, or not all of it, the rest
serves."""

from __future__ import annotations

from pathlib import Path

from pyroute2 import IPRoute

from bpfproxy.lab import manifests, netns
from bpfproxy.lab.cases import Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.node import Agent, packet_level
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.topology import UPLINK
from bpfproxy.lab.wait import wait_until
from tests.lab import checkouts
from tests.lab.conftest import BOTH
from tests.lab.test_outside import traffic

OUTSIDE = "client"
NOBODY = "203.0.113.0/24"
AUTO = ("--acceleration", "auto")
LOADED, ATTACHED = "level=packets", "event=device_attached"


def scene_of(lab: Lab, **service: tuple[str, ...]) -> Scene:
    directory = lab.directory / "manifests"
    manifests.write(directory, "nodes", manifests.nodes())
    scene = Scene(lab, directory, Service(BOTH, type="LoadBalancer", **service))  # type: ignore[arg-type]
    scene.put("pod1a", "pod2a")
    return scene


def add_default_route(lab: Lab) -> None:
    with netns.inside(lab.topology.netns("node1")), IPRoute() as ip:
        ip.route("add", dst="0.0.0.0/0", oif=ip.link_lookup(ifname=UPLINK)[0], scope="link")


def test_it_waits_for_the_first_device(lab: Lab) -> None:
    scene, restricted = scene_of(lab), scene_of(lab, source_ranges=(NOBODY,))
    agent = lab.agent("node1", manifests=scene.directory, loader="prebuilt", options=AUTO)
    agent.start()
    scene.settle("pod1a", "pod2a")
    assert LOADED not in agent.said()
    assert "flows4" not in agent.look("stats")["map_sizes"]
    add_default_route(lab)
    wait_until(lambda: ATTACHED in agent.said(), 60, "the uplink is served")
    assert LOADED in agent.said()
    scene.settle("pod1a", "pod2a", client=OUTSIDE)
    # What was written before there was a packet level is in force there.
    [outcome] = restricted.ask(client=OUTSIDE, via="LoadBalancer", timeout=0.3)
    assert outcome.reply is None
    assert agent.look("stats")["drops"]["source_range"] > 0
    agent.stop()
    agent.start()
    scene.put("pod1b")
    scene.settle("pod1b", client=OUTSIDE)


def test_without_it_the_sockets_are_served(lab: Lab, tmp_path: Path) -> None:
    """A kernel that refuses its programs: here they are cut short."""
    broken = checkouts.copy(tmp_path, {})
    program = broken / "bpfproxy" / "_built" / "tc4_lb.bpf.o"
    program.write_bytes(program.read_bytes()[:-4096])
    scene = scene_of(lab)
    options = packet_level("tc")
    agent = lab.agent("node1", manifests=scene.directory, loader="prebuilt", options=options, project=broken)
    agent.start()
    scene.settle("pod1a", "pod2a")
    scene.put("pod1b")
    scene.settle("pod1b")
    assert agent.running
    said = agent.said()
    assert said.count("event=packet_level_refused") == said.count("event=refused") == 1
    assert "event=sync_failed" not in said
    # Its repair is the next agent's.
    agent.stop()
    lab.agent("node1", manifests=scene.directory, loader="prebuilt", options=options).start()
    scene.settle("pod1b", client=OUTSIDE)


OLDER = {
    "bpfproxy/datapath/features.py": {
        "def has_tcx() -> bool:\n": "def has_tcx() -> bool:\n    return False\n\n\ndef _has_tcx() -> bool:\n",
        "kind, attach_type = ": 'if helper == "bpf_set_retval":\n        return False\n    kind, attach_type = ',
    }
}
"""A kernel without tcx and bpf_set_retval, as far as the agent knows."""


def test_on_an_older_kernel(lab: Lab, tmp_path: Path) -> None:
    """tc by clsact, refusals by EPERM; a restart under load loses nothing, and nothing is left behind."""
    older = checkouts.copy(tmp_path, OLDER)
    scene = scene_of(lab)

    def agent() -> Agent:
        options = packet_level("tc")
        return lab.agent("node1", manifests=scene.directory, loader="prebuilt", options=options, project=older)

    agent().start()
    scene.settle("pod1a", "pod2a", client=OUTSIDE)
    assert len(filters(lab)) == 2
    with traffic(scene, [OUTSIDE]):
        lab.agents["node1"].kill()
        agent().start()
        scene.put("pod1a", "pod1b", "pod2a")
        scene.settle("pod1a", "pod1b", "pod2a", client=OUTSIDE)
    scene.put()
    wait_until(lambda: scene.ask()[0].error == "EPERM", 10, "a connect is refused")
    last = lab.agents["node1"]
    last.stop()
    assert last.cleanup().returncode == 0
    assert filters(lab) == []


def filters(lab: Lab) -> list[str]:
    """Names of the tc filters on the uplink of node1."""
    with netns.inside(lab.topology.netns("node1")), IPRoute() as ip:
        index = ip.link_lookup(ifname=UPLINK)[0]
        found = [f for parent in (0xFFFFFFF2, 0xFFFFFFF3) for f in ip.get_filters(index=index, parent=parent)]
        return [
            options.get_attr("TCA_BPF_NAME")
            for message in found
            if message["handle"] and (options := message.get_attr("TCA_OPTIONS")) is not None
        ]
