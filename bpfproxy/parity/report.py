"""What a parity run found: a cell for each case and mode. Reports of several kernels can be joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from bpfproxy.errors import InputError
from bpfproxy.lab.divergences import REASONS, Divergence

Verdict = Literal["same", "diverges", "differs", "missing"]

FORMAT: Final = 1


class Seen(Struct, frozen=True, omit_defaults=True):
    """What came of one kind of traffic."""

    client: str
    via: str
    to: tuple[str, int]
    talk: str
    outcomes: dict[str, int]
    """How many requests each place answered; of those that failed, by the error's name and, of refusals, by what:
    `ECONNREFUSED by icmp`, `... by reset`, `... by hook` (the call itself failed)."""
    slowest: float
    """Seconds that the slowest request took."""
    clients: dict[str, list[str]] = {}
    """Addresses of the client as the server in each place saw them."""
    peers: list[str] = []
    """Addresses that the client saw itself talk to, or was told of an error about."""


class Cell(Struct, frozen=True):
    """One case in one mode."""

    case: str
    mode: str
    probes: int
    """Kinds of traffic that were sent."""
    differences: tuple[str, ...] = ()
    """From what had to come out, a line each."""
    divergences: tuple[Divergence, ...] = ()
    """Documented ones that showed, in the order of their names."""
    seconds: float = 0.0
    seen: tuple[Seen, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """`diverges`: other than the semantics say, in a documented way."""
        if self.differences:
            return "differs"
        return "diverges" if self.divergences else "same"


class ModeRun(Struct, frozen=True):
    """A mode, and where it ran. `missing`: why it could not."""

    mode: str
    kernel: str
    missing: str = ""
    version: str = ""
    """Of kube-proxy."""


class CaseAbout(Struct, frozen=True):
    """What a row of the matrix is about."""

    name: str
    about: str
    rules: tuple[int, ...]


class Report(Struct, frozen=True):
    """The matrix."""

    modes: tuple[ModeRun, ...]
    cases: tuple[CaseAbout, ...]
    cells: tuple[Cell, ...]
    reasons: dict[Divergence, str] = msgspec.field(default_factory=lambda: dict(REASONS))
    format: int = FORMAT

    @property
    def failed(self) -> bool:
        """Whether anything differs beyond the documented divergences."""
        return any(cell.differences for cell in self.cells)

    def cell(self, case: str, mode: str) -> Cell | None:
        """One cell, if it was run."""
        return next((cell for cell in self.cells if (cell.case, cell.mode) == (case, mode)), None)


def join(reports: Sequence[Report]) -> Report:
    """One matrix. Where two reports have the same mode, the one that could run it counts, and of two the later."""
    modes: dict[str, tuple[ModeRun, Report]] = {}
    for report in reports:
        for run in report.modes:
            if run.mode not in modes or not run.missing:
                modes[run.mode] = (run, report)
    cases = {about.name: about for report in reports for about in report.cases}
    return Report(
        modes=tuple(run for run, _ in modes.values()),
        cases=tuple(cases.values()),
        cells=tuple(cell for run, report in modes.values() for cell in report.cells if cell.mode == run.mode),
    )


def read(path: Path) -> Report:
    """A report that was written as JSON. Raises InputError."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: expected a report of `bpfproxy parity -o json`: {error}") from error
    if report.format != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT}, not {report.format}")
    return report


def shown(cells: Iterable[Cell]) -> list[Divergence]:
    """The divergences that showed in some cell, in the order of the list."""
    seen = {divergence for cell in cells for divergence in cell.divergences}
    return [divergence for divergence in REASONS if divergence in seen]
