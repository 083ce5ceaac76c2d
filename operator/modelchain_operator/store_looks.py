"""What the reconciler knows of stores: opened with the right rights, followed at the right pace."""

from __future__ import annotations

from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StagePhase
from modelchain_operator.acceptance import Accepted
from modelchain_operator.queue import Key
from modelchain_operator.store_access import StoreAccess
from modelchain_operator.store_reader import Seen, StoreReader


class StoreLooks:
    """The facts of the stores, by chain. Used in one event loop."""

    def __init__(self, access: StoreAccess, reader: StoreReader) -> None:
        self._access = access
        self._reader = reader

    async def look(self, key: Key, accepted: Accepted, status: ChainStatus | None) -> Seen | None:
        """What is known of the chain's stages; None if something that matters was not looked at yet: the reader
        says when it was.
        """
        finished, not_yet = _finished(accepted.chain, status), _not_yet(accepted.chain, status)
        await self._follow(key, accepted, status)
        seen = self._reader.seen(key)
        needed = {stage.name for stage in accepted.chain.stages} - finished - not_yet
        return seen if needed <= set(seen.facts) else None

    async def written(self, key: Key, accepted: Accepted, status: ChainStatus) -> None:
        """This is the chain's status now: follow the stages as it says, and write the chain's record when the store
        lets us.
        """
        await self._follow(key, accepted, status)
        self._reader.record(key, accepted.chain, status)

    async def _follow(self, key: Key, accepted: Accepted, status: ChainStatus | None) -> None:
        chain = accepted.chain
        # Nothing begins in a suspended chain; when it goes on, all is looked at anew.
        at_rest = (
            frozenset(stage.name for stage in chain.stages) if chain.suspend else _not_yet(chain, status)
        )
        self._reader.follow(
            key,
            chain,
            await self._access.open(chain, accepted.store),
            running=_running(chain, status),
            starting=_starting(status),
            finished=_finished(chain, status),
            at_rest=at_rest,
        )

    def look_again(self, key: Key, stage: str) -> None:
        """Something has happened to the stage: what was seen of it is old."""
        self._reader.look_again(key, stage)

    def forget(self, key: Key) -> None:
        """The chain is gone, or nothing may be asked of its store."""
        self._reader.forget(key)


def _finished(chain: ResolvedChain, status: ChainStatus | None) -> frozenset[str]:
    """The stages that are finished as they are asked for now."""
    digests = {stage.name: stage.digest for stage in chain.stages}
    known = status.stages if status is not None else ()
    return frozenset(
        stage.name for stage in known if stage.finished and digests.get(stage.name) == stage.digest
    )


def _not_yet(chain: ResolvedChain, status: ChainStatus | None) -> frozenset[str]:
    """The stages that can't begin before another one is finished."""
    finished, running = _finished(chain, status), _running(chain, status)
    return frozenset(
        stage.name
        for stage in chain.stages
        if stage.predecessor is not None
        and stage.predecessor.name not in finished
        and stage.name not in running
    )


def _running(chain: ResolvedChain, status: ChainStatus | None) -> dict[str, int]:
    """The attempts that are under way, by stage."""
    names = {stage.name for stage in chain.stages}
    known = status.stages if status is not None else ()
    return {
        stage.name: stage.attempt
        for stage in known
        if stage.name in names
        and not stage.finished
        and stage.phase is not StagePhase.FAILED
        and stage.attempt > stage.settled
    }


def _starting(status: ChainStatus | None) -> frozenset[str]:
    """The stages whose job was seen last without all of its pods."""
    known = status.stages if status is not None else ()
    return frozenset(stage.name for stage in known if stage.phase in (StagePhase.PENDING, StagePhase.QUEUED))
