"""For all tests: skips are accounted for, and no device of the machine's own is touched.

A skip that is not on the list in allowed_skips.txt fails the run, so that nothing is left out unseen. Each line there
is a pattern of test ids (as in fnmatch), a colon and the start of the reason that the skip has to give.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bpfproxy.datapath.attach import Outcome
from bpfproxy.datapath.hooks import DeviceHooks
from bpfproxy.lab import netns, remains
from bpfproxy.lab.sandbox import Sandbox

pytest_plugins = ["pytester"]

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


class SkipAccount:
    """Counts skips, and tells those that are allowed from the others."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = list(_read(allowed))
        self.skips: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips.append((report.nodeid, reason.removeprefix("Skipped: ")))

    def refused(self) -> list[tuple[str, str]]:
        """Skips that are not on the list."""
        return [
            (test, reason)
            for test, reason in self.skips
            if not any(fnmatchcase(test, pattern) and reason.startswith(start) for pattern, start in self.allowed)
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused() and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        refused = self.refused()
        if self.skips:
            terminalreporter.section(f"skips: {len(self.skips)}, not allowed: {len(refused)}")
        for test, reason in self.skips:
            mark = "NOT ALLOWED" if (test, reason) in refused else "allowed"
            terminalreporter.line(f"{mark}: {test}: {reason}")


def _read(path: Path) -> Iterator[tuple[str, str]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            # Test ids hold colons in pairs; the one before the reason has a space after it.
            pattern, _, reason = line.partition(": ")
            yield pattern.strip(), reason.strip()


_NAMESPACE = Path("/proc/thread-self/ns/net")


def _refuse_devices_at_home() -> None:
    """Agents that tests start leave packets alone unless they are told otherwise, and in this process nothing is
    attached to devices of the network namespace in which the tests were started."""
    os.environ["BPFPROXY_ACCELERATION"] = "none"
    home, attach = _NAMESPACE.stat().st_ino, DeviceHooks.attach

    def guarded(self: DeviceHooks, *arguments: Any) -> Outcome:
        if _NAMESPACE.stat().st_ino == home:
            raise AssertionError("a test is about to attach a program to a device of this machine")
        return attach(self, *arguments)

    DeviceHooks.attach = guarded  # type: ignore[assignment, method-assign]


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the session as Ctrl-C does: fixtures undo what they did. `timeout` sends it to a process and to its
    group, so a second one has nothing more to say."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    raise KeyboardInterrupt("SIGTERM")


def pytest_sessionstart(session: pytest.Session) -> None:
    remains.sweep()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # For every test, since an event loop that handled SIGTERM leaves it to the system.
    signal.signal(signal.SIGTERM, _end)


def pytest_unconfigure(config: pytest.Config) -> None:
    remains.give_up()  # what a fixture that was interrupted itself has left


def pytest_configure(config: pytest.Config) -> None:
    _refuse_devices_at_home()
    config.pluginmanager.register(SkipAccount(ALLOWED), "skip-account")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Where the test makes namespaces, cgroups and mounts."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Sandbox() as made:
        yield made


@pytest.fixture
def namespace(sandbox: Sandbox) -> Iterator[str]:
    """A network namespace with a loopback, which the test's thread is in."""
    name = sandbox.namespace()
    with netns.inside(name):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield name
