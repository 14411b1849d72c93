"""The virtual machines for people: what can be said about them without starting one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VAGRANT = ROOT / "vagrant"
VAGRANTFILE = (VAGRANT / "Vagrantfile").read_text()
MAKE_BOX = VAGRANT / "make-box"


def validate(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BPFPROXY_VAGRANT_")}
    environment |= {"VAGRANT_CWD": str(VAGRANT), "VAGRANT_HOME": str(tmp_path), "VAGRANT_DOTFILE_PATH": str(tmp_path)}
    environment |= {f"BPFPROXY_VAGRANT_{name}": value for name, value in settings.items()}
    return subprocess.run(["vagrant", "validate"], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"CPUS": "", "MEMORY": "", "DRIVER": "", "BOX": ""},
        {"CPUS": "4", "MEMORY": "8192", "DRIVER": "qemu", "BOX": "bpfproxy/debian12"},
    ],
    ids=["defaults", "empty", "all"],
)
def test_settings_that_are_accepted(tmp_path: Path, settings: dict[str, str]) -> None:
    done = validate(tmp_path, **settings)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CPUS", "two", "a whole number, at least 1"),
        ("CPUS", "0", "a whole number, at least 1"),
        ("CPUS", "1\n2", "a whole number, at least 1"),
        ("MEMORY", "2G", "a whole number, at least 1024"),
        ("MEMORY", "512", "a whole number, at least 1024"),
        ("DRIVER", "xen", "kvm or qemu"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, name: str, value: str, expected: str) -> None:
    done = validate(tmp_path, **{name: value})
    assert done.returncode != 0
    assert f"BPFPROXY_VAGRANT_{name}={value}: expected {expected}" in done.stderr


def test_the_settings_are_documented() -> None:
    text = (ROOT / "docs/development.md").read_text()
    for kind, name, default in re.findall(r'(setting|number|choice)\("(\w+)", "?([^",]+)', VAGRANTFILE):
        shown = rf"\| `BPFPROXY_VAGRANT_{name}` \| " + (r"`" if kind == "choice" else rf"`?{re.escape(default)}`? \|")
        assert re.search(shown, text), name


def test_the_example_has_the_addresses_of_the_machines() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((VAGRANT / "cluster.yaml").read_text()))
    hosts = dict(re.findall(r'"(\w+)" => (\d+)', VAGRANTFILE))
    prefixes = re.findall(r'^IPV[46] = "(.*)"$', VAGRANTFILE, re.MULTILINE)
    addresses = {name: [f"{prefix}{host}" for prefix in prefixes] for name, host in hosts.items() if name != "client"}
    assert {name: len(found) for name, found in addresses.items()} == {"node1": 2, "node2": 2}

    nodes = [document for document in documents if document["kind"] == "Node"]
    assert {
        node["metadata"]["name"]: [address["address"] for address in node["status"]["addresses"]] for node in nodes
    } == addresses
    endpoints = [
        (endpoint["nodeName"], address)
        for document in documents
        if document["kind"] == "EndpointSlice"
        for endpoint in document["endpoints"]
        for address in endpoint["addresses"]
    ]
    assert sorted(endpoints) == sorted((name, address) for name, found in addresses.items() for address in found)


@pytest.mark.parametrize("arguments", [["--nonsense"], ["one.box", "two.box"], ["--complete", "--complete"]])
def test_the_box_s_script_says_how_it_is_used(arguments: list[str]) -> None:
    done = subprocess.run([MAKE_BOX, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: make-box" in done.stderr


def test_the_box_s_script_helps() -> None:
    done = subprocess.run([MAKE_BOX, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "usage: make-box" in done.stdout
