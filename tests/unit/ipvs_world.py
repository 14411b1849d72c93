"""An ipvs proxier over a kernel in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from bpfproxy.proxiers.ipvs.entries import EntryTable
from bpfproxy.proxiers.ipvs.proxier import IpvsProxier
from bpfproxy.proxiers.ipvs.render import IpvsRenderer
from bpfproxy.proxiers.ipvs.table import ServerTable
from tests.unit.simkernel import SimKernel


def proxier(renderer: IpvsRenderer, kernel: SimKernel, rules: Any, sysctls: dict[str, str]) -> IpvsProxier:
    """One that starts anew. `rules` is used as a `RuleWriter`."""
    servers: Any = SimpleNamespace(
        all=kernel.all_servers,
        add=kernel.add_server,
        set=kernel.set_server,
        delete=kernel.delete_server,
        reals=kernel.reals,
        put_real=kernel.put_real,
        delete_real=kernel.delete_real,
    )
    ipsets: Any = SimpleNamespace(
        all=kernel.all_sets,
        create=kernel.create,
        destroy=kernel.destroy,
        add=kernel.add_entry,
        delete=kernel.delete_entry,
    )
    parameters: Any = SimpleNamespace(read=lambda: dict(sysctls), set=sysctls.__setitem__, restore=sysctls.pop)
    device = cast(Any, kernel)
    entries = EntryTable(ipsets)
    table = ServerTable(servers, device, entries)
    return IpvsProxier(renderer, table, entries, device, ipsets, rules, parameters, lambda: None)
