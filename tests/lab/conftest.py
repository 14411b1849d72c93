"""For lab tests: root, a check that each test leaves nothing, where programs go, clusters that serve the cases."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfproxy.config import Settings
from bpfproxy.datapath import attach, bpffs, loader
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.datapath.loader import LoadSpec
from bpfproxy.lab import cases, manifests, netns, remains
from bpfproxy.lab.cases import Agents, Port, Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import NODES
from bpfproxy.lab.node import LoaderName, packet_level
from bpfproxy.lab.sandbox import Sandbox
from bpfproxy.lab.scene import Scene
from bpfproxy.lab.wait import wait_until
from bpfproxy.proxiers.ebpf import lifecycle, packet
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.datapath import devices
from tests.lab.datapath.devices import Net


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab/" in item.nodeid:
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(autouse=True)
def leaves_nothing(as_root: None) -> Iterator[None]:
    """What a test makes is gone after it, whether it passed or not. Labs of a wider scope are not its own, nor what
    happens in them."""
    before = remains.leftovers(os.getpid())
    shared = [path.name for path in remains.RUN.iterdir()] if remains.RUN.is_dir() else []

    def left() -> set[str]:
        found = remains.leftovers(os.getpid()) - before
        return {line for line in found if not any(re.search(rf"\b{lab_id}\b", line) for lab_id in shared)}

    yield
    wait_until(lambda: not left(), 5, "the test leaves nothing")


@pytest.fixture
def state(sandbox: Sandbox) -> Iterator[Path]:
    """A state directory whose bpffs is mounted; what its `links` and `others` pin is detached at the end."""
    directory = sandbox.directory / "state"
    top = bpffs.mount(directory)
    yield directory
    DeviceHooks(top, tcx=True).detach_all()
    for pins in ("links", "others"):
        attach.detach_all(top / pins)
    bpffs.unmount(directory)
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()


NewMaps = Callable[..., Maps]


@pytest.fixture
def new_maps() -> Iterator[NewMaps]:
    """Makes small maps by the programs' own definitions, pinned in a new directory of a bpffs."""
    with contextlib.ExitStack() as stack:

        def make(directory: Path, *programs: str, frontends: int = 64, flows: int = 4096, **sizes: int) -> Maps:
            directory.mkdir()
            settings = Settings(max_frontends=frontends, max_sets=64, max_backends=64, max_slots=4096)
            spec = LoadSpec(
                programs=programs or ("sock_lb", "tc_lb"),
                constants=lifecycle.constants(settings),
                sizes=lifecycle.sizes(settings) | packet.sizes(flows=flows, networks=8, backends=64) | sizes,
                pin_dir=directory,
            )
            return stack.enter_context(loader.load(spec, "prebuilt")).maps

        yield make


@pytest.fixture
def node() -> Iterator[Net]:
    """The namespace that the test's thread is in."""
    with Net() as made, netns.inside(made.name):
        yield made


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with device_test.bpf.c and its object."""
    directory = tmp_path_factory.mktemp("device")
    devices.compile_programs(directory)
    return directory


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab of the test's own, without agents."""
    with Lab() as made:
        yield made


BOTH = (Port(80, name="web"), Port(80, name="datagrams", protocol="UDP"))
UDP = 1
"""Place among these ports."""


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """A Service with two endpoints, written but not served yet."""
    directory = lab.directory / "manifests"
    manifests.write(directory, "nodes", manifests.nodes())
    made = Scene(lab, directory, Service(BOTH, type="NodePort"))
    made.put("pod1a", "pod2a")
    return made


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose agents serve all cases, under the loader that is the parameter."""
    yield from serve_cases(request.param, Agents())


@pytest.fixture(scope="module")
def served_otherwise(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose agents, set as the parameter says, serve all cases at packet level, too."""
    yield from serve_cases("prebuilt", request.param, MODES["compiled"])


@dataclass(frozen=True)
class Mode:
    """How the nodes of a lab serve clients that no hook sees."""

    acceleration: dict[str, str]
    """By node: `tc` or `xdp`."""
    host_routing: bool = False
    loader: LoaderName = "prebuilt"

    @property
    def xdp(self) -> list[str]:
        """The nodes that use XDP."""
        return [node for node, way in self.acceleration.items() if way == "xdp"]

    def options(self, node: str) -> tuple[str, ...]:
        """More flags of the agent of a node."""
        return packet_level(self.acceleration[node], host_routing=self.host_routing)


MODES = {
    "tc": Mode({"node1": "tc", "node2": "tc"}),
    "xdp": Mode({"node1": "xdp", "node2": "xdp"}),
    "tc-host-routing": Mode({"node1": "tc", "node2": "tc"}, host_routing=True),
    "xdp-host-routing": Mode({"node1": "xdp", "node2": "xdp"}, host_routing=True),
    "compiled": Mode({"node1": "tc", "node2": "xdp"}, loader="bcc"),
}


@pytest.fixture(scope="session")
def outside(as_root: None, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose agents serve all cases at packet level, too, in the mode that the parameter names. Tests share it:
    what they change they undo."""
    mode = MODES[request.param]
    yield from serve_cases(mode.loader, Agents(), mode)


def serve_cases(loader: LoaderName, agents: Agents, mode: Mode | None = None) -> Iterator[Lab]:
    with Lab(xdp=mode.xdp if mode else (), unhooked=mode is not None) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        for case in cases.load():
            manifests.write(directory, case.name, manifests.objects(case))
        for node in NODES:
            options = (*(mode.options(node) if mode else ()), *agents.options())
            how = {"loader": loader, "cluster_cidrs": agents.cluster_cidrs, "options": options}
            lab.agent(node, manifests=directory, **how).launch()
        for agent in lab.agents.values():
            agent.wait_ready()
        yield lab


Stage = Callable[..., Scene]


@pytest.fixture
def stage(outside: Lab) -> Iterator[Stage]:
    """Makes a LoadBalancer Service in the lab `outside` with endpoints in the places that are named."""
    with contextlib.ExitStack() as undo:

        def make(*places: str) -> Scene:
            scene = Scene(outside, outside.directory / "manifests", Service(BOTH, type="LoadBalancer"))
            undo.callback(scene.remove)
            scene.put(*places)
            for client in ("client", "client2"):
                scene.settle(*places, client=client)
            return scene

        yield make
