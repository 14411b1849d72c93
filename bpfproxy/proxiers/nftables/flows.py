"""UDP flows that outlive their endpoint (rule 16): which frontends to look at, and who serves behind them.

All of it is read from the rows: the chain of an endpoint stands as long as the endpoint serves.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from bpfproxy.model.address import ANY4, ANY6, Address, Family, parse_address
from bpfproxy.proxiers.nftables import names
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, ElementRow, Key, Row

Endpoint = tuple[Address, int]
Port = tuple[Family, str]
"""Family and path of a ServicePort."""

_TO: Final = "meta l4proto udp dnat to "
_DISPATCH: Final = {names.SERVICE_IPS, names.SERVICE_NODE_PORTS}
_TURNED_AWAY: Final = {names.NO_ENDPOINT_SERVICES, names.NO_ENDPOINT_NODE_PORTS}


class UdpFlows:
    """Follows the rows of UDP ports."""

    def __init__(self) -> None:
        self._frontends: defaultdict[Port, dict[Key, Endpoint]] = defaultdict(dict)
        self._endpoints: defaultdict[Port, dict[Key, Endpoint]] = defaultdict(dict)
        self._port_of: dict[Key, Port] = {}
        self._touched: set[Port] = set()

    def note(self, key: Key, row: Row | None) -> None:
        """Take in that a row is written or (None) gone."""
        if isinstance(key, ElementKey):
            if "udp . " in key.element:
                self._note(self._frontends, key, row)
        elif isinstance(key, ChainKey) and key.name.startswith(names.ENDPOINT) and "/udp/" in key.name:
            self._note(self._endpoints, key, row)

    def forget_touched(self) -> None:
        """What has been noted so far is no reason to look at flows."""
        self._touched.clear()

    def take_suspects(self) -> dict[Endpoint, frozenset[Endpoint]]:
        """Frontends that may have flows to an endpoint that does not serve them, with those that do. Each is named
        once."""
        suspects: dict[Endpoint, frozenset[Endpoint]] = {}
        for port in self._touched:
            serving = frozenset(self._endpoints.get(port, {}).values())
            suspects.update(dict.fromkeys(self._frontends.get(port, {}).values(), serving))
        self._touched.clear()
        return suspects

    def _note(self, table: defaultdict[Port, dict[Key, Endpoint]], key: Key, row: Row | None) -> None:
        former = self._port_of.pop(key, None)
        if former is not None:
            del table[former][key]
            if not table[former]:
                del table[former]
        match key, row:
            case ElementKey(), ElementRow() if port := _frontend_port(key, row):
                table[port][key] = _frontend(key)
                # Flows that began when nobody translated them count as stale, too.
                self._touched.add(port)
            case ChainKey(), ChainRow() if row.rules and row.rules[-1].startswith(_TO):
                port = key.family, names.path_of(key.name)
                table[port][key] = _endpoint(row.rules[-1].removeprefix(_TO))
            case ChainKey(), None if former is not None:
                self._touched.add(former)
                return
            case _:
                return
        self._port_of[key] = port


def _frontend_port(key: ElementKey, row: ElementRow) -> Port | None:
    if key.set in _DISPATCH:
        return key.family, names.path_of(row.verdict.removeprefix("goto "))
    if key.set in _TURNED_AWAY:
        service, _, port = row.comment.partition(":")
        return key.family, f"{service}/udp/{port}"
    return None


def _frontend(key: ElementKey) -> Endpoint:
    *address, _, port = key.element.split(" . ")
    return parse_address(address[0]) if address else (ANY4 if key.family == 4 else ANY6), int(port)


def _endpoint(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return parse_address(address.strip("[]")), int(port)
