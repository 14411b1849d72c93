"""Where the C tree and the results of its build are: in a checkout, or inside an installed wheel."""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

from bpfproxy.errors import UnsupportedError

_PACKAGE = Path(__file__).resolve().parent.parent
_UAPI = Path("/usr/include")


def c_tree() -> Path:
    """The directory of the C sources, `sock_lb.bpf.c` and the others."""
    installed = _PACKAGE / "_bpf"
    return installed if installed.is_dir() else _PACKAGE.parent / "bpf"


def built(name: str) -> Path:
    """The file `name` that the package's build made from the C tree, such as `sock_lb.bpf.o`.

    Raises UnsupportedError if it is missing.
    """
    path = _PACKAGE / "_built" / name
    if not path.is_file():
        raise UnsupportedError(f"{path} is missing: run `./dev build` in the checkout, or install the wheel")
    return path


def kernel_source(directory: Path) -> Path:
    """Lay out in `directory` the smallest tree that bcc accepts as BCC_KERNEL_SOURCE, and return it.

    It holds a few stubs and links to the distribution's UAPI headers, so the kernel's own headers are never needed.
    What is in place already stays. Raises UnsupportedError where the UAPI headers are not installed.
    """
    include = directory / "include"
    shutil.copytree(c_tree() / "stubs" / "include", include, dirs_exist_ok=True)
    (include / "uapi").mkdir(exist_ok=True)
    for name, target in _uapi_headers().items():
        link = include / "uapi" / name
        if not (link.is_symlink() and link.readlink() == target):
            fresh = link.with_name(f".{name}.{os.getpid()}")
            fresh.symlink_to(target)
            fresh.replace(link)
    return directory


def _uapi_headers() -> dict[str, Path]:
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    asm = _UAPI / triplet / "asm"
    headers = {
        "linux": _UAPI / "linux",
        "asm-generic": _UAPI / "asm-generic",
        "asm": asm if asm.is_dir() else _UAPI / "asm",
    }
    for path in headers.values():
        if not path.is_dir():
            raise UnsupportedError(f"{path} is missing, bcc needs it: install the package linux-libc-dev")
    return headers
