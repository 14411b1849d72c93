"""The compiler's view of bpf/abi.h and cffi's are the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfproxy.datapath import abi
from bpfproxy.datapath.files import c_tree


def structs() -> list[str]:
    """Tags of all structs and unions that have fields."""
    _, struct_names, union_names = abi.ffi.list_types()
    return [f"struct {name}" for name in struct_names] + [f"union {name}" for name in union_names]


def assertions() -> Iterator[str]:
    for name in structs():
        yield f"sizeof({name}) == {abi.sizeof(name)}"
        kind: Any = abi.ffi.typeof(name)
        for label, field in kind.fields:
            if label:
                yield f"__builtin_offsetof({name}, {label}) == {field.offset}"
                yield f"sizeof((({name} *)0)->{label}) == {abi.ffi.sizeof(field.type)}"
    yield from (f"{label} == {value}" for label, value in constants())


def constants() -> Iterator[tuple[str, int]]:
    library: Any = abi.ffi.dlopen(None)
    for name in dir(library):
        value = getattr(library, name)
        if isinstance(value, int):
            yield name, value


def compiles(tmp_path: Path, *conditions: str) -> bool:
    source = tmp_path / "abi.c"
    lines = ["#include <linux/types.h>", "#include <abi.h>", *(f'_Static_assert({c}, "");' for c in conditions)]
    source.write_text("\n".join(lines) + "\n")
    command = ["clang", "-fsyntax-only", "-std=gnu11", "-I", str(c_tree()), str(source)]
    return subprocess.run(command, check=False).returncode == 0


def test_sizes_offsets_and_constants_are_the_compilers(tmp_path: Path) -> None:
    conditions = list(assertions())
    assert len(conditions) > 100
    assert compiles(tmp_path, *conditions)


def test_a_wrong_size_would_be_seen(tmp_path: Path) -> None:
    assert not compiles(tmp_path, f"sizeof(struct backend) == {abi.sizeof('struct backend') + 1}")


def test_enums_are_complete_and_lack_their_count() -> None:
    reason = abi.enum_of("reason", "REASON_")
    assert len(reason) == abi.constant("REASON_COUNT")
    assert reason(0).name == "NOT_OURS"
    assert [member.value for member in abi.enum_of("scope", "SCOPE_")] == [0, 1]


def test_layout_packs_what_the_compiler_reads() -> None:
    row = abi.layout("struct backend").pack(b"\1" * 16, b"\0\x50", 6, 1, 7)
    backend: Any = abi.ffi.from_buffer("struct backend *", row)
    assert (bytes(backend.address[0]), backend.protocol, backend.flags, backend.generation) == (b"\1" * 4, 6, 1, 7)


def test_layout_of_some_fields() -> None:
    row = abi.layout("struct backend").pack(b"\1" * 16, b"\0\x50", 6, 1, 7)
    some = abi.layout("struct backend", "port", "generation")
    assert some.size == abi.sizeof("struct backend")
    assert some.unpack(row) == (b"\0\x50", 7)
    with pytest.raises(KeyError, match="struct backend has no field colour"):
        abi.layout("struct backend", "port", "colour")


def test_unknown_constants_are_errors() -> None:
    with pytest.raises(AttributeError):
        abi.constant("NO_SUCH_CONSTANT")
