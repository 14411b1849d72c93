"""For tests of the engine: two Services, and simulated kernels that hold what is written of them."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from bpfproxy.engine import Engine
from bpfproxy.model.address import parse_address
from bpfproxy.model.event import Update
from bpfproxy.model.frontend import Frontend
from bpfproxy.model.service import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectName,
    Protocol,
    Service,
    ServicePort,
)
from bpfproxy.plan import NodeConfig
from tests.unit.simproxier import (
    Kernel,
    SimProxier,
    assert_sound,
)

TCP = Protocol.TCP
NODE = NodeConfig("n1", addresses=frozenset({parse_address("192.0.2.10")}))
ALL = Update(complete=True)


def name(short: str) -> ObjectName:
    return ObjectName("ns", short)


def service(short: str, ip: str, **changes: object) -> Service:
    base = Service(name(short), (ServicePort("", TCP, 80),), cluster_ips=(parse_address(ip),))
    return replace(base, **changes)


def endpoints(short: str, *ips: str, where: str = "n1") -> EndpointSlice:
    members = tuple(Endpoint(parse_address(ip), node_name=where) for ip in ips)
    return EndpointSlice(name(f"{short}-1"), name(short), 4, (EndpointPort("", TCP, 8080),), members)


WEB, WEB_SLICE = service("web", "172.30.0.1"), endpoints("web", "10.0.0.1", "10.0.0.2")
DNS, DNS_SLICE = service("dns", "172.30.0.2"), endpoints("dns", "10.0.0.3")
EVERYTHING = Update((WEB, WEB_SLICE, DNS, DNS_SLICE), complete=True)
WEB_IP = Frontend(parse_address("172.30.0.1"), 80, TCP)
DNS_IP = Frontend(parse_address("172.30.0.2"), 80, TCP)


class World:
    """Kernels that outlive their engines."""

    def __init__(self, *modes: str) -> None:
        self.modes = modes or ("one",)
        self.pause: Callable[[], None] = lambda: None
        self.kernels: dict[str, Kernel] = {mode: {} for mode in self.modes}
        self.boot()

    def boot(self) -> Engine:
        """Start a new agent, as after a crash."""
        self.proxiers = {mode: SimProxier(mode, kernel, assert_sound) for mode, kernel in self.kernels.items()}
        self.engine = Engine(self.proxiers, self.modes[0], NODE, pause=lambda: self.pause())
        self.engine.start()
        return self.engine

    @property
    def kernel(self) -> Kernel:
        return self.kernels[self.modes[0]]

    @property
    def proxier(self) -> SimProxier:
        return self.proxiers[self.modes[0]]

    def backends(self, frontend: Frontend, mode: str = "one") -> list[str]:
        kernel = self.kernels[mode]
        return [str(backend) for backend in kernel[kernel[frontend].set].backends]
