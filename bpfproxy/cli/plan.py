"""`bpfproxy plan` and `bpfproxy render`: what would be done, computed here and now, without a kernel or root."""

from __future__ import annotations

import click
from msgspec import Struct

from bpfproxy import api
from bpfproxy.cli import output
from bpfproxy.cli.options import output_option, settings_options
from bpfproxy.config import Settings
from bpfproxy.model.address import format_address, format_endpoint
from bpfproxy.model.frontend import Frontend, FrontendKind, FrontendSpec, Masquerade, OnEmpty, Scope

_PLAN_SETTINGS = ("manifests", "node_name", "cluster_cidr", "nodeport_addresses", "masquerade_all")
_RENDER_SETTINGS = (
    *_PLAN_SETTINGS,
    "proxy_mode",
    "scheduler",
    "service_cidr",
    "masquerade_bit",
    "snat_ports",
    "localhost_nodeports",
)
"""What some proxier's renderer looks at."""


class PlannedFrontend(Struct, frozen=True):
    """A frontend as `plan -o json` shows it. `address` of a NodePort is `*`: all in `node_addresses`."""

    service: str
    port_name: str
    kind: str
    address: str
    port: int
    protocol: str
    family: int
    scope: str
    """`all`, or `external` and `internal` where clients are treated differently."""
    pool: str
    """`cluster` or `local`: whose endpoints stand behind it."""
    backends: list[str]
    draining: list[str]
    on_empty: str
    masquerade: str
    affinity_timeout: int
    """Seconds, 0 without affinity."""
    source_ranges: list[str]
    scheduler: str | None
    """None: the node's default."""


def _planned(frontend: Frontend, spec: FrontendSpec) -> PlannedFrontend:
    name = spec.service_port
    scoped = spec.scoped or frontend.scope is Scope.INTERNAL
    return PlannedFrontend(
        service=str(name.service),
        port_name=name.port,
        kind=spec.kind.label,
        address="*" if spec.kind is FrontendKind.NODE_PORT else format_address(frontend.address),
        port=frontend.port,
        protocol=frontend.protocol.name,
        family=frontend.family,
        scope=frontend.scope.name.lower() if scoped else "all",
        pool=output.plain(spec.pool),
        backends=[str(backend) for backend in spec.backends],
        draining=[str(backend) for backend in spec.draining],
        on_empty=output.plain(spec.on_empty),
        masquerade=output.plain(spec.masquerade),
        affinity_timeout=spec.affinity_timeout,
        source_ranges=[str(network) for network in spec.source_ranges],
        scheduler=output.plain(spec.scheduler),
    )


def _order(item: tuple[Frontend, FrontendSpec]) -> tuple[object, ...]:
    frontend, spec = item
    return (spec.service_port, spec.kind, frontend.family, frontend.address, frontend.port, frontend.scope)


def _frontend_text(frontend: Frontend, spec: FrontendSpec) -> str:
    if spec.kind is FrontendKind.NODE_PORT:
        return f"*:{frontend.port}/{frontend.protocol.name} v{frontend.family}"
    return f"{format_endpoint(frontend.address, frontend.port)}/{frontend.protocol.name}"


def _notes(spec: FrontendSpec) -> str:
    notes = []
    if not spec.backends:
        notes.append("drops" if spec.on_empty is OnEmpty.DROP else "rejects")
    if spec.draining:
        notes.append(f"draining {', '.join(map(str, spec.draining))}")
    if spec.masquerade is not Masquerade.NEVER:
        notes.append(f"masquerade {output.plain(spec.masquerade)}")
    if spec.affinity_timeout:
        notes.append(f"affinity {spec.affinity_timeout} s")
    if spec.source_ranges:
        notes.append(f"only from {', '.join(map(str, spec.source_ranges))}")
    if spec.scheduler is not None:
        notes.append(spec.scheduler.label)
    return "; ".join(notes)


def _require_manifests(settings: Settings) -> None:
    if not settings.manifests:
        raise click.UsageError("Missing option '--manifests'.")


def _warn(plan: api.Plan) -> None:
    for clash in plan.clashes:
        click.echo(f"warning: {clash}", err=True)


@click.command(short_help="Print the frontends of manifests.")
@settings_options(*_PLAN_SETTINGS)
@output_option
def plan(settings: Settings, as_json: bool) -> None:
    """Print the frontends that a node answers for, and their backends.

    The node's addresses and zone are those of its Node object, if the manifests have it. Needs no root.
    """
    _require_manifests(settings)
    found = api.plan_manifests(settings)
    items = sorted(found.frontends().items(), key=_order)
    if as_json:
        output.write_json(
            {
                "node": settings.node,
                "node_addresses": found.node.node_port_addresses,
                "localhost_node_ports": found.node.localhost_node_ports,
                "frontends": [_planned(frontend, spec) for frontend, spec in items],
                "health_checks": [plan.health_check for plan in found.services.values() if plan.health_check],
                "clashes": [str(clash) for clash in found.clashes],
            }
        )
    else:
        rows = [
            (
                f"{spec.service_port.service}",
                spec.service_port.port,
                spec.kind.label,
                _frontend_text(frontend, spec),
                _planned(frontend, spec).scope,
                ", ".join(map(str, spec.backends)),
                _notes(spec),
            )
            for frontend, spec in items
        ]
        output.write_table(("service", "port", "kind", "frontend", "clients", "backends", "notes"), rows)
    _warn(found)


@click.command(short_help="Print the rows of a proxier for manifests.")
@settings_options(*_RENDER_SETTINGS)
@output_option
def render(settings: Settings, as_json: bool) -> None:
    """Print the rows that a proxier would write, without touching the kernel.

    Takes what 'plan' takes, and what the proxier of --proxy-mode needs. Every Service is rendered for that mode, also
    one with the annotation bpfproxy.io/proxy-mode. Needs no root.
    """
    _require_manifests(settings)
    found = api.plan_manifests(settings)
    rows = api.render_plan(found, settings)
    if as_json:
        output.write_json([{"table": row.table, "key": row.key, "row": row.row} for row in rows])
    else:
        output.write_table(("table", "key", "row"), [(row.table, row.key_text, row.row_text) for row in rows])
    _warn(found)
