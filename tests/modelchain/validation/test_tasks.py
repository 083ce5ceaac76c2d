"""A chain of one task with what belongs to another: each has its own message."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest

from modelchain.resolve import resolve
from modelchain.validation import check_file
from tests.modelchain.documents import REMOVED, Path, document

VISION: dict[str, Any] = {"imageSize": 32, "patchSize": 8, "width": 64, "layers": 2, "headWidth": 16}
LAST = ("stages", 1, "classifierConfig")

PROBE: dict[str, Any] = {
    "name": "val",
    "type": "LinearProbe",
    "data": {"shards": ["s3://data/val.tar"]},
    "trainData": {"shards": ["s3://data/train.tar"]},
}


def classifier() -> dict[Path, Any]:
    """What makes the document a chain of two classifiers, anew each time."""
    return {
        ("task",): "Classification",
        ("data", "captionKeys"): REMOVED,
        ("data", "classKey"): "cls",
        ("evaluation",): [{"name": "val", "type": "Accuracy", "data": {"shards": ["s3://data/val.tar"]}}],
        ("stages",): [
            {"name": "small", "classifierConfig": {"classes": 3, "vision": VISION}},
            {
                "name": "base",
                "classifierConfig": {"classes": 3, "vision": VISION | {"width": 96, "layers": 3}},
            },
        ],
    }


TEXTS = {
    "embedDim": 64,
    "vision": VISION,
    "text": {"width": 64, "layers": 2, "heads": 4},
}


def test_a_chain_of_classifiers_is_valid_and_resolves(tmp_path: FilePath) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(classifier())))
    (checked,) = check_file(path)
    assert checked.chain is not None, checked.problems
    small, base = resolve(checked.chain).stages
    assert small.folder.startswith("stages/classifier-64x2-p8-3-")
    assert base.model_config_ == checked.chain.spec.stages[1].written("classifierConfig")
    assert small.digest != base.digest


def test_the_label_and_the_weight_of_logits_decide_the_weights() -> None:
    from modelchain.spec import ModelChain

    def digests(changes: dict[Path, Any]) -> list[str]:
        chain = ModelChain.model_validate(document(classifier() | changes))
        return [stage.digest for stage in resolve(chain).stages]

    assert digests({("data", "classKey"): "label"})[0] != digests({})[0]
    by_default = classifier()
    del by_default["data", "classKey"]
    chain = ModelChain.model_validate(document(by_default))
    assert [stage.digest for stage in resolve(chain).stages] == digests({}), "cls is the default"
    heavier = digests({("distillation", "logitsWeight"): 2})
    assert (heavier[0] == digests({})[0], heavier[1] == digests({})[1]) == (True, False)


MISTAKES: list[tuple[dict[Path, Any], str | Path, str, str]] = [
    (
        {("task",): "Clip"},
        "spec.stages[0].classifierConfig",
        "a model of task Classification, and the chain's is Clip",
        "write modelConfig",
    ),
    (
        {LAST: REMOVED, ("stages", 1, "modelConfig"): TEXTS},
        "spec.stages[1].modelConfig",
        "a model of task Clip, and the chain's is Classification",
        "write classifierConfig",
    ),
    (
        {LAST: REMOVED, ("stages", 1, "model"): "ViT-S-16"},
        "spec.stages[1].model",
        "models by name are of task Clip",
        "write classifierConfig",
    ),
    ({("stages", 1, "model"): "ViT-S-16"}, LAST, "both model and classifierConfig", "remove one"),
    ({("stages", 1, "modelConfig"): TEXTS}, LAST, "both modelConfig and classifierConfig", "remove one"),
    (
        {LAST: REMOVED},
        "spec.stages[1].model",
        "the stage has no model",
        "write it out under classifierConfig",
    ),
    (
        {(*LAST, "classes"): 4},
        "spec.stages[1].classifierConfig.classes",
        "the number of classes is 4, not 3",
        "write 3",
    ),
    (
        {(*LAST, "vision", "width"): 48},
        "spec.stages[1].classifierConfig.vision.width",
        "the vision width shrinks from 64 to 48",
        "at least 64",
    ),
    (
        {(*LAST, "vision", "headWidth"): 40},
        "spec.stages[1].classifierConfig.vision.headWidth",
        "heads of width 40 do not divide a width of 96",
        "a multiple of 40",
    ),
    (
        {("data", "captionKeys"): ["txt"]},
        "spec.data.captionKeys",
        "captionKeys is read by task Clip, and the chain's is Classification",
        "remove it",
    ),
    (
        {("evaluation", 0, "type"): "Retrieval"},
        "spec.evaluation[0].type",
        "can't be evaluated on a set of type Retrieval",
        "write type: Accuracy",
    ),
    (
        {("evaluation", 0, "templates"): ["a {}"]},
        "spec.evaluation[0].templates",
        "only ZeroShot sets have templates, this one is Accuracy",
        "remove it",
    ),
    (
        {("evaluation", 0, "type"): "LinearProbe"},
        "spec.evaluation[0].trainData",
        "a LinearProbe set needs labelled samples to train on",
        "name their shards under trainData",
    ),
    (
        {("evaluation", 0, "trainData"): {"shards": ["s3://data/train.tar"]}},
        "spec.evaluation[0].trainData",
        "only LinearProbe and FineTune sets have trainData, this one is Accuracy",
        "remove it",
    ),
    (
        {("evaluation", 0): PROBE | {"everySteps": 10}},
        "spec.evaluation[0].everySteps",
        "a LinearProbe set is evaluated once, at the end of a stage",
        "remove it",
    ),
    (
        {("evaluation", 0): PROBE | {"fineTune": {"epochs": 2}}},
        "spec.evaluation[0].fineTune",
        "only FineTune sets have fineTune, this one is LinearProbe",
        "write type: FineTune",
    ),
    (
        {("evaluation", 0): PROBE | {"trainData": {"shards": ["s3:data/a.tar"]}}},
        "spec.evaluation[0].trainData.shards[0]",
        "lacks slashes",
        "write s3://bucket/prefix",
    ),
    (
        {("evaluation", 0, "classes"): ["cat", "dog"]},
        "spec.evaluation[0].classes",
        '2 names, but the classifier of "small" has 3 classes',
        "name all 3, or none",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: str(mistake[1]))
def test_each_mistake_is_said_with_its_remedy(
    mistake: tuple[dict[Path, Any], str | Path, str, str], tmp_path: FilePath
) -> None:
    changes, field, says, remedy = mistake
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(classifier() | changes)))
    (checked,) = check_file(path)
    wanted = "spec.stages[1].classifierConfig" if field == LAST else field
    found = [problem for problem in checked.problems if problem.path == wanted]
    assert found, checked.problems
    assert says in found[0].message
    assert remedy in found[0].remedy


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({("data", "classKey"): "cls"}, "classKey is read by task Classification, and the chain's is Clip"),
        ({("distillation", "logitsWeight"): 2}, "logitsWeight is read by task Classification"),
        ({("evaluation", 0, "type"): "Accuracy"}, "can't be evaluated on a set of type Accuracy"),
    ],
)
def test_a_clip_chain_has_no_use_for_labels(changes: dict[Path, Any], says: str, tmp_path: FilePath) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(changes)))
    (checked,) = check_file(path)
    assert any(says in problem.message for problem in checked.problems), checked.problems
