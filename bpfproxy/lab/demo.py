"""The main job on real input: `python -m bpfproxy.lab.demo`.

Brings up a lab, starts an agent on each node on the manifests in examples/, sends HTTP, TCP and UDP from pods, nodes
and outside clients through every address of every Service, and prints who answered. Nothing is left behind.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bpfproxy.lab import remains
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import PLACES, SPOTS, Family
from bpfproxy.lab.node import LoaderName, packet_level
from bpfproxy.lab.place import PROJECT, Flow, Outcome, Protocol

EXAMPLES = PROJECT / "examples"
LOADERS: dict[str, LoaderName] = {"node1": "bcc", "node2": "prebuilt"}
ACCELERATION = {"node1": "tc", "node2": "xdp"}
CLIENTS = ("pod1c", "node2", "pod2c", "node1")
OUTSIDE: tuple[tuple[tuple[str, Family], ...], ...] = (
    (("client", 4), ("client2", 6)),
    (("client", 6), ("client2", 4)),
)
"""Clients outside the cluster; one goes by node1, one by node2."""
SOCKETS = 12
_TRAFFIC = {"udp-unconnected": "udp sendto"}
"""What the table says instead."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Trip:
    """One line of the table to come: a client that goes to one frontend."""

    service: str
    kind: str
    client: str
    protocol: Protocol
    to: tuple[str, int]


@dataclass
class Result:
    """What came of a trip."""

    trip: Trip
    outcomes: list[Outcome]
    hooks: Counter[str]
    """Translations by hook, as the datapath counted them."""
    answered: list[Outcome] = field(init=False)
    """Answered, by a server that the client knows under the frontend's address."""

    def __post_init__(self) -> None:
        self.answered = [one for one in self.outcomes if one.reply and one.peer == self.trip.to]


def documents(directory: Path) -> Iterator[Object]:
    """All objects in the manifests of a directory."""
    for path in sorted(directory.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def trips(objects: Iterable[Object]) -> Iterator[Trip]:
    """Who goes where: every frontend in both families, ClusterIPs from two places, UDP on both kinds of sockets; then
    from outside by both nodes."""
    clients, outside = cycle(CLIENTS), cycle(OUTSIDE)
    udp: Iterator[Protocol] = cycle(("udp", "udp-unconnected"))
    for service in objects:
        if service["kind"] != "Service":
            continue
        for port in service["spec"]["ports"]:
            for kind in _kinds(service, port):
                next(clients)  # so that a kind's IPv4 and IPv6 are not always seen from the same places
                families: tuple[Family, ...] = (4, 4, 6, 6) if kind == "ClusterIP" else (4, 6)
                for family in families:
                    protocol = next(udp) if port["protocol"] == "UDP" else _stream(port)
                    yield _trip(service, port, protocol, kind, next(clients), family)
                for client, family in next(outside) if kind != "localhost" else ():
                    if kind != "ClusterIP" and service["spec"].get("externalTrafficPolicy") == "Local":
                        client = "client"  # its endpoints are on node1, and node2 would drop the request
                    protocol = next(udp) if port["protocol"] == "UDP" else _stream(port)
                    yield _trip(service, port, protocol, kind, client, family)


def _stream(port: Object) -> Protocol:
    return "http" if port.get("appProtocol") == "http" else "tcp"


def _kinds(service: Object, port: Object) -> list[str]:
    has = {
        "ClusterIP": True,
        "NodePort": "nodePort" in port,
        "localhost": "nodePort" in port,
        "ExternalIP": "externalIPs" in service["spec"],
        "LoadBalancer": "status" in service,
    }
    return [kind for kind, present in has.items() if present]


def _trip(service: Object, port: Object, protocol: Protocol, kind: str, client: str, family: Family) -> Trip:
    node, number = PLACES[client].entry, port["port"]
    match kind:
        case "NodePort":
            addresses, number = [SPOTS[node].address(family)], port["nodePort"]
        case "localhost":
            client = node  # a pod's localhost is its own
            addresses, number, kind = ["127.0.0.1", "::1"], port["nodePort"], "NodePort"
        case "ExternalIP":
            addresses = service["spec"]["externalIPs"]
        case "LoadBalancer":
            addresses = [ingress["ip"] for ingress in service["status"]["loadBalancer"]["ingress"]]
        case _:
            addresses = service["spec"]["clusterIPs"]
    [address] = [address for address in addresses if (":" in address) == (family == 6)]
    name = f"{service['metadata']['name']}:{port.get('name', port['port'])}"
    return Trip(name, kind, client, protocol, (address, number))


def travel(lab: Lab, trip: Trip, counters: Callable[[], Counter[str]]) -> Result:
    """Send the requests of a trip. `counters` reads how often the hooks of the node have translated that the client is
    on, or comes by."""
    before = counters()
    outcomes = lab.places[trip.client].request(Flow(trip.protocol, trip.to), sockets=SOCKETS)
    return Result(trip, outcomes, counters() - before)


def table(results: Iterable[Result]) -> Table:
    """Results for people."""
    title = "What was asked, and who answered"
    made = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for header in ("service", "frontend", "address", "client", "traffic"):
        made.add_column(header, no_wrap=True)
    made.add_column("hooks that\ntranslated", overflow="fold", max_width=17)
    made.add_column("answered", justify="right", no_wrap=True)
    for header in ("share of each backend", "client\nsees", "backend\nsees"):
        made.add_column(header, overflow="fold")
    former = ""
    for result in results:
        trip = result.trip
        if former and former != trip.service:
            made.add_section()
        lost = len(result.outcomes) - len(result.answered)
        made.add_row(
            trip.service if trip.service != former else "",
            trip.kind,
            Text(_endpoint(trip.to)),
            trip.client,
            _TRAFFIC.get(trip.protocol, trip.protocol),
            _hooks(result),
            f"{len(result.answered)} of {len(result.outcomes)}",
            _shares(one.reply.place if one.reply else one.error for one in result.outcomes),
            Text(_peers(result)),
            Text(", ".join(sorted({_who(one.reply.peer[0]) for one in result.outcomes if one.reply}))),
            style="red" if lost else "",
        )
        former = trip.service
    return made


def _hooks(result: Result) -> str:
    """Without the family, which the address shows."""
    names = (hook.rstrip("46").removeprefix("get") for hook in result.hooks)
    return " ".join(dict.fromkeys(names)) or "none"


def _peers(result: Result) -> str:
    """Whom the client talked to, in its own view."""
    seen = {one.peer for one in result.outcomes if one.peer}
    return "address" if seen == {result.trip.to} else ", ".join(sorted(_endpoint(peer) for peer in seen))


def _who(address: str) -> str:
    """The spot that has an address."""
    return next((spot.name for spot in SPOTS.values() if address in (spot.v4, spot.v6)), address)


def _shares(places: Iterable[str]) -> str:
    return ", ".join(f"{place} {count}" for place, count in sorted(Counter(places).items()))


def _endpoint(endpoint: tuple[str, int]) -> str:
    address, port = endpoint
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def run(console: Console) -> list[Result]:
    """The whole demo; raises what goes wrong before the traffic."""
    began = time.monotonic()

    def say(what: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/]  {what}")

    for lab_id in remains.sweep():
        say(f"removed lab {lab_id}, whose owner had died")
    with Lab(xdp=[node for node, way in ACCELERATION.items() if way == "xdp"]) as lab:
        say(f"lab {lab.lab_id}: two clients, two nodes, three pods on each, IPv4 and IPv6")
        for node, loader in LOADERS.items():
            options = packet_level(ACCELERATION[node])
            lab.agent(node, manifests=EXAMPLES, loader=loader, options=options).launch()
        for node, loader in LOADERS.items():
            lab.agents[node].wait_ready()
            say(f"agent of {node} serves {EXAMPLES.name}/ ({ACCELERATION[node]}, loader {loader})")
        wanted = list(trips(documents(EXAMPLES)))
        counters = {node: lab.agents[node].translations() for node in LOADERS}
        results = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(wanted))
            for trip in wanted:
                progress.update(task, description=f"{trip.client} → {trip.service} by {trip.kind}, {trip.protocol}")
                results.append(travel(lab, trip, counters[PLACES[trip.client].entry]))
                progress.advance(task)
        say(f"{len(results)} kinds of traffic sent")
    say("lab removed")
    return results


def main() -> int:
    """Run the demo and print its results; the exit status: 0 if every request was answered."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    results = run(console)
    console.print(table(results))
    sent = sum(len(result.outcomes) for result in results)
    answered = sum(len(result.answered) for result in results)
    print(f"demo: {answered} of {sent} requests answered", flush=True)
    return 0 if sent == answered > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
