"""The ranks of one node as processes: started, watched, ended together, and why they ended.

Plain subprocesses with static ranks, not torch's elastic agent: that exits 1 whatever its workers said, kills
them 30 s after a SIGTERM (a checkpoint may take longer), and costs seconds of imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelchain.artifacts import Failure
from modelchain.errors import ExitCode
from modelchain.forking import ForkedProcess
from modelchain_trainer import worker
from modelchain_trainer.ending import LOST_PEER, RankReport, signal_failure, silent_failure
from modelchain_trainer.environment import REPORT_VARIABLE

WORKER = (sys.executable, "-m", "modelchain_trainer.worker")
POLL_SECONDS = 0.05
KILL_AFTER_SECONDS = 5.0  # between SIGTERM and SIGKILL for the ranks that outlive a failed one


@dataclass
class RankProcess:
    """One rank: its process, and the file it reports to."""

    rank: int
    process: subprocess.Popen[bytes] | ForkedProcess
    report: Path
    killed_by_us: bool = False

    def signal(self, number: int) -> None:
        """Send a signal to the rank's whole process group; nothing if it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)


@dataclass(frozen=True)
class Ending:
    """How one rank ended. `exit_code` is as a shell counts: 128 + N for signal N."""

    rank: int
    exit_code: int
    time: float  # seconds, monotonic
    failure: Failure | None  # None if it ended well
    killed_by_us: bool


StartRank = Callable[[Mapping[str, str]], subprocess.Popen[bytes] | ForkedProcess]


def spawn_rank(variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A worker with the environment `variables`, in a process group of its own."""
    return subprocess.Popen(WORKER, stdin=subprocess.DEVNULL, env=variables, process_group=0)


def fork_rank(variables: Mapping[str, str]) -> ForkedProcess:
    """The same, where this process has imported torch already."""
    return ForkedProcess(worker.main, variables, process_group=0)


def start_ranks(
    start: StartRank,
    rank_variables: Sequence[Mapping[str, str]],
    variables: Mapping[str, str],
    reports: Path,
) -> list[RankProcess]:
    """Start one worker for each entry of `rank_variables` (added to `variables`).

    Each has a process group of its own: a terminal's Ctrl-C reaches the launcher, not them.
    """
    ranks: list[RankProcess] = []
    for local_rank, own in enumerate(rank_variables):
        report = reports / f"rank-{local_rank}.json"
        process = start({**variables, **own, REPORT_VARIABLE: str(report)})
        ranks.append(RankProcess(int(own["RANK"]), process, report))
    return ranks


def supervise(
    ranks: Sequence[RankProcess], *, asked_to_stop: Callable[[], bool], grace_seconds: float
) -> list[Ending]:
    """Wait until all ranks have ended; returns how, in the order in which they did.

    Once `asked_to_stop` they get one SIGTERM and `grace_seconds` for a checkpoint. When a rank fails, the
    others get SIGTERM and, `KILL_AFTER_SECONDS` later, SIGKILL: without it they can only wait for it. A rank
    that ended because it was asked to (its node's launcher or another's) leaves them `grace_seconds`, too.
    """
    endings: list[Ending] = []
    running = list(ranks)
    deadline: float | None = None
    signalled = False
    while running:
        for rank in list(running):
            code = rank.process.poll()
            if code is None:
                continue
            running.remove(rank)
            endings.append(_ending(rank, code))
        failed = [ending for ending in endings if ending.exit_code != ExitCode.OK]
        if asked_to_stop() and not signalled:
            signalled = True
            deadline = time.monotonic() + grace_seconds
            for rank in running:
                rank.signal(signal.SIGTERM)
        if failed and running:
            stopping = all(ending.exit_code == ExitCode.TERMINATED for ending in failed)
            limit = time.monotonic() + (grace_seconds if stopping else KILL_AFTER_SECONDS)
            if not signalled and not stopping:
                signalled = True
                for rank in running:
                    rank.killed_by_us = True
                    rank.signal(signal.SIGTERM)
            deadline = limit if deadline is None else min(deadline, limit)
        if deadline is not None and time.monotonic() > deadline:
            kill(running)
        if running:
            time.sleep(POLL_SECONDS)
    return endings


def kill(ranks: Sequence[RankProcess]) -> None:
    """SIGKILL to every rank that still runs."""
    for rank in ranks:
        rank.killed_by_us = True
        rank.signal(signal.SIGKILL)


def root_cause(endings: Sequence[Ending]) -> Ending | None:
    """The ending that explains the others; None if all ended well.

    The first to fail by itself; one that was told to end only after those, one that lost a peer after it. One
    that had to be killed because it did not end when asked to counts only if there is nothing else.
    """
    failed = [ending for ending in endings if ending.failure is not None]
    if not failed:
        return None

    def order(ending: Ending) -> tuple[bool, bool, bool, float]:
        lost_peer = ending.failure is not None and ending.failure.reason == LOST_PEER
        return (ending.killed_by_us, lost_peer, ending.exit_code == ExitCode.TERMINATED, ending.time)

    return min(failed, key=order)


def _ending(rank: RankProcess, code: int) -> Ending:
    report = RankReport.read(rank.report)
    exit_code = 128 - code if code < 0 else code
    failure: Failure | None = None
    if exit_code != ExitCode.OK:
        if report is not None and report.failure.exit_code == exit_code:
            failure = report.failure
        else:
            failure = signal_failure(-code, rank.rank) if code < 0 else silent_failure(code, rank.rank)
    return Ending(rank.rank, exit_code, time.monotonic(), failure, rank.killed_by_us)
