"""How the rows of all maps are laid out, in this version or an earlier one, and how rows pass from one to the other.

Each version writes its schema down beside its maps: abi.h and the declarations of the maps, as they stand in the C
tree. A later one takes rows over by the names of maps and fields. So a field whose meaning changes has to get another
name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from bpfproxy.datapath import abi
from bpfproxy.datapath.files import c_tree

HEADERS: Final = ("maps.h", "packet_maps.h")
"""Those that declare maps."""
_DECLARATION: Final = re.compile(r"^MAP(?:_SOCKET_STORAGE)?\(([^;]*)\);", re.MULTILINE)
_PADDING: Final = re.compile(r"(^|\.)pad(\[\d+\])?$")

Buffer = bytes | bytearray | memoryview


class IncompatibleError(Exception):
    """Rows of one layout cannot be made into rows of the other; the message says why."""


class _Declared(NamedTuple):
    text: str
    key: str
    value: str


class Schema:
    """The layouts of one version. `text` is what `written` gave then."""

    def __init__(self, text: str) -> None:
        self._maps: dict[str, _Declared] = {}
        for declaration in _DECLARATION.findall(text):
            words = [word.strip() for word in declaration.split(",")]
            if len(words) == 2:  # of sockets
                self._maps[words[0]] = _Declared(declaration, "__u32", words[1])
            else:
                self._maps[words[1]] = _Declared(declaration, words[2], words[3])
        self._ffi = abi.parse(_DECLARATION.sub("", text))

    def same(self, name: str, other: Schema) -> bool:
        """Whether a map of one can serve as the other's, its size aside."""
        mine, theirs = self._maps.get(name), other._maps.get(name)
        if mine is None or theirs is None or mine.text != theirs.text:
            return False
        return all(_leaves(a) == _leaves(b) for a, b in zip(self._types(name), other._types(name), strict=True))

    def translation(self, name: str, new: Schema) -> tuple[Translation, Translation]:
        """How keys and values of a map get their `new` form. Raises IncompatibleError."""
        if name not in self._maps or name not in new._maps:
            raise IncompatibleError("there is no such map in one of the versions")
        old_key, old_value = self._types(name)
        new_key, new_value = new._types(name)
        return Translation(old_key, new_key, whole=True), Translation(old_value, new_value)

    def _types(self, name: str) -> tuple[Any, Any]:
        declared = self._maps[name]
        return self._ffi.typeof(declared.key), self._ffi.typeof(declared.value)


class Translation:
    """Packed rows of one type into another, by the names of fields. What the old one lacks becomes zero; of a key
    (`whole`) it may lack nothing."""

    def __init__(self, old: Any, new: Any, *, whole: bool = False) -> None:
        before, after = _leaves(old), _leaves(new)
        self._old_size, self._new_size = before.size, after.size
        self._same = before == after
        self._moves: list[tuple[int, int]] = []
        for name, (at, size) in after.fields.items():
            if name not in before.fields:
                if whole:
                    raise IncompatibleError(f"{new.cname}.{name} is new")
                continue
            source, width = before.fields[name]
            if size < width:
                raise IncompatibleError(f"{new.cname}.{name} has become narrower")
            shift = size - width if sys.byteorder == "big" else 0
            self._moves += ((source + byte, at + shift + byte) for byte in range(width))

    def __call__(self, rows: Buffer) -> bytes:
        """All rows of a packed array, byte by byte of a row."""
        rows = bytes(rows)
        if self._same:
            return rows
        made = bytearray(len(rows) // self._old_size * self._new_size)
        for source, target in self._moves:
            made[target :: self._new_size] = rows[source :: self._old_size]
        return bytes(made)


class _Leaves(NamedTuple):
    size: int
    fields: dict[str, tuple[int, int]]
    """Path → offset and size, of what is not made of smaller things; without padding."""


def _leaves(type_: Any) -> _Leaves:
    fields = {name: place for name, place in _walk(type_, "", 0) if not _PADDING.search(name)}
    return _Leaves(abi.ffi.sizeof(type_), fields)


def _walk(type_: Any, path: str, at: int) -> Iterator[tuple[str, tuple[int, int]]]:
    if type_.kind in ("struct", "union"):
        for name, field in type_.fields:
            yield from _walk(field.type, f"{path}.{name}", at + field.offset)
    elif type_.kind == "array":
        size = abi.ffi.sizeof(type_.item)
        for index in range(type_.length):
            yield from _walk(type_.item, f"{path}[{index}]", at + index * size)
    else:
        yield path, (at, abi.ffi.sizeof(type_))


def written() -> str:
    """This version's schema, to be kept beside its maps."""
    declarations = [match[0] for header in HEADERS for match in _DECLARATION.finditer((c_tree() / header).read_text())]
    return "\n".join([(c_tree() / "abi.h").read_text(), *declarations, ""])


@cache
def current() -> Schema:
    """This version's."""
    return Schema(written())
