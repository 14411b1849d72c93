"""hatch_build.py: compiles what has changed, and a failure leaves the results of the last good build."""

from __future__ import annotations

from pathlib import Path

import pytest

import hatch_build


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "bpf").mkdir()
    (tmp_path / "bpfproxy").mkdir()
    (tmp_path / "bpf/number.h").write_text("#define NUMBER 1\n")
    (tmp_path / "bpf/user.c").write_text('#include "number.h"\nint number(void) { return NUMBER; }\n')
    (tmp_path / "bpf/kernel.bpf.c").write_text('#include "number.h"\n#include <linux/bpf.h>\nint number = NUMBER;\n')
    return tmp_path


def results(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / hatch_build.BUILT).iterdir()}


def test_builds_once_and_again_after_a_change(root: Path) -> None:
    assert hatch_build.build(root)
    before = results(root)
    assert before.keys() == {"kernel.bpf.o", "libuser.so", hatch_build.STAMP}
    assert not hatch_build.build(root)
    (root / "bpf/number.h").write_text("#define NUMBER 2\n")
    assert hatch_build.build(root)
    assert all(before[name] != content for name, content in results(root).items())


def test_a_deleted_result_is_made_again(root: Path) -> None:
    hatch_build.build(root)
    (root / hatch_build.BUILT / "libuser.so").unlink()
    assert hatch_build.build(root)
    assert "libuser.so" in results(root)


def test_an_error_keeps_the_last_good_build(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hatch_build.build(root)
    before = results(root)
    (root / "bpf/user.c").write_text("int number(void) { return missing; }\n")
    with pytest.raises(hatch_build.BuildError, match=r"bpf/user\.c"):
        hatch_build.build(root)
    assert "missing" in capfd.readouterr().err
    assert results(root) == before


def test_lint_refuses_warnings(root: Path) -> None:
    hatch_build.lint(root)
    (root / "bpf/user.c").write_text("int number(void) { int unused; return 1; }\n")
    with pytest.raises(hatch_build.BuildError):
        hatch_build.lint(root)


def test_names_the_packages_if_clang_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(hatch_build.BuildError, match="apt-get install clang"):
        hatch_build.build(root)
