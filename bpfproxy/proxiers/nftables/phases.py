"""The order of a sync. A sync of many changes is more than one transaction, and after each of them no element may
lead to a missing chain, nor past a firewall; within a transaction the order does not matter."""

from __future__ import annotations

from typing import Final

from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.nftables import names
from bpfproxy.proxiers.nftables.rows import ElementKey, SetKey

(SET, HELPER, ENDPOINT, POLICY, EXTERNAL, GUARD, DISPATCH, ADDRESS, BASE) = range(9)
(STALE_ADDRESS, STALE_DISPATCH, STALE_GUARD, STALE_BASE, STALE_EXTERNAL, STALE_POLICY, STALE_ENDPOINT) = range(9, 16)
(STALE_HELPER, STALE_SET) = range(16, 18)

_ELEMENTS: Final = {
    names.FIREWALL_IPS: (GUARD, STALE_GUARD),
    names.NO_ENDPOINT_SERVICES: (GUARD, STALE_GUARD),
    names.NO_ENDPOINT_NODE_PORTS: (GUARD, STALE_GUARD),
    names.SERVICE_IPS: (DISPATCH, STALE_DISPATCH),
    names.SERVICE_NODE_PORTS: (DISPATCH, STALE_DISPATCH),
    # Ports of these that are not served yet are rejected.
    names.CLUSTER_IPS: (ADDRESS, STALE_ADDRESS),
    names.NODE_PORT_IPS: (ADDRESS, STALE_ADDRESS),
}
_HELPERS: Final = {
    names.MARK_MASQUERADE,
    names.MASQUERADING,
    names.REJECT,
    names.SERVICES,
    names.SERVICE_ENDPOINTS_CHECK,
    names.NODE_PORT_ENDPOINTS_CHECK,
    names.FIREWALL_CHECK,
    names.CLUSTER_IPS_CHECK,
}
"""Chains of the node that base chains lead to. None of them leads to another chain by its name."""
_OF_SERVICES: Final = {
    names.ENDPOINT: (ENDPOINT, STALE_ENDPOINT),
    names.SERVICE: (POLICY, STALE_POLICY),
    names.LOCAL: (POLICY, STALE_POLICY),
    names.EXTERNAL: (EXTERNAL, STALE_EXTERNAL),
    names.FIREWALL: (EXTERNAL, STALE_EXTERNAL),
}


def phase(op: Op) -> int:
    """See `Proxier.phase`."""
    write, stale = _phases(op)
    return stale if op.row is None else write


def _phases(op: Op) -> tuple[int, int]:
    key = op.key
    if isinstance(key, ElementKey):
        return _ELEMENTS.get(key.set, (DISPATCH, STALE_DISPATCH))
    if isinstance(key, SetKey):
        return SET, STALE_SET
    if key.name in _HELPERS:
        return HELPER, STALE_HELPER
    prefix, dash, _ = key.name.partition("-")
    return _OF_SERVICES.get(prefix + dash, (BASE, STALE_BASE))
