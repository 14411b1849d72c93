"""What the documentation has to name, it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import click
import pytest

from bpfproxy import config
from bpfproxy.cli import cli
from bpfproxy.config import Settings
from bpfproxy.lab.divergences import REASONS
from bpfproxy.lab.oracle import OurMode
from bpfproxy.proxiers.modes import MODES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def page(name: str) -> str:
    return (DOCS / name).read_text()


def commands(group: click.Group, path: str = "bpfproxy") -> Iterator[str]:
    """Those that do something: `bpfproxy service list`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}"


def anchors(text: str) -> set[str]:
    """Of the headings, as they are made on the web."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


class TestSemantics:
    ROWS = re.compile(r"^\| `([a-z-]+)` \| ([^|]*) \|", re.MULTILINE)

    def test_the_divergences_are_those_that_parity_accepts(self) -> None:
        table = page("semantics.md").split("## Known divergences")[1].split("\n## ")[0]
        rows = dict(self.ROWS.findall(table))
        assert rows.keys() == REASONS.keys()
        for name, reason in REASONS.items():
            named = {mode for mode in (*get_args(OurMode), "kube-proxy") if re.search(rf"\b{mode}\b", reason)}
            assert set(rows[name].split(", ")) == named, name

    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_has_a_section(self, mode: str) -> None:
        assert f"\n## Mode {mode}\n" in page("semantics.md")


class TestOperations:
    @pytest.mark.parametrize("command", sorted({*commands(cli), "bpfproxy parity"}))
    def test_every_command_is_named(self, command: str) -> None:
        assert command in page("operations.md")

    @pytest.mark.parametrize("field", [field.name for field in fields(Settings)])
    def test_every_setting_is_named(self, field: str) -> None:
        assert re.search(rf"{config.flag(field)}(?![\w-])", page("operations.md"))

    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_is_named(self, mode: str) -> None:
        assert f"`{mode}`" in page("operations.md")

    def test_there_is_no_setting_that_does_not_exist(self) -> None:
        known = {
            word
            for field in fields(Settings)
            for word in (config.flag(field.name), f"--no-{config.flag(field.name)[2:]}")
        }
        mentioned = set(re.findall(r"`(--[a-z-]+)", page("operations.md") + page("semantics.md")))
        # Options of commands, and of iptables.
        assert mentioned - known == {"--to-ports", "--kube-proxy", "--kube-proxy-mode"}


class TestLinks:
    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_they_lead_somewhere(self, path: Path) -> None:
        text = path.read_text()
        for link in LINK.findall(text):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            if anchor:
                assert anchor in anchors(target.read_text()), link
