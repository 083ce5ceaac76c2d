"""What the table of evaluation types says, held against the resource."""

from __future__ import annotations

import pytest

from modelchain.evaluations import EVALUATIONS, higher_is_better, leading_metrics, metrics_of, own_fields
from modelchain.spec import EvaluationDataSpec, EvaluationSpec, EvaluationType
from modelchain.tasks import TASKS


def spec(kind: EvaluationType, name: str = "val", **fields: object) -> EvaluationSpec:
    data = EvaluationDataSpec(shards=["a.tar"])
    return EvaluationSpec(name=name, type=kind, data=data).model_copy(update=fields)


@pytest.mark.parametrize("kind", EvaluationType)
def test_every_type_is_of_a_task_and_its_words_fit_together(kind: EvaluationType) -> None:
    evaluation = EVALUATIONS[kind]
    assert any(kind in task.evaluations for task in TASKS.values())
    given = set(evaluation.metrics(spec(kind, seeds=2)))
    assert given >= set(evaluation.leading)
    assert given >= evaluation.falling
    assert set(evaluation.names) <= given
    assert set(evaluation.one_of) <= evaluation.fields


@pytest.mark.parametrize(("of_data", "block"), [(False, EvaluationSpec), (True, EvaluationDataSpec)])
def test_fields_are_those_of_the_resource(
    of_data: bool, block: type[EvaluationSpec | EvaluationDataSpec]
) -> None:
    known = {info.alias or name for name, info in block.model_fields.items()}
    named = {field for one in EVALUATIONS.values() for field in (one.data_fields if of_data else one.fields)}
    assert named <= known
    assert set(own_fields(of_data=of_data)) == named


@pytest.mark.parametrize("kind", [kind for kind in EvaluationType if "classes" in EVALUATIONS[kind].fields])
def test_few_classes_have_no_best_five(kind: EvaluationType) -> None:
    assert "val/top5" in metrics_of(spec(kind))
    assert "val/top5" not in metrics_of(spec(kind, classes=["cat", "dog"]))


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("a/top1", True), ("a/imageToText@1", True), ("a/loss", False), ("a/perplexity", False)],
)
def test_which_way_is_better(metric: str, higher: bool) -> None:
    assert higher_is_better(metric) is higher


def test_what_is_measured_throughout_leads_what_is_measured_at_the_end() -> None:
    sets = [
        spec(EvaluationType.FINE_TUNE, "tuned"),
        spec(EvaluationType.RETRIEVAL, "pairs"),
        spec(EvaluationType.ZERO_SHOT, "digits"),
    ]
    assert leading_metrics(sets) == ("digits/top1", "pairs/imageToText@1", "pairs/loss", "tuned/top1")
