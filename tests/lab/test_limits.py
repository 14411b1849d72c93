"""What an agent is not given: some of the node's addresses, room in its tables, capabilities."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bpfproxy.lab import manifests, netns, remains
from bpfproxy.lab.cases import Port, Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import NODES, SPOTS
from bpfproxy.lab.node import Agent, LoaderName
from bpfproxy.lab.place import Flow, spawn
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until

NO_PERMISSION = 4
"""Exit status of a command that lacks capabilities."""
GATEWAYS = (NODES["node1"].gateway4, NODES["node1"].gateway6)
NODE = (SPOTS["node1"].v4, SPOTS["node1"].v6)


@pytest.fixture(params=["bcc", "prebuilt"])
def loader(request: pytest.FixtureRequest) -> LoaderName:
    name: LoaderName = request.param
    return name


@pytest.fixture
def prepared(lab: Lab) -> Lab:
    manifests.write(lab.directory / "manifests", "nodes", manifests.nodes())
    return lab


def start(lab: Lab, loader: LoaderName, *options: str) -> Agent:
    agent = lab.agent("node1", manifests=lab.directory / "manifests", loader=loader, options=options)
    agent.start()
    return agent


def scene(lab: Lab, **service: object) -> Scene:
    return Scene(lab, lab.directory / "manifests", Service((Port(80),), **service))  # type: ignore[arg-type]


class TestNodePortAddresses:
    """Rule 14: which of a node's addresses answer."""

    @pytest.fixture
    def served(self, prepared: Lab, request: pytest.FixtureRequest) -> Scene:
        start(prepared, "prebuilt", *request.param)
        made = scene(prepared, type="NodePort")
        made.put("pod1a")
        made.settle("pod1a")
        return made

    def answers(self, served: Scene, address: str, client: str) -> bool:
        flow = Flow("tcp", (address, served.case.node_port(served.service.ports[0])), timeout=0.3)
        [outcome] = served.lab.places[client].request(flow)
        return outcome.reply is not None and outcome.reply.place == "pod1a"

    @pytest.mark.parametrize("served", [()], indirect=True, ids=["all"])
    def test_all_by_default(self, served: Scene) -> None:
        for address in (*NODE, *GATEWAYS):
            assert self.answers(served, address, "node1"), address
            assert self.answers(served, address, "pod1c"), address
        for address in ("127.0.0.1", "127.1.2.3", "::1"):
            assert self.answers(served, address, "node1"), address
            assert not self.answers(served, address, "pod1c"), "a pod's loopback is its own"
        assert not self.answers(served, SPOTS["node2"].v4, "node1"), "another node's address"

    @pytest.mark.parametrize("served", [()], indirect=True, ids=["all"])
    def test_addresses_come_and_go(self, served: Scene) -> None:
        fresh, namespace = "172.18.0.99", served.lab.topology.netns("node1")
        assert not self.answers(served, fresh, "pod1c")
        for verb, there in (("add", True), ("del", False)):
            with netns.inside(namespace):
                subprocess.run(["ip", "address", verb, f"{fresh}/32", "dev", "eth0"], check=True)
            wait_until(lambda there=there: self.answers(served, fresh, "pod1c") is there, 10, verb)  # type: ignore[misc]

    @pytest.mark.parametrize("served", [("--nodeport-addresses", "primary")], indirect=True, ids=["primary"])
    def test_primary_alone(self, served: Scene) -> None:
        assert all(self.answers(served, address, "pod1c") for address in NODE)
        assert not any(self.answers(served, address, "pod1c") for address in GATEWAYS)

    @pytest.mark.parametrize(
        "served", [("--nodeport-addresses", "10.244.0.0/16,fd00:10:244::/48")], indirect=True, ids=["ranges"]
    )
    def test_ranges(self, served: Scene) -> None:
        assert all(self.answers(served, address, "pod1c") for address in GATEWAYS)
        assert not any(self.answers(served, address, "pod1c") for address in NODE)


def test_a_full_table_is_told_and_harms_nobody(prepared: Lab, loader: LoaderName) -> None:
    agent = start(prepared, loader, "--max-backends", "5", "--grace-period", "0.1")
    first, second = scene(prepared), scene(prepared)
    first.put("pod1a", "pod1b")  # in both families: four backends
    first.settle("pod1a", "pod1b")
    offset = len(agent.said())
    second.put("pod2a", "pod2b")
    wait_until(lambda: "event=refused" in agent.said(offset), 10, "the agent says so")
    assert "--max-backends" in agent.said(offset)
    first.settle("pod1a", "pod1b")
    assert not {"pod1a", "pod1b"} & set(second.shares(4, 0.2)), "never another Service's backends"
    first.remove()
    second.settle("pod2a", "pod2b", timeout=30)
    wait_until(lambda: "event=recovered" in agent.said(offset), 10, "the agent says so, too")


@pytest.mark.parametrize("missing", ["bpf", "net_admin"])
def test_missing_capabilities_are_named(prepared: Lab, loader: LoaderName, missing: str) -> None:
    agent = prepared.agent("node1", manifests=prepared.directory / "manifests", loader=loader)
    without = [
        "setpriv",
        f"--bounding-set=-{missing},-sys_admin",
        sys.executable,
        "-m",
        "bpfproxy",
        *agent.run_arguments(),
    ]
    process = spawn(
        without,
        namespace=prepared.topology.netns("node1"),
        cgroup=prepared.topology.spot_cgroup("node1"),
        lab_id=prepared.lab_id,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, errors = process.communicate(timeout=30)
    assert process.returncode == NO_PERMISSION, errors
    assert f"CAP_{missing.upper()}" in errors
    assert len(errors.splitlines()) == 1


HOLD = """
import sys
from bpfproxy.lab import manifests
from bpfproxy.lab.lab import Lab
with Lab() as lab:
    manifests.write(lab.directory / "manifests", "nodes", manifests.nodes())
    lab.agent("node1", manifests=lab.directory / "manifests", loader=sys.argv[1]).start()
    print("up", flush=True)
    if sys.argv[2] == "fail":
        raise RuntimeError("as told")
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["fail", "SIGTERM", "SIGKILL"])
def test_a_lab_with_a_running_agent_leaves_nothing(loader: LoaderName, end: str) -> None:
    command = [sys.executable, "-c", HOLD, loader, end]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        if end != "fail":
            assert {line.split()[0] for line in remains.leftovers(process.pid)} >= {"bpffs", "pin", "link", "process"}
            os.kill(process.pid, signal.Signals[end])
        process.communicate(timeout=20)
    assert process.returncode != 0
    if end == "SIGKILL":
        assert any(line.startswith("link") for line in remains.leftovers(process.pid)), "the datapath outlives them"
        remains.sweep()
    assert remains.leftovers(process.pid) == set()
