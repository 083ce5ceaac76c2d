"""The training loop: steps, evaluations, checkpoints, and leaving in between.

A step `s` is finished before the evaluation at `s`, and a checkpoint at `s` is taken right after the step: so
an attempt that goes on from it evaluates first if that has not been done, and nothing depends on where an
attempt was cut off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modelchain.artifacts import EvaluationLine, TrainLine
from modelchain.cost import stage_macs
from modelchain.errors import HeldError
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.checkpoint import CheckpointWriter, take_snapshot
from modelchain_trainer.data.sample import Cause
from modelchain_trainer.data.source import Loader
from modelchain_trainer.ending import out_of_memory
from modelchain_trainer.evaluation.evaluate import evaluate
from modelchain_trainer.evaluation.evaluation_set import EvaluationSet, Run
from modelchain_trainer.evaluation.sets import is_due
from modelchain_trainer.failpoints import reach
from modelchain_trainer.micro_batch import Trial
from modelchain_trainer.step import DivergedError, StepReading, StepResult
from modelchain_trainer.stopping import Terminated, steps_between_agreements
from modelchain_trainer.train_state import TrainState

logger = logging.getLogger(__name__)

_GO_ON, _STOP, _LEASE_LOST = 0, 1, 2


class TrainingLoop:
    """Trains `state` to its last step."""

    def __init__(
        self,
        attempt: Attempt,
        state: TrainState,
        loader: Loader,
        sets: Sequence[EvaluationSet],
        run: Run,
    ) -> None:
        """The loader begins at the state's step."""
        self._attempt = attempt
        self._training = attempt.stage.training
        self._state = state
        self._loader = loader
        self._sets = sets
        self._evaluation_run = run
        self._corrupt_before, self._computed_before = dict(state.corrupt), state.computed_macs
        self._line_from = _Clock(state.step, state.train_seconds, loader.wait_seconds)
        self._agreed = False  # with the other ranks, to stop
        self._next_agreement, self._agreed_at = state.step + 1, time.perf_counter()
        self._last_agreement = state.step
        self._skipped = 0  # steps, as far as told
        self._writer = CheckpointWriter(
            attempt.store,
            attempt.stage,
            attempt.token,
            attempt.scratch,
            world_size=attempt.ranks.world_size,
            before_commit=attempt.telemetry.flush,
            committed=self._committed,
        )

    def run(self) -> None:
        """Train, evaluate, save. Raises Terminated once a checkpoint is written, if asked to end."""
        try:
            while True:
                self._evaluate_if_due()
                if self._state.step == self._training.steps:
                    break
                self._attempt.telemetry.phase("Training")
                with self._attempt.stop.deferred():
                    self._train_until(self._next_evaluation())
            self._writer.wait()
        except Terminated:
            self._leave()
            raise
        except DivergedError:
            self._writer.wait()
            raise
        finally:
            self._loader.close()

    def _train_until(self, end: int) -> None:
        attempt, state = self._attempt, self._state
        while state.step < end:
            started = time.perf_counter()
            result = self._step()
            state.step += 1
            last = state.step == self._training.steps
            log = last or state.step % self._training.log_every_steps == 0
            trunk = state.step == self._training.trunk_steps
            save = last or trunk or state.step % self._training.checkpoint_every_steps == 0
            # Waits for the device. All ranks read at the same steps: who finds that a step diverged goes back.
            reading = result.read() if log or save else None
            state.train_seconds += time.perf_counter() - started
            attempt.position.step = state.step
            attempt.telemetry.step(state.step)
            reach("step")
            if log or save or state.step == end:
                self._count()
            if log and reading is not None:
                self._log(reading)
            if save:
                self._save(result)
            self._writer.check()
            attempt.telemetry.check()
            self._agree()

    def _step(self) -> StepResult:
        batch = next(self._loader)
        try:
            return self._state.train_step.run(batch, self._state.step)
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Out here nothing holds the step's tensors any more, and a smaller size can be tried.
        training = self._state.train_step.training
        share = training.global_batch_size // self._attempt.ranks.world_size
        smaller = min(share, training.micro_batch_size or share) // 2
        setting = self._state.train_step.break_off()
        fitting = Trial.of(setting).largest(share, smaller) if smaller and setting is not None else None
        together = self._attempt.stage.model_config_.rows_together
        raise out_of_memory(share, training, message, fitting, together=together)

    def _agree(self) -> None:
        """Stop if any rank has been asked to, all at the same step."""
        attempt = self._attempt
        if attempt.ranks.world_size > 1 and self._state.step < self._next_agreement:
            return
        mine = _STOP if attempt.stop.requested else _GO_ON
        if attempt.lease is not None and attempt.lease.lost:
            mine = _LEASE_LOST
        agreed = attempt.ranks.agree(mine)
        if agreed == _LEASE_LOST:
            attempt.check_lease()
            raise HeldError(f"stage {attempt.stage.name}: rank 0 has lost the lease; see its message")
        if agreed == _STOP:
            self._agreed = True
            raise Terminated
        self._schedule_agreement()

    def _schedule_agreement(self) -> None:
        """When to agree next: all ranks at the same step, by the slowest one's pace. On a CPU a step is long enough."""
        if self._attempt.device.type == "cpu":
            return
        step, now = self._state.step, time.perf_counter()
        pace = (now - self._agreed_at) / max(1, step - self._last_agreement)
        milliseconds = self._attempt.ranks.agree(round(1000 * pace))
        self._next_agreement = step + steps_between_agreements(milliseconds / 1000)
        self._last_agreement, self._agreed_at = step, now

    def _log(self, reading: StepReading) -> None:
        attempt, state = self._attempt, self._state
        if reading.skipped_steps > self._skipped:
            logger.warning(
                "step %d: %d steps of this attempt were skipped, for their loss or gradient was not finite",
                state.step,
                reading.skipped_steps,
            )
            self._skipped = reading.skipped_steps
        if reading.skipped:
            return  # its figures are no numbers
        now = _Clock(state.step, state.train_seconds, self._loader.wait_seconds)
        seconds = max(now.seconds - self._line_from.seconds, 1e-9)
        samples = (now.step - self._line_from.step) * self._training.global_batch_size
        waited = min(1.0, (now.waited - self._line_from.waited) / seconds)
        self._line_from = now
        line = TrainLine(
            step=state.step,
            epoch=state.step / self._training.steps_per_epoch,
            samples=state.step * self._training.global_batch_size,
            macs=self._macs(state.step),
            computed_macs=state.computed_macs,
            time=state.train_seconds,
            wall_time=time.time(),
            learning_rate=reading.learning_rate,
            loss=reading.loss,
            distillation_weight=reading.distillation_weight,
            logit_scale=reading.logit_scale,
            gradient_norm=reading.gradient_norm,
            samples_per_second=samples / seconds,
            data_wait_fraction=waited,
            passed_over_batches=sum(stretch.batches for stretch in state.passed_over) or None,
        )
        attempt.telemetry.train(line, state.corrupt)

    def _macs(self, step: int) -> float:
        taught = self._state.train_step.teacher_steps
        return float(stage_macs(self._attempt.stage, until_step=step, teacher_steps=taught))

    def _count(self) -> None:
        """Corrupt samples and computed MACs of all ranks and of all attempts so far. Every rank calls it at the same
        steps.
        """
        mine, state = self._loader.corrupt, self._state
        counts = [state.train_step.computed_macs, *(mine.get(cause, 0) for cause in Cause)]
        counted = torch.tensor(counts, dtype=torch.float64, device=self._attempt.device)
        macs, *corrupt = self._attempt.ranks.group.sum(counted).tolist()
        for cause, count in zip(Cause, corrupt, strict=True):
            if total := self._corrupt_before.get(cause, 0) + int(count):
                state.corrupt[str(cause)] = total
        if self._computed_before is not None:
            state.computed_macs = self._computed_before + macs

    def _next_evaluation(self) -> int:
        """The next step with an evaluation, after the one that is finished."""
        step, steps = self._state.step, self._training.steps
        every = [s.spec.every_steps for s in self._sets if s.spec.every_steps]
        return min([steps, *((step // n + 1) * n for n in every)])

    def _evaluate_if_due(self) -> None:
        attempt, state = self._attempt, self._state
        step = state.step
        due = [s for s in self._sets if is_due(s.spec, step, self._training.steps)]
        known = attempt.ranks.share(f"evaluated-{step}", lambda: "yes" if self._is_evaluated(step) else "")
        if not due or known:
            return
        attempt.telemetry.phase("Evaluating")
        reach("evaluation")
        metrics = evaluate(state.published, due, self._evaluation_run)
        line = EvaluationLine(
            step=step,
            samples=step * self._training.global_batch_size,
            macs=self._macs(step),
            time=state.train_seconds,
            wall_time=time.time(),
            metrics=metrics,
        )
        attempt.telemetry.evaluation(line)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logger.info("step %d of %d: %s", step, self._training.steps, shown)

    def _is_evaluated(self, step: int) -> bool:
        return step in self._attempt.telemetry.evaluated_steps()

    def _save(self, result: StepResult | None, *, due: bool = True) -> None:
        """Begin a checkpoint, unless one is still being written: a slow store holds nothing up.

        Of what is sharded all ranks have a part: then all call it, and rank 0 decides.
        """
        attempt, state = self._attempt, self._state
        trunk = state.step == self._training.trunk_steps
        last = state.step == self._training.steps
        due = due and attempt.ranks.first
        if due and self._writer.busy and not (last or trunk):
            logger.info("no checkpoint at step %d: the one before is still being written", state.step)
            due = False
        if state.train_step.sharded:
            due = bool(attempt.ranks.agree(int(due)))
        if not due:
            return
        # Reading raises DivergedError, and what may be the beginning of that is not kept either.
        if result is not None and result.read().skipped and not (last or trunk):
            logger.info("no checkpoint at step %d: that step was skipped", state.step)
            return
        weights, rest = state.train_step.model_state(), state.train_step.state_dict()
        if not attempt.ranks.first:
            return
        attempt.telemetry.begin_segment(state.step)
        snapshot = take_snapshot(state.for_checkpoint(), weights, rest)
        self._writer.start(snapshot, required=trunk)

    def _committed(self, step: int) -> None:
        self._attempt.telemetry.checkpoint(step)
        self._attempt.position.checkpoint_step = step

    def _leave(self) -> None:
        """Save what would be lost, and let the other ranks wait for it if all of us have agreed to stop."""
        attempt, state = self._attempt, self._state
        if self._agreed:
            self._count()
        due = False
        if attempt.ranks.first:
            attempt.telemetry.phase("Checkpointing")
            self._writer.wait()
            due = state.step not in (0, attempt.position.checkpoint_step)
        if not state.train_step.sharded or self._agreed:
            self._save(None, due=due)
        elif due:
            logger.warning("no checkpoint at step %d: this rank has a part of the state only", state.step)
        if attempt.ranks.first:
            self._writer.wait()
        if self._agreed:
            saved = attempt.ranks.share("stopped", lambda: str(attempt.position.checkpoint_step or ""))
            attempt.position.checkpoint_step = int(saved) if saved else None
            attempt.ranks.leave()


@dataclass(frozen=True)
class _Clock:
    """Where the last line of metrics stood."""

    step: int
    seconds: float  # of training
    waited: float  # of these, for data
