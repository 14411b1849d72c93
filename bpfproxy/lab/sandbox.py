"""A place for what one test makes in the kernel: namespaces, cgroups, files. Small beside a lab, and removed as one."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from bpfproxy.lab import cgroup, netns, remains


class Sandbox:
    """A context manager: leaving removes all that was made, whatever happened in between. All of it has names by which
    `remains.sweep` finds what a killed process left."""

    def __init__(self) -> None:
        self.lab_id = remains.new_id()
        self.directory = remains.directory(self.lab_id)
        """For files, and for mounts below it."""

    def __enter__(self) -> Self:
        try:
            remains.claim(self.lab_id)
        except BaseException:
            remains.remove(self.lab_id)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        remains.remove(self.lab_id)

    def netns(self, name: str) -> str:
        """The whole name of a network namespace of this sandbox."""
        return f"{remains.prefix(self.lab_id)}-{name}"

    def namespace(self, name: str = "host") -> str:
        """Make a network namespace, its loopback still down; returns its whole name. Raises OSError."""
        netns.make(self.netns(name))
        return self.netns(name)

    def cgroup(self, name: str = "group") -> Path:
        """Make an empty cgroup. Raises OSError."""
        path = cgroup.mount_point() / remains.prefix(self.lab_id) / name
        path.mkdir(parents=True)
        return path
