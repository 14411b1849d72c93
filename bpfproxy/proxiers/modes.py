"""The proxiers by mode. Each is a package whose module `lifecycle` is loaded when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, cast, get_args

from bpfproxy.config import ProxyMode, Settings
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.proxiers.base import Proxier, Renderer

MODES: Final[tuple[str, ...]] = get_args(ProxyMode)

INSPECT: Final[dict[str, str]] = {
    "iptables": "`iptables-save`, `ip6tables-save` and `conntrack -L`",
    "ipvs": "`ipvsadm -Ln`, `ipset list` and `conntrack -L`",
    "nftables": "`nft list ruleset` and `conntrack -L`",
    "userspace": "`nft list table inet bpfproxy-userspace` and `ss -tunp`",
}
"""What shows people the state of a mode that has no view of its own here."""


class Lifecycle(Protocol):
    """From settings to a proxier that works, and back to nothing."""

    def renderer(self, settings: Settings) -> Renderer:
        """The pure half, for which no kernel is needed."""
        ...

    def require(self) -> None:
        """Raises PermissionsError that names the capabilities that this process lacks."""
        ...

    def open_proxier(self, settings: Settings) -> Proxier:
        """A proxier over this node's kernel; the caller holds the lock of the state directory. Raises
        PermissionsError, UnsupportedError, DatapathError."""
        ...

    def check(self, settings: Settings, devices: Sequence[DevicePlan]) -> list[Finding]:
        """What this kernel and machine offer to it, what would be used, and what follows; `devices` is the plan for
        those of this node. Changes nothing."""
        ...

    def present(self, state_dir: Path) -> bool:
        """Whether an earlier run with this state directory left anything in the kernel: what another program made
        there under the same names (kube-proxy's chains) is none of it."""
        ...

    def cleanup(self, state_dir: Path) -> list[str]:
        """Remove all that is its own and nothing else; returns what was removed. The caller holds the lock."""
        ...


def lifecycle(mode: str) -> Lifecycle:
    """That of the proxier `mode`, one of `MODES`."""
    return cast(Lifecycle, import_module(f"bpfproxy.proxiers.{mode}.lifecycle"))
