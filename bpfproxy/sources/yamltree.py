"""YAML to plain dicts, lists and scalars, from libyaml's events, with bounds that hostile input cannot pass.

PyYAML's own loaders recurse, let a repeated key win silently and build dates; Kubernetes does none of that. Scalars are
read as Kubernetes reads them (YAML 1.1 without dates and base 60): `yes`, `no`, `on`, `off` are booleans, `010` and
`0o10` are eight, a date is a string. A mapping's keys are always their text, `<<` merges.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

MAX_DEPTH: Final = 200
MAX_ALIASED: Final = 1_000_000
"""Nodes that all aliases of a file may stand for, counted as if each were written out; 32 letters count as a node."""

_Loader: Any = getattr(yaml, "CLoader", yaml.Loader)
_TAG: Final = "tag:yaml.org,2002:"

_CONSTANTS: Final[dict[str, object]] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"), None)
    | {form: True for word in ("true", "yes", "on") for form in (word, word.title(), word.upper())}
    | {form: False for word in ("false", "no", "off") for form in (word, word.title(), word.upper())}
)
_NUMBER: Final = re.compile(
    r"(?P<octal>[-+]?0(?:o_*[0-7]|[0-7_])[0-7_]*)|(?P<integer>[-+]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0|[1-9][0-9_]*))"
    r"|(?P<real>[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<infinite>[-+]?\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_MAX_DIGITS: Final = 400


class YamlError(ValueError):
    """Not YAML, or not YAML that is accepted; the message gives line and column (1-based)."""


def documents(data: bytes) -> Iterator[object]:
    """The documents of a YAML stream in their order, an empty one as None; raises YamlError.

    Documents before a faulty one are yielded before the error is raised.
    """
    try:
        loader = _Loader(data)
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(_explain(error)) from error
    try:
        builder = _Builder()
        while True:
            event = loader.get_event()
            if isinstance(event, yaml.DocumentEndEvent):
                yield builder.take()
            elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                builder.feed(event)
            elif isinstance(event, yaml.StreamEndEvent):
                return
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(_explain(error)) from error
    finally:
        loader.dispose()


def _explain(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{place}{error.problem or error.context or 'malformed YAML'}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} at byte {error.position}"
    return str(error)


class _Open:
    """A collection under construction. `key` is the pending key of a mapping."""

    __slots__ = ("anchor", "key", "merged", "node", "size")

    def __init__(self, node: dict[str, object] | list[object], anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: str | None = None
        self.merged: list[dict[str, object]] = []
        self.size = 1


class _Builder:
    """Builds one document at a time with an explicit stack."""

    def __init__(self) -> None:
        self._aliased = 0
        self._reset()

    def _reset(self) -> None:
        self._stack: list[_Open] = []
        self._root: object = None
        self._anchors: dict[str, tuple[object, int]] = {}

    def take(self) -> object:
        """The finished document."""
        root = self._root
        self._reset()
        return root

    def feed(self, event: Any) -> None:
        """Take in one event that belongs to a node."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if len(self._stack) >= MAX_DEPTH:
                raise _error(event, f"nested deeper than {MAX_DEPTH} levels")
            parent = self._stack[-1] if self._stack else None
            if parent is not None and parent.key is None and isinstance(parent.node, dict):
                raise _error(event, "expected a scalar as key")
            if event.tag not in (None, "!", _TAG + "map", _TAG + "seq"):
                raise _error(event, f"unknown tag {event.tag}")
            self._stack.append(_Open({} if kind is yaml.MappingStartEvent else [], event.anchor))
        elif kind is yaml.AliasEvent:
            self._alias(event)
        else:
            self._close(event)

    def _close(self, event: Any) -> None:
        closed = self._stack.pop()
        if closed.merged and isinstance(closed.node, dict):
            for other in closed.merged:
                for key, value in other.items():
                    closed.node.setdefault(key, value)
        if closed.anchor is not None:
            self._anchors[closed.anchor] = (closed.node, closed.size)
        self._add(closed.node, closed.size, event)

    def _alias(self, event: Any) -> None:
        try:
            node, size = self._anchors[event.anchor]
        except KeyError:
            raise _error(event, f"alias *{event.anchor} without a finished anchor before it") from None
        self._aliased += size
        if self._aliased > MAX_ALIASED:
            raise _error(event, f"aliases stand for more than {MAX_ALIASED} nodes")
        parent = self._stack[-1] if self._stack else None
        if parent is not None and parent.key is None and isinstance(parent.node, dict):
            if not isinstance(node, str):
                raise _error(event, "expected a scalar as key")
            self._set_key(parent, node, event)
        else:
            self._add(node, size, event)

    def _scalar(self, event: Any) -> None:
        parent = self._stack[-1] if self._stack else None
        text: str = event.value
        if parent is not None and parent.key is None and isinstance(parent.node, dict):
            if event.anchor is not None:
                self._anchors[event.anchor] = (text, _weight(text))
            self._set_key(parent, text, event)
            return
        value = _value(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, _weight(text))
        self._add(value, _weight(text), event)

    @staticmethod
    def _set_key(parent: _Open, key: str, event: Any) -> None:
        if key in parent.node:
            raise _error(event, f"key {key!r} stands twice in one mapping")
        parent.key = key
        parent.size += _weight(key)

    def _add(self, value: object, size: int, event: Any) -> None:
        if not self._stack:
            self._root = value
            return
        parent = self._stack[-1]
        parent.size += size
        if isinstance(parent.node, list):
            parent.node.append(value)
            return
        key = parent.key
        parent.key = None
        if key == "<<":
            for other in value if isinstance(value, list) else [value]:
                if not isinstance(other, dict):
                    raise _error(event, "expected a mapping, or a list of them, to merge")
                parent.merged.append(other)
        elif key is not None:
            parent.node[key] = value


def _weight(text: str) -> int:
    return 1 + len(text) // 32


def _value(event: Any) -> object:
    """The value of a scalar event."""
    text: str = event.value
    plain: bool
    plain, _ = event.implicit
    tag: str | None = event.tag
    if tag is None or tag == "!":
        return _resolve(text, event) if plain and tag is None else text
    if tag == _TAG + "str":
        return text
    if tag in (_TAG + "int", _TAG + "bool", _TAG + "float", _TAG + "null"):
        value = _resolve(text, event)
        if isinstance(value, str):
            raise _error(event, f"expected {tag.removeprefix(_TAG)}, not {text!r}")
        return value
    if tag in (_TAG + "timestamp", _TAG + "binary"):
        return text
    raise _error(event, f"unknown tag {tag}")


def _resolve(text: str, event: Any) -> object:
    """A plain scalar's value."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in "+-.0123456789":
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    if len(text) > _MAX_DIGITS:
        raise _error(event, "number with too many digits")
    digits = text.replace("_", "")
    try:
        match match.lastgroup:
            case "octal":
                return int(digits.replace("o", ""), 8)
            case "integer":
                return int(digits, 0)
            case "real":
                return float(digits)
            case "infinite":
                return float("-inf" if text[0] == "-" else "inf")
            case _:
                return float("nan")
    except ValueError:  # a prefix without digits, such as 0x_
        return text


def _error(event: Any, message: str) -> YamlError:
    mark = event.start_mark
    return YamlError(f"line {mark.line + 1}, column {mark.column + 1}: {message}")
