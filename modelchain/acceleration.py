"""Acceleration at equal quality: the compute that models need alone to become as good as the chain's, over the chain's.

A curve is the evaluations of a run, each (macs, value): compute counted from the run's first step. Three rules, each of
which favours the models alone where there is a choice:

- What counts is the best value that a curve has reached for at most some compute: one lucky evaluation is enough.
- Between two evaluations the value is interpolated linearly in the logarithm of compute. Learning curves bend, so a
  line that is straight in compute lies below them, and finds alone to be slower than it is. Only from an evaluation
  before the first step, whose compute has no logarithm, is the line straight in compute.
- A target that is never reached counts all that the curve spent, and the factor then is a lower bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reached:
    """The compute at which a curve reaches a target; where it does not, all that it spent."""

    macs: float
    reached: bool


@dataclass(frozen=True)
class Acceleration:
    """How many times the chain's compute its models take, each alone, to become as good."""

    factor: float
    at_least: bool  # a model alone did not get there

    def __str__(self) -> str:
        return f"{'>= ' if self.at_least else ''}{self.factor:.2f}x"


def compute_to_reach(
    curve: Sequence[tuple[float, float]], target: float, *, higher_is_better: bool
) -> Reached:
    """The compute at which `curve` reaches `target`, by the rules above; `envelope` makes one curve of several runs.

    Values that are not finite (a loss that went astray) are passed over.

    Raises:
        ValueError: The target is not finite, the curve has no evaluation, or one whose compute is no amount.
    """
    if not math.isfinite(target):
        raise ValueError(f"a target of {target} is reached by nothing, or by everything")
    sign = 1.0 if higher_is_better else -1.0
    front = _front(_checked(curve), sign)
    for i, (macs, value) in enumerate(front):
        if value >= sign * target:
            return Reached(_crossing(front[i - 1], (macs, value), sign * target) if i else macs, reached=True)
    return Reached(max(macs for macs, _ in curve), reached=False)


def acceleration(alone: Sequence[Reached], chain_macs: float) -> Acceleration:
    """What the models take alone, summed, over `chain_macs`, the compute of the chain that made them all.

    Raises:
        ValueError: There is no model, or the chain took no compute.
    """
    if not alone or not chain_macs > 0:
        raise ValueError("an acceleration takes models trained alone, and a chain that took compute")
    return Acceleration(
        factor=sum(each.macs for each in alone) / chain_macs,
        at_least=not all(each.reached for each in alone),
    )


def envelope(
    runs: Sequence[Sequence[tuple[float, float]]], *, higher_is_better: bool
) -> list[tuple[float, float]]:
    """The best that any of several runs of one model has reached for at most some compute, as one curve.

    Runs are interpolated before they are compared, so a poor run never hides what another reached between two of its
    evaluations. Where a shorter run, its learning rate decayed sooner, ends above a longer one, the envelope goes
    straight from its end to where the longer one is better.

    Raises:
        ValueError: A run has no evaluation, or one whose compute is no amount.
    """
    sign = 1.0 if higher_is_better else -1.0
    fronts = [_front(_checked(run), sign) for run in runs]
    return [
        (
            macs,
            best if math.isfinite(best := sign * max(_value(front, macs) for front in fronts)) else math.nan,
        )
        for macs in sorted({macs for run in runs for macs, _ in run})
    ]


def _checked(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if not curve:
        raise ValueError("a curve without an evaluation reaches nothing")
    if any(not 0 <= macs < math.inf for macs, _ in curve):
        raise ValueError("a curve's compute is counted in MACs, from 0 on")
    return curve


def _front(curve: Sequence[tuple[float, float]], sign: float) -> list[tuple[float, float]]:
    """The evaluations better than all before them, by compute; values times `sign`, so that higher is better."""
    front: list[tuple[float, float]] = []
    for macs, value in sorted((macs, sign * value) for macs, value in curve if math.isfinite(value)):
        if not front or value > front[-1][1]:
            if front and front[-1][0] == macs:
                front.pop()
            front.append((macs, value))
    return front


def _crossing(before: tuple[float, float], after: tuple[float, float], target: float) -> float:
    """Where the line between two points of a front is at `target`."""
    (start, low), (end, high) = before, after
    share = (target - low) / (high - low)
    return end * share if start == 0 else start * (end / start) ** share


def _value(front: Sequence[tuple[float, float]], macs: float) -> float:
    """A front's value at some compute; minus infinity before it begins, its last value after it has ended."""
    done = [point for point in front if point[0] <= macs]
    if not done:
        return -math.inf
    (start, low), ahead = done[-1], front[len(done) :]
    if not ahead or start == macs:
        return low
    end, high = ahead[0]
    share = macs / end if start == 0 else math.log(macs / start) / math.log(end / start)
    return low + (high - low) * share
