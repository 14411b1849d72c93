"""The loader that compiles on the node, with the node's configuration as constants.

The compiler runs in a short-lived child (bcc_compile.py), so LLVM never enters the agent. The child pins the maps and
hands the programs' descriptors over through a socket: nothing of it stays behind, however it ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bpfproxy.datapath.files import c_tree, kernel_source
from bpfproxy.datapath.loader.base import (
    Availability,
    Loaded,
    LoadError,
    LoadSpec,
    Program,
    load_files,
    open_maps,
    refusal,
)
from bpfproxy.errors import UnsupportedError

_CHILD: Final = "bpfproxy.datapath.loader.bcc_compile"
_TIMEOUT: Final = 300.0
"""Seconds; compiling takes one, a hundred where the processor is emulated."""
_MESSAGE_SIZE: Final = 65536
_MAX_PROGRAMS: Final = 200


def availability() -> Availability:
    """Needs bcc's Python module and the UAPI headers. Looks without importing: that would load LLVM."""
    found = importlib.util.find_spec("bcc")
    directory = Path(found.origin).parent if found and found.origin else Path()
    if found is None or not (directory / "libbcc.py").is_file():  # the project of that name on PyPI is another one
        return Availability("bcc", False, f"{sys.executable} has no bcc module: install the package python3-bpfcc")
    try:
        with tempfile.TemporaryDirectory(prefix="bpfproxy-") as scratch:
            kernel_source(Path(scratch))
    except UnsupportedError as error:
        return Availability("bcc", False, str(error))
    version = ""
    with contextlib.suppress(OSError):
        match = re.search(r"__version__\s*=\s*['\"](.+?)['\"]", (directory / "version.py").read_text())
        version = f" {match[1]}" if match else ""
    return Availability("bcc", True, f"bcc{version}, {directory}")


def load(spec: LoadSpec) -> Loaded:
    """See `bpfproxy.datapath.loader.load`."""
    loaded = Loaded("bcc")
    try:
        load_files(spec, loaded, _compile)
        loaded.maps = open_maps(spec.pin_dir)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _compile(stem: str, spec: LoadSpec, loaded: Loaded) -> None:
    source = (spec.directory or c_tree()) / f"{stem}.bpf.c"
    name = source.name
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, tempfile.TemporaryDirectory(prefix="bpfproxy-") as scratch:
        request = {
            "socket": theirs.fileno(),
            "source": str(source),
            "include": str(c_tree()),
            "pin_dir": str(spec.pin_dir.absolute()),
            "constants": dict(spec.constants),
            "sizes": dict(spec.sizes),
        }
        environment = os.environ | {"BCC_KERNEL_SOURCE": str(kernel_source(Path(scratch)))}
        try:
            child = subprocess.run(
                # -P: without the working directory on the module path.
                [sys.executable, "-P", "-m", _CHILD],
                env=environment,
                input=json.dumps(request).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(f"compiling {name} took more than {_TIMEOUT:g} s") from error
        theirs.close()
        message, fds, _, _ = socket.recv_fds(ours, _MESSAGE_SIZE, _MAX_PROGRAMS)
    reply: dict[str, Any] = json.loads(message) if message else {}
    for program, fd in zip(reply.get("programs", ()), fds, strict=True):
        loaded.programs[program["name"]] = Program(program["name"], fd, program["type"], program["attach_type"])
    if child.returncode or not reply:
        _fail(name, reply, child.returncode, child.stderr.decode(errors="replace"))


def _fail(name: str, reply: dict[str, Any], status: int, log: str) -> None:
    what = f"program {reply['program']}" if "program" in reply else name
    if message := reply.get("error"):
        raise LoadError(message, log)
    if code := reply.get("errno"):
        raise refusal(what, log, OSError(code, os.strerror(code)))
    if status < 0:
        raise LoadError(f"the compiler of {name} was killed by signal {-status}", log)
    raise refusal(what, log)
