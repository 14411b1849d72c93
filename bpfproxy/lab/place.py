"""The handle of a peer: what a place of the lab serves and sends, as Python calls."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from bpfproxy.lab import netns, remains
from bpfproxy.lab.layout import SERVED_PORTS, Family, Spot
from bpfproxy.lab.wait import PATIENCE

Protocol = Literal["http", "tcp", "udp", "udp-unconnected"]

Refuser = Literal["", "hook", "icmp", "reset"]
"""How ECONNREFUSED came about: the call itself failed and nothing was sent; an ICMP error; a TCP reset. Empty: the
socket was not asked, or says something else."""

PROJECT = Path(__file__).parents[2]


class Reply(msgspec.Struct, frozen=True):
    """What a server said: who it is, and whom it saw."""

    place: str
    port: int
    peer: tuple[str, int]
    echo: str


class Outcome(msgspec.Struct, frozen=True):
    """One request: answered, or failed with an error's name (`ECONNREFUSED`, `TIMEOUT`, ...)."""

    reply: Reply | None = None
    peer: tuple[str, int] | None = None
    """Whom the client talked to in its own view: getpeername(), or recvfrom()'s source; v4-mapped on v6 sockets."""
    error: str = ""
    by: Refuser = ""
    about: tuple[str, int] | None = None
    """To whom what an ICMP error is about was sent, in the client's view."""
    seconds: float = 0.0
    """What it took, from connect() on for the first request of a socket."""


class Transferred(msgspec.Struct, frozen=True):
    """A large transfer there and back; `Place.transfer`."""

    reply: Reply | None = None
    peer: tuple[str, int] | None = None
    error: str = ""
    intact: bool = False
    """Whether what was sent arrived, both ways."""
    mtu: int = 0
    """The path's MTU, as the client's kernel knew it at the end."""
    seconds: float = 0.0


class LoadReport(msgspec.Struct, frozen=True):
    """The counts of a load; see `Load.stop`."""

    sent: int
    flows: int
    places: dict[str, int]
    errors: dict[str, int]
    longest: float
    """The longest that a request took, seconds."""

    @property
    def answered(self) -> int:
        """Requests that were answered."""
        return sum(self.places.values())


@dataclass(frozen=True)
class Flow:
    """How a client's socket talks. A v6 socket that is sent to an IPv4 address uses the v4-mapped form."""

    protocol: Protocol
    to: tuple[str, int]
    family: Family | None = None
    """Family of the socket; None: that of the address."""
    timeout: float = 2.0
    """Seconds that connect() and each request may take, times PATIENCE."""
    source: tuple[str, int] | None = None
    """Address and port to bind to first."""
    whole: bool = False
    """Datagrams that are too long for the path are an error (EMSGSIZE), and not cut into fragments."""
    told: bool = False
    """The socket asks for ICMP errors, of which unconnected ones hear nothing else, and says how it was refused."""

    def arguments(self) -> dict[str, Any]:
        """As a peer takes them."""
        family = self.family or (6 if ":" in self.to[0] else 4)
        return {
            "protocol": self.protocol,
            "to": self.to,
            "family": family,
            "timeout": self.timeout * PATIENCE,
            "source": self.source,
            "whole": self.whole,
            "told": self.told,
        }


# msgspec learns a type when it first meets it. Where several threads meet it at once, that crashes (0.22).
for _type in (Outcome, Transferred, LoadReport):
    msgspec.json.Decoder(_type)


class PlaceError(Exception):
    """A peer did not do as it was told: it is dead, hangs, or did not understand."""


@dataclass
class OpenFlow:
    """A socket that stays open in a place. A context manager, which closes it."""

    place: Place
    name: str
    error: str
    """Why it could not be opened, or empty."""

    def exchange(self, to: tuple[str, int] | None = None, *, reconnect: bool = False, size: int = 0) -> Outcome:
        """One request, of at least `size` bytes, on this socket, from now on to another address if `to` is given (an
        unconnected socket, or together with `reconnect`), with a new connect() before it if `reconnect`."""
        answer = self.place.call("exchange", name=self.name, to=to, reconnect=reconnect, size=size)
        return msgspec.convert(answer, Outcome)

    def mtu(self) -> int:
        """MTU of the path, as the kernel of a connected socket knows it."""
        return int(self.place.call("mtu", name=self.name))

    def listen(self) -> str:
        """Wait, as long as the flow's timeout, for something that nobody asked for; returns the name of the error that
        came instead, or ""."""
        return str(self.place.call("listen", name=self.name))

    def __enter__(self) -> OpenFlow:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.error:
            self.place.call("close", name=self.name)


@dataclass
class Load:
    """Traffic in the background of a place. A context manager, which ends it; its counts are then in `report`."""

    place: Place
    name: str
    report: LoadReport | None = None

    def stop(self) -> LoadReport:
        """End it; returns its counts."""
        if self.report is None:
            self.report = msgspec.convert(self.place.call("unload", name=self.name), LoadReport)
        return self.report

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Place:
    """A spot of the lab with a peer process in it: in its network namespace and its cgroup."""

    spot: Spot
    lab_id: str
    namespace: str
    cgroup: Path
    _process: subprocess.Popen[str] | None = None
    _named: int = 0
    errors: Path = field(init=False)
    """What the peer wrote to its standard error."""

    def __post_init__(self) -> None:
        self.errors = remains.directory(self.lab_id) / f"{self.spot.name}.log"

    @property
    def name(self) -> str:
        """The spot's name."""
        return self.spot.name

    def start(self) -> None:
        """Start the peer, and its servers on `SERVED_PORTS`: TCP (HTTP) and UDP, both families."""
        with self.errors.open("a") as log:
            self._process = spawn(
                [sys.executable, "-m", "bpfproxy.lab.peer", self.name],
                namespace=self.namespace,
                cgroup=self.cgroup,
                lab_id=self.lab_id,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def serve(self) -> None:
        """Serve TCP (and HTTP) and UDP in both families on `SERVED_PORTS`."""
        for port in SERVED_PORTS:
            for protocol in ("tcp", "udp"):
                for family in (4, 6):
                    self.call("serve", protocol=protocol, family=family, port=port)

    def stop(self) -> None:
        """End the peer: by the end of its input, by force if it does not listen. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]

    def call(self, op: str, *, within: float = 30.0, **arguments: Any) -> Any:
        """Send a command and wait for its result, `within` seconds; raises PlaceError."""
        process = self._process
        if process is None:
            raise PlaceError(f"{self.name}: no peer runs")
        try:
            process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            raise PlaceError(f"{self.name}: the peer ended: {self.errors.read_text()}") from None
        answered = select.poll()
        answered.register(process.stdout, select.POLLIN)  # type: ignore[arg-type]
        if not answered.poll(within * PATIENCE * 1000):
            self.stop()  # a late answer would be taken for that of the next command
            raise PlaceError(f"{self.name}: no answer to {op} within {within:g} s")
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise PlaceError(f"{self.name}: the peer ended: {self.errors.read_text()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PlaceError(f"{self.name}: {op}: {answer['error']}")
        return answer["result"]

    def request(
        self, flow: Flow, *, sockets: int = 1, per_socket: int = 1, together: bool = False, most_timeouts: int = 0
    ) -> list[Outcome]:
        """Requests on `sockets` new sockets, one after the other or all at once, `per_socket` on each; outcomes in
        their order. Those after each other end with the socket on which `most_timeouts`, if any, is reached."""
        within = 10 + flow.timeout * sockets * (per_socket + 1)
        counts = {"sockets": sockets, "per_socket": per_socket}
        how = {"together": together, "most_timeouts": most_timeouts}
        results = self.call("request", within=within, flow=flow.arguments(), **counts, **how)
        return msgspec.convert(results, list[Outcome])

    def transfer(self, flow: Flow, size: int) -> Transferred:
        """Send `size` bytes over a TCP connection, and receive as many."""
        result = self.call("transfer", within=10 + 4 * flow.timeout, flow=flow.arguments(), size=size)
        return msgspec.convert(result, Transferred)

    def open(self, flow: Flow) -> OpenFlow:
        """Open a socket that stays."""
        name = self._name("flow")
        return OpenFlow(self, name, self.call("open", name=name, flow=flow.arguments()))

    def load(self, flow: Flow, *, hold: bool, interval: float = 0.002) -> Load:
        """Start traffic in the background: a request each `interval` seconds, on one held socket or on new ones."""
        name = self._name("load")
        self.call("load", name=name, flow=flow.arguments(), hold=hold, interval=interval)
        return Load(self, name)

    def bind(self, protocol: Literal["tcp", "udp"], address: str, port: int) -> str:
        """Try to bind a socket (closed at once); returns "" or the error's name."""
        family = 6 if ":" in address else 4
        return str(self.call("bind", protocol=protocol, family=family, address=address, port=port))

    def busy(self) -> list[str]:
        """Names of sockets and loads that are still open."""
        idle = self.call("idle")
        return [*idle["sockets"], *idle["loads"]]

    def _name(self, kind: str) -> str:
        self._named += 1
        return f"{kind}-{self._named}"


def spawn(
    command: list[str], *, namespace: str, cgroup: Path, lab_id: str, project: Path = PROJECT, **streams: Any
) -> subprocess.Popen[str]:
    """Start a process of a lab: in a network namespace, and in a cgroup from its first instruction on. Python modules
    are those of the checkout `project`."""
    enter = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(cgroup / "cgroup.procs")]
    environment = {**os.environ, remains.ENVIRONMENT: lab_id, "PYTHONPATH": str(project)}
    with netns.inside(namespace):
        return subprocess.Popen([*enter, *command], text=True, env=environment, start_new_session=True, **streams)
