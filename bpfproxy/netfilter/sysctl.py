"""Kernel parameters under /proc/sys that rules need. What they were before is kept in a file, so that whoever cleans up
later, even another process, puts them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/proc/sys")


class Sysctls:
    """The parameters that one proxier has set; `file` remembers their former values. Names are with slashes:
    `net/ipv4/conf/all/route_localnet`. Those of the network are of the namespace of the calling thread."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, str]:
        """Current values of those that were set here."""
        return {name: value for name in self._former() if (value := get(name)) is not None}

    def set(self, name: str, value: str) -> None:
        """Set a parameter. Raises OSError if the kernel has none of this name or refuses the value."""
        former = self._former()
        if name not in former:
            # Written down first: a crash in between leaves a note too many, never a value that nobody puts back.
            self._remember({**former, name: (_ROOT / name).read_text().strip()})
        (_ROOT / name).write_text(value)

    def restore(self, name: str) -> None:
        """Put one back, if it was set here. Raises OSError if the kernel refuses."""
        former = self._former()
        if name in former:
            path = _ROOT / name
            if path.exists():
                path.write_text(former[name])
            del former[name]
            self._remember(former)

    def restore_all(self) -> list[str]:
        """Put all of them back; returns their names."""
        names = sorted(self._former())
        for name in names:
            self.restore(name)
        return names

    def _former(self) -> dict[str, str]:
        try:
            former: dict[str, str] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return former

    def _remember(self, former: dict[str, str]) -> None:
        if not former:
            self._file.unlink(missing_ok=True)
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(former))
        draft.replace(self._file)


def get(name: str) -> str | None:
    """A parameter's current value; None if the kernel has none of this name."""
    try:
        return (_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None
