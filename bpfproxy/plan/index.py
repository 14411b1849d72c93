"""Who owns a frontend that several Services claim.

The smallest name wins, so the outcome does not depend on the order of events; when the winner goes, the next takes
over. Both scopes of an address, port and protocol are won or lost together.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from bpfproxy.model.frontend import Frontend, FrontendSpec, Scope, ServicePlan
from bpfproxy.model.service import ObjectName


class Clash(Struct, frozen=True, order=True):
    """`loser` wants `frontend` (in either scope) too, and does not get it."""

    frontend: Frontend
    winner: ObjectName
    loser: ObjectName

    def __str__(self) -> str:
        return f"Service {self.loser}: {self.frontend} belongs to Service {self.winner}"


class IndexDelta(Struct, frozen=True):
    """What an update changed."""

    plans: dict[ObjectName, ServicePlan | None]
    """Effective plans that are new, different, or gone (None)."""
    frontends: frozenset[Frontend]
    """Frontends that are new, different, or gone."""
    clashes: tuple[Clash, ...]
    """Clashes that were not there before, sorted."""


class _Batch(Struct, frozen=True, gc=False):
    """What an update has met so far."""

    touched: dict[ObjectName, None]
    """Services whose effective plan may be another, in order."""
    disputed: dict[Frontend, frozenset[Clash]]
    """Claims of which somebody won, lost or gave up something, with the clashes about them before the update."""


class PlanIndex:
    """The plans of all Services, each without the frontends that it lost to another. An update costs work in proportion
    to the frontends of the Services that it touches."""

    def __init__(self) -> None:
        self._planned: dict[ObjectName, ServicePlan] = {}
        self._effective: dict[ObjectName, ServicePlan] = {}
        self._owners: dict[Frontend, ObjectName] = {}
        self._contested: dict[Frontend, set[ObjectName]] = {}
        """The Services that claim a frontend, where there is more than one."""

    @property
    def plans(self) -> Mapping[ObjectName, ServicePlan]:
        """The effective plans."""
        return self._effective

    @property
    def clashes(self) -> tuple[Clash, ...]:
        """All there are, sorted."""
        return tuple(sorted(clash for claim in self._contested for clash in self._clashes(claim)))

    def update(self, plans: Mapping[ObjectName, ServicePlan | None]) -> IndexDelta:
        """Take in new plans (None: the Service is not served)."""
        batch = _Batch({}, {})
        for name, plan in plans.items():
            former = self._planned.get(name)
            if plan == former:
                continue
            batch.touched[name] = None
            old = former.frontends if former is not None else {}
            new = plan.frontends if plan is not None else {}
            for claim in old:
                if not claim.scope and claim not in new:
                    self._release(claim, name, batch)
            for claim in new:
                if not claim.scope and claim not in old:
                    self._claim(claim, name, batch)
            if plan is None:
                del self._planned[name]
            else:
                self._planned[name] = plan
        return self._settle(batch)

    def _claim(self, claim: Frontend, name: ObjectName, batch: _Batch) -> None:
        owner = self._owners.setdefault(claim, name)
        if owner is name:
            return
        if claim not in batch.disputed:
            batch.disputed[claim] = self._clashes(claim)
        self._contested.setdefault(claim, {owner}).add(name)
        if name < owner:
            self._owners[claim] = name
            batch.touched[owner] = None

    def _release(self, claim: Frontend, name: ObjectName, batch: _Batch) -> None:
        contenders = self._contested.get(claim)
        if contenders is None:
            del self._owners[claim]
            return
        if claim not in batch.disputed:
            batch.disputed[claim] = self._clashes(claim)
        contenders.remove(name)
        if len(contenders) == 1:
            del self._contested[claim]
        if self._owners[claim] == name:
            heir = self._owners[claim] = min(contenders)
            batch.touched[heir] = None

    def _clashes(self, claim: Frontend) -> frozenset[Clash]:
        contenders = self._contested.get(claim)
        if contenders is None:
            return frozenset()
        winner = self._owners[claim]
        return frozenset(Clash(claim, winner, name) for name in contenders if name != winner)

    def _settle(self, batch: _Batch) -> IndexDelta:
        changed: dict[ObjectName, ServicePlan | None] = {}
        frontends: set[Frontend] = set()
        for name in batch.touched:
            former, plan = self._effective.get(name), self._effective_plan(name)
            if plan == former:
                continue
            changed[name] = plan
            _collect_changes(former, plan, frontends)
            if plan is None:
                del self._effective[name]
            else:
                self._effective[name] = plan
        clashes = [clash for claim, before in batch.disputed.items() for clash in self._clashes(claim) - before]
        return IndexDelta(changed, frozenset(frontends), tuple(sorted(clashes)))

    def _effective_plan(self, name: ObjectName) -> ServicePlan | None:
        plan = self._planned.get(name)
        if plan is None or not self._contested:
            return plan
        owners = self._owners
        kept = {frontend: spec for frontend, spec in plan.frontends.items() if owners[_claim_of(frontend)] == name}
        return plan if len(kept) == len(plan.frontends) else ServicePlan(name, kept, plan.health_check, plan.proxy_mode)


def _claim_of(frontend: Frontend) -> Frontend:
    """Every frontend has an EXTERNAL row; it stands for both."""
    return Frontend(frontend.address, frontend.port, frontend.protocol, Scope.EXTERNAL) if frontend.scope else frontend


def _collect_changes(former: ServicePlan | None, plan: ServicePlan | None, changes: set[Frontend]) -> None:
    old: Mapping[Frontend, FrontendSpec] = former.frontends if former is not None else {}
    new: Mapping[Frontend, FrontendSpec] = plan.frontends if plan is not None else {}
    if not old:
        changes.update(new)
        return
    changes.update(frontend for frontend in old if frontend not in new)
    changes.update(frontend for frontend, spec in new.items() if old.get(frontend) != spec)
