"""What the trainer has written: lines of metrics-<n>.jsonl, and predictions.json (modelchain/artifacts.py)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from modelchain.artifacts import METRICS_LINE, EvaluationLine, Predictions, TrainLine

MAX_EXAMPLES = 24
MAX_PICTURE_BYTES = 256 * 1024  # so that the page stays small enough to be sent

_PICTURE_TYPES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


@dataclass(frozen=True)
class Metrics:
    """All lines of a stage, in the order of their steps."""

    training: tuple[TrainLine, ...] = ()
    evaluations: tuple[EvaluationLine, ...] = ()
    unreadable_lines: int = 0


@dataclass(frozen=True)
class Example:
    """One sample and the most likely classes according to the model, with their probabilities."""

    picture: bytes
    media_type: str
    label: str
    top: tuple[tuple[str, float], ...]

    @property
    def right(self) -> bool:
        """Whether the most likely class is the sample's own."""
        return bool(self.top) and self.top[0][0] == self.label


def parse_lines(data: bytes) -> Metrics:
    """The lines of one metrics file. A line that can't be read is counted and left out."""
    training: list[TrainLine] = []
    evaluations: list[EvaluationLine] = []
    unreadable = 0
    for text in data.splitlines():
        if not text.strip():
            continue
        try:
            line = METRICS_LINE.validate_json(text)
        except ValidationError:
            unreadable += 1
            continue
        if isinstance(line, TrainLine):
            training.append(line)
        else:
            evaluations.append(line)
    return Metrics(tuple(training), tuple(evaluations), unreadable)


def join_attempts(attempts: Sequence[Sequence[Metrics]]) -> Metrics:
    """One history from the files of several attempts; the attempt that counts comes last.

    An attempt that resumes copies the lines before its checkpoint; where it could not, those of earlier attempts
    are used. Training is deterministic, so attempts agree where they overlap. From the first line of the attempt
    that counts on, only its own lines are used.
    """
    training: dict[int, TrainLine] = {}
    evaluations: dict[int, EvaluationLine] = {}
    for files in attempts:
        lines = [line.step for file in files for line in (*file.training, *file.evaluations)]
        if not lines:
            continue
        if files is attempts[-1]:
            first = min(lines)
            training = {step: line for step, line in training.items() if step < first}
            evaluations = {step: line for step, line in evaluations.items() if step < first}
        for file in files:
            training.update((line.step, line) for line in file.training)
            evaluations.update((line.step, line) for line in file.evaluations)
    return Metrics(
        training=tuple(training[step] for step in sorted(training)),
        evaluations=tuple(evaluations[step] for step in sorted(evaluations)),
        unreadable_lines=sum(file.unreadable_lines for files in attempts for file in files),
    )


def parse_predictions(data: bytes) -> tuple[str, tuple[Example, ...]]:
    """The evaluation set and the examples of predictions.json. Raises ValueError if it is not such a file.

    At most MAX_EXAMPLES samples are read; those whose picture is neither PNG nor JPEG, or larger than
    MAX_PICTURE_BYTES, are left out.
    """
    predictions = Predictions.model_validate_json(data)
    return predictions.set, tuple(_examples(predictions))


def _examples(predictions: Predictions) -> Iterable[Example]:
    for sample in predictions.samples[:MAX_EXAMPLES]:
        try:
            picture = base64.b64decode(sample.png, validate=True)
        except ValueError:
            continue
        media_type = next((kind for magic, kind in _PICTURE_TYPES if picture.startswith(magic)), None)
        if media_type is None or len(picture) > MAX_PICTURE_BYTES or sample.label >= len(predictions.classes):
            continue
        top = tuple((name, min(max(probability, 0.0), 1.0)) for name, probability in sample.top[:3])
        yield Example(picture, media_type, predictions.classes[sample.label], top)
