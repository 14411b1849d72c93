"""Counters on real maps, as `stats`, `service` and `backend` show them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bpfproxy import api
from bpfproxy.cli import cli
from bpfproxy.datapath import abi, libbpf
from bpfproxy.datapath.maps import Map
from bpfproxy.model.address import parse_address
from bpfproxy.model.frontend import Backend, Frontend, FrontendKind, FrontendSpec, Pool, ServicePlan, ServicePortName
from bpfproxy.model.service import ObjectName, Protocol
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.ebpf import view
from bpfproxy.proxiers.ebpf.snapshot import Maps
from bpfproxy.proxiers.ebpf.view import View
from tests.lab.conftest import NewMaps
from tests.tables import proxier_over

CPUS = libbpf.possible_cpus()
SERVICES = 20


@pytest.fixture
def maps(state: Path, new_maps: NewMaps) -> Maps:
    """With some Services, each with a backend of its own."""
    maps = new_maps(state / "bpf" / "maps-test")
    proxier = proxier_over(maps)
    rows: dict[Any, Any] = {}
    for number in range(1, SERVICES + 1):
        name = ObjectName("shop", f"web{number}")
        pod = Backend(parse_address(f"10.244.0.{number}"), 8080, Protocol.TCP)
        spec = FrontendSpec(ServicePortName(name, "", Protocol.TCP), FrontendKind.CLUSTER_IP, Pool.CLUSTER, (pod,))
        frontend = Frontend(parse_address(f"10.96.0.{number}"), 80, Protocol.TCP)
        rows.update(proxier.render(ServicePlan(name, {frontend: spec})))
    assert proxier.apply(sorted((Op(key, row) for key, row in rows.items()), key=proxier.phase)) == []
    return maps


def count(map_: Map, row: int, *words: int) -> None:
    """Each CPU counts the same, and CPU n n more of the first."""
    values = b"".join(struct.pack(f"={len(words)}Q", words[0] + cpu, *words[1:]) for cpu in range(CPUS))
    assert map_.update_batch(struct.pack("=I", row), values, 1) == (1, None)


def metric(hook: str, reason: str) -> int:
    return abi.constant(f"HOOK_{hook}") * abi.constant("REASON_COUNT") + abi.constant(f"REASON_{reason}")


MORE = CPUS * (CPUS - 1) // 2


def stats(state: Path, *command: str) -> Any:
    result = CliRunner().invoke(cli, [*command, "--state-dir", str(state), "-o", "json"], prog_name="bpfproxy")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_counters_of_a_frontend_and_a_backend(state: Path, maps: Maps) -> None:
    count(maps["frontend_stats"], 3, 1, 2, 3, 40, 50, 600, 700)
    count(maps["backend_stats"], 3, 6, 40, 50, 600, 700)
    frontends = [found for found in stats(state, "service", "list") if any(found["connections"].values())]
    assert len(frontends) == 1
    assert frontends[0]["connections"] == {"connect": CPUS + MORE, "sendmsg": 2 * CPUS, "packet": 3 * CPUS}
    assert frontends[0]["packets"] == {"forward": 40 * CPUS, "reply": 50 * CPUS}
    assert frontends[0]["bytes"] == {"forward": 600 * CPUS, "reply": 700 * CPUS}
    [backend] = [found for found in stats(state, "backend", "list") if found["connections"]]
    assert backend["connections"] == 6 * CPUS + MORE
    assert backend["packets"] == {"forward": 40 * CPUS, "reply": 50 * CPUS}
    assert backend["bytes"] == {"forward": 600 * CPUS, "reply": 700 * CPUS}
    assert stats(state, "service", "show", frontends[0]["service"]) == frontends
    node = stats(state, "stats")
    assert node["connections"] == frontends[0]["connections"]
    assert (node["packets"], node["bytes"]) == (frontends[0]["packets"], frontends[0]["bytes"])
    assert (node["map_rows"]["frontends4"], node["map_rows"]["flows4"]) == (SERVICES, 0)


def test_what_was_not_served(state: Path, maps: Maps) -> None:
    for hook, reason in (
        ("XDP", "SOURCE_RANGE"),
        ("TC_IN", "SOURCE_RANGE"),
        ("XDP", "NO_NEIGHBOUR"),
        ("TC_IN", "NO_NEIGHBOUR"),
        ("CONNECT4", "NO_BACKEND"),
        ("TC_IN", "TRANSLATED"),
    ):
        count(maps["metrics"], metric(hook, reason), 10)
    each = 10 * CPUS + MORE
    node = stats(state, "stats")
    assert node["drops"] == {"source_range": 2 * each, "no_neighbour": each}
    assert node["refusals"] == {"no_backend": each}
    assert node["metrics"]["tc_in"] == {"source_range": each, "no_neighbour": each, "translated": each}


def test_all_reasons_are_known() -> None:
    for reason in (*view.DROPS, *view.REFUSALS):
        abi.constant(f"REASON_{reason.upper()}")


def test_one_by_one_and_in_bulk_are_the_same(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in range(1, SERVICES + 1):
        count(maps["frontend_stats"], row, *(row * 100 + word for word in range(7)))
        count(maps["backend_stats"], row, *(row * 1000 + word for word in range(5)))
    monkeypatch.setattr(view, "_ROWS_AT_ONCE", 7)
    bulk = View(maps).frontends(), View(maps).backends(), View(maps).node()
    monkeypatch.setattr(view, "_SPARSE", 0)
    assert (View(maps).frontends(), View(maps).backends(), View(maps).node()) == bulk
    assert len({tuple(found.packets.values()) for found in bulk[0]}) == SERVICES


def test_a_node_without_services(state: Path, new_maps: NewMaps) -> None:
    new_maps(state / "bpf" / "maps-test")
    with api.open_view(state) as look:
        node = look.node()
    assert node.connections == {"connect": 0, "sendmsg": 0, "packet": 0}
    assert (node.packets, node.drops) == ({"forward": 0, "reply": 0}, {})


@pytest.mark.parametrize(
    "command", [("stats",), ("service", "list"), ("backend", "list"), ("service", "show", "shop/web1")]
)
def test_tables_for_people(state: Path, maps: Maps, command: tuple[str, ...]) -> None:
    count(maps["metrics"], metric("XDP", "NO_ROUTE"), 10)
    result = CliRunner().invoke(cli, [*command, "--state-dir", str(state)], prog_name="bpfproxy")
    assert result.exit_code == 0, result.output
    text = result.stdout.lower()
    assert "packets" in text
    assert "bytes" in text
    if command == ("stats",):
        assert f"no_route{' ' * 4}" in text
        assert "dropped" in text
