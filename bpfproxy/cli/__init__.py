"""The command line: thin, over `bpfproxy.api`. Subcommands are loaded when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, NoReturn

import click

from bpfproxy.cli import exits

_COMMANDS = {
    "run": "run:run",
    "plan": "plan:plan",
    "render": "plan:render",
    "service": "look:service",
    "backend": "look:backend",
    "conntrack": "conntrack:conntrack",
    "stats": "look:stats",
    "check": "node:check",
    "cleanup": "node:cleanup",
    "completion": "completion:completion",
}


_MORE: Final = "bpfproxy.commands"
"""Group of entry points: commands of packages above this one."""


class _Commands(click.Group):
    """Loads `bpfproxy.cli.MODULE` for a command, or an entry point, and turns what it raises into one line and an exit
    status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *sorted(entry_points(group=_MORE).names)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            more = entry_points(group=_MORE, name=cmd_name)
            loaded: click.Command | None = next(iter(more)).load() if more else None
            return loaded
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), attribute)
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl([(str(status), text) for status, text in exits.documented()])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run, and raise SystemExit with the status in any case."""
        extra["standalone_mode"] = False
        with exits.reported():
            raise SystemExit(super().main(args, *rest, **extra) or 0)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import bpfproxy

        click.echo(f"bpfproxy {bpfproxy.__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
def cli() -> None:
    """A Kubernetes service proxy for one Linux node, in BPF.

    Options of the commands may be set by the environment as well: BPFPROXY_STATE_DIR for --state-dir. Those that take
    several values take them with commas between, or are given several times.
    """


def main() -> NoReturn:
    """The command `bpfproxy`."""
    cli.main(prog_name="bpfproxy")
