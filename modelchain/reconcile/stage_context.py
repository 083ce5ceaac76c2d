"""One stage as the policies see it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelchain.reconcile.observation import Job, Observation, StageFacts
from modelchain.resolved import ResolvedStage
from modelchain.status import StageStatus


@dataclass(frozen=True)
class StageContext:
    """A stage, what was observed of it, and its status as the policies before have updated it."""

    stage: ResolvedStage
    status: StageStatus
    jobs: tuple[Job, ...]  # of this stage, oldest attempt first
    facts: StageFacts | None  # None: the store was not read
    observed: Observation
    suspended: str  # why nothing may run now; empty if it may
    now: float  # seconds since the epoch

    def with_status(self, status: StageStatus) -> StageContext:
        """The same with a newer status."""
        return self if status is self.status else replace(self, status=status)

    @property
    def readable(self) -> bool:
        """Whether the store answered for this stage."""
        return self.facts is not None and self.facts.problem is None

    def read_since(self, time: float) -> bool:
        """Whether the facts are from a read of the store that began at that time or later: what they lack was not
        there then. In a store that is read rarely, older facts say nothing about what has come since.
        """
        return self.readable and self.observed.store_read_at.get(self.stage.name, float("-inf")) >= time

    @property
    def current_job(self) -> Job | None:
        """The job of the attempt whose end is still open."""
        status = self.status
        if status.attempt <= status.last_ended_attempt:
            return None
        return next(
            (job for job in self.jobs if job.attempt == status.attempt and job.digest == status.digest), None
        )

    @property
    def spec_changed(self) -> bool:
        """Whether the spec was edited (or `modelchain run` was called) after the status was written."""
        generation, status = self.observed.generation, self.observed.status
        if generation is None or status is None:
            return False
        return status.observed_generation is None or generation > status.observed_generation
