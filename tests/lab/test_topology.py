"""The lab itself, without any proxy: everybody reaches everybody, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfproxy.lab import remains
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import SERVED_PORTS, SPOTS, Family
from bpfproxy.lab.place import Flow, PlaceError, Protocol
from bpfproxy.lab.wait import wait_until


@pytest.mark.parametrize("protocol", ["http", "tcp", "udp", "udp-unconnected"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("port", SERVED_PORTS)
def test_everybody_reaches_everybody(bare: Lab, protocol: Protocol, family: Family, port: int) -> None:
    for client in bare.places.values():
        for server in SPOTS.values():
            to = (server.address(family), port)
            [outcome] = client.request(Flow(protocol, to))
            assert outcome.reply is not None, outcome
            assert (outcome.reply.place, outcome.reply.port) == (server.name, port)
            assert outcome.reply.peer[0] == client.spot.address(family)
            assert outcome.peer == to


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def test_mapped_clients_see_mapped_peers(bare: Lab) -> None:
    protocols: tuple[Protocol, ...] = ("tcp", "udp", "udp-unconnected")
    for protocol in protocols:
        [outcome] = bare.places["pod1a"].request(Flow(protocol, (SPOTS["pod2a"].v4, 8080), family=6))
        assert outcome.reply is not None
        assert outcome.reply.peer[0] == SPOTS["pod1a"].v4
        assert outcome.peer == (f"::ffff:{SPOTS['pod2a'].v4}", 8080)


@pytest.mark.parametrize("address", ["10.96.0.1", "fd00:10:96::1"])
@pytest.mark.parametrize("client", ["pod1a", "node1"])
def test_service_addresses_lead_nowhere_without_a_proxy(bare: Lab, client: str, address: str) -> None:
    [outcome] = bare.places[client].request(Flow("tcp", (address, 80), timeout=0.5))
    assert outcome.error in ("ENETUNREACH", "TIMEOUT")


def test_errors_are_named(bare: Lab) -> None:
    place = bare.places["pod1a"]
    assert [one.error for one in place.request(Flow("tcp", (SPOTS["pod1b"].v4, 9)), sockets=2)] == ["ECONNREFUSED"] * 2
    assert place.bind("tcp", "0.0.0.0", SERVED_PORTS[0]) == "EADDRINUSE"
    assert place.bind("udp", "::1", 9999) == ""
    with pytest.raises(PlaceError, match="no such command"):
        place.call("dance")


def test_loads_count(bare: Lab) -> None:
    place = bare.places["pod1a"]
    with (
        place.load(Flow("tcp", (SPOTS["pod2a"].v4, 8080)), hold=True) as held,
        place.load(Flow("udp", (SPOTS["pod2a"].v6, 8080)), hold=False) as short,
        place.load(Flow("tcp", (SPOTS["pod2a"].v4, 9)), hold=False) as refused,
    ):
        place.request(Flow("tcp", (SPOTS["pod2a"].v4, 8080)), sockets=200)
        assert len(place.busy()) == 3
    assert not place.busy()
    assert held.stop().flows == 1
    assert held.stop().places == {"pod2a": held.stop().sent}
    assert short.stop().flows == short.stop().answered > 0
    assert refused.stop().errors == {"ECONNREFUSED": refused.stop().sent}


def test_processes_are_in_the_cgroup_of_their_place(bare: Lab) -> None:
    for spot in SPOTS:
        [pid] = (bare.topology.spot_cgroup(spot) / "cgroup.procs").read_text().split()
        namespace = Path(f"/proc/{pid}/ns/net").stat().st_ino
        assert namespace == Path("/run/netns", bare.topology.netns(spot)).stat().st_ino


def test_labs_stand_side_by_side(bare: Lab) -> None:
    with Lab() as other:
        for lab in (bare, other):
            [outcome] = lab.places["client"].request(Flow("http", (SPOTS["pod2c"].v6, 8080)))
            assert outcome.reply is not None
        assert {name.split()[0] for name in remains.leftovers(os.getpid())} >= {"namespace", "cgroup", "process"}


def test_a_failure_leaves_nothing() -> None:
    before = remains.leftovers(os.getpid())

    def fail() -> None:
        with Lab() as lab:
            assert remains.leftovers(os.getpid()) > before
            lab.places["pod1a"].load(Flow("tcp", (SPOTS["pod2a"].v4, 8080)), hold=True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert remains.leftovers(os.getpid()) == before


def test_a_failure_on_the_way_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = remains.leftovers(os.getpid())
    # Too long a name for a device: the kernel refuses when most of the lab stands.
    spot = SPOTS["pod2c"]
    monkeypatch.setitem(SPOTS, "pod2c", type(spot)("a-name-that-is-too-long", "pod", spot.v4, spot.v6, spot.node))
    with pytest.raises(Exception, match=r".") as caught, Lab():
        pass
    assert not isinstance(caught.value, AssertionError)
    assert remains.leftovers(os.getpid()) == before


HOLD = """
import signal, sys
from bpfproxy.lab.lab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with Lab() as lab:
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert remains.leftovers(process.pid)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode != 0
    assert remains.leftovers(process.pid) == set()


def test_the_lab_of_a_killed_process_is_swept() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert f"{process.pid}-1" not in remains.sweep(), "a living owner's lab is left alone"
        process.kill()
    try:
        wait_until(
            lambda: not any(line.startswith("process") for line in remains.leftovers(process.pid)),
            5,
            "its peers end with their input",
        )
        assert any(line.startswith("namespace") for line in remains.leftovers(process.pid))
    finally:
        remains.sweep()
    assert remains.leftovers(process.pid) == set()
