"""What is found out about this machine agrees with what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bpfproxy.datapath import cgroup, features, libbpf
from bpfproxy.datapath.probe import probe
from bpfproxy.lab import cgroup as lab_cgroup
from bpfproxy.model.finding import Finding


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


def test_everything_required_is_here(tmp_path: Path) -> None:
    found = by_name(probe(tmp_path))
    assert [finding for finding in found.values() if finding.required and not finding.available] == []
    assert found["loader"].detail.startswith("bcc: ")
    assert found["loader bcc"].detail.startswith("bcc ")
    assert found["cgroup2"].detail == str(lab_cgroup.mount_point())
    assert all(finding.consequence for finding in found.values() if not finding.available)
    assert list(tmp_path.iterdir()) == []


def test_the_loader_that_was_asked_for_is_named(tmp_path: Path) -> None:
    found = by_name(probe(tmp_path, loader_name="prebuilt"))
    assert found["loader"].detail == "prebuilt: asked for by --loader prebuilt"


def test_a_mounted_bpffs_is_found(state: Path) -> None:
    assert by_name(probe(state))["bpffs"].detail == f"mounted at {state}/bpf"


def test_a_directory_that_is_no_cgroup(tmp_path: Path) -> None:
    finding = by_name(probe(tmp_path, cgroup_dir=tmp_path))["cgroup2"]
    assert not finding.available
    assert finding.detail == f"{tmp_path} is no cgroup v2 directory"


def test_without_capabilities_it_says_so_and_claims_nothing(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from bpfproxy.datapath.probe import probe
for finding in probe(Path({str(tmp_path)!r})):
    print(finding.name, finding.available, finding.detail, sep="|")
"""
    dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    result = subprocess.run([*dropped, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {
        name: (available, detail) for name, available, detail in (r.split("|") for r in result.stdout.splitlines())
    }
    assert found["capabilities"] == ("False", "held: none; missing: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON")
    for name in (
        "map sk_storage",
        "program cgroup/connect4",
        "helper bpf_set_retval",
        "bpf_link",
        "tcx",
        "map batches",
    ):
        assert found[name][0] == "False", name


def test_unknown_things_are_not_claimed() -> None:
    assert not features.has_map_type(200)
    assert not features.has_helper("socket", "bpf_set_retval")
    assert not features.has_helper("cgroup/recvmsg4", "bpf_set_retval")
    assert features.has_helper("cgroup/post_bind4", "bpf_set_retval")
    with pytest.raises(ValueError, match="knows no program section 'nonsense'"):
        libbpf.program_type("nonsense")


def test_a_hidden_cgroup_mount_is_explained() -> None:
    """As `ip netns exec` does it: with a fresh /sys over the mounts below."""
    code = """
from bpfproxy.datapath import cgroup
from bpfproxy.errors import UnsupportedError
try:
    print(cgroup.mount_point())
except UnsupportedError as error:
    print(error)
"""
    top = lab_cgroup.mount_point()
    hide = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    command = [
        "unshare",
        "--mount",
        "--propagation=private",
        "sh",
        "-c",
        hide,
        str(top.parent),
        sys.executable,
        "-c",
        code,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"the cgroup v2 mount {top} is hidden by another mount" in result.stdout
    assert cgroup.mount_point() == top
