"""Reads what a store says of a stage, with the state that is needed from one read to the next.

Shared by the local runner's thread and the operator's reader.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from modelchain.artifacts import (
    FAILURE,
    LEASE,
    PROGRESS,
    Failure,
    Progress,
    attempt_folder,
    attempt_prefix,
)
from modelchain.clock import steady
from modelchain.commit import verify_stage
from modelchain.errors import ConfigurationError, ModelChainError, UserDataError
from modelchain.lease import LeaseObserver
from modelchain.reconcile.observation import LeaseView, StageFacts, StoreProblem, Unmeasurable
from modelchain.resolved import ChainReference
from modelchain.status import Measurement
from modelchain.store import MissingBucket, NotFound, Store, StoreUnavailable

LEASE_CHECK_SECONDS = 30.0  # between reads of a lease while progress shows that its holder lives


@dataclass(frozen=True)
class StoreSnapshot:
    """What the last reads of the store showed of a chain. Times are seconds since the epoch, by `clock.steady`."""

    facts: Mapping[str, StageFacts]  # by stage; one that was not read since it had to be is missing
    readable_since: float  # the store has answered without a gap since
    progress_changed_at: Mapping[tuple[str, int], float]  # by stage and attempt
    measurement: Measurement | Unmeasurable | None = None  # of models trained alone, where it was asked for
    read_at: Mapping[str, float] = field(default_factory=dict)  # by stage: when the read of its facts began

    def shifted(self, seconds: float) -> StoreSnapshot:
        """The same, with all times so much later."""
        if not seconds:
            return self
        return replace(
            self,
            readable_since=self.readable_since + seconds,
            progress_changed_at={key: at + seconds for key, at in self.progress_changed_at.items()},
            read_at={stage: at + seconds for stage, at in self.read_at.items()},
        )


@dataclass(eq=False)
class StageProbe:
    """Reads one stage; not from two threads at once. Without an attempt that runs, everything that decides what is done
    next; with one, its signs of life.
    """

    store: Store
    chain: ChainReference
    folder: str  # of the stage
    digest: str
    attempt: int | None = None  # the one that runs
    ended: int | None = None  # the last one that ran: its failure.json is read
    progress_changed_at: dict[int, float] = field(default_factory=dict)  # by attempt, by `clock.steady`
    _lease: LeaseObserver = field(init=False)
    _lease_seen: LeaseView | None = None
    _lease_seen_at: float = 0.0  # monotonic
    _progress_etag: str = ""
    _failure: tuple[int, Failure] | None = None

    def __post_init__(self) -> None:
        self._lease = LeaseObserver(self.store, f"{self.folder}/{LEASE}")

    @property
    def has_history(self) -> bool:
        """Whether an attempt was followed: what is known of it can't be read again."""
        return self.attempt is not None or self.ended is not None

    def follow(self, attempt: int | None) -> None:
        """Which attempt runs now; None if none does."""
        if attempt != self.attempt:
            self.ended = self.attempt if self.attempt is not None else self.ended
            self.attempt = attempt
            self._lease_seen = None
            if attempt is not None:  # only the last two are of interest
                for old in [known for known in self.progress_changed_at if known < attempt - 1]:
                    del self.progress_changed_at[old]

    def read(self, *, whole: bool) -> StageFacts:
        """Read now. Raises what the store raises, and UserDataError for what is damaged.

        While an attempt runs, the manifest is read only if `whole`, or once the attempt has reported that it is done.
        """
        attempt = self.attempt
        if attempt is None or whole:
            manifest = verify_stage(self.store, self.folder, self.digest)
            if manifest is not None:
                return StageFacts(manifest=manifest)
        if attempt is None:
            lease = self._read_lease()
            number, failure = self._find_failure(self.ended) or (None, None)
            return StageFacts(lease=lease, failure=failure, failure_attempt=number)
        facts = self._read_liveness(attempt)
        if whole:  # something has happened to the attempt: it may have failed
            number, failure = self._find_failure(attempt) or (None, None)
            return replace(facts, failure=failure, failure_attempt=number)
        if facts.progress is not None and facts.progress.phase == "Complete":
            manifest = verify_stage(self.store, self.folder, self.digest)
            if manifest is not None:
                return StageFacts(manifest=manifest)
        return facts

    def _read_liveness(self, attempt: int) -> StageFacts:
        lease = self._lease_seen
        if lease is not None and self._is_of(lease, attempt):
            fresh = time.monotonic() - self._lease_seen_at < LEASE_CHECK_SECONDS
            etag = self._progress_etag
            progress = self._read_progress(attempt, lease.holder)
            if fresh and self._progress_etag != etag:  # the holder lives: its lease need not be read
                return StageFacts(lease=lease, progress=progress, progress_attempt=attempt)
            again = self._read_lease()
            if again is not None and again.holder == lease.holder:
                return StageFacts(lease=again, progress=progress, progress_attempt=attempt)
            lease = again
        else:
            lease = self._read_lease()
        if lease is None or not self._is_of(lease, attempt):
            return StageFacts(lease=lease)
        progress = self._read_progress(attempt, lease.holder)
        return StageFacts(lease=lease, progress=progress, progress_attempt=attempt)

    def _is_of(self, lease: LeaseView, attempt: int) -> bool:
        return lease.holder.startswith(f"{attempt_prefix(self.chain.uid, attempt)}-")

    def _read_lease(self) -> LeaseView | None:
        held = self._lease.observe()
        if held is None:
            self._lease_seen = None
            return None
        # What every token of this chain begins with.
        own = attempt_prefix(self.chain.uid, 0).removesuffix("0")
        ours = held.chain == self.chain.full_name and held.holder.startswith(own)
        self._lease_seen = LeaseView(holder=held.holder, chain=held.chain, fresh=held.fresh, own=ours)
        self._lease_seen_at = time.monotonic()
        return self._lease_seen

    def _read_progress(self, attempt: int, token: str) -> Progress | None:
        try:
            data, etag = self.store.get(f"{attempt_folder(self.folder, token)}/{PROGRESS}")
            progress = Progress.model_validate_json(data)
        except (NotFound, ValidationError):
            return None
        if etag != self._progress_etag:
            self._progress_etag = etag
            self.progress_changed_at[attempt] = steady()
        return progress

    def _find_failure(self, attempt: int | None) -> tuple[int, Failure] | None:
        """Why an attempt ended, as it wrote itself: failure.json of its latest launch."""
        if attempt is None:
            return None
        if self._failure is not None and self._failure[0] == attempt:
            return self._failure
        prefix = f"{self.folder}/attempts/{attempt_prefix(self.chain.uid, attempt)}-"
        written = [
            info
            for info in self.store.list(prefix)
            if info.key.endswith(f"/{FAILURE}") and info.key.removeprefix(prefix).count("/") == 1
        ]
        if not written:
            return None
        try:
            latest = max(written, key=lambda info: info.modified)
            self._failure = attempt, Failure.model_validate_json(self.store.get(latest.key)[0])
        except (NotFound, ValidationError):
            return None
        return self._failure


def problem_of(error: Exception, store: Store, *, quoting: bool) -> StageFacts:
    """What an error of a read means for the stage. `quoting`: whether the server's own words may be shown."""
    if isinstance(error, StoreUnavailable):
        return StageFacts(problem=StoreProblem.UNAVAILABLE, message=unresponsive_message(store))
    if not isinstance(error, ModelChainError):
        what = f"reading {store.uri} has failed: unforeseen {type(error).__name__}"
        return StageFacts(problem=StoreProblem.UNREADABLE, message=f"{what}; report what the log says of it")
    problem = StoreProblem.FORBIDDEN
    if isinstance(error, UserDataError):
        problem = StoreProblem.DAMAGED
    elif isinstance(error, ConfigurationError | MissingBucket):
        problem = StoreProblem.MISCONFIGURED
    return StageFacts(problem=problem, message=str(error) if quoting else error.public)


def unresponsive_message(store: Store) -> str:
    """The message for a store that does not answer."""
    return f"{store.uri} does not answer; waiting for it"
