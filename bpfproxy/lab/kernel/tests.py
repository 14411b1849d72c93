"""pytest inside a virtual machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bpfproxy.lab.kernel import machine
from bpfproxy.lab.kernel.debian import Kernel
from bpfproxy.lab.place import PROJECT

DEFAULT: Final = ("tests/kernels",)
_TEST_TIMEOUT: Final = 900
"""Seconds for one test: the processor is emulated."""


def run(kernel: Kernel, arguments: Sequence[str], results: Path, timeout: float) -> int:
    """Run pytest with `arguments` on `kernel`; returns its status. `results` gets log, junit.xml and status."""
    results.mkdir(parents=True, exist_ok=True)
    return machine.run(
        kernel,
        pytest_command(arguments, results.resolve()),
        results,
        directory=PROJECT,
        environment=environment(),
        timeout=timeout,
    )


def pytest_command(arguments: Sequence[str], results: Path) -> list[str]:
    """pytest that leaves its cache alone, since the checkout is read-only."""
    options = ["-p", "no:cacheprovider", f"--timeout={_TEST_TIMEOUT}", f"--junitxml={results / 'junit.xml'}"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def environment() -> dict[str, str]:
    """For the command inside: where it finds programs, and where it may write."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    }
