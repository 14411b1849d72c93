"""Debian's kernels: fetched by apt from the mirror that this machine uses, unpacked into a cache and never installed.

CACHE/VERSION/apt       lists and packages, of an apt configuration of our own
CACHE/VERSION/root      the unpacked package: boot/vmlinuz-*, lib/modules/*
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpfproxy.errors import BpfproxyError

SUITES: Final = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "bookworm-backports"}
"""Which of Debian's suites has a kernel."""

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_META_PACKAGE: Final = "linux-image-amd64"
_IMAGE: Final = re.compile(r"^Depends:.*\b(linux-image-\d[\w.+-]*)", re.MULTILINE)


class FetchError(BpfproxyError):
    """A kernel cannot be had; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel with its modules."""

    root: Path

    @property
    def image(self) -> Path:
        """The file to boot."""
        return next(self.root.glob("boot/vmlinuz-*"))

    @property
    def release(self) -> str:
        """What `uname -r` says on it."""
        return self.image.name.removeprefix("vmlinuz-")


def cache() -> Path:
    """Where kernels are kept. Outside the checkout: the guest sees that read-only, and `./dev clean` empties it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpfproxy" / "kernels"


def fetch(version: str, *, refresh: bool = False) -> Kernel:
    """The newest kernel of a series in SUITES; that in the cache, if there is one, unless `refresh`. Raises
    FetchError."""
    if version not in SUITES:
        raise FetchError(f"kernel {version}: expected one of {', '.join(SUITES)}")
    directory = cache() / version
    if refresh:
        shutil.rmtree(directory, ignore_errors=True)
    root = directory / "root"
    if not root.is_dir():
        apt = _Apt(directory / "apt", SUITES[version])
        _unpack(apt.download(), root)
    return Kernel(root)


def _unpack(package: Path, root: Path) -> None:
    """Complete, or not there at all."""
    partial = root.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run("dpkg-deb", "--extract", str(package), str(partial))
    _run("depmod", "--basedir", str(partial), Kernel(partial).release)
    partial.rename(root)


class _Apt:
    """apt with one source and no word of the system's configuration but its mirror and its network settings."""

    def __init__(self, directory: Path, suite: str) -> None:
        self._directory = directory
        for name in ("lists/partial", "archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
        options = {
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::status": "/dev/null",
            "Dir::State::lists": directory / "lists",
            "Dir::Cache": directory,
            "APT::Sandbox::User": "",
            "APT::Default-Release": "",
            "Acquire::Retries": 3,
        }
        self._options = [f"--option={key}={value}" for key, value in options.items()]

    def download(self) -> Path:
        """Fetch the package of the newest kernel."""
        _run("apt-get", "--quiet=2", *self._options, "update")
        record = _run("apt-cache", *self._options, "show", "--no-all-versions", _META_PACKAGE)
        found = _IMAGE.search(record)
        if found is None:
            raise FetchError(f"{_META_PACKAGE} of {self._directory} names no kernel")
        _run("apt-get", "--quiet=2", *self._options, "download", found[1], cwd=self._directory)
        return max(self._directory.glob(f"{found[1]}_*.deb"), key=lambda path: path.stat().st_mtime)


def _mirror() -> str:
    """The Debian archive that this machine's apt uses."""
    targets = _run("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages")
    for line in targets.splitlines():
        origin, label, uri = line.split("|")
        if (origin, label) == ("Debian", "Debian"):
            return uri
    raise FetchError("apt's sources name no Debian mirror: needs Debian, and `apt-get update` before")


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        raise FetchError(f"{' '.join(command[:1])} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
