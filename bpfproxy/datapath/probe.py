"""What this kernel and machine offer, what would be used, and what follows: the substance of `bpfproxy check`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from bpfproxy import capabilities
from bpfproxy.config import LoaderName
from bpfproxy.datapath import bpffs, cgroup, features, libbpf, loader, netns_cookie, sockdestroy
from bpfproxy.datapath.libbpf import ENOTSUPP
from bpfproxy.datapath.maps import Map, Shape
from bpfproxy.errors import BpfproxyError
from bpfproxy.model.finding import Finding

_HASH: Final = 1
_PERCPU_ARRAY: Final = 6
_MAP_TYPES: Final = {"hash": 1, "array": 2, "percpu_array": _PERCPU_ARRAY, "lru_hash": 9, "sk_storage": 24}
_SECTIONS: Final = ("cgroup/connect4", "cgroup/post_bind4")
_OPTIONAL_HELPERS: Final = {
    "bpf_set_retval": "connect to a Service without endpoints fails with EPERM in place of ECONNREFUSED",
}
_REFUSED: Final = "the socket level cannot be loaded"
_PACKET_MAP_TYPES: Final = {"lpm_trie": 11, "prog_array": 3}
_PACKET_SECTIONS: Final = ("tc", "xdp")
_NO_PACKETS: Final = "the packet level cannot be loaded: sockets alone are served"


def probe(state_dir: Path, cgroup_dir: Path | None = None, loader_name: LoaderName = "auto") -> list[Finding]:
    """All findings, those that others depend on first. Changes nothing; never raises for what is missing."""
    return [
        *_capabilities(),
        *_kernel(),
        *_places(state_dir, cgroup_dir),
        *_bpf(),
        *_loaders(loader_name),
    ]


def _capabilities() -> Iterator[Finding]:
    held = capabilities.held()
    missing = features.missing_capabilities()
    yield Finding(
        "capabilities",
        not missing,
        f"held: {', '.join(sorted(held)) or 'none'}" + (f"; missing: {', '.join(missing)}" if missing else ""),
        "programs cannot be loaded and attached",
        required=True,
    )
    yield Finding(
        "CAP_SYS_ADMIN",
        "CAP_SYS_ADMIN" in held,
        "held" if "CAP_SYS_ADMIN" in held else "missing",
        "a bpffs has to be mounted by someone else, and UDP sockets of pods are not destroyed when their backend goes",
    )


def _kernel() -> Iterator[Finding]:
    yield Finding("kernel", True, f"{platform.system()} {platform.release()} {platform.machine()}", "")
    btf = Path("/sys/kernel/btf/vmlinux")
    yield Finding("btf", btf.is_file(), str(btf), "sk_storage maps may be refused")
    yield _asked("jit", features.has_jit, "programs are interpreted: several times slower")


def _places(state_dir: Path, cgroup_dir: Path | None) -> Iterator[Finding]:
    try:
        path = cgroup_dir or cgroup.mount_point()
        found, detail = cgroup.is_cgroup2(path), str(path)
    except BpfproxyError as error:
        found, detail = False, str(error)
    if not found and cgroup_dir:
        detail = f"{cgroup_dir} is no cgroup v2 directory"
    yield Finding("cgroup2", found, detail, "there is nothing to attach the socket level to", required=True)
    mounted = bpffs.locate(state_dir)
    in_kernel = "\tbpf\n" in Path("/proc/filesystems").read_text()
    if in_kernel:
        detail = f"mounted at {mounted}" if mounted else f"not mounted yet at {state_dir / 'bpf'}"
    else:
        detail = "this kernel has none"
    yield Finding("bpffs", in_kernel, detail, "maps and links cannot be pinned", required=True)


def _bpf() -> Iterator[Finding]:
    try:
        yield Finding("libbpf", True, libbpf.version(), "", required=True)
    except BpfproxyError as error:
        yield Finding("libbpf", False, str(error), "nothing can be loaded", required=True)
        return
    for name, number in _MAP_TYPES.items():
        yield _asked(f"map {name}", partial(features.has_map_type, number), _REFUSED, required=True)
    for section in _SECTIONS:
        yield _asked(f"program {section}", partial(features.has_program_type, section), _REFUSED, required=True)
    for helper in features.HELPERS:
        needed = helper not in _OPTIONAL_HELPERS
        consequence = _REFUSED if needed else _OPTIONAL_HELPERS[helper]
        yield _asked(
            f"helper {helper}", partial(features.has_helper, _SECTIONS[0], helper), consequence, required=needed
        )
    for name, number in _PACKET_MAP_TYPES.items():
        yield _asked(f"map {name}", partial(features.has_map_type, number), _NO_PACKETS)
    for section in _PACKET_SECTIONS:
        yield _asked(f"program {section}", partial(features.has_program_type, section), _NO_PACKETS)
    yield _asked("netns cookie", _has_cookie, "the node and its pods cannot be told apart", required=True)
    yield _asked("bpf_link", features.has_links, "programs cannot be attached", required=True)
    yield _asked("tcx", features.has_tcx, "tc programs are attached by clsact")
    yield _asked("map batches", partial(_has_batches, _HASH), "maps are written row by row")
    yield _asked("per-CPU map batches", partial(_has_batches, _PERCPU_ARRAY), "counters are read row by row")
    consequence = "UDP sockets that are connected to a backend that went go on sending to it"
    yield _asked("SOCK_DESTROY", sockdestroy.is_supported, consequence)


def _loaders(wanted: LoaderName) -> Iterator[Finding]:
    found = loader.availability()
    for one in found:
        yield Finding(f"loader {one.name}", one.available, one.detail, "the other loader has to do")
    try:
        chosen = loader.choose(wanted)
    except BpfproxyError as error:
        yield Finding("loader", False, str(error), "programs cannot be loaded", required=True)
        return
    reason = f"asked for by --loader {wanted}" if wanted != "auto" else "the first of the available ones"
    yield Finding("loader", True, f"{chosen.name}: {reason}", "", required=True)


def _asked(name: str, question: Callable[[], bool], consequence: str, *, required: bool = False) -> Finding:
    """A finding of the kernel's answer. A question that cannot be asked is a no."""
    try:
        available = question()
        detail = "" if available else "this kernel has none"
    except OSError as error:
        available, detail = False, error.strerror or str(error)
    except BpfproxyError as error:
        available, detail = False, str(error)
    return Finding(name, available, detail, consequence, required)


def _has_cookie() -> bool:
    return bool(netns_cookie.current())


def _has_batches(kind: int) -> bool:
    with Map.create("probe", Shape(kind, 4, 8, 1, 0)) as map_:
        done, error = map_.update_batch(bytes(4), bytes(map_.row_size), 1)
    return done == 1 or (error is not None and error.errno != ENOTSUPP)
