"""What the ipvs proxier's table needs of a kernel, over dictionaries that outlive it: virtual servers, ipsets, and the
addresses of a dummy device. The real ones need a kernel that has IPVS (tests/kernels)."""

from __future__ import annotations

from collections.abc import Iterator

from bpfproxy.model.address import Address, Family
from bpfproxy.netfilter.ipset import Content, Entry
from bpfproxy.proxiers.ipvs.addresses import Bound
from bpfproxy.proxiers.ipvs.rows import ServerKey, ServerRow
from bpfproxy.proxiers.ipvs.servers import NoServerError, Real, ServerExistsError

Place = tuple[Address, int]


class SimKernel:
    """Implements what is used of `Servers`, `IpSets` and `VipDevice`."""

    def __init__(self) -> None:
        self.servers: dict[ServerKey, ServerRow] = {}
        self.weights: dict[ServerKey, dict[Place, int]] = {}
        self.busy: set[Place] = set()
        """Real servers with connections."""
        self.sets: dict[str, Content] = {}
        self.vips: set[Address] = set()
        self.others: set[Address] = set()
        self.device = False

    # ---- Servers --------------------------------------------------------------------------------------------------

    def all_servers(self) -> Iterator[tuple[ServerKey, ServerRow]]:
        yield from list(self.servers.items())

    def add_server(self, key: ServerKey, row: ServerRow) -> None:
        if key in self.servers:
            raise ServerExistsError
        self.servers[key] = row
        self.weights[key] = {}

    def set_server(self, key: ServerKey, row: ServerRow) -> None:
        if key not in self.servers:
            raise NoServerError
        self.servers[key] = row

    def delete_server(self, key: ServerKey) -> None:
        self.servers.pop(key, None)
        self.weights.pop(key, None)

    def reals(self, key: ServerKey) -> list[Real]:
        if key not in self.servers:
            raise NoServerError
        return [Real(*place, weight, int(place in self.busy)) for place, weight in self.weights[key].items()]

    def put_real(self, key: ServerKey, address: Address, port: int, weight: int) -> None:
        if key not in self.servers:
            raise NoServerError
        self.weights[key][address, port] = weight

    def delete_real(self, key: ServerKey, address: Address, port: int) -> None:
        self.weights.get(key, {}).pop((address, port), None)

    # ---- IpSets ---------------------------------------------------------------------------------------------------

    def all_sets(self) -> dict[str, Content]:
        return self.sets

    def create(self, name: str, type_: str, family: Family) -> None:
        self.sets.setdefault(name, Content(type_, []))

    def destroy(self, name: str) -> None:
        self.sets.pop(name, None)

    def add_entry(self, name: str, type_: str, family: Family, entry: Entry) -> None:
        if entry not in self.sets[name].entries:
            self.sets[name].entries.append(entry)

    def delete_entry(self, name: str, type_: str, family: Family, entry: Entry) -> None:
        if name in self.sets and entry in self.sets[name].entries:
            self.sets[name].entries.remove(entry)

    # ---- VipDevice ------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return self.device

    def make(self) -> None:
        self.device = True

    def remove(self) -> None:
        self.device = False
        self.vips.clear()

    def bound(self) -> Bound:
        return Bound(frozenset(self.vips), frozenset(self.others))

    def bind(self, address: Address) -> None:
        assert self.device
        self.vips.add(address)

    def unbind(self, address: Address) -> None:
        self.vips.discard(address)
