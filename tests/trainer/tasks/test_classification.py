"""A step of Classification against the definition of its loss, and whole stages on coloured squares."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelchain.commit import verify_stage
from modelchain.errors import UserDataError
from modelchain.families import CLASSIFIER, ClassifierConfig
from modelchain.resolved import ResolvedDistillation, ResolvedStage
from modelchain.spec import EvaluationSpec
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model import build_model, load_weights, model_from
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.position import Position
from modelchain_trainer.step import TrainStep
from modelchain_trainer.tasks import classification, task_of
from tests.squares import COLOURS, write_squares
from tests.trainer.expansion.families import classifier
from tests.trainer.ranks import on_ranks
from tests.trainer.results import manifest_of
from tests.trainer.tasks.whole_stages import check_a_kill_changes_no_bit, published
from tests.trainer.test_step import gradients, relative_error
from tests.trainer.test_step import stage as clip_stage

StageOf = Callable[..., ResolvedStage]

BATCH, CLASSES, WEIGHT, LOGITS = 12, 5, 1.5, 0.7
STUDENT, TEACHER = classifier(width=32, image=16), classifier(width=16, image=16)


@dataclass(frozen=True)
class Rows:
    images: Tensor
    tokens: Tensor


def stage(**training: object) -> ResolvedStage:
    made = clip_stage(distillation=ResolvedDistillation(weight=WEIGHT, logits_weight=LOGITS), **training)
    return made.model_copy(update={"task": "Classification", "model_config_": STUDENT})


def batch(seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (BATCH, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Rows(images, torch.randint(CLASSES, (1, BATCH, 1), generator=generator))


def train_step(
    made_for: ResolvedStage, group: Group | None = None
) -> tuple[TrainStep, dict[str, torch.nn.Parameter]]:
    model, teacher = build_model(STUDENT, seed=1).double(), build_model(TEACHER, seed=2).double()
    projections = task_of(made_for).projections(STUDENT, TEACHER)
    assert projections is not None
    projections.double()
    named = dict(model.named_parameters())
    named |= {f"projections.{name}": parameter for name, parameter in projections.named_parameters()}
    optimizer = AdamW(named.items(), made_for.training)
    cpu = torch.device("cpu")
    return TrainStep(model, teacher, projections, optimizer, made_for, cpu, group), named


def test_loss_and_gradients_are_those_of_the_definition() -> None:
    trained, named = train_step(stage())
    model, teacher = build_model(STUDENT, seed=1).double(), build_model(TEACHER, seed=2).double()
    projection = named["projections.features"].detach().clone().requires_grad_()
    rows = batch()
    images, labels = normalize(rows.images, torch.float64), rows.tokens[0, :, 0]
    features, logits = model(images)
    with torch.no_grad():
        taught_features, taught_logits = teacher(images)
    task = functional.cross_entropy(logits, labels)
    unit, taught = functional.normalize(features, dim=-1), functional.normalize(taught_features, dim=-1)
    probabilities = taught_logits.softmax(-1)
    divergence = (probabilities * (taught_logits.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    distance = (unit @ projection.T - taught).square().sum(-1).mean()
    distillation = WEIGHT * (distance + LOGITS * divergence)
    (task + distillation).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert projection.grad is not None
    expected["projections.features"] = projection.grad

    reading = trained.run(rows, 0).read()
    assert reading.loss["task"] == pytest.approx(task.item(), rel=1e-12)
    assert reading.loss["distillation"] == pytest.approx(distillation.item(), rel=1e-12)
    assert reading.logit_scale is None
    assert relative_error(gradients(named), expected) < 1e-10


@pytest.mark.parametrize("size", [3, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch(size: int) -> None:
    whole, whole_named = train_step(stage())
    split, split_named = train_step(stage(micro_batch_size=size))
    expected, found = whole.run(batch(), 0).read(), split.run(batch(), 0).read()
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert relative_error(gradients(split_named), gradients(whole_named)) < 1e-10


def test_a_step_that_overflows_on_one_rank_is_skipped_on_all() -> None:
    def work(group: Group) -> tuple[bool, bool]:
        trained, named = train_step(stage(), group)
        if group.rank == 1:
            trained.published.register_forward_hook(lambda *made: [torch.inf * one for one in made[-1]])
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        rows, share = batch(), slice(group.rank * BATCH // 2, (group.rank + 1) * BATCH // 2)
        reading = trained.run(Rows(rows.images[share], rows.tokens[:, share]), 0).read()
        return reading.skipped, all(torch.equal(named[name], tensor) for name, tensor in before.items())

    assert on_ranks(2, work) == [(True, True), (True, True)]


def test_pixels_are_normalised_once_for_teacher_and_student(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(
        classification,
        "normalize",
        lambda images, dtype: (rows.append(len(images)), normalize(images, dtype))[1],
    )
    trained, _ = train_step(stage(micro_batch_size=BATCH // 3))
    trained.run(batch(), 0)
    assert rows == [BATCH // 3] * 3


def test_a_grown_student_begins_at_its_teachers_features_and_probabilities() -> None:
    """The projection reads the copies that exact growth makes."""
    from modelchain.resolved import ResolvedExpansion
    from modelchain_trainer.expansion import expand

    for width in (32, 40, 48):
        student = classifier(width=width, layers=3, image=16)
        teacher = build_model(TEACHER, seed=2).double()
        model = model_from(
            expand(teacher.state_dict(), TEACHER, student, ResolvedExpansion(), seed=0), student
        )
        made_for = stage().model_copy(update={"model_config_": student})
        projections = task_of(made_for).projections(student, TEACHER)
        assert projections is not None
        projections.double()
        named = [
            *model.named_parameters(),
            *((f"projections.{n}", p) for n, p in projections.named_parameters()),
        ]
        step = TrainStep(
            model, teacher, projections, AdamW(named, made_for.training), made_for, torch.device("cpu")
        )
        assert step.run(batch(), 0).read().loss["distillation"] < 1e-9


@pytest.fixture
def classifier_stage(stage_of: StageOf) -> StageOf:
    def make(name: str, *, width: int = 16, classes: int = 4, **changes: Any) -> ResolvedStage:
        made = stage_of(name, epochs=6, **changes)
        document = json.loads(made.to_json())
        vision = document["modelConfig"]["vision"] | {"width": width}
        document |= {"task": "Classification", "modelConfig": {"classes": classes, "vision": vision}}
        document["data"]["classKey"] = "cls"
        (squares,) = document["evaluation"]
        document["evaluation"] = [
            {key: value for key, value in squares.items() if key != "templates"} | {"type": "Accuracy"}
        ]
        return ResolvedStage.model_validate(document)

    return make


def test_a_chain_learns_the_squares_and_publishes_what_it_has_measured(
    classifier_stage: StageOf, train: Callable[..., Position]
) -> None:
    small = classifier_stage("small")
    train(small)
    large = classifier_stage("large", width=48, predecessor=small)
    train(large, "uid-2-nonce")
    lines = [
        json.loads(line)
        for path in sorted(published(large).glob("metrics-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    evaluations = [line["metrics"] for line in lines if line["kind"] == "evaluation"]
    small_metrics = verify_stage(FolderStore(Path(small.store.uri)), small.folder, small.digest)
    assert small_metrics is not None
    assert evaluations[0] == pytest.approx(small_metrics.metrics, rel=1e-5), "growth keeps the function"
    assert evaluations[-1]["squares/top1"] > 0.9
    assert evaluations[-1].keys() == {"squares/loss", "squares/top1"}
    trained = [line for line in lines if line["kind"] == "train"]
    assert all("logitScale" not in line for line in trained)
    assert trained[0]["loss"]["distillation"] < 1e-6 < trained[-1]["loss"]["distillation"]
    state, config = load_weights(published(large), CLASSIFIER)
    assert config == large.model_config_
    assert isinstance(config, ClassifierConfig)
    assert state["head.weight"].shape == (4, 48)
    predictions = json.loads((published(large) / "predictions.json").read_text())
    assert predictions["classes"] == list(COLOURS)
    right = [sample["top"][0][0] == list(COLOURS)[sample["label"]] for sample in predictions["samples"]]
    assert sum(right) > 0.8 * len(right)


def test_pictures_and_classes_without_any_text_are_enough(
    classifier_stage: StageOf, train: Callable[..., Position], tmp_path: Path
) -> None:
    data = {"shards": [write_squares(tmp_path / "bare", captions={})]}
    made = classifier_stage("bare", data=data)
    sets = [
        {"name": "accuracy", "type": "Accuracy", "data": data},
        {"name": "probe", "type": "LinearProbe", "data": data, "trainData": data},
        {"name": "tuned", "type": "FineTune", "data": data, "trainData": data, "fineTune": {"epochs": 2}},
    ]
    train(made.model_copy(update={"evaluation": tuple(map(EvaluationSpec.model_validate, sets))}))
    manifest = manifest_of(made)
    assert manifest is not None
    assert manifest.metrics.keys() >= {"accuracy/top1", "probe/top1", "tuned/top1"}
    assert min(manifest.metrics[f"{name}/top1"] for name in ("accuracy", "probe")) > 0.9


def test_a_label_that_the_head_does_not_have_ends_the_stage_with_what_to_do(
    classifier_stage: StageOf, train: Callable[..., Position]
) -> None:
    with pytest.raises(UserDataError, match=r"sample 0\d+ of .*: the \.cls is 3, but the classes are 0 to 2"):
        train(classifier_stage("narrow", classes=3).model_copy(update={"evaluation": ()}))


@pytest.mark.slow
def test_an_attempt_that_is_killed_goes_on_with_the_same_bits(
    classifier_stage: StageOf, fork_server: Any, tmp_path: Path
) -> None:
    check_a_kill_changes_no_bit(classifier_stage("calm"), fork_server, tmp_path)
