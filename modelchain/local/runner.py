"""Observe, decide, act: a chain on this machine, from its start to its end.

The decisions are those of `modelchain.reconcile`, the same as in a cluster. The runner holds the chain's
lease, so that one run at a time acts; its processes end with it, so that after its own death none is left
to be found.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from modelchain import cost
from modelchain.artifacts import chain_key, chain_lease_key
from modelchain.commit import require_conditional_writes
from modelchain.errors import ExitCode, HeldError
from modelchain.lease import LeaseKeeper, LeaseObserver
from modelchain.local.display import Display
from modelchain.local.events import (
    AttemptFailed,
    Note,
    PlannedStage,
    RunEnded,
    RunStarted,
    StageResult,
    changes,
)
from modelchain.local.processes import TrainerProcess
from modelchain.local.watch import Seen, StoreWatch
from modelchain.process import this_host, this_process
from modelchain.reconcile.actions import Decision, RemoveJob, StartJob, StopJob
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Observation, StoreTrouble
from modelchain.reconcile.summary import duration
from modelchain.resolved import ResolvedChain
from modelchain.status import (
    ChainPhase,
    ChainRecord,
    ChainStatus,
    ConditionType,
    StagePhase,
    record_of,
    rfc3339,
    without_progress,
)
from modelchain.store import MissingBucket, NotFound, Store

LOOP_SECONDS = 0.25
RECORD_SECONDS = 5.0  # between writes of the record, where only progress has changed
LEASE_SECONDS = 30
CLOSE_SECONDS = 15.0  # for the last write of the record

_EXIT_CODES_OF_TROUBLE = {
    StoreTrouble.FORBIDDEN.value: ExitCode.NO_PERMISSION,
    StoreTrouble.DAMAGED.value: ExitCode.DATA,
}


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
        self._name = f"{chain.chain.namespace}/{chain.chain.name}"
        self._plan = cost.plan(chain)
        self._macs = {stage.name: float(stage.macs) for stage in self._plan.stages}
        self._watch = StoreWatch(store, chain)
        self._processes: list[TrainerProcess] = []
        self._status: ChainStatus | None = None
        self._generation = 1
        self._wake = threading.Event()
        self._signals: list[int] = []
        self._lease_lost = False
        self._recorded: ChainStatus | None = None
        self._recorded_at = 0.0

    def run(self) -> int:
        """Run the chain to its end; returns the exit code. Raises ModelChainError before anything has
        started.
        """
        self._status = self._read_record()
        if self._status is not None:
            self._generation = (self._status.observed_generation or 0) + 1
        self._watch.look_at_all()
        first = self._decide(self._watch.seen())
        if not first.actions and (over := self._over(first)) is not None:
            return self._finish(first.status, over, known_before=True)
        require_conditional_writes(self._store, accept_risk=self._chain.store.allow_unconditional_writes)
        with self._signals_handled(), self._lease():
            self._tell_start()
            self._watch.start()
            try:
                status, exit_code = self._loop()
            finally:
                for process in self._processes:
                    process.kill()
            self._record(status, now=True)
            return self._finish(status, exit_code)

    # ---- observe

    def _decide(self, seen: Seen) -> Decision:
        observed = Observation(
            status=self._status,
            generation=self._generation,
            jobs=tuple(
                process.job(seen.progress_changed_at.get((process.stage.name, process.attempt)))
                for process in self._processes
            ),
            store=seen.facts,
            store_readable_since=seen.readable_since,
            max_parallel_jobs=1,
            interrupted=bool(self._signals) or self._lease_lost,
            retrain_missing=self._options.retrain_missing,
            macs=self._macs,
            speedup=self._plan.speedup,
        )
        return decide(self._chain, observed, time.time())

    def _poll_processes(self) -> None:
        for process in self._processes:
            lived = process.job(None).live
            if lived and not process.poll():
                self._watch.look_again(process.stage.name)
            elif lived and len(self._signals) > 1:
                process.kill()

    # ---- act

    def _loop(self) -> tuple[ChainStatus, int]:
        while True:
            self._poll_processes()
            decision = self._decide(self._watch.seen())
            self._publish(decision.status)
            acted = [self._act(action) for action in decision.actions]
            over = self._over(decision)
            if over is not None and not acted and not self._live():
                return decision.status, over
            if not any(acted):
                self._wake.wait(LOOP_SECONDS)
                self._wake.clear()

    def _act(self, action: StartJob | StopJob | RemoveJob) -> bool:
        if isinstance(action, StartJob):
            stage = self._chain.stage(action.stage)
            log = self._options.logs / f"{stage.name}-{action.attempt}.log"
            process = TrainerProcess(stage, action.attempt, directory=self._options.directory, log=log)
            self._processes.append(process)
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
            return
        time_text = rfc3339(time.time())
        for stage in status.stages:
            known = before.find_stage(stage.name) if before is not None else None
            if stage.last_ended is not None and (known is None or known.last_ended != stage.last_ended):
                self._tell_failure(stage.name, time_text, status)
        for event in changes(before, status, time_text):
            self._display.tell(event)
        self._display.show(status)
        self._follow(before, status)
        self._record(status)

    def _follow(self, before: ChainStatus | None, status: ChainStatus) -> None:
        finished = {stage.name for stage in status.stages if stage.finished}
        known = {stage.name for stage in before.stages if stage.finished} if before is not None else set()
        for stage in self._chain.stages:
            if stage.predecessor is not None and stage.predecessor.name in finished - known:
                self._watch.look_again(stage.name)  # its turn has come: is it trained by somebody already?
        self._watch.follow(
            {process.stage.name: process.attempt for process in self._processes if process.job(None).live},
            finished=finished,
            not_yet={stage.name for stage in status.stages if stage.reason == "PredecessorIncomplete"},
        )

    def _record(self, status: ChainStatus, *, now: bool = False) -> None:
        before = self._recorded
        if not now:
            progress_only = before is not None and without_progress(before) == without_progress(status)
            if progress_only and time.monotonic() - self._recorded_at < RECORD_SECONDS:
                return
        self._recorded, self._recorded_at = status, time.monotonic()
        self._watch.write(*self._record_bytes(status))

    def _record_bytes(self, status: ChainStatus) -> tuple[str, bytes]:
        record = record_of(self._chain, status, time.time())
        key = chain_key(self._chain.chain.namespace, self._chain.chain.name)
        return key, record.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()

    # ---- the end

    def _live(self) -> bool:
        return any(process.job(None).live for process in self._processes)

    def _over(self, decision: Decision) -> int | None:
        """The exit code, if nothing more will happen by itself."""
        status = decision.status
        if status.is_true(ConditionType.ARTIFACTS_MISSING):
            return int(ExitCode.NO_INPUT)
        if status.phase is ChainPhase.COMPLETE:
            return int(ExitCode.OK)
        if status.phase is ChainPhase.FAILED:
            failed = next(stage for stage in status.stages if stage.phase is StagePhase.FAILED)
            code = failed.last_ended.exit_code if failed.last_ended is not None else None
            permanent = failed.reason != "RetriesExhausted" and code is not None
            return code if permanent else int(ExitCode.FAILURE)
        if status.phase is ChainPhase.SUSPENDED:
            if self._lease_lost:
                return int(ExitCode.HELD)
            if self._signals:
                return 128 + self._signals[0]
            return int(ExitCode.CONFIG)
        return self._blocked(status)

    def _blocked(self, status: ChainStatus) -> int | None:
        """The exit code if only a person can help: an artifact that is damaged, a store that refuses us."""
        if self._live():
            return None
        reasons = {stage.reason for stage in status.stages if not stage.finished} - {"PredecessorIncomplete"}
        codes = [_EXIT_CODES_OF_TROUBLE.get(reason) for reason in reasons]
        return int(codes[0]) if codes and all(codes) and codes[0] is not None else None

    def _finish(self, status: ChainStatus, exit_code: int, *, known_before: bool = False) -> int:
        if known_before:
            self._status = status
            before = self._read_record()
            if before is None or without_progress(before) != without_progress(status):
                self._store.put(*self._record_bytes(status))
        self._display.close()
        self._display.tell(
            RunEnded(
                time=rfc3339(time.time()),
                chain=self._name,
                phase=status.phase.value,
                exit_code=exit_code,
                message=self._farewell(status, exit_code),
                stages=tuple(
                    StageResult(
                        name=stage.name,
                        phase=stage.phase,
                        step=stage.step,
                        steps=stage.steps,
                        attempt=stage.attempt,
                        metrics=stage.metrics,
                        weights_uri=stage.weights_uri,
                    )
                    for stage in status.stages
                ),
                cost_ratio=self._plan.cost_ratio,
                speedup=self._plan.speedup,
            )
        )
        return exit_code

    def _farewell(self, status: ChainStatus, exit_code: int) -> str:
        if exit_code == ExitCode.OK:
            return f"chain {self._name} is complete"
        if status.is_true(ConditionType.ARTIFACTS_MISSING):
            condition = status.condition(ConditionType.ARTIFACTS_MISSING)
            return f"{condition.message if condition else ''} with --retrain-missing"
        if self._lease_lost:
            return f"another run has taken over chain {self._name}; this one has stopped"
        if self._signals:
            at = next((stage for stage in status.stages if not stage.finished and stage.step), None)
            where = f" in stage {at.name} at step {at.step}/{at.steps}" if at is not None else ""
            return f"stopped{where}; go on with: {self._options.command}"
        if status.phase is ChainPhase.SUSPENDED:
            return f"chain {self._name} is suspended: spec.suspend is set; unset it to train"
        return (
            f"chain {self._name} has failed: {status.message}" if status.message else f"{status.phase.value}"
        )

    # ---- around it

    def _read_record(self) -> ChainStatus | None:
        key = chain_key(self._chain.chain.namespace, self._chain.chain.name)
        try:
            return ChainRecord.model_validate_json(self._store.get(key)[0]).status
        except MissingBucket:
            raise
        except NotFound:
            return None
        except ValidationError:
            uri = self._store.uri_of(key)
            self._note(f"{uri} is damaged and is written anew; what is complete in the store stays so")
            return None

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        """Hold the chain. Raises HeldError if another run does."""
        key = chain_lease_key(self._chain.chain.namespace, self._chain.chain.name)
        keeper = LeaseKeeper(
            self._store,
            key,
            holder=f"run-{secrets.token_hex(4)}",
            chain=self._name,
            duration_seconds=LEASE_SECONDS,
            on_lost=self._lose_lease,
        )
        view = LeaseObserver(self._store, key).observe()
        near = view is not None and view.lease is not None and _is_near(view.lease.host, view.lease.process)
        if view is not None and view.fresh and not near:
            self._note(
                f"{view.holder} has held this chain: watching for up to {duration(LEASE_SECONDS)} whether it lives"
            )
        try:
            keeper.acquire(wait=not near)
        except HeldError as error:
            raise HeldError(f"chain {self._name} is being run already: {error}") from None
        try:
            yield
        finally:
            self._watch.close(timeout_seconds=CLOSE_SECONDS)
            keeper.release()

    def _lose_lease(self) -> None:
        self._lease_lost = True
        self._wake.set()

    @contextlib.contextmanager
    def _signals_handled(self) -> Iterator[None]:
        def handle(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)
            self._wake.set()

        before: dict[int, Callable[..., object] | int | None] = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, message: str) -> None:
        self._display.tell(Note(time=rfc3339(time.time()), message=message))

    def _tell_start(self) -> None:
        stages = tuple(
            PlannedStage(
                name=stage.name,
                model=stage.model,
                digest=stage.digest,
                steps=stage.training.steps,
                processes=stage.job.processes_per_node,
                micro_batch_size=stage.training.micro_batch_size,
            )
            for stage in self._chain.stages
        )
        self._display.tell(
            RunStarted(
                time=rfc3339(time.time()),
                chain=self._name,
                store=self._store.uri,
                logs=str(self._options.logs),
                stages=stages,
            )
        )

    def _tell_failure(self, name: str, time_text: str, status: ChainStatus) -> None:
        stage = status.find_stage(name)
        ended = stage.last_ended if stage is not None else None
        process = next(
            (
                known
                for known in self._processes
                if ended and known.stage.name == name and known.attempt == ended.attempt
            ),
            None,
        )
        if ended is None or process is None:
            return
        foreseen = process.failure() is not None and ended.exit_code not in (None, 1)
        self._display.tell(
            AttemptFailed(
                time=time_text,
                stage=name,
                attempt=ended.attempt,
                counted=ended.counted,
                exit_code=ended.exit_code,
                reason=ended.reason,
                message=ended.message,
                log=str(process.log),
                tail=() if foreseen or not ended.counted else tuple(process.tail()),
            )
        )


def _is_near(host: str, process: str) -> bool:
    """Whether a process would be seen to be dead from here, so that its being silent need not be watched."""
    return host == this_host() and process.partition("/")[0] == this_process().partition("/")[0]
