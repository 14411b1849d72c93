"""Waiting for what the kernel or another process does: polls with a deadline, never a fixed sleep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

PATIENCE_VARIABLE: Final = "BPFPROXY_LAB_PATIENCE"
PATIENCE: Final = float(os.environ.get(PATIENCE_VARIABLE, "1"))
"""What deadlines for the lab's own processes are multiplied with: on an emulated processor they are slow."""


def wait_until(probe: Callable[[], T], timeout: float, what: str, interval: float = 0.005) -> T:
    """Call `probe` until it returns something true, and return that; raises TimeoutError naming `what`. The deadline
    is `timeout` seconds times PATIENCE.

    The pause between two calls grows from `interval` to 0.1 s.
    """
    deadline = time.monotonic() + timeout * PATIENCE
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout:g} s until {what}, in vain")
        time.sleep(interval)
        interval = min(interval * 1.5, 0.1)
