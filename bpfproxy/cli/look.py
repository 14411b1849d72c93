"""`bpfproxy service`, `backend` and `stats`: what a running node's maps hold, those of mode ebpf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from bpfproxy import api
from bpfproxy.cli import output
from bpfproxy.cli.options import output_option, settings_options
from bpfproxy.config import Settings
from bpfproxy.errors import BpfproxyError, InputError

if TYPE_CHECKING:
    from bpfproxy.proxiers.ebpf.view import FrontendView


def _names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """For the shell: names of Services on this node."""
    try:
        with api.open_view(context.params.get("state_dir") or Settings().state_dir) as view:
            frontends = view.frontends()
    except (BpfproxyError, OSError):
        return []
    return sorted({found.service for found in frontends if found.service.startswith(incomplete)})


def _address(view: FrontendView) -> str:
    address = f"[{view.address}]" if ":" in view.address else view.address
    family = f" v{view.family}" if view.address == "*" else ""
    return f"{address}:{view.port}/{view.protocol}{family}"


def _note_others(settings: Settings) -> None:
    """What a look at the maps does not show."""
    for text in api.other_modes(settings.state_dir):
        click.echo(f"note: {text}", err=True)


def _by(counts: Mapping[str, int], label: str = "{}") -> str:
    """`3 by connect, 4 by packet`."""
    return ", ".join(f"{count} {label.format(name)}" for name, count in counts.items())


@click.group()
def service() -> None:
    """Services that a running node answers for, by mode ebpf."""


@service.command("list")
@settings_options("state_dir")
@output_option
def list_services(settings: Settings, as_json: bool) -> None:
    """List all frontends."""
    with api.open_view(settings.state_dir) as look:
        frontends = look.frontends()
    if as_json:
        output.write_json(frontends)
        return
    rows = [
        (
            view.service,
            view.port_name,
            view.kind,
            _address(view),
            view.scope,
            view.scheduler,
            len(view.backends),
            sum(view.connections.values()),
            sum(view.packets.values()),
            sum(view.bytes.values()),
        )
        for view in frontends
    ]
    headers = (
        "service",
        "port",
        "kind",
        "frontend",
        "clients",
        "scheduler",
        "backends",
        "connections",
        "packets",
        "bytes",
    )
    output.write_table(headers, rows)
    _note_others(settings)


@service.command()
@click.argument("name", shell_complete=_names)
@settings_options("state_dir")
@output_option
def show(name: str, settings: Settings, as_json: bool) -> None:
    """Show the Service NAME (NAMESPACE/NAME, or NAME in 'default') with its backends and counters."""
    wanted = name if "/" in name else f"default/{name}"
    with api.open_view(settings.state_dir) as look:
        found = [view for view in look.frontends() if view.service == wanted]
    if not found:
        raise InputError(f"Service {wanted}: not on this node")
    if as_json:
        output.write_json(found)
        return
    for view in found:
        facts = {
            "service": f"{view.service}{':' + view.port_name if view.port_name else ''}",
            "clients": view.scope,
            "scheduler": view.scheduler,
            "affinity": f"{view.affinity_timeout} s" if view.affinity_timeout else "none",
            "masquerade": view.masquerade,
            "backends": f"{', '.join(view.backends)} ({view.pool})" if view.backends else f"none: {view.on_empty}",
            "draining": ", ".join(view.draining),
            "connections": _by(view.connections, "by {}"),
            "packets": _by(view.packets),
            "bytes": _by(view.bytes),
        }
        lines = [f"{view.kind} {_address(view)}", *(f"  {key:<12} {text}" for key, text in facts.items() if text)]
        output.write("\n".join(lines) + "\n")


@click.group()
def backend() -> None:
    """Translation targets of a running node, in mode ebpf."""


@backend.command("list")
@settings_options("state_dir")
@output_option
def list_backends(settings: Settings, as_json: bool) -> None:
    """List all backends."""
    with api.open_view(settings.state_dir) as look:
        backends = look.backends()
    if as_json:
        output.write_json(backends)
        return
    rows = [
        (
            view.id,
            f"[{view.address}]:{view.port}" if ":" in view.address else f"{view.address}:{view.port}",
            view.protocol,
            view.service,
            view.port_name,
            "local" if view.local else "remote",
            view.sets,
            view.connections,
            *view.packets.values(),
            *view.bytes.values(),
        )
        for view in backends
    ]
    counters = ("packets to", "packets from", "bytes to", "bytes from")
    output.write_table(
        ("id", "backend", "protocol", "service", "port", "place", "sets", "connections", *counters), rows
    )
    _note_others(settings)


@click.command(short_help="Print counters of a running node.")
@settings_options("state_dir")
@output_option
def stats(settings: Settings, as_json: bool) -> None:
    """Print counters by hook and reason, drops, traffic, how full the maps are, and the state of the agent.

    All but the agent's are those of mode ebpf.
    """
    with api.open_view(settings.state_dir) as look:
        node = look.node()
    agent = api.read_status(settings.state_dir)
    if as_json:
        output.write_json({**output.plain(node), "agent": agent})
        return
    counts = [(hook, reason, count) for hook, reasons in node.metrics.items() for reason, count in reasons.items()]
    output.write_table(("hook", "reason", "count"), counts, "Counters")
    lost = [(reason, "dropped", count) for reason, count in node.drops.items()]
    lost += [(reason, "refused", count) for reason, count in node.refusals.items()]
    output.write_table(("reason", "what became of it", "count"), lost, "Not served")
    traffic = [("connections", f"by {origin}", count) for origin, count in node.connections.items()]
    traffic += [("packets", way, count) for way, count in node.packets.items()]
    traffic += [("bytes", way, count) for way, count in node.bytes.items()]
    output.write_table(("what", "way", "count"), traffic, "Traffic")
    sizes = [(name, node.map_rows.get(name, ""), size) for name, size in node.map_sizes.items()]
    output.write_table(("map", "rows", "at most"), sizes, "Maps")
    if agent is not None:
        facts: list[tuple[str, object]] = [
            ("process", agent.pid or "none"),
            ("node", agent.node),
            ("started", agent.started),
            ("ready", "yes" if agent.ready else "no"),
            ("last sync", f"{agent.last_sync or 'none'}, {agent.last_sync_seconds * 1000:.1f} ms"),
            ("services", agent.services),
            ("pending rows", agent.pending_rows),
            *((name.replace("_", " "), count) for name, count in output.plain(agent.counters).items()),
            *(("clash", text) for text in agent.clashes),
        ]
        output.write_table(("what", "value"), facts, "Agent")
    _note_others(settings)
