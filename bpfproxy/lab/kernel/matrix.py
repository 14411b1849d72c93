"""What each kernel gives: the same survey and the same tests on all of them, and the table in docs/kernels.md."""

from __future__ import annotations

import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bpfproxy.lab.kernel import debian, machine, tests
from bpfproxy.lab.kernel.survey import Fact, Survey
from bpfproxy.lab.place import PROJECT

DOCUMENT: Final = PROJECT / "docs" / "kernels.md"
RUNNING: Final = "running"
"""The kernel that this machine runs: no virtual one is needed for it."""

CHECKS: Final[dict[str, tuple[str, ...]]] = {
    "socket level: every program loads, by either loader": (
        "tests/lab/datapath/test_loaders.py::test_loads_every_hook_and_pins_every_map",
    ),
    "socket level: every program attaches, is replaced, is detached": (
        "tests/lab/datapath/test_attach.py::test_create_switch_detach",
    ),
    "devices: XDP and tc programs attach, are replaced, are detached": (
        "tests/lab/datapath/test_device.py::test_programs_of_either_loader_run[clsact-bcc]",
        "tests/lab/datapath/test_device.py::test_programs_of_either_loader_run[clsact-prebuilt]",
    ),
    "packet level: every program loads, by either loader, and TCP is forwarded on real devices": (
        "tests/packet/test_on_devices.py::test_tc_takes_what_xdp_leaves",
    ),
    "packet tables: TCP by a ClusterIP, to backends of this and of another node": ("tests/packet/test_forward.py",),
    "lab: an agent serves pods and a node, goes, and comes back": (
        "tests/lab/test_lifecycle.py::test_two_nodes_side_by_side[bcc]",
    ),
}
"""Groups of tests, by what they show."""
_ONLY: Final = "not UDP and not SCTP and not (test_forward and (bcc or NODE_PORT or EXTERNAL_IP or LOAD_BALANCER))"
_TIMEOUT: Final = 3600.0


@dataclass(frozen=True)
class Result:
    """What came of one kernel."""

    survey: Survey
    outcomes: dict[str, Counter[str]]
    """By group of tests: how many passed, failed, ..."""

    @property
    def refusal(self) -> str:
        """Why no agent runs on it; empty if one does."""
        return "; ".join(f"{fact.name}: {fact.consequence}" for fact in self.survey.facts if _refuses(fact))


def run(version: str, results: Path) -> Result:
    """Survey and tests on one kernel: a version of `debian.SUITES`, or RUNNING."""
    results = results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    wanted = [test for group in CHECKS.values() for test in group]
    inside = results if version == RUNNING else machine.RESULTS
    pytest = tests.pytest_command([*wanted, "-q", "-k", _ONLY], inside)
    survey = [sys.executable, "-m", "bpfproxy.lab.kernel.survey", str(inside / "survey.json")]
    command = ["sh", "-c", f"{shlex.join(survey)} && {shlex.join(pytest)}"]
    for name in ("survey.json", "junit.xml"):
        (results / name).unlink(missing_ok=True)
    if version == RUNNING:
        subprocess.run(command, cwd=PROJECT, check=False, timeout=_TIMEOUT)
    else:
        tests.run_command(debian.fetch(version), command, results, _TIMEOUT)
    return read(results)


def read(results: Path) -> Result:
    """What a run left in its directory. Raises MachineError if it came to no end."""
    try:
        survey = msgspec.json.decode((results / "survey.json").read_bytes(), type=Survey)
        refused = any(_refuses(fact) for fact in survey.facts)
        cases = [] if refused else list(ET.parse(results / "junit.xml").getroot().iter("testcase"))
    except OSError as error:
        raise machine.MachineError(f"no survey and tests in {results}") from error
    outcomes: dict[str, Counter[str]] = {group: Counter() for group in CHECKS}
    for case in cases:
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for group, wanted in CHECKS.items():
            if name.startswith(wanted):
                outcomes[group][_outcome(case)] += 1
    return Result(survey, outcomes)


def write(results: Sequence[Result]) -> None:
    """Make docs/kernels.md of them."""
    DOCUMENT.write_text("\n".join(_document(results)) + "\n")


def _document(results: Sequence[Result]) -> Iterator[str]:
    yield "# Kernels"
    yield ""
    yield "Made by `./dev kernel-test --update-docs`, which boots each kernel, asks it what `bpfproxy check` asks, and"
    yield "runs tests on it; not to be edited by hand."
    yield ""
    releases = [_kernel(result) for result in results]
    yield from _table(("kernel", *releases), [("agent", *(_agent(result) for result in results))])
    yield ""
    yield "## What `bpfproxy check` finds"
    yield ""
    facts = {fact.name: fact for result in results for fact in result.survey.facts if not _of_machine(fact.name)}
    rows = [
        (name, *(_found(result.survey, name) for result in results), fact.consequence) for name, fact in facts.items()
    ]
    yield from _table(("", *releases, "without it"), rows)
    yield ""
    yield "## What tests show"
    yield ""
    yield from _table(("", *releases), [(group, *(_counts(result, group) for result in results)) for group in CHECKS])
    yield ""
    yield "Skipped: what asks more of BPF_PROG_TEST_RUN than the kernel has (XDP with a context, sums of devices)."
    for result in results:
        if result.refusal:
            yield ""
            yield f"{_kernel(result)} is refused: {result.refusal}."


def _kernel(result: Result) -> str:
    """Debian's by their whole names, the machine's own by its version."""
    release = result.survey.release
    return release if release.endswith("-amd64") else release.partition("-")[0]


def _of_machine(name: str) -> bool:
    """Whether a finding says something of the machine and nothing of its kernel."""
    return name in ("kernel", "uplinks", "capabilities", "CAP_SYS_ADMIN", "libbpf") or name.startswith(
        ("loader", "device ")
    )


def _refuses(fact: Fact) -> bool:
    return fact.required and not fact.available


def _agent(result: Result) -> str:
    return "refused" if result.refusal else "runs"


def _found(survey: Survey, name: str) -> str:
    return next(("yes" if fact.available else "no" for fact in survey.facts if fact.name == name), "–")


def _counts(result: Result, group: str) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.outcomes[group].items())) or "–"


def _outcome(case: ET.Element) -> str:
    for child, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if case.find(child) is not None:
            return outcome
    return "passed"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"|{' --- |' * len(headers)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
