"""What nft lists as JSON → rows. Pure.

Each expression that the renderer uses is put back into the renderer's words; any other stays JSON, and so differs from
all that is rendered.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from bpfproxy.model.address import Family
from bpfproxy.netfilter.nft import Object
from bpfproxy.proxiers.nftables import names
from bpfproxy.proxiers.nftables.rows import (
    ChainKey,
    ChainRow,
    ElementKey,
    ElementRow,
    Hook,
    Key,
    OtherKey,
    Row,
    SetKey,
    SetRow,
)

_NOT_ROWS: Final = {"metainfo", "table", "chain", "rule", "set", "map"}
_BITWISE: Final = {"|": "or", "&": "and", "^": "xor"}
_VERDICTS: Final = {"goto", "jump", "drop", "return", "accept"}
_MARK: Final = {"meta": {"key": "mark"}}


def rows_of(family: Family, objects: Iterable[Object]) -> dict[Key, Row]:
    """The rows of a table from all its objects."""
    rows: dict[Key, Row] = {}
    hooks: dict[str, Hook | None] = {}
    rules: dict[str, list[str]] = {}
    for item in objects:
        [(kind, fields)] = item.items()
        if kind == "chain":
            hooks[fields["name"]] = _hook(fields)
        elif kind == "rule":
            rules.setdefault(fields["chain"], []).append(_rule(fields))
        elif kind in ("set", "map"):
            rows[SetKey(family, fields["name"])] = _set(fields)
            rows.update(_elements(family, fields))
        elif kind not in _NOT_ROWS:
            rows[OtherKey(family, kind, fields["name"])] = True
    for name, hook in hooks.items():
        rows[ChainKey(family, name)] = ChainRow(tuple(rules.get(name, ())), hook)
    return rows


def _hook(fields: Mapping[str, Any]) -> Hook | None:
    if "hook" not in fields:
        return None
    return Hook(fields["type"], fields["hook"], fields["prio"], fields.get("policy", "accept"))


def _set(fields: Mapping[str, Any]) -> SetRow:
    kind = fields["type"]
    return SetRow(
        kind if isinstance(kind, str) else " . ".join(kind),
        verdicts=fields.get("map") == "verdict",
        timeout=fields.get("timeout", 0),
        comment=fields.get("comment", ""),
    )


# ---- elements ----------------------------------------------------------------------------------------------------


def _elements(family: Family, fields: Mapping[str, Any]) -> dict[Key, Row]:
    """Those that packets did not add."""
    if fields.get("timeout"):
        return {}
    rows: dict[Key, Row] = {}
    name = fields["name"]
    for element in fields.get("elem", ()):
        value, verdict = element if isinstance(element, list) else (element, None)
        comment = ""
        if isinstance(value, dict) and "elem" in value:
            value, comment = value["elem"]["val"], value["elem"].get("comment", "")
        if name == names.CLUSTER_IPS:
            rows.update(
                (ElementKey(family, name, _element(value), one), ElementRow()) for one in names.owners_of(comment)
            )
            continue
        text = _verdict(verdict) if verdict is not None else ""
        rows[ElementKey(family, name, _element(value))] = ElementRow(text, comment)
    return rows


def _element(value: Any) -> str:
    match value:
        case {"concat": list(parts)}:
            return " . ".join(map(_element, parts))
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{_element(first)}-{_element(last)}"
        case str() | int():
            return str(value)
    return _unknown(value)


# ---- rules -------------------------------------------------------------------------------------------------------


def _rule(fields: Mapping[str, Any]) -> str:
    words = " ".join(map(_statement, fields["expr"]))
    comment = fields.get("comment")
    return f'{words} comment "{comment}"' if comment else words


def _statement(item: Any) -> str:
    match item:
        case {"match": {"op": "==", "left": left, "right": {"prefix": {"addr": 0, "len": 1}}}} if left == _MARK:
            return "mark and 0x80000000 == 0"  # which nft takes for a network
        case {"match": {"op": op, "left": left, "right": right}}:
            operator = "" if op == "in" or (op == "==" and "&" not in left) else f"{op} "
            return f"{_expression(left)} {operator}{_operand(right)}"
        case {"mangle": {"key": key, "value": value}} if key == _MARK:
            return f"mark set {_expression(value)}"
        case {"vmap": {"key": key, "data": data}}:
            return f"{_expression(key)} vmap {_verdicts(data)}"
        case {"set": {"op": op, "elem": element, "set": name}}:
            return f"{op} {name} {{ {_expression(element)} }}"
        case {"dnat": {"addr": str(address), "port": int(port), **rest}} if not rest.keys() - {"family"}:
            return f"dnat to {f'[{address}]' if ':' in address else address}:{port}"
        case {"masquerade": dict(fields)} if not fields.keys() - {"port", "flags"}:
            return " ".join(["masquerade", *_masquerade_port(fields.get("port")), *_flags(fields.get("flags"))])
        case {"reject": {"expr": "port-unreachable", "type": "icmp" | "icmpv6"}}:
            return "reject"
    return _verdict(item)


def _verdict(item: Any) -> str:
    if isinstance(item, dict) and len(item) == 1:
        [(kind, to)] = item.items()
        if kind in _VERDICTS:
            return f"{kind} {to['target']}" if to else kind
    return _unknown(item)


def _verdicts(data: Any) -> str:
    match data:
        case str():
            return data
        case {"set": list(pairs)} if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            return f"{{ {' , '.join(f'{_element(key)} : {_verdict(to)}' for key, to in pairs)} }}"
    return _unknown(data)


def _expression(item: Any) -> str:
    match item:
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"meta": {"key": "mark"}}:
            return "mark"
        case {"meta": {"key": key}}:
            return f"meta {key}"
        case {"ct": {"key": key, **rest}} if not rest:
            return f"ct {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' . '.join(_flags(flags))} {result}"
        case {"numgen": {"mode": mode, "mod": modulus, "offset": 0}}:
            return f"numgen {mode} mod {modulus}"
        case {"concat": list(parts)}:
            return " . ".join(map(_expression, parts))
        case {"|": [left, int(mask)]} | {"&": [left, int(mask)]} | {"^": [left, int(mask)]}:
            return f"{_expression(left)} {_BITWISE[next(iter(item))]} {mask:#x}"
    return _unknown(item)


def _operand(right: Any) -> str:
    """What is compared with. Ranges of addresses come back merged or split, so they are put into one form."""
    if not (isinstance(right, dict) and isinstance(right.get("set"), list)):
        return _element(right)
    items = right["set"]
    try:
        texts = [_range(network) for network in ipaddress.collapse_addresses(_networks(items))]
    except (TypeError, ValueError):
        texts = [_element(item) for item in items]
    else:
        texts.sort()
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _networks(items: Iterable[Any]) -> list[Any]:
    """Raises ValueError if one is no address, TypeError if they are of two families."""
    networks: list[Any] = []
    for item in items:
        match item:
            case {"range": [first, last]}:
                networks += ipaddress.summarize_address_range(ipaddress.ip_address(first), ipaddress.ip_address(last))
            case str() | {"prefix": dict()}:
                networks.append(ipaddress.ip_network(_element(item)))
            case _:
                raise ValueError(f"no range of addresses: {item}")
    return networks


def _range(network: Any) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _masquerade_port(port: Any) -> list[str]:
    match port:
        case None:
            return []
        case {"range": [first, last]}:
            return [f"to :{first}-{last}"]
        case int():
            return [f"to :{port}"]
    return [_unknown(port)]


def _flags(flags: Any) -> list[str]:
    """One word, or a list of them, by nft's version."""
    return [flags] if isinstance(flags, str) else list(flags or ())


def _unknown(item: Any) -> str:
    return json.dumps(item, sort_keys=True)
