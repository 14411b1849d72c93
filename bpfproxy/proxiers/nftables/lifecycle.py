"""From settings to the proxier, and back to nothing."""

from __future__ import annotations

from ipaddress import ip_network

from bpfproxy.config import Settings
from bpfproxy.model.address import Network
from bpfproxy.model.service import Scheduler
from bpfproxy.netfilter import nft
from bpfproxy.proxiers.nftables.names import FAMILIES, TABLE
from bpfproxy.proxiers.nftables.proxier import NftablesProxier
from bpfproxy.proxiers.nftables.render import NftablesRenderer


def renderer(settings: Settings) -> NftablesRenderer:
    """The pure half, for which no kernel is needed."""
    return NftablesRenderer(
        cluster_networks=_networks(settings.cluster_cidr),
        service_networks=_networks(settings.service_cidr),
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


def _networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(part.strip(), strict=False) for text in texts for part in text.split(","))
