"""nf_tables by its own tool: transactions by `nft -f -`, what the kernel holds by `nft -j list`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bpfproxy.errors import DatapathError, PermissionsError, UnsupportedError

_PLACE: Final = re.compile(r"^/dev/stdin:(\d+):\d+-\d+: Error: (.*)$", re.MULTILINE)
_PLACE_ALONE: Final = re.compile(r"^/dev/stdin:(\d+):\d+: Error: (.*)$", re.MULTILINE)
_NO_ENTRY: Final = "No such file or directory"
_TIMEOUT: Final = 300.0
"""Seconds after which a run of nft is given up."""

Object = Mapping[str, Any]


class TransactionError(DatapathError):
    """A transaction was refused as a whole. `lines`: the lines at fault, from 0, with the reason of each; empty if
    nft did not name any."""

    def __init__(self, message: str, lines: Mapping[int, str]) -> None:
        super().__init__(message)
        self.lines = lines


def commit(lines: Sequence[str]) -> None:
    """Carry out commands, one per line, in one transaction: all or none. Raises TransactionError, UnsupportedError."""
    done = _run("-f", "-", script="\n".join(lines) + "\n")
    if done.returncode != 0:
        found = {int(line) - 1: reason for line, reason in _PLACE_ALONE.findall(done.stderr)}
        found |= {int(line) - 1: reason for line, reason in _PLACE.findall(done.stderr)}
        raise TransactionError(f"nft: {_first_line(done.stderr)}", found)


def is_missing(reason: str) -> bool:
    """Whether the reason of a line at fault is that what it names does not exist."""
    return reason.endswith(_NO_ENTRY)


def list_table(family: str, table: str) -> list[Object] | None:
    """The objects of a table as nft's JSON has them, each as {kind: fields}; None if there is no such table. Raises
    DatapathError, PermissionsError, UnsupportedError."""
    done = _run("-j", "list", "table", family, table)
    if done.returncode != 0:
        if _NO_ENTRY in done.stderr:
            return None
        raise _failure(done.stderr)
    objects: list[Object] = json.loads(done.stdout)["nftables"]
    return objects


def delete_table(family: str, table: str) -> bool:
    """Remove a table with all that is in it; whether there was one. Raises as `list_table`."""
    done = _run("delete", "table", family, table)
    if done.returncode != 0 and _NO_ENTRY not in done.stderr:
        raise _failure(done.stderr)
    return done.returncode == 0


def version() -> str:
    """Of the tool: `1.0.6`. Raises UnsupportedError if it is not installed."""
    return _run("--version").stdout.split()[1].removeprefix("v")


def _run(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["nft", *arguments], input=script, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError as error:
        raise UnsupportedError("nft is not installed (package nftables)") from error
    except subprocess.TimeoutExpired as error:
        raise DatapathError(f"nft {arguments[0]} did not end within {_TIMEOUT:g} s") from error


def _failure(said: str) -> Exception:
    if "Operation not permitted" in said:
        return PermissionsError("nft is not permitted: run as root, or grant CAP_NET_ADMIN")
    return DatapathError(f"nft: {_first_line(said)}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
