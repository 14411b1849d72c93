"""A run of the bench: as a table for people, as Markdown for docs/performance.md, as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct, field
from rich.table import Table

from bpfproxy.bench.figures import Figure

BEGIN = "<!-- bench-micro: begin -->"
END = "<!-- bench-micro: end -->"


class Report(Struct):
    """All figures of a run, and what it ran on."""

    quick: bool
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    machine: str = field(default_factory=lambda: machine())
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    """Processes that ran or waited for a CPU at the start, mean of a minute: well under 1 on an idle machine."""
    figures: list[Figure] = field(default_factory=list)

    def json(self) -> str:
        """All of it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def table(self) -> Table:
        """A table for people."""
        table = Table(title=f"{self.machine}; load at the start {self.load}{'; quick' if self.quick else ''}")
        for title in _TITLES:
            table.add_column(title, justify="left" if title == _TITLES[0] else "right", overflow="fold")
        for _, figures in self._groups():
            for item in figures:
                cells = _cells(item)
                style = {True: "green", False: "red", None: ""}[item.met]
                table.add_row(*cells[:-1], f"[{style}]{cells[-1]}[/]" if style else cells[-1])
            table.add_section()
        return table

    def markdown(self) -> str:
        """What stands between the markers in docs/performance.md."""
        lines = [f"Measured on {self.date}: {self.machine}; load at the start {self.load}.", ""]
        for measure, figures in self._groups():
            titles = (_HEADINGS.get(measure, measure), *_TITLES[1:])
            lines += [_row(titles), _row(("---", *["---:"] * (len(titles) - 1)))]
            lines += [_row(_cells(item)) for item in figures]
            lines.append("")
        return "\n".join(lines)

    def _groups(self) -> Iterator[tuple[str, list[Figure]]]:
        for measure in dict.fromkeys(item.measure for item in self.figures):
            yield measure, [item for item in self.figures if item.measure == measure]


_TITLES = ("figure", "median", "95 % interval", "p99", "samples", "aim", "")
_HEADINGS = {
    "connect": "connections and datagrams",
    "change": "a change",
    "sync": "control plane",
    "start": "the agent",
}


def machine() -> str:
    """This machine in general terms."""
    release = ".".join(platform.release().split(".")[:2])
    kind = "virtual machine" if "hypervisor" in Path("/proc/cpuinfo").read_text() else "machine"
    return f"{kind}, {os.cpu_count()} cores, Linux {release}, {platform.machine()}, Python {platform.python_version()}"


def replace_between_markers(text: str, content: str) -> str:
    """`text` with `content` between its markers. Raises ValueError unless each is there once, in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected {BEGIN} and {END}, once each")
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{after}"


def _cells(item: Figure) -> tuple[str, ...]:
    show = _DIGITS[item.unit]
    unit = {"ratio": "", "ns/op": " ns"}.get(item.unit, f" {item.unit}")
    rate = f" ({1e9 / item.value:,.0f}/s)" if item.unit == "ns/op" else ""
    return (
        item.name,
        show.format(item.value) + unit + rate,
        f"{show.format(item.low)} – {show.format(item.high)}" if item.samples > 1 else "",
        show.format(item.p99) if item.unit == "ms" else "",
        str(item.samples),
        f"{item.aim.relation} {item.aim.limit:g}{unit}" if item.aim else "",
        {True: "met", False: "not met", None: ""}[item.met],
    )


_DIGITS = {"ratio": "{:.3f}", "ns/op": "{:,.0f}", "ns": "{:,.0f}", "ms": "{:.3f}", "s": "{:.3f}", "MiB": "{:.1f}"}


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
