"""Two loaders behind one seam: `load(spec) → programs, maps`. All that comes after the descriptors is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from bpfproxy.config import LoaderName
from bpfproxy.datapath import bpffs, features
from bpfproxy.datapath.loader import bcc, prebuilt
from bpfproxy.datapath.loader.base import (
    Availability,
    Loaded,
    LoadError,
    LoadSpec,
    Program,
    close_maps,
    maps_version,
    open_maps,
)
from bpfproxy.errors import UnsupportedError

__all__ = [
    "Availability",
    "LoadError",
    "LoadSpec",
    "Loaded",
    "Program",
    "availability",
    "choose",
    "close_maps",
    "load",
    "maps_version",
    "open_maps",
]


class _Loader(Protocol):
    def availability(self) -> Availability: ...
    def load(self, spec: LoadSpec) -> Loaded: ...


_LOADERS: Final[Mapping[str, _Loader]] = {"bcc": bcc, "prebuilt": prebuilt}
"""In order of preference."""


def availability() -> list[Availability]:
    """What each loader needs, and whether it is here; the preferred one first."""
    return [loader.availability() for loader in _LOADERS.values()]


def choose(loader: LoaderName) -> Availability:
    """The loader that a request comes to; raises UnsupportedError if it is not available."""
    missing: list[str] = []
    for name in _LOADERS if loader == "auto" else [loader]:
        found = _LOADERS[name].availability()
        if found.available:
            return found
        missing.append(f"loader {name}: {found.detail}")
    raise UnsupportedError("; ".join(missing))


def load(spec: LoadSpec, loader: LoaderName = "auto") -> Loaded:
    """Load programs, with maps that are pinned in `spec.pin_dir` (which has to be there) or are pinned now.

    Raises PermissionsError, UnsupportedError (no such loader here, or the kernel lacks something), or LoadError: the
    compiler or the kernel refused the code, or a map that is pinned there has another shape.
    """
    features.require_capabilities()
    if not bpffs.is_bpffs(spec.pin_dir):
        raise LoadError(f"{spec.pin_dir} is no directory of a bpffs")
    return _LOADERS[choose(loader).name].load(spec)
