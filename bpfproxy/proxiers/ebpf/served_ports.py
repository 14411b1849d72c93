"""The map served_ports: by it programs pass most packets on that are none of ours, without a look at any table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from bpfproxy.datapath import abi
from bpfproxy.model.frontend import Backend, Frontend
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ebpf.snapshot import Maps

ROWS: Final = abi.constant("SERVED_ROWS")
_BITS: Final = 64
_FIRST: Final = {Protocol.TCP: 0, Protocol.UDP: ROWS, Protocol.SCTP: 2 * ROWS}


class ServedPorts:
    """Counts who is at a port, and keeps its bit set for as long as somebody is. Starts from what the tables hold."""

    def __init__(self, maps: Maps, holders: Iterable[Frontend | Backend]) -> None:
        self._words = maps["served_ports"].mmap().cast("Q")
        self._holders = Counter((holder.protocol, holder.port) for holder in holders)
        words = [0] * len(self._words)
        for protocol, port in self._holders:
            words[_FIRST[protocol] + port // _BITS] |= 1 << port % _BITS
        for index, word in enumerate(words):  # no bit that stays is ever 0
            self._words[index] = word

    def add(self, holder: Frontend | Backend) -> None:
        """Before the row by which it is found."""
        place = (holder.protocol, holder.port)
        self._holders[place] += 1
        self._words[_FIRST[holder.protocol] + holder.port // _BITS] |= 1 << holder.port % _BITS

    def remove(self, holder: Frontend | Backend) -> None:
        """After the row is gone. Flows that are known go on."""
        place = (holder.protocol, holder.port)
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self._words[_FIRST[holder.protocol] + holder.port // _BITS] &= ~(1 << holder.port % _BITS)
