"""Checks of single values. Each takes the path of its field and raises `FieldError` with what was expected there."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeVar

from bpfproxy.model.address import ANY6, Address, Network, parse_address

T = TypeVar("T")

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SHOWN: Final = 60


class FieldError(ValueError):
    """A field that cannot be accepted: its path (`spec.ports[0].port`; empty: the whole object), what was expected."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


def quoted(value: object) -> str:
    """`value` as it may stand in a message: printable, short."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def object_name(text: str | None, path: str) -> str:
    """A DNS subdomain, as names of objects are."""
    if not text:
        raise FieldError(path, "expected a name")
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise FieldError(path, f"expected lower-case letters, digits, '-' and '.', not {quoted(text)}")
    return text


def port_name(text: str | None, path: str) -> str:
    """A DNS label, or nothing."""
    if text and (len(text) > 63 or not _LABEL.fullmatch(text)):
        raise FieldError(path, f"expected lower-case letters, digits and '-', not {quoted(text)}")
    return text or ""


def choice(text: str | None, choices: Mapping[str, T], default: T, path: str) -> T:
    """The value that `text` stands for; `default` if it is absent or empty."""
    if not text:
        return default
    try:
        return choices[text]
    except KeyError:
        raise FieldError(path, f"expected {_either(choices)}, not {quoted(text)}") from None


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def number(value: int | None, low: int, high: int, path: str) -> int:
    """A number from `low` to `high`."""
    if value is None or not low <= value <= high:
        found = "nothing" if value is None else quoted(value)
        raise FieldError(path, f"expected a number in {low}..{high}, not {found}")
    return value


def port_number(value: int | None, path: str) -> int:
    """1 to 65535."""
    return number(value, 1, 65535, path)


def address(text: str, path: str) -> Address:
    """An address that a host can have: not unspecified, not multicast, no IPv4 address in IPv6 clothes."""
    try:
        packed = parse_address(text)
    except ValueError:
        raise FieldError(path, f"expected an IP address, not {quoted(text)}") from None
    first = packed[0]
    if len(packed) == 4:
        if first == 0 or 224 <= first < 240 or packed == b"\xff\xff\xff\xff":
            raise FieldError(path, f"expected a unicast IP address, not {quoted(text)}")
    elif first == 0xFF or packed == ANY6 or packed.startswith(_MAPPED):
        raise FieldError(path, f"expected a unicast IP address, not mapped, not {quoted(text)}")
    return packed


_MAPPED: Final = bytes(10) + b"\xff\xff"
_LOOPBACK6: Final = bytes(15) + b"\x01"


def virtual_address(text: str, path: str) -> Address:
    """An address that a Service can have: no loopback either, which would take over the node's own traffic."""
    packed = address(text, path)
    if (len(packed) == 4 and packed[0] == 127) or packed == _LOOPBACK6:
        raise FieldError(path, f"expected no loopback address, not {quoted(text)}")
    return packed


@lru_cache(4096)
def _network(text: str) -> Network:
    prefix, slash, length = text.partition("/")
    if not slash or not length.isascii() or not length.isdigit() or "%" in prefix:
        raise ValueError(text)
    return ipaddress.ip_network(text, strict=False)


def network(text: str, path: str) -> Network:
    """A range in CIDR notation. Host bits are cut off; spaces around it are allowed, as Kubernetes does."""
    try:
        return _network(text.strip())
    except ValueError:
        raise FieldError(path, f"expected a range such as 10.0.0.0/8, not {quoted(text)}") from None
