"""Reading what the trainer wrote down."""

from __future__ import annotations

import base64
import json
import random

import pytest

from modelchain.report.metrics import MAX_EXAMPLES, join_attempts, parse_lines, parse_predictions
from tests.modelchain.report.made_up_chain import digit_png


def train_line(step: int, task: float = 1.0) -> str:
    return json.dumps(
        place(step)
        | {
            "kind": "train",
            "epoch": step / 10,
            "learningRate": 1e-3,
            "loss": {"task": task},
            "distillationWeight": 0.0,
            "gradientNorm": 0.8,
            "samplesPerSecond": 900.0,
            "dataWaitFraction": 0.02,
            "ofANewerTrainer": 1,
        }
    )


def evaluation_line(step: int, top1: float) -> str:
    return json.dumps(place(step) | {"kind": "evaluation", "metrics": {"digits/top1": top1}})


def place(step: int) -> dict[str, object]:
    return {"step": step, "samples": 8 * step, "macs": step * 1e6, "time": step / 2, "wallTime": 5.0}


def file(*lines: str) -> bytes:
    return "\n".join(lines).encode() + b"\n"


def test_lines_of_both_kinds_are_read_and_fields_of_a_newer_trainer_passed_over() -> None:
    metrics = parse_lines(file(evaluation_line(0, 0.1), train_line(10, 2.5)))
    assert metrics.evaluations[0].metrics == {"digits/top1": 0.1}
    assert (metrics.training[0].step, metrics.training[0].loss) == (10, {"task": 2.5})
    assert metrics.unreadable_lines == 0


@pytest.mark.parametrize(
    "damaged",
    [
        train_line(20)[:-5],
        train_line(20).replace('"macs": 20000000.0', '"macs": NaN'),
        '{"kind": "other", "step": 1}',
        "[1, 2]",
        "\x00\x01",
    ],
)
def test_a_damaged_line_is_counted_and_the_others_stay(damaged: str) -> None:
    metrics = parse_lines(file(train_line(10), damaged, train_line(30)))
    assert [line.step for line in metrics.training] == [10, 30]
    assert metrics.unreadable_lines == 1


def test_the_history_of_a_resumed_stage_has_no_gap_and_no_repetition() -> None:
    first = [parse_lines(file(*(train_line(step, 1.0) for step in range(10, 80, 10))))]
    zombie = [parse_lines(file(*(train_line(step, 7.0) for step in range(10, 200, 10))))]
    resumed_at_50 = [
        parse_lines(file(*(train_line(step, 2.0) for step in (60, 70)))),
        parse_lines(file(*(train_line(step, 2.0) for step in (80, 90)))),
    ]
    joined = join_attempts([zombie, first, resumed_at_50])
    assert [line.step for line in joined.training] == list(range(10, 100, 10))
    assert [line.loss["task"] for line in joined.training] == [1.0] * 5 + [2.0] * 4


def test_the_order_of_files_and_lines_does_not_matter() -> None:
    lines = [train_line(step) for step in range(10, 100, 10)] + [
        evaluation_line(step, 0.5) for step in (0, 50)
    ]
    random.Random(0).shuffle(lines)
    joined = join_attempts([[parse_lines(file(*lines[:5])), parse_lines(file(*lines[5:]))]])
    assert [line.step for line in joined.training] == list(range(10, 100, 10))
    assert [line.step for line in joined.evaluations] == [0, 50]


def test_attempts_without_metrics_leave_those_of_the_others() -> None:
    assert [line.step for line in join_attempts([[parse_lines(file(train_line(10)))], []]).training] == [10]
    assert join_attempts([[], []]).training == ()


def predictions(*samples: dict[str, object]) -> bytes:
    return json.dumps({"set": "digits", "classes": ["zero", "one"], "samples": samples}).encode()


def sample(
    picture: bytes = digit_png(1), label: int = 1, top: object = (("one", 0.9), ("zero", 0.1))
) -> dict:
    return {"png": base64.b64encode(picture).decode(), "label": label, "top": top}


def test_examples_say_whether_the_likeliest_class_is_right() -> None:
    name, examples = parse_predictions(predictions(sample(), sample(label=0)))
    assert name == "digits"
    assert [example.right for example in examples] == [True, False]
    assert examples[0].picture == digit_png(1)
    assert examples[0].media_type == "image/png"


def test_what_is_no_picture_or_has_no_class_is_left_out() -> None:
    _, examples = parse_predictions(
        predictions(sample(b"<svg onload='alert(1)'/>"), sample(label=2), {**sample(), "png": "§"}, sample())
    )
    assert len(examples) == 1


def test_no_more_examples_are_shown_than_the_format_has() -> None:
    assert len(parse_predictions(predictions(*[sample()] * 100))[1]) == MAX_EXAMPLES


@pytest.mark.parametrize("data", [b"", b"[]", b'{"set": "x"}', predictions(sample(top=()))])
def test_what_is_no_file_of_predictions_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_predictions(data)
