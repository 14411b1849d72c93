"""`bpfproxy completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from bpfproxy.cli import output


@click.command(short_help="Print shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete this command.

    bash: source <(bpfproxy completion bash); zsh the same; fish: bpfproxy completion fish | source
    """
    root = context.find_root()
    name = root.info_name or "bpfproxy"
    kind = get_completion_class(shell)
    assert kind is not None
    variable = f"_{name}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    output.write(kind(root.command, {}, name, variable).source() + "\n")
