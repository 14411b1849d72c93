"""Which endpoints of a ServicePort are used (rules 1 to 4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter, itemgetter

from msgspec import Struct

from bpfproxy.model.address import Address, Family
from bpfproxy.model.frontend import Backend
from bpfproxy.model.service import Endpoint, EndpointSlice, ServicePort
from bpfproxy.plan.node import NodeConfig

Candidate = tuple[Backend, Endpoint]
"""An endpoint as a port's target, and the conditions and hints that decide about it."""

_address = attrgetter("address")


class Members(Struct, frozen=True, gc=False):
    """What stands in a pool; both tuples sorted and disjoint."""

    backends: tuple[Backend, ...] = ()
    draining: tuple[Backend, ...] = ()
    """Serving, but not chosen: they keep the UDP flows that they have (rule 16)."""


class Selection(Struct, frozen=True, gc=False):
    """The pools of one ServicePort and family."""

    cluster: Members
    local: Members
    local_ready: frozenset[Address]
    """Ready endpoints on this node (rule 17)."""


_NOTHING = Selection(Members(), Members(), frozenset())


def select(
    port: ServicePort, family: Family, slices: Sequence[EndpointSlice], node: NodeConfig, *, local: bool
) -> Selection:
    """Choose among the endpoints of `port` in `slices`. Without `local` the local half of the answer is left empty:
    nobody asks for it unless a policy is Local.
    """
    matching = [
        (item, target.port)
        for item in slices
        if item.family == family and not item.ignored
        for target in item.ports
        if target.name == port.name and target.protocol is port.protocol
    ]
    if not matching:
        return _NOTHING
    node_name = node.name or None  # an endpoint without a node is on none, not on one without a name
    plain = _plain_backends(port, family, matching, node_name)
    if plain is not None:
        return _select_all(plain, local=local)
    return _select_by_rules(_candidates(port, family, matching, node_name), node, local=local)


def _plain_backends(
    port: ServicePort, family: Family, matching: Sequence[tuple[EndpointSlice, int]], node_name: str | None
) -> tuple[Backend, ...] | None:
    """The backends in the usual case: all Ready and Serving, without hints, each address once. None in any other."""
    size = 4 if family == 4 else 16
    protocol = port.protocol
    backends = [
        Backend(endpoint.address, number, protocol, endpoint.node_name == node_name)
        for item, number in matching
        for endpoint in item.endpoints
        if endpoint.ready
        and endpoint.serving
        and not endpoint.zone_hints
        and not endpoint.node_hints
        and len(endpoint.address) == size
    ]
    addresses = {backend.address for backend in backends}
    if not len(addresses) == len(backends) == sum([len(item.endpoints) for item, _ in matching]):
        return None
    backends.sort(key=_address)  # no two are the same, so this is the order of the backends
    return tuple(backends)


def _select_all(backends: tuple[Backend, ...], *, local: bool) -> Selection:
    """What `_select_by_rules` says of plain backends."""
    cluster = Members(backends)
    if not local:
        return Selection(cluster, _NOTHING.local, _NOTHING.local_ready)
    here = tuple(backend for backend in backends if backend.local)
    elsewhere = tuple(backend for backend in backends if not backend.local)
    return Selection(cluster, Members(here, elsewhere), frozenset(backend.address for backend in here))


def _candidates(
    port: ServicePort, family: Family, matching: Iterable[tuple[EndpointSlice, int]], node_name: str | None
) -> list[Candidate]:
    """All endpoints of `port`, sorted, each ip:port once: of several the local one, then the first, counts (rule 4)."""
    size = 4 if family == 4 else 16
    found: dict[tuple[Address, int], Candidate] = {}
    for item, number in matching:
        for endpoint in item.endpoints:
            if len(endpoint.address) != size:
                continue
            here = endpoint.node_name == node_name
            former = found.get((endpoint.address, number))
            if former is None or (here and not former[0].local):
                backend = Backend(endpoint.address, number, port.protocol, here)
                found[endpoint.address, number] = (backend, endpoint)
    return sorted(found.values(), key=itemgetter(0))


def _select_by_rules(candidates: Sequence[Candidate], node: NodeConfig, *, local: bool) -> Selection:
    ready = [candidate for candidate in candidates if candidate[1].ready]
    leaving = [candidate for candidate in candidates if candidate[1].serving and candidate[1].terminating]
    cluster = _members(_near(ready, node) or leaving, candidates)
    if not local:
        return Selection(cluster, _NOTHING.local, _NOTHING.local_ready)
    here = [candidate for candidate in ready if candidate[0].local]
    leaving_here = [candidate for candidate in leaving if candidate[0].local]
    return Selection(
        cluster, _members(here or leaving_here, candidates), frozenset(backend.address for backend, _ in here)
    )


def _near(ready: Sequence[Candidate], node: NodeConfig) -> Sequence[Candidate]:
    """Those of `ready` that the hints leave (rule 3): all, unless every one has a hint and at least one matches."""
    for hints, here in (("node_hints", node.name), ("zone_hints", node.zone)):
        if all(getattr(endpoint, hints) for _, endpoint in ready):
            matching = [candidate for candidate in ready if here in getattr(candidate[1], hints)]
            if matching:
                return matching
    return ready


def _members(chosen: Sequence[Candidate], candidates: Sequence[Candidate]) -> Members:
    backends = tuple(backend for backend, _ in chosen)
    members = frozenset(backends)
    return Members(backends, tuple(b for b, endpoint in candidates if endpoint.serving and b not in members))
