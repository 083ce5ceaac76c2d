"""What a stage measured, line by line: metrics-<n>.jsonl files, and the same as TensorBoard events.

A store has no append. So the lines are kept in numbered segments: each begins at a checkpoint, `<n>` is its
step, and only the last one is written again as it grows. A resumed attempt takes over the lines up to the
step it resumes from, so the attempt that finishes holds the whole history.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from modelchain.artifacts import METRICS_LINE, EvaluationLine, MetricsLine, metrics_file
from modelchain_trainer.telemetry.tensorboard_events import Scalars, encode_events

_FILE = re.compile(r"metrics-\d{10}\.jsonl")


def events_file(first_step: int) -> str:
    """Name of the TensorBoard file beside a segment of metrics; TensorBoard reads them in the order of their names."""
    return f"events.out.tfevents.{first_step:010d}.modelchain"


def is_metrics_file(name: str) -> bool:
    """Whether a file of an attempt (its last part, no folder) is a segment of metrics."""
    return _FILE.fullmatch(name) is not None


class MetricsLog:
    """The lines of one attempt in memory, in segments."""

    def __init__(self, history: Iterable[MetricsLine] = (), first_step: int = 0) -> None:
        """Begin at `first_step`, after the lines that were written before it."""
        self._segments: dict[int, list[MetricsLine]] = {0: list(history)}
        self.begin_segment(first_step)
        self._changed: set[int] = {step for step, lines in self._segments.items() if lines}

    def append(self, line: MetricsLine) -> None:
        """Add a line to the last segment."""
        last = max(first for first in self._segments if first <= line.step)
        self._segments[last].append(line)
        self._changed.add(last)

    def begin_segment(self, step: int) -> None:
        """Lines from here on go into a file of their own; the files before it do not change any more."""
        self._segments.setdefault(step, [])

    def roll_back(self, step: int) -> None:
        """Without the lines after `step`: files that hold some are written again, and may be empty then."""
        for first, lines in self._segments.items():
            kept = [line for line in lines if line.step <= step]
            if len(kept) < len(lines):
                self._segments[first] = kept
                self._changed.add(first)
        self.begin_segment(step)

    def lines(self) -> list[MetricsLine]:
        """All lines, in their order."""
        return [line for _, lines in sorted(self._segments.items()) for line in lines]

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

    def take_changed(self) -> dict[int, list[MetricsLine]]:
        """Segments to write, by first step: those changed since the last call, as they are now.

        What is not written after all: `put_back`.
        """
        changed, self._changed = self._changed, set()
        return {step: list(self._segments[step]) for step in changed}

    def put_back(self, steps: Iterable[int]) -> None:
        """The segments that begin at these steps have not been written after all."""
        self._changed.update(steps)


def encode_files(segments: Mapping[int, Sequence[MetricsLine]]) -> dict[str, bytes]:
    """The files of segments, given by their first steps: lines and TensorBoard events of each."""
    files: dict[str, bytes] = {}
    for step, lines in sorted(segments.items()):
        files[metrics_file(step)] = b"".join(encode_line(line) for line in lines)
        files[events_file(step)] = encode_events(map(scalars_of, lines))
    return files


def scalars_of(line: MetricsLine) -> Scalars:
    """What TensorBoard shows of a line: names and values."""
    if isinstance(line, EvaluationLine):
        return Scalars(line.step, line.wall_time, line.metrics)
    values = {f"loss/{name}": value for name, value in line.loss.items()}
    values |= {
        "train/learning_rate": line.learning_rate,
        "train/distillation_weight": line.distillation_weight,
        "train/gradient_norm": line.gradient_norm,
        "train/epoch": line.epoch,
        "speed/samples_per_second": line.samples_per_second,
        "speed/data_wait_fraction": line.data_wait_fraction,
    }
    if line.logit_scale is not None:
        values["train/logit_scale"] = line.logit_scale
    return Scalars(line.step, line.wall_time, values)


def encode_line(line: MetricsLine) -> bytes:
    """One line of JSON, its line break included."""
    return (
        json.dumps(
            line.model_dump(mode="json", by_alias=True, exclude_none=True), separators=(",", ":")
        ).encode()
        + b"\n"
    )


def decode_lines(data: bytes, last_step: int) -> list[MetricsLine]:
    """The lines of a segment up to `last_step`. Raises ValueError for what is not a line of metrics."""
    lines = [METRICS_LINE.validate_json(text) for text in data.splitlines() if text.strip()]
    return [line for line in lines if line.step <= last_step]
