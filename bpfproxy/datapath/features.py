"""What this kernel and this process can do, asked of the kernel itself and never guessed from its version.

Questions about BPF raise PermissionsError without the capabilities to ask.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from bpfproxy import capabilities
from bpfproxy.datapath import libbpf, testrun
from bpfproxy.datapath.libbpf import ffi, lib
from bpfproxy.errors import UnsupportedError

_REQUIRED: Final = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")

HELPERS: Final = {
    "bpf_get_socket_cookie": 46,
    "bpf_sk_storage_get": 107,
    "bpf_get_netns_cookie": 122,
    "bpf_jiffies64": 118,
    "bpf_set_retval": 187,
}
"""Numbers of helpers in the kernel's ABI."""

_MISSING_HELPER: Final = re.compile(
    r"(?:unknown func|invalid func|program of this type cannot use helper) (?:bpf_)?(\w+)#\d+"
)
_SOCKET_FILTER: Final = 1


def missing_capabilities() -> list[str]:
    """What this process lacks to load and attach programs."""
    return capabilities.missing(_REQUIRED)


def require_capabilities() -> None:
    """Raises PermissionsError that names what is missing."""
    capabilities.require(*_REQUIRED)


def has_program_type(section: str) -> bool:
    """Whether the kernel takes programs of a section such as `cgroup/connect4`."""
    kind, _ = libbpf.program_type(section)
    return _probed(lib().libbpf_probe_bpf_prog_type, kind)


def has_map_type(number: int) -> bool:
    """Whether the kernel has maps of a type."""
    return _probed(lib().libbpf_probe_bpf_map_type, number)


@cache
def has_helper(section: str, helper: str) -> bool:
    """Whether programs of a section may call a helper of HELPERS."""
    require_capabilities()
    kind, attach_type = libbpf.program_type(section)
    # call helper; exit. It is refused for its arguments at the latest, and the log tells whether for the helper itself,
    # in words that libbpf's own probe does not know all of.
    log = ffi.new("char[]", 4096)
    options = ffi.new("struct bpf_prog_load_opts *", {"expected_attach_type": attach_type})
    options.sz = ffi.sizeof("struct bpf_prog_load_opts")
    options.log_level, options.log_size, options.log_buf = 1, len(log), log
    fd = _load(kind, [{"code": 0x85, "imm": HELPERS[helper]}, {"code": 0x95}], options)
    if fd >= 0:
        os.close(fd)
    elif fd == -errno.EPERM:
        libbpf.check(fd, "probing")
    return missing_helper(libbpf.text(log)) is None


def missing_helper(log: str) -> str | None:
    """The helper that the verifier did not know, or did not allow, according to its log."""
    match = _MISSING_HELPER.search(log)
    return match[1] if match else None


def has_links() -> bool:
    """Whether attachments can be bpf_links."""
    require_capabilities()
    return bool(lib().bpf_link_create(-1, -1, 0, ffi.NULL) != -errno.EINVAL)


def has_tcx() -> bool:
    """Whether tc programs can be attached by links. Asks about the loopback device, which is always there."""
    require_capabilities()
    return bool(
        lib().bpf_prog_query(1, libbpf.TCX_INGRESS, 0, ffi.NULL, ffi.NULL, ffi.new("uint32_t *")) != -errno.EINVAL
    )


def has_jit() -> bool:
    """Whether programs are compiled to machine code: loads one and looks."""
    # r0 = 0; exit
    fd = libbpf.check(_load(_SOCKET_FILTER, [{"code": 0xB7}, {"code": 0x95}], ffi.NULL), "loading a program")
    try:
        return bool(libbpf.info(fd, "prog").jited_prog_len)
    finally:
        os.close(fd)


def _load(kind: int, instructions: list[dict[str, int]], options: Any) -> int:
    code = ffi.new("struct bpf_insn[]", instructions)
    fd: int = lib().bpf_prog_load(kind, b"probe", b"GPL", code, len(instructions), options)
    return fd


def _probed(question: Callable[..., int], *arguments: int) -> bool:
    require_capabilities()  # without them the answers are wrong
    answer = question(*arguments, ffi.NULL)
    # libbpf cannot ask about what it does not know itself.
    return answer != -errno.EOPNOTSUPP and libbpf.check(answer, "probing") == 1


_CLOCK_MONOTONIC_COARSE: Final = 6
_TRIES: Final = 4000
_PROMPT_NS: Final = 100_000


class JiffiesClock(NamedTuple):
    """How the kernel's jiffies, the datapath's clock, run beside CLOCK_MONOTONIC."""

    hz: int
    """Per second."""
    zero: int
    """Their count when CLOCK_MONOTONIC was zero; may be negative."""


@cache
def jiffies_clock() -> JiffiesClock:
    """Measured, once: takes a few milliseconds. Raises UnsupportedError before Linux 5.6."""
    hz = round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))  # that clock goes on with each jiffy
    count, nanoseconds = _next_jiffy()
    return JiffiesClock(hz, count - round(nanoseconds * hz / 1e9))


def _next_jiffy() -> tuple[int, int]:
    """(jiffies, CLOCK_MONOTONIC in ns) just after a jiffy began. On a busy machine time may pass between the two
    readings: the promptest of some is taken."""
    prompt = None
    former = _jiffies()
    for _ in range(_TRIES):
        begin = time.monotonic_ns()
        count = _jiffies()
        took = time.monotonic_ns() - begin
        if count != former and (prompt is None or took < prompt[0]):
            prompt = (took, count, begin)
            if took < _PROMPT_NS:
                break
        former = count
    if prompt is None:
        raise UnsupportedError("this kernel's jiffies stand still")
    return prompt[1], prompt[2]


def _jiffies() -> int:
    low, high = _jiffies_programs()
    while True:
        before = testrun.run(high, _SOCKET_FILTER, bytes(64)).verdict
        value = testrun.run(low, _SOCKET_FILTER, bytes(64)).verdict & 0xFFFFFFFF
        if testrun.run(high, _SOCKET_FILTER, bytes(64)).verdict == before:
            return before << 32 | value


@cache
def _jiffies_programs() -> tuple[int, int]:
    """Programs that return the lower and the upper 32 bits of jiffies."""
    require_capabilities()
    call, shift, leave = {"code": 0x85, "imm": HELPERS["bpf_jiffies64"]}, {"code": 0x77, "imm": 32}, {"code": 0x95}
    low, high = (_load(_SOCKET_FILTER, code, ffi.NULL) for code in ([call, leave], [call, shift, leave]))
    if low < 0 or high < 0:
        raise UnsupportedError("this kernel lacks the helper bpf_jiffies64 (Linux 5.6)")
    return low, high
