"""What commands print: a table for people, plain columns where the output is no terminal, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import IntEnum
from typing import Any

import msgspec

from bpfproxy.cli.exits import BROKEN_PIPE
from bpfproxy.model.address import format_address

Cells = Sequence[object]


def write(text: str) -> None:
    """To standard output, at once. Ends the process quietly if nobody reads it any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nothing is left to flush when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None


def write_json(value: Any) -> None:
    """`plain(value)`, indented."""
    write(msgspec.json.format(msgspec.json.encode(plain(value)), indent=2).decode() + "\n")


def plain(value: Any) -> Any:
    """`value` in JSON's types: structs by field, enums by label, addresses and networks as text."""
    if isinstance(value, IntEnum):
        label: str = getattr(value, "label", value.name.lower().replace("_", "-"))
        return label
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return format_address(value)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(plain(item) for item in value)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


def write_table(headers: Sequence[str], rows: Sequence[Cells], title: str = "") -> None:
    """Rows under headers; columns of numbers are flush right. A title stands above it where there are several."""
    texts = [[_text(cell) for cell in row] for row in rows]
    numbers = [_are_numbers([row[at] for row in rows]) for at in range(len(headers))]
    render: Callable[..., None] = _rich if sys.stdout.isatty() else _columns
    render(headers, texts, numbers, title)


def _are_numbers(column: Cells) -> bool:
    filled = [cell for cell in column if cell != ""]
    return bool(filled) and all(isinstance(cell, int | float) for cell in filled)


def _text(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _columns(headers: Sequence[str], rows: list[list[str]], numbers: Sequence[bool], title: str) -> None:
    table = [[header.upper() for header in headers], *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(headers))]
    lines = [f"{title}:"] if title else []
    for row in table:
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    write("\n".join(lines) + ("\n\n" if title else "\n"))


def _rich(headers: Sequence[str], rows: list[list[str]], numbers: Sequence[bool], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for header, number in zip(headers, numbers, strict=True):
        table.add_column(header, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    with console.capture() as capture:
        console.print(table)
    write(capture.get())
