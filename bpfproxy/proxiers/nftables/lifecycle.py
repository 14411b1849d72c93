"""From settings to the proxier, and back to nothing.

    STATE/nftables   this agent has written the tables

kube-proxy's tables have the same name. A node's default proxier takes over what kube-proxy has left, without a gap; a
proxier that a single Service asks for does not touch it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from bpfproxy.config import Settings
from bpfproxy.errors import BpfproxyError, InputError, UnsupportedError
from bpfproxy.model.address import Network
from bpfproxy.model.device import DevicePlan
from bpfproxy.model.finding import Finding
from bpfproxy.model.service import Scheduler
from bpfproxy.netfilter import nft, privileges, sysctl
from bpfproxy.proxiers.nftables.names import FAMILIES, TABLE
from bpfproxy.proxiers.nftables.proxier import NftablesProxier
from bpfproxy.proxiers.nftables.render import NftablesRenderer

_MARKER: Final = "nftables"
_OLDEST: Final = "1.0.1"
"""Of nft, as for kube-proxy in this mode."""
_FORWARDING: Final = {
    "net/ipv4/ip_forward": "clients outside this node reach no pods",
    "net/ipv6/conf/all/forwarding": "clients outside this node reach no pods by IPv6",
}


def renderer(settings: Settings) -> NftablesRenderer:
    """The pure half, for which no kernel is needed."""
    return NftablesRenderer(
        cluster_networks=_networks(settings.cluster_cidr, "cluster CIDR"),
        service_networks=_networks(settings.service_cidr, "service CIDR"),
        masquerade_mark=1 << settings.masquerade_bit,
        masquerade_ports=settings.masquerade_ports(),
        node_port_ranges=bool(settings.nodeport_addresses),
        default_scheduler=Scheduler[settings.scheduler.upper().replace("-", "_")],
    )


def require() -> None:
    """Raises PermissionsError that names the capabilities that this process lacks."""
    privileges.require()


def open_proxier(settings: Settings) -> NftablesProxier:
    """A proxier over this node's tables, which writes nothing before `apply`; the caller holds the lock of the state
    directory. Raises PermissionsError, UnsupportedError, DatapathError."""
    require()
    tables = _tables()
    marker = settings.state_dir / _MARKER
    if tables and settings.proxy_mode != NftablesProxier.name and not marker.exists():
        raise UnsupportedError(f"{tables[0]} belongs to another proxy of this node: expected it to be cleaned up first")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return NftablesProxier(renderer(settings))


def check(settings: Settings, devices: Sequence[DevicePlan]) -> list[Finding]:
    """What this kernel and machine offer, what would be used, and why."""
    return [*_tool(), *_forwarding()]


def present(state_dir: Path) -> bool:
    """Whether an agent with this state directory has written tables that nobody has removed."""
    return (state_dir / _MARKER).exists()


def cleanup(state_dir: Path) -> list[str]:
    """Remove all that an agent with this state directory has written; returns what was removed. The caller holds the
    lock. Raises DatapathError if something cannot be removed."""
    marker = state_dir / _MARKER
    if not marker.exists():
        return []
    removed = [f"table {family} {TABLE}" for family in FAMILIES.values() if nft.delete_table(family, TABLE)]
    marker.unlink()
    return removed


def _tables() -> list[str]:
    """Those that are there, whoever made them."""
    return [f"table {family} {TABLE}" for family in FAMILIES.values() if nft.has_table(family, TABLE)]


def _tool() -> Iterator[Finding]:
    consequence = "rules cannot be written"
    yield privileges.check(consequence)
    try:
        version = nft.version()
        tables = ", ".join(_tables()) or "no tables yet"
    except BpfproxyError as error:
        yield Finding("nftables", False, str(error), consequence, required=True)
        return
    new_enough = _numbers(version) >= _numbers(_OLDEST)
    detail = f"nft {version}; {tables}" if new_enough else f"nft {version}: expected {_OLDEST} or later"
    yield Finding("nftables", new_enough, detail, consequence, required=True)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _forwarding() -> Iterator[Finding]:
    for name, consequence in _FORWARDING.items():
        found = sysctl.get(name)
        detail = "this kernel has none" if found is None else found
        yield Finding(name.replace("/", "."), found == "1", detail, consequence)


def _networks(texts: tuple[str, ...], what: str) -> tuple[Network, ...]:
    networks = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            networks.append(ip_network(part, strict=False))
        except ValueError as error:
            raise InputError(f"{what}: expected a range such as 10.96.0.0/12 or fd00::/64, not {part!r}") from error
    return tuple(networks)
