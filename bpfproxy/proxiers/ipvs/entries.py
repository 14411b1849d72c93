"""Entries of ipsets as rows. What a set says of NodePorts by address is one row for all addresses of the node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from bpfproxy.model.address import ANY4, ANY6, Address, Family
from bpfproxy.model.service import Protocol
from bpfproxy.netfilter.ipset import Content, Entry, IpSets
from bpfproxy.proxiers.ipvs import sets
from bpfproxy.proxiers.ipvs.rows import EntryKey, ServerKey

_ANY: Final[dict[Family, Address]] = {4: ANY4, 6: ANY6}
_SPREAD: Final = {
    sets.node_port(Protocol.SCTP),
    sets.node_port_local(Protocol.SCTP),
    sets.NO_LOCAL_NODE_PORT,
}
"""Sets of NodePorts that have an entry for each address of the node."""
_NODE_PORT_SET: Final = {protocol: sets.node_port(protocol) for protocol in Protocol}
_PROTOCOL: Final = {
    name: protocol for protocol in Protocol for name in (sets.node_port(protocol), sets.node_port_local(protocol))
}
"""Of sets whose entries do not say it."""


class EntryTable:
    """The entries of our sets. Methods raise OSError."""

    def __init__(self, kernel: IpSets) -> None:
        self._kernel = kernel
        self._places: dict[EntryKey, set[Address]] = {}
        """Where each is that has an address; of one for the whole node, several."""

    def read(
        self, contents: Mapping[tuple[Family, str], Content], nodes: Collection[Address]
    ) -> Iterator[tuple[EntryKey, bool]]:
        """The rows of all entries of our sets, whose `contents` are by family and name; False: one is not at all of
        the addresses `nodes`, or at others."""
        former = self.spread_keys()
        self._places = {}
        spread: defaultdict[EntryKey, set[Address]] = defaultdict(set)
        for (family, name), content in contents.items():
            for entry in content.entries:
                key = _key(family, name, entry)
                if name in _SPREAD:
                    spread[_at(key, _ANY[family])].add(entry.address)
                else:
                    self._places[key] = {entry.address}
                    yield key, True
        for key in former:
            # On a node without an address of the family it is nowhere in the kernel.
            if not any(len(address) == len(key.address) for address in nodes):
                spread[key] |= set()
        for key, places in spread.items():
            self._places[key] = places
            yield key, places == {address for address in nodes if len(address) == len(key.address)}

    def spread_keys(self) -> list[EntryKey]:
        """Those that stand for all addresses of the node."""
        return [key for key in self._places if key.set in _SPREAD]

    def write(self, key: EntryKey, nodes: Collection[Address]) -> None:
        """See to it that an entry is where it should be, and nowhere else."""
        wanted = {key.address}
        if key.set in _SPREAD:
            wanted = {address for address in nodes if len(address) == len(key.address)}
        places = self._places.setdefault(key, set())
        for address in wanted - places:
            self._change(_at(key, address), add=True)
            places.add(address)
        for address in places - wanted:
            self._change(_at(key, address), add=False)
            places.discard(address)

    def delete(self, key: EntryKey) -> None:
        """Remove an entry from wherever it is."""
        for address in self._places.get(key, {key.address}):
            self._change(_at(key, address), add=False)
        self._places.pop(key, None)

    def has(self, key: EntryKey) -> bool:
        """Whether an entry is there."""
        return key in self._places

    def claims(self) -> set[ServerKey]:
        """The virtual servers of which our sets speak, those of NodePorts at all-zero addresses."""
        return {server for key in self._places if (server := claimed(key))}

    def _change(self, key: EntryKey, *, add: bool) -> None:
        name, type_ = sets.full_name(key.family, key.set), sets.SETS[key.set].type
        change = self._kernel.add if add else self._kernel.delete
        change(name, type_, key.family, _entry(key, type_))


def claimed(key: EntryKey) -> ServerKey | None:
    """The virtual server of which an entry says that it is ours."""
    if key.set in sets.CLAIMS:
        return ServerKey(key.address, key.port, key.protocol)
    if key.set == _NODE_PORT_SET.get(key.protocol):
        return ServerKey(_ANY[key.family], key.port, key.protocol)
    return None


def vip_entry(address: Address) -> EntryKey:
    """That of a VIP on the dummy device."""
    return EntryKey(_family(address), sets.IPVS_IPS, 0, Protocol.TCP, address)


def node_entry(address: Address) -> EntryKey:
    """That of an address of the node on which NodePorts answer."""
    return EntryKey(_family(address), sets.NODE_IPS, 0, Protocol.TCP, address)


def retired_entry(at: ServerKey) -> EntryKey:
    """That of a virtual server that stays for its connections alone."""
    return EntryKey(at.family, sets.RETIRED, at.port, at.protocol, at.address)


def loop_entry(address: Address, port: int, protocol: Protocol) -> EntryKey:
    """That of a local endpoint, which may reach itself."""
    return EntryKey(_family(address), sets.LOOP_BACK, port, protocol, address, (address, 0))


def _family(address: Address) -> Family:
    return 4 if len(address) == 4 else 6


def _at(key: EntryKey, address: Address) -> EntryKey:
    return EntryKey(key.family, key.set, key.port, key.protocol, address, key.source)


def _entry(key: EntryKey, type_: str) -> Entry:
    protocol = int(key.protocol) if type_.startswith("hash:ip,port") else 0
    source, prefix = key.source or (Address(b""), 0)
    return Entry(key.address, key.port, protocol, source, prefix)


def _key(family: Family, name: str, entry: Entry) -> EntryKey:
    protocol = Protocol(entry.protocol) if entry.protocol else _PROTOCOL.get(name, Protocol.TCP)
    source = (entry.source, entry.prefix) if entry.source else None
    return EntryKey(family, name, entry.port, protocol, entry.address, source)
