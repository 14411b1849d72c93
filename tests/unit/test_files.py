"""The tree that stands in for a kernel's source when bcc compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfproxy.datapath import files
from bpfproxy.errors import UnsupportedError


def test_kernel_source_can_be_laid_out_again(tmp_path: Path) -> None:
    assert files.kernel_source(tmp_path / "kernel") == tmp_path / "kernel"
    include = tmp_path / "kernel/include"
    listing = sorted(include.rglob("*.h"))
    assert {"kconfig.h", "version.h", "log2.h", "types.h", "page.h"} == {path.name for path in listing}
    for header in ("uapi/linux/bpf.h", "uapi/asm/types.h", "uapi/asm-generic/types.h"):
        assert (include / header).is_file()
    files.kernel_source(tmp_path / "kernel")
    assert sorted(include.rglob("*.h")) == listing


def test_kernel_source_repairs_a_link(tmp_path: Path) -> None:
    files.kernel_source(tmp_path)
    link = tmp_path / "include/uapi/asm"
    link.unlink()
    link.symlink_to("/nonexistent")
    files.kernel_source(tmp_path)
    assert (link / "types.h").is_file()


def test_missing_headers_and_results_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match=r"nothing\.bpf\.o is missing"):
        files.built("nothing.bpf.o")
    monkeypatch.setattr(files, "_UAPI", tmp_path / "include")
    with pytest.raises(UnsupportedError, match="linux-libc-dev"):
        files.kernel_source(tmp_path)
