"""One Service in a running lab, whose endpoints move about while clients talk to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import msgspec

from bpfproxy.lab import manifests
from bpfproxy.lab.cases import Case, Endpoint, Probe, Service, Talk, Via, load
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import Family
from bpfproxy.lab.place import Flow, Outcome
from bpfproxy.lab.wait import wait_until

_numbers = count(len(load()))


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

    def to(
        self, via: Via = "ClusterIP", *, port: int = 0, client: str = "pod1c", family: Family = 4
    ) -> tuple[str, int]:
        """Address and port of a frontend, for the Service's n-th port."""
        return self.case.frontend(via, self.service.ports[port], client, family)

    def flow(
        self,
        talk: Talk = "tcp",
        via: Via = "ClusterIP",
        *,
        port: int = 0,
        client: str = "pod1c",
        family: Family = 4,
        timeout: float = 2.0,
    ) -> Flow:
        """A flow to a frontend."""
        return Probe(self.case, via, self.service.ports[port], client, family, talk).flow(timeout)

    def ask(
        self,
        talk: Talk = "tcp",
        via: Via = "ClusterIP",
        *,
        port: int = 0,
        client: str = "pod1c",
        family: Family = 4,
        sockets: int = 1,
        timeout: float = 2.0,
    ) -> list[Outcome]:
        """Requests, each on a socket of its own."""
        flow = self.flow(talk, via, port=port, client=client, family=family, timeout=timeout)
        return self.lab.places[client].request(flow, sockets=sockets)

    def shares(
        self,
        talk: Talk = "tcp",
        via: Via = "ClusterIP",
        *,
        port: int = 0,
        client: str = "pod1c",
        family: Family = 4,
        sockets: int = 48,
    ) -> Counter[str]:
        """How many requests each place answered; errors by their names."""
        outcomes = self.ask(talk, via, port=port, client=client, family=family, sockets=sockets, timeout=0.5)
        return Counter(one.reply.place if one.reply else one.error for one in outcomes)

    def settle(self, *places: str, client: str = "pod1c", timeout: float = 10.0) -> None:
        """Wait until new connections are answered by these places and no others, in all families and ports; without
        places until they are refused."""

        def settled() -> bool:
            return all(
                set(self.shares(_talk(one.protocol), port=at, client=client, family=family)) == wanted
                for at, one in enumerate(self.service.ports)
                for family in self.service.families
            )

        wanted = set(places or ["ECONNREFUSED"])
        wait_until(settled, timeout, f"{self.case.name} is answered by {wanted}")


def _talk(protocol: str) -> Talk:
    return "tcp" if protocol == "TCP" else "udp"
