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
    load: list[float] = field(default_factory=list)
    """Processes that ran or waited for a CPU, means of a minute: under 1 before the first measure of an idle machine,
    and then about as many as the measures have themselves."""
    figures: list[Figure] = field(default_factory=list)

    def note_load(self) -> None:
        """To be called before the first measure and after each one."""
        self.load.append(round(os.getloadavg()[0], 1))

    def title(self) -> str:
        """What the figures were measured on."""
        load = f"; load {self.load[0]} before, up to {max(self.load)} meanwhile" if self.load else ""
        return f"{self.machine}{load}{'; quick' if self.quick else ''}"

    def json(self) -> str:
        """All of it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def table(self) -> Table:
        """A table for people."""
        table = Table(title=self.title())
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
        lines = [f"Measured on {self.date}: {self.title()}.", ""]
        for measure, figures in self._groups():
            titles = (_HEADINGS.get(measure, measure), *_TITLES[1:])
            lines += [_row(titles), _row(("---", *["---:"] * (len(titles) - 1)))]
            lines += [_row(_cells(item)) for item in figures]
            lines.append("")
        return "\n".join(lines)

    def _groups(self) -> Iterator[tuple[str, list[Figure]]]:
        for measure in dict.fromkeys(item.measure for item in self.figures):
            yield measure, [item for item in self.figures if item.measure == measure]


_ENOUGH = 100
"""Samples of which a 99th percentile says something."""
_TITLES = ("figure", "median", "95 % interval", "p99", "samples", "aim", "")
_HEADINGS = {
    "connect": "connections and datagrams",
    "outside": "from outside the cluster",
    "packet": "a packet, by BPF_PROG_TEST_RUN",
    "lockstep": "packets through a node",
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
        show.format(item.p99) if item.samples >= _ENOUGH else "",
        str(item.samples),
        f"{item.aim.relation} {item.aim.limit:g}{unit}" if item.aim else "",
        {True: "met", False: "not met", None: ""}[item.met],
    )


_DIGITS = {
    "ratio": "{:.3f}",
    "ns/op": "{:,.0f}",
    "ns": "{:,.0f}",
    "ms": "{:.3f}",
    "s": "{:.3f}",
    "MiB": "{:.1f}",
    "Gb/s": "{:.1f}",
}


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
