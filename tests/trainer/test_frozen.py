"""Stages of no epochs: they hold weights, which can teach and be grown out of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelchain.commit import hash_file
from modelchain.errors import ConfigurationError, MissingInputError
from modelchain.resolved import ResolvedStage
from modelchain_trainer.expansion import expand
from modelchain_trainer.position import Position
from tests.trainer.test_trunk import lines_of, manifest_of, weights_of

StageOf = Callable[..., ResolvedStage]
Train = Callable[..., Position]


@pytest.fixture
def small(stage_of: StageOf, train: Train) -> ResolvedStage:
    """A stage whose averaged weights are published."""
    stage = stage_of("averaged", training={"emaDecay": 0.9, "learningRate": 1e-2})
    train(stage)
    return stage


@pytest.fixture
def held(small: ResolvedStage, stage_of: StageOf, train: Train) -> ResolvedStage:
    """A stage that holds its weights."""
    path = weights_of(small)
    weights = {"uri": str(path.parent), "sha256": hash_file(path).sha256}
    stage = stage_of("held", epochs=0, fromWeights=weights)
    train(stage, "uid-2-nonce")
    return stage


def test_weights_from_elsewhere_are_published_as_they_are(small: ResolvedStage, held: ResolvedStage) -> None:
    manifest = manifest_of(held)
    assert (manifest.steps, manifest.samples, manifest.macs, manifest.trunk) == (0, 0, 0.0, None)
    before, after = (load_file(weights_of(stage)) for stage in (small, held))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [line["kind"] for line in lines_of(held)] == ["evaluation"]


def test_weights_in_a_file_of_torch_are_held_likewise(
    small: ResolvedStage, stage_of: StageOf, train: Train, tmp_path: Path
) -> None:
    path = tmp_path / "epoch_3.pt"
    state = load_file(weights_of(small))
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    given = {"uri": str(path), "sha256": hash_file(path).sha256}
    stage = stage_of("of-a-file", epochs=0, fromWeights=given)
    train(stage, "uid-2-nonce")
    after = load_file(weights_of(stage))
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["w.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_weights_under_other_names_are_held_likewise(
    name: str, whole_folder: bool, small: ResolvedStage, stage_of: StageOf, train: Train, tmp_path: Path
) -> None:
    """As one file, and as the only weights in a folder of a hub."""
    path, published = tmp_path / name, weights_of(small)
    state = load_file(published)
    if name.endswith(".bin"):
        torch.save(state, path)
    else:
        shutil.copy(published, path)
    if whole_folder:
        shutil.copy(published.parent / "open_clip_config.json", tmp_path)
    given = {"uri": str(tmp_path if whole_folder else path), "sha256": hash_file(path).sha256}
    stage = stage_of("renamed", epochs=0, fromWeights=given)
    if whole_folder and name == "w.safetensors":
        with pytest.raises(
            MissingInputError, match=r"open_clip_pytorch_model\.bin or pytorch_model\.bin; give a folder"
        ):
            train(stage, "uid-2-nonce")
        return
    train(stage, "uid-2-nonce")
    after = load_file(weights_of(stage))
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


def test_weights_that_do_not_fit_are_named_with_the_stage(
    small: ResolvedStage, stage_of: StageOf, train: Train
) -> None:
    path = weights_of(small)
    given = {"uri": str(path.parent), "sha256": hash_file(path).sha256}
    narrow = stage_of("narrow", embed_dim=8, epochs=0, fromWeights=given)
    with pytest.raises(
        ConfigurationError,
        match=r"open_clip_model\.safetensors: stage narrow can't start from these weights \(fromWeights\): embedDim: "
        r"embedDim shrinks from \d+ to 8; make it at least \d+, or start from a smaller model",
    ):
        train(narrow, "uid-2-nonce")


def test_weights_that_transformers_has_written_are_held_likewise(
    stage_of: StageOf, train: Train, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    stage = stage_of("of-transformers")
    config: Any = stage.model_config_
    vision, text = config.vision, config.text
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=config.embed_dim,
            vision_config={
                "hidden_size": vision.width,
                "intermediate_size": vision.hidden_width,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.width // vision.head_width,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "hidden_act": "gelu",
            },
            text_config={
                "hidden_size": text.width,
                "intermediate_size": text.hidden_width,
                "num_hidden_layers": text.layers,
                "num_attention_heads": text.heads,
                "max_position_embeddings": text.context_length,
                "hidden_act": "gelu",
            },
        )
    )
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    given = {"uri": str(path.parent), "sha256": hash_file(path).sha256}
    held = stage_of("of-transformers", epochs=0, fromWeights=given)
    train(held)
    after = load_file(weights_of(held))
    assert torch.equal(after["visual.proj"], theirs.visual_projection.weight.T)
    assert torch.equal(after["token_embedding.weight"], theirs.text_model.embeddings.token_embedding.weight)


def test_what_is_measured_of_an_averaged_model_is_what_is_published(
    small: ResolvedStage, held: ResolvedStage
) -> None:
    """The held weights are those that `small` has published; their figures are from an evaluation of their own."""
    assert manifest_of(held).metrics == manifest_of(small).metrics
    (predictions, of_held) = ((weights_of(s).parent / "predictions.json").read_text() for s in (small, held))
    assert predictions == of_held


def test_held_weights_teach_and_are_grown_out_of(
    held: ResolvedStage, stage_of: StageOf, train: Train
) -> None:
    large = stage_of("large", width=32, predecessor=held)
    train(large, "uid-3-nonce")
    first, second = lines_of(large)[1:3]
    assert first["loss"]["distillation"] < 1e-6, "it begins at its teacher's embeddings"
    assert second["loss"]["distillation"] > 1e-6
    assert lines_of(large)[0]["metrics"] == manifest_of(held).metrics


def test_held_weights_teach_a_model_that_starts_fresh_and_has_another_shape(
    held: ResolvedStage, stage_of: StageOf, train: Train
) -> None:
    options: dict[str, Any] = {"width": 48, "layers": 1, "embed_dim": 24}
    teacher = stage_of("grown", predecessor=held).teacher
    assert teacher is not None
    alone = stage_of("alone", **options)
    fresh = stage_of("fresh", **options, teacher=teacher.model_dump(by_alias=True))
    train(alone, "uid-3-nonce")
    train(fresh, "uid-4-nonce")
    assert lines_of(fresh)[0]["metrics"] == lines_of(alone)[0]["metrics"], "both start from the seed"
    assert lines_of(fresh)[1]["loss"]["distillation"] > 0.01
    assert manifest_of(fresh).macs > manifest_of(alone).macs, "the teacher's passes are counted"
    assert manifest_of(fresh).predecessor is None
    before, after = (load_file(weights_of(stage)) for stage in (alone, fresh))
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_stage_may_hold_what_it_has_grown(held: ResolvedStage, stage_of: StageOf, train: Train) -> None:
    large: Any = stage_of("grown", width=32, layers=2, epochs=0, predecessor=held)
    train(large, "uid-3-nonce")
    state = load_file(weights_of(held))
    expected = expand(
        state, held.model_config_, large.model_config_, large.expansion, seed=large.training.seed
    )
    found = load_file(weights_of(large))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_held_weights_survive_an_attempt_killed_before_their_manifest(
    small: ResolvedStage, stage_of: StageOf, fork_server: Any, tmp_path: Path
) -> None:
    path = weights_of(small)
    weights = {"uri": str(path.parent), "sha256": hash_file(path).sha256}
    stage = stage_of("held", epochs=0, fromWeights=weights)
    assert fork_server.run(stage, tmp_path / "killed", failpoint="manifest") == -9
    assert fork_server.run(stage, tmp_path / "second") == 0
    assert manifest_of(stage).steps == 0
