"""Commands come as JSON lines on standard input, each answered by a JSON line on standard output; the end of the
input ends the process, so it never outlives its owner.

    {"op": "request", ...}  →  {"result": ...}  or  {"error": "..."} for a command that makes no sense
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

from bpfproxy.lab.peer import client, transfer
from bpfproxy.lab.peer.load import Loads
from bpfproxy.lab.peer.server import Servers


class Peer:
    """The state of a peer: what it serves, its open sockets, its loads in the background."""

    def __init__(self, name: str) -> None:
        self.servers = Servers(name)
        self.sockets = client.Sockets()
        self.loads = Loads()

    def handle(self, command: dict[str, Any]) -> Any:
        """Carry out one command; raises on one that makes no sense. Failures of the network are results."""
        match command.pop("op"):
            case "serve":
                return self.servers.serve(**command)
            case "request":
                return client.requests(**command)
            case "transfer":
                return transfer.transfer(**command)
            case "open":
                return self.sockets.open(**command)
            case "exchange":
                return self.sockets.exchange(**command)
            case "mtu":
                return self.sockets.mtu(**command)
            case "listen":
                return self.sockets.listen(**command)
            case "close":
                return self.sockets.close(**command)
            case "bind":
                return client.bind(**command)
            case "load":
                return self.loads.start(**command)
            case "unload":
                return self.loads.stop(**command)
            case "idle":
                return {"sockets": sorted(self.sockets.names()), "loads": sorted(self.loads.names())}
            case unknown:
                raise ValueError(f"no such command: {unknown}")


def main() -> None:
    """Serve commands until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides, not the terminal
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    peer = Peer(sys.argv[1])
    for line in sys.stdin:
        try:
            answer = {"result": peer.handle(json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    peer.loads.stop_all()


main()
