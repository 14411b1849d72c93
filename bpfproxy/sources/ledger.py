"""Which content of which file is in force. Pure: no files, no clock.

Files may change together and hand claims (names, nodePorts, ClusterIPs) to one another, so a batch of new contents is
judged as a whole: as many files as possible move on, and one that clashes keeps its former objects and waits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from bpfproxy.model.event import Object, ObjectKey
from bpfproxy.sources.manifest import MAX_FAULTS, Claim, Manifest


class Settled(Struct, frozen=True):
    """What a batch changed."""

    objects: tuple[Object, ...]
    """Added or changed."""
    removed: tuple[ObjectKey, ...]
    clashes: dict[str, list[str]]
    """Faults of every file that waits now, by path."""


class Ledger:
    """The manifests in force, by path, and those that wait for another file to give up what they claim."""

    def __init__(self) -> None:
        self.in_force: dict[str, Manifest] = {}
        self._owners: dict[Claim, str] = {}
        self.waiting: dict[str, Manifest] = {}

    def settle(self, fresh: Mapping[str, Manifest | None], refused: Collection[str] = ()) -> Settled:
        """Take in new contents: a file's manifest, or None for a file that is gone. `refused` are paths whose new
        content cannot be read: what they have in force stays."""
        for path in refused:
            self.waiting.pop(path, None)
        waiting: dict[str, Manifest | None] = {**self.waiting, **fresh}
        changes: dict[ObjectKey, Object | None] = {}
        clashes: dict[str, list[str]] = {}
        while waiting:
            movers, clashes = self._movers(waiting)
            if not movers:
                break
            changes |= self._advance(movers)
            waiting = {path: waiting[path] for path in clashes}
        self.waiting = {path: manifest for path, manifest in waiting.items() if manifest is not None}
        return Settled(
            objects=tuple(item for item in changes.values() if item is not None),
            removed=tuple(key for key, item in changes.items() if item is None),
            clashes=clashes,
        )

    def _movers(
        self, candidates: Mapping[str, Manifest | None]
    ) -> tuple[dict[str, Manifest | None], dict[str, list[str]]]:
        """The candidates that can move on together, and the faults of the others."""
        movers = dict(candidates)
        clashes: dict[str, list[str]] = {}
        while losers := self._losers(movers):
            clashes |= losers
            for path in losers:
                del movers[path]
        return movers, clashes

    def _losers(self, candidates: Mapping[str, Manifest | None]) -> dict[str, list[str]]:
        """Faults of the candidates that claim what belongs to another file: to one that does not change now, or to an
        earlier candidate. What a file keeps is its own before what another one claims newly."""
        manifests = [manifest for _, manifest in sorted(candidates.items()) if manifest is not None]
        taken = {
            claim: manifest
            for manifest in manifests
            for claim in manifest.claims
            if self._owners.get(claim) == manifest.path
        }
        losers: dict[str, list[str]] = {}
        for manifest in manifests:
            faults = []
            for claim in manifest.claims:
                holder = taken.get(claim) or self._holder(claim, candidates)
                if holder is not None and holder is not manifest:
                    faults.append(manifest.conflict(claim, holder))
                    if len(faults) == MAX_FAULTS:
                        break
            if faults:
                losers[manifest.path] = faults
            else:
                taken.update(dict.fromkeys(manifest.claims, manifest))
        return losers

    def _holder(self, claim: Claim, candidates: Mapping[str, Manifest | None]) -> Manifest | None:
        """The manifest in force that has `claim`, unless its file is among the candidates."""
        owner = self._owners.get(claim)
        return None if owner is None or owner in candidates else self.in_force[owner]

    def _advance(self, movers: Mapping[str, Manifest | None]) -> dict[ObjectKey, Object | None]:
        """Put `movers` in force; returns what changed, None for what is gone."""
        before: dict[ObjectKey, Object] = {}
        after: dict[ObjectKey, Object] = {}
        for path in movers:
            if (old := self.in_force.pop(path, None)) is not None:
                before |= old.objects
                for claim in old.claims:
                    del self._owners[claim]
        for path, manifest in movers.items():
            if manifest is not None:
                after |= manifest.objects
                self.in_force[path] = manifest
                self._owners.update(dict.fromkeys(manifest.claims, path))
        changes: dict[ObjectKey, Object | None] = {key: item for key, item in after.items() if before.get(key) != item}
        return changes | dict.fromkeys(before.keys() - after.keys())
