"""The way of a connection's first packet through the tables of a node, without a kernel: what netfilter would do.

Where chance decides, all ways are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from bpfproxy.model.address import format_address
from bpfproxy.model.service import Protocol
from bpfproxy.netfilter.ipset import Content, Entry
from bpfproxy.netfilter.rules import Canonical, Rule, words
from bpfproxy.netfilter.saved import Chain, Tables
from tests.unit.lab_traces import LOOPBACKS, Packet, Verdict, within

Place = tuple[str, str]
"""A table, and a built-in chain of it."""
Step = Callable[[Packet], Iterator[Packet]]
"""What may become of a packet next."""


@dataclass(frozen=True)
class Tracer:
    """The tables of one family of one node, the addresses that are the node's own, and its ipsets by name."""

    tables: Tables
    addresses: frozenset[str]
    sets: Mapping[str, Content] = field(default_factory=dict)

    def from_outside(self, packet: Packet) -> set[Packet]:
        """What becomes of what comes in by a device: from clients and from pods."""
        return set(self._then(packet, [("mangle", "PREROUTING"), ("nat", "PREROUTING")], self._route))

    def from_node(self, packet: Packet) -> set[Packet]:
        """What becomes of what a process of the node sends."""
        return set(self._then(packet, [("mangle", "OUTPUT"), ("nat", "OUTPUT")], self._send))

    def _route(self, packet: Packet) -> Iterator[Packet]:
        if self.is_local(packet.to[0]):
            return self._then(packet, [("mangle", "INPUT"), ("filter", "INPUT")], self._deliver)
        return self._then(packet, [("mangle", "FORWARD"), ("filter", "FORWARD")], self._leave)

    def _send(self, packet: Packet) -> Iterator[Packet]:
        return self._then(packet, [("filter", "OUTPUT")], self._leave_or_return)

    def _leave_or_return(self, packet: Packet) -> Iterator[Packet]:
        return self._leave(packet, self._return if self.is_local(packet.to[0]) else None)

    def _leave(self, packet: Packet, after: Step | None = None) -> Iterator[Packet]:
        return self._then(packet, [("mangle", "POSTROUTING"), ("nat", "POSTROUTING")], after)

    def _return(self, packet: Packet) -> Iterator[Packet]:
        """Through the loopback device. NAT is settled, and so is where it goes."""
        return self._then(packet, [("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")])

    def _deliver(self, packet: Packet) -> Iterator[Packet]:
        yield packet

    def _then(self, packet: Packet, places: list[Place], after: Step | None = None) -> Iterator[Packet]:
        """What becomes of a packet that goes through some chains and, if it is accepted in all of them, on."""
        if not places:
            yield from after(packet) if after else (packet,)
            return
        [(table, chain), *rest] = places
        for verdict, end in self._chain(self.tables[table], chain, packet):
            if verdict in (None, "ACCEPT"):
                yield from self._then(end, rest, after)
            else:
                yield replace(end, verdict=verdict)

    def is_local(self, address: str) -> bool:
        """Whether the node has the address."""
        return address in self.addresses or within(address, LOOPBACKS[6 if ":" in address else 4])

    def _chain(
        self, chains: Mapping[str, Chain], name: str, packet: Packet, at: int = 0
    ) -> Iterator[tuple[Verdict | None, Packet]]:
        """(verdict, packet) for each way through; no verdict: back to the chain before."""
        rules = chains[name].rules
        while at < len(rules):
            rule = rules[at]
            at += 1
            matching = self._matches(rule, packet)
            if matching is False:
                continue
            if matching is None:  # chance: go on without it, too
                yield from self._chain(chains, name, packet, at)
            for ended, verdict, then in self._do(chains, rule, packet):
                if ended:
                    yield verdict, then
                else:
                    yield from self._chain(chains, name, then, at)
            return
        yield None, packet

    def _do(
        self, chains: Mapping[str, Chain], rule: Rule, packet: Packet
    ) -> Iterator[tuple[bool, Verdict | None, Packet]]:
        """(whether this chain ends, verdict, packet)."""
        options = _target_options(rule)
        packet = self._remember(rule, packet)
        match rule.target:
            case "ACCEPT" | "DROP" | "REJECT" as ending:
                yield True, ending, packet
            case "RETURN":
                yield True, None, packet
            case "MARK":
                yield False, None, replace(packet, mark=_marked(packet.mark, options))
            case "DNAT":
                host, _, port = options["--to-destination"].rpartition(":")
                to = (host.strip("[]"), int(port))
                yield True, "ACCEPT", replace(packet, to=to, translated=True)
            case "MASQUERADE":
                yield True, "ACCEPT", replace(packet, masqueraded=True)
            case "":
                yield False, None, packet
            case chain:
                for verdict, then in self._chain(chains, chain, packet):
                    yield verdict is not None, verdict, then

    def _remember(self, rule: Rule, packet: Packet) -> Packet:
        text = words(rule.text)
        if "--set" not in text or "recent" not in text:
            return packet
        return replace(packet, remembered=packet.remembered | {text[text.index("--name") + 1]})

    def _matches(self, rule: Rule, packet: Packet) -> bool | None:
        """None: by chance."""
        by_chance = False
        conditions, names = _conditions(rule.canonical)
        for group, negated, name, value in conditions:
            if (group, name) == ("statistic", "--probability"):
                by_chance = True
                continue
            if (group, name) == ("recent", "--rcheck"):
                result = bool(names & packet.remembered)
            else:
                result = _CONDITIONS[group, name](self, packet, value)
            if result == negated:
                return False
        return None if by_chance else True


@cache
def _conditions(rule: Canonical) -> tuple[list[tuple[str, bool, str, str]], set[str]]:
    """(match, negated, option, value) of all conditions, and the names of `recent` lists among them."""
    selectors, groups, _ = rule
    texts = [("", text) for text in selectors] + [(group, text) for group, options in groups for text in options]
    found = []
    for group, text in texts:
        name, _, value = text.removeprefix("! ").partition(" ")
        found.append((group, text.startswith("! "), name, value))
    return found, {value for group, _, name, value in found if (group, name) == ("recent", "--name")}


def _listed(tracer: Tracer, packet: Packet, value: str) -> bool:
    """`KUBE-CLUSTER-IP src,dst`: whether that of the packet is in a set."""
    name, _, directions = value.partition(" ")
    content = tracer.sets[name]
    parts = content.type.partition(":")[2].split(",")
    assert len(parts) == len(directions.split(","))
    return any(
        all(
            _PARTS[part, place](entry, packet.source if direction == "src" else packet.to[0], packet)
            for place, (part, direction) in enumerate(zip(parts, directions.split(","), strict=True))
        )
        for entry in content.entries
    )


def _has_port(entry: Entry, _: str, packet: Packet) -> bool:
    """Bitmaps hold ports of whatever protocol."""
    return entry.port == packet.to[1] and entry.protocol in (0, Protocol[packet.protocol.upper()])


_PARTS: dict[tuple[str, int], Callable[[Entry, str, Packet], bool]] = {
    ("ip", 0): lambda entry, address, _: format_address(entry.address) == address,
    ("ip", 2): lambda entry, address, _: format_address(entry.source) == address,
    ("net", 2): lambda entry, address, _: within(address, f"{format_address(entry.source)}/{entry.prefix}"),
    ("port", 0): _has_port,
    ("port", 1): _has_port,
}
"""By part of a set's type and its place there: whether that of an entry fits an address, or a packet's port."""


def _states(packet: Packet) -> set[str]:
    return {"NEW", "DNAT"} if packet.translated else {"NEW"}


def _mark_is(packet: Packet, value: str) -> bool:
    wanted, mask = (int(part, 0) for part in value.split("/"))
    return packet.mark & mask == wanted


_CONDITIONS: dict[tuple[str, str], Callable[[Tracer, Packet, str], bool]] = {
    ("", "-p"): lambda _, packet, value: packet.protocol == value,
    ("", "-s"): lambda _, packet, value: within(packet.source, value),
    ("", "-d"): lambda _, packet, value: within(packet.to[0], value),
    ("tcp", "--dport"): lambda _, packet, value: packet.to[1] == int(value),
    ("udp", "--dport"): lambda _, packet, value: packet.to[1] == int(value),
    ("addrtype", "--src-type"): lambda tracer, packet, value: tracer.is_local(packet.source) == (value == "LOCAL"),
    ("addrtype", "--dst-type"): lambda tracer, packet, value: tracer.is_local(packet.to[0]) == (value == "LOCAL"),
    ("conntrack", "--ctstate"): lambda _, packet, value: bool(_states(packet) & set(value.split(","))),
    ("set", "--match-set"): _listed,
    ("mark", "--mark"): lambda _, packet, value: _mark_is(packet, value),
    ("comment", "--comment"): lambda _, packet, value: True,
    ("recent", "--name"): lambda _, packet, value: True,
    ("recent", "--set"): lambda _, packet, value: True,
    ("recent", "--seconds"): lambda _, packet, value: True,
    ("recent", "--reap"): lambda _, packet, value: True,
    ("statistic", "--mode"): lambda _, packet, value: True,
}


def _target_options(rule: Rule) -> dict[str, str]:
    return {name: value for name, _, value in (option.partition(" ") for option in rule.canonical[2][1])}


def _marked(mark: int, options: Mapping[str, str]) -> int:
    value, mask = (int(part, 0) for part in options["--set-xmark"].split("/"))
    return (mark & ~mask) ^ value
