"""The package as others get it: sdist, wheel, and what an installed wheel finds of its own."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FIND_FILES = """
import sys
from pathlib import Path
import bpfproxy
from bpfproxy.datapath import files
package = Path(bpfproxy.__path__[0])
assert package.is_relative_to(sys.argv[1]), package
assert files.c_tree() == package / "_bpf"
assert files.built("sock_lb.bpf.o").is_relative_to(package)
assert files.built("libmaglev.so").is_relative_to(package)
tree = files.kernel_source(Path(sys.argv[2]))
assert (tree / "include/linux/kconfig.h").is_file()
assert (tree / "include/uapi/linux/bpf.h").is_file()
"""


def run(*command: str | Path, cwd: Path) -> None:
    result = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the unpacked sdist, so that nothing of this checkout can be missed."""
    directory = tmp_path_factory.mktemp("package")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory, cwd=ROOT)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        assert not [name for name in sdist.getnames() if "/_built" in name or "/.venv" in name]
        sdist.extractall(directory)
    source = directory / archive.name.removesuffix(".tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, source, cwd=directory)
    (path,) = directory.glob("*.whl")
    return path


def test_wheel_is_for_this_platform_and_any_python_3(wheel: Path) -> None:
    assert wheel.stem.split("-")[2:4] == ["py3", "none"]
    assert wheel.stem.split("-")[4].startswith("linux_")


def test_wheel_carries_sources_stubs_and_built_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    sources = {f"bpfproxy/_bpf/{path.relative_to(ROOT / 'bpf')}" for path in (ROOT / "bpf").rglob("*.[ch]")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "bpfproxy").rglob("*.py")}
    assert len(sources) > 10
    assert sources | modules | {"bpfproxy/_built/sock_lb.bpf.o", "bpfproxy/_built/libmaglev.so"} <= names
    licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "bpf/LICENSE.BSD-2-Clause", "bpf/LICENSE.GPL-2.0"}
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


def test_installed_wheel_finds_its_files(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies come from the environment of this test, after the wheel's own package on the path.
    packages = Path(pytest.__file__).parents[1]
    (site,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{packages}\n")
    run(python, "-c", FIND_FILES, tmp_path / "venv", tmp_path / "kernel", cwd=tmp_path)
