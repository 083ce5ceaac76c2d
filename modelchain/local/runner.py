"""Observe, decide, act: a chain on this machine, from its start to its end.

The decisions are those of `modelchain.reconcile`, the same as in a cluster. The runner holds the chain's lease, so that
one run at a time acts; its processes end with it, so that after its own death none is left to be found.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from modelchain import cost
from modelchain.chain_record import hold_chain, read_status, record_object
from modelchain.clock import clock_step
from modelchain.commit import require_conditional_writes
from modelchain.local.display import Display
from modelchain.local.events import AttemptFailed, Note, PlannedStage, RunStarted, changes
from modelchain.local.outcome import Stopped, ending, exit_code
from modelchain.local.processes import TrainerProcess, Trainers
from modelchain.local.watch import StoreWatch
from modelchain.reconcile.actions import Action, Decision, StartJob, StopJob
from modelchain.reconcile.baseline import is_due
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Observation
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.stage_probe import StoreSnapshot
from modelchain.status import ChainStatus, StageReason, StageStatus, without_progress
from modelchain.store import Store
from modelchain.times import rfc3339

LOOP_SECONDS = 0.25
RECORD_SECONDS = 5.0  # between writes of the record, where only progress has changed
CLOSE_SECONDS = 15.0  # for the last write of the record

_NOT_YET = frozenset({StageReason.PREDECESSOR_INCOMPLETE, StageReason.CHAIN_INCOMPLETE})
# Ends of attempts that need no notice.
_EXPECTED_ENDS = frozenset({StageReason.SUSPENDED, StageReason.SUPERSEDED, StageReason.CHAIN_INCOMPLETE})


@dataclass(frozen=True)
class RunOptions:
    """How a chain is run here."""

    directory: Path  # where the trainer works: relative paths of the chain are relative to it
    logs: Path
    retrain_missing: bool = False
    command: str = "modelchain run"  # for people: what to type to go on


class Runner:
    """One run of one chain."""

    def __init__(self, chain: ResolvedChain, store: Store, options: RunOptions, display: Display) -> None:
        """`chain` as `modelchain.local.fitting.fit_chain` made it for this machine."""
        self._chain = chain
        self._store = store
        self._options = options
        self._display = display
        self._name = chain.chain.full_name
        self._plan = cost.plan(chain)
        self._macs = {stage.name: float(stage.macs) for stage in self._plan.stages}
        self._watch = StoreWatch(store, chain)
        self._trainers: Trainers
        self._processes: list[TrainerProcess] = []
        self._status: ChainStatus | None = None
        self._generation = 1  # each run is a new one: it asks a failed chain again
        self._stopped = Stopped()
        self._stop_at_once = False
        self._recorded: ChainStatus | None = None
        self._recorded_at = 0.0

    def run(self) -> int:
        """Run the chain to its end; returns the exit code. Raises ModelChainError before anything has started."""
        before = self._status = read_status(self._store, self._chain, self._note)
        if before is not None:
            self._generation = (before.observed_generation or 0) + 1
        self._watch.read_all()
        first = self._decide(self._watch.snapshot())
        code = exit_code(first.status, self._stopped)
        if code is not None and not first.actions:
            if before is None or without_progress(before) != without_progress(first.status):
                self._store.put(*record_object(self._chain, first.status, time.time()))
            return self._end(first.status, code)
        require_conditional_writes(self._store, accept_risk=self._chain.store.allow_unconditional_writes)
        with hold_chain(self._store, self._chain, on_lost=self._lose_chain, note=self._note):
            with self._signals_handled():
                status, code = self._run_held()
            return self._end(status, code)

    def _run_held(self) -> tuple[ChainStatus, int]:
        self._status = read_status(self._store, self._chain, self._note)  # the last word of the run before us
        self._tell_start()
        self._watch.start()
        try:
            with Trainers(self._options.directory) as self._trainers:
                try:
                    status, code = self._loop()
                finally:
                    for process in self._processes:
                        process.kill()
            self._record(status, now=True)
            return status, code
        finally:
            self._watch.close(timeout_seconds=CLOSE_SECONDS)

    def _loop(self) -> tuple[ChainStatus, int]:
        while True:
            self._poll_processes()
            decision = self._decide(self._watch.snapshot())
            self._publish(decision.status)
            acted = [self._act(action) for action in decision.actions]
            if not acted and not self._live_processes():
                code = exit_code(decision.status, self._stopped)
                if code is not None:
                    return decision.status, code
            if not any(acted):
                time.sleep(LOOP_SECONDS)  # a lock that a signal's handler takes too could be taken for ever

    # ---- observe

    def _decide(self, snapshot: StoreSnapshot) -> Decision:
        step = clock_step()
        snapshot = snapshot.shifted(step)
        observed = Observation(
            status=self._status,
            generation=self._generation,
            jobs=tuple(
                process.job(snapshot.progress_changed_at.get((process.stage.name, process.attempt)), step)
                for process in self._processes
            ),
            store=snapshot.facts,
            store_read_at=snapshot.read_at,
            store_readable_since=snapshot.readable_since,
            max_parallel_jobs=1,
            interrupted=bool(self._stopped),
            retrain_missing=f"run {self._generation}" if self._options.retrain_missing else "",
            macs=self._macs,
            speedup_planned=self._plan.speedup,
            measurement=snapshot.measurement,
        )
        return decide(self._chain, observed, time.time())

    def _poll_processes(self) -> None:
        for process in self._live_processes():
            if self._stop_at_once:
                process.kill()
            if not process.poll():
                self._watch.refresh(process.stage.name)

    def _live_processes(self) -> list[TrainerProcess]:
        return [process for process in self._processes if process.live]

    # ---- act

    def _act(self, action: Action) -> bool:
        if isinstance(action, StartJob):
            stage = self._chain.stage(action.stage)
            log = self._options.logs / f"{stage.name}-{action.attempt}.log"
            self._processes.append(self._trainers.start(stage, action.attempt, log))
            return True
        process = next((known for known in self._processes if known.name == action.job.name), None)
        if process is None:
            return False
        if isinstance(action, StopJob):
            process.stop()
        else:
            self._processes.remove(process)
        return True

    def _publish(self, status: ChainStatus) -> None:
        before, self._status = self._status, status
        if status == before:
            self._record(status)  # progress that came too soon after the last record
            return
        time_text = rfc3339(time.time())
        for stage in status.all_stages:
            known = before.find_stage(stage.name) if before is not None else None
            self._tell_failure(known, stage, time_text)
        for event in changes(before, status, time_text):
            self._display.tell(event)
        self._display.show(status)
        self._follow(before, status)
        self._record(status)

    def _follow(self, before: ChainStatus | None, status: ChainStatus) -> None:
        """Tell the watch where to look."""
        finished = {stage.name for stage in status.all_stages if stage.finished}
        known = {stage.name for stage in before.all_stages if stage.finished} if before is not None else set()
        for stage in self._chain.stages:
            if any(other.name in finished - known for other in stage.needs):
                self._watch.refresh(stage.name)  # its turn has come: is it trained by somebody already?
        chain = {stage.name for stage in self._chain.stages}
        if chain <= finished and not chain <= known:
            for stage in self._chain.baselines:
                self._watch.refresh(stage.name)
        self._watch.follow(
            {process.stage.name: process.attempt for process in self._live_processes()},
            finished=finished,
            not_yet={stage.name for stage in status.all_stages if stage.reason in _NOT_YET},
        )
        if is_due(self._chain, status):
            self._watch.measure()

    def _record(self, status: ChainStatus, *, now: bool = False) -> None:
        before = self._recorded
        if not now:
            if status == before:
                return
            progress_only = before is not None and without_progress(before) == without_progress(status)
            if progress_only and time.monotonic() - self._recorded_at < RECORD_SECONDS:
                return
        self._recorded, self._recorded_at = status, time.monotonic()
        self._watch.write(*record_object(self._chain, status, time.time()))

    # ---- being told to stop

    def _lose_chain(self) -> None:
        self._stopped = replace(self._stopped, lease_lost=True)

    @contextlib.contextmanager
    def _signals_handled(self) -> Iterator[None]:
        """The first signal stops at a checkpoint, the second at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self._stop_at_once = self._stopped.signal is not None
            self._stopped = replace(self._stopped, signal=self._stopped.signal or number)

        before: dict[int, Callable[..., object] | int | None] = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- telling

    def _end(self, status: ChainStatus, code: int) -> int:
        self._display.close()
        command = self._options.command
        self._display.tell(
            ending(self._name, status, code, self._stopped, plan=self._plan, command=command, now=time.time())
        )
        return code

    def _note(self, message: str) -> None:
        self._display.tell(Note(time=rfc3339(time.time()), message=message))

    def _tell_start(self) -> None:
        self._display.tell(
            RunStarted(
                time=rfc3339(time.time()),
                chain=self._name,
                store=self._store.uri,
                logs=str(self._options.logs),
                stages=_planned(self._chain.stages),
                baselines=_planned(self._chain.baselines),
            )
        )

    def _tell_failure(self, before: StageStatus | None, stage: StageStatus, time_text: str) -> None:
        """Say how an attempt ended; show its log where it could not say so itself."""
        ended = stage.last_ended
        if (
            ended is None
            or ended.reason in _EXPECTED_ENDS
            or (before is not None and before.last_ended == ended)
        ):
            return
        process = next(
            (known for known in self._processes if known.name == f"{stage.name}-{ended.attempt}"), None
        )
        if process is None:
            return
        explained = not ended.counted or (process.failure is not None and ended.exit_code != 1)
        self._display.tell(
            AttemptFailed(
                time=time_text,
                stage=stage.name,
                attempt=ended.attempt,
                counted=ended.counted,
                exit_code=ended.exit_code,
                reason=ended.reason,
                message=ended.message,
                log=str(process.log),
                tail=() if explained else tuple(process.tail()),
            )
        )


def _planned(stages: Sequence[ResolvedStage]) -> tuple[PlannedStage, ...]:
    return tuple(
        PlannedStage(
            name=stage.name,
            model=stage.model,
            digest=stage.digest,
            steps=stage.training.steps,
            processes=stage.job.processes_per_node,
            micro_batch_size=stage.training.micro_batch_size or None,  # unknown yet
        )
        for stage in stages
    )
