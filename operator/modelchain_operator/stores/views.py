"""The stores as the reconciler sees them: opened with the right credentials, read at the right rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelchain.reconcile.baseline import is_due
from modelchain.resolved import ResolvedChain
from modelchain.stage_probe import StoreSnapshot
from modelchain.status import ChainStatus, StagePhase, StageStatus
from modelchain_operator.acceptance import Accepted
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.stores.access import StoreAccess
from modelchain_operator.stores.reader import StoreReader


class StoreViews:
    """What the stores say, by chain. Used in one event loop."""

    def __init__(self, access: StoreAccess, reader: StoreReader) -> None:
        self._access = access
        self._reader = reader

    async def snapshot(
        self, key: Key, accepted: Accepted, status: ChainStatus | None
    ) -> StoreSnapshot | None:
        """What is known of the chain's stages; None if something that matters was not read yet: the chain is queued
        when it was.
        """
        stages = _Stages.of(accepted.chain, status)
        await self._follow(key, accepted, stages)
        snapshot = self._reader.snapshot(key)
        if is_due(accepted.chain, status):
            snapshot = replace(snapshot, measurement=self._reader.measure(key, accepted.chain))
        needed = {stage.name for stage in accepted.chain.all_stages} - stages.finished - stages.unasked
        return snapshot if needed <= set(snapshot.facts) else None

    async def written(self, key: Key, accepted: Accepted, status: ChainStatus) -> None:
        """The chain's status was written: follow its stages accordingly, and write the chain's record when the store
        allows.
        """
        await self._follow(key, accepted, _Stages.of(accepted.chain, status))
        self._reader.record(key, accepted.chain, status)
        if is_due(accepted.chain, status):
            self._reader.measure(key, accepted.chain)

    async def _follow(self, key: Key, accepted: Accepted, stages: _Stages) -> None:
        chain = accepted.chain
        self._reader.follow(
            key,
            chain,
            await self._access.open(key.namespace, chain, accepted.store),
            running=stages.running,
            starting=stages.starting,
            finished=stages.finished,
            # Nothing starts in a suspended chain; when it is resumed, all is read again.
            at_rest=frozenset(stage.name for stage in chain.all_stages) if chain.suspend else stages.not_yet,
            unasked=stages.unasked,
        )

    def refresh(self, key: Key, stage: str) -> None:
        """Something has happened to the stage: what is known of it is stale."""
        self._reader.refresh(key, stage)

    def forget(self, key: Key) -> None:
        """The chain is gone, or its store must not be read."""
        self._reader.forget(key)


@dataclass(frozen=True)
class _Stages:
    """A chain's stages, by their status."""

    finished: frozenset[str]
    running: dict[str, int]  # the attempts that are under way
    starting: frozenset[str]  # whose job did not have all of its pods when last seen
    not_yet: frozenset[str]  # can't start before another one is finished
    suspended: frozenset[str]  # of a suspended chain, as the status says already

    @property
    def unasked(self) -> frozenset[str]:
        """Those of which nothing need be known: each is read before it starts."""
        return self.not_yet | self.suspended

    @classmethod
    def of(cls, chain: ResolvedChain, status: ChainStatus | None) -> _Stages:
        known = status.all_stages if status is not None else ()
        finished, running = _finished(chain, known), _running(chain, known)
        return cls(
            finished=finished,
            running=running,
            starting=frozenset(
                stage.name for stage in known if stage.phase in (StagePhase.PENDING, StagePhase.QUEUED)
            ),
            not_yet=_not_yet(chain, finished) - running.keys(),
            suspended=_suspended(chain, known) if chain.suspend else frozenset(),
        )


def _not_yet(chain: ResolvedChain, finished: frozenset[str]) -> frozenset[str]:
    """The stages that can't start yet, given those that are finished: baselines wait for the whole chain."""
    waiting = {
        stage.name for stage in chain.stages if any(other.name not in finished for other in stage.needs)
    }
    if not all(stage.name in finished for stage in chain.stages):
        waiting |= {stage.name for stage in chain.baselines}
    return frozenset(waiting)


def _suspended(chain: ResolvedChain, known: Sequence[StageStatus]) -> frozenset[str]:
    """The stages that are suspended as they are asked for now."""
    digests = {stage.name: stage.digest for stage in chain.all_stages}
    return frozenset(
        stage.name
        for stage in known
        if stage.phase is StagePhase.SUSPENDED and digests.get(stage.name) == stage.digest
    )


def _finished(chain: ResolvedChain, known: Sequence[StageStatus]) -> frozenset[str]:
    """The stages that are finished as they are asked for now."""
    digests = {stage.name: stage.digest for stage in chain.all_stages}
    return frozenset(
        stage.name for stage in known if stage.finished and digests.get(stage.name) == stage.digest
    )


def _running(chain: ResolvedChain, known: Sequence[StageStatus]) -> dict[str, int]:
    """The attempts that are under way, by stage."""
    names = {stage.name for stage in chain.all_stages}
    return {
        stage.name: stage.attempt
        for stage in known
        if stage.name in names
        and not stage.finished
        and stage.phase is not StagePhase.FAILED
        and stage.attempt > stage.last_ended_attempt
    }
