"""A new version takes over from an old one under load: its programs, or also its maps, are not the same."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Service
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.node import packet_level
from bpfproxy.lab.place import PROJECT
from bpfproxy.lab.scene import Scene
from tests.lab.test_outside import BOTH, FAMILIES, UDP, WAYS

FIELDS = {
    "\t__u32 frontend;": "\t__u32 frontend;\n\t__u32 tidings;",
    "struct tcp_peer {": "struct tcp_peer {\n\t__u64 tidings;",
    "struct affinity {": "struct affinity {\n\t__u64 tidings;",
    "struct udp_session {": "struct udp_session {",
}
"""What is new in the layout of the next version: fields of flows, sockets and affinities have other places."""


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose flows, sockets and affinities have fields in other places."""
    root = tmp_path_factory.mktemp("next")
    for name in ("bpf", "bpfproxy"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "_built"))
    shutil.copy(PROJECT / "hatch_build.py", root)
    (root / "bpf" / "abi_check.c").unlink()  # it knows the sizes of today
    header = root / "bpf" / "abi.h"
    text = header.read_text()
    for before, after in FIELDS.items():
        assert before in text
        text = text.replace(before, after)
    header.write_text(text)
    subprocess.run([sys.executable, "hatch_build.py"], cwd=root, check=True)
    return root


@dataclass(frozen=True)
class Upgrade:
    """What differs from the version before."""

    options: tuple[str, ...] = ()
    next_version: bool = False


UPGRADES = {
    "programs": Upgrade(("--conntrack-udp", "31")),
    "tables": Upgrade(("--max-frontends", "2000", "--max-backends", "1000")),
    "flows": Upgrade(("--max-flows", "4000", "--max-tcp-peers", "4000")),
    "layout": Upgrade(next_version=True),
}


@pytest.fixture(params=["tc", "xdp"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Lab(xdp=["node1"] if request.param == "xdp" else ()) as lab:
        directory = lab.directory / "manifests"
        manifests.write(directory, "nodes", manifests.nodes())
        made = Scene(lab, directory, Service(BOTH, type="LoadBalancer"))
        made.put("pod1a", "pod2a")
        lab.agent("node1", manifests=directory, loader="prebuilt", options=packet_level(request.param)).start()
        made.settle("pod1a", "pod2a", client="client")
        yield made


@contextlib.contextmanager
def traffic(scene: Scene, short=True) -> Iterator[None]:
    """Held and short TCP connections and UDP flows in both families, from outside, a pod and the node; none may break, be refused or go unanswered."""
    flows = [
        (scene.flow(client="client", family=family, via=via, port=port), hold)
        for family in FAMILIES
        for via, port, hold in WAYS
    ]
    if short:
        loads_ = [("client", f, h) for f, h in flows]
    else:
        loads_ = [("client", f, True) for f, h in flows]
    for client in ("pod1c",):
        loads_ += [
            (client, scene.flow(client=client), True),
            (client, scene.flow(client=client, port=UDP, talk="udp-unconnected"), True),
            (client, scene.flow(client=client, port=UDP), True),
        ]
    with contextlib.ExitStack() as stack:
        loads = [
            (c, f, h, stack.enter_context(scene.lab.places[c].load(f, hold=h, interval=0.005))) for c, f, h in loads_
        ]
        yield
    bad = []
    for c, f, h, load in loads:
        report = load.stop()
        print(c, f.protocol, f.to, h, report)
        if report.errors:
            bad.append((c, f, h, report))
    assert not bad


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_nothing_is_lost(scene: Scene, next_version: Path, upgrade: str) -> None:
    old = scene.lab.agents["node1"]
    made = UPGRADES[upgrade]
    with traffic(scene):
        old.stop()
        if not old.running:
            pass
        scene.put("pod1a", "pod1b", "pod2a")
        new = scene.lab.agent(
            "node1",
            manifests=scene.directory,
            loader="prebuilt",
            options=(*packet_level("xdp" if scene.lab.topology.xdp else "tc"), *made.options),
            project=next_version if made.next_version else PROJECT,
        )
        new.start()
        print(new.said()[-3000:])
        scene.settle("pod1a", "pod1b", "pod2a", client="client")
    state = new.state
    print(list(state.iterdir()))
    bpf = state / "bpf"
    print(subprocess.run(["find", str(bpf), "-maxdepth", "1"], capture_output=True, text=True).stdout)
