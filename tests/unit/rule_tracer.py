"""Follows the first packet of a connection through rules of nftables, as the kernel would, without one.

It knows the words that our proxiers use and no others: an unknown one is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from bpfproxy.lab.layout import Family
from bpfproxy.proxiers.nftables.rows import ChainRow
from tests.unit.lab_traces import Packet, Verdict, within

Step = tuple[Packet | None, list[str]]
"""After a statement: the packet (None: it does not match), and the verdicts, one of which ends the rule."""


@dataclass(frozen=True)
class Tracer:
    """Chains by name and the elements of sets and maps, on a node with the addresses `local`."""

    chains: Mapping[str, ChainRow]
    elements: Mapping[str, Mapping[str, str]]
    """Their verdicts, empty in a set, by its name and the element."""
    local: frozenset[str]

    def trace(self, packet: Packet, *, from_node: bool) -> set[Packet]:
        """All that may become of a packet that comes in, or that a process of the node sends."""
        return set(self._hooks(packet, ["output" if from_node else "prerouting"]))

    def _hooks(self, packet: Packet, todo: list[str]) -> Iterator[Packet]:
        if not todo:
            yield packet
            return
        [hook, *rest] = todo
        for after in self._base_chains(packet, self._bases(hook)):
            here = after.to[0] in self.local
            if after.verdict != "ACCEPT":
                yield after
            elif hook == "prerouting":
                yield from self._hooks(after, ["input"] if here else ["forward", "postrouting"])
            elif hook == "output":
                # What the node sends to itself comes back by the loopback device, past NAT.
                yield from self._hooks(after, ["postrouting", "input"] if here else ["postrouting"])
            else:
                yield from self._hooks(after, rest)

    def _bases(self, hook: str) -> list[str]:
        found = [(row.hook.priority, name) for name, row in self.chains.items() if row.hook and row.hook.hook == hook]
        return [name for _, name in sorted(found)]

    def _base_chains(self, packet: Packet, names: list[str]) -> Iterator[Packet]:
        if not names or packet.verdict != "ACCEPT":
            yield packet
            return
        for after, _ in self._chain(packet, names[0]):
            yield from self._base_chains(after, names[1:])

    def _chain(self, packet: Packet, name: str) -> Iterator[tuple[Packet, bool]]:
        """With whether its fate is decided: no rule after those of this chain matters."""
        yield from self._rules(packet, self.chains[name].rules)

    def _rules(self, packet: Packet, rules: tuple[str, ...]) -> Iterator[tuple[Packet, bool]]:
        if not rules:
            yield packet, False
            return
        after, verdicts = self._rule(packet, re.sub(r' comment "[^"]*"$', "", rules[0]))
        for verdict in verdicts:
            kind, _, chain = verdict.partition(" ")
            if kind in _VERDICTS:
                yield replace(after, verdict=_VERDICTS[kind]), True
            elif kind == "goto":
                yield from self._chain(after, chain)
            elif kind == "jump":
                for back, decided in self._chain(after, chain):
                    if decided:
                        yield back, True
                    else:
                        yield from self._rules(back, rules[1:])
            else:
                yield after, kind == "accept"
        if not verdicts:
            yield from self._rules(after, rules[1:])

    def _rule(self, packet: Packet, text: str) -> tuple[Packet, list[str]]:
        while text:
            after, verdicts, text = self._statement(packet, text)
            if after is None:
                return packet, []
            packet = after
            if verdicts:
                return packet, verdicts
        return packet, []

    def _statement(self, packet: Packet, text: str) -> tuple[Packet | None, list[str], str]:
        for pattern, do in _STATEMENTS:
            if found := re.match(pattern + r"(?: |$)", text):
                after, verdicts = do(self, packet, *found.groups())
                return after, verdicts, text[found.end() :]
        raise ValueError(f"no word that the tracer knows: {text}")

    # ---- statements ----------------------------------------------------------------------------------------------

    def address(self, packet: Packet, family: str, which: str, unlike: str | None, value: str) -> Step:
        """`ip saddr != { 10.0.0.0/8, 192.0.2.1 }`, `ip daddr @set`."""
        have = packet.source if which == "s" else packet.to[0]
        if family != _IP[packet.family]:
            return None, []
        if value.startswith("@affinity-"):
            found = value[1:] in packet.remembered
        elif value.startswith("@"):
            elements = self.elements.get(value[1:], {})
            found = have in elements or any("/" in one and within(have, one) for one in elements)
        else:
            found = any(within(have, one) for one in value.strip("{ }").split(", "))
        return packet if found != bool(unlike) else None, []

    def dispatch(self, packet: Packet, family: str | None, name: str) -> Step:
        """`ip daddr . meta l4proto . th dport vmap @map`."""
        if family not in (None, _IP[packet.family]):
            return None, []
        verdict = self.elements.get(name, {}).get(_end(packet) if family else _port(packet))
        return (packet, [verdict]) if verdict else (None, [])

    def is_port_in(self, packet: Packet, name: str) -> Step:
        """`meta l4proto . th dport @set`."""
        return _if(packet, _port(packet) in self.elements.get(name, {}))

    def choose(self, packet: Packet, count: str, verdicts: str) -> Step:
        """`numgen random mod 2 vmap { 0 : goto a , 1 : goto b }`."""
        pairs = [pair.split(" : ") for pair in verdicts.split(" , ")]
        assert [int(number) for number, _ in pairs] == list(range(int(count)))
        return packet, [verdict for _, verdict in pairs]

    def stick(self, packet: Packet, name: str) -> Step:
        """`update @set { ip saddr }`."""
        return replace(packet, remembered=packet.remembered | {name}), []

    def local_end(self, packet: Packet, which: str) -> Step:
        """`fib saddr type local`."""
        return packet if (packet.source if which == "s" else packet.to[0]) in self.local else None, []

    def translate(self, packet: Packet, to: str) -> Step:
        """`dnat to 10.0.0.1:80`."""
        address, _, port = to.rpartition(":")
        return replace(packet, to=(address.strip("[]"), int(port)), translated=True), ["accept"]

    def redirect(self, packet: Packet, port: str) -> Step:
        """`redirect to :80`, of some address of the node."""
        address = min(one for one in self.local if (":" in one) == (packet.family == 6))
        return replace(packet, to=(address, int(port)), translated=True), ["accept"]


def _if(packet: Packet, matches: bool) -> Step:
    return packet if matches else None, []


def _port(packet: Packet) -> str:
    return f"{packet.protocol} . {packet.to[1]}"


def _end(packet: Packet) -> str:
    return f"{packet.to[0]} . {_port(packet)}"


_IP: dict[Family, str] = {4: "ip", 6: "ip6"}
_VERDICTS: dict[str, Verdict] = {"drop": "DROP", "reject": "REJECT"}

_STATEMENTS: list[tuple[str, Callable[..., Step]]] = [
    (r"(?:(ip6?) daddr \. )?meta l4proto \. th dport vmap @(\S+)", Tracer.dispatch),
    (r"(ip6?) ([sd])addr (!= )?(\{[^}]*\}|\S+)", Tracer.address),
    (r"fib ([sd])addr type local", Tracer.local_end),
    (r"numgen \w+ mod (\d+) vmap \{ ([^}]*) \}", Tracer.choose),
    (r"update @(\S+) \{ ip6? saddr \}", Tracer.stick),
    (r"dnat to (\S+)", Tracer.translate),
    (r"masquerade(?: to :\d+-\d+)? fully-random", lambda _, p: (replace(p, masqueraded=True), ["accept"])),
    (r"redirect to :(\d+)", Tracer.redirect),
    (r"meta l4proto \. th dport @(\S+)", Tracer.is_port_in),
    (r"meta nfproto ipv(\d)", lambda _, p, family: _if(p, p.family == int(family))),
    (r"ct status & dnat == 0", lambda _, p: _if(p, not p.translated)),
    (r"ct state new", lambda _, p: (p, [])),
    (
        r"(tcp|udp|sctp) dport (\d+)",
        lambda _, p, protocol, port: _if(p, (p.protocol, p.to[1]) == (protocol, int(port))),
    ),
    (r"meta l4proto (?:\{ )?(\w+(?:, \w+)*)(?: \})?", lambda _, p, these: _if(p, p.protocol in these.split(", "))),
    (r"mark and (\w+) == 0", lambda _, p, bits: _if(p, not p.mark & int(bits, 16))),
    (r"mark set mark or (\w+)", lambda _, p, bits: (replace(p, mark=p.mark | int(bits, 16)), [])),
    (r"mark set mark xor (\w+)", lambda _, p, bits: (replace(p, mark=p.mark ^ int(bits, 16)), [])),
    (r"((?:jump|goto) \S+|drop|reject|return)(?: with tcp reset)?$", lambda _, p, verdict: (p, [verdict])),
]
