"""From settings to the proxier, and back to nothing."""

from __future__ import annotations

from ipaddress import ip_network

from bpfproxy.config import Settings
from bpfproxy.errors import InputError
from bpfproxy.model.address import Network
from bpfproxy.model.service import Scheduler
from bpfproxy.netfilter import nft
from bpfproxy.proxiers.nftables.names import FAMILIES, TABLE
from bpfproxy.proxiers.nftables.proxier import NftablesProxier
from bpfproxy.proxiers.nftables.render import NftablesRenderer


def renderer(settings: Settings) -> NftablesRenderer:
    """The pure half, for which no kernel is needed."""
    return NftablesRenderer(
        cluster_networks=_networks(settings.cluster_cidr, "cluster CIDR"),
        service_networks=_networks(settings.service_cidr, "service CIDR"),
        snat_ports=settings.snat_range(),
        node_port_ranges=bool(settings.nodeport_addresses),
        default_scheduler=Scheduler[settings.scheduler.upper().replace("-", "_")],
    )


def open_proxier(settings: Settings) -> NftablesProxier:
    """Writes nothing before `apply`. Raises UnsupportedError, PermissionsError, DatapathError."""
    for family in FAMILIES.values():
        nft.list_table(family, TABLE)
    return NftablesProxier(renderer(settings))


def cleanup() -> list[str]:
    """Remove the tables; returns what was removed, empty if there was nothing. Raises as `open_proxier`."""
    return [f"table {family} {TABLE}" for family in FAMILIES.values() if nft.delete_table(family, TABLE)]


def _networks(texts: tuple[str, ...], what: str) -> tuple[Network, ...]:
    networks = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            networks.append(ip_network(part, strict=False))
        except ValueError as error:
            raise InputError(f"{what}: expected a range such as 10.96.0.0/12 or fd00::/64, not {part!r}") from error
    return tuple(networks)
