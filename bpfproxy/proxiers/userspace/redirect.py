"""The table of nf_tables that sends what is for a frontend to its listener, refuses it, or drops it.

    prerouting, output → internal (clients in the cluster), external: verdict maps by address, protocol and port,
                         for NodePorts by protocol and port alone
    to-PROTOCOL-PORT[-…]  one chain per listener
    guard              keeps away those who knock at a listener directly

A client in the cluster finds the rows of scope INTERNAL first, then those of scope EXTERNAL; others the latter alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace as changed

from bpfproxy.model.address import ANY4, ANY6, Address, Family, family_of, format_address, parse_address
from bpfproxy.model.frontend import Frontend, OnEmpty, Scope
from bpfproxy.model.service import Protocol
from bpfproxy.netfilter import nft
from bpfproxy.netfilter.conntrack import Endpoint
from bpfproxy.proxiers.userspace.rows import FAMILIES, Inside, NodeAddress, PortalRow

FAMILY: Final = "inet"
TABLE: Final = "bpfproxy-userspace"

_IP: Final[dict[Family, str]] = {4: "ip", 6: "ip6"}
_TYPE: Final[dict[Family, str]] = {4: "ipv4_addr", 6: "ipv6_addr"}
_CHAIN: Final = re.compile(r"to-(tcp|udp)-(\d+)-")
_LISTENER: Final = "meta l4proto . th dport"


class Way(Struct, frozen=True):
    """What becomes of packets to a frontend: they go to the listener on `port`, or, where that is 0, are refused or
    dropped. Clients must come from one of `ranges`, if there are any."""

    port: int
    on_empty: OnEmpty
    ranges: tuple[str, ...] = ()


def serving(ways: Mapping[Frontend, Way], frontends: Iterable[Frontend]) -> dict[Endpoint, frozenset[Endpoint]]:
    """Where UDP flows to the addresses and ports of `frontends` may lead, for `conntrack.delete_stale`: to a listener
    of a scope that they have, on whichever of the node's addresses."""
    found: dict[Endpoint, frozenset[Endpoint]] = {}
    for one in frontends:
        if one.protocol is Protocol.UDP:
            scopes = (ways.get(changed(one, scope=scope)) for scope in Scope)
            any_: Address = ANY4 if one.family == 4 else ANY6
            found[one.address, one.port] = frozenset((any_, to.port) for to in scopes if to is not None and to.port)
    return found


def way(row: PortalRow, port: int) -> Way:
    """Of a frontend whose listener is on `port`."""
    return Way(port, OnEmpty.REJECT if port else row.on_empty, row.source_ranges if port else ())


class Redirects(Struct):
    """What the table holds."""

    ways: dict[Frontend, Way]
    node_addresses: set[NodeAddress]
    inside: set[Inside]


# ---- writing -----------------------------------------------------------------------------------------------------


def base() -> list[str]:
    """Commands that make the table, as far as it is not there, with nothing in its maps and sets changed."""
    lines = [
        f'add table {FAMILY} {TABLE} {{ comment "userspace proxy of bpfproxy" ; }}',
    ]
    for family in FAMILIES:
        kind = _TYPE[family]
        lines += [
            _add("set", f"listeners{family}", "{ type inet_proto . inet_service ; }"),
            _add("set", f"inside{family}", f"{{ type {kind} ; flags interval ; }}"),
            _add("set", f"node-addresses{family}", f"{{ type {kind} ; }}"),
        ]
        for scope in Scope:
            lines += [
                _add("map", _map(family, scope), f"{{ type {kind} . inet_proto . inet_service : verdict ; }}"),
                _add("map", _node_map(family, scope), "{ type inet_proto . inet_service : verdict ; }"),
            ]
    lines += [
        _add("chain", "prerouting", "{ type nat hook prerouting priority dstnat ; }"),
        _add("chain", "output", "{ type nat hook output priority -100 ; }"),
        _add("chain", "guard", "{ type filter hook input priority filter ; }"),
        *(_add("chain", name) for name in ("refuse", *map(_lookup, Scope))),
        *(f"flush chain {FAMILY} {TABLE} {name}" for name in _BASE_CHAINS),
        _rule("refuse", "meta l4proto tcp reject with tcp reset"),
        _rule("refuse", "reject"),
        *(_rule("prerouting", f"{_IP[f]} saddr @inside{f} jump {_lookup(Scope.INTERNAL)}") for f in FAMILIES),
        _rule("prerouting", f"jump {_lookup(Scope.EXTERNAL)}"),
        _rule("output", f"jump {_lookup(Scope.INTERNAL)}"),
        _rule("output", f"jump {_lookup(Scope.EXTERNAL)}"),
        *(
            _rule("guard", f"meta nfproto ipv{f} {_LISTENER} @listeners{f} ct state new ct status & dnat == 0 drop")
            for f in FAMILIES
        ),
    ]
    for scope in Scope:
        for family in FAMILIES:
            to = f"{_IP[family]} daddr"
            lines += [
                _rule(_lookup(scope), f"{to} . {_LISTENER} vmap @{_map(family, scope)}"),
                _rule(_lookup(scope), f"{to} @node-addresses{family} {_LISTENER} vmap @{_node_map(family, scope)}"),
            ]
    return lines


def put(frontend: Frontend, wanted: Way, former: Way | None) -> list[str]:
    """Commands that set a frontend's way."""
    lines = []
    if wanted.port:
        chain = _chain(frontend, wanted.port)
        lines += [
            _add("chain", chain),
            f"flush chain {FAMILY} {TABLE} {chain}",
            *_admitting(frontend, chain, wanted),
            _rule(chain, f"meta l4proto {_proto(frontend)} redirect to :{wanted.port}"),
            f"add element {FAMILY} {TABLE} listeners{frontend.family} {{ {_proto(frontend)} . {wanted.port} }}",
        ]
    if former is not None:
        lines.append(_element("delete", frontend, former))
    lines.append(_element("add", frontend, wanted))
    if former is not None and former.port not in (0, wanted.port):
        lines += _without_listener(frontend, former)
    return lines


def take(frontend: Frontend, former: Way) -> list[str]:
    """Commands that remove a frontend."""
    return [_element("delete", frontend, former), *(_without_listener(frontend, former) if former.port else ())]


def set_node(key: NodeAddress | Inside, *, present: bool) -> str:
    """The command that adds or removes a row of the node."""
    verb = "add" if present else "delete"
    if isinstance(key, Inside):
        return f"{verb} element {FAMILY} {TABLE} inside{key.family} {{ {key.network} }}"
    family = family_of(key.address)
    return f"{verb} element {FAMILY} {TABLE} node-addresses{family} {{ {format_address(key.address)} }}"


def _admitting(frontend: Frontend, chain: str, wanted: Way) -> Iterable[str]:
    """Rule 13: who is turned away. The node's own packets have a source by now, too."""
    if wanted.ranges:
        yield _rule(chain, f"{_IP[frontend.family]} saddr != {{ {', '.join(wanted.ranges)} }} drop")


def _without_listener(frontend: Frontend, former: Way) -> list[str]:
    chain = _chain(frontend, former.port)
    return [
        f"flush chain {FAMILY} {TABLE} {chain}",
        f"delete chain {FAMILY} {TABLE} {chain}",
        f"delete element {FAMILY} {TABLE} listeners{frontend.family} {{ {_proto(frontend)} . {former.port} }}",
    ]


def _element(verb: str, frontend: Frontend, one: Way) -> str:
    proto, port = _proto(frontend), frontend.port
    if _is_node_port(frontend):
        name, key = _node_map(frontend.family, frontend.scope), f"{proto} . {port}"
    else:
        name = _map(frontend.family, frontend.scope)
        key = f"{format_address(frontend.address)} . {proto} . {port}"
    return (
        f"{verb} element {FAMILY} {TABLE} {name} {{ {key}{f' : {_verdict(frontend, one)}' if verb == 'add' else ''} }}"
    )


def _verdict(frontend: Frontend, one: Way) -> str:
    if one.port:
        return f"goto {_chain(frontend, one.port)}"
    return "drop" if one.on_empty is OnEmpty.DROP else "goto refuse"


def _chain(frontend: Frontend, port: int) -> str:
    return f"to-{_proto(frontend)}-{port}-v{frontend.family}"


def _proto(frontend: Frontend) -> str:
    return frontend.protocol.name.lower()


def _is_node_port(frontend: Frontend) -> bool:
    return frontend.address in (ANY4, ANY6)


def _lookup(scope: Scope) -> str:
    return scope.name.lower()


def _map(family: Family, scope: Scope) -> str:
    return f"portals{family}-{scope.name.lower()}"


def _node_map(family: Family, scope: Scope) -> str:
    return f"node-portals{family}-{scope.name.lower()}"


_BASE_CHAINS: Final = ("refuse", "prerouting", "output", "guard", *map(_lookup, Scope))


def _add(kind: str, name: str, body: str = "") -> str:
    return f"add {kind} {FAMILY} {TABLE} {name} {body}".rstrip()


def _rule(chain: str, rule: str) -> str:
    return f"add rule {FAMILY} {TABLE} {chain} {rule}"


# ---- reading -----------------------------------------------------------------------------------------------------


def read() -> Redirects | None:
    """What the kernel holds; None without a table. Raises as `nft.list_table`."""
    objects = nft.list_table(FAMILY, TABLE)
    if objects is None:
        return None
    ranges: dict[str, tuple[str, ...]] = {}
    elements: dict[str, list[Any]] = {}
    for item in objects:
        if "rule" in item:
            found = _ranges_of(item["rule"])
            if found:
                ranges[item["rule"]["chain"]] = found
        for kind in ("map", "set"):
            if kind in item:
                elements[item[kind]["name"]] = item[kind].get("elem", [])
    result = Redirects({}, set(), set())
    for family in FAMILIES:
        result.inside |= {Inside(text) for text in _networks(elements.get(f"inside{family}", ()))}
        result.node_addresses |= {
            NodeAddress(parse_address(one)) for one in elements.get(f"node-addresses{family}", ())
        }
        for scope in Scope:
            for key, verdict in elements.get(_map(family, scope), ()):
                address, proto, port = key["concat"]
                _note(result, Frontend(parse_address(address), port, Protocol[proto.upper()], scope), verdict, ranges)
            for key, verdict in elements.get(_node_map(family, scope), ()):
                proto, port = key["concat"]
                any_: Address = ANY4 if family == 4 else ANY6
                _note(result, Frontend(any_, port, Protocol[proto.upper()], scope), verdict, ranges)
    return result


def _note(
    result: Redirects, frontend: Frontend, verdict: Mapping[str, Any], ranges: Mapping[str, tuple[str, ...]]
) -> None:
    if "drop" in verdict:
        result.ways[frontend] = Way(0, OnEmpty.DROP)
        return
    chain = verdict["goto"]["target"]
    listener = _CHAIN.match(chain)
    if listener:
        result.ways[frontend] = Way(int(listener[2]), OnEmpty.REJECT, ranges.get(chain, ()))
    else:
        result.ways[frontend] = Way(0, OnEmpty.REJECT)


def _ranges_of(rule: Mapping[str, Any]) -> tuple[str, ...]:
    """The source ranges that a rule admits, if it is of that kind."""
    for part in rule["expr"]:
        match = part.get("match", {})
        right = match.get("right")
        if match.get("op") == "!=" and match["left"].get("payload", {}).get("field") == "saddr":
            return tuple(sorted(_networks(right["set"] if isinstance(right, dict) and "set" in right else [right])))
    return ()


def _networks(elements: Iterable[Any]) -> list[str]:
    """`10.0.0.0/8` or `192.0.2.1/32` from nft's JSON, in which neighbours have become one range."""
    found: list[Any] = []
    for one in elements:
        if isinstance(one, dict) and "range" in one:
            found += ipaddress.summarize_address_range(*map(ipaddress.ip_address, one["range"]))
        elif isinstance(one, dict):
            found.append(ipaddress.ip_network(f"{one['prefix']['addr']}/{one['prefix']['len']}"))
        else:
            found.append(ipaddress.ip_network(one))
    return [str(network) for network in ipaddress.collapse_addresses(found)]
