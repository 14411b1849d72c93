"""A parity report for the eye: a matrix in colour, what differs, and the reasons of divergences; as text and HTML."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bpfproxy.lab.divergences import Divergence
from bpfproxy.parity.report import Cell, Report, shown

WIDTH: Final = 120
"""Columns where there is no terminal that says how wide it is."""
_MOST: Final = 8
"""Lines of one cell that are shown."""
_MARKS: Final = {"same": ("✓", "green"), "diverges": ("≈", "yellow"), "differs": ("✗", "bold red")}


def matrix(report: Report) -> RenderableType:
    """All of a report."""
    return Group(_table(report), *_footnotes(report), *_differences(report), _summary(report))


def html(report: Report, path: Path) -> None:
    """Write a page with the same."""
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(matrix(report))
    path.write_text(console.export_html(inline_styles=True), encoding="utf-8")


def _table(report: Report) -> Table:
    kernels = {run.kernel for run in report.modes}
    title = f"parity on Linux {kernels.pop()}" if len(kernels) == 1 else "parity"
    table = Table(title=title, title_justify="left", row_styles=("", "on grey7"))
    table.add_column("case", no_wrap=True)
    table.add_column("rules", justify="right", no_wrap=True)
    for run in report.modes:
        kernel = run.kernel if kernels else ""
        header = "\n".join(filter(None, (run.mode.replace("kube-proxy-", "kube-proxy\n"), run.version, kernel)))
        table.add_column(header, justify="center", no_wrap=True)
    table.add_column("about")
    notes = {divergence: number for number, divergence in enumerate(shown(report.cells), 1)}
    for about in report.cases:
        cells = []
        for run in report.modes:
            cell = report.cell(about.name, run.mode)
            cells.append(Text("–", "dim") if cell is None else _mark(cell, notes))
        table.add_row(about.name, ", ".join(map(str, about.rules)), *cells, _shortened(about.about))
    return table


def _shortened(text: str) -> Text:
    """As much of it as there is room for: its column is the only one that gives way."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _mark(cell: Cell, notes: Mapping[Divergence, int]) -> Text:
    mark, style = _MARKS[cell.verdict]
    numbers = ",".join(map(str, sorted(notes[divergence] for divergence in cell.divergences)))
    return Text.assemble((mark, style), (f" {numbers}" if numbers else "", "dim"))


def _footnotes(report: Report) -> Iterator[Text]:
    for number, divergence in enumerate(shown(report.cells), 1):
        yield Text.assemble((f"{number:>3} ", "yellow"), report.reasons[divergence])
    for run in report.modes:
        if run.missing:
            why = f"{run.mode} could not run on {run.kernel}: {run.missing}; --join adds its column from elsewhere"
            yield Text.assemble(("  – ", "dim"), why)


def _differences(report: Report) -> Iterator[Text]:
    for cell in report.cells:
        for line in cell.differences[:_MOST]:
            yield Text.assemble(("✗ ", "bold red"), (f"{cell.mode}: ", "bold"), line)
        if len(cell.differences) > _MOST:
            yield Text(f"  and {len(cell.differences) - _MOST} more of {cell.case}", "dim")


def _summary(report: Report) -> Text:
    parts = []
    for run in report.modes:
        verdicts = [cell.verdict for cell in report.cells if cell.mode == run.mode]
        probes = sum(cell.probes for cell in report.cells if cell.mode == run.mode)
        if verdicts:
            parts.append(
                f"{run.mode}: {verdicts.count('same')} same, {verdicts.count('diverges')} as documented,"
                f" {verdicts.count('differs')} different, {probes} kinds of traffic"
            )
    return Text("\n".join(parts))
