"""The agent comes, goes and is killed; what it set up goes on without it, until it is cleaned up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from bpfproxy.lab import bpf, cgroup, remains
from bpfproxy.lab.cases import Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.node import Agent, LoaderName
from bpfproxy.lab.place import LoadReport
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from tests.lab.conftest import BOTH, UDP

REFUSED = 5
"""Exit status of a command that another agent's lock keeps out."""


@pytest.fixture(params=["bcc", "prebuilt"])
def loader(request: pytest.FixtureRequest) -> LoaderName:
    name: LoaderName = request.param
    return name


@pytest.fixture
def agent(lab: Lab, scene: Scene, loader: LoaderName) -> Agent:
    """The agent of node1, serving."""
    made = lab.agent("node1", manifests=scene.directory, loader=loader)
    made.start()
    scene.settle("pod1a", "pod2a")
    return made


@contextlib.contextmanager
def traffic(scene: Scene) -> Iterator[None]:
    """Held and short connections, from a pod and the node, in both families; none may break or be refused."""
    families: tuple[Family, ...] = (4, 6)
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(scene.lab.places[client].load(flow, hold=hold, interval=0.01))
            for client in ("pod1c", "node1")
            for family in families
            for flow, hold in (
                (scene.flow(client=client, family=family), True),
                (scene.flow(client=client, family=family), False),
                (scene.flow(client=client, family=family, port=UDP, talk="udp-unconnected"), True),
            )
        ]
        yield
    for load in loads:
        _unharmed(load.stop())


def _unharmed(report: LoadReport) -> None:
    assert report.errors == {}
    assert report.answered == report.sent > 1


def links(lab: Lab) -> dict[int, str]:
    """bpf_links on node1, by id."""
    inode = cgroup.inode(lab.topology.node_cgroup("node1"))
    return {link.id: link.program for link in bpf.cgroup_links() if link.cgroup_id == inode}


def test_traffic_goes_on_without_the_agent(lab: Lab, scene: Scene, agent: Agent) -> None:
    with traffic(scene):
        before = links(lab)
        assert before
        assert agent.stop() == 0
        assert links(lab) == before
        scene.settle("pod1a", "pod2a")


@pytest.mark.parametrize("end", [Agent.stop, Agent.kill], ids=["stopped", "killed"])
def test_a_restart_breaks_nothing_and_applies_what_changed_meanwhile(
    lab: Lab, scene: Scene, agent: Agent, end: Callable[[Agent], object]
) -> None:
    other = Scene(lab, scene.directory, Service(BOTH))
    other.put("pod1b")
    other.settle("pod1b")
    with traffic(scene):
        end(agent)
        other.remove()
        new = Scene(lab, scene.directory, Service(BOTH))
        new.put("pod2b")
        scene.put("pod1a", "pod1b", "pod2a")
        agent.start()
        new.settle("pod2b")
        scene.settle("pod1a", "pod1b", "pod2a")
    [outcome] = other.ask(timeout=0.3)
    assert outcome.reply is None, "a Service that went while the agent was away"


def test_killed_again_and_again_under_load(lab: Lab, scene: Scene, agent: Agent) -> None:
    """At every stage of its start."""
    with traffic(scene):
        for stage in ("event=loaded", "event=attached", "event=sync"):
            agent.kill()
            offset = len(agent.said())
            agent.launch()
            wait_until(lambda offset=offset, stage=stage: stage in agent.said(offset), 20, stage)  # type: ignore[misc]
        agent.kill()
        scene.settle("pod1a", "pod2a")
        agent.start()
        scene.put("pod1b", "pod2a")
        scene.settle("pod1b", "pod2a")


def test_the_other_loader_takes_over(lab: Lab, scene: Scene, agent: Agent) -> None:
    with traffic(scene):
        agent.stop()
        other: LoaderName = "prebuilt" if agent.loader == "bcc" else "bcc"
        lab.agent("node1", manifests=scene.directory, loader=other).start()
        scene.put("pod1b", "pod2a")
        scene.settle("pod1b", "pod2a")


def test_maps_of_another_size_take_over(lab: Lab, scene: Scene, agent: Agent) -> None:
    """As an upgrade does whose maps have another form: new maps are filled before the programs change over."""
    with traffic(scene):
        agent.stop()
        options = ("--max-backends", "1000", "--max-frontends", "2000")
        lab.agent("node1", manifests=scene.directory, loader=agent.loader, options=options).start()
        scene.put("pod1b", "pod2a")
        scene.settle("pod1b", "pod2a")


def test_a_second_agent_is_refused(scene: Scene, agent: Agent) -> None:
    second = agent.command(*agent.run_arguments())
    assert second.returncode == REFUSED
    assert str(agent.state) in second.stderr
    assert agent.running
    scene.settle("pod1a", "pod2a")


def test_cleanup_leaves_nothing(lab: Lab, scene: Scene, agent: Agent) -> None:
    assert agent.cleanup().returncode == REFUSED, "the agent is running"
    scene.settle("pod1a", "pod2a")
    agent.stop()
    first = agent.cleanup()
    assert first.returncode == 0, first.stderr
    assert first.stdout
    assert links(lab) == {}
    assert not agent.state.exists()
    traces = {
        line
        for line in remains.leftovers(os.getpid())
        if str(lab.directory) in line and line.startswith(("bpffs", "pin"))
    }
    assert traces == set()
    [outcome] = scene.ask(timeout=0.3)
    assert outcome.reply is None
    second = agent.cleanup()
    assert second.returncode == 0
    assert second.stdout != first.stdout
    agent.start()
    scene.settle("pod1a", "pod2a")


def test_two_nodes_side_by_side(lab: Lab, scene: Scene, agent: Agent) -> None:
    """Each serves its own processes alone, until it is told otherwise."""
    assert set(scene.shares(client="pod2c", sockets=1)) <= {"ENETUNREACH", "TIMEOUT"}
    second = lab.agent("node2", manifests=scene.directory, loader=agent.loader)
    second.start()
    scene.settle("pod1a", "pod2a", client="pod2c")
    second.stop()
    assert second.cleanup().returncode == 0
    assert set(scene.shares(client="pod2c", sockets=1)) <= {"ENETUNREACH", "TIMEOUT"}
    scene.settle("pod1a", "pod2a", client="pod1c")


def test_a_broken_manifest_changes_nothing(scene: Scene, agent: Agent) -> None:
    path = scene.directory / f"{scene.case.name}.yaml"
    good = path.read_text()
    with traffic(scene):
        path.write_text(good.replace("- 10.", "- 999."))
        wait_until(lambda: path.name in agent.said(), 10, "the agent names the file")
        scene.settle("pod1a", "pod2a")
        scene.put("pod2a", "pod1b")
        scene.settle("pod2a", "pod1b")
