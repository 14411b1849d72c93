"""Traffic in the background, for tests that change or kill something meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from bpfproxy.lab.peer.client import Flow, error_name


class Load:
    """Requests in a thread, one every `interval` seconds: on one flow for as long as that works (`hold`), or on a
    new flow each. A held flow that breaks is counted and opened again."""

    def __init__(self, flow: dict[str, Any], hold: bool, interval: float) -> None:
        self._flow, self._hold, self._interval = flow, hold, interval
        self._stop = threading.Event()
        self._errors: Counter[str] = Counter()
        self._places: Counter[str] = Counter()
        self._sent = self._flows = 0
        self._longest = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        opened: Flow | None = None
        while not self._stop.is_set():
            self._sent += 1
            began = time.monotonic()
            try:
                if opened is None:
                    self._flows += 1
                    opened = Flow(**self._flow)
                self._places[opened.exchange()["reply"]["place"]] += 1
                broken = False
            except OSError as error:
                self._errors[error_name(error)] += 1
                broken = True
            if opened is not None and (broken or not self._hold):
                opened.close()
                opened = None
            self._longest = max(self._longest, time.monotonic() - began)
            self._stop.wait(self._interval)
        if opened is not None:
            opened.close()

    def stop(self) -> dict[str, Any]:
        """End it; returns the counts: requests sent and answered (by place), flows opened, errors by name, and the
        longest time that a request took, seconds."""
        self._stop.set()
        self._thread.join()
        return {
            "sent": self._sent,
            "flows": self._flows,
            "places": self._places,
            "errors": self._errors,
            "longest": self._longest,
        }


class Loads:
    """The loads of one place, by name."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def names(self) -> list[str]:
        """Loads that run."""
        return list(self._loads)

    def start(self, name: str, flow: dict[str, Any], hold: bool, interval: float) -> str:
        """Start a load."""
        if name in self._loads:
            raise ValueError(f"{name} runs already")
        self._loads[name] = Load(flow, hold, interval)
        return ""

    def stop(self, name: str) -> dict[str, Any]:
        """Stop a load and return its counts."""
        return self._loads.pop(name).stop()

    def stop_all(self) -> None:
        """Stop what runs."""
        for name in self.names():
            self.stop(name)
