"""What sessions of tests leave that are ended in the middle: nothing, or nothing after the next one has begun."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfproxy.lab import remains

MODULE = Path(__file__).with_name("hanging.py")
ROOT = MODULE.parents[3]
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
LONG = "300"
MADE = {
    "attachments": {"namespace", "cgroup", "link", "bpffs", "pin", "directory"},
    "packets": {"namespace", "bpffs", "pin", "directory"},
    "a_lab": {"namespace", "cgroup", "process", "directory"},
}


@contextlib.contextmanager
def hanging(test: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A session under `timeout` that is in the middle of a test; and its own process id."""
    tests = (f"{MODULE}::test_an_event_loop_that_handles_signals", f"{MODULE}::test_{test}")
    command = ("timeout", LONG, *PYTEST, "--capture=no", *tests)
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        found = next((line for line in lines if "hangs" in line), "it ended")
        yield process, int(found.split()[-1])


def kinds(pid: int) -> set[str]:
    return {line.split()[0] for line in remains.leftovers(pid)}


@pytest.mark.parametrize("test", MADE)
def test_one_that_times_out_leaves_nothing(test: str) -> None:
    with hanging(test) as (process, pid):
        assert kinds(pid) == MADE[test]
        process.send_signal(signal.SIGTERM)  # handed on, to the session and to its whole group, as when time is up
        output, _ = process.communicate(timeout=60)
    assert remains.leftovers(pid) == set()
    assert "KeyboardInterrupt: SIGTERM" in output
    assert "error" not in output.lower()


@pytest.mark.parametrize("test", MADE)
def test_one_that_is_killed_leaves_nothing_for_the_next(test: str) -> None:
    with hanging(test) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert kinds(pid) >= MADE[test] - {"process"}
    subprocess.run([*PYTEST, "--collect-only", str(MODULE)], cwd=ROOT, check=True, capture_output=True)
    assert remains.leftovers(pid) == set()
