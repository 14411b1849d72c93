"""The ABI between control plane and datapath, parsed from bpf/abi.h itself: nothing is mirrored by hand."""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import cache
from typing import Any, Final

import cffi

from bpfproxy.datapath.files import c_tree

# Fields in network order are bytes to Python, so that nobody mistakes one for a number. The header's padding is
# explicit, so the lesser alignment changes no offset (tests/unit/test_abi.py asks the compiler).
_TYPES: Final = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;
typedef unsigned char __be16[2]; typedef unsigned char __be32[4];
"""


def parse(text: str) -> cffi.FFI:
    """The types of a text such as abi.h."""
    parsed = cffi.FFI()
    parsed.cdef(_TYPES)
    parsed.cdef(text)
    return parsed


ffi: Final = parse((c_tree() / "abi.h").read_text())

_constants: Final = ffi.dlopen(None)
_FORMATS: Final = {"uint8_t": "B", "uint16_t": "H", "uint32_t": "I", "uint64_t": "Q", "char": "c", "unsigned char": "c"}


def sizeof(name: str) -> int:
    """Bytes of a type, e.g. `struct backend`."""
    return int(ffi.sizeof(name))


def constant(name: str) -> int:
    """An enumerator of abi.h; raises AttributeError if there is none."""
    return int(getattr(_constants, name))


@cache
def enum_of(name: str, prefix: str) -> type[IntEnum]:
    """The enum `name` as an IntEnum whose members lack `prefix`; `COUNT` is left out; in ascending order."""
    elements = ffi.typeof(f"enum {name}").relements
    by_value = sorted(elements.items(), key=lambda element: element[1])
    members = {label.removeprefix(prefix): value for label, value in by_value if label != f"{prefix}COUNT"}
    enum: type[IntEnum] = IntEnum(name, members)  # type: ignore[misc]
    return enum


@cache
def layout(name: str, *wanted: str) -> struct.Struct:
    """How to pack a struct without padding of the compiler's own: a value per field; arrays, and fields in network
    order, are bytes. With names of fields: those alone, in the struct's order; the others are passed over."""

    def code(label: str, type_: Any) -> str:
        if wanted and label not in wanted:
            return f"{ffi.sizeof(type_)}x"
        if type_.kind == "array" or type_.kind in ("struct", "union"):
            return f"{ffi.sizeof(type_)}s"
        return _FORMATS[type_.cname]

    fields = ffi.typeof(name).fields
    if unknown := {*wanted} - {label for label, _ in fields}:
        raise KeyError(f"{name} has no field {', '.join(sorted(unknown))}")
    packed = struct.Struct("=" + "".join(code(label, field.type) for label, field in fields))
    if packed.size != sizeof(name):
        raise AssertionError(f"{name} has padding that abi.h does not name")
    return packed
