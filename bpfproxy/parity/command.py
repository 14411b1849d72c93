"""`bpfproxy parity`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import click
import msgspec
from rich.console import Console

from bpfproxy.errors import InputError
from bpfproxy.lab import cases, remains
from bpfproxy.lab.cases import Case
from bpfproxy.lab.node import LoaderName
from bpfproxy.lab.oracle import OurMode
from bpfproxy.parity import report as reports
from bpfproxy.parity import show
from bpfproxy.parity.kube_proxy import find
from bpfproxy.parity.report import CaseAbout, Report
from bpfproxy.parity.run import MODES, Column, KubeProxy, Ours, run_column
from bpfproxy.parity.scenarios import SCENARIOS
from bpfproxy.parity.stage import Scenario


def all_cases() -> list[Case | Scenario]:
    """Those that are data, then those in which something happens."""
    return [*cases.load(), *SCENARIOS]


@click.command(short_help="Compare the proxiers on the same cases.")
@click.option("--modes", metavar="MODE,...", default=",".join(MODES), show_default=True, help="Proxiers to compare.")
@click.option("--cases", "patterns", metavar="PATTERN,...", default="*", help="Cases by name, such as node-*.")
@click.option("--kube-proxy", "kube_proxy", metavar="PATH", type=Path, help="One more column; default: that on PATH.")
@click.option(
    "--kube-proxy-mode", type=click.Choice(["iptables", "ipvs", "nftables"]), default="iptables", show_default=True
)
@click.option("--join", "joined", metavar="FILE", multiple=True, type=Path, help="Reports of other runs to join.")
@click.option("--html", metavar="FILE", type=Path, help="Write a page with the matrix, too.")
@click.option("--loader", type=click.Choice(["bcc", "prebuilt"]), default="prebuilt", help="Of mode ebpf.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Output format.")
@click.option("--list", "listed", is_flag=True, help="List the cases, and end.")
def parity(
    modes: str,
    patterns: str,
    kube_proxy: Path | None,
    kube_proxy_mode: Literal["iptables", "ipvs", "nftables"],
    joined: tuple[Path, ...],
    html: Path | None,
    loader: LoaderName,
    output: str,
    listed: bool,
) -> int:
    """Send the same traffic through every proxier, each in a lab of its own, and compare what is seen with what the
    semantics say.

    Needs root. Nothing of the machine's own network is touched. Exit status 1 if anything differs beyond the documented
    divergences.
    """
    wanted = _chosen(patterns)
    console = Console(stderr=True)
    if listed:
        for one in wanted:
            click.echo(f"{one.name:28} {one.about}")
        return 0
    remains.sweep()
    runs, cells = [], []
    columns: list[Column] = [Ours(mode, loader) for mode in _modes(modes)]
    if binary := find(kube_proxy, kube_proxy_mode):
        columns.append(KubeProxy(binary))
    for column in columns:
        # On a terminal one line that changes, elsewhere a line each.
        with console.status(f"{column.mode} …") if sys.stderr.isatty() else contextlib.nullcontext() as status:
            run, found = run_column(column, wanted, status.update if status else _say)
        runs.append(run)
        cells += found
    abouts = tuple(CaseAbout(one.name, one.about, one.rules) for one in wanted)
    report = Report(tuple(runs), abouts, tuple(cells))
    report = reports.join([*map(reports.read, joined), report])
    if html:
        show.html(report, html)
    if output == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    else:
        console = Console()
        if not console.is_terminal:
            console.width = show.WIDTH
        console.print(show.matrix(report))
    return int(report.failed)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _chosen(patterns: str) -> list[Case | Scenario]:
    everything = all_cases()
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not any(fnmatchcase(one.name, pattern) for one in everything):
            raise InputError(f"--cases {pattern}: expected names or patterns of cases; --list shows them")
    return [one for one in everything if any(fnmatchcase(one.name, pattern) for pattern in wanted)]


def _modes(text: str) -> Sequence[OurMode]:
    chosen: list[OurMode] = []
    for name in (part.strip() for part in text.split(",")):
        if not name:
            continue
        mode = next((mode for mode in MODES if mode == name), None)
        if mode is None:
            raise InputError(f"--modes {name}: expected some of {', '.join(MODES)}")
        chosen.append(mode)
    return chosen
