"""A file's bytes to the Kubernetes objects written in it, each with its place: documents and the items of Lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, get_args

import msgspec
from msgspec import Struct

from bpfproxy.model.event import Kind
from bpfproxy.sources import yamltree
from bpfproxy.sources.fields import FieldError, quoted
from bpfproxy.sources.kube import KINDS, shape

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_LISTS: Final = {"List": ""} | {f"{kind}List": kind for kind in get_args(Kind)}


class Meta(Struct):
    """Enough of metadata to name an object in a message; the types are judged later."""

    name: object = None
    namespace: object = None


class Header(Struct):
    """What tells an object from another."""

    kind: str | None = None
    api_version: str | None = msgspec.field(default=None, name="apiVersion")
    metadata: Meta | None = None

    def title(self, kind: str) -> str:
        """`Service ns/name` as far as it is known."""
        meta = self.metadata or Meta()
        namespace = "" if kind == "Node" else (meta.namespace or "default")
        names = [part for part in (namespace, meta.name) if isinstance(part, str) and part] if meta.name else []
        title = f"{kind} {'/'.join(names)}".strip()
        return title if title.isprintable() and len(title) < 400 else quoted(title)


class Items(Struct):
    """The items of a List, each as JSON text."""

    items: list[msgspec.Raw] | None = None


_HEADER: Final = msgspec.json.Decoder(Header)
_ITEMS: Final = msgspec.json.Decoder(Items)


class Document(Struct):
    """An object of a kind that matters here, before its fields are judged."""

    place: str
    """Where it stands in its file: `document 2, items[7]`."""
    kind: Kind
    header: Header
    body: msgspec.Raw
    """JSON text, also where the file is YAML."""

    @property
    def title(self) -> str:
        """`Service ns/name` as far as it is known."""
        return self.header.title(self.kind)


class Fault(Struct):
    """What is wrong with one document, without the name of the file."""

    message: str


def read(data: bytes, *, json_only: bool = False) -> Iterator[Document | Fault]:
    """The Services, EndpointSlices and Nodes in `data`, and what cannot be accepted; other kinds are left out.

    `data` is a YAML stream, JSON, or several JSON documents one after another. Never raises.
    """
    for number, body in enumerate(_bodies(data, json_only), 1):
        place = f"document {number}"
        if isinstance(body, Fault):
            yield Fault(f"{place}: {body.message}")
        elif body is not None:
            yield from _entries(body, place, "", "")


def _bodies(data: bytes, json_only: bool) -> Iterator[msgspec.Raw | Fault | None]:
    """The documents; None for an empty one."""
    data = data.removeprefix(_BYTE_ORDER_MARK)
    if json_only or data.lstrip()[:1] == b"{":
        try:
            _HEADER.decode(data)
        except msgspec.ValidationError:
            pass  # JSON, if of a wrong shape: that is told with its place later
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if json_only:
                yield from _json_stream(data)
                return
            yield from _yaml_stream(data)
            return
        yield msgspec.Raw(data)
        return
    yield from _yaml_stream(data)


def _yaml_stream(data: bytes) -> Iterator[msgspec.Raw | Fault | None]:
    # By way of JSON there is one decoder for both, and a big tree is gone before the lasting objects are made, which
    # would keep its memory from going back to the system.
    try:
        for tree in yamltree.documents(data):
            body = None if tree is None else msgspec.Raw(msgspec.json.encode(tree))
            del tree
            yield body
    except yamltree.YamlError as error:
        yield Fault(_printable(str(error)))
    except RecursionError:  # by a chain of aliases
        yield Fault("nested too deeply")


def _json_stream(data: bytes) -> Iterator[msgspec.Raw | Fault]:
    """Documents one after another; the slow way, with line and column of what is malformed."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield Fault(f"expected UTF-8 text, found byte 0x{data[error.start]:02x} at {error.start}")
        return
    decoder = json.JSONDecoder()
    position = 0
    while (position := _skip_space(text, position)) < len(text):
        start = position
        try:
            _, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            yield Fault(f"line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}")
            return
        except RecursionError:
            yield Fault("nested too deeply")
            return
        except ValueError:
            yield Fault("number with too many digits")
            return
        yield msgspec.Raw(text[start:position].encode())


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _entries(body: msgspec.Raw, place: str, kind: str, api_version: str) -> Iterator[Document | Fault]:
    """The object in `body`, or those in the List that it is. `kind` and `api_version` are those of an enclosing List,
    which its items may leave out."""
    try:
        header: Header = shape(body, _HEADER)
    except FieldError as error:
        yield Fault(f"{place}: {error}")
        return
    kind = header.kind or kind
    api_version = header.api_version or api_version
    if not kind:
        yield Fault(f"{place}: {header.title('object')}: kind: expected the kind of a Kubernetes object, found nothing")
    elif kind in _LISTS:
        yield from _items(body, place, kind, api_version if kind != "List" else "")
    elif kind in KINDS:
        expected = KINDS[kind].api_version
        if api_version == expected:
            yield Document(place, kind, header, body)
        elif api_version.rpartition("/")[0] == expected.rpartition("/")[0]:
            found = quoted(api_version) if api_version else "nothing"
            yield Fault(f"{place}: {header.title(kind)}: apiVersion: expected {expected}, not {found}")
        # A kind of the same name in another group, such as Knative's Service, is none of ours.


def _items(body: msgspec.Raw, place: str, kind: str, api_version: str) -> Iterator[Document | Fault]:
    if "items" in place:
        yield Fault(f"{place}: {kind}: expected no List within a List")
        return
    try:
        items = shape(body, _ITEMS).items
    except FieldError as error:
        yield Fault(f"{place}: {kind}: {error}")
        return
    for index, item in enumerate(items or ()):
        yield from _entries(item, f"{place}, items[{index}]", _LISTS[kind], api_version)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
