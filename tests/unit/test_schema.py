"""Rows of an earlier layout in the form of a later one."""

from __future__ import annotations

import struct

import pytest

from bpfproxy.datapath import schema
from bpfproxy.datapath.schema import IncompatibleError, Schema

OLD = """
struct key { __be32 address; __be16 port; __u16 pad; };
struct part { __u8 a; __u8 b; __u16 pad; };
struct row { __u32 seen; __u16 count; __u8 pad[2]; struct part parts[2]; __be32 address; };
MAP(HASH, rows, struct key, struct row, BPF_F_NO_PREALLOC);
MAP_SOCKET_STORAGE(storage, struct row);
"""
KEY = bytes((10, 0, 0, 1, 0, 80, 0, 0))
ROW = struct.pack("=IH2xBB2xBB2x4s", 7, 300, 1, 2, 3, 4, bytes((10, 0, 0, 9)))


def translated(new: str, *rows: bytes) -> bytes:
    _, values = Schema(OLD).translation("rows", Schema(new))
    return values(b"".join(rows))


def test_the_same_layout_is_the_same() -> None:
    assert Schema(OLD).same("rows", Schema(OLD))
    assert Schema(OLD).same("storage", Schema("/* another text */" + OLD))
    assert translated(OLD, ROW, ROW) == ROW + ROW
    assert schema.current().same("flows4", Schema(schema.written()))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("__u32 seen;", "__u32 last;"),  # another name is another meaning
        ("__u16 count; __u8 pad[2];", "__u8 pad[2]; __u16 count;"),
        ("__be32 address; };\nMAP", "};\nMAP"),
        ("HASH", "LRU_HASH"),
        ("MAP(HASH, rows, struct key, struct row, BPF_F_NO_PREALLOC);", ""),
    ],
)
def test_any_difference_counts(before: str, after: str) -> None:
    assert before in OLD
    assert not Schema(OLD).same("rows", Schema(OLD.replace(before, after)))


def test_fields_go_where_their_names_are() -> None:
    new = OLD.replace(
        "struct row { __u32 seen; __u16 count; __u8 pad[2]; struct part parts[2]; __be32 address; };",
        "struct row { __be32 address; __u32 fresh; struct part parts[2]; __u32 count; __u32 seen; };",
    ).replace("{ __u8 a; __u8 b; __u16 pad; }", "{ __u8 b; __u8 pad; __u16 a; }")
    expected = struct.pack("=4sIBxHBxHII", bytes((10, 0, 0, 9)), 0, 2, 1, 4, 3, 300, 7)
    assert translated(new, ROW, ROW) == expected * 2


def test_a_field_that_went_is_left_out() -> None:
    new = OLD.replace("__u16 count; __u8 pad[2]; ", "")
    assert translated(new, ROW) == struct.pack("=IBB2xBB2x4s", 7, 1, 2, 3, 4, bytes((10, 0, 0, 9)))


def test_what_cannot_be_translated() -> None:
    with pytest.raises(IncompatibleError, match="seen has become narrower"):
        translated(OLD.replace("__u32 seen;", "__u16 seen;"), ROW)
    with pytest.raises(IncompatibleError, match="zone is new"):
        Schema(OLD).translation("rows", Schema(OLD.replace("__be16 port; __u16 pad;", "__be16 port; __u16 zone;")))
    with pytest.raises(IncompatibleError, match="no such map"):
        Schema(OLD).translation("others", Schema(OLD))


def test_keys_are_translated_as_a_whole() -> None:
    new = OLD.replace("__be32 address; __be16 port; __u16 pad;", "__be16 port; __u16 pad; __be32 address;")
    keys, _ = Schema(OLD).translation("rows", Schema(new))
    assert keys(KEY) == bytes((0, 80, 0, 0, 10, 0, 0, 1))
