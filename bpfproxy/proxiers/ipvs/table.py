"""Virtual and real servers as rows, with what belongs to them: VIPs on the dummy device, and entries of three ipsets
that several Services may have in common.

TCP connections outlive their servers. A real server that goes gets weight 0, a virtual one retires: it takes no new
connections and is no row any more, but stays with its VIP until the last connection has ended. The kernel would drop
them otherwise.

The kernel's virtual servers bear no mark of their owner. Ours are those that our ipsets speak of (`EntryTable.claims`),
and nothing is claimed where somebody else's virtual server is already.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from bpfproxy.errors import DatapathError
from bpfproxy.model.address import ANY4, ANY6, Address, Network, contains
from bpfproxy.model.service import Protocol
from bpfproxy.proxiers.ipvs.addresses import Bound, VipDevice
from bpfproxy.proxiers.ipvs.entries import EntryTable, claimed, loop_entry, node_entry, retired_entry, vip_entry
from bpfproxy.proxiers.ipvs.rows import EntryKey, RealKey, RealRow, ServerKey, ServerRow
from bpfproxy.proxiers.ipvs.servers import NoServerError, Real, ServerExistsError, Servers
from bpfproxy.proxiers.ipvs.sets import RETIRED

Place = tuple[Address, int]
"""Address and port of a real server."""


class ServerTable:
    """Methods raise OSError and DatapathError. Virtual servers at addresses in `spared` are never removed. Without
    `graceful` nothing waits for connections."""

    def __init__(
        self,
        servers: Servers,
        device: VipDevice,
        entries: EntryTable,
        spared: tuple[Network, ...] = (),
        *,
        graceful: bool = True,
    ) -> None:
        self._servers = servers
        self._device = device
        self._entries = entries
        self._spared = spared
        self._graceful = graceful
        self.nodes: set[Address] = set()
        """On which NodePorts answer."""
        self._rows: dict[ServerKey, ServerRow] = {}
        self._reals: defaultdict[ServerKey, dict[Place, RealRow]] = defaultdict(dict)
        self._at: defaultdict[ServerKey, set[Address]] = defaultdict(set)
        """Where each virtual server is in the kernel: that of a NodePort at several addresses."""
        self._foreign: set[ServerKey] = set()
        """In the kernel, and not ours."""
        self._leaving: set[tuple[ServerKey, Place]] = set()
        """Real servers that went, and still have connections."""
        self._retired: set[ServerKey] = set()
        """Virtual servers that went, all of whose real ones are in `_leaving`."""
        self._loops: Counter[EntryKey] = Counter()
        """How many real servers need an entry of KUBE-LOOP-BACK."""
        self._bound = Bound(frozenset(), frozenset())

    # ---- reading --------------------------------------------------------------------------------------------------

    def read(self) -> Iterator[tuple[ServerKey | RealKey, ServerRow | RealRow]]:
        """All rows. The entries have been read before, and `nodes` is up to date."""
        self.look_at_addresses()
        kernel = self._assign(dict(self._servers.all()))
        rows, reals, loops = self._rows, self._reals, self._loops
        self._rows, self._reals, self._loops = {}, defaultdict(dict), Counter()
        for key, at in kernel.items():
            found = set(at.values())
            row = min(found, key=repr)
            complete = len(found) == 1 and at.keys() == self._wanted(key, kernel) and self._has_vip(key)
            self._rows[key] = ServerRow(row.scheduler, row.affinity_timeout, complete)
            yield key, self._rows[key]
            known = reals.get(key, {}).items()
            yield from self._read_reals(
                key, {place for place, one in known if not one.local and loop_entry(*place, key.protocol) in loops}
            )
        # A NodePort on a node without an address for it is nowhere in the kernel.
        for key in self._entries.claims() & rows.keys() - kernel.keys():
            if not self._wanted(key, kernel):
                self._rows[key] = rows[key]
                yield key, rows[key]
                for place, real in reals[key].items():
                    self._hold(key, place, real)
                    yield RealKey(key, *place), real

    def look_at_addresses(self) -> None:
        """Learn where addresses are, before something is written."""
        self._bound = self._device.bound()

    def unused_vips(self) -> set[Address]:
        """On the dummy device, or said to be, without a virtual server."""
        return {address for address in self._bound.ours if not self._needed(address)}

    def in_use(self, key: EntryKey) -> bool:
        """Whether a real or virtual server needs an entry of a set that they have in common."""
        if key.set == RETIRED:
            return claimed(key) in self._retired
        return key in self._loops or (key == vip_entry(key.address) and self._needed(key.address))

    def _needed(self, vip: Address) -> bool:
        return any(key.address == vip for key in self._rows) or any(at.address == vip for at in self._retired)

    def _assign(self, kernel: dict[ServerKey, ServerRow]) -> dict[ServerKey, dict[Address, ServerRow]]:
        """Our virtual servers among those in the kernel, with where they are."""
        claims = self._entries.claims()
        known = {key.at(address): key for key, at in self._at.items() for address in at}
        ours: defaultdict[ServerKey, dict[Address, ServerRow]] = defaultdict(dict)
        self._foreign = set()
        self._retired &= kernel.keys()
        for key, row in kernel.items():
            on_node = _on_node(key)
            if key in self._retired:
                continue
            if key in claims:
                ours[key][key.address] = row
            elif (on_node in claims and key.address in self.nodes) or known.get(key) == on_node:
                ours[on_node][key.address] = row
            elif key in known:
                ours[key][key.address] = row
            else:
                self._foreign.add(key)
        self._at.clear()
        for key, at in ours.items():
            self._at[key] = set(at)
        self._leaving = {(key, place) for key, place in self._leaving if key in kernel}
        return ours

    def _wanted(self, key: ServerKey, others: Collection[ServerKey]) -> set[Address]:
        """Where a virtual server should be. At an address of the node, one that is meant for it goes before a
        NodePort."""
        if not key.on_node:
            return {key.address}
        return {address for address in self.nodes if len(address) == len(key.address) and key.at(address) not in others}

    def _has_vip(self, key: ServerKey) -> bool:
        """Whether a virtual server's address is on the dummy device, unless it is on another."""
        if key.on_node:
            return True
        wanted = key.address not in self._bound.others
        return (key.address in self._bound.ours) == wanted == self._entries.has(vip_entry(key.address))

    def _read_reals(self, key: ServerKey, elsewhere: Collection[Place]) -> Iterator[tuple[RealKey, RealRow]]:
        """`elsewhere`: not local, whose entry of KUBE-LOOP-BACK is there because another Service says that they are."""
        found: defaultdict[Place, list[int]] = defaultdict(list)
        for address in self._at[key]:
            at = key.at(address)
            for real in self._servers.reals(at):
                if real.weight or (at, _place(real)) not in self._leaving:
                    found[_place(real)].append(real.weight)
        for (address, port), weights in found.items():
            loop = loop_entry(address, port, key.protocol)
            complete = len(weights) == len(self._at[key]) and len(set(weights)) == 1
            row = RealRow(weights[0], self._entries.has(loop) and (address, port) not in elsewhere, complete)
            self._hold(key, (address, port), row)
            yield RealKey(key, address, port), row

    # ---- virtual servers ------------------------------------------------------------------------------------------

    def claim(self, key: EntryKey) -> None:
        """Asked before an entry is written. Raises DatapathError if it would claim somebody else's virtual server."""
        server = claimed(key)
        if server is not None:
            for address in self._wanted(server, ()):
                self._refuse_foreign(server.at(address))

    def _refuse_foreign(self, key: ServerKey) -> None:
        if key in self._foreign:
            raise DatapathError(f"there is a virtual server {key} that is not ours")

    def write_server(self, key: ServerKey, row: ServerRow) -> None:
        """See to it that a virtual server is where it should be, with all of its real servers."""
        at = self._at[key]
        wanted = self._wanted(key, self._rows)
        for address in sorted(at - wanted):
            self._delete(key.at(address))
            at.discard(address)
        if not key.on_node:
            self._displace(key)
        self._rows[key] = row  # it is ours from now on, even if not all of it succeeds
        for address in sorted(wanted):
            self._put(key, address, row)
        if not key.on_node:
            self._bind(key.address)

    def delete_server(self, key: ServerKey) -> None:
        """Remove a virtual server with its real ones, or let it retire."""
        spared = contains(self._spared, key.address)
        for address in sorted(self._at.pop(key, ())):
            if not spared:
                self._retire(key.at(address))
        self._rows.pop(key, None)
        for place in list(self._reals[key]):
            self._hold(key, place, None)
            self._loop(key, place)
        del self._reals[key]
        if key.on_node:
            return
        if not self._needed(key.address):
            self.unbind(key.address)
        if (on_node := _on_node(key)) in self._rows:  # it had this one's place
            self.write_server(on_node, self._rows[on_node])

    def _put(self, key: ServerKey, address: Address, row: ServerRow) -> None:
        at = key.at(address)
        if address in self._at[key]:
            try:
                self._servers.set(at, row)
                return
            except NoServerError:  # somebody has removed it
                self._at[key].discard(address)
        if at in self._retired:
            self._servers.set(at, row)
            self._recall(at)
        else:
            self._add(at, row)
        self._at[key].add(address)
        for place, real in self._reals[key].items():
            self._put_real(at, place, real.weight)

    def _add(self, at: ServerKey, row: ServerRow) -> None:
        self._refuse_foreign(at)
        try:
            self._servers.add(at, row)
        except ServerExistsError:
            self._foreign.add(at)
            self._refuse_foreign(at)

    def _displace(self, key: ServerKey) -> None:
        """Take a NodePort's virtual server from an address of the node that `key` is meant for."""
        at = self._at.get(_on_node(key), set())
        if key.address in at:
            self._delete(key)
            at.discard(key.address)

    def _delete(self, at: ServerKey) -> None:
        self._servers.delete(at)
        self._leaving = {(other, place) for other, place in self._leaving if other != at}

    def _retire(self, at: ServerKey) -> None:
        """Remove a virtual server, once it has no connections."""
        for real in self._reals_at(at):
            self._retire_real(at, real)
        if at not in self._at_leaving():
            self._delete(at)
            return
        self._entries.write(retired_entry(at), ())  # so that the next agent knows whose it is
        self._retired.add(at)

    def _recall(self, at: ServerKey) -> None:
        """It is no longer retired: in use again, or removed."""
        self._retired.discard(at)
        self._entries.delete(retired_entry(at))

    def _at_leaving(self) -> set[ServerKey]:
        return {at for at, _ in self._leaving}

    # ---- real servers ---------------------------------------------------------------------------------------------

    def write_real(self, key: RealKey, row: RealRow) -> None:
        """See to it that a real server is there, and has its weight."""
        if key.server not in self._rows:
            raise DatapathError(f"there is no virtual server {key.server}")
        place = (key.address, key.port)
        for address in sorted(self._at[key.server]):
            self._put_real(key.server.at(address), place, row.weight)
        self._hold(key.server, place, row)
        self._loop(key.server, place)

    def delete_real(self, key: RealKey) -> None:
        """Remove a real server, over TCP once its connections have run out. Over other protocols at once: their next
        packet goes to another one."""
        place = (key.address, key.port)
        for address in sorted(self._at.get(key.server, ())):
            at = key.server.at(address)
            for real in self._reals_at(at):
                if _place(real) == place:
                    self._retire_real(at, real)
        self._hold(key.server, place, None)
        self._loop(key.server, place)

    def _put_real(self, at: ServerKey, place: Place, weight: int) -> None:
        self._servers.put_real(at, *place, weight)
        self._leaving.discard((at, place))

    def _retire_real(self, at: ServerKey, real: Real) -> None:
        place = _place(real)
        if self._graceful and at.protocol is Protocol.TCP and real.connections:
            self._servers.put_real(at, *place, 0)
            self._leaving.add((at, place))
        else:
            self._servers.delete_real(at, *place)
            self._leaving.discard((at, place))

    def forget_idle(self) -> int:
        """Remove the servers that went and have no connections any more; returns how many real ones."""
        busy = {(at, _place(real)) for at in self._at_leaving() for real in self._reals_at(at) if real.connections}
        idle = self._leaving - busy
        for at, place in idle:
            self._servers.delete_real(at, *place)
        self._leaving &= busy
        for at in self._retired - self._at_leaving():
            self._servers.delete(at)
            self._recall(at)
            if not self._needed(at.address):
                self.unbind(at.address)
        return len(idle)

    def places(self, key: ServerKey) -> frozenset[Place]:
        """The real servers behind a virtual one."""
        return frozenset(self._reals.get(key, ()))

    def connections(self) -> int:
        """Of all our virtual servers."""
        ours = [key.at(address) for key, at in self._at.items() for address in at]
        return sum(real.connections for at in (*ours, *self._retired) for real in self._reals_at(at))

    def _reals_at(self, at: ServerKey) -> list[Real]:
        try:
            return self._servers.reals(at)
        except NoServerError:  # somebody has removed it
            return []

    def _hold(self, key: ServerKey, place: Place, row: RealRow | None) -> None:
        """Remember a real server, or (None) forget it; count who needs its entry of KUBE-LOOP-BACK."""
        reals, loop = self._reals[key], loop_entry(*place, key.protocol)
        former = reals.pop(place, None)
        if former is not None and former.local:
            self._loops -= Counter([loop])
        if row is not None:
            reals[place] = row
            if row.local:
                self._loops[loop] += 1

    def _loop(self, key: ServerKey, place: Place) -> None:
        """Bring that entry into line."""
        loop = loop_entry(*place, key.protocol)
        if loop in self._loops:
            self._entries.write(loop, ())
        elif self._entries.has(loop):
            self._entries.delete(loop)

    # ---- addresses ------------------------------------------------------------------------------------------------

    def add_node(self, address: Address) -> None:
        """NodePorts answer on `address` from now on."""
        for key in self._rows:
            if key.on_node and key.at(address) not in self._rows:
                self._refuse_foreign(key.at(address))
        self._entries.write(node_entry(address), ())
        self.nodes.add(address)
        self._spread()

    def remove_node(self, address: Address) -> None:
        """NodePorts do not answer on `address` any more."""
        self.nodes.discard(address)
        self._spread()
        self._entries.delete(node_entry(address))

    def _spread(self) -> None:
        for entry in self._entries.spread_keys():
            self._entries.write(entry, self.nodes)
        for key, row in self._rows.items():
            if key.on_node:
                self.write_server(key, row)

    def _bind(self, address: Address) -> None:
        if address in self._bound.others:
            self.unbind(address)
            return
        self._device.bind(address)
        self._entries.write(vip_entry(address), ())

    def unbind(self, address: Address) -> None:
        """Take a VIP from the node."""
        self._entries.delete(vip_entry(address))
        self._device.unbind(address)


def _on_node(key: ServerKey) -> ServerKey:
    """The NodePort of the same port and protocol."""
    return key.at(ANY4 if key.family == 4 else ANY6)


def _place(real: Real) -> Place:
    return real.address, real.port
