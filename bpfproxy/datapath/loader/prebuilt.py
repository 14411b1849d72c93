"""The loader for nodes without LLVM: opens the object that clang made when the package was built."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import Any

from bpfproxy.datapath import abi, features, libbpf
from bpfproxy.datapath.files import built
from bpfproxy.datapath.libbpf import ffi, lib
from bpfproxy.datapath.loader.base import (
    Availability,
    Loaded,
    LoadError,
    LoadSpec,
    Program,
    check_shape,
    load_files,
    refusal,
)
from bpfproxy.datapath.maps import Map, Shape
from bpfproxy.errors import UnsupportedError

_CONSTANTS = ".rodata"
_taking = threading.Lock()


def availability() -> Availability:
    """Needs libbpf and the built object."""
    try:
        path = built("sock_lb.bpf.o")
        return Availability("prebuilt", True, f"libbpf {libbpf.version()}, {path}")
    except UnsupportedError as error:
        return Availability("prebuilt", False, str(error))


def load(spec: LoadSpec) -> Loaded:
    """See `bpfproxy.datapath.loader.load`."""
    loaded = Loaded("prebuilt")
    try:
        load_files(spec, loaded, _load_object)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _load_object(stem: str, spec: LoadSpec, loaded: Loaded) -> None:
    name = f"{stem}.bpf.o"
    path = spec.directory / name if spec.directory else built(name)
    with libbpf.captured() as lines:
        handle = lib().bpf_object__open_file(os.fsencode(path), ffi.NULL)
        if handle == ffi.NULL:
            raise refusal(name, "\n".join(lines), libbpf.os_error(ffi.errno, "open"))
        try:
            for map_ in _each(lib().bpf_object__next_map, handle):
                _prepare(map_, spec)
            result = lib().bpf_object__load(handle)
            if result < 0:
                _explain(handle, name)
                raise refusal(name, "\n".join(lines), libbpf.os_error(-result, "load"))
            with _taking:
                _take(handle, loaded)
        finally:
            lib().bpf_object__close(handle)


def _prepare(map_: Any, spec: LoadSpec) -> None:
    name = libbpf.text(lib().bpf_map__name(map_))
    if lib().bpf_map__is_internal(map_):
        if name.endswith(_CONSTANTS):
            _set_constants(map_, spec)
        return
    if lib().bpf_map__max_entries(map_):
        if name not in spec.sizes:
            raise ValueError(f"no size is given for map {name}")
        libbpf.check(lib().bpf_map__set_max_entries(map_, spec.sizes[name]), f"size of {name}")
    path = spec.pin_dir / name
    check_shape(path, _shape(map_))
    libbpf.check(lib().bpf_map__set_pin_path(map_, os.fsencode(path)), f"pin path of {name}")


def _shape(map_: Any) -> Shape:
    return Shape(
        lib().bpf_map__type(map_),
        lib().bpf_map__key_size(map_),
        lib().bpf_map__value_size(map_),
        lib().bpf_map__max_entries(map_),
        lib().bpf_map__map_flags(map_),
    )


def _set_constants(map_: Any, spec: LoadSpec) -> None:
    size = ffi.new("size_t *")
    value = lib().bpf_map__initial_value(map_, size)
    if size[0] != abi.sizeof("struct config"):
        raise LoadError(f"the object has {size[0]} bytes of constants, struct config has {abi.sizeof('struct config')}")
    config = abi.ffi.cast("struct config *", int(ffi.cast("uintptr_t", value)))
    for field, number in spec.constants.items():
        setattr(config, field, number)


def _take(handle: Any, loaded: Loaded) -> None:
    """Descriptors of our own: libbpf's go with the object."""
    for program in _each(lib().bpf_object__next_program, handle):
        name = libbpf.text(lib().bpf_program__name(program))
        loaded.programs[name] = Program(
            name,
            _duplicate(lib().bpf_program__fd(program)),
            lib().bpf_program__type(program),
            lib().bpf_program__expected_attach_type(program),
        )
    for map_ in _each(lib().bpf_object__next_map, handle):
        name = libbpf.text(lib().bpf_map__name(map_))
        if name not in loaded.maps and not lib().bpf_map__is_internal(map_):
            loaded.maps[name] = Map(_duplicate(lib().bpf_map__fd(map_)))


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _explain(handle: Any, name: str) -> None:
    """Raises UnsupportedError if the kernel lacks a type of map or program."""
    with libbpf.captured():
        for map_ in _each(lib().bpf_object__next_map, handle):
            kind = lib().bpf_map__type(map_)
            if not features.has_map_type(kind):
                raise UnsupportedError(f"this kernel lacks {libbpf.map_type_name(kind)} maps, which {name} needs")


def _each(following: Any, handle: Any) -> list[Any]:
    found: list[Any] = []
    entry = following(handle, ffi.NULL)
    while entry != ffi.NULL:
        found.append(entry)
        entry = following(handle, entry)
    return found
