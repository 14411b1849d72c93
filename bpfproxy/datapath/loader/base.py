"""What both loaders share: what is asked for, what comes back, and how a refusal is told."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bpfproxy.datapath import abi, features, libbpf
from bpfproxy.datapath.files import c_tree
from bpfproxy.datapath.maps import Map, Shape
from bpfproxy.errors import BpfproxyError, DatapathError, PermissionsError, UnsupportedError

_NO_COMMON_LRU: Final = 1 << 1


class LoadError(DatapathError):
    """The compiler or the kernel refused the code. `log` is all that it had to say."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """What to load."""

    programs: tuple[str, ...] = ("sock_lb",)
    """Files of the C tree by stem: `sock_lb` is sock_lb.bpf.c, and sock_lb.bpf.o when prebuilt. The first one declares
    all maps: it makes those that are not pinned yet, then the others are loaded side by side."""

    constants: Mapping[str, int]
    """A value for each field of `struct config`."""

    sizes: Mapping[str, int]
    """max_entries by map. Names of maps that a file does not have are ignored."""

    pin_dir: Path
    """A directory of a bpffs. Maps that are pinned there under their names are used again."""

    directory: Path | None = None
    """Where the files are: sources and compiled objects side by side. None: the package's own."""

    def __post_init__(self) -> None:
        fields = {name for name, _ in abi.ffi.typeof("struct config").fields}
        if fields != self.constants.keys():
            raise ValueError(f"constants have to be {sorted(fields)}, not {sorted(self.constants)}")


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program. The numbers are the kernel's."""

    name: str
    fd: int
    type: int
    attach_type: int


@dataclass(slots=True)
class Loaded:
    """Programs and maps by name. Owns their descriptors."""

    loader: str
    programs: dict[str, Program] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)

    def close_programs(self) -> None:
        """Close the programs' descriptors, once links hold them."""
        for program in self.programs.values():
            os.close(program.fd)
        self.programs = {}

    def close(self) -> None:
        """Close all descriptors; what is pinned stays."""
        self.close_programs()
        for map_ in self.maps.values():
            map_.close()
        self.maps = {}

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a loader can be used here; `detail` says its version, or what is missing."""

    name: str
    available: bool
    detail: str


def load_files(spec: LoadSpec, loaded: Loaded, load_file: Callable[[str, LoadSpec, Loaded], None]) -> None:
    """Call `load_file(stem, spec, loaded)` for each file. An error is raised when no call is under way any more."""
    first, *others = spec.programs
    load_file(first, spec, loaded)
    if others:
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            calls = [pool.submit(load_file, stem, spec, loaded) for stem in others]
        for call in calls:
            call.result()


def maps_version(sizes: Mapping[str, int]) -> str:
    """A short name for the layout of all maps: equal if and only if maps can be used on. For a directory's name."""
    digest = hashlib.sha256()
    for header in ("abi.h", "maps.h", "packet_maps.h"):
        code = re.sub(r"/\*.*?\*/", " ", (c_tree() / header).read_text(), flags=re.DOTALL)
        digest.update(" ".join(code.split()).encode())
    digest.update(repr(sorted(sizes.items())).encode())
    return digest.hexdigest()[:12]


def open_maps(pin_dir: Path) -> dict[str, Map]:
    """All maps that are pinned in a directory, by name; empty if it is not there. Raises DatapathError."""
    maps: dict[str, Map] = {}
    try:
        for path in sorted(pin_dir.iterdir()) if pin_dir.is_dir() else ():
            if path.is_file():
                maps[path.name] = Map.open(path)
    except OSError as error:
        close_maps(maps.values())
        raise DatapathError(f"cannot open the maps under {pin_dir}: {error.strerror}") from error
    return maps


def close_maps(maps: Iterable[Map]) -> None:
    """Close several maps."""
    for map_ in maps:
        map_.close()


def check_shape(path: Path, wanted: Shape) -> None:
    """Raises LoadError if another map than wanted is pinned at `path`; nothing need be there."""
    try:
        with Map.open(path) as pinned:
            found = pinned.shape
    except FileNotFoundError:
        return
    except OSError as error:
        raise LoadError(f"{path} cannot be used as a map: {error.strerror}") from error
    if wanted.flags & _NO_COMMON_LRU:  # the kernel rounds such a map up to a multiple of the CPUs
        cpus = libbpf.possible_cpus()
        wanted = wanted._replace(max_entries=-(-wanted.max_entries // cpus) * cpus)
    if found != wanted:
        raise LoadError(f"the map pinned at {path} is {found}; needed is {wanted}")


# ---- refusals ----------------------------------------------------------------------------------------------------

_COMPILER_ERROR: Final = re.compile(r"^(?:\S*/)?([^/\s]+:\d+:\d+): (?:fatal )?error: (.*)$", re.MULTILINE)
_MAP_ERROR: Final = re.compile(
    r"^could not open bpf map: (\w+), error: (.*)$|^libbpf: map '(\w+)': failed to create: (.*)\(-\d+\)$", re.MULTILINE
)
"""In the words of bcc and of libbpf."""
_VERIFIED: Final = re.compile(r"^processed \d+ insns", re.MULTILINE)


def refusal(what: str, log: str, error: OSError | None = None) -> BpfproxyError:
    """The error that tells a failed load in one line; its reason is looked for in the log of compiler or kernel."""
    if helper := features.missing_helper(log):
        return UnsupportedError(f"this kernel lacks the helper bpf_{helper}, which {what} needs")
    if match := _COMPILER_ERROR.search(log):
        return LoadError(f"{what} does not compile: {match[1]}: {match[2]}", log)
    if match := _MAP_ERROR.search(log):
        return LoadError(f"map {match[1] or match[3]} cannot be made: {match[2] or match[4]}", log)
    reason = _verifier_reason(log)
    if isinstance(error, PermissionError) and not reason:
        return PermissionsError(f"{what} may not be loaded: CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed")
    reason = reason or (error.strerror if error else "") or (log.strip().splitlines() or ["no reason given"])[-1]
    return LoadError(f"{what} was refused: {reason}", log)


def _verifier_reason(log: str) -> str:
    """The line before the verifier's closing statistics, where there are any."""
    if match := _VERIFIED.search(log):
        lines = [line.strip() for line in log[: match.start()].splitlines() if line.strip()]
        return f"verifier: {lines[-1]}" if lines else ""
    return ""
