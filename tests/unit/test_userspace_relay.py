"""What the process of the userspace proxier relays, and how, on the loopback; what it makes of nonsense."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bpfproxy.lab.wait import wait_until
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import Backend, Frontend, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.proxiers.userspace import udp, wire
from bpfproxy.proxiers.userspace.budget import Budget
from bpfproxy.proxiers.userspace.choice import Affinities, Choice
from bpfproxy.proxiers.userspace.process import Process, end_all
from bpfproxy.proxiers.userspace.rows import PortalRow
from bpfproxy.proxiers.userspace.server import Server
from bpfproxy.proxiers.userspace.tcp import Half, TcpListener
from bpfproxy.proxiers.userspace.udp import UdpListener

NAME = ServicePortName(ObjectName("ns", "a"), "http", Protocol.TCP)
VIP = Frontend(parse_address("172.30.0.41"), 80, Protocol.TCP)


# ---- relaying, on the loopback -----------------------------------------------------------------------------------

Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def backend_at(port: int) -> Backend:
    return Backend(parse_address("127.0.0.1"), port, Protocol.TCP)


async def relay(budget: Budget, *backends: Backend) -> tuple[TcpListener, int]:
    """A listener before these, and its port."""
    choice = Choice(Affinities())
    choice.set(backends, 0)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    listener = TcpListener(sock, choice, budget)
    await listener.open()
    return listener, sock.getsockname()[1]


async def served(handler: Served) -> tuple[asyncio.Server, Backend]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, backend_at(server.sockets[0].getsockname()[1])


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def echo_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers when the client has said all."""
    writer.write(await reader.read())
    writer.close()


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_each_half_closes_on_its_own_and_nothing_is_left() -> None:
    async def run() -> None:
        server, backend = await served(echo_at_the_end)
        budget = Budget(10)
        listener, port = await relay(budget, backend)
        data = bytes(range(256)) * 4096
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data
            writer.close()
        await until(lambda: budget.connections == 0)
        listener.close()
        server.close()

    asyncio.run(run())


def test_a_reset_is_told_to_the_other_end() -> None:
    async def run() -> None:
        async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

        server, backend = await served(resets)
        budget = Budget(10)
        listener, port = await relay(budget, backend)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await until(lambda: budget.connections == 0)
        listener.close()
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize("slow", ["server", "client"])
def test_a_slow_reader_slows_the_other_down(slow: str) -> None:
    """What is under way is bounded by what the two kernels and one chunk hold."""

    async def run() -> None:
        go = asyncio.Event()
        sent = 0

        async def pour(writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent += 1 << 16

        async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if slow == "client":
                await pour(writer)
            else:
                await go.wait()
            writer.close()

        server, backend = await served(handler)
        budget = Budget(10)
        listener, port = await relay(budget, backend)
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        pouring = asyncio.create_task(pour(writer)) if slow == "server" else None
        last = -1
        async with asyncio.timeout(20):
            while last != sent:
                last = sent
                await asyncio.sleep(0.3)
        assert 0 < sent < 48 << 20, "buffers of four sockets"
        assert 0 < sum(half.transport.get_write_buffer_size() for half in halves() if half.transport) <= 1 << 16
        if pouring:
            pouring.cancel()
        writer.transport.abort()
        go.set()
        await until(lambda: budget.connections == 0)
        listener.close()
        server.close()

    asyncio.run(run())


def halves() -> list[Half]:
    """All connections of this process that are relayed."""
    return [one for one in gc.get_objects() if isinstance(one, Half)]


def test_a_connection_that_is_refused_is_tried_elsewhere() -> None:
    async def run() -> None:
        server, living = await served(echo_at_the_end)
        budget = Budget(100)
        listener, port = await relay(budget, backend_at(closed_port()), living, backend_at(closed_port()))
        for _ in range(12):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
        await until(lambda: budget.connections == 0)
        listener.close()
        server.close()

    asyncio.run(run())


def test_without_any_that_takes_it_the_client_is_told() -> None:
    async def run() -> None:
        budget = Budget(10)
        listener, port = await relay(budget, backend_at(closed_port()))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await until(lambda: budget.connections == 0)
        listener.close()

    asyncio.run(run())


def test_more_than_the_limit_are_turned_away() -> None:
    async def run() -> None:
        server, backend = await served(echo_at_the_end)
        budget = Budget(2)
        listener, port = await relay(budget, backend)
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await until(lambda: budget.connections == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert budget.refused == 1
        for _, one in held:
            one.close()
        await until(lambda: budget.connections == 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        listener.close()
        server.close()

    asyncio.run(run())


def test_an_answer_from_a_link_local_address_names_its_device() -> None:
    level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
    for text, device in (("fe80::1", 7), ("fd00::1", 0)):
        local = parse_address(text)
        assert udp._local([(0, 0, b""), (level, kind, local + struct.pack("=I", 7))]) == (
            level,
            kind,
            local + struct.pack("=I", device),
        )


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
def test_datagrams_of_all_sizes(family: int, size: int) -> None:
    async def run() -> None:
        loopback = "127.0.0.1" if family == 4 else "::1"
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        echo, client, front = (socket.socket(kind, socket.SOCK_DGRAM) for _ in range(3))
        for sock in (echo, client, front):
            sock.bind((loopback, 0))
            sock.setblocking(False)
        choice, budget = Choice(Affinities()), Budget(1)
        choice.set([Backend(parse_address(loopback), echo.getsockname()[1], Protocol.UDP)], 0)
        listener = UdpListener(front, choice, budget, 0.1)
        await listener.open()
        loop = asyncio.get_running_loop()
        data = bytes(size)
        async with asyncio.timeout(5):
            await loop.sock_sendto(client, data, front.getsockname())
            received, relayed = await loop.sock_recvfrom(echo, 1 << 16)
            assert received == data
            await loop.sock_sendto(echo, data, relayed)
            answer, source = await loop.sock_recvfrom(client, 1 << 16)
        assert (answer, source) == (data, front.getsockname())
        assert budget.sessions == 1
        await until(lambda: budget.sessions == 0)  # idle
        listener.close()
        for sock in (echo, client):
            sock.close()

    asyncio.run(run())


def test_a_session_ends_with_its_backend() -> None:
    async def run() -> None:
        front, client, echo = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
        front.bind(("127.0.0.1", 0))
        echo.bind(("127.0.0.1", 0))
        choice, budget = Choice(Affinities()), Budget(1)
        one, other = (Backend(parse_address("127.0.0.1"), port, Protocol.UDP) for port in (echo.getsockname()[1], 9))
        choice.set([one], 0)
        listener = UdpListener(front, choice, budget, 60)
        await listener.open()
        client.connect(front.getsockname())
        client.send(b"x")
        await until(lambda: budget.sessions == 1)
        listener.keep([one, other])
        assert budget.sessions == 1
        listener.keep([other])
        assert budget.sessions == 0
        client.send(b"x")
        await until(lambda: budget.sessions == 1)
        echo.close()
        await until(lambda: budget.sessions == 0 or client.send(b"x") < 0)  # nobody is there
        listener.close()
        client.close()

    asyncio.run(run())


# ---- the control socket ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\4abcd",
        b"\xff" * 64,
        b"\0\0\0\0",
        wire.encode({"type": "Ask", "x": [[]]}),
        wire.encode(["Put", 1]),
        b"\0",
    ],
)
def test_garbage_harms_nobody(garbage: bytes, tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "s"
        server = Server(Budget(1), 1.0)
        control = await asyncio.start_unix_server(server.serve, path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        writer.write_eof()
        assert len(await asyncio.wait_for(reader.read(), 5)) in (0, 5)
        writer.close()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(wire.encode(wire.Ask()))
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"\0\0\0\1\x90"
        writer.close()
        control.close()

    asyncio.run(run())


def test_without_descriptors_it_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing spins, nothing is lost, one line is said; when there are some again, connections are taken."""
    process = Process(tmp_path, 1000, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        server.settimeout(5)
        client.settimeout(5)
        try:
            [portal] = process.put({VIP: PortalRow(NAME, (backend_at(server.getsockname()[1]),))})
            [path] = tmp_path.glob("*.sock")
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(str(path))
                pid, _, _ = struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, limits[1]))
                client.connect(("127.0.0.1", portal.port))
                wait_until(lambda: "out of system resource" in capfd.readouterr().err, 5, "it says so")
                began = busy(pid)
                waiting = select.poll()
                waiting.register(server, select.POLLIN)
                assert waiting.poll(2000) == []
                assert busy(pid) - began < 0.2
                assert capfd.readouterr().err == ""
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            connection, _ = server.accept()
            connection.sendall(b"x")
            assert client.recv(1) == b"x"
            connection.close()
        finally:
            process.close()
            assert len(end_all(tmp_path)) == 1


def busy(pid: int) -> float:
    """Seconds of a processor that a process has had."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_process_of_another_version_serves_its_last_connection_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Process(tmp_path, 10, 1.0)
    monkeypatch.setattr(wire, "VERSION", "older")
    old = Process(tmp_path, 10, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        try:
            [portal] = old.put({VIP: PortalRow(NAME, (backend_at(server.getsockname()[1]),))})
            old.close()
            assert new.portals() == []
            with socket.create_connection(("127.0.0.1", portal.port), 5) as client:
                connection, _ = server.accept()
                new.retire_others()
                assert not new.others_drained()
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", portal.port), 5)
                connection.sendall(b"x")
                assert client.recv(1) == b"x"
                connection.close()
                assert client.recv(1) == b""
            wait_until(new.others_drained, 5, "nothing is left")
            wait_until(lambda: not (tmp_path / "older.sock").exists(), 5, "it has ended")
            assert new.portals() == []
        finally:
            new.close()
            end_all(tmp_path)
