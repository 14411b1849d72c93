"""pytest and the parity run inside a virtual machine."""

from __future__ import annotations

import compileall
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bpfproxy.lab import wait
from bpfproxy.lab.kernel import machine
from bpfproxy.lab.kernel.debian import Kernel
from bpfproxy.lab.place import PROJECT

DEFAULT: Final = ("tests/kernels",)
PARITY: Final = "parity.json"
_TEST_TIMEOUT: Final = 900
"""Seconds for one test: the processor is emulated."""
_PATIENCE: Final = 10
"""How much longer than usual the lab waits for what its processes do."""


def run(kernel: Kernel, arguments: Sequence[str], results: Path, timeout: float) -> int:
    """Run pytest with `arguments` on `kernel`; returns its status. `results` gets log, junit.xml and status."""
    return run_command(kernel, pytest_command(arguments, machine.RESULTS), results, timeout)


def parity(kernel: Kernel, arguments: Sequence[str], results: Path, timeout: float) -> int:
    """Run the ipvs mode of `bpfproxy parity` with `arguments` on `kernel`; returns its status. `results` gets log and
    PARITY."""
    command = [sys.executable, "-m", "bpfproxy", "parity", "--modes", "ipvs", "--output", "json", *arguments]
    return run_command(kernel, ["sh", "-c", f"{shlex.join(command)} >{machine.RESULTS / PARITY}"], results, timeout)


def run_command(kernel: Kernel, command: Sequence[str], results: Path, timeout: float) -> int:
    """Run a command of this checkout on `kernel`; see `machine.run`."""
    results.mkdir(parents=True, exist_ok=True)
    # The checkout is read-only in the guest: without this every process there would compile what it imports.
    compileall.compile_dir(PROJECT / "bpfproxy", quiet=1)
    return machine.run(
        kernel, command, results, directory=PROJECT, environment=_environment(), cached=_python(), timeout=timeout
    )


def pytest_command(arguments: Sequence[str], results: Path) -> list[str]:
    """pytest that leaves its cache alone, since the checkout is read-only."""
    options = ["-p", "no:cacheprovider", f"--timeout={_TEST_TIMEOUT}", f"--junitxml={results / 'junit.xml'}"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def _environment() -> dict[str, str]:
    """For the command inside: where it finds programs, and where it may write."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
        wait.PATIENCE_VARIABLE: str(_PATIENCE),
    }


def _python() -> list[Path]:
    """The directories that Python reads most of, none inside another. Few: each costs a variable of the guest's init,
    of which a kernel takes 32."""
    system = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib", "deb_system"))
    found = {Path(path).resolve() for path in (PROJECT, sys.prefix, *system)}
    return sorted(path for path in found if not found.intersection(path.parents))
