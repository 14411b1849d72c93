"""`bpfproxy parity`, as people run it: exit status, matrix, JSON and HTML; and that it finds what a node does wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bpfproxy.lab import netns, remains
from bpfproxy.parity import report as reports
from bpfproxy.parity.report import Report

MODES = ("ebpf", "iptables", "nftables", "userspace")
CASES = ("closed-port", "no-endpoints", "external-local-both", "tcp-endpoint-gone")
COMMAND = [sys.executable, "-P", "-m", "bpfproxy", "parity"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[bytes], Path]:
    """Some cases in all modes that every kernel has, and the page that was written."""
    page = tmp_path_factory.mktemp("parity") / "parity.html"
    options = ["--modes", ",".join(MODES), "--cases", ",".join(CASES), "--html", str(page), "-o", "json"]
    return subprocess.run([*COMMAND, *options], capture_output=True, check=False, timeout=280), page


@pytest.fixture(scope="module")
def report(run: tuple[subprocess.CompletedProcess[bytes], Path]) -> Report:
    return msgspec.json.decode(run[0].stdout, type=Report)


def test_all_modes_do_as_the_semantics_say(
    run: tuple[subprocess.CompletedProcess[bytes], Path], report: Report
) -> None:
    assert [line for cell in report.cells for line in cell.differences] == []
    assert run[0].returncode == 0, run[0].stderr.decode()
    assert [one.mode for one in report.modes] == list(MODES)
    assert [one.missing for one in report.modes] == [""] * len(MODES)
    assert {(cell.case, cell.mode) for cell in report.cells} == {(case, mode) for case in CASES for mode in MODES}


def seen(report: Report, case: str, mode: str, client: str, via: str, talk: str) -> dict[int, Any]:
    """By family."""
    cell = report.cell(case, mode)
    assert cell is not None
    return {
        6 if ":" in one.to[0] else 4: one for one in cell.seen if (one.client, one.via, one.talk) == (client, via, talk)
    }


@pytest.mark.parametrize(
    ("mode", "client", "talk", "how"),
    [
        ("ebpf", "pod1c", "tcp", "ECONNREFUSED by hook"),
        ("ebpf", "client", "tcp", "ECONNREFUSED by icmp"),
        ("iptables", "client", "tcp", "ECONNREFUSED by icmp"),
        ("nftables", "pod1c", "udp-unconnected", "ECONNREFUSED by icmp"),
        ("userspace", "client", "tcp", "ECONNREFUSED by reset"),
    ],
)
def test_the_report_says_who_refused(report: Report, mode: str, client: str, talk: str, how: str) -> None:
    for one in seen(report, "no-endpoints", mode, client, "ClusterIP", talk).values():
        assert set(one.outcomes) == {how}
        assert 0 < one.slowest < 2.5
        if how.endswith("icmp"):
            assert one.peers == [one.to[0]]


def test_the_report_says_who_answered_and_saw_whom(report: Report) -> None:
    by_family = seen(report, "external-local-both", "iptables", "client", "NodePort", "tcp")
    assert by_family.keys() == {4, 6}
    for one in by_family.values():
        assert one.outcomes.keys() == {"pod1a", "pod1b"}
        assert one.clients.keys() == {"pod1a", "pod1b"}
        assert one.peers == [one.to[0]]
    assert by_family[4].clients["pod1a"] == ["172.18.0.2"]


def test_the_page_has_the_matrix_and_the_reasons(
    run: tuple[subprocess.CompletedProcess[bytes], Path], report: Report
) -> None:
    page = run[1].read_text()
    assert page.startswith("<!DOCTYPE html>")
    for word in (*MODES, *CASES, "✓", "≈"):
        assert word in page
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    for divergence in reports.shown(report.cells):
        assert report.reasons[divergence].split(":")[0] in text


def test_reports_of_two_runs_make_one_matrix(
    run: tuple[subprocess.CompletedProcess[bytes], Path], report: Report, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(run[0].stdout)
    options = ["--modes", "", "--cases", ",".join(CASES), "--join", str(other), "-o", "json"]
    joined = subprocess.run([*COMMAND, *options], capture_output=True, check=True)
    assert msgspec.json.decode(joined.stdout, type=Report) == report


def test_what_a_node_does_wrong_is_found(tmp_path: Path) -> None:
    """A rule of somebody else drops what is translated, on one node."""
    page = tmp_path / "parity.html"
    options = ["--modes", "nftables", "--cases", "cluster-ip,headless", "--html", str(page)]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        said = (re.fullmatch(r"nftables: lab (\S+)", line.rstrip()) for line in process.stderr)
        lab_id = next(found[1] for found in said if found)
        with netns.inside(f"{remains.prefix(lab_id)}-node1"):
            rule = ["-t", "mangle", "-A", "FORWARD", "-p", "tcp", "--dport", "8080", "-j", "DROP"]
            subprocess.run(["iptables", "-w", *rule], check=True)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert re.search(r"cluster-ip.*\x1b\[1;31[\d;]*m✗", output)
    assert re.search(r"headless.*\x1b\[32[\d;]*m✓", output)
    assert "cluster-ip: tcp from pod1c to ClusterIP 10.96.1.0 port 80: 1 of 1 requests failed" in output
    assert "fd00:10:96::1:0" not in output
    assert "✗" in page.read_text()
