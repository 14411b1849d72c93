"""One Service in a running lab, whose endpoints move about while clients talk to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TypedDict, Unpack

import msgspec

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Case, Endpoint, Port, Probe, Service, Talk, Via, load
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.place import Flow, Outcome, Transferred
from bpfproxy.lab.wait import wait_until

_numbers = count(len(load()))


class How(TypedDict, total=False):
    """How a Service is asked. Left out: a pod of node1, by IPv4, to the ClusterIP, by TCP or a connected UDP socket."""

    talk: Talk
    via: Via
    port: int
    """Place among the Service's ports, default 0."""
    client: str
    family: Family


@dataclass
class Scene:
    """A Service with addresses of its own; nothing is written before `put`. The agents of the lab watch `directory`."""

    lab: Lab
    directory: Path
    service: Service
    case: Case = field(init=False)

    def __post_init__(self) -> None:
        number = next(_numbers)
        self.case = Case(f"scene-{number}", "a scene", (), self.service, number=number)

    def put(self, *endpoints: str | Endpoint) -> None:
        """Write the Service with these endpoints; does not wait for the agents."""
        placed = tuple(Endpoint(one) if isinstance(one, str) else one for one in endpoints)
        self.service = msgspec.structs.replace(self.service, endpoints=placed)
        self.case = msgspec.structs.replace(self.case, service=self.service)
        manifests.write(self.directory, self.case.name, manifests.objects(self.case))

    def remove(self) -> None:
        """Take the Service away; does not wait for the agents."""
        (self.directory / f"{self.case.name}.yaml").unlink(missing_ok=True)

    def probe(self, **how: Unpack[How]) -> Probe:
        """One kind of traffic of this Service."""
        port = self.service.ports[how.get("port", 0)]
        client, family = how.get("client", "pod1c"), how.get("family", 4)
        return Probe(self.case, how.get("via", "ClusterIP"), port, client, family, how.get("talk") or _talk(port))

    def to(self, **how: Unpack[How]) -> tuple[str, int]:
        """Address and port of a frontend."""
        return self.flow(**how).to

    def flow(self, timeout: float = 2.0, *, whole: bool = False, **how: Unpack[How]) -> Flow:
        """A flow to a frontend."""
        return replace(self.probe(**how).flow(timeout), whole=whole, told=False)

    def ask(self, sockets: int = 1, timeout: float = 2.0, **how: Unpack[How]) -> list[Outcome]:
        """Requests, each on a socket of its own."""
        probe = self.probe(**how)
        return self.lab.places[probe.client].request(replace(probe.flow(timeout), told=False), sockets=sockets)

    def transfer(self, size: int, timeout: float = 30.0, **how: Unpack[How]) -> Transferred:
        """Some bytes to the Service and as many back."""
        probe = self.probe(**how)
        return self.lab.places[probe.client].transfer(probe.flow(timeout), size)

    def shares(self, sockets: int = 48, timeout: float = 0.5, **how: Unpack[How]) -> Counter[str]:
        """How many requests each place answered; errors by their names."""
        return Counter(one.reply.place if one.reply else one.error for one in self.ask(sockets, timeout, **how))

    def settle(self, *places: str, client: str = "pod1c", timeout: float = 10.0) -> None:
        """Wait until new connections are answered by these places and no others, in all families and ports; without
        places until they are refused."""

        def answered_by(sockets: int, port: int, family: Family) -> set[str]:
            return set(self.shares(sockets, 0.1, port=port, client=client, family=family))

        def settled() -> bool:
            ways = [(port, family) for port in range(len(self.service.ports)) for family in self.service.families]
            # One request first, since those that nobody answers take their time.
            return all(answered_by(1, *way) <= wanted for way in ways) and all(
                answered_by(48, *way) == wanted for way in ways
            )

        wanted = set(places or ["ECONNREFUSED"])
        wait_until(settled, timeout, f"{self.case.name} is answered by {wanted}")

    def vanish(self, timeout: float = 10.0) -> None:
        """Wait until node1 does not answer for the Service any more: its packets get lost on the way to nowhere."""
        wait_until(
            lambda: self.ask(client="node1", timeout=0.2)[0].error == "TIMEOUT", timeout, f"{self.case.name} is gone"
        )


def _talk(port: Port) -> Talk:
    return "tcp" if port.protocol == "TCP" else "udp"
