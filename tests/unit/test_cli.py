"""The command line, over real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import fields

from bpfproxy import errors
from bpfproxy.cli import cli, output
from bpfproxy.cli.plan import PlannedFrontend
from bpfproxy.events import EventFormatter, quote
from bpfproxy.model.address import parse_address
from bpfproxy.model.service import Scheduler
from bpfproxy.proxiers.modes import INSPECT, MODES

MANIFEST = """
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {bpfproxy.io/scheduler: maglev}}
spec:
  type: NodePort
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  sessionAffinity: ClientIP
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.1], nodeName: n1}
- {addresses: [10.244.2.1], nodeName: n2}
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BPFPROXY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(MANIFEST)
    return path


def call(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="bpfproxy")


def said(result: Result) -> str:
    """The one line on standard error."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


class TestHelp:
    def test_the_version_comes_without_loading_what_others_need(self) -> None:
        script = (
            "import sys\nsys.argv = ['bpfproxy', '--version']\nfrom bpfproxy.cli import main\n"
            "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
            "heavy = {'asyncio', 'bcc', 'cffi', 'msgspec', 'pyroute2', 'rich', 'yaml'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("bpfproxy ")

    @pytest.mark.parametrize("path", list(commands(cli)), ids=" ".join)
    def test_every_command_has_help(self, path: tuple[str, ...]) -> None:
        result = call(*path, "--help")
        assert result.exit_code == 0
        assert f"Usage: bpfproxy {' '.join(path)}" in result.stdout

    def test_exit_statuses_are_those_of_the_errors(self) -> None:
        text = " ".join(call("--help").stdout.split())
        found = [error for error in vars(errors).values() if isinstance(error, type) and error.__doc__]
        assert len(found) >= 7
        for error in found:
            if error is not errors.BpfproxyError:
                assert f"{error.exit_code} {error.__doc__}" in text  # type: ignore[attr-defined]

    def test_no_command_prints_help(self) -> None:
        result = call()
        assert result.exit_code == 2
        assert "Usage: bpfproxy" in result.output

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, shell: str) -> None:
        result = call("completion", shell)
        assert result.exit_code == 0
        assert "_BPFPROXY_COMPLETE" in result.stdout

    def test_the_shell_is_offered_commands(self) -> None:
        environment = {"_BPFPROXY_COMPLETE": "bash_complete", "COMP_WORDS": "bpfproxy re", "COMP_CWORD": "1"}
        result = CliRunner().invoke(cli, [], prog_name="bpfproxy", env=environment)
        assert result.stdout == "plain,render\n"


class TestBadUse:
    @pytest.mark.parametrize(
        ("args", "status", "message"),
        [
            (["nonsense"], 2, "No such command 'nonsense'"),
            (["plan"], 2, "bpfproxy plan: Missing option '--manifests'"),
            (["run"], 2, "bpfproxy run: Missing option '--manifests'"),
            (["run", "--sync-period", "soon"], 2, "bpfproxy run: Invalid value for '--sync-period': 'soon'"),
            (["run", "--loader", "jit"], 2, "bpfproxy run: Invalid value for '--loader': 'jit' is not one of"),
            (["run", "--manifests", "x", "--max-sets", "0"], 3, "bpfproxy: --max-sets 0: expected 1 to"),
            (["run", "--manifests", "x", "--cluster-cidr", "10.0.0.0"], 3, "bpfproxy: cluster CIDR: expected a range"),
            (["run", "--manifests", "x", "--nodeport-addresses", "y"], 3, "bpfproxy: NodePort addresses: expected a"),
            (["render", "--manifests", "/nowhere"], 3, "bpfproxy: /nowhere: "),
            (["service", "show"], 2, "bpfproxy service show: Missing argument 'NAME'"),
        ],
    )
    def test_it_is_one_line(self, args: list[str], status: int, message: str, tmp_path: Path) -> None:
        state = tmp_path / "state"
        result = CliRunner().invoke(cli, args, prog_name="bpfproxy", env={"BPFPROXY_STATE_DIR": str(state)})
        assert (result.exit_code, result.stdout) == (status, "")
        assert message in said(result)
        assert not state.exists()

    def test_each_fault_of_a_manifest_is_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("kind: Service\napiVersion: v1\n---\nkind: Service\napiVersion: v1\n")
        result = call("plan", "--manifests", tmp_path)
        assert result.exit_code == 3
        lines = result.stderr.splitlines()
        assert len(lines) == 2
        assert all(line.startswith(f"bpfproxy: {tmp_path}/bad.yaml: document ") for line in lines)

    @pytest.mark.parametrize(
        "command", [("service", "list"), ("service", "show", "a"), ("backend", "list"), ("stats",)]
    )
    def test_no_datapath(self, command: tuple[str, ...], tmp_path: Path) -> None:
        result = call(*command, "--state-dir", tmp_path)
        assert result.exit_code == errors.NotRunningError.exit_code
        assert f"no datapath under {tmp_path}" in said(result)

    @pytest.mark.parametrize("command", [("service", "list"), ("backend", "list"), ("stats",), ("conntrack", "list")])
    def test_a_mode_without_a_view_says_what_to_use_instead(self, command: tuple[str, ...], tmp_path: Path) -> None:
        (tmp_path / "nftables").touch()  # as an agent of that mode leaves it
        result = call(*command, "--state-dir", tmp_path)
        assert result.exit_code == errors.NotRunningError.exit_code
        line = said(result)
        assert f"no eBPF datapath under {tmp_path}" in line
        assert "mode nftables has no such view: `nft list ruleset`" in line

    def test_every_mode_but_ebpf_has_something_else_to_look_with(self) -> None:
        assert set(MODES) - {"ebpf"} <= INSPECT.keys()

    def test_nothing_to_clean_up(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        result = call("cleanup", "--state-dir", state)
        assert (result.exit_code, result.stdout) == (0, "")
        assert said(result) == f"nothing to remove under {state}"
        assert call("cleanup", "--state-dir", state, "-o", "json").stdout == "[]\n"


class TestPlan:
    def test_a_table(self, manifest: Path) -> None:
        result = call("plan", "--manifests", manifest, "--node-name", "n1", "--cluster-cidr", "10.244.0.0/16")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert len(lines) == 3
        assert lines[0].split() == ["SERVICE", "PORT", "KIND", "FRONTEND", "CLIENTS", "BACKENDS", "NOTES"]
        assert lines[1].split()[:4] == ["shop/web", "http", "ClusterIP", "10.96.0.1:80/TCP"]
        assert "10.244.1.1:8080, 10.244.2.1:8080" in lines[1]
        assert lines[1].endswith("masquerade not-local; affinity 10800 s; maglev")
        assert "*:30080/TCP v4" in lines[2]

    def test_json(self, manifest: Path) -> None:
        plan = self.json("--manifests", manifest, "--node-name", "n1")
        assert plan["node_addresses"] == ["192.0.2.1"]
        assert (plan["clashes"], plan["health_checks"]) == ([], [])
        first, second = plan["frontends"]
        assert list(first) == [field.name for field in fields(PlannedFrontend)]
        assert first["address"] == "10.96.0.1"
        assert first["scheduler"] == "maglev"
        assert (second["kind"], second["address"], second["port"]) == ("NodePort", "*", 30080)

    def test_settings_from_the_environment(self, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        other = manifest.with_name("other.yaml")
        other.write_text(MANIFEST.split("---", maxsplit=1)[0].replace("n1", "n2"))
        monkeypatch.setenv("BPFPROXY_MANIFESTS", f"{manifest},{other}")
        monkeypatch.setenv("BPFPROXY_NODE_NAME", "n2")
        assert self.json()["node"] == "n2"
        assert len(self.json("--manifests", other)["frontends"]) == 0

    def test_several_values(self, manifest: Path) -> None:
        both = ("--cluster-cidr", "10.244.0.0/16, fd00:10:244::/56")
        assert self.json("--manifests", manifest, *both)["frontends"][0]["masquerade"] == "not-local"
        result = call("plan", "--manifests", manifest, "--cluster-cidr", "10.0.0.0/8", "--cluster-cidr", "11.0.0.0/8")
        assert result.exit_code == 3
        assert "at most one range of IPv4" in said(result)

    def test_a_clash_is_a_warning(self, manifest: Path) -> None:
        service = MANIFEST.split("---")[1].replace("ports:", "externalIPs: [203.0.113.1]\n  ports:")
        rival = service.replace("web", "xeb").replace("10.96.0.1", "10.96.0.2").replace(", nodePort: 30080", "")
        manifest.write_text(f"{service}---{rival}")
        result = call("plan", "--manifests", manifest)
        assert result.exit_code == 0
        assert result.stderr == "warning: Service shop/xeb: 203.0.113.1:80/TCP belongs to Service shop/web\n"
        assert len(self.json("--manifests", manifest)["clashes"]) == 1

    def test_rows(self, manifest: Path) -> None:
        result = call("render", "--manifests", manifest, "--node-name", "n1", "--scheduler", "random", "-o", "json")
        rows = json.loads(result.stdout)
        tables = [row["table"] for row in rows]
        assert tables == ["frontends4", "frontends4", *["node_addresses"] * 3, "sets"]
        assert rows[-1]["row"]["scheduler"] == "maglev"
        assert rows[-1]["row"]["backends"][0] == {
            "address": "10.244.1.1",
            "port": 8080,
            "protocol": "tcp",
            "local": True,
        }
        text = call("render", "--manifests", manifest, "--node-name", "n1").stdout.splitlines()
        assert text[0].split() == ["TABLE", "KEY", "ROW"]
        assert len(text) == 1 + len(rows)

    @pytest.mark.parametrize("mode", MODES)
    def test_rows_of_every_mode_need_no_privileges(self, mode: str, manifest: Path) -> None:
        arguments = [sys.executable, "-m", "bpfproxy", "render", "--manifests", str(manifest), "--node-name", "n1"]
        if os.geteuid() == 0:
            arguments = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *arguments]
        done = subprocess.run([*arguments, "--proxy-mode", mode], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["TABLE", "KEY", "ROW"]
        assert any("10.96.0.1" in line for line in lines)
        assert any("10.244.1.1" in line for line in lines)

    def test_settings_of_other_modes_are_in_the_rows(self, manifest: Path) -> None:
        common = ("render", "--manifests", manifest, "--masquerade-bit", 5, "--snat-ports", "40000-65535")
        rules = call(*common, "--proxy-mode", "iptables").stdout
        assert "--or-mark 0x20" in rules
        assert "--to-ports 1024-39999" in rules
        ranges = ("--service-cidr", "10.96.0.0/12")
        assert "10.96.0.0/12 drop" in call(*common, "--proxy-mode", "nftables", *ranges).stdout
        assert "route_localnet" in rules
        assert "route_localnet" not in call(*common, "--proxy-mode", "iptables", "--no-localhost-nodeports").stdout

    def test_a_bad_service_cidr(self, manifest: Path) -> None:
        result = call("render", "--manifests", manifest, "--proxy-mode", "nftables", "--service-cidr", "10.96")
        assert result.exit_code == errors.InputError.exit_code
        assert "service CIDR: expected a range such as" in said(result)

    @staticmethod
    def json(*args: object) -> Any:
        result = call("plan", *args, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


class TestCheck:
    # What makes a mode impossible here, by rows of its own.
    REQUIRED: ClassVar = {
        "ebpf": "program cgroup/connect4",
        "iptables": "iptables",
        "nftables": "nftables",
        "userspace": "nft",
    }

    @pytest.mark.parametrize("mode", REQUIRED)
    def test_a_mode(self, mode: str, tmp_path: Path) -> None:
        result = call("check", "--proxy-mode", mode, "--state-dir", tmp_path / "state", "-o", "json")
        findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
        assert findings["capabilities"]["required"]
        assert findings[self.REQUIRED[mode]]["required"]
        missing = [name for name, finding in findings.items() if finding["required"] and not finding["available"]]
        expected = errors.PermissionsError if "capabilities" in missing else errors.UnsupportedError
        assert result.exit_code == (expected.exit_code if missing else 0)
        assert not (tmp_path / "state").exists()

    def test_loopback_node_ports_are_looked_at_where_they_are_wanted(self, tmp_path: Path) -> None:
        arguments = ("check", "--proxy-mode", "iptables", "--state-dir", tmp_path)
        assert "route_localnet" in call(*arguments).stdout
        assert "route_localnet" not in call(*arguments, "--no-localhost-nodeports").stdout


class TestProcess:
    COMMAND = (sys.executable, "-m", "bpfproxy")

    def test_a_reader_that_goes_away_is_no_news(self, manifest: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        arguments = [*self.COMMAND, "plan", "--manifests", str(manifest)]
        done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")

    def test_an_interrupt_is_quiet(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe.yaml"
        os.mkfifo(pipe)
        arguments = [*self.COMMAND, "plan", "--manifests", str(pipe)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                with pipe.open("w"):  # opens when the command reads
                    process.send_signal(signal.SIGINT)
                    out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert (process.returncode, out, err.strip()) == (130, "", "")

    def test_missing_capabilities_are_named(self, manifest: Path, tmp_path: Path) -> None:
        arguments = [*self.COMMAND, "run", "--manifests", str(manifest), "--state-dir", str(tmp_path / "state")]
        if os.geteuid() == 0:
            arguments = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *arguments]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == errors.PermissionsError.exit_code
        assert done.stderr.splitlines() == [
            "bpfproxy: missing CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run as root, or grant them"
        ]
        assert not (tmp_path / "state").exists()


class TestOutput:
    def test_columns(self, capsys: pytest.CaptureFixture[str]) -> None:
        output.write_table(("name", "n"), [("a", 1), ("long name", 22), ("", 3)], "Title")
        assert capsys.readouterr().out == "Title:\nNAME        N\na           1\nlong name  22\n-           3\n\n"

    def test_a_terminal_gets_a_table(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        output.write_table(("name", "n"), [("[fd00::1]:80", 1)])
        assert "[fd00::1]:80" in capsys.readouterr().out

    def test_plain_values(self) -> None:
        assert output.plain({"a": parse_address("fd00::1"), "b": (Scheduler.ROUND_ROBIN, None, 1.5, Path("/x"))}) == {
            "a": "fd00::1",
            "b": ["round-robin", None, 1.5, "/x"],
        }

    def test_words_of_events(self) -> None:
        assert [quote(value) for value in ("a/b:c", 'say "x"\n', "", 0.25, True, 7)] == [
            "a/b:c",
            '"say \\"x\\"\\n"',
            '""',
            "0.25",
            "true",
            "7",
        ]

    def test_other_libraries_messages_are_events_of_one_line(self) -> None:
        import logging

        try:
            raise ValueError("x")
        except ValueError:
            record = logging.LogRecord("lib", logging.ERROR, "f", 1, "two\nlines", (), sys.exc_info())
        line = EventFormatter().format(record)
        assert 'level=error event=log logger=lib message="two\\nlines" trace=' in line
        assert "\n" not in line
