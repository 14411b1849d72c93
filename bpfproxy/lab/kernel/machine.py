"""A virtual machine that runs one command on a kernel, over this machine's root file system.

The guest sees the host's files, and nothing that it writes stays, but for what it writes into the results' directory.
virtme-ng makes that of a kernel's image and its modules; QEMU emulates the processor, so that it works inside virtual
machines as well, at a fifteenth of the speed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from bpfproxy.errors import BpfproxyError
from bpfproxy.lab.kernel.debian import Kernel

CPUS: Final = 2
MEMORY: Final = "2G"
PROGRAMS: Final = ("vng", "virtme-run", "qemu-system-x86_64", "busybox", "udevadm", "modprobe")
"""Without udev the guest's output and status get lost; busybox is in its initial file system."""

RESULTS: Final = Path("/tmp/bpfproxy-kernel-test")
"""Where the guest has the results' directory."""

_ATTEMPTS: Final = 3
"""QEMU was seen to fail an assertion of its own at a boot (7.2: msix_table_mmio_write)."""
_EXPIRED: Final = "no end"

_SCRIPT: Final = """\
#!/bin/sh
# virtme-ng mounts without a cache, and then Python takes half a minute to start.
cp /proc/mounts /tmp/mounts # what is mounted again comes again at its end
while read -r tag path rest; do
    case " {cached} " in
        *" $path "*)
            umount "$path"
            mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose "$tag" "$path"
            ;;
    esac
done </tmp/mounts
modprobe --quiet tun # for /dev/net/tun, which nothing makes here
cd {directory} || exit
export {environment}
{command}
echo $? >{status}
"""


class MachineError(BpfproxyError):
    """The machine cannot be started, or its command did not come to an end."""


def run(
    kernel: Kernel,
    command: Sequence[str],
    results: Path,
    *,
    directory: Path,
    environment: Mapping[str, str],
    cached: Sequence[Path],
    timeout: float,
) -> int:
    """Boot `kernel`, run `command` as root in `directory`, and return its status. What it prints goes to standard
    output and to `results`/log; `results` (in the guest: RESULTS) is the one directory to which it can write for good.
    `cached` are directories that the host leaves alone meanwhile, none inside another, without spaces.

    A machine that dies is started again. Raises MachineError if it dies time and again, or if the command does not end
    within `timeout` seconds.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise MachineError(f"no {', '.join(missing)} on PATH: `./dev kernel-test` installs them")
    results = results.resolve()
    script, status = results / "script", results / "status"
    in_guest = RESULTS / status.name
    status.unlink(missing_ok=True)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    script.write_text(
        _SCRIPT.format(
            cached=" ".join(map(str, cached)),
            directory=shlex.quote(str(directory)),
            environment=variables,
            command=shlex.join(command),
            status=in_guest,
        )
    )
    script.chmod(0o755)
    for _ in range(_ATTEMPTS):
        why = _boot(kernel, results, cached, timeout)
        if status.exists():
            return int(status.read_text())
        print(f"kernel {kernel.release}: {why}", file=sys.stderr)
        if why.startswith(_EXPIRED):
            break
    raise MachineError(f"kernel {kernel.release}: {why}; see {results / 'log'}")


def _boot(kernel: Kernel, results: Path, cached: Sequence[Path], timeout: float) -> str:
    """Start the machine, wait for its end, and say how it came to it."""
    machine = subprocess.Popen(
        _vng(kernel, results, cached),
        cwd="/",  # the guest's is the same, and must not keep a mount busy
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert machine.stdout is not None
    # QEMU is a descendant, so it takes the whole session to end it.
    watchdog = threading.Timer(timeout, os.killpg, (machine.pid, signal.SIGKILL))
    watchdog.start()
    try:
        with (results / "log").open("wb") as log:
            _copy(machine.stdout, log)
        machine.wait()
    finally:
        expired = not watchdog.is_alive()
        watchdog.cancel()
        if machine.poll() is None:
            os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
    return f"{_EXPIRED} after {timeout:g} s" if expired else f"vng ended with status {machine.returncode}"


def _vng(kernel: Kernel, results: Path, cached: Sequence[Path]) -> list[str]:
    options = ["--disable-kvm", "--disable-microvm", "--force-9p", "--cpus", str(CPUS), "--memory", MEMORY]
    options += [f"--rodir={path}" for path in cached]
    return [
        "vng",
        "--run",
        str(kernel.image),
        *options,
        f"--rwdir={RESULTS}={results}",
        "--",
        str(RESULTS / "script"),
    ]


def _copy(source: IO[bytes], log: IO[bytes]) -> None:
    while chunk := os.read(source.fileno(), 1 << 16):
        log.write(chunk)
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
