"""What is wrong with spec.baseline, each with its field and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain.validation import check_object
from tests.modelchain.documents import REMOVED, Path, document


def problems(changes: dict[Path, Any]) -> list[tuple[str, str, str]]:
    found = check_object("chain.yaml", document(changes)).problems
    return [(problem.path, problem.message, problem.remedy) for problem in found]


@pytest.mark.parametrize(
    ("block", "path", "message", "remedy"),
    [
        ({"train": ["smal"]}, "spec.baseline.train[0]", 'no stage is named "smal"', "did you mean small?"),
        (
            {"train": ["tiny", "huge-one"]},
            "spec.baseline.train[1]",
            'no stage is named "huge-one"',
            "name stages (tiny, small, base), or [all]",
        ),
        (
            {"train": ["All of them"]},
            "spec.baseline.train[0]",
            'no stage is named "All of them"',
            "name stages (tiny, small, base), or [all]",
        ),
        ({"train": ["Base"]}, "spec.baseline.train[0]", 'no stage is named "Base"', "did you mean base?"),
        ({"train": ["tiny", "tiny"]}, "spec.baseline.train[1]", '"tiny" is named twice', "name it once"),
        (
            {"train": ["all"], "metric": "pets/top5"},
            "spec.baseline.metric",
            'no evaluation of "tiny" gives "pets/top5"',
            "did you mean pets/top1?",
        ),
        (
            {"train": ["all"], "metric": "birds/top1"},
            "spec.baseline.metric",
            'no evaluation of "tiny" gives "birds/top1"',
            "",
        ),
        (
            {"train": ["all"], "metric": "top1"},
            "spec.baseline.metric",
            'no evaluation gives "top1"',
            "write one of val/loss, val/imageToText@1",
        ),
        (
            {"budgetMatched": True},
            "spec.baseline.budgetMatched",
            "nothing is trained alone that could be compared",
            "write train: [all] beside it, or remove it",
        ),
        (
            {"train": [], "metric": "pets/top1"},
            "spec.baseline.metric",
            "nothing is trained alone that could be compared",
            "write train: [all] beside it, or remove it",
        ),
    ],
)
def test_each_problem_has_its_field(block: dict[str, Any], path: str, message: str, remedy: str) -> None:
    ((where, what, how),) = problems({("baseline",): block})
    assert (where, what) == (path, message)
    assert remedy in how


def test_a_comparison_needs_an_evaluation() -> None:
    ((path, message, remedy),) = problems({("baseline",): {"train": ["all"]}, ("evaluation",): REMOVED})
    assert path == "spec.baseline.train"
    assert message.startswith("no evaluation set is measured on all of these models")
    assert remedy == "add a set to spec.evaluation"


def test_a_set_of_one_stage_alone_compares_no_others() -> None:
    own = [{"name": "own", "type": "ZeroShot", "data": {"shards": ["x.tar"]}, "classes": ["a", "b"]}]
    changes: dict[Path, Any] = {("evaluation",): REMOVED, ("stages", 1, "evaluation"): own}
    assert problems({**changes, ("baseline",): {"train": ["small"]}}) == []
    ((path, *_),) = problems({**changes, ("baseline",): {"train": ["all"]}})
    assert path == "spec.baseline.train"


def test_a_frozen_stage_is_nothing_to_compare_with() -> None:
    weights = {"uri": "s3://models/there", "sha256": "0" * 64}
    frozen: dict[Path, Any] = {
        ("stages", 0, "fromWeights"): weights,
        ("stages", 0, "training"): {"epochs": 0},
    }
    ((path, message, _),) = problems({**frozen, ("baseline",): {"train": ["tiny"], "epochs": 4}})
    assert (path, message) == (
        "spec.baseline.train[0]",
        '"tiny" holds existing weights and is not trained',
    )
    assert problems({**frozen, ("baseline",): {"train": ["all"], "epochs": 4}}) == []


def test_runs_are_bounded_since_each_is_a_stage_in_the_status() -> None:
    stages = [{"name": "s0", "model": "ViT-T-16"}]
    stages += [{"name": f"s{i}", "model": "ViT-T-16", "training": {"seed": i}} for i in range(1, 17)]
    changes: dict[Path, Any] = {("stages",): stages, ("baseline",): {"train": ["all"], "budgetMatched": True}}
    ((path, message, _),) = problems(changes)
    assert (path, message) == ("spec.baseline.train", "these are 34 runs")
    assert problems({**changes, ("baseline",): {"train": ["all"]}}) == []


def test_what_can_be_compared_is_accepted() -> None:
    for block in (
        {"train": ["all"]},
        {"train": ["base"], "metric": "val/textToImage@10", "budgetMatched": True},
    ):
        assert problems({("baseline",): block}) == []
