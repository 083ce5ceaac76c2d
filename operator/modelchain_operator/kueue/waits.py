"""What Kueue's Workloads say of the jobs that queues hold, asked for from time to time.

Workloads are not watched: they carry no label of a chain, and a cluster holds those of everybody. One request for each
job that waits, the rarer the longer nothing changes, tells the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import ApiError, KubernetesApi, Object
from modelchain_operator.kubernetes.kinds import WORKLOAD
from modelchain_operator.kueue.workloads import JOB_UID_LABEL, QueueWait, explain

logger = logging.getLogger(__name__)

FIRST_SECONDS = 2.0  # Kueue takes about one to say why it does not let a new job go
LONGEST_SECONDS = 120.0  # between two requests for a job of which nothing new is told


@dataclass
class Inquiry:
    """About one job that a queue holds."""

    uid: str  # of the job
    held_since: float  # monotonic seconds
    ask_at: float
    pause: float = FIRST_SECONDS
    wait: QueueWait = field(default_factory=QueueWait)


def held_in_queue(jobs: Iterable[Object]) -> list[Object]:
    """Those of the jobs that are made for a queue of Kueue's."""
    return [job for job in jobs if labels.QUEUE in (job["metadata"].get("labels") or {})]


async def ask_why_queued(
    api: KubernetesApi, jobs: Iterable[Object], known: dict[str, Inquiry], now: float
) -> bool:
    """Bring `known`, by name of the job, up to date with the jobs that are held now. Returns whether anything else is
    said than before. `now` is in monotonic seconds.
    """
    held = {job["metadata"]["name"]: job for job in held_in_queue(jobs)}
    for name in [
        name for name, one in known.items() if name not in held or held[name]["metadata"]["uid"] != one.uid
    ]:
        del known[name]
    changed = False
    for name, job in held.items():
        inquiry = known.setdefault(
            name, Inquiry(job["metadata"]["uid"], held_since=now, ask_at=now + FIRST_SECONDS)
        )
        if now < inquiry.ask_at:
            continue
        wait = await _ask(api, job, inquiry, now)
        if wait is not None and wait != inquiry.wait:
            inquiry.wait, inquiry.pause, changed = wait, FIRST_SECONDS, True
        else:
            inquiry.pause = min(LONGEST_SECONDS, 2 * inquiry.pause)
        inquiry.ask_at = now + inquiry.pause
    return changed


async def _ask(api: KubernetesApi, job: Object, inquiry: Inquiry, now: float) -> QueueWait | None:
    """None where the Workloads may not be read, or the API server does not answer: a chain goes on without."""
    selector = f"{JOB_UID_LABEL}={inquiry.uid}"
    try:
        workloads = await api.list_selected(WORKLOAD, job["metadata"]["namespace"], selector)
    except ApiError as error:
        logger.warning("why %s waits can't be asked: %s", job["metadata"]["name"], error)
        return None
    return explain(workloads, job=job, since_seconds=now - inquiry.held_since)
