"""The rules that belong to the node: ways into the shared chains, masquerading, where NodePorts answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from bpfproxy.model.address import Address, Family, family_of, format_address
from bpfproxy.model.frontend import NodePlan
from bpfproxy.netfilter.rows import ONCE, ChainKey, RuleKey, SharedChainKey
from bpfproxy.netfilter.rules import Rule
from bpfproxy.proxiers.base import Key, Row
from bpfproxy.proxiers.iptables import names
from bpfproxy.proxiers.iptables.rows import LOCALNET_RULE, SHARED, SysctlKey

_FAMILIES: Final[tuple[Family, ...]] = (4, 6)
_LOOPBACK: Final[dict[Family, str]] = {4: "127.0.0.0/8", 6: "::1/128"}
_ROUTE_LOCALNET: Final = SysctlKey("net/ipv4/conf/all/route_localnet")
_PORTED: Final = ("tcp", "udp", "sctp")

_NEW: Final = "-m conntrack --ctstate NEW"
# table, chain, condition, comment, target; in the order in which they stand in the chain (rule 23).
_JUMPS: Final = (
    ("filter", "INPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    ("filter", "INPUT", "", "kubernetes health check service ports", names.NODEPORTS),
    ("filter", "INPUT", _NEW, "kubernetes externally-visible service portals", names.EXTERNAL_SERVICES),
    ("filter", "FORWARD", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    ("filter", "FORWARD", "", "kubernetes forwarding rules", names.FORWARD),
    ("filter", "FORWARD", _NEW, "kubernetes service portals", names.SERVICES),
    ("filter", "FORWARD", _NEW, "kubernetes externally-visible service portals", names.EXTERNAL_SERVICES),
    ("filter", "OUTPUT", _NEW, "kubernetes load balancer firewall", names.PROXY_FIREWALL),
    ("filter", "OUTPUT", _NEW, "kubernetes service portals", names.SERVICES),
    # kube-proxy has nothing like it: what the node itself sends to an external address without endpoints would leave it
    # instead of being refused (rule 11).
    (
        "filter",
        "OUTPUT",
        f"{_NEW} -m addrtype ! --dst-type LOCAL",
        "kubernetes externally-visible service portals",
        names.EXTERNAL_SERVICES,
    ),
    ("nat", "PREROUTING", "", "kubernetes service portals", names.SERVICES),
    ("nat", "OUTPUT", "", "kubernetes service portals", names.SERVICES),
    ("nat", "POSTROUTING", "", "kubernetes postrouting rules", names.POSTROUTING),
)
_NODE_PORTS: Final = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"


class NodeRules(Struct, frozen=True):
    """What the settings say of the node's rules."""

    mark: int = 0x4000
    """Bit of the packet mark that says `masquerade`."""
    masquerade_ports: tuple[int, int] = (1024, 61000)
    """(first, last)."""
    localhost: bool = True
    """NodePorts answer on loopback addresses, in IPv4."""

    def render(self, plan: NodePlan) -> dict[Key, Row]:
        """See `Proxier.render_node`."""
        found: dict[Key, Row] = {}
        localhost = self.localhost and 4 in plan.localhost_node_ports
        for family in _FAMILIES:
            found.update({SharedChainKey(family, table, chain): True for table, chain in SHARED})
            found.update(self._own_chains(family))
            rules = [*_jumps(), *self._node_ports(plan, family, localhost=localhost and family == 4)]
            found.update({RuleKey(family, table, chain, Rule(rule)): ONCE for table, chain, rule in rules})
        if localhost:
            found.update(_localnet())
        return found

    def _own_chains(self, family: Family) -> Iterator[tuple[ChainKey, tuple[Rule, ...]]]:
        """Rule 22."""
        chains = {
            ("nat", names.MARK_MASQ): [f"-j MARK --or-mark {self.mark:#x}"],
            ("nat", names.POSTROUTING): [
                f"-m mark ! --mark {self.mark:#x}/{self.mark:#x} -j RETURN",
                # Off again, so that a packet that passes once more is not masqueraded twice.
                f"-j MARK --xor-mark {self.mark:#x}",
                *self._masquerade(),
            ],
            ("filter", names.FORWARD): [
                "-m conntrack --ctstate INVALID -j DROP",
                '-m comment --comment "kubernetes forwarding rules"'
                f" -m mark --mark {self.mark:#x}/{self.mark:#x} -j ACCEPT",
                '-m comment --comment "kubernetes forwarding conntrack rule"'
                " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            ],
        }
        for (table, chain), rules in chains.items():
            yield ChainKey(family, table, chain), tuple(Rule(rule) for rule in rules)

    def _masquerade(self) -> Iterator[str]:
        """kube-proxy has the last one alone. It would also use ports that the eBPF datapath translates to, whose
        replies would then be taken for its own; only a rule for one protocol can be told which ports to use."""
        comment = '-m comment --comment "kubernetes service traffic requiring SNAT"'
        first, last = self.masquerade_ports
        for protocol in _PORTED:
            yield f"{comment} -p {protocol} -j MASQUERADE --to-ports {first}-{last} --random-fully"
        yield f"{comment} -j MASQUERADE --random-fully"

    def _node_ports(self, plan: NodePlan, family: Family, *, localhost: bool) -> Iterator[tuple[str, str, str]]:
        """Rule 14. On loopback addresses netfilter cannot translate IPv6 (there is no `route_localnet`)."""
        if family in plan.node_ports_everywhere:
            but = "" if localhost else f" ! -d {_LOOPBACK[family]}"
            destinations = [f"-m addrtype --dst-type LOCAL{but}"]
        else:
            addresses: list[Address] = sorted(one for one in plan.node_port_addresses if family_of(one) == family)
            destinations = [f"-d {format_address(address)}" for address in addresses]
            destinations += [f"-d {_LOOPBACK[family]}"] if localhost else []
        for destination in destinations:
            yield "nat", names.SERVICES, f'-m comment --comment "{_NODE_PORTS}" {destination} -j {names.NODEPORTS}'


def _jumps() -> Iterator[tuple[str, str, str]]:
    for table, chain, condition, comment, target in _JUMPS:
        yield table, chain, f'{condition} -m comment --comment "{comment}" -j {target}'.strip()


def _localnet() -> Iterator[tuple[Key, Row]]:
    yield SharedChainKey(4, "filter", names.FIREWALL), True
    yield RuleKey(4, "filter", names.FIREWALL, LOCALNET_RULE), ONCE
    for chain in ("INPUT", "OUTPUT"):
        yield RuleKey(4, "filter", chain, Rule(f"-j {names.FIREWALL}")), ONCE
    yield _ROUTE_LOCALNET, "1"
