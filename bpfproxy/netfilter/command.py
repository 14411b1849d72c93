"""Runs `iptables-save` and `iptables-restore`, of both variants and families.

The two variants keep their rules apart: what one wrote the other does not see, and both are in force. So a node has
to stay with one, and that of whoever else writes rules there is the right one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from bpfproxy.errors import DatapathError, UnsupportedError
from bpfproxy.model.address import Family
from bpfproxy.netfilter.saved import Tables, parse

Variant = Literal["nft", "legacy"]
VARIANTS: Final[tuple[Variant, ...]] = ("nft", "legacy")
FAMILIES: Final[tuple[Family, ...]] = (4, 6)

_LOCK_WAIT: Final = 5
"""Seconds to wait for the lock that all of the legacy variant's tools take."""
_TIMEOUT: Final = 600.0
"""Seconds; many thousands of chains take their time on a small machine."""
_HINTS: Final = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains by which a kubelet shows which variant it uses."""
_PATH: Final = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


class RestoreError(DatapathError):
    """The kernel or the tool refused a part of what was to be restored, and so all of that commit."""


class Iptables:
    """The tools of one family and variant. Works on the network namespace of the calling thread.

    Raises UnsupportedError if they are not installed.
    """

    def __init__(self, family: Family, variant: Variant) -> None:
        self.family = family
        self.variant = variant
        name = f"{'iptables' if family == 4 else 'ip6tables'}-{variant}"
        self._save = _tool(f"{name}-save")
        self._restore = _tool(f"{name}-restore")
        self._saved: dict[str, tuple[bytes, Tables]] = {}

    def save(self, tables: Iterable[str]) -> Tables:
        """The `tables` that there are, not to be changed. Reading makes none. Raises DatapathError."""
        present = self._legacy_tables() if self.variant == "legacy" else None
        found: Tables = {}
        for table in tables:
            if present is None or table in present:
                done = _run([self._save, "-t", table])
                if done.returncode:
                    raise DatapathError(f"{Path(self._save).name} -t {table}: {_complaint(done)}")
                found |= self._parsed(table, done.stdout)
        return found

    def _parsed(self, table: str, text: str) -> Tables:
        """The same objects as the last time if nothing has changed: what is known of their rules by now stays known."""
        digest = sha256()
        for line in text.splitlines():
            if not line.startswith("#"):
                digest.update(line.partition(" [")[0].encode() if line.startswith(":") else line.encode())
        before = self._saved.get(table)
        if before is None or before[0] != digest.digest():
            before = self._saved[table] = (digest.digest(), parse(text))
        return before[1]

    def restore(self, text: str) -> None:
        """Carry out `text` in what is there already: each table's commit whole, or not at all and none after it.
        Raises RestoreError, DatapathError."""
        done = _run([self._restore, "--noflush", "-w", str(_LOCK_WAIT)], text)
        if done.returncode:
            error = DatapathError if "xtables lock" in done.stderr else RestoreError
            raise error(f"{Path(self._restore).name}: {_complaint(done)}")

    def _legacy_tables(self) -> set[str]:
        """Those in use: the legacy tools make a table when it is looked at."""
        try:
            names = Path(f"/proc/thread-self/net/ip{'' if self.family == 4 else '6'}_tables_names").read_text()
        except FileNotFoundError:
            return set()
        return set(names.split())


def available() -> list[Variant]:
    """The variants that are installed for both families."""
    return [
        variant for variant in VARIANTS if all(_find(f"{name}-{variant}-restore") for name in ("iptables", "ip6tables"))
    ]


def families() -> list[Family]:
    """The IP versions that this kernel speaks."""
    return [family for family in FAMILIES if _speaks(family)]


def _speaks(family: Family) -> bool:
    try:
        socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def choose(wanted: Literal["auto", "nft", "legacy"] = "auto") -> Variant:
    """The variant to use: the one asked for, else the one that a kubelet uses here, else the first that is installed.
    Raises UnsupportedError if there is none."""
    installed = available()
    if wanted != "auto":
        installed = [variant for variant in installed if variant == wanted]
    if not installed:
        what = "iptables" if wanted == "auto" else f"iptables-{wanted} and ip6tables-{wanted}"
        raise UnsupportedError(f"expected {what} to be installed (Debian: the package iptables)")
    for variant in installed if len(installed) > 1 else ():
        tables = Iptables(4, variant).save(["mangle"])
        if any(hint in tables.get("mangle", {}) for hint in _HINTS):
            return variant
    return installed[0]


def _find(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def _tool(name: str) -> str:
    path = _find(name)
    if path is None:
        raise UnsupportedError(f"expected {name} to be installed (Debian: the package iptables)")
    return path


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "PATH": _PATH}
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, env=environment)
    except subprocess.TimeoutExpired as error:
        raise DatapathError(f"{Path(command[0]).name} did not end within {_TIMEOUT:g} s") from error


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Its standard error as one line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith("Try `")) or f"status {done.returncode}"
