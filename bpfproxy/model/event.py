"""What a source tells the store."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from bpfproxy.model.service import EndpointSlice, Node, ObjectName, Service

Object = Service | EndpointSlice | Node
Kind = Literal["Service", "EndpointSlice", "Node"]


class ObjectKey(Struct, frozen=True, order=True, gc=False):
    """Kind and name of an object. A Node's namespace is empty."""

    kind: Kind
    name: ObjectName

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name.namespace else f"{self.kind} {self.name.name}"


class Update(Struct, frozen=True):
    """A change, or the first full list, of what a source knows."""

    objects: tuple[Object, ...] = ()
    """Added or changed objects, whole."""
    removed: tuple[ObjectKey, ...] = ()
    complete: bool = False
    """All that the source knows has been delivered, and nothing that it should know is unreadable: from now on, rows
    that nobody wants may be pruned."""
