"""The child of the bcc loader: compiles one file, loads its programs, hands them over and ends.

The request is JSON on stdin. The reply goes to the socket that it names: one message of JSON with the programs'
descriptors. What compiler and verifier say goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any, Final

from bpfproxy.datapath import libbpf
from bpfproxy.datapath.loader.base import LoadError, check_shape
from bpfproxy.datapath.maps import Shape

_SECTION: Final = re.compile(r'^SEC\("([^"]+)"\)\s+int\s+(\w+)\s*\(', re.MULTILINE)
"""A program and its section; with clang the section stands in the object."""


def main() -> int:
    """Returns the exit status."""
    request = json.load(sys.stdin)
    with socket.socket(fileno=request["socket"]) as reply:
        programs: list[dict[str, Any]] = []
        fds: list[int] = []
        current: dict[str, Any] = {}
        try:
            module = _compile(request)
            for section, name in _SECTION.findall(Path(request["source"]).read_text()):
                current = {"program": name}
                kind, attach_type = libbpf.program_type(section)
                fds.append(module.load_func(name.encode(), kind, attach_type=attach_type).fd)
                programs.append({"name": name, "type": kind, "attach_type": attach_type})
        except (LoadError, ValueError) as error:
            reply.send(json.dumps(current | {"error": str(error)}).encode())
            return 1
        except Exception as error:  # bcc has no class of its own
            print(error, file=sys.stderr)
            reply.send(json.dumps(current | {"errno": ctypes.get_errno() if current else 0}).encode())
            return 1
        socket.send_fds(reply, [json.dumps({"programs": programs}).encode()], fds)
    return 0


def _compile(request: dict[str, Any]) -> Any:
    from bcc import BPF, lib

    pin_dir = Path(request["pin_dir"])
    # By descriptor: a path may hold quotes or colons, which compiler or bcc would stumble over.
    flags = ["-DLB_BCC", f"-I{request['include']}", f'-DPIN_DIR="/proc/self/fd/{os.open(pin_dir, os.O_PATH)}"']
    # With the type that the field has, so that expressions mean the same as in the prebuilt object.
    flags += [
        f"-DCFG_{name}=((__typeof__(((struct config *)0)->{name})){value}ULL)"
        for name, value in request["constants"].items()
    ]
    flags += [f"-DMAX_{name}={size}" for name, size in request["sizes"].items()]
    module = BPF(text=Path(request["source"]).read_bytes(), cflags=flags)
    handle = ctypes.c_void_p(module.module)
    lib.bpf_table_name.restype = ctypes.c_char_p
    # bcc uses what is pinned without a look at its shape.
    for index in map(ctypes.c_size_t, range(lib.bpf_num_tables(handle))):
        shape = Shape(
            lib.bpf_table_type_id(handle, index),
            lib.bpf_table_key_size_id(handle, index),
            lib.bpf_table_leaf_size_id(handle, index),
            lib.bpf_table_max_entries_id(handle, index),
            lib.bpf_table_flags_id(handle, index),
        )
        check_shape(pin_dir / lib.bpf_table_name(handle, index).decode(), shape)
    return module


if __name__ == "__main__":
    sys.exit(main())
