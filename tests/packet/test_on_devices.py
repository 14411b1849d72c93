"""What test runs cannot show: XDP and tc on one device, devices without a link layer, VLAN tags beside the packet."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from bpfproxy.datapath.device import Hook
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.corpus import SILENT_POD
from tests.packet.datapath import CLIENT, NODE, POD, REMOTE_POD, VIP, Datapath, Service, backend, frontend
from tests.packet.packets import Ether, frame, same
from tests.packet.test_flows import ends
from tests.packet.test_forward import families, protocols

DEADLINE = 10.0
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000


class Wire:
    """The other end of a device: sends frames, and waits for those that fit."""

    def __init__(self, dp: Datapath, device: str) -> None:
        with dp.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.socket.bind((device, 0))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, raw: bytes) -> None:
        self.socket.send(raw)

    def receive(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The next frame that the node has sent and that is wanted."""
        deadline = time.monotonic() + DEADLINE
        while (left := deadline - time.monotonic()) > 0:
            if readable(self.socket.fileno(), left):
                raw, (_, _, kind, *_) = self.socket.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING and wanted(raw):
                    return raw
        raise AssertionError("nothing came")


def readable(fd: int, seconds: float) -> bool:
    """Wait until there is something to read. (select() knows the first 1,024 descriptors of a process alone.)"""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def is_of(protocol: Protocol, address: str) -> Callable[[bytes], bool]:
    """Packets of a protocol to an address."""

    def wanted(raw: bytes) -> bool:
        ip = Ether(raw).payload
        return getattr(ip, "dst", "") == address and int(protocol) in (getattr(ip, "proto", 0), getattr(ip, "nh", 0))

    return wanted


@families
@protocols
def test_tc_takes_what_xdp_leaves(
    dp: Datapath, attach: Callable[[Hook, str, str], None], family: int, protocol: Protocol
) -> None:
    """A neighbour that has to be asked for: the kernel does that, and the packet is not lost."""
    silent = (SILENT_POD[family], 8080)
    dp.serve(Service(frontend(VIP[family], 80, protocol), (backend(*silent, protocol, local=False),)))
    attach(Hook.XDP, "up0", "bp_xdp")
    attach(Hook.TC_IN, "up0", "bp_tc_in_left")
    mac = "02:00:00:00:09:09"
    with Wire(dp, "up1") as wire:
        wire.send(frame(protocol, (CLIENT[family], 40000), (VIP[family], 80)))
        asks = 0x0806 if family == 4 else 0x86DD
        wire.receive(lambda raw: int.from_bytes(raw[12:14]) == asks and socket.inet_pton(
            socket.AF_INET if family == 4 else socket.AF_INET6, silent[0]) in raw[14:])  # fmt: skip
        subprocess.run(
            ["ip", "-n", dp.namespace, "neigh", "replace", silent[0], "lladdr", mac, "dev", "up0", "nud", "permanent"],
            check=True,
        )
        try:
            found = wire.receive(is_of(protocol, silent[0]))
        finally:
            subprocess.run(["ip", "-n", dp.namespace, "neigh", "del", silent[0], "dev", "up0"], check=True)
    node, _ = ends(found)
    same(found, frame(protocol, node, silent, hops=63, macs=(pk.UP_MAC, mac)))
    counted = dp.counted()
    assert (counted["XDP.NO_NEIGHBOUR"], counted["TC_IN.TRANSLATED"]) == (1, 1)


@families
@pytest.mark.parametrize("vlan", [0, 10], ids=["priority", "VLAN"])
def test_tags_beside_the_packet(dp: Datapath, attach: Callable[[Hook, str, str], None], family: int, vlan: int) -> None:
    """tc forwards what has a mere priority, without it; a VLAN's packets are its device's."""
    remote = (REMOTE_POD[family], 8080)
    dp.serve(Service(frontend(VIP[family], 80), (backend(*remote, local=False),)))
    attach(Hook.TC_IN, "up0", "bp_tc_in")
    plain = frame(Protocol.TCP, (CLIENT[family], 40000), (VIP[family], 80))
    with Wire(dp, "up1") as wire:
        wire.send(plain[:12] + bytes.fromhex("8100") + (3 << 13 | vlan).to_bytes(2) + plain[12:])
        if vlan:
            wire.send(plain)
        found = wire.receive(is_of(Protocol.TCP, remote[0]))
    node, _ = ends(found)
    same(found, frame(Protocol.TCP, node, remote, hops=63, macs=(pk.UP_MAC, pk.REMOTE_MAC)))
    counted = dp.counted()
    assert (counted.get("TC_IN.TAGGED", 0), counted["TC_IN.TRANSLATED"]) == (1 if vlan else 0, 1)


@pytest.fixture
def tun(dp: Datapath) -> Iterator[int]:
    """tun0, by which CLIENT's network is reached: packets begin with the IP header. Its other end is the descriptor."""
    with dp.inside():  # the device belongs to the namespace in which this is opened
        fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        with dp.inside():
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
        batch = "link set tun0 up\nroute add 203.0.113.0/24 dev tun0\nroute add 2001:db8:99::/64 dev tun0\n"
        subprocess.run(["ip", "-n", dp.namespace, "-batch", "-"], input=batch.encode(), check=True)
        yield fd
    finally:
        os.close(fd)


def read_packet(fd: int, wanted: Callable[[bytes], bool]) -> bytes:
    """The next packet that tun0 sends and that is wanted, without a link layer."""
    deadline = time.monotonic() + DEADLINE
    while (left := deadline - time.monotonic()) > 0:
        if readable(fd, left):
            raw = os.read(fd, 65536)
            if wanted(bytes(12) + (b"\x08\x00" if raw[0] >> 4 == 4 else b"\x86\xdd") + raw):
                return raw
    raise AssertionError("nothing came")


FAR = {4: "203.0.113.7", 6: "2001:db8:99::7"}


@families
@protocols
def test_a_client_behind_a_device_without_a_link_layer(
    dp: Datapath, tun: int, attach: Callable[[Hook, str, str], None], family: int, protocol: Protocol
) -> None:
    """To another node by a device that has one, and back; what is refused, too."""
    client, vip, remote = (FAR[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    dp.serve(
        Service(frontend(*vip, protocol), (backend(*remote, protocol, local=False),)),
        Service(frontend(VIP[family], 81, protocol), (), name="empty"),
    )
    attach(Hook.TC_IN, "tun0", "bp_tc_in_l3")
    attach(Hook.TC_OUT, "tun0", "bp_tc_out_l3")
    attach(Hook.TC_IN, "up0", "bp_tc_in")
    with Wire(dp, "up1") as wire:
        for flags in ("S", "A"):
            os.write(tun, frame(protocol, client, vip, flags=flags)[14:])
            found = wire.receive(is_of(protocol, remote[0]))
            node, _ = ends(found)
            assert node[0] == NODE[family]
            same(found, frame(protocol, node, remote, flags=flags, hops=63, macs=(pk.UP_MAC, pk.REMOTE_MAC)))
            wire.send(frame(protocol, remote, node, flags="SA", macs=(pk.REMOTE_MAC, pk.UP_MAC)))
            back = read_packet(tun, is_of(protocol, client[0]))
            same(bytes(14) + back, bytes(14) + frame(protocol, vip, client, flags="SA", hops=63)[14:])
    os.write(tun, frame(protocol, client, (VIP[family], 81))[14:])
    refused = read_packet(tun, lambda raw: raw[23 if family == 4 else 20] in (1, 58) and raw[34:36] != b"\x85\x00")
    assert refused[20 if family == 4 else 40] == (3 if family == 4 else 1)
    assert dp.counted()["TC_IN.NO_BACKEND"] == 1


@families
@protocols
def test_a_pod_of_this_node_answers_by_a_device_without_a_link_layer(
    dp: Datapath, tun: int, attach: Callable[[Hook, str, str], None], family: int, protocol: Protocol
) -> None:
    client, vip, pod = (FAR[family], 40000), (VIP[family], 80), (POD[family], 8080)
    dp.serve(Service(frontend(*vip, protocol), (backend(*pod, protocol),)))
    attach(Hook.TC_IN, "tun0", "bp_tc_in_l3")
    attach(Hook.TC_OUT, "tun0", "bp_tc_out_l3")
    with Wire(dp, "pod1") as wire:
        os.write(tun, frame(protocol, client, vip)[14:])
        found = wire.receive(is_of(protocol, pod[0]))
        same(found, frame(protocol, client, pod, hops=63, macs=(pk.POD_GATEWAY_MAC, pk.POD_MAC)))
        wire.send(frame(protocol, pod, client, flags="SA", macs=(pk.POD_MAC, pk.POD_GATEWAY_MAC)))
        back = read_packet(tun, is_of(protocol, client[0]))
        same(bytes(14) + back, bytes(14) + frame(protocol, vip, client, flags="SA", hops=63)[14:])
