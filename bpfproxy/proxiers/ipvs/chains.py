"""The iptables rules around the ipsets: few, and the same however many Services there are. Pure.

They are kube-proxy's, with these differences:
- The chains that kube-proxy's iptables mode has as well bear other names, so that both can serve one node.
- NodePorts are looked for on the addresses where they answer, not on all local ones.
- Source ranges, and Services without local endpoints, are judged in `mangle`: for the node's own packets IPVS comes
  before the filter table. They are dropped there, where kube-proxy sends them to endpoints elsewhere.
- The node's own traffic under externalTrafficPolicy Local is masqueraded: its source is the VIP, which every node has.
- MASQUERADE keeps out of the ports that the eBPF datapath translates sources to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from bpfproxy.model.address import Family, Network
from bpfproxy.model.service import Protocol
from bpfproxy.netfilter.rows import ONCE, ChainKey, Kind, RuleKey
from bpfproxy.netfilter.rules import Rule, quote
from bpfproxy.proxiers.base import Key, Row
from bpfproxy.proxiers.ipvs import sets

SERVICES: Final = "KUBE-IPVS-SERVICES"
NODE_PORT: Final = "KUBE-NODE-PORT"
LOAD_BALANCER: Final = "KUBE-LOAD-BALANCER"
MARK_MASQ: Final = "KUBE-IPVS-MARK-MASQ"
POSTROUTING: Final = "KUBE-IPVS-POSTROUTING"
FORWARD: Final = "KUBE-IPVS-FORWARD"
FILTER: Final = "KUBE-IPVS-FILTER"
FIREWALL: Final = "KUBE-IPVS-FIREWALL"
EXTERNAL_FIREWALL: Final = "KUBE-IPVS-EXTERNAL-FIREWALL"
SOURCE_RANGES: Final = "KUBE-SOURCE-RANGES-FIREWALL"

_NEW: Final = "-m conntrack --ctstate NEW "
_FROM_NODE: Final = "-m addrtype --src-type LOCAL "
_LOOPBACK: Final[dict[Family, str]] = {4: "127.0.0.0/8", 6: "::1/128"}

_JUMPS: Final = (
    ("nat", "PREROUTING", SERVICES, "kubernetes service portals"),
    ("nat", "OUTPUT", SERVICES, "kubernetes service portals"),
    ("nat", "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    ("filter", "FORWARD", FORWARD, "kubernetes forwarding rules"),
    ("filter", "INPUT", NODE_PORT, "kubernetes health check rules"),
    ("filter", "INPUT", FILTER, "kubernetes ipvs access filter"),
    ("mangle", "PREROUTING", FIREWALL, "kube-proxy firewall rules"),
    ("mangle", "PREROUTING", EXTERNAL_FIREWALL, "kube-proxy firewall rules"),
    ("mangle", "OUTPUT", FIREWALL, "kube-proxy firewall rules"),
)
_CHAINS: Final = {
    ("nat", SERVICES),
    ("nat", NODE_PORT),
    ("nat", LOAD_BALANCER),
    ("nat", MARK_MASQ),
    ("nat", POSTROUTING),
    ("filter", FORWARD),
    ("filter", NODE_PORT),
    ("filter", FILTER),
    ("mangle", FIREWALL),
    ("mangle", EXTERNAL_FIREWALL),
    ("mangle", SOURCE_RANGES),
}


class Layout:
    """Implements `netfilter.rows.Layout`."""

    tables: tuple[str, ...] = ("mangle", "nat", "filter")

    def kind(self, table: str, chain: str) -> Kind:
        """See `Layout.kind`."""
        return "own" if (table, chain) in _CHAINS else "foreign"

    def owns(self, table: str, chain: str, rule: Rule) -> bool:
        """See `Layout.owns`."""
        return (table, rule.target) in _CHAINS

    def is_last(self, key: RuleKey) -> bool:
        """See `Layout.is_last`."""
        return False


def render(
    family: Family, networks: Iterable[Network], *, mark: int, ports: tuple[int, int], masquerade_all: bool
) -> Iterator[tuple[Key, Row]]:
    """The chains of `family`, and the rules that lead to them. `networks`: where pods are; `mark`: the bit of packets
    to masquerade; `ports`: first and last of those to masquerade with."""
    pods = next((str(network) for network in networks if network.version == family), None)
    rules = _Rules(family, mark, ports)
    bodies = {
        ("nat", SERVICES): rules.services(pods, masquerade_all=masquerade_all),
        ("nat", NODE_PORT): rules.node_port(),
        ("nat", LOAD_BALANCER): rules.load_balancer(),
        ("nat", MARK_MASQ): [f"-j MARK --or-mark {mark:#x}"],
        ("nat", POSTROUTING): rules.postrouting(),
        ("filter", FORWARD): rules.forward(),
        ("filter", NODE_PORT): [rules.match(sets.HEALTH_CHECK, "dst", "ACCEPT")],
        ("filter", FILTER): rules.filter(),
        ("mangle", FIREWALL): rules.firewall(),
        ("mangle", EXTERNAL_FIREWALL): rules.external_firewall(pods),
        ("mangle", SOURCE_RANGES): rules.source_ranges(),
    }
    for (table, chain), body in bodies.items():
        yield ChainKey(family, table, chain), tuple(Rule(text) for text in body)
    for table, chain, to, comment in _JUMPS:
        yield RuleKey(family, table, chain, Rule(f"-m comment --comment {quote(comment)} -j {to}")), ONCE


class _Rules:
    """The texts, in one family."""

    def __init__(self, family: Family, mark: int, ports: tuple[int, int]) -> None:
        self._family = family
        self._mark = f"{mark:#x}"
        self._ports = f"{ports[0]}-{ports[1]}"

    def match(self, name: str, what: str, target: str, more: str = "") -> str:
        """A rule for what is in a set."""
        comment = f"-m comment --comment {quote(sets.SETS[name].comment)}"
        return f"{more}{comment} -m set --match-set {sets.full_name(self._family, name)} {what} -j {target}"

    def services(self, pods: str | None, *, masquerade_all: bool) -> list[str]:
        if masquerade_all:
            cluster_ip = self.match(sets.CLUSTER_IP, "dst,dst", MARK_MASQ)
        elif pods:
            cluster_ip = self.match(sets.CLUSTER_IP, "dst,dst", MARK_MASQ, f"! -s {pods} ")
        else:
            # The node reaches a VIP from that VIP, which is an address of its own.
            cluster_ip = self.match(sets.CLUSTER_IP, "src,dst", MARK_MASQ)
        return [
            f"-s {_LOOPBACK[self._family]} -j RETURN",
            self.match(sets.LOAD_BALANCER, "dst,dst", LOAD_BALANCER),
            cluster_ip,
            self.match(sets.EXTERNAL_IP, "dst,dst", MARK_MASQ),
            self.match(sets.EXTERNAL_IP_LOCAL, "dst,dst", MARK_MASQ, _FROM_NODE),
            # What is at a VIP is no NodePort, and no other proxier's.
            *(self.match(name, "dst,dst", "ACCEPT") for name in sets.CLAIMS),
            self.match(sets.NODE_IPS, "dst", NODE_PORT),
        ]

    def node_port(self) -> list[str]:
        rules = []
        for protocol in Protocol:
            only = f"-p {protocol.name.lower()} "
            what = "dst,dst" if protocol is Protocol.SCTP else "dst"
            local = sets.node_port_local(protocol)
            rules += [
                self.match(local, what, MARK_MASQ, only + _FROM_NODE),
                self.match(local, what, "RETURN", only),
                self.match(sets.node_port(protocol), what, MARK_MASQ, only),
            ]
        return rules

    def load_balancer(self) -> list[str]:
        return [
            self.match(sets.LOAD_BALANCER_LOCAL, "dst,dst", MARK_MASQ, _FROM_NODE),
            self.match(sets.LOAD_BALANCER_LOCAL, "dst,dst", "RETURN"),
            f"-j {MARK_MASQ}",
        ]

    def postrouting(self) -> list[str]:
        comment = f"-m comment --comment {quote('kubernetes service traffic requiring SNAT')}"
        return [
            *self._masquerade(lambda target, only: self.match(sets.LOOP_BACK, "dst,dst,src", target, only)),
            f"-m mark ! --mark {self._mark}/{self._mark} -j RETURN",
            # So that it is not masqueraded again if it comes by once more.
            f"-j MARK --xor-mark {self._mark}",
            *self._masquerade(lambda target, only: f"{only}{comment} -j {target}"),
        ]

    def _masquerade(self, rule: Callable[[str, str], str]) -> Iterator[str]:
        """Rules of `rule(target, what it is restricted to)`."""
        for protocol in Protocol:
            yield rule(f"MASQUERADE --to-ports {self._ports} --random-fully", f"-p {protocol.name.lower()} ")
        yield rule("MASQUERADE", "")

    def forward(self) -> list[str]:
        return [
            f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {self._mark}/{self._mark} -j ACCEPT',
            '-m comment --comment "kubernetes forwarding conntrack rule"'
            " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ]

    def filter(self) -> list[str]:
        """Nobody reaches the node's own ports by a VIP."""
        return [
            *(self.match(name, "dst,dst", "RETURN") for name in sets.CLAIMS),
            self.match(sets.HEALTH_CHECK, "dst", "RETURN"),
            self.match(sets.IPVS_IPS, "dst", "REJECT", _NEW),
        ]

    def firewall(self) -> list[str]:
        """For all clients."""
        return [
            self.match(sets.LOAD_BALANCER_FW, "dst,dst", SOURCE_RANGES),
            self.match(sets.NO_LOCAL, "dst,dst", "DROP", _NEW),
        ]

    def external_firewall(self, pods: str | None) -> list[str]:
        """For what arrives; what the node itself sends does not come here."""
        return [
            *([f"-s {pods} -j RETURN"] if pods else []),
            self.match(sets.NO_LOCAL_EXTERNAL, "dst,dst", "DROP", _NEW),
            self.match(sets.NO_LOCAL_NODE_PORT, "dst,dst", "DROP", _NEW),
        ]

    def source_ranges(self) -> list[str]:
        return [
            self.match(sets.LOAD_BALANCER_SOURCE_CIDR, "dst,dst,src", "RETURN"),
            # The node is admitted by whatever address it sends from: by the VIP, mostly, as in the third place there.
            self.match(sets.LOAD_BALANCER_SOURCE_IP, "dst,dst,dst", "RETURN", _FROM_NODE),
            "-j DROP",
        ]
