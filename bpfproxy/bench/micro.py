"""Small measurements of each part by itself: `python -m bpfproxy.bench.micro`, or `./dev bench-micro`.

Needs root, and for true figures a machine that does nothing else. Leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from bpfproxy.bench import change, connect, lockstep, outside, packet, start, sync
from bpfproxy.bench.figures import Figure
from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.bench.report import Report, replace_between_markers
from bpfproxy.errors import BpfproxyError
from bpfproxy.lab import remains
from bpfproxy.lab.place import PROJECT

Measure = Callable[..., Iterator[Figure]]

MEASURES: dict[str, Measure] = {
    module.NAME: module.measure for module in (connect, outside, packet, lockstep, change, sync, start)
}
DOCUMENT = PROJECT / "docs" / "performance.md"


@click.command()
@click.option("--quick", is_flag=True, help="A short run on few services: it shows that all works, not how fast.")
@click.option("--only", type=click.Choice(tuple(MEASURES)), multiple=True, help="These measures alone.")
@click.option("-o", "--output", type=click.Choice(("table", "json", "markdown")), default="table", show_default=True)
@click.option("--update-docs", is_flag=True, help=f"Write the tables into {DOCUMENT.relative_to(PROJECT)} as well.")
def main(quick: bool, only: tuple[str, ...], output: str, update_docs: bool) -> None:
    """Measure connections through the hooks, and from outside, beside direct ones; packets in the programs alone and
    through a node; the time from a change to the maps, full syncs, and the agent's start and memory. Figures that are
    not as aimed are shown so; they are no failure."""
    if os.geteuid() != 0:
        raise click.ClickException("programs are loaded and network namespaces made: run it as root")
    if update_docs and (quick or only):
        raise click.UsageError("--update-docs is for a full run")
    remains.sweep()
    report = Report(quick=quick)
    status = Console(stderr=True)
    report.note_load()
    with status.status("…") as line:
        for name in only or MEASURES:
            _run(name, report, line)
            report.note_load()
    match output:
        case "json":
            print(report.json())
        case "markdown":
            print(report.markdown())
        case _:
            Console(width=None if os.isatty(1) else 160).print(report.table())
    if update_docs:
        _update(DOCUMENT, report)


def _run(name: str, report: Report, line: Status) -> None:
    """One measure in a place of its own."""
    line.update(f"{name} …")
    try:
        with Ground() as ground:
            for figure in MEASURES[name](ground, quick=report.quick):
                report.figures.append(figure)
                line.update(f"{name}: {figure.name}")
    except (BpfproxyError, BenchError) as error:
        raise click.ClickException(str(error)) from error


def _update(document: Path, report: Report) -> None:
    document.write_text(replace_between_markers(document.read_text(), report.markdown()))


if __name__ == "__main__":
    main()
