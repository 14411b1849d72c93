"""CHECKSUM_PARTIAL: a local sender leaves the checksum to the device, and between namespaces no device computes it. tc
translates the part that is there, so that whoever completes it comes to the right one.

Frames have a `struct virtio_net_hdr` in front, by which packet sockets say what a checksum still lacks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from bpfproxy.datapath.device import Hook
from bpfproxy.model.service import Protocol
from tests.packet import packets as pk
from tests.packet.datapath import CLIENT, NODE, POD, REMOTE_POD, VIP, Datapath, Service, backend, frontend
from tests.packet.packets import frame, same
from tests.packet.test_flows import ends
from tests.packet.test_forward import families
from tests.packet.test_icmp import translated
from tests.packet.test_on_devices import Wire, is_of

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_HEADER: Final = struct.Struct("=BBHHHH")
"""Flags, kind of segmentation, length of headers, size of segments, start of what is summed, place of the sum in it."""
_NEEDS_CHECKSUM: Final = 1
_CHECKSUM_AT: Final = {Protocol.TCP: 16, Protocol.UDP: 6}


class Unsummed:
    """The other end of a device; frames leave and arrive without their checksum."""

    def __init__(self, dp: Datapath, device: str, protocol: Protocol, family: int) -> None:
        self._wire = Wire(dp, device)
        self._wire.socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._protocol, self._start = protocol, 34 if family == 4 else 54
        self._sum_at = self._start + _CHECKSUM_AT[protocol]

    def __enter__(self) -> Unsummed:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.__exit__()

    def send(self, raw: bytes) -> None:
        """The frame with the sum of the pseudo header alone in the place of its checksum."""
        addresses = raw[26:34] if self._start == 34 else raw[22:54]
        pseudo = addresses + struct.pack("!II", len(raw) - self._start, self._protocol)
        header = _HEADER.pack(_NEEDS_CHECKSUM, 0, 0, 0, self._start, self._sum_at - self._start)
        self._wire.send(header + self._with_sum(raw, _sum(pseudo)))

    def receive(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The next frame that fits, completed as a device does it."""
        found = self._wire.receive(lambda raw: wanted(raw[_HEADER.size :]))
        flags, _, _, _, start, place = _HEADER.unpack_from(found)
        assert flags & _NEEDS_CHECKSUM
        assert (start, start + place) == (self._start, self._sum_at)
        raw = found[_HEADER.size :]
        return self._with_sum(raw, ~_sum(raw[start:]) & 0xFFFF)

    def _with_sum(self, raw: bytes, value: int) -> bytes:
        return raw[: self._sum_at] + value.to_bytes(2) + raw[self._sum_at + 2 :]


def _sum(data: bytes) -> int:
    """One's complement sum; a number modulo 0xffff is that of its 16-bit words."""
    return int.from_bytes(data + bytes(len(data) % 2)) % 0xFFFF


@families
@translated
def test_to_another_node_and_back(
    dp: Datapath, attach: Callable[[Hook, str, str], None], family: int, protocol: Protocol
) -> None:
    client, vip, remote = (CLIENT[family], 40000), (VIP[family], 80), (REMOTE_POD[family], 8080)
    dp.serve(Service(frontend(*vip, protocol), (backend(*remote, protocol, local=False),)))
    attach(Hook.TC_IN, "up0", "bp_tc_in")
    with Unsummed(dp, "up1", protocol, family) as wire:
        for flags in ("S", "A"):
            wire.send(frame(protocol, client, vip, flags=flags))
            found = wire.receive(is_of(protocol, remote[0]))
            node, _ = ends(found)
            assert node[0] == NODE[family]
            same(found, frame(protocol, node, remote, flags=flags, hops=63, macs=(pk.UP_MAC, pk.REMOTE_MAC)))
            wire.send(frame(protocol, remote, node, flags="SA", macs=(pk.REMOTE_MAC, pk.UP_MAC)))
            back = wire.receive(is_of(protocol, client[0]))
            same(back, frame(protocol, vip, client, flags="SA", hops=63, macs=(pk.UP_MAC, pk.ROUTER_MAC)))


@families
@translated
def test_to_a_pod_of_this_node_and_back(
    dp: Datapath, attach: Callable[[Hook, str, str], None], family: int, protocol: Protocol
) -> None:
    client, vip, pod = (CLIENT[family], 40000), (VIP[family], 80), (POD[family], 8080)
    dp.serve(Service(frontend(*vip, protocol), (backend(*pod, protocol),)))
    attach(Hook.TC_IN, "up0", "bp_tc_in")
    attach(Hook.TC_OUT, "up0", "bp_tc_out")
    with Unsummed(dp, "up1", protocol, family) as outside, Unsummed(dp, "pod1", protocol, family) as inside:
        for flags in ("S", "A"):
            outside.send(frame(protocol, client, vip, flags=flags))
            found = inside.receive(is_of(protocol, pod[0]))
            same(found, frame(protocol, client, pod, flags=flags, hops=63, macs=(pk.POD_GATEWAY_MAC, pk.POD_MAC)))
            inside.send(frame(protocol, pod, client, flags="SA", macs=(pk.POD_MAC, pk.POD_GATEWAY_MAC)))
            back = outside.receive(is_of(protocol, client[0]))
            same(back, frame(protocol, vip, client, flags="SA", hops=63, macs=(pk.UP_MAC, pk.ROUTER_MAC)))
