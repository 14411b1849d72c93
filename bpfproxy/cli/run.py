"""`bpfproxy run`."""

from __future__ import annotations

import signal

import click

from bpfproxy.cli.exits import INTERRUPTED
from bpfproxy.cli.options import settings_options
from bpfproxy.config import Settings


@click.command(short_help="Run the node agent.")
@settings_options()
def run(settings: Settings) -> int:
    """Run the node agent until SIGTERM or SIGINT; the datapath stays in place.

    Prints one line per event on standard error, 'event=ready' when the first sync is done.
    """
    if not settings.manifests:
        raise click.UsageError("Missing option '--manifests'.")
    from bpfproxy import api, events

    events.configure(settings.log_level)
    return INTERRUPTED if api.run(settings) is signal.SIGINT else 0
