"""The sigmoid loss: its gradients against autograd on one rank and on several, its weights in open_clip, its place in
digests and growth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelchain import cost
from modelchain.families import ModelConfig
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain, ResolvedExpansion, ResolvedStage
from modelchain.spec import LossName
from modelchain.validation import check_file
from modelchain_trainer import losses
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.expansion import expand
from modelchain_trainer.losses import Features, LossAndGradients, sigmoid_loss
from modelchain_trainer.model import build_model, load_weights, save_weights
from modelchain_trainer.model.build import parameter_shapes
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.position import Position
from modelchain_trainer.step import TrainStep
from tests.modelchain.documents import Path as FieldPath
from tests.modelchain.documents import chain, document
from tests.trainer.expansion.growth import config_of, trained
from tests.trainer.ranks import on_ranks
from tests.trainer.test_losses import rows
from tests.trainer.test_step import batch, config, stage

ROWS, CAPTIONS, SIZE = 12, 2, 24
STUDENT = Features(rows(0, ROWS, SIZE), rows(1, CAPTIONS, ROWS, SIZE))
SCALE, BIAS = torch.tensor(7.0).double(), torch.tensor(-3.0).double()


def biased(made: ModelConfig) -> ModelConfig:
    return made.model_copy(update={"logit_bias": True})


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("chunk", [2**26, 1])
def test_loss_and_gradients_are_those_of_the_definition(
    world_size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk)
    log_scale = SCALE.log().requires_grad_()
    image, text, bias = (x.clone().requires_grad_() for x in (STUDENT.image, STUDENT.text, BIAS))
    signs = 2 * torch.eye(ROWS, dtype=torch.float64) - 1
    expected = torch.zeros((), dtype=torch.float64)
    for column in text:
        logits = log_scale.exp() * image @ column.T + bias
        expected = expected - functional.logsigmoid(signs * logits).sum() / (ROWS * CAPTIONS)
    expected.backward()

    b = ROWS // world_size

    def work(group: Group) -> LossAndGradients:
        mine = slice(group.rank * b, (group.rank + 1) * b)
        return sigmoid_loss(Features(STUDENT.image[mine], STUDENT.text[:, mine]), SCALE, BIAS, group)

    results = on_ranks(world_size, work) if world_size > 1 else [work(Group())]
    found: dict[str, Any] = {
        "loss": sum(result.task for result in results),
        "image": torch.cat([result.feature_gradients.image for result in results]),
        "text": torch.cat([result.feature_gradients.text for result in results], dim=1),
        "scale": sum(result.log_scale_gradient for result in results),
        "bias": sum(result.bias_gradient for result in results if result.bias_gradient is not None),
    }
    wanted: dict[str, Tensor | None] = {
        "loss": expected.detach(),
        "image": image.grad,
        "text": text.grad,
        "scale": log_scale.grad,
        "bias": bias.grad,
    }
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-13, msg=name)


def test_a_step_trains_the_bias_and_the_contrastive_loss_leaves_it() -> None:
    for loss, moves in ((LossName.SIGMOID, True), (LossName.CONTRASTIVE, False)):
        made_for = stage(loss=loss, micro_batch_size=5, weight_decay=0.0)
        model = build_model(biased(config(32, 24)), seed=1)
        assert model.logit_bias is not None
        assert model.logit_bias.item() == -10
        assert model.logit_scale.item() == pytest.approx(math.log(10))
        optimizer = AdamW(model.named_parameters(), made_for.training)
        step = TrainStep(model, None, None, optimizer, made_for, torch.device("cpu"))
        step.run(batch(0), 1)
        assert (model.logit_bias.item() != -10) == moves


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
def test_open_clip_loads_the_weights_with_scale_and_bias(tmp_path: Path) -> None:
    import open_clip

    made = biased(config_of(context=16))
    model = trained(made, dtype=torch.float32)
    assert model.logit_bias is not None
    save_weights(model, made, tmp_path)
    theirs: Any = open_clip.create_model(f"local-dir:{tmp_path}")
    assert torch.equal(theirs.logit_bias, model.logit_bias)
    assert torch.equal(theirs.logit_scale, model.logit_scale)
    side = made.vision.image_size
    images = torch.randn(3, 3, side, side)
    torch.testing.assert_close(
        theirs.encode_image(images, normalize=True), model.encode_image(images), rtol=1e-4, atol=1e-5
    )
    state, read = load_weights(tmp_path)
    assert read == made
    assert torch.equal(state["logit_bias"], model.logit_bias)


def test_growth_keeps_the_bias_and_costs_count_it() -> None:
    small, large = biased(config_of()), biased(config_of(vision=(32, 3)))
    state = trained(small).state_dict()
    grown = expand(state, small, large, ResolvedExpansion(), seed=0)
    assert torch.equal(grown["logit_bias"], state["logit_bias"])
    assert sum(shape.numel() for shape in parameter_shapes(large).values()) == cost.parameters(large)


def test_the_loss_is_in_the_digest_and_gives_named_models_a_bias() -> None:
    def by_loss(changes: dict[FieldPath, Any]) -> ResolvedChain:
        return resolve(chain(changes))

    before, after = by_loss({}), by_loss({("training", "loss"): "Sigmoid"})
    assert by_loss({("training", "loss"): "Contrastive"}) == before
    for one, other in zip(before.stages, after.stages, strict=True):
        assert one.digest != other.digest
        assert isinstance(other.model_config_, ModelConfig)
        assert other.model_config_.logit_bias


def test_a_stage_can_not_change_the_loss(tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    changes: dict[FieldPath, Any] = {("stages", 2, "training"): {"loss": "Sigmoid"}}
    path.write_text(json.dumps(document(changes)))
    (checked,) = check_file(path)
    (problem,) = checked.problems
    assert "the bias of the logits (training.loss: Sigmoid) is true, not false" in problem.message
    assert problem.remedy == "write training.loss: Contrastive"


def test_a_chain_of_two_learns_by_it(
    stage_of: Callable[..., ResolvedStage], train: Callable[..., Position]
) -> None:
    def sigmoid(name: str, **options: Any) -> ResolvedStage:
        made = stage_of(name, epochs=8, **options)
        assert isinstance(made.model_config_, ModelConfig)
        training = made.training.model_copy(update={"loss": LossName.SIGMOID})
        return made.model_copy(update={"training": training, "model_config_": biased(made.model_config_)})

    small = sigmoid("small")
    train(small)
    large = sigmoid("large", width=32, predecessor=small)
    train(large, "uid-2-nonce")
    (folder,) = (Path(large.store.uri) / large.folder / "attempts").iterdir()
    lines = [
        json.loads(line)
        for path in sorted(folder.glob("metrics-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    losses = [line["loss"]["task"] for line in lines if line["kind"] == "train"]
    tops = [line["metrics"]["squares/top1"] for line in lines if line["kind"] == "evaluation"]
    assert losses[-1] < losses[0]
    assert tops[-1] > 0.5, "a guess is right in a quarter"
