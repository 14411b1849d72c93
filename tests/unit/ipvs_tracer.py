"""The way of a connection's first packet through a node that has virtual servers: where IPVS takes it up, and where it
puts it down again.

The hooks of the kernel are, in LOCAL_IN: mangle, filter, IPVS; in LOCAL_OUT: mangle, nat, IPVS, filter. What IPVS has
given another destination is sent by LOCAL_OUT, once more if it was there already, unless it stays on the node. There
NAT is settled and IPVS takes no notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bpfproxy.model.address import format_address, parse_address
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ipvs.rows import ServerKey
from tests.unit.lab_traces import Packet
from tests.unit.simkernel import SimKernel
from tests.unit.tracer import Tracer


@dataclass(frozen=True, kw_only=True)
class IpvsTracer(Tracer):
    """Over the virtual servers of a kernel, of which it has its ipsets and some of its addresses, too."""

    kernel: SimKernel

    def _deliver(self, packet: Packet) -> Iterator[Packet]:
        for one in self._scheduled(packet):
            if one.verdict != "ACCEPT" or self.is_local(one.to[0]):
                yield one
            else:
                yield from self._forward(one)

    def _send(self, packet: Packet) -> Iterator[Packet]:
        for one in self._scheduled(packet):
            if one.verdict != "ACCEPT":
                yield one
            elif not one.translated or self.is_local(one.to[0]):
                yield from super()._send(one)
            else:
                yield from self._forward(one)

    def _forward(self, packet: Packet) -> Iterator[Packet]:
        yield from self._then(packet, [("mangle", "OUTPUT"), ("filter", "OUTPUT")], self._leave)

    def _scheduled(self, packet: Packet) -> Iterator[Packet]:
        """What it may become at the virtual server that it is for, if there is one."""
        address, port = packet.to
        server = ServerKey(parse_address(address), port, Protocol[packet.protocol.upper()])
        if server not in self.kernel.servers:
            yield packet
            return
        reals = [real for real in self.kernel.reals(server) if real.weight]
        if not reals:
            yield replace(packet, verdict="REJECT")  # an ICMP error: port unreachable
        for real in reals:
            yield replace(packet, to=(format_address(real.address), real.port), translated=True)
