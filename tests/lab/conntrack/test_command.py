"""`bpfproxy conntrack` over the maps of a node."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bpfproxy import api, status
from bpfproxy.cli import cli
from bpfproxy.datapath import abi
from bpfproxy.errors import NotRunningError
from bpfproxy.model.address import parse_address
from bpfproxy.model.flow import Flow, FlowFilter
from bpfproxy.proxiers.ebpf import flowcodec
from bpfproxy.proxiers.ebpf.snapshot import Maps
from tests.lab.conntrack.flow_rows import Clock, End, Writer
from tests.lab.conntrack.flows import (
    CLIENT,
    CLIENT6,
    DNS,
    NODE,
    NODE6,
    POD,
    POD2,
    POD6,
    SILENT,
    TCP,
    UDP,
    WEB,
    WEB6,
    agent_applies,
    service,
)

# ---- the command line ------------------------------------------------------------------------------------------


def call(state: Path, *args: object) -> Result:
    command = ["conntrack", *(str(arg) for arg in args), "--state-dir", str(state)]
    result = CliRunner().invoke(cli, command, prog_name="bpfproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def node(state: Path, maps: Maps) -> Path:
    """A state directory with flows of some Services."""
    web6 = service("web6", WEB6, TCP, POD6)
    agent_applies(maps, service("web", WEB, TCP, POD), service("dns", DNS, UDP, POD2), web6)
    rows = Writer(maps, Clock(flowcodec.now()))
    ids = frontend_ids(maps)
    rows.add(CLIENT, WEB, POD, frontend=ids[WEB], idle=10, age=70, flags=flowcodec.LOCAL)
    rows.add((CLIENT[0], 40001), WEB, POD, frontend=ids[WEB], source=NODE, sides=SILENT)
    rows.add(CLIENT, DNS, POD2, UDP, frontend=ids[DNS], sides=SILENT)
    rows.add(CLIENT6, WEB6, POD6, frontend=ids[WEB6], source=NODE6)
    rows.add((CLIENT[0], 5), POD, POD, flags=flowcodec.DIRECT)
    return state


def frontend_ids(maps: Maps) -> dict[End, int]:
    found: dict[End, int] = {}
    for end in (WEB, DNS, WEB6):
        family = 6 if ":" in end[0] else 4
        for key, value in maps[f"frontends{family}"].items():
            fields = abi.layout(f"struct frontend{family}_key").unpack(key)
            if fields[0] == parse_address(end[0]):
                found[end] = abi.layout("struct frontend").unpack(value)[1]
    return found


class TestCommandLine:
    def test_lines_look_like_conntracks(self, node: Path) -> None:
        result = call(node, "list")
        assert result.exit_code == 0
        lines = sorted(map(without_times, result.stdout.splitlines()))
        assert lines == [
            "tcp      6 T ESTABLISHED src=192.0.2.7 dst=10.244.1.1 sport=5 dport=8080 backend=10.244.1.1:8080"
            " [DIRECT] age=T",
            "tcp      6 T ESTABLISHED src=192.0.2.7 dst=10.96.0.1 sport=40000 dport=80 backend=10.244.1.1:8080"
            " [LOCAL] age=T service=shop/web:main",
            "tcp      6 T ESTABLISHED src=2001:db8::7 dst=fd00:96::1 sport=40000 dport=80 backend=[fd00:244::1]:8080"
            " src=fd00:244::1 dst=2001:db8::1 sport=8080 dport=61001 age=T service=shop/web6:main",
            "tcp      6 T SYN_SENT src=192.0.2.7 dst=10.96.0.1 sport=40001 dport=80 backend=10.244.1.1:8080"
            " src=10.244.1.1 dst=192.0.2.1 sport=8080 dport=61001 age=T service=shop/web:main",
            "udp      17 T src=192.0.2.7 dst=10.96.0.2 sport=40000 dport=53 [UNREPLIED] backend=10.244.1.2:8080 age=T"
            " service=shop/dns:main",
        ]
        [line] = call(node, "list", "--client", "192.0.2.7:40000", "--vip", "10.96.0.1").stdout.splitlines()
        assert 86380 <= int(line.split()[2]) <= 86390
        assert 70 <= int(line.split("age=")[1].split()[0]) <= 80

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ((), 5),
            (("--family", 6), 1),
            (("--protocol", "udp"), 1),
            (("--state", "established"), 3),
            (("--state", "SYN_SENT"), 1),
            (("--service", "shop/web"), 2),
            (("--service", "shop/web:main", "--state", "syn_sent"), 1),
            (("--service", "web"), 0),
            (("--vip", "10.96.0.0/24"), 3),
            (("--client", "2001:db8::/32"), 1),
            (("--backend", "[fd00:244::1]:8080"), 1),
            (("--backend", "10.244.1.1:8080"), 3),
        ],
    )
    def test_options_choose(self, node: Path, options: tuple[object, ...], count: int) -> None:
        assert len(call(node, "list", *options).stdout.splitlines()) == count
        assert len(json.loads(call(node, "list", *options, "-o", "json").stdout)) == count
        assert json.loads(call(node, "flush", *options, "-o", "json").stdout) == {"flushed": count}
        assert len(call(node, "list").stdout.splitlines()) == 5 - count

    def test_flush_says_how_many(self, node: Path) -> None:
        assert call(node, "flush", "--protocol", "udp").stdout == "1 flow flushed\n"
        assert call(node, "flush").stdout == "4 flows flushed\n"
        assert call(node, "flush").stdout == "0 flows flushed\n"

    def test_json(self, node: Path) -> None:
        [flow] = json.loads(call(node, "list", "--family", 6, "-o", "json").stdout)
        assert list(flow) == list(Flow.__struct_fields__)
        assert flow["client"] == "2001:db8::7"
        assert (flow["protocol"], flow["state"], flow["service"]) == ("tcp", "ESTABLISHED", "shop/web6:main")

    def test_times_are_those_of_the_agents_settings(self, node: Path) -> None:
        status.write(
            node,
            status.AgentStatus(
                pid=None, version="1", node="n", started="", settings={"conntrack_tcp_established": 100.0}
            ),
        )
        [line] = call(node, "list", "--service", "shop/web", "--state", "established").stdout.splitlines()
        assert 80 <= int(line.split()[2]) <= 90

    @pytest.mark.parametrize(
        ("options", "status", "message"),
        [
            (("--vip", "web"), 3, "web: expected an address or a range, or ADDRESS:PORT"),
            (("--state", "open"), 2, "Invalid value for '--state'"),
            (("--protocol", "icmp"), 2, "Invalid value for '--protocol'"),
        ],
    )
    @pytest.mark.parametrize("command", ["list", "flush"])
    def test_bad_use(self, tmp_path: Path, command: str, options: tuple[str, ...], status: int, message: str) -> None:
        result = call(tmp_path, command, *options)
        assert (result.exit_code, result.stdout) == (status, "")
        assert message in result.stderr

    @pytest.mark.parametrize("command", ["list", "flush"])
    def test_no_datapath(self, tmp_path: Path, command: str) -> None:
        result = call(tmp_path, command)
        assert result.exit_code == NotRunningError.exit_code
        assert result.stderr.startswith(f"bpfproxy: no datapath under {tmp_path}")

    def test_the_library(self, node: Path) -> None:
        assert len(api.list_flows(node)) == 5
        assert api.flush_flows(node, FlowFilter(family=6)) == 1


def without_times(line: str) -> str:
    return re.sub(r"age=\d+", "age=T", re.sub(r"^(\w+ +\d+) \d+", r"\1 T", line))
