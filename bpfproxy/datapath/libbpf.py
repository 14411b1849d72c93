"""libbpf.so.1 through cffi's ABI mode: no compiler and no development package on the node.

libbpf prints why a program was refused; here that text is collected by `captured` and never reaches stderr.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import cffi

from bpfproxy.errors import UnsupportedError

ffi: Final[Any] = cffi.FFI()
# Structs that grow with libbpf or the kernel are declared as far as they are used: both sides take a shorter one.
ffi.cdef(
    """
    struct bpf_object; struct bpf_program; struct bpf_map;
    struct bpf_map_batch_opts { size_t sz; uint64_t elem_flags, flags; };
    struct bpf_map_create_opts {
        size_t sz;
        uint32_t btf_fd, btf_key_type_id, btf_value_type_id, btf_vmlinux_value_type_id, inner_map_fd, map_flags;
        uint64_t map_extra;
        uint32_t numa_node, map_ifindex;
    };
    struct bpf_map_info {
        uint32_t type, id, key_size, value_size, max_entries, map_flags;
        char name[16];
    };
    struct bpf_prog_info {
        uint32_t type, id;
        uint8_t tag[8];
        uint32_t jited_prog_len, xlated_prog_len;
        uint64_t jited_prog_insns, xlated_prog_insns, load_time;
        uint32_t created_by_uid, nr_map_ids;
        uint64_t map_ids;
        char name[16];
    };
    struct bpf_link_info {
        uint32_t type, id, prog_id;
        union {
            struct { uint64_t cgroup_id; uint32_t attach_type; } cgroup;
            struct { uint32_t ifindex; } xdp;
            struct { uint32_t ifindex, attach_type; } tcx;
            uint64_t room[8];
        };
    };
    struct bpf_prog_load_opts {
        size_t sz;
        int attempts, expected_attach_type;
        uint32_t prog_btf_fd, prog_flags, prog_ifindex, kern_version, attach_btf_id, attach_prog_fd, attach_btf_obj_fd;
        const int *fd_array;
        const void *func_info;
        uint32_t func_info_cnt, func_info_rec_size;
        const void *line_info;
        uint32_t line_info_cnt, line_info_rec_size, log_level, log_size;
        char *log_buf;
    };
    struct bpf_link_create_opts { size_t sz; uint32_t flags; };
    struct bpf_insn { uint8_t code, registers; int16_t off; int32_t imm; };

    void *libbpf_set_print(void *);
    const char *libbpf_version_string(void);
    int libbpf_num_possible_cpus(void);
    int libbpf_prog_type_by_name(const char *, int *, int *);
    const char *libbpf_bpf_attach_type_str(int);
    const char *libbpf_bpf_map_type_str(int);
    const char *libbpf_bpf_link_type_str(int);
    int libbpf_probe_bpf_prog_type(int, const void *);
    int libbpf_probe_bpf_map_type(int, const void *);

    struct bpf_object *bpf_object__open_file(const char *, const void *);
    int bpf_object__load(struct bpf_object *);
    void bpf_object__close(struct bpf_object *);
    struct bpf_program *bpf_object__next_program(const struct bpf_object *, struct bpf_program *);
    struct bpf_map *bpf_object__next_map(const struct bpf_object *, const struct bpf_map *);
    const char *bpf_program__name(const struct bpf_program *);
    int bpf_program__fd(const struct bpf_program *);
    int bpf_program__type(const struct bpf_program *);
    int bpf_program__expected_attach_type(const struct bpf_program *);
    const char *bpf_map__name(const struct bpf_map *);
    int bpf_map__fd(const struct bpf_map *);
    int bpf_map__type(const struct bpf_map *);
    uint32_t bpf_map__key_size(const struct bpf_map *);
    uint32_t bpf_map__value_size(const struct bpf_map *);
    uint32_t bpf_map__max_entries(const struct bpf_map *);
    uint32_t bpf_map__map_flags(const struct bpf_map *);
    bool bpf_map__is_internal(const struct bpf_map *);
    int bpf_map__set_max_entries(struct bpf_map *, uint32_t);
    int bpf_map__set_pin_path(struct bpf_map *, const char *);
    void *bpf_map__initial_value(struct bpf_map *, size_t *);

    int bpf_prog_load(int, const char *, const char *, const struct bpf_insn *, size_t,
                      const struct bpf_prog_load_opts *);
    int bpf_prog_query(int, int, uint32_t, uint32_t *, uint32_t *, uint32_t *);
    int bpf_obj_pin(int, const char *);
    int bpf_obj_get(const char *);
    int bpf_obj_get_info_by_fd(int, void *, uint32_t *);
    int bpf_prog_get_fd_by_id(uint32_t);
    int bpf_link_create(int, int, int, const void *);
    int bpf_link_update(int, int, const void *);
    int bpf_link_detach(int);
    int bpf_xdp_query_id(int, int, uint32_t *);

    int bpf_map_create(int, const char *, uint32_t, uint32_t, uint32_t, const void *);
    int bpf_map_update_elem(int, const void *, const void *, uint64_t);
    int bpf_map_lookup_elem(int, const void *, void *);
    int bpf_map_lookup_and_delete_elem(int, const void *, void *);
    int bpf_map_delete_elem(int, const void *);
    int bpf_map_get_next_key(int, const void *, void *);
    int bpf_map_update_batch(int, const void *, const void *, uint32_t *, const struct bpf_map_batch_opts *);
    int bpf_map_lookup_batch(int, void *, void *, void *, void *, uint32_t *, const struct bpf_map_batch_opts *);
    int bpf_map_delete_batch(int, const void *, uint32_t *, const struct bpf_map_batch_opts *);

    int vasprintf(char **, const char *, void *);
    void free(void *);
    """
)

ENOTSUPP: Final = 524
"""The kernel's own "not supported", which the C library has no text for."""

TCX_INGRESS: Final = 46
TCX_EGRESS: Final = 47
LINK_CGROUP: Final = 3
LINK_XDP: Final = 6
LINK_TCX: Final = 11
_NEWER_ATTACH_TYPES: Final = {TCX_INGRESS: "tcx_ingress", TCX_EGRESS: "tcx_egress"}
_NEWER_LINK_TYPES: Final = {LINK_TCX: "tcx"}
"""Names that libbpf 1.1 does not know yet."""

_log = logging.getLogger(__name__)
_libc: Any = ffi.dlopen(None)


class _Capture(threading.local):
    lines: list[str] | None = None


_capture = _Capture()


@cache
def lib() -> Any:
    """The library, opened at the first call. Raises UnsupportedError where it is not installed."""
    try:
        library: Any = ffi.dlopen("libbpf.so.1")
    except OSError as error:
        raise UnsupportedError("libbpf.so.1 was not found: install the package libbpf1") from error
    library.libbpf_set_print(_print_callback)
    return library


def _print(level: int, template: Any, arguments: Any) -> int:
    debug = 2
    if level < debug:
        text = ffi.new("char **")
        if _libc.vasprintf(text, template, arguments) >= 0:
            line = ffi.string(text[0]).decode(errors="replace").rstrip("\n")
            _libc.free(text[0])
            if _capture.lines is None:
                _log.debug("%s", line)
            else:
                _capture.lines.append(line)
    return 0


# A va_list is handed over as a pointer on x86-64 and arm64 alike.
_print_callback: Final = ffi.callback("int(int, const char *, void *)", _print)


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Collects what libbpf says in this thread while the block runs: its own messages and the verifier's log."""
    outer, _capture.lines = _capture.lines, []
    try:
        yield _capture.lines
    finally:
        _capture.lines = outer


def check(result: int, call: str) -> int:
    """`result`, unless it is a negative errno: then OSError with the name of the call."""
    if result < 0:
        raise os_error(-result, call)
    return result


def os_error(code: int, call: str) -> OSError:
    """An OSError of the fitting subclass; `call` is part of its text."""
    reason = "Operation not supported by this kernel" if code == ENOTSUPP else os.strerror(code)
    return OSError(code, f"{call}: {reason}")


def text(pointer: Any) -> str:
    """A C string; empty for a null pointer."""
    return "" if pointer == ffi.NULL else str(ffi.string(pointer), errors="replace")


def version() -> str:
    """The library's version, such as `1.1`."""
    return text(lib().libbpf_version_string()).removeprefix("v")


def info(fd: int, kind: str) -> Any:
    """What the kernel tells of a descriptor, as `struct bpf_<kind>_info`; kind is `map`, `prog` or `link`."""
    result = ffi.new(f"struct bpf_{kind}_info *")
    size = ffi.new("uint32_t *", ffi.sizeof(f"struct bpf_{kind}_info"))
    check(lib().bpf_obj_get_info_by_fd(fd, result, size), f"information about a BPF {kind}")
    return result


def program_name(program_id: int) -> str:
    """A loaded program's name; empty if there is none of this id."""
    fd = lib().bpf_prog_get_fd_by_id(program_id)
    if fd < 0:
        return ""
    try:
        return text(info(fd, "prog").name)
    finally:
        os.close(fd)


def describe_program(program_id: int) -> str:
    """A program's name and id, as far as they are known."""
    name = program_name(program_id)
    return f"{name}, id {program_id}" if name else f"id {program_id}"


def open_pin(path: os.PathLike[str]) -> int:
    """A descriptor of what is pinned at `path`; raises FileNotFoundError and other OSErrors."""
    return check(lib().bpf_obj_get(os.fsencode(path)), f"opening {path}")


def pin(fd: int, path: os.PathLike[str]) -> None:
    """Pin a descriptor at a new path of a bpffs; raises FileExistsError and other OSErrors."""
    check(lib().bpf_obj_pin(fd, os.fsencode(path)), f"pinning at {path}")


def program_type(section: str) -> tuple[int, int]:
    """(program type, expected attach type) of a section name such as `cgroup/connect4`; raises ValueError."""
    kind, attach = ffi.new("int *"), ffi.new("int *")
    if lib().libbpf_prog_type_by_name(section.encode(), kind, attach) < 0:
        raise ValueError(f"libbpf {version()} knows no program section {section!r}")
    return kind[0], attach[0]


def attach_type_name(number: int) -> str:
    """Such as `cgroup_inet4_connect`; the number itself where there is no name for it."""
    return text(lib().libbpf_bpf_attach_type_str(number)) or _NEWER_ATTACH_TYPES.get(number, str(number))


def map_type_name(number: int) -> str:
    """Such as `lru_hash`; the number itself where this libbpf has no name for it."""
    return text(lib().libbpf_bpf_map_type_str(number)) or str(number)


def link_type_name(number: int) -> str:
    """Such as `cgroup`; the number itself where there is no name for it."""
    return text(lib().libbpf_bpf_link_type_str(number)) or _NEWER_LINK_TYPES.get(number, str(number))


@cache
def possible_cpus() -> int:
    """How many values a row of a per-CPU map has."""
    return check(lib().libbpf_num_possible_cpus(), "number of possible CPUs")
