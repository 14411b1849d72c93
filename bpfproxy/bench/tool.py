"""A load generator in C: a process that reads commands, a line each, and answers each with a line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bpfproxy.bench.ground import BenchError, Ground
from bpfproxy.lab.place import spawn


class ToolError(BenchError):
    """A generator ended; it has said why on standard error."""


class Tool:
    """The process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, *words: object) -> list[str]:
        """The words of the answer. Raises ToolError."""
        assert self._process.stdin
        assert self._process.stdout
        print(*words, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().split()
        if not answer:
            raise ToolError(f"a load generator ended at: {' '.join(map(str, words))}")
        return answer


@contextmanager
def tool(ground: Ground, name: str, arguments: Sequence[object], namespace: str | None = None) -> Iterator[Tool]:
    """The C program `name`, which stands beside this file, in a network namespace (that of `ground`), in a cgroup
    without hooks. It ends with the block."""
    process = spawn(
        [str(ground.compile(name)), *map(str, arguments)],
        namespace=namespace or ground.netns,
        cgroup=ground.plain,
        lab_id=ground.lab_id,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Tool(process)
    finally:
        process.kill()
        process.communicate()
