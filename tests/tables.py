"""The service tables of mode ebpf by themselves."""

from __future__ import annotations

from typing import Any

from bpfproxy.proxiers.ebpf.proxier import EbpfProxier
from bpfproxy.proxiers.ebpf.render import EbpfRenderer
from bpfproxy.proxiers.ebpf.snapshot import Maps


def proxier_over(maps: Maps, *, grace_period: float = 10.0, **more: Any) -> EbpfProxier:
    """A proxier that writes these maps, and neither attaches anything nor ends anybody's sockets."""
    return EbpfProxier(
        maps,
        EbpfRenderer(),
        grace_period=grace_period,
        activate=lambda complete: None,
        destroy_sockets=lambda gone: None,
        close=lambda: None,
        **more,
    )
