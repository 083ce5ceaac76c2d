"""How long a run may take, from those that are done: so that none is begun which would be cut off."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageTime:
    """A stage; stages of one kind take about as long for a step."""

    kind: Hashable
    steps: int
    seconds: float = 0.0  # that its steps took


class Pace:
    """The slowest steps of each kind so far, and the longest that a stage took besides its steps."""

    def __init__(self) -> None:
        self._a_step: dict[Hashable, float] = {}
        self._a_stage = 0.0  # to start, to evaluate, to publish

    def learn(self, stages: Sequence[StageTime], seconds: float) -> None:
        """From a run that trained these stages in so many seconds."""
        for stage in stages:
            if stage.steps:
                pace = stage.seconds / stage.steps
                self._a_step[stage.kind] = max(pace, self._a_step.get(stage.kind, 0.0))
        if stages:
            beside = (seconds - sum(stage.seconds for stage in stages)) / len(stages)
            self._a_stage = max(self._a_stage, beside)

    def estimate(self, stages: Sequence[StageTime]) -> float:
        """Seconds that these stages may take; the steps of a kind that is new take none."""
        return sum(self._a_stage + stage.steps * self._a_step.get(stage.kind, 0.0) for stage in stages)
