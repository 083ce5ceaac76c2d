"""Whole stages with image towers of open_clip's: taught by a vision transformer, teaching one, and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelchain.families import OPEN_CLIP, ModelConfig, OpenClipConfig
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision
from modelchain_trainer.model import build_model, load_weights, model_from
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.position import Position
from modelchain_trainer.step import TrainStep
from tests.trainer.model.test_open_clip_adapter import PLAIN, ROTARY, images, named, tokens
from tests.trainer.tasks.two_steps import check_that_neither_ranks_nor_micro_batches_matter
from tests.trainer.tasks.whole_stages import published
from tests.trainer.test_step import Rows
from tests.trainer.test_step import stage as contrastive_stage

StageOf = Callable[..., ResolvedStage]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("open_clip")]

TEXT = {"contextLength": 16, "width": 16, "layers": 1, "heads": 1}
NET = {
    "embedDim": 16,
    "vision": {"name": "resnet10t", "imageSize": 32, "normBatchSize": 4},
    "text": TEXT | {"causal": False},
}
CONFIG = OpenClipConfig.model_validate(NET)
BATCH = 16


@pytest.fixture
def stage(stage_of: StageOf) -> StageOf:
    """Makes stages: `stage("net", NET, teacher=another)`; `None` is a vision transformer."""

    def make(
        name: str,
        model: dict[str, Any] | None = None,
        *,
        teacher: ResolvedStage | None = None,
        **changes: Any,
    ) -> ResolvedStage:
        made = stage_of(name, epochs=changes.pop("epochs", 3), predecessor=teacher, **changes)
        document = json.loads(made.to_json())
        if model is not None:
            document["modelConfig"] = model
        document.pop("predecessor", None)
        return ResolvedStage.model_validate(document)

    return make


def lines(stage: ResolvedStage, kind: str) -> list[dict[str, Any]]:
    files = sorted(published(stage).glob("metrics-*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_a_chain_goes_across_architectures_and_back(stage: StageOf, train: Callable[..., Position]) -> None:
    """A transformer teaches a ResNet, which teaches a transformer; open_clip computes what we published."""
    fast = {"learningRate": 3e-3}
    small = stage("small", epochs=8, training=fast)
    train(small)
    net = stage("net", NET, teacher=small, epochs=8, training={"emaDecay": 0.5, **fast})
    train(net, "uid-2-nonce")
    large = stage("large", teacher=net, width=32, epochs=8)
    train(large, "uid-3-nonce")
    for taught in (net, large):
        assert all(line["loss"]["distillation"] > 0 for line in lines(taught, "train")[:3])
    assert lines(net, "evaluation")[-1]["metrics"]["squares/top1"] > 0.5
    state, config = load_weights(published(net), OPEN_CLIP)
    assert config == net.model_config_
    assert not torch.equal(state["visual.trunk.bn1.running_mean"], torch.zeros(64))

    import open_clip

    theirs: Any = open_clip.create_model(f"local-dir:{published(net)}").eval()
    ours: Any = model_from(state, config).eval()
    torch.testing.assert_close(ours.encode_image(images(3), False), theirs.encode_image(images(3)))
    texts = torch.nn.functional.pad(tokens(3), (0, 4))
    torch.testing.assert_close(ours.encode_text(texts, False), theirs.encode_text(texts))


def test_two_ranks_that_are_killed_go_on_with_the_same_bits(
    stage: StageOf, fork_server: Any, train: Callable[..., Position], tmp_path: Path
) -> None:
    """The statistics of BatchNorm and their average are part of a checkpoint."""
    small = stage("small")
    train(small)
    kept = tmp_path / "kept"
    shutil.copytree(small.store.uri, kept)
    training = {"microBatchSize": 4, "emaDecay": 0.9, "sharding": "Optimizer"}
    net = stage("net", NET, teacher=small, training=training)
    assert fork_server.run(net, tmp_path / "calm", ranks=2) == 0
    expected = load_file(published(net) / "open_clip_model.safetensors")
    shutil.rmtree(small.store.uri)
    shutil.copytree(kept, small.store.uri)
    assert fork_server.run(net, tmp_path / "killed", ranks=2, failpoint="step:7") == -9
    assert fork_server.run(net, tmp_path / "again", ranks=2) == 0
    found = load_file(published(net) / "open_clip_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("config", [ROTARY, PLAIN], ids=named)
def test_in_bf16_a_copy_of_its_teacher_has_nothing_to_learn_from_it(config: OpenClipConfig) -> None:
    """Its positions and tokens are in fp32 as the student's are."""
    made_for = contrastive_stage(precision=Precision.BF16, global_batch_size=2)
    model, teacher = (build_model(config, seed=1) for _ in range(2))
    optimizer = AdamW(model.named_parameters(), made_for.training)
    of = made_for.model_copy(update={"model_config_": config})
    trained = TrainStep(model, teacher, None, optimizer, of, torch.device("cpu"))
    side = config.image_side
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    losses = [trained.run(Rows(pixels, tokens(2)[None]), step).read().loss for step in range(2)]
    assert losses[0]["distillation"] == 0
    assert losses[1]["distillation"] > 0


@pytest.mark.parametrize(("ranks", "size"), [(1, 4), (2, 8), (2, 4)])
def test_a_step_depends_on_neither_ranks_nor_micro_batches(ranks: int, size: int) -> None:
    """In fp64, to rounding: gradients, and the statistics of BatchNorm, of which each group counts once."""
    vision = {"imageSize": 32, "patchSize": 16, "width": 16, "layers": 1, "headWidth": 16}
    teacher = ModelConfig.model_validate({"embedDim": 24, "vision": vision, "text": TEXT})
    made_for = contrastive_stage(micro_batch_size=size).model_copy(update={"model_config_": CONFIG})
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    captions = torch.nn.functional.pad(tokens(2 * BATCH), (0, 4)).unflatten(0, (2, BATCH))
    check_that_neither_ranks_nor_micro_batches_matter(
        made_for, teacher, Rows(pixels, captions), ranks=ranks, moves="visual.trunk.bn1.running_mean"
    )
