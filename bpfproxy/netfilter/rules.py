"""Rules as text, equal exactly when the kernel would do the same with them.

The kernel's tools print rules otherwise than they were written: options in another order, prefixes and masks in full,
defaults spelled out, probabilities as the fixed-point numbers that they became.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Final

_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPED: Final = re.compile(r"\\(.)")
_PLAIN: Final = re.compile(r"[^\s\"'\\#!;]+")

Group = tuple[str, tuple[str, ...]]
"""A match or target: its name, and its options as text, sorted, without defaults."""
Canonical = tuple[tuple[str, ...], tuple[Group, ...], Group]
"""What a packet's header must be, sorted; further matches, sorted; the target."""

_PROTOCOLS: Final = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6", "132": "sctp"}
_SHORT: Final = {
    "--protocol": "-p",
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--match": "-m",
    "--jump": "-j",
    "--goto": "-g",
}
_SELECTORS: Final = {"-p", "-s", "-d", "-i", "-o"}
_DEFAULTS: Final = {
    ("recent", "--rsource"),
    ("recent", "--mask 255.255.255.255"),
    ("recent", "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("REJECT", "--reject-with icmp-port-unreachable"),
    ("REJECT", "--reject-with icmp6-port-unreachable"),
}
_IMPLIED: Final = {("tcp", ()), ("udp", ()), ("sctp", ())}
"""Matches that say nothing more than `-p` does."""
_ALL_BITS: Final = 0xFFFFFFFF


class Rule:
    """One rule of a chain, without the `-A CHAIN` before it. Immutable, hashable.

    `text` is as it was written or read; equality goes by `canonical`.
    """

    __slots__ = ("_canonical", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._canonical: Canonical | None = None

    @property
    def canonical(self) -> Canonical:
        """The same for all texts that mean the same."""
        if self._canonical is None:
            self._canonical = canonical(self.text)
        return self._canonical

    @property
    def target(self) -> str:
        """Where it leads: a chain, a verdict or an extension; empty if it only counts."""
        return self.canonical[2][0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return self.text == other.text or self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def __str__(self) -> str:
        return self.text


def words(text: str) -> list[str]:
    """The words of a rule; quotes and escapes are taken off."""
    return [_ESCAPED.sub(r"\1", quoted) if quoted or not plain else plain for quoted, plain in _WORD.findall(text)]


def quote(word: str) -> str:
    """`word` as `words` reads it back: in double quotes where it has to be."""
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def canonical(text: str) -> Canonical:
    """See `Rule.canonical`."""
    selectors: list[str] = []
    matches: dict[str, list[str]] = {}
    target, target_options = "", list[str]()
    group, options = "", list[str]()
    for negated, name, values in _options(words(text)):
        sign = "! " if negated else ""
        if name in _SELECTORS:
            value = _selector(name, values[0])
            if value or negated:
                selectors.append(f"{sign}{name} {value}")
        elif name == "-m":
            group = values[0]
            options = matches.setdefault(group, [])
        elif name in ("-j", "-g"):
            group = target = values[0] if name == "-j" else f"goto {values[0]}"
            options = target_options
        else:
            option = sign + _option(group, name, values)
            if (group, option) not in _DEFAULTS:
                options.append(option)
    groups = sorted((name, tuple(sorted(options))) for name, options in matches.items())
    return (
        tuple(sorted(selectors)),
        tuple(one for one in groups if one not in _IMPLIED),
        (target, tuple(sorted(target_options))),
    )


def _options(rule: Iterable[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """(negated, name, values) of each option."""
    negated, name, values = False, "", list[str]()
    negate_next = False
    for word in rule:
        if name == "--comment" and not values:  # may be anything
            values.append(word)
        elif word == "!":
            negate_next = True
        elif word.startswith("-"):
            if name:
                yield negated, name, values
            negated, name, values, negate_next = negate_next, _SHORT.get(word, word), [], False
        else:
            values.append(word)
    if name:
        yield negated, name, values


def _selector(name: str, value: str) -> str:
    if name == "-p":
        value = value.lower()
        return "" if value in ("all", "0") else _PROTOCOLS.get(value, value)
    if name in ("-s", "-d"):
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:  # the kernel takes masks with holes
            return value
        return str(network) if network.prefixlen else ""
    return value


def _option(group: str, name: str, values: list[str]) -> str:
    match group, name:
        case "mark" | "connmark", "--mark":
            value, mask = _mark(values[0])
            return f"--mark {value:#x}/{mask:#x}"
        case "MARK", "--set-xmark" | "--set-mark" | "--or-mark" | "--xor-mark" | "--and-mark":
            value, mask = _set_mark(name, values[0])
            return f"--set-xmark {value:#x}/{mask:#x}"
        case "statistic", "--probability":
            return f"--probability {round(float(values[0]) * (1 << 31))}"
        case "conntrack", "--ctstate":
            return f"--ctstate {','.join(sorted(values[0].split(',')))}"
        case "addrtype", "--src-type" | "--dst-type":
            return f"{name} {','.join(sorted(values[0].split(',')))}"
    return " ".join([name, *values])


def _mark(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else _ALL_BITS


def _set_mark(name: str, text: str) -> tuple[int, int]:
    """(value, mask) as `--set-xmark` has them: the bits of mask are zeroed, then value is XORed in."""
    value, mask = _mark(text)
    match name:
        case "--or-mark":
            return value, value
        case "--xor-mark":
            return value, 0
        case "--and-mark":
            return 0, _ALL_BITS & ~value
        case "--set-mark":
            return value, mask | value
    return value, mask
