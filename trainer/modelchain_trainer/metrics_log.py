"""What a stage measured, line by line: metrics-<n>.jsonl files, and the same as TensorBoard events.

A store has no append. So the lines are kept in numbered segments: each begins at a checkpoint, `<n>` is its
step, and only the last one is written again as it grows. A resumed attempt takes over the lines up to the
step it resumes from, so the attempt that finishes holds the whole history.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from modelchain.artifacts import FiniteNumber, metrics_file
from modelchain.spec import Block
from modelchain_trainer.tensorboard_events import Scalars, encode_events


class TrainLine(Block):
    """One training step. `step` counts finished ones; `macs` and `time` count from the stage's start."""

    kind: Literal["train"] = "train"
    step: int
    epoch: FiniteNumber
    samples: int
    macs: FiniteNumber
    time: FiniteNumber  # seconds of training, without interruptions
    wall_time: FiniteNumber  # seconds since 1970, for TensorBoard
    learning_rate: FiniteNumber
    loss: dict[str, FiniteNumber]  # total, task, distillation
    distillation_weight: FiniteNumber
    logit_scale: FiniteNumber | None = None  # of tasks that learn one
    gradient_norm: FiniteNumber
    samples_per_second: FiniteNumber
    data_wait_fraction: FiniteNumber

    def scalars(self) -> Scalars:
        """Names and values for TensorBoard."""
        values = {f"loss/{name}": value for name, value in self.loss.items()}
        values |= {
            "train/learning_rate": self.learning_rate,
            "train/distillation_weight": self.distillation_weight,
            "train/gradient_norm": self.gradient_norm,
            "train/epoch": self.epoch,
            "speed/samples_per_second": self.samples_per_second,
            "speed/data_wait_fraction": self.data_wait_fraction,
        }
        if self.logit_scale is not None:
            values["train/logit_scale"] = self.logit_scale
        return Scalars(self.step, self.wall_time, values)


class EvaluationLine(Block):
    """One evaluation of all sets that were due. The one at step 0 says what growth has kept."""

    kind: Literal["evaluation"] = "evaluation"
    step: int
    samples: int
    macs: FiniteNumber
    time: FiniteNumber
    wall_time: FiniteNumber
    metrics: dict[str, FiniteNumber]  # e.g. {"digits/top1": 0.93}

    def scalars(self) -> Scalars:
        """Names and values for TensorBoard."""
        return Scalars(self.step, self.wall_time, self.metrics)


Line = TrainLine | EvaluationLine
_LINES: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
_FILE = re.compile(r"metrics-\d{10}\.jsonl")


def events_file(first_step: int) -> str:
    """Name of the TensorBoard file beside a segment of metrics; TensorBoard reads them in the order of their names."""
    return f"events.out.tfevents.{first_step:010d}.modelchain"


def is_metrics_file(name: str) -> bool:
    """Whether a file of an attempt (its last part, no folder) is a segment of metrics."""
    return _FILE.fullmatch(name) is not None


class MetricsLog:
    """The lines of one attempt in memory, in segments."""

    def __init__(self, history: Iterable[Line] = (), first_step: int = 0) -> None:
        """Begin at `first_step`, after the lines that were written before it."""
        self._segments: dict[int, list[Line]] = {0: list(history)}
        self.begin_segment(first_step)
        self._changed: set[int] = {step for step, lines in self._segments.items() if lines}

    def append(self, line: Line) -> None:
        """Add a line to the last segment."""
        last = max(self._segments)
        self._segments[last].append(line)
        self._changed.add(last)

    def begin_segment(self, step: int) -> None:
        """Lines from here on go into a file of their own; the files before it do not change any more."""
        self._segments.setdefault(step, [])

    def evaluated_steps(self) -> frozenset[int]:
        """Steps whose evaluation is known already."""
        return frozenset(
            line.step
            for lines in self._segments.values()
            for line in lines
            if isinstance(line, EvaluationLine)
        )

    def metrics(self) -> dict[str, float]:
        """The latest figure of each metric."""
        latest: dict[str, float] = {}
        for _, lines in sorted(self._segments.items()):
            for line in lines:
                if isinstance(line, EvaluationLine):
                    latest |= line.metrics
        return latest

    def files(self) -> dict[str, bytes]:
        """All files, by name; segments without lines have none."""
        return encode_files({step: lines for step, lines in self._segments.items() if lines})

    def take_changed(self) -> dict[int, list[Line]]:
        """Segments to write, by first step: those changed since the last call, as they are now.

        What is not written after all: `put_back`.
        """
        changed, self._changed = self._changed, set()
        return {step: list(self._segments[step]) for step in changed}

    def put_back(self, steps: Iterable[int]) -> None:
        """The segments that begin at these steps have not been written after all."""
        self._changed.update(steps)


def encode_files(segments: Mapping[int, Sequence[Line]]) -> dict[str, bytes]:
    """The files of segments, given by their first steps: lines and TensorBoard events of each."""
    files: dict[str, bytes] = {}
    for step, lines in sorted(segments.items()):
        files[metrics_file(step)] = b"".join(encode_line(line) for line in lines)
        files[events_file(step)] = encode_events(line.scalars() for line in lines)
    return files


def encode_line(line: Line) -> bytes:
    """One line of JSON, its line break included."""
    return (
        json.dumps(
            line.model_dump(mode="json", by_alias=True, exclude_none=True), separators=(",", ":")
        ).encode()
        + b"\n"
    )


def decode_lines(data: bytes, last_step: int) -> list[Line]:
    """The lines of a segment up to `last_step`. Raises ValueError for what is not a line of metrics."""
    lines = [_LINES.validate_json(text) for text in data.splitlines() if text.strip()]
    return [line for line in lines if line.step <= last_step]
