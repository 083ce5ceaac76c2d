"""How a run ends: when nothing more will happen by itself, with which exit code, and in which words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.cost import Plan
from modelchain.errors import ExitCode
from modelchain.local.events import RunEnded, SpeedupMeasured, StageResult
from modelchain.reconcile.baseline import MEASURED, MEASURING
from modelchain.reconcile.observation import StoreProblem
from modelchain.status import (
    ChainPhase,
    ChainStatus,
    ConditionType,
    Measurement,
    StagePhase,
    StageReason,
    StageStatus,
)
from modelchain.times import rfc3339

_PROBLEM_EXIT_CODES = {
    StoreProblem.FORBIDDEN.value: ExitCode.NO_PERMISSION,
    StoreProblem.MISCONFIGURED.value: ExitCode.CONFIG,
    StoreProblem.UNREADABLE.value: ExitCode.SOFTWARE,
    StoreProblem.DAMAGED.value: ExitCode.DATA,
}


@dataclass(frozen=True)
class Stopped:
    """Who told the run to stop, if anybody did."""

    signal: int | None = None  # the first that came
    lease_lost: bool = False  # another run has taken over the chain

    def __bool__(self) -> bool:
        return self.signal is not None or self.lease_lost


def exit_code(status: ChainStatus, stopped: Stopped) -> int | None:
    """The exit code of a run whose processes have all ended; None if something more will happen."""
    if status.is_true(ConditionType.ARTIFACTS_MISSING):
        return int(ExitCode.NO_INPUT)
    if status.phase is ChainPhase.COMPLETE:
        if stopped and _compares(status, stopped):
            return int(ExitCode.HELD) if stopped.signal is None else 128 + stopped.signal
        return None if _compares(status, stopped) else int(ExitCode.OK)
    if status.phase is ChainPhase.FAILED:
        failed = next(stage for stage in status.stages if stage.phase is StagePhase.FAILED)
        code = failed.last_ended.exit_code if failed.last_ended is not None else None
        return (
            code
            if code is not None and failed.reason != StageReason.RETRIES_EXHAUSTED
            else int(ExitCode.FAILURE)
        )
    if status.phase is ChainPhase.SUSPENDED:
        if stopped.lease_lost:
            return int(ExitCode.HELD)
        return int(ExitCode.CONFIG) if stopped.signal is None else 128 + stopped.signal
    return _blocked(status)


def ending(
    chain: str, status: ChainStatus, code: int, stopped: Stopped, *, plan: Plan, command: str, now: float
) -> RunEnded:
    """The last event of a run."""
    return RunEnded(
        time=rfc3339(now),
        chain=chain,
        phase=status.phase.value,
        exit_code=code,
        message=_message(chain, status, code, stopped, command),
        stages=_results(status.stages),
        baselines=_results(status.baselines),
        cost_ratio_planned=plan.cost_ratio,
        speedup_planned=plan.speedup,
        speedup_measured=_speedup_measured(status.measurement),
    )


def _results(stages: Sequence[StageStatus]) -> tuple[StageResult, ...]:
    return tuple(
        StageResult(
            name=stage.name,
            phase=stage.phase,
            step=stage.step,
            steps=stage.steps,
            attempt=stage.attempt,
            metrics=stage.metrics,
            weights_uri=stage.weights_uri,
        )
        for stage in stages
    )


def _speedup_measured(found: Measurement | None) -> SpeedupMeasured | None:
    if found is None:
        return None
    return SpeedupMeasured(
        factor=found.acceleration.factor,
        at_least=found.acceleration.at_least,
        metric=found.metric,
        chain_macs=found.chain_macs,
        models=found.models,
    )


def _compares(status: ChainStatus, stopped: Stopped) -> bool:
    """Whether something of what comes after the chain is still to be done that nobody but a signal stands in the way
    of: models to train alone, or their evaluations to read.
    """
    condition = status.condition(ConditionType.BASELINE_COMPLETE)
    if condition is None or condition.status == "True":
        return False
    reasons = {
        stage.reason
        for stage in status.baselines
        if not stage.finished and stage.phase is not StagePhase.FAILED
    }
    if not reasons:
        return condition.reason == MEASURING
    return not reasons <= {*_PROBLEM_EXIT_CODES, *(() if stopped else (StageReason.SUSPENDED,))}


def _blocked(status: ChainStatus) -> int | None:
    """The exit code where only a person can help: an artifact that is damaged, a store that refuses us."""
    reasons = {stage.reason for stage in status.stages if not stage.finished} - {"PredecessorIncomplete"}
    codes = {_PROBLEM_EXIT_CODES.get(reason) for reason in reasons}
    return int(min(code for code in codes if code is not None)) if codes and None not in codes else None


def _message(chain: str, status: ChainStatus, code: int, stopped: Stopped, command: str) -> str:
    missing = status.condition(ConditionType.ARTIFACTS_MISSING)
    if missing is not None and missing.status == "True":
        return f"chain {chain}: {missing.message}: {command} --retrain-missing"
    if code == ExitCode.OK:
        compared = status.condition(ConditionType.BASELINE_COMPLETE)
        why = compared.message if compared is not None and compared.reason != MEASURED else ""
        return f"chain {chain} is complete{f'; not compared: {why}' if why else ''}"
    if status.phase is ChainPhase.FAILED:
        return f"chain {chain} has failed: {status.message}"
    if stopped.lease_lost:
        return f"another run has taken over chain {chain}; this one has stopped"
    if stopped.signal is not None:
        at = next((stage for stage in status.all_stages if not stage.finished and stage.step), None)
        where = f" in stage {at.name} at step {at.step}/{at.steps}" if at is not None else ""
        done = f"chain {chain} is complete; comparing it was " if status.phase is ChainPhase.COMPLETE else ""
        return f"{done}stopped{where}; go on with: {command}"
    if status.phase is ChainPhase.SUSPENDED:
        return f"chain {chain} is suspended (spec.suspend): unset it to train"
    return f"chain {chain} can't go on: {status.message}"
