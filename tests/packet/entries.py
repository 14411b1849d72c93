"""Whether a translation has a row that says so: asked of the maps, by what stands in the packets alone."""

from __future__ import annotations

from bpfproxy.datapath import abi
from tests.packet.checker import Dissected, quoted
from tests.packet.datapath import Datapath


class _Rows:
    """Rows of flows and tuples of one family, by slices of their bytes."""

    def __init__(self, dp: Datapath, family: int) -> None:
        self.family = family
        self.flows, self.tuples = dp.maps[f"flows{family}"], dp.maps[f"tuples{family}"]
        self.fragments = dp.maps[f"fragments{family}"]
        kind = f"struct flow{family}"
        size = 4 if family == 4 else 16
        self._at = {
            name: (slice(at, at + size), slice(port, port + 2))
            for name in ("vip", "backend", "source")
            for at, port in [(abi.ffi.offsetof(kind, name), abi.ffi.offsetof(kind, f"{name}_port"))]
        }

    def end(self, row: bytes, name: str) -> tuple[bytes, bytes]:
        """(address, port) of a row's vip, backend or source."""
        address, port = self._at[name]
        return row[address], row[port]


class Entries:
    """Looks up flows."""

    def __init__(self, dp: Datapath) -> None:
        self._rows = {family: _Rows(dp, family) for family in (4, 6)}

    def allow(self, p: Dissected, q: Dissected) -> bool:
        """Whether `p` may have become `q`."""
        inner, fresh = quoted(p), quoted(q)
        if inner is not None and fresh is not None:  # as if the quoted packet went the other way
            return self._allow(inner, *_ends(inner)[::-1], *_ends(fresh)[::-1])
        if p.later:
            rows = self._rows[p.family]
            ports = self._fragment_ports(rows, p)
            if ports is None:
                return False
            source, destination = _ends(p)
            return self._allow_addresses(rows, ports, source[0], destination[0], q)
        return self._allow(p, *_ends(p), *_ends(q))

    def _allow(
        self,
        p: Dissected,
        source: tuple[bytes, bytes],
        destination: tuple[bytes, bytes],
        new_source: tuple[bytes, bytes],
        new_destination: tuple[bytes, bytes],
    ) -> bool:
        rows = self._rows[p.family]
        for row in self._candidates(rows, p.protocol, source, destination):
            vip, backend = rows.end(row, "vip"), rows.end(row, "backend")
            forward = (vip, backend) == (destination, new_destination)
            if forward and new_source in (source, rows.end(row, "source")):
                return True
            reply = (vip, backend) == (new_source, source)
            if reply and new_destination in (destination, rows.end(row, "source")):
                return True
        return False

    def _allow_addresses(
        self, rows: _Rows, ports: tuple[int, bytes, bytes], source: bytes, destination: bytes, q: Dissected
    ) -> bool:
        """The same where only the first fragment has the ports."""
        new_source, new_destination = (end[0] for end in _ends(q))
        protocol, sport, dport = ports
        for row in self._candidates(rows, protocol, (source, sport), (destination, dport)):
            vip, backend = rows.end(row, "vip")[0], rows.end(row, "backend")[0]
            client = rows.end(row, "source")[0]
            if (vip, backend) == (destination, new_destination) and new_source in (source, client):
                return True
            if (vip, backend) == (new_source, source) and new_destination in (destination, client):
                return True
        return False

    def _candidates(
        self, rows: _Rows, protocol: int, source: tuple[bytes, bytes], destination: tuple[bytes, bytes]
    ) -> list[bytes]:
        kind = bytes([protocol])
        keys = [(rows.flows, address + port + kind + b"\0") for address, port in (source, destination)]
        both = source[0] + destination[0] + source[1] + destination[1] + kind
        keys += [(rows.tuples, both + bytes([direction, 0, 0])) for direction in (0, 1)]
        return [row for map_, key in keys if (row := map_.lookup(key)) is not None]

    def _fragment_ports(self, rows: _Rows, p: Dissected) -> tuple[int, bytes, bytes] | None:
        if p.fragment is None:
            return None
        protocol = bytes([p.protocol if p.family == 4 else 0, 0, 0, 0])
        row = rows.fragments.lookup(p.addresses + p.fragment.ljust(4, b"\0") + protocol)
        return None if row is None else (row[4], row[:2], row[2:4])


def _ends(p: Dissected) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    addresses, ports = p.addresses, p.ports
    half = len(addresses) // 2
    return (addresses[:half], ports[:2]), (addresses[half:], ports[2:])
