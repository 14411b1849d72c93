"""One manifest file: the objects in it, where each stands, and what it claims for itself alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final

from msgspec import Struct, field

from bpfproxy.errors import InputError
from bpfproxy.model.address import format_address
from bpfproxy.model.event import Object, ObjectKey
from bpfproxy.model.service import EndpointSlice, Node, ObjectName, Protocol, Service
from bpfproxy.sources import documents
from bpfproxy.sources.fields import FieldError
from bpfproxy.sources.kube import decode

MAX_FAULTS: Final = 20
"""Faults that are told of one file."""

Claim = Hashable
"""What only one object may have: an `ObjectKey`, a (nodePort, Protocol), a packed ClusterIP."""


class ManifestError(InputError):
    """Several faults, each an `InputError` of its own; the text has one line for each."""

    def __init__(self, errors: list[InputError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = tuple(errors)


def input_error(faults: list[str]) -> InputError:
    """One error for `faults`, of which there is at least one."""
    errors = [InputError(fault) for fault in faults]
    return errors[0] if len(errors) == 1 else ManifestError(errors)


class Manifest(Struct, frozen=True):
    """The decoded content of a file, free of conflicts in itself."""

    path: str
    objects: dict[ObjectKey, Object] = field(default_factory=dict)
    places: dict[ObjectKey, str] = field(default_factory=dict)
    """`document 2` or `document 1, items[3]`."""
    claims: dict[Claim, ObjectKey] = field(default_factory=dict)

    def conflict(self, claim: Claim, other: Manifest) -> str:
        """One line that says that `claim` of an object in this file is taken by one in `other`."""
        key, holder = self.claims[claim], other.claims[claim]
        there = f"{other.path}: {other.places[holder]}"
        return f"{self.path}: {self.places[key]}: {_conflict(self.objects[key], key, holder, claim, there)}"


def key_of(item: Object) -> ObjectKey:
    """Kind and name of an object."""
    if isinstance(item, Service):
        return ObjectKey("Service", item.name)
    if isinstance(item, EndpointSlice):
        return ObjectKey("EndpointSlice", item.name)
    return ObjectKey("Node", ObjectName("", item.name))


def claims_of(key: ObjectKey, item: Object) -> Iterator[Claim]:
    """What `item` needs for itself alone."""
    yield key
    if isinstance(item, Service):
        for port in item.ports:
            if port.node_port:
                yield (port.node_port, port.protocol)
        if item.health_check_node_port:
            yield (item.health_check_node_port, Protocol.TCP)
        yield from item.cluster_ips


def decode_manifest(data: bytes, path: str) -> Manifest:
    """The manifest in `data`; `path` names it in messages. Raises InputError, with up to MAX_FAULTS faults at once."""
    manifest = Manifest(path)
    faults: list[str] = []
    for entry in documents.read(data, json_only=path.endswith(".json")):
        if isinstance(entry, documents.Fault):
            faults.append(f"{path}: {entry.message}")
        else:
            faults.extend(f"{path}: {entry.place}: {fault}" for fault in _add(manifest, entry))
        if len(faults) >= MAX_FAULTS:
            break
    if faults:
        raise input_error(faults)
    return manifest


def _add(manifest: Manifest, document: documents.Document) -> Iterator[str]:
    """Put the object of `document` into `manifest`, or yield what stands against that."""
    try:
        item = decode(document.kind, document.body)
    except FieldError as error:
        yield f"{document.title}: {error}"
        return
    if item is None:
        return
    key = key_of(item)
    own: set[Claim] = set()
    for claim in claims_of(key, item):
        holder = key if claim in own else manifest.claims.get(claim)
        own.add(claim)
        if holder is not None:
            yield _conflict(item, key, holder, claim, manifest.places.get(holder, document.place))
            return
    manifest.objects[key] = item
    manifest.places[key] = document.place
    manifest.claims.update(dict.fromkeys(own, key))


def _conflict(item: Object, key: ObjectKey, holder: ObjectKey, claim: Claim, there: str) -> str:
    if isinstance(claim, ObjectKey):
        return f"{key}: metadata.name: expected each object once, it stands already in {there}"
    field_path, value = _claimed_field(item, claim)
    return f"{key}: {field_path}: expected one of its own, {value} is already that of {holder} in {there}"


def _claimed_field(item: Object, claim: Claim) -> tuple[str, str]:
    """(path of the field, text of its value) of a nodePort or a ClusterIP."""
    assert not isinstance(item, EndpointSlice | Node)
    if isinstance(claim, bytes):
        return "spec.clusterIPs", format_address(claim)
    for index, port in enumerate(item.ports):
        if claim == (port.node_port, port.protocol):
            return f"spec.ports[{index}].nodePort", f"{port.node_port}/{port.protocol.name}"
    return "spec.healthCheckNodePort", f"{item.health_check_node_port}/TCP"
