"""A node with two pods and a client outside, in network namespaces, and sockets in any of them. One process does it
all, since on an emulated processor starting another one takes seconds."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import subprocess
import threading
from types import TracebackType
from typing import Final

from bpfproxy.api import plan_objects
from bpfproxy.config import Settings
from bpfproxy.diff import diff
from bpfproxy.lab import netns
from bpfproxy.lab.sandbox import Sandbox
from bpfproxy.model.address import Address, Family, parse_address
from bpfproxy.model.event import Object
from bpfproxy.model.service import Node, Protocol
from bpfproxy.proxiers.base import Failure, Key, Row
from bpfproxy.proxiers.ipvs import lifecycle

NODE: Final[dict[Family, str]] = {4: "192.0.2.1", 6: "2001:db8:2::1"}
CLIENT: Final[dict[Family, str]] = {4: "192.0.2.9", 6: "2001:db8:2::9"}
PODS: Final[dict[str, dict[Family, str]]] = {
    "pod1": {4: "10.1.1.1", 6: "fd00:1:1::1"},
    "pod2": {4: "10.1.2.1", 6: "fd00:1:2::1"},
}
GATEWAYS: Final[dict[str, dict[Family, str]]] = {
    "client": NODE,
    "pod1": {4: "10.1.1.254", 6: "fd00:1:1::fe"},
    "pod2": {4: "10.1.2.254", 6: "fd00:1:2::fe"},
}
"""The node's addresses towards them: where masqueraded packets come from. Each pod is on a network of its own, so that
answers to another one come by the node."""
NODE_ADDRESSES: Final = tuple(map(parse_address, NODE.values()))
CIDRS: Final = ("10.1.0.0/16", "fd00:1::/32")
PORT: Final = 8080
"""Where pods answer."""
ANSWER: Final = 20.0
"""Seconds until an answer that is expected is missed."""
SILENCE: Final = 1.5
"""Seconds after which one that is not expected would be there."""

_FAMILY: Final[dict[Family, socket.AddressFamily]] = {4: socket.AF_INET, 6: socket.AF_INET6}
_KIND: Final = {
    Protocol.TCP: (socket.SOCK_STREAM, 0),
    Protocol.UDP: (socket.SOCK_DGRAM, 0),
    Protocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


class World:
    """The namespaces, with servers that say who they are and whom they see."""

    def __init__(self) -> None:
        self._sandbox = Sandbox()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> World:
        with self._stack:
            self._stack.enter_context(self._sandbox)
            for place in ("node", "client", *PODS):
                self._sandbox.namespace(place)
            self._wire()
            self._stack.enter_context(_Servers(self))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def name(self, place: str) -> str:
        """Of a namespace: `node`, `client` or a pod's."""
        return self._sandbox.netns(place)

    def connect(self, place: str, protocol: Protocol, to: tuple[str, int], timeout: float = ANSWER) -> socket.socket:
        """A socket of a place, connected."""
        with netns.inside(self.name(place)):
            made = socket.socket(_FAMILY[6 if ":" in to[0] else 4], *_KIND[protocol])
        made.settimeout(timeout)
        try:
            made.connect(to)
        except OSError:
            made.close()
            raise
        return made

    def ask(self, place: str, protocol: Protocol, to: tuple[str, int], timeout: float = ANSWER) -> str:
        """Who answers a place, and whom that sees: `pod1 192.0.2.9`; else `refused` or `silence`."""
        try:
            with self.connect(place, protocol, to, timeout) as made:
                return talk(made)
        except TimeoutError:
            return "silence"
        except (ConnectionRefusedError, PermissionError):
            # The latter for a datagram of the node's own that netfilter does not let out.
            return "refused"

    def _wire(self) -> None:
        self._ip("node", ["link set lo up"])
        for place, addresses in {"client": CLIENT, **PODS}.items():
            device, gateway = f"to-{place}", GATEWAYS[place]
            self._ip(
                "node",
                [
                    f"link add {device} type veth peer name eth0 netns {self.name(place)}",
                    f"link set {device} up",
                    f"addr add {gateway[4]}/24 dev {device}",
                    f"addr add {gateway[6]}/64 dev {device} nodad",
                ],
            )
            self._ip(
                place,
                [
                    "link set lo up",
                    "link set eth0 up",
                    f"addr add {addresses[4]}/24 dev eth0",
                    f"addr add {addresses[6]}/64 dev eth0 nodad",
                    f"route add default via {gateway[4]}",
                    f"route add default via {gateway[6]}",
                ],
            )
        with netns.inside(self.name("node")):
            netns.set_sysctl("ipv6.conf.all.forwarding", 1)

    def _ip(self, place: str, commands: list[str]) -> None:
        text = "\n".join(commands) + "\n"
        subprocess.run(["ip", "-n", self.name(place), "-batch", "-"], input=text.encode(), check=True)


def talk(made: socket.socket) -> str:
    """Say something on a connected socket; what comes back."""
    made.send(b"?")
    answer = made.recv(100)
    if not answer:
        raise ConnectionResetError
    return answer.decode()


class _Servers:
    """Servers of all pods, of every protocol and in both families, in one thread."""

    def __init__(self, world: World) -> None:
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, "")
        for pod, (family, number), (protocol, kind) in itertools.product(PODS, _FAMILY.items(), _KIND.items()):
            with netns.inside(world.name(pod)):
                server = socket.socket(number, *kind)
            if family == 6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind(("::" if family == 6 else "0.0.0.0", PORT))
            if protocol is not Protocol.UDP:
                server.listen(64)
            self._selector.register(server, selectors.EVENT_READ, pod)

    def __enter__(self) -> _Servers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waker.send(b"!")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._waker.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ready: socket.socket = key.fileobj  # type: ignore[assignment]
                if ready is self._wake:
                    return
                self._serve(ready, key.data)

    def _serve(self, ready: socket.socket, pod: str) -> None:
        with contextlib.suppress(OSError):
            if ready.type == socket.SOCK_DGRAM:
                _, client = ready.recvfrom(100)
                ready.sendto(f"{pod} {client[0]}".encode(), client)
            elif ready.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._selector.register(ready.accept()[0], selectors.EVENT_READ, pod)
            elif ready.recv(100):
                ready.send(f"{pod} {ready.getpeername()[0]}".encode())
            else:
                self._selector.unregister(ready)
                ready.close()


class Agent:
    """The ipvs proxier in the namespace that the calling thread is in, and what it was told last."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.start()

    def start(self) -> None:
        """Open the proxier, and learn what is there."""
        self.proxier = lifecycle.open_proxier(self.settings)
        self.applied: dict[Key, Row] = self.proxier.read()

    def restart(self) -> None:
        """Forget everything, and start anew."""
        self.proxier.close()
        self.start()

    def serve(self, *objects: Object, addresses: tuple[Address, ...] = NODE_ADDRESSES) -> int:
        """Serve these objects, and nothing else, on a node with these addresses; returns how many ops that were. What
        is read back is what was wanted."""
        wanted = self.plan(*objects, addresses=addresses)
        ops = diff(self.applied, wanted, self.proxier.phase)
        assert self.change(wanted) == []
        self.applied = wanted
        assert self.proxier.read() == wanted
        return len(ops)

    def plan(self, *objects: Object, addresses: tuple[Address, ...] = NODE_ADDRESSES) -> dict[Key, Row]:
        """The rows that are wanted for them, by the settings as they are now."""
        plan = plan_objects([*objects, Node("n1", addresses=addresses)], self.settings)
        renderer = lifecycle.renderer(self.settings)
        rows: dict[Key, Row] = dict(renderer.render_node(plan.node))
        for one in plan.services.values():
            rows.update(renderer.render(one))
        return rows

    def change(self, wanted: dict[Key, Row]) -> list[Failure]:
        """Apply what differs from what was applied last."""
        return self.proxier.apply(diff(self.applied, wanted, self.proxier.phase))

    def end(self) -> None:
        """Remove everything."""
        self.proxier.close()
        lifecycle.cleanup(self.settings.state_dir)
