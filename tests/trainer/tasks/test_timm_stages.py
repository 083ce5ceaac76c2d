"""Whole stages of timm's models: taught by a model of another architecture, teaching one, and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelchain.commit import hash_file
from modelchain.errors import ConfigurationError
from modelchain.families import TIMM, TimmConfig
from modelchain.resolved import ResolvedStage
from modelchain_trainer.model import load_weights, model_from
from modelchain_trainer.position import Position
from tests.trainer.model.test_timm_adapter import images
from tests.trainer.tasks.test_classification import CLASSES, STUDENT, Rows
from tests.trainer.tasks.test_classification import stage as classification_stage
from tests.trainer.tasks.two_steps import check_that_neither_ranks_nor_micro_batches_matter
from tests.trainer.tasks.whole_stages import published
from tests.trainer.test_trunk import prepared, trunk_of

StageOf = Callable[..., ResolvedStage]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("timm")]

MOBILENET = {"name": "mobilenetv3_small_050", "classes": 4, "imageSize": 32, "normBatchSize": 4}
VISION = {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16}
CONFIG = TimmConfig.model_validate(MOBILENET | {"classes": CLASSES})
BATCH = 16
TRANSFORMER = {"classes": 4, "vision": VISION}


def batch(seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Rows(pixels, torch.randint(CLASSES, (1, BATCH, 1), generator=generator))


@pytest.fixture
def stage(stage_of: StageOf) -> StageOf:
    """Makes stages of classifiers: `stage("net", MOBILENET, teacher=another)`; where it `grows`, out of that one."""

    def make(
        name: str,
        model: dict[str, Any],
        *,
        teacher: ResolvedStage | None = None,
        grows: bool = False,
        **changes: Any,
    ) -> ResolvedStage:
        made = stage_of(name, epochs=changes.pop("epochs", 3), predecessor=teacher, **changes)
        document = json.loads(made.to_json())
        document |= {"task": "Classification", "modelConfig": model}
        if not grows:
            document.pop("predecessor", None)
        document["data"]["classKey"] = "cls"
        (squares,) = document["evaluation"]
        document["evaluation"] = [
            {key: value for key, value in squares.items() if key != "templates"} | {"type": "Accuracy"}
        ]
        return ResolvedStage.model_validate(document)

    return make


def lines(stage: ResolvedStage, kind: str) -> list[dict[str, Any]]:
    files = sorted(published(stage).glob("metrics-*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_a_chain_goes_across_architectures_and_back(stage: StageOf, train: Callable[..., Position]) -> None:
    """A transformer teaches a convolutional network, which teaches a transformer; timm measures what we published."""
    small = stage("small", TRANSFORMER, epochs=8, training={"learningRate": 3e-3})
    train(small)
    net = stage("net", MOBILENET, teacher=small, epochs=20, training={"emaDecay": 0.5, "learningRate": 3e-3})
    train(net, "uid-2-nonce")
    large = stage("large", TRANSFORMER | {"vision": VISION | {"width": 32}}, teacher=net, epochs=8)
    train(large, "uid-3-nonce")
    for taught in (net, large):
        assert all(line["loss"]["distillation"] > 0 for line in lines(taught, "train")[:3])
    assert lines(net, "evaluation")[-1]["metrics"]["squares/top1"] > 0.5
    state, config = load_weights(published(net), TIMM)
    assert config == net.model_config_
    assert not torch.equal(state["net.bn1.running_mean"], torch.zeros(16))

    import timm

    theirs: Any = timm.create_model(f"local-dir:{published(net)}", pretrained=True).eval()
    ours = model_from(state, config).eval()
    torch.testing.assert_close(ours(images(3))[1], theirs(images(3)), rtol=1e-4, atol=1e-4)


def test_published_weights_are_held_at_another_size_of_groups_and_images(
    stage: StageOf, train: Callable[..., Position]
) -> None:
    """Under `gradientCheckpointing` and `microBatchSize: Auto` of the chain, with a batch that fills no group."""
    net = stage("net", MOBILENET)
    train(net)
    path = published(net) / "model.safetensors"
    weights = {"uri": str(path.parent), "sha256": hash_file(path).sha256}
    of_chain = {"gradientCheckpointing": True, "microBatchSize": 0}
    for name, changed in (("groups", {"normBatchSize": 32}), ("images", {"imageSize": 64})):
        held = stage(name, MOBILENET | changed, epochs=0, fromWeights=weights, training=of_chain)
        train(held, f"uid-{name}-nonce")
        state, config = load_weights(published(held), TIMM)
        assert config == held.model_config_
        before, _ = load_weights(published(net), TIMM)
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        assert "squares/top1" in lines(held, "evaluation")[-1]["metrics"]
        if "imageSize" not in changed:
            assert lines(held, "evaluation")[-1]["metrics"] == lines(net, "evaluation")[-1]["metrics"]
    no_such = r"model\.safetensors: stage other can't start from these weights .*name is resnet10t, not mobilenetv3_s"
    other = stage("other", MOBILENET | {"name": "resnet10t"}, epochs=0, fromWeights=weights)
    with pytest.raises(ConfigurationError, match=no_such):
        train(other, "uid-4-nonce")


def test_the_same_model_goes_on_from_a_trunk_with_its_moments(
    stage: StageOf, train: Callable[..., Position], tmp_path: Path
) -> None:
    stable = {"schedule": {"type": "WarmupStableDecay", "decayFraction": 0.25}}
    net = stage("net", MOBILENET, training=stable)
    train(net)
    trunk = {name: load_file(trunk_of(net) / f"{name}.safetensors") for name in ("model", "optimizer")}
    expansion = {"weights": "Trunk", "optimizerState": "Carried"}
    larger = MOBILENET | {"imageSize": 64, "normBatchSize": 8}
    for name, model in (("same", MOBILENET), ("larger-images", larger)):
        again = stage(name, model, teacher=net, grows=True, expansion=expansion)
        with prepared(again, tmp_path / name) as trained:
            weights, state = trained.model.state_dict(), trained.train_step.state_dict()
            assert all(torch.equal(weights[name], tensor) for name, tensor in trunk["model"].items())
            moments = [
                name for name in trunk["optimizer"] if name.startswith(("optimizer.mean", "optimizer.sq"))
            ]
            assert any(trunk["optimizer"][name].any() for name in moments)
            for name in (*moments, "optimizer.steps"):
                assert torch.equal(state[name], trunk["optimizer"][name]), name


def test_two_ranks_that_are_killed_go_on_with_the_same_bits(
    stage: StageOf, fork_server: Any, train: Callable[..., Position], tmp_path: Path
) -> None:
    """The statistics of BatchNorm and their average are part of a checkpoint."""
    small = stage("small", TRANSFORMER)
    train(small)
    kept = tmp_path / "kept"
    shutil.copytree(small.store.uri, kept)
    net = stage(
        "net",
        MOBILENET,
        teacher=small,
        training={"microBatchSize": 4, "emaDecay": 0.9, "sharding": "Optimizer"},
    )
    assert fork_server.run(net, tmp_path / "calm", ranks=2) == 0
    expected = load_file(published(net) / "model.safetensors")
    shutil.rmtree(small.store.uri)
    shutil.copytree(kept, small.store.uri)
    assert fork_server.run(net, tmp_path / "killed", ranks=2, failpoint="step:7") == -9
    assert fork_server.run(net, tmp_path / "again", ranks=2) == 0
    found = load_file(published(net) / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(("ranks", "size"), [(1, 4), (2, 8), (2, 4)])
def test_a_step_depends_on_neither_ranks_nor_micro_batches(ranks: int, size: int) -> None:
    """In fp64, to rounding: gradients, and the statistics of BatchNorm."""
    made_for = classification_stage(micro_batch_size=size).model_copy(update={"model_config_": CONFIG})
    check_that_neither_ranks_nor_micro_batches_matter(
        made_for, STUDENT, batch(seed=3), ranks=ranks, moves="net.bn1.running_mean"
    )
