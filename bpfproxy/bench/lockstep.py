"""Packets through a node: generator, node and sink on one CPU, so that a figure is the whole cost of a packet.

Each way of forwarding is a node of its own, with its own network namespace; they take turns.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pyroute2 import Ethtool, NFCTSocket

from bpfproxy import api
from bpfproxy.bench import wire
from bpfproxy.bench.figures import Aim, Figure, figure
from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.objects import address
from bpfproxy.bench.rules import iptables, nftables
from bpfproxy.bench.traffic import ENDLESS, LAYERS, Layer, Packets, Traffic, Way, packets
from bpfproxy.errors import UnsupportedError
from bpfproxy.model.address import format_address
from bpfproxy.model.event import Update

NAME = "lockstep"
ONE, MANY = Aim("≤", 1.35), Aim("≤", 2.2)
NEW = Aim("≤", 1_000)
"""Nanoseconds, with two entries. With one, the backend is on the node, and the stack has its part: see `packet`."""
SHARE = 0.99
"""Rounds in which fewer packets arrive say nothing."""

_TRIES = 3
_WARM = 10_000
_SNAT_PORTS = "1024-63000"
_REMOTE_ENDPOINTS = 100
"""So many that source ports are hardly ever taken."""
_RULE_ENDPOINTS = 3
"""Of the Service of iptables and nftables, as kube-proxy's tables are measured elsewhere."""


class LostError(BenchError):
    """Packets did not arrive."""


@dataclass(frozen=True)
class Load:
    """How much is measured."""

    rounds: int
    known: int
    """Packets of a block, of known flows."""
    new: int
    """Likewise, of new flows."""


FULL = Load(9, 60_000, 20_000)
QUICK = Load(2, 10_000, 5_000)


@dataclass(frozen=True)
class Arm:
    """Packets on one way."""

    title: str
    way: Way
    traffic: Traffic
    forget: Callable[[Packets], None] = lambda _: None
    """Makes the node forget all flows."""
    aim: Aim | None = None
    """For the ratio to raw forwarding."""
    aim_ns: Aim | None = None

    @property
    def new(self) -> bool:
        """Whether each packet is of another flow."""
        return self.traffic.flows == ENDLESS


class Runner:
    """Sends the packets of arms."""

    def __init__(self, generator: Packets, load: Load) -> None:
        self._packets = generator
        self._load = load
        self._flow = 0

    def verify(self, arm: Arm) -> None:
        """All packets arrive, with right checksums. Raises LostError."""
        arm.forget(self._packets)
        shares: list[float] = []
        while len(shares) < _TRIES and 1 not in shares:  # another process may get in between
            self._make(arm, 1_000)
            shares.append(self._packets.send(arm.way, 1_000, verify=True).share)
        if 1 not in shares:
            raise LostError(f"{arm.title}: {max(shares):.1%} of the packets arrived as they should")

    def run(self, arm: Arm) -> float | None:
        """Nanoseconds of a packet, None if too many were lost."""
        arm.forget(self._packets)
        if not arm.new:
            self._make(arm, arm.traffic.flows)
            self._packets.send(arm.way, arm.traffic.flows)
        count = self._load.new if arm.new else self._load.known
        self._make(arm, count)
        sent = self._packets.send(arm.way, count)
        return sent.nanoseconds if sent.share >= SHARE else None

    def _make(self, arm: Arm, count: int) -> None:
        traffic = arm.traffic
        if arm.new:
            traffic = replace(traffic, first=self._flow)
            self._flow += count
        self._packets.make(traffic)


def measure(ground: Ground, *, quick: bool) -> Iterator[Figure]:
    """Nanoseconds of a packet, and ratios to raw forwarding."""
    load = QUICK if quick else FULL
    far = wire.make_far(ground)
    with packets(ground, far) as generator, ExitStack() as stack:
        nodes = Nodes(ground, far, generator, stack)
        arms = [*nodes.limits(), *nodes.ours("xdp"), *nodes.ours("tc"), *nodes.kernel(), *nodes.rules()]
        runner = Runner(generator, load)
        for arm in arms:
            runner.verify(arm)
        samples: dict[str, list[float]] = defaultdict(list)
        ratios: dict[str, list[float]] = defaultdict(list)
        for _ in range(load.rounds):
            found = {arm.title: runner.run(arm) for arm in random.sample(arms, len(arms))}
            limit = found[RAW]
            for title, value in found.items():
                if value is not None:
                    samples[title].append(value)
                    if limit is not None:
                        ratios[title].append(value / limit)
    for arm in arms:
        if not samples[arm.title]:
            raise LostError(f"{arm.title}: packets were lost in all of {load.rounds} rounds")
        yield figure(NAME, arm.title, "ns/op", samples[arm.title], arm.aim_ns)
        if arm.title not in (DROP, RAW) and ratios[arm.title]:
            yield figure(NAME, f"{arm.title} / raw", "ratio", ratios[arm.title], arm.aim)


DROP, RAW = "generator and drop", "raw XDP forward (the limit)"


class Nodes:
    """Makes a node for each way, and tells the arms that it is measured by."""

    def __init__(self, ground: Ground, far: str, generator: Packets, stack: ExitStack) -> None:
        self._ground, self._far, self._packets, self._stack = ground, far, generator, stack
        self._pod = Traffic(4, wire.REMOTE[4], port=wire.TARGET_PORT)

    def limits(self) -> Iterator[Arm]:
        """What costs something without any node, and with the least that a node can do."""
        none, raw = self._make("none"), self._make("raw")
        self._packets.attach("sink", none.netns, none.index("up0"))
        self._packets.attach("forward", raw.netns, raw.index("up0"))
        yield Arm(DROP, self._way(none), self._pod)
        yield Arm(RAW, replace(self._way(raw), forward_to=raw.index("up1")), self._pod)

    def ours(self, layer: Layer) -> Iterator[Arm]:
        """bpfproxy at one layer."""
        node = self._make(layer)
        if layer == "tc":
            _receive_by_napi(node)
        cgroup = self._ground.hooked / node.name
        cgroup.mkdir()
        settings = self._ground.settings(
            cgroup=cgroup, acceleration=layer, device=("up0", "up1"), pod_device=("pod0",), snat_ports=_SNAT_PORTS
        )
        self._stack.callback(_cleanup, node, settings.state_dir)
        with node.inside():
            engine = self._stack.enter_context(api.open_engine(settings))
            objects = *wire.service(0), *wire.service(1, remote=True, endpoints=_REMOTE_ENDPOINTS)
            engine.update(Update(objects=objects, complete=True))
            engine.sync()
        [maps] = (settings.state_dir / "bpf").glob("maps-*")

        forget, way = partial(_clear, [maps / "flows4", maps / "tuples4"]), self._way(node)
        local, remote = Traffic(4, wire.VIP[4]), Traffic(4, wire.VIP[4] + 1)
        aimed = layer == "xdp"
        name = f"bpfproxy, {LAYERS[layer]}, remote backend"
        yield Arm(f"{name}: 1 flow", way, remote, aim=ONE if aimed else None)
        yield Arm(f"{name}: 10,000 flows", way, replace(remote, flows=_WARM), aim=MANY if aimed else None)
        new = NEW if aimed else None
        yield Arm(f"{name}: new flows", way, replace(remote, flows=ENDLESS), forget, aim_ns=new)
        name = f"bpfproxy, {LAYERS[layer]}, backend on the node"  # these go up the stack
        yield Arm(f"{name}: 1 flow", way, local)
        yield Arm(f"{name}: 10,000 flows", way, replace(local, flows=_WARM))
        yield Arm(f"{name}: new flows", way, replace(local, flows=ENDLESS), forget)

    def kernel(self) -> Iterator[Arm]:
        """The kernel's forwarding, without any rule."""
        node = self._make("kernel")
        _receive_by_napi(node)
        yield Arm("kernel IP forwarding: 1 flow", self._way(node), self._pod)
        yield Arm("kernel IP forwarding: 10,000 flows", self._way(node), replace(self._pod, flows=_WARM))

    def rules(self) -> Iterator[Arm]:
        """One Service by rules."""
        vip = format_address(address(4, wire.VIP[4]))
        pods = [format_address(address(4, wire.REMOTE[4], index)) for index in range(_RULE_ENDPOINTS)]
        for name, command, rules in (
            ("iptables", ["iptables-legacy-restore"], iptables(vip, wire.PORT, pods, wire.TARGET_PORT)),
            ("nftables", ["nft", "-f", "-"], nftables(vip, wire.PORT, pods, wire.TARGET_PORT)),
        ):
            node = self._make(name[:3])
            _receive_by_napi(node)
            _write_rules(node, command, rules)
            forget, way, traffic = partial(_flush, node), self._way(node), Traffic(4, wire.VIP[4])
            yield Arm(f"{name}, 1 Service: 1 flow", way, traffic)
            yield Arm(f"{name}, 1 Service: 10,000 flows", way, replace(traffic, flows=_WARM))
            yield Arm(f"{name}, 1 Service: new flows", way, replace(traffic, flows=ENDLESS), forget)

    def _make(self, name: str) -> wire.WireNode:
        """A node with sinks beyond it."""
        node = wire.make_node(self._ground, name, self._far)
        for end in ("far", "pod"):
            self._packets.attach("sink", node.far, node.far_index(end))
        return node

    def _way(self, node: wire.WireNode) -> Way:
        return Way(node.far_index("gen"))


def _clear(maps: list[Path], generator: Packets) -> None:
    for map_ in maps:
        generator.clear(map_)


def _cleanup(node: wire.WireNode, state: Path) -> None:
    with node.inside():
        api.cleanup(state)


def _flush(node: wire.WireNode, generator: Packets) -> None:
    """Make the kernel's connection tracking forget all."""
    with node.inside(), closing(NFCTSocket()) as conntrack:
        conntrack.flush()


def _receive_by_napi(node: wire.WireNode) -> None:
    """A veth without a program takes what XDP sends only if it has NAPI, which GRO turns on."""
    with node.inside(), closing(Ethtool()) as tool:
        features = tool.get_features("up0")
        features.features["rx-gro"].enable = True
        tool.set_features("up0", features)


def _write_rules(node: wire.WireNode, command: list[str], rules: str) -> None:
    if shutil.which(command[0]) is None:
        raise UnsupportedError(f"{command[0]} was not found: install the packages iptables and nftables")
    with node.inside():
        subprocess.run(command, input=rules, text=True, check=True)
