"""The rows of the iptables proxier that are no rules, and the order of all of them in a sync."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from bpfproxy.model.address import Address, Family, family_of, format_endpoint
from bpfproxy.netfilter.rows import ChainKey, Kind, RuleKey, SharedChainKey
from bpfproxy.netfilter.rules import Rule
from bpfproxy.proxiers.base import Key, Op
from bpfproxy.proxiers.iptables import names


class SysctlKey(Struct, frozen=True, order=True, gc=False):
    """A kernel parameter, by its path under /proc/sys. Its row is the value, as text."""

    name: str


class FlowsKey(Struct, frozen=True, order=True, gc=False):
    """The UDP flows to one frontend. Its row: the (address, port) pairs of the endpoints that still serve them. Unlike
    the other rows it is not in the kernel: writing it ends the flows to other endpoints."""

    address: Address
    """All zero for a NodePort."""
    port: int

    @property
    def family(self) -> Family:
        """4 or 6."""
        return family_of(self.address)

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


FlowsRow = frozenset[tuple[Address, int]]

SHARED: Final = (
    ("filter", names.SERVICES),
    ("filter", names.EXTERNAL_SERVICES),
    ("filter", names.NODEPORTS),
    ("filter", names.PROXY_FIREWALL),
    ("nat", names.SERVICES),
    ("nat", names.NODEPORTS),
)
"""(table, chain) of those to which Services add rules."""
_OWN: Final = {("filter", names.FORWARD), ("nat", names.POSTROUTING), ("nat", names.MARK_MASQ)}
_OURS: Final = {chain for _, chain in {*SHARED, *_OWN}}
LOCALNET_RULE: Final = Rule(
    '-m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8'
    " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
)
"""CVE-2020-8558: without it, `route_localnet` lets neighbours in to services on the loopback address."""


class KubeLayout:
    """Which chains and rules are kube-proxy's, and so ours."""

    tables: tuple[str, ...] = ("filter", "nat")

    def kind(self, table: str, chain: str) -> Kind:
        """See `Layout.kind`."""
        if (table, chain) in SHARED:
            return "shared"
        if (table, chain) in _OWN or (table == "nat" and names.is_hashed(chain)):
            return "own"
        return "joint" if (table, chain) == ("filter", names.FIREWALL) else "foreign"

    def owns(self, table: str, chain: str, rule: Rule) -> bool:
        """See `Layout.owns`."""
        if chain == names.FIREWALL:
            return rule == LOCALNET_RULE
        if "KUBE-" not in rule.text:
            return False
        return rule.target in _OURS or (rule.target == names.FIREWALL and table == "filter")

    def is_last(self, key: RuleKey) -> bool:
        """See `Layout.is_last`."""
        return key.table == "nat" and key.chain == names.SERVICES and key.rule.target == names.NODEPORTS


_LAYERS: Final = (names.SEP, names.SVC, names.SVL, names.EXT, names.FW)
_BUILT_IN: Final = {"INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"}
_LAST: Final = 20


def phase(op: Op) -> int:
    """See `Proxier.phase`. Chains go before those that lead to them, parameters after the rules that make them safe,
    UDP flows when new ones find their way; what is stale goes in the opposite order."""
    place = _place(op.key)
    return place if op.row is not None else _LAST - place


def _place(key: Key) -> int:
    match key:
        case SharedChainKey():
            return 0
        case ChainKey():
            layer = next((at for at, prefix in enumerate(_LAYERS, 2) if key.chain.startswith(prefix)), 1)
            return layer
        case RuleKey():
            return 8 if key.chain in _BUILT_IN else 7
        case SysctlKey():
            return 9
        case FlowsKey():
            return 10
    raise TypeError(f"no row of the iptables proxier: {key!r}")


def describe(key: Key, row: Any) -> tuple[str, str, str]:
    """(table, key, row) as text for people: rules as `iptables-restore` takes them."""
    match key:
        case ChainKey():
            return _table(key.family, key.table), key.chain, "; ".join(map(str, row)) or "empty"
        case SharedChainKey():
            return _table(key.family, key.table), key.chain, "a row per rule"
        case RuleKey():
            return _table(key.family, key.table), key.chain, str(key.rule)
        case SysctlKey():
            return "sysctl", key.name.replace("/", "."), str(row)
        case FlowsKey():
            served = ", ".join(format_endpoint(*endpoint) for endpoint in sorted(row)) or "none"
            return f"udp flows{key.family}", str(key), f"stay with {served}"
    raise TypeError(f"no row of the iptables proxier: {key!r}")


def _table(family: Family, table: str) -> str:
    return f"{table}{family}"
