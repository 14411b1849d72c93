"""Compiles the C tree: the prebuilt BPF objects and the native library, into bpfproxy/_built.

As a hatchling build hook it adds them and the C sources to the wheel. As a script it brings the tree up to date
(`./dev build`), or with `--lint` compiles everything with warnings as errors and keeps nothing (`./dev lint`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "bpf"
BUILT = "bpfproxy/_built"
STAMP = "inputs.sha256"

# Debian keeps <asm/types.h> in the multiarch directory, which clang does not look into for a BPF target.
ASM_HEADERS = f"/usr/include/{sysconfig.get_config_var('MULTIARCH') or f'{platform.machine()}-linux-gnu'}"

CLANG = ("clang", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-I", SOURCES)
BPF = ("-c", "-target", "bpf", "-mcpu=v2", "-g", "-idirafter", ASM_HEADERS)
NATIVE = ("-std=gnu11", "-shared", "-fPIC")


class BuildError(Exception):
    """The C tree cannot be compiled; the message says why."""


class Unit(NamedTuple):
    """A C file, the flags that it is compiled with, and the name of the result: empty if it is a mere check."""

    source: Path
    flags: tuple[str, ...]
    output: str


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts the C sources and what they compile to into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is made. An editable one leads to the tree and adds nothing."""
        if version == "editable":
            return
        root = Path(self.root)
        try:
            build(root)
        except BuildError as error:
            self.app.abort(f"bpfproxy: {error}")
        files = {str(root / BUILT / unit.output): f"{BUILT}/{unit.output}" for unit in units(root) if unit.output}
        build_data["force_include"] |= files | {str(root / SOURCES): "bpfproxy/_bpf"}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def units(root: Path) -> Iterator[Unit]:
    """All that is compiled: `*.bpf.c` and the check of the ABI for the kernel, the rest for user space."""
    for source in sorted((root / SOURCES).glob("*.c")):
        if source.name.endswith(".bpf.c"):
            yield Unit(source, BPF, source.name.removesuffix("c") + "o")
        elif source.stem == "abi_check":
            yield Unit(source, BPF, "")
        else:
            yield Unit(source, NATIVE, f"lib{source.stem}.so")


def build(root: Path) -> bool:
    """Compile what is under `root`/bpf unless it is up to date; returns whether there was anything to do.

    Raises BuildError; the results of the last good build stay then.
    """
    inputs = _fingerprint(root)
    target = root / BUILT
    stamp = target / STAMP
    made = [unit.output for unit in units(root) if unit.output]
    if stamp.is_file() and stamp.read_text() == inputs and all((target / name).is_file() for name in made):
        return False
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        fresh = Path(scratch)
        _compile(root, fresh)
        (fresh / STAMP).write_text(inputs)
        # Each file in one step, the stamp last: programs that run keep the old ones, an interruption starts again.
        stamp.unlink(missing_ok=True)
        for path in sorted(fresh.iterdir(), key=lambda path: path.name == STAMP):
            path.replace(target / path.name)
    return True


def lint(root: Path) -> None:
    """Raises BuildError if there is a warning."""
    with tempfile.TemporaryDirectory() as scratch:
        _compile(root, Path(scratch), "-Werror")


def _fingerprint(root: Path) -> str:
    """A hash of all that the outcome depends on, but for the compiler's version."""
    digest = hashlib.sha256(platform.machine().encode())
    for path in [Path(__file__), *sorted((root / SOURCES).glob("*.[ch]"))]:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _compile(root: Path, target: Path, *flags: str) -> None:
    for unit in units(root):
        # Paths relative to the root, so that the objects are the same wherever they are built.
        source = str(unit.source.relative_to(root))
        output = str(target / unit.output) if unit.output else os.devnull
        command = [*CLANG, *flags, f"-ffile-prefix-map={root}=.", *unit.flags, source, "-o", output]
        try:
            result = subprocess.run(command, cwd=root, check=False)
        except FileNotFoundError:
            packages = "clang libbpf-dev linux-libc-dev libc6-dev"
            raise BuildError(f"clang was not found; on Debian and Ubuntu: apt-get install {packages}") from None
        if result.returncode:
            raise BuildError(f"clang cannot compile {source} (see above)")


def main(arguments: list[str]) -> None:
    """The script: builds, or lints."""
    root = Path(__file__).resolve().parent
    try:
        if arguments == ["--lint"]:
            lint(root)
        elif build(root):
            print(f"compiled {SOURCES}/ into {BUILT}/")
    except BuildError as error:
        sys.exit(f"bpfproxy: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
