"""Follows the first packet of a connection through rendered nftables rows, as the kernel would, without one.

It knows the words that the renderer uses and no others: an unknown one is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow, Key, Row


@dataclass(frozen=True)
class Packet:
    """A packet, and what has become of it."""

    source: str
    destination: str
    protocol: str
    port: int
    mark: int = 0
    verdict: str = ""
    """`drop` or `reject`, if it was turned away."""
    translated: bool = False
    masqueraded: bool = False


Step = tuple[Packet | None, list[str]]
"""After a statement: the packet (None: it does not match), and the verdicts, one of which ends the rule."""


class Tracer:
    """The rows of one family, on a node with the addresses `local`. `affinities`: by set, the clients in it."""

    def __init__(self, rows: Mapping[Key, Row], family: int, local: frozenset[str]) -> None:
        self.local = local
        self.affinities: dict[str, set[str]] = {}
        self._chains = {
            key.name: row
            for key, row in rows.items()
            if isinstance(key, ChainKey) and isinstance(row, ChainRow) and key.family == family
        }
        self._elements = {
            (key.set, key.element): row.verdict
            for key, row in rows.items()
            if isinstance(key, ElementKey) and isinstance(row, ElementRow) and key.family == family
        }

    def trace(self, packet: Packet, *, from_node: bool) -> set[Packet]:
        """All that may become of a packet that comes in, or that a process of the node sends."""
        return set(self._hooks(packet, ["output" if from_node else "prerouting"]))

    def _hooks(self, packet: Packet, todo: list[str]) -> Iterator[Packet]:
        if not todo:
            yield packet
            return
        [hook, *rest] = todo
        for after in self._base_chains(packet, self._bases(hook)):
            here = after.destination in self.local
            if after.verdict:
                yield after
            elif hook == "prerouting":
                yield from self._hooks(after, ["input"] if here else ["forward", "postrouting"])
            elif hook == "output":
                # What the node sends to itself comes back by the loopback device, past NAT.
                yield from self._hooks(after, ["postrouting", "input"] if here else ["postrouting"])
            else:
                yield from self._hooks(after, rest)

    def _bases(self, hook: str) -> list[str]:
        found = [(row.hook.priority, name) for name, row in self._chains.items() if row.hook and row.hook.hook == hook]
        return [name for _, name in sorted(found)]

    def _base_chains(self, packet: Packet, names: list[str]) -> Iterator[Packet]:
        if not names or packet.verdict:
            yield packet
            return
        for after, _ in self._chain(packet, names[0]):
            yield from self._base_chains(after, names[1:])

    def _chain(self, packet: Packet, name: str) -> Iterator[tuple[Packet, bool]]:
        """With whether its fate is decided: no rule after those of this chain matters."""
        yield from self._rules(packet, self._chains[name].rules)

    def _rules(self, packet: Packet, rules: tuple[str, ...]) -> Iterator[tuple[Packet, bool]]:
        if not rules:
            yield packet, False
            return
        after, verdicts = self._rule(packet, re.sub(r' comment "[^"]*"$', "", rules[0]))
        for verdict in verdicts:
            kind, _, chain = verdict.partition(" ")
            if kind in ("drop", "reject"):
                yield replace(after, verdict=kind), True
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

    def address(self, packet: Packet, which: str, unlike: str | None, value: str) -> Step:
        """`ip saddr != { 10.0.0.0/8, 192.0.2.1 }`, `ip daddr @set`."""
        have = packet.source if which == "s" else packet.destination
        if value.startswith("@affinity-"):
            found = have in self.affinities.get(value[1:], ())
        elif value.startswith("@"):
            found = (value[1:], have) in self._elements
        else:
            found = any(ip_address(have) in ip_network(one) for one in value.strip("{ }").split(", "))
        return packet if found != bool(unlike) else None, []

    def dispatch(self, packet: Packet, address: str | None, name: str) -> Step:
        """`ip daddr . meta l4proto . th dport vmap @map`."""
        port = f"{packet.protocol} . {packet.port}"
        verdict = self._elements.get((name, f"{packet.destination} . {port}" if address else port))
        return (packet, [verdict]) if verdict else (None, [])

    def choose(self, packet: Packet, count: str, verdicts: str) -> Step:
        """`numgen random mod 2 vmap { 0 : goto a , 1 : goto b }`."""
        pairs = [pair.split(" : ") for pair in verdicts.split(" , ")]
        assert [int(number) for number, _ in pairs] == list(range(int(count)))
        return packet, [verdict for _, verdict in pairs]

    def stick(self, packet: Packet, name: str) -> Step:
        """`update @set { ip saddr }`."""
        self.affinities.setdefault(name, set()).add(packet.source)
        return packet, []

    def local_end(self, packet: Packet, which: str) -> Step:
        """`fib saddr type local`."""
        return packet if (packet.source if which == "s" else packet.destination) in self.local else None, []

    def translate(self, packet: Packet, to: str) -> Step:
        """`dnat to 10.0.0.1:80`."""
        address, _, port = to.rpartition(":")
        return replace(packet, destination=address.strip("[]"), port=int(port), translated=True), ["accept"]


def _if(packet: Packet, matches: bool) -> Step:
    return packet if matches else None, []


_STATEMENTS: list[tuple[str, Callable[..., Step]]] = [
    (r"(ip6? daddr \. )?meta l4proto \. th dport vmap @(\S+)", Tracer.dispatch),
    (r"ip6? ([sd])addr (!= )?(\{[^}]*\}|\S+)", Tracer.address),
    (r"fib ([sd])addr type local", Tracer.local_end),
    (r"numgen \w+ mod (\d+) vmap \{ ([^}]*) \}", Tracer.choose),
    (r"update @(\S+) \{ ip6? saddr \}", Tracer.stick),
    (r"dnat to (\S+)", Tracer.translate),
    (r"masquerade(?: to :\d+-\d+)? fully-random", lambda _, p: (replace(p, masqueraded=True), ["accept"])),
    (r"ct state new", lambda _, p: (p, [])),
    (r"(tcp|udp|sctp) dport (\d+)", lambda _, p, protocol, port: _if(p, (p.protocol, p.port) == (protocol, int(port)))),
    (r"meta l4proto (?:\{ )?(\w+(?:, \w+)*)(?: \})?", lambda _, p, these: _if(p, p.protocol in these.split(", "))),
    (r"mark and (\w+) == 0", lambda _, p, bits: _if(p, not p.mark & int(bits, 16))),
    (r"mark set mark or (\w+)", lambda _, p, bits: (replace(p, mark=p.mark | int(bits, 16)), [])),
    (r"mark set mark xor (\w+)", lambda _, p, bits: (replace(p, mark=p.mark ^ int(bits, 16)), [])),
    (r"((?:jump|goto) \S+|drop|reject|return)$", lambda _, p, verdict: (p, [verdict])),
]
