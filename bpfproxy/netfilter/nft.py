"""nf_tables by its own tool: transactions by `nft -f -`, what the kernel holds by `nft -j list`."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bpfproxy.errors import DatapathError, PermissionsError, UnsupportedError

_PLACE: Final = re.compile(r"^/dev/stdin:(\d+):[\d-]+: Error: (.*)$", re.MULTILINE)
_NO_ENTRY: Final = "No such file or directory"
_TIMEOUT: Final = 300.0
"""Seconds after which a run of nft is given up."""

_HEADER: Final = struct.Struct("=IHHIIBBH")
"""struct nlmsghdr and struct nfgenmsg."""
_NETLINK_NETFILTER: Final = 12
_NLM_F_REQUEST: Final = 1
_NFNL_SUBSYS_NFTABLES: Final = 10
_NEW_GENERATION: Final = _NFNL_SUBSYS_NFTABLES << 8 | 15
_GET_GENERATION: Final = _NFNL_SUBSYS_NFTABLES << 8 | 16
_NFTA_GEN_ID: Final = 1

_PATH: Final = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"

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
        found = {int(line) - 1: reason for line, reason in _PLACE.findall(done.stderr)}
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


def has_table(family: str, table: str) -> bool:
    """Whether there is such a table. Raises as `list_table`."""
    done = _run("-j", "list", "tables", family)
    if done.returncode != 0:
        raise _failure(done.stderr)
    return any(item.get("table", {}).get("name") == table for item in json.loads(done.stdout)["nftables"])


def delete_table(family: str, table: str) -> bool:
    """Remove a table with all that is in it; whether there was one. Raises as `list_table`."""
    done = _run("delete", "table", family, table)
    if done.returncode != 0 and _NO_ENTRY not in done.stderr:
        raise _failure(done.stderr)
    return done.returncode == 0


def generation() -> int:
    """A number that grows by one with each transaction, whosever it is, in the network namespace of the calling thread.
    Raises DatapathError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netlink:
            netlink.send(_HEADER.pack(_HEADER.size, _GET_GENERATION, _NLM_F_REQUEST, 0, 0, socket.AF_UNSPEC, 0, 0))
            answer = netlink.recv(4096)
    except OSError as error:
        raise DatapathError(f"nf_tables: {error}") from error
    kind = _HEADER.unpack_from(answer)[1]
    length, attribute = struct.unpack_from("=HH", answer, _HEADER.size)
    if kind != _NEW_GENERATION or length != 8 or attribute != _NFTA_GEN_ID:
        raise DatapathError("nf_tables: expected the generation of the ruleset")
    return int.from_bytes(answer[_HEADER.size + 4 : _HEADER.size + 8], "big")


def version() -> str:
    """Of the tool: `1.0.6`. Raises UnsupportedError if it is not installed."""
    return _run("--version").stdout.split()[1].removeprefix("v")


def _run(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["nft", *arguments],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            env={"LC_ALL": "C", "PATH": _PATH},
        )
    except FileNotFoundError as error:
        raise UnsupportedError("expected nft to be installed (Debian: the package nftables)") from error
    except subprocess.TimeoutExpired as error:
        raise DatapathError(f"nft {arguments[0]} did not end within {_TIMEOUT:g} s") from error


def _failure(said: str) -> Exception:
    if "Operation not permitted" in said:
        return PermissionsError("nft is not permitted: run as root, or grant CAP_NET_ADMIN")
    return DatapathError(f"nft: {_first_line(said)}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
