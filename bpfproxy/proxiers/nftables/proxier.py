"""The nftables proxier: ops in, transactions of nft out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from bpfproxy.errors import DatapathError
from bpfproxy.events import emit
from bpfproxy.model.address import Address
from bpfproxy.model.frontend import Frontend, NodePlan, ServicePlan
from bpfproxy.netfilter import conntrack, nft
from bpfproxy.proxiers.base import Failure, Op, Rows, Tended
from bpfproxy.proxiers.nftables import names
from bpfproxy.proxiers.nftables.flows import UdpFlows
from bpfproxy.proxiers.nftables.names import FAMILIES, TABLE
from bpfproxy.proxiers.nftables.parse import rows_of
from bpfproxy.proxiers.nftables.render import NftablesRenderer
from bpfproxy.proxiers.nftables.rows import ElementKey, Key, Row
from bpfproxy.proxiers.nftables.script import Place, Script

log = logging.getLogger(__name__)

BATCH: Final = 3000
"""Most ops in one transaction. The kernel compares each anonymous set with all that its transaction holds, and nft
looks at all chains once per transaction: at 10,000 Services the sum is least about here."""

Endpoint = tuple[Address, int]


class NftablesProxier:
    """Implements `Proxier` over the tables `kube-proxy`, in the network namespace of the calling thread."""

    name = "nftables"

    def __init__(
        self,
        renderer: NftablesRenderer,
        *,
        batch: int = BATCH,
        delete_stale: Callable[[Mapping[Endpoint, frozenset[Endpoint]]], int] = conntrack.delete_stale,
    ) -> None:
        self._renderer = renderer
        self._batch = batch
        self._delete_stale = delete_stale
        self._rows: dict[Key, Row] = {}
        self._generation: int | None = None
        """Of the kernel's rules when they were `_rows`; None: somebody else may have changed them."""
        self._owners: dict[Place, list[str]] = {}
        self._flows = UdpFlows()
        self._commits = 0
        self._opened = conntrack.Connections()

    def render(self, plan: ServicePlan) -> Rows:
        """See `Proxier.render`."""
        return self._renderer.render(plan)

    def render_node(self, plan: NodePlan) -> Rows:
        """See `Proxier.render_node`."""
        return self._renderer.render_node(plan)

    def phase(self, op: Op) -> int:
        """See `Proxier.phase`."""
        return self._renderer.phase(op)

    def read(self) -> dict[Key, Row]:
        """See `Proxier.read`. The kernel's listing is read only if somebody else has written rules since."""
        generation = nft.generation()
        if generation != self._generation:
            self._generation = None
            self._rows, self._owners, self._flows = {}, {}, UdpFlows()
            for family, word in FAMILIES.items():
                for key, row in rows_of(family, nft.list_table(word, TABLE) or ()).items():
                    self._remember(key, row)
                    if isinstance(key, ElementKey) and key.set == names.CLUSTER_IPS:
                        self._owners.setdefault((family, key.element), []).append(key.owner)
            self._flows.forget_touched()
            self._generation = generation if nft.generation() == generation else None
        return dict(self._rows)

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """See `Proxier.apply`. One transaction; many ops take one after the other, since the kernel's work grows faster
        than a transaction."""
        failures: list[Failure] = []
        self._commits = 0
        for start in range(0, len(ops), self._batch):
            failures += self._commit(ops[start : start + self._batch])
        generation = nft.generation()
        # A transaction that changes nothing does not count.
        if self._generation is not None and 0 <= generation - self._generation <= self._commits:
            self._generation = generation
        else:
            self._generation = None
        self._end_stale_flows()
        return failures

    def activate(self, *, complete: bool) -> None:
        """See `Proxier.activate`: rules are in force when they are written."""

    def tend(self) -> Tended:
        """See `Proxier.tend`: the kernel forgets affinities by itself."""
        return Tended()

    @property
    def precedes_conntrack(self) -> bool:
        """See `Proxier.precedes_conntrack`."""
        return False

    def drained(self, preceded: Collection[Frontend]) -> bool:
        """See `Proxier.drained`. Conntrack goes on translating what it has begun to without any rule, if it sees it."""
        return not self._opened.lead_to(preceded)

    def close(self) -> None:
        """See `Proxier.close`: nothing is held."""

    def _commit(self, ops: Sequence[Op]) -> list[Failure]:
        """All of `ops` in one transaction, without those that the kernel refuses."""
        failures: list[Failure] = []
        while ops:
            script = Script(ops, self._rows, self._owners)
            try:
                nft.commit(script.lines)
            except nft.TransactionError as error:
                refused = _refused(script, error)
                if not refused and len(ops) > 1:
                    half = len(ops) // 2
                    return [*failures, *self._commit(ops[:half]), *self._commit(ops[half:])]
                if not refused:
                    return [*failures, Failure(ops[0], str(error))]
                for op in [op for op in ops if op.key in refused]:
                    reasons = refused[op.key]
                    if op.row is None and all(map(nft.is_missing, reasons)):
                        self._remember(op.key, None)
                    else:
                        failures.append(Failure(op, f"nft: {reasons[0]}"))
                ops = [op for op in ops if op.key not in refused]
            else:
                self._commits += 1
                self._owners.update(script.owners)
                for op in ops:
                    self._remember(op.key, op.row)
                break
        return failures

    def _remember(self, key: Key, row: Row | None) -> None:
        if row is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = row
        self._flows.note(key, row)

    def _end_stale_flows(self) -> None:
        """Flows go on to endpoints that are gone, or to nobody, until conntrack forgets them (rule 16)."""
        suspects = self._flows.take_suspects()
        if not suspects:
            return
        try:
            ended = self._delete_stale(suspects)
        except DatapathError as error:
            emit(log, logging.WARNING, "udp_flows_not_removed", frontends=len(suspects), reason=error)
            return
        if ended:
            emit(log, logging.INFO, "udp_flows_removed", rows=ended, frontends=len(suspects))


def _refused(script: Script, error: nft.TransactionError) -> dict[Key, list[str]]:
    """By the key of an op: what is wrong with its commands."""
    refused: dict[Key, list[str]] = {}
    for line, reason in error.lines.items():
        if line < len(script.ops):
            refused.setdefault(script.ops[line].key, []).append(reason)
    return refused
