"""Ops → the commands of one transaction. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bpfproxy.model.address import Family
from bpfproxy.proxiers.base import Op
from bpfproxy.proxiers.nftables import names, node
from bpfproxy.proxiers.nftables.names import FAMILIES, TABLE
from bpfproxy.proxiers.nftables.rows import ChainKey, ChainRow, ElementKey, Key, OtherKey, Row, SetKey, SetRow

Place = tuple[Family, str]
"""Of a ClusterIP: family and address."""

_DECLARE, _WRITE, _DELETE_ELEMENT, _EMPTY, _DELETE_SET, _DELETE_CHAIN = range(6)
"""Order of the commands: chains exist before rules that lead there, and go when nothing leads there any more."""


class Script:
    """Commands, and for each the op that it is for.

    `applied` is what the kernel holds, `owners` the Services that asked for a ClusterIP: more than one may. Neither is
    changed.
    """

    def __init__(
        self,
        ops: Iterable[Op],
        applied: Mapping[Key, Row],
        owners: Mapping[Place, Sequence[str]],
    ) -> None:
        self._applied = applied
        self._before = owners
        self._steps: list[list[tuple[str, Op]]] = [[] for _ in range(6)]
        self._shared: dict[Place, Op] = {}
        self.owners: dict[Place, list[str]] = {}
        """Of the ClusterIPs that the ops are about, afterwards."""
        families: dict[Family, Op] = {}
        for op in ops:
            families.setdefault(op.key.family, op)
            self._add(op)
        for place, op in self._shared.items():
            self._share(place, op)
        tables = [
            (f'add table {FAMILIES[family]} {TABLE} {{ comment "{node.TABLE_COMMENT}" ; }}', op)
            for family, op in families.items()
        ]
        commands = [*tables, *(command for step in self._steps for command in step)]
        self.lines = [line for line, _ in commands]
        self.ops = [op for _, op in commands]

    def _add(self, op: Op) -> None:
        key, row = op.key, op.row
        family = FAMILIES[key.family]
        match key:
            case ElementKey(set=names.CLUSTER_IPS):
                place = (key.family, key.element)
                self._shared.setdefault(place, op)
                owners = self.owners.setdefault(place, list(self._before.get(place, ())))
                if row is None and key.owner in owners:
                    owners.remove(key.owner)
                elif row is not None and key.owner not in owners:
                    owners.append(key.owner)
            case ElementKey():
                self._element(op, f"{family} {TABLE} {key.set}")
            case ChainKey():
                self._chain(op, f"{family} {TABLE} {key.name}")
            case SetKey() if row is not None:
                self._put(_DECLARE, _declare_set(f"{family} {TABLE} {key.name}", row), op)
            case SetKey():
                self._put(_DELETE_SET, f"delete set {family} {TABLE} {key.name}", op)
            case OtherKey():
                self._put(_DELETE_SET, f"delete {key.kind} {family} {TABLE} {key.name}", op)

    def _element(self, op: Op, where: str) -> None:
        key, row, held = op.key, op.row, self._applied.get(op.key)
        if held is not None and row != held:
            self._put(_WRITE if row is not None else _DELETE_ELEMENT, f"delete element {where} {{ {key.element} }}", op)
        if row is not None:
            comment = f' comment "{row.comment}"' if row.comment else ""
            verdict = f" : {row.verdict}" if row.verdict else ""
            self._put(_WRITE, f"add element {where} {{ {key.element}{comment}{verdict} }}", op)

    def _share(self, place: Place, op: Op) -> None:
        """Bring the kernel's element in line with who asks for it."""
        family, element = place
        before, after = self._before.get(place, ()), self.owners[place]
        if before and after and names.owners_comment(before) == names.owners_comment(after):
            return
        where = f"{FAMILIES[family]} {TABLE} {names.CLUSTER_IPS}"
        if before:
            self._put(_WRITE if after else _DELETE_ELEMENT, f"delete element {where} {{ {element} }}", op)
        if after:
            self._put(_WRITE, f'add element {where} {{ {element} comment "{names.owners_comment(after)}" }}', op)

    def _chain(self, op: Op, where: str) -> None:
        row: ChainRow | None = op.row
        if row is None:
            self._put(_EMPTY, f"flush chain {where}", op)
            self._put(_DELETE_CHAIN, f"delete chain {where}", op)
            return
        if row.hook:
            # Its hook cannot be changed, and no rule leads to it.
            hook = row.hook
            spec = f"type {hook.type} hook {hook.hook} priority {hook.priority} ; policy {hook.policy} ;"
            self._put(_DECLARE, f"add chain {where}", op)
            self._put(_DECLARE, f"delete chain {where}", op)
            self._put(_DECLARE, f"add chain {where} {{ {spec} }}", op)
        else:
            comment = node.CHAIN_COMMENTS.get(op.key.name)
            self._put(_DECLARE, f"add chain {where}" + (f' {{ comment "{comment}" ; }}' if comment else ""), op)
            self._put(_DECLARE, f"flush chain {where}", op)
        for rule in row.rules:
            self._put(_WRITE, f"add rule {where} {rule}", op)

    def _put(self, step: int, line: str, op: Op) -> None:
        self._steps[step].append((line, op))


def _declare_set(where: str, row: SetRow) -> str:
    kind, verdicts = ("map", " : verdict") if row.verdicts else ("set", "")
    timeout = f" flags dynamic,timeout ; timeout {row.timeout}s ;" if row.timeout else ""
    comment = f' comment "{row.comment}" ;' if row.comment else ""
    return f"add {kind} {where} {{ type {row.type}{verdicts} ;{timeout}{comment} }}"
