"""`bpfproxy check` and `bpfproxy cleanup`."""

from __future__ import annotations

import click

from bpfproxy import api
from bpfproxy.cli import output
from bpfproxy.cli.options import output_option, settings_options
from bpfproxy.config import Settings
from bpfproxy.errors import PermissionsError, UnsupportedError

_CHECK_SETTINGS = (
    "proxy_mode",
    "device",
    "pod_device",
    "acceleration",
    "host_routing",
    "cgroup",
    "state_dir",
    "loader",
    "iptables_variant",
    "localhost_nodeports",
)
"""What some proxier's check looks at."""


@click.command(short_help="Print what this machine offers.")
@settings_options(*_CHECK_SETTINGS)
@output_option
def check(settings: Settings, as_json: bool) -> None:
    """Print what this kernel and machine offer to --proxy-mode, what would be used, and what follows. Changes nothing.

    Exit status 6 if the agent cannot run here, 4 if that is for want of capabilities.
    """
    findings = api.check(settings)
    if as_json:
        output.write_json(findings)
    else:
        rows = [
            (
                finding.name,
                "yes" if finding.available else "NO" if finding.required else "no",
                finding.detail,
                "" if finding.available else finding.consequence,
            )
            for finding in findings
        ]
        output.write_table(("what", "there", "found", "without it"), rows)
    if missing_capabilities := next((f.detail for f in findings if f.name == "capabilities" and not f.available), ""):
        raise PermissionsError(f"the agent cannot run here as this user: {missing_capabilities}")
    missing = [finding.name for finding in findings if finding.required and not finding.available]
    if missing:
        raise UnsupportedError(f"the agent cannot run here: {', '.join(missing)} missing")


@click.command(short_help="Remove every trace of all modes.")
@settings_options("state_dir")
@output_option
def cleanup(settings: Settings, as_json: bool) -> None:
    """Remove every trace of all modes: links, maps, pins, the mount; rules, tables, kernel parameters; the relaying
    process; the state directory.

    A second run finds nothing. Refused while an agent runs.
    """
    removed = api.cleanup(settings.state_dir)
    if as_json:
        output.write_json(removed)
    elif removed:
        output.write("".join(f"removed {what}\n" for what in removed))
    else:
        click.echo(f"nothing to remove under {settings.state_dir}", err=True)
