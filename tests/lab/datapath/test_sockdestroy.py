"""UDP sockets destroyed in the network namespaces of a cgroup's processes."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bpfproxy.datapath.sockdestroy import Endpoint, destroy_udp
from bpfproxy.lab import netns
from bpfproxy.lab.sandbox import Sandbox

_numbers = itertools.count()

CLIENT = """
import errno, os, pathlib, socket, subprocess, sys
group, family, address, port = sys.argv[1:]
pathlib.Path(group, "cgroup.procs").write_text(str(os.getpid()))
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
s = socket.socket(getattr(socket, family), socket.SOCK_DGRAM)
s.connect((address, int(port)))
print(int.from_bytes(s.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder), flush=True)  # SO_COOKIE
sys.stdin.readline()
def attempt(call, *arguments):
    try:
        call(*arguments)
        return "OK"
    except OSError as error:
        return errno.errorcode[error.errno]
print(attempt(s.recv, 1, socket.MSG_DONTWAIT), attempt(s.send, b"x"), flush=True)
"""

V4: Endpoint = (bytes(10) + b"\xff\xff" + socket.inet_aton("127.0.0.1"), 4242)
V6: Endpoint = (socket.inet_pton(socket.AF_INET6, "::1"), 4242)


ABORTED = "ECONNABORTED EDESTADDRREQ"
UNHARMED = "EAGAIN OK"


class Client(NamedTuple):
    """A process with a connected UDP socket."""

    process: subprocess.Popen[str]
    cookie: int

    def goes_on(self) -> str:
        """What comes of a recv and a send."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()


Clients = Callable[..., Client]


@pytest.fixture
def spaces(sandbox: Sandbox) -> Callable[[], str]:
    """Makes network namespaces."""
    numbers = itertools.count()
    return lambda: sandbox.namespace(f"host{next(numbers)}")


@pytest.fixture
def clients(group: Path) -> Iterator[Clients]:
    """Starts clients; without a namespace in this one."""
    started: list[subprocess.Popen[str]] = []

    def start(namespace: str, directory: Path = group, family: str = "AF_INET", address: str = "127.0.0.1") -> Client:
        command = [sys.executable, "-c", CLIENT, str(directory), family, address, "4242"]
        with netns.inside(namespace):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return Client(process, int(process.stdout.readline()))

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("family", "address", "endpoint"),
    [("AF_INET", "127.0.0.1", V4), ("AF_INET6", "::1", V6), ("AF_INET6", "::ffff:127.0.0.1", V4)],
)
def test_the_owners_next_call_fails(
    spaces: Callable[[], str], clients: Clients, group: Path, family: str, address: str, endpoint: Endpoint
) -> None:
    client = clients(spaces(), family=family, address=address)
    result = destroy_udp(group, {client.cookie: endpoint})
    assert (result.sockets, result.namespaces, result.skipped) == (1, 2, {})
    assert client.goes_on() == ABORTED


def test_only_the_wanted_sockets(spaces: Callable[[], str], clients: Clients, group: Path) -> None:
    nested = group / "pod"
    nested.mkdir()
    one, two = spaces(), spaces()
    wanted = clients(one)
    other = clients(one)
    elsewhere = clients(two, nested)
    moved = clients(two)
    result = destroy_udp(group, {wanted.cookie: V4, elsewhere.cookie: V4, moved.cookie: (V4[0], 4243), 1 << 63: V4})
    assert (result.sockets, result.namespaces) == (2, 3)
    assert wanted.goes_on() == elsewhere.goes_on() == ABORTED
    assert other.goes_on() == moved.goes_on() == UNHARMED


def test_processes_outside_the_cgroup_are_left_alone(spaces: Callable[[], str], clients: Clients, group: Path) -> None:
    inner, outer = group / "inner", group / "outer"
    inner.mkdir()
    outer.mkdir()
    client = clients(spaces(), outer)
    result = destroy_udp(inner, {client.cookie: V4})
    assert (result.sockets, result.namespaces) == (0, 1)
    assert client.goes_on() == UNHARMED


def test_nothing_to_do(group: Path) -> None:
    result = destroy_udp(group, {})
    assert (result.sockets, result.namespaces, result.skipped) == (0, 0, {})


def test_the_callers_namespace_is_kept(spaces: Callable[[], str], clients: Clients, group: Path) -> None:
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    destroy_udp(group, {clients(spaces()).cookie: V4})
    assert Path("/proc/thread-self/ns/net").stat().st_ino == here


def test_without_the_capability_it_is_skipped_and_said(
    spaces: Callable[[], str], clients: Clients, group: Path
) -> None:
    client = clients(spaces())
    code = f"""
from pathlib import Path
from bpfproxy.datapath.sockdestroy import destroy_udp
print(destroy_udp(Path({str(group)!r}), {{{client.cookie}: {V4!r}}}))
"""
    command = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Destroyed(sockets=0, namespaces=1, skipped=Counter({" in result.stdout
    assert "CAP_SYS_" in result.stdout
    assert client.goes_on() == UNHARMED
