"""The demo, as `./dev demo` runs it."""

from __future__ import annotations

import re
import subprocess
import sys

from bpfproxy.lab import remains
from bpfproxy.lab.demo import EXAMPLES, documents, trips


def test_demo_answers_every_request() -> None:
    with subprocess.Popen([sys.executable, "-m", "bpfproxy.lab.demo"], stdout=-1, stderr=-1, text=True) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    counts = re.fullmatch(r"demo: (\d+) of (\d+) requests answered", output.splitlines()[-1])
    assert counts is not None
    assert counts[1] == counts[2]
    first_hooks = set(re.findall(r" (client2?) +(?:http|tcp|udp sendto|udp) +(\w+)", output))
    assert first_hooks == {("client", "tc_in"), ("client2", "xdp")}, "the table names the way of each node"
    assert remains.leftovers(process.pid) == set()


def test_examples_go_through_every_kind_of_frontend() -> None:
    wanted = list(trips(documents(EXAMPLES)))
    kinds = {"ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"}
    assert {trip.kind for trip in wanted} == kinds
    for client in ("client", "client2"):
        assert {trip.kind for trip in wanted if trip.client == client} == kinds
    assert {trip.protocol for trip in wanted} == {"http", "tcp", "udp", "udp-unconnected"}
    assert {"127.0.0.1", "::1"} <= {trip.to[0] for trip in wanted}
