"""Settings: what is accepted, and that each one says what it is."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest

from bpfproxy import config
from bpfproxy.config import Settings
from bpfproxy.errors import InputError

FIELDS = [field.name for field in dataclasses.fields(Settings)]


def test_every_field_is_documented() -> None:
    texts = config.documentation()
    assert list(texts) == FIELDS
    assert all(text.endswith(".") and "\n" not in text for text in texts.values())


def test_the_defaults_are_valid_and_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.node_name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_sets", 0, "--max-sets 0: expected 1 to "),
        ("max_slots", 1 << 40, "--max-slots 1099511627776: expected 1 to "),
        ("grace_period", -1.0, "--grace-period -1: expected seconds"),
        ("min_sync_period", float("nan"), "--min-sync-period nan: expected seconds"),
        ("sync_period", float("inf"), "--sync-period inf: expected seconds"),
        ("sync_period", 0.0, "--sync-period 0: expected at least"),
        ("snat_ports", "61001", "--snat-ports 61001: expected FIRST-LAST"),
        ("snat_ports", "2000-1500", "--snat-ports 2000-1500: expected FIRST-LAST"),
        ("snat_ports", "1000-2000", "--snat-ports 1000-2000: expected FIRST-LAST"),
        ("snat_ports", "1024-65535", "--snat-ports 1024-65535: expected some ports to be left"),
        ("masquerade_bit", 32, "--masquerade-bit 32: expected 0 to 31"),
    ],
)
def test_a_bad_value_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Settings(**{field: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_syncs_cannot_be_further_apart_than_looks() -> None:
    with pytest.raises(InputError, match="--sync-period 5"):
        Settings(min_sync_period=10.0, sync_period=5.0)


def test_the_nodes_name_is_the_hosts_unless_given() -> None:
    assert Settings(node_name="n1").node == "n1"
    assert Settings().node == socket.gethostname().lower()


def test_spellings() -> None:
    assert config.flag("state_dir") == "--state-dir"
    assert config.environment_variable("state_dir") == "BPFPROXY_STATE_DIR"
    assert Settings(snat_ports="61001-65535").snat_range() == (61001, 65535)


@pytest.mark.parametrize(
    ("reserved", "left"),
    [
        ("61001-65535", (1024, 61000)),
        ("1024-2000", (2001, 65535)),
        ("30000-32767", (32768, 65535)),
        ("60000-61000", (1024, 59999)),
        ("1025-65535", (1024, 1024)),
        ("1024-65534", (65535, 65535)),
    ],
)
def test_masquerading_keeps_off_the_reserved_ports(reserved: str, left: tuple[int, int]) -> None:
    assert Settings(snat_ports=reserved).masquerade_ports() == left
