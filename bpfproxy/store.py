"""The snapshot of all objects, and which Services a batch of events touches.

Events are coalesced between two calls of `take`: what was changed and changed back is no work.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

from msgspec import Struct

from bpfproxy.model.event import Update
from bpfproxy.model.service import EndpointSlice, Node, ObjectName, Service

K = TypeVar("K")
V = TypeVar("V")


class Changes(Struct, frozen=True):
    """What differs from the snapshot at the `take` before."""

    services: tuple[ObjectName, ...] = ()
    """Services that changed themselves or whose EndpointSlices did, each once, in the order of the events: near objects
    lie near in memory, which makes planning many of them twice as fast."""
    nodes: frozenset[str] = frozenset()
    """Names of the Node objects that changed."""
    service_events: int = 0
    """Changes of Services that were coalesced into this."""
    endpoint_events: int = 0
    """Changes of EndpointSlices that were coalesced into this."""


class _Table(Generic[K, V]):
    """The objects of one kind, and what the touched ones were at the last `take`."""

    def __init__(self) -> None:
        self.objects: dict[K, V] = {}
        self.before: dict[K, V | None] = {}
        self.pending = 0
        """Changes since the last `take`."""
        self.total = 0
        """Changes ever."""

    def put(self, key: K, value: V | None) -> tuple[V | None] | None:
        """Set, or with None remove, one object. Returns its former value in a tuple; None if nothing changed."""
        former = self.objects.get(key)
        if former == value:
            return None
        self.pending += 1
        self.total += 1
        if key not in self.before:
            self.before[key] = former
        if value is None:
            del self.objects[key]
        else:
            self.objects[key] = value
        return (former,)

    def take(self) -> list[tuple[K, V | None, V | None]]:
        """(key, before, now) of those that differ from what they were at the last `take`."""
        objects = self.objects
        changed = [(key, before, now) for key, before in self.before.items() if (now := objects.get(key)) != before]
        self.before = {}
        self.pending = 0
        return changed


class Store:
    """All objects that the sources delivered. For one thread at a time."""

    def __init__(self) -> None:
        self._services: _Table[ObjectName, Service] = _Table()
        self._slices: _Table[ObjectName, EndpointSlice] = _Table()
        self._nodes: _Table[str, Node] = _Table()
        self._by_service: dict[ObjectName, tuple[EndpointSlice, ...]] = {}
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether an update said that everything has been delivered; it stays so."""
        return self._complete

    @property
    def service_events_pending(self) -> int:
        """Changes of Services since the last `take`."""
        return self._services.pending

    @property
    def service_events_total(self) -> int:
        """Changes of Services ever."""
        return self._services.total

    @property
    def endpoint_events_pending(self) -> int:
        """Changes of EndpointSlices since the last `take`."""
        return self._slices.pending

    @property
    def endpoint_events_total(self) -> int:
        """Changes of EndpointSlices ever."""
        return self._slices.total

    def service(self, name: ObjectName) -> Service | None:
        """The Service of that name, if there is one."""
        return self._services.objects.get(name)

    def services(self) -> Collection[Service]:
        """All Services; a live view."""
        return self._services.objects.values()

    def slices(self, service: ObjectName) -> tuple[EndpointSlice, ...]:
        """The EndpointSlices of a Service, sorted by name; those that rule 6 ignores are left out."""
        return self._by_service.get(service, ())

    def node(self, name: str) -> Node | None:
        """The Node object of that name, if there is one."""
        return self._nodes.objects.get(name)

    def update(self, update: Update) -> None:
        """Take in what a source says. Removals come after the objects."""
        for item in update.objects:
            if isinstance(item, EndpointSlice):
                self._put_slice(item.name, None if item.ignored else item)
            elif isinstance(item, Service):
                self._services.put(item.name, item)
            else:
                self._nodes.put(item.name, item)
        for key in update.removed:
            if key.kind == "EndpointSlice":
                self._put_slice(key.name, None)
            elif key.kind == "Service":
                self._services.put(key.name, None)
            else:
                self._nodes.put(key.name.name, None)
        self._complete |= update.complete

    def take(self) -> Changes:
        """What changed since the last call."""
        service_events, endpoint_events = self._services.pending, self._slices.pending
        touched = dict.fromkeys(name for name, _, _ in self._services.take())
        for _, before, now in self._slices.take():
            if before is not None:
                touched[before.service] = None
            if now is not None:
                touched[now.service] = None
        nodes = frozenset(name for name, _, _ in self._nodes.take())
        return Changes(tuple(touched), nodes, service_events, endpoint_events)

    def _put_slice(self, name: ObjectName, item: EndpointSlice | None) -> None:
        changed = self._slices.put(name, item)
        if changed is None:
            return
        (former,) = changed
        if former is not None and (item is None or item.service != former.service):
            rest = tuple(other for other in self._by_service[former.service] if other.name != name)
            if rest:
                self._by_service[former.service] = rest
            else:
                del self._by_service[former.service]
        if item is not None:
            others = self._by_service.get(item.service, ())
            if others:
                kept = [other for other in others if other.name != name]
                self._by_service[item.service] = tuple(sorted([*kept, item], key=lambda other: other.name))
            else:
                self._by_service[item.service] = (item,)
