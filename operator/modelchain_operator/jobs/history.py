"""What a job's object and pods have shown earlier, and no longer show."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelchain_operator.jobs.pods import PodEnd
from modelchain_operator.jobs.trees import Place

FORGET_SECONDS = 900.0  # a job not seen for so long does not come back


@dataclass
class JobHistory:
    """Of one job."""

    first_seen: float
    last_seen: float
    started_at: float | None = None
    ended_at: float | None = None
    pending_since: float | None = None  # since when it could start: no queue holds it
    scheduled: set[str] = field(default_factory=set)  # positions in the job whose pod had a node
    positions: dict[str, str] = field(
        default_factory=dict
    )  # by position in the job: the uid of its first pod
    ends: dict[str, PodEnd] = field(default_factory=dict)  # by uid: pods that failed
    taken_back: set[str] = field(
        default_factory=set
    )  # uids of pods that were deleted when a queue suspended the job
    pods: dict[str, Place] = field(default_factory=dict)  # by uid: every pod that was this job's

    def reset(self) -> None:
        """A queue has suspended the job: its pods are gone, and all are created again when it is resumed."""
        self.positions.clear()
        self.scheduled.clear()
        self.ends.clear()
        self.started_at = self.pending_since = None


@dataclass
class JobMemory:
    """The histories of a chain's jobs, by `clock.steady`.

    Lost at a restart: deadlines then only get longer, and a replaced pod is not told from the first.
    """

    _by_uid: dict[str, JobHistory] = field(default_factory=dict)

    def of(self, uid: str, now: float) -> JobHistory:
        """The history of a job, which is seen now."""
        history = self._by_uid.setdefault(uid, JobHistory(first_seen=now, last_seen=now))
        history.last_seen = now
        return history

    @property
    def pods(self) -> Mapping[str, Place]:
        """Every pod, by uid, that was seen to be a job's."""
        return ChainMap(*(history.pods for history in self._by_uid.values()))

    def prune(self, now: float) -> None:
        """Forget the jobs that are long gone."""
        for uid in [uid for uid, one in self._by_uid.items() if now - one.last_seen > FORGET_SECONDS]:
            del self._by_uid[uid]
