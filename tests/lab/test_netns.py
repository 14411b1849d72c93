"""Named namespaces beside those that people make with `ip netns`."""

from __future__ import annotations

import subprocess
import sys

BESIDE = """
import subprocess
from bpfproxy.lab import netns
netns.make("before")
subprocess.run(["ip", "netns", "add", "theirs"], check=True)
netns.make("after")
subprocess.run(["ip", "netns", "exec", "before", "true"], check=True)
print(*netns.names(""))
for name in ("before", "after"):
    netns.remove(name)
print(*netns.names(""))
"""


def test_the_first_of_ip_netns_hides_none_of_ours() -> None:
    elsewhere = ("unshare", "--mount", "--propagation=private", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "")
    command = [*elsewhere, sys.executable, "-c", BESIDE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines() == ["after before theirs", "theirs"], done.stderr
