"""Chains with image towers of open_clip's: what they can't do is said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest

from modelchain.exactness import Fidelity, growth_changes
from modelchain.families import OPEN_CLIP, OpenClipConfig
from modelchain.growth import is_copy
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedStage
from modelchain.validation import check_file
from tests.modelchain.documents import Path, document

TEXT: dict[str, Any] = {"width": 384, "layers": 12, "heads": 6}
RESNET: dict[str, Any] = {"embedDim": 384, "vision": {"name": "resnet18"}, "text": TEXT}
OPENAI: dict[str, Any] = RESNET | {"vision": {"name": "RN50"}}
CONVNEXT: dict[str, Any] = RESNET | {"vision": {"name": "convnext_atto"}}
FRESH: dict[str, Any] = {"expansion": {"width": "Fresh"}}


def chain(model: dict[str, Any], **changes: Any) -> dict[Path, Any]:
    """A vision transformer that teaches a model with such an image tower."""
    return {("stages", 2): {"name": "net", "openClipConfig": model, **FRESH, **changes}}


def by_name(model: str, **changes: Any) -> dict[Path, Any]:
    """The same, with a model of open_clip's that is named."""
    return {("stages", 2): {"name": "net", "model": model, **FRESH, **changes}}


def two_nets(large: dict[str, Any]) -> dict[Path, Any]:
    """A model that starts with the weights of another."""
    return chain(RESNET) | {
        ("stages", 0): {"name": "small", "openClipConfig": RESNET},
        ("stages", 1): {"name": "net", "openClipConfig": large},
        ("stages", 2): {"name": "last", "model": "ViT-T-16", **FRESH},
    }


def problems(tmp_path: FilePath, changes: dict[Path, Any]) -> dict[str, tuple[str, str]]:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(changes)))
    (checked,) = check_file(path)
    return {problem.path: (problem.message, problem.remedy) for problem in checked.problems}


def stages(tmp_path: FilePath, changes: dict[Path, Any]) -> tuple[ResolvedStage, ...]:
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(document(changes)))
    (checked,) = check_file(path)
    assert checked.chain is not None, checked.problems
    return resolve(checked.chain).stages


def test_a_chain_across_architectures_is_valid_both_ways(tmp_path: FilePath) -> None:
    _, small, net = stages(tmp_path, chain(RESNET))
    assert net.predecessor is None
    assert net.teacher is not None
    assert net.teacher.name == small.name
    assert net.folder.startswith("stages/resnet18-224-")
    back: dict[Path, Any] = {
        ("stages", 0): {"name": "tiny", "model": "open_clip/RN50"},
        ("stages", 1): {"name": "b", "model": "ViT-S-16", **FRESH},
    }
    net, base, _ = stages(tmp_path, back)
    assert net.folder.startswith("stages/rn50-224-")
    assert base.teacher is not None
    assert base.teacher.model_config_ == net.model_config_


def test_a_sigmoid_loss_gives_the_model_its_bias(tmp_path: FilePath) -> None:
    net = stages(tmp_path, chain(RESNET) | {("training", "loss"): "Sigmoid"})[2]
    assert isinstance(net.model_config_, OpenClipConfig)
    assert net.model_config_.logit_bias


def test_what_is_at_its_default_is_not_in_the_digest() -> None:
    form = OPEN_CLIP.digest_form(OpenClipConfig.model_validate(RESNET))
    assert form == {"embedDim": 384, "vision": {"name": "resnet18"}, "text": TEXT}
    vision = {"normBatchSize": 16, "imageSize": 288, "mlpProjection": True}
    other = OpenClipConfig.model_validate(RESNET | {"vision": {"name": "resnet18", **vision}})
    assert OPEN_CLIP.digest_form(other) == form | {"vision": {"name": "resnet18", **vision}}


AT = "spec.stages[2].openClipConfig"
MISTAKES: list[tuple[dict[Path, Any], str, str, str]] = [
    (
        chain(RESNET | {"vision": {"name": "resnet19"}}),
        f"{AT}.vision.name",
        "there is no image tower 'resnet19' among open_clip's",
        "write resnet1",
    ),
    (
        chain(RESNET | {"vision": {"name": "mobilenetv3_small_050"}}),
        f"{AT}.vision.name",
        "open_clip's adapter can't project the features of mobilenetv3_small_050",
        "name another tower, or make it a stage of a chain of task Classification, under timmConfig",
    ),
    (
        chain(RESNET | {"vision": {"name": "resnet18", "imageSize": 100}}),
        f"{AT}.vision.imageSize",
        "an image of 100 pixels is no multiple of 32",
        "e.g. 96 or 128",
    ),
    (
        chain(RESNET | {"vision": {"name": "RN50x4"}}),
        f"{AT}.vision.imageSize",
        "RN50x4 sees images of 288 pixels, not of 224",
        "write 288",
    ),
    (
        chain(CONVNEXT | {"vision": {"name": "convnext_atto", "normBatchSize": 16}}),
        f"{AT}.vision.normBatchSize",
        "convnext_atto has no BatchNorm",
        "leave it out",
    ),
    (
        chain(RESNET | {"vision": {"name": "RN50", "mlpProjection": True}}),
        f"{AT}.vision.mlpProjection",
        "RN50 makes the embedding itself",
        "leave it out",
    ),
    (
        chain(RESNET | {"text": TEXT | {"heads": 5}}),
        f"{AT}.text.heads",
        "5 heads do not divide a width of 384",
        "make width a multiple of 5",
    ),
    (
        chain(RESNET, expansion={}),
        AT,
        "a model under openClipConfig can't grow out of one under modelConfig",
        "write expansion.width: Fresh",
    ),
    (
        chain(RESNET | {"text": TEXT | {"contextLength": 32}}),
        f"{AT}.text.contextLength",
        "contextLength is 32, not 77",
        "write 77",
    ),
    (
        two_nets(OPENAI),
        "spec.stages[1].openClipConfig.vision.name",
        "name is RN50, not resnet18, and models under openClipConfig do not grow",
        "write resnet18, or expansion.width: Fresh",
    ),
    (
        two_nets(RESNET | {"text": TEXT | {"layers": 13}}),
        "spec.stages[1].openClipConfig.text.layers",
        "layers is 13, not 12, and models under openClipConfig do not grow",
        "or expansion.width: Fresh",
    ),
    (
        chain(RESNET, training={"globalBatchSize": 80}),
        "spec.stages[2].training.globalBatchSize",
        '"net" norms 32 samples together (normBatchSize), which do not divide the 40 of each of 2 processes',
        "write a multiple of 64, e.g. 64",
    ),
    (
        chain(OPENAI, training={"gradientCheckpointing": True}),
        "spec.stages[2].training.gradientCheckpointing",
        '"net" has BatchNorm',
        "write gradientCheckpointing: false",
    ),
    (
        chain(CONVNEXT, training={"sharding": "Full"}),
        "spec.stages[2].training.sharding",
        '"net", a model under openClipConfig, can\'t lie in parts',
        "write sharding: Optimizer",
    ),
    (
        chain(CONVNEXT, training={"compile": True}),
        "spec.stages[2].training.compile",
        '"net", a model under openClipConfig, is not compiled',
        "write compile: false",
    ),
    (
        chain(CONVNEXT, training={"patchDropout": 0.5}),
        AT,
        '"net" has no patches that could be left out',
        "patchDropout: 0",
    ),
    (
        chain(RESNET, training={"microBatchSize": 16}),
        "spec.stages[2].training.microBatchSize",
        "which do not divide a micro-batch of 16",
        "write a multiple of 32, or a normBatchSize that divides it",
    ),
    *(
        (
            by_name("open_clip/RN50", training={"globalBatchSize": batch}),
            "spec.stages[2].training.globalBatchSize",
            f'"net" norms 32 samples together (normBatchSize), which do not divide the {batch // 2} of each of 2',
            f"the model out under openClipConfig with a normBatchSize that divides {batch // 2}",
        )
        for batch in (48, 1000)
    ),
    (
        by_name("open_clip/RN50", training={"microBatchSize": 16}),
        "spec.stages[2].training.microBatchSize",
        "which do not divide a micro-batch of 16",
        "write a multiple of 32, or the model out under openClipConfig with a normBatchSize that divides it",
    ),
    (
        by_name("open_clip/RN50", training={"gradientCheckpointing": True}),
        "spec.stages[2].training.gradientCheckpointing",
        '"net" has BatchNorm',
        "write gradientCheckpointing: false",
    ),
    (
        by_name("open_clip/convnext_base", training={"sharding": "Full"}),
        "spec.stages[2].training.sharding",
        '"net", open_clip/convnext_base, can\'t lie in parts',
        "write sharding: Optimizer",
    ),
    (
        by_name("open_clip/convnext_base", training={"compile": True}),
        "spec.stages[2].training.compile",
        '"net", open_clip/convnext_base, is not compiled',
        "write compile: false",
    ),
    (
        by_name("open_clip/convnext_base", training={"patchDropout": 0.5}),
        "spec.stages[2].model",
        '"net" has no patches that could be left out',
        "patchDropout: 0",
    ),
    (
        by_name("open_clip/RN50", expansion={}),
        "spec.stages[2].model",
        "a model under openClipConfig can't grow out of one under modelConfig",
        "write expansion.width: Fresh",
    ),
    (
        {
            ("stages", 0): {"name": "first", "model": "open_clip/RN50"},
            ("stages", 1): {"name": "net", "model": "open_clip/RN50x4"},
            ("stages", 2): {"name": "last", "model": "ViT-T-16", **FRESH},
        },
        "spec.stages[1].model",
        'the stage can\'t grow out of "first": models under openClipConfig do not grow',
        "write expansion.width: Fresh",
    ),
    (
        chain(RESNET | {"vision": {"name": "resnet-18"}}),
        f"{AT}.vision.name",
        '"resnet-18" is no model\'s name',
        "write resnet18",
    ),
    (
        chain({"embedDim": "wide", "vision": {"name": "resnet18"}, "text": TEXT}),
        f"{AT}.embedDim",
        "a whole number is needed",
        "write a whole number",
    ),
    (
        {("stages", 1, "model"): "open_clip/ViT-B-16-SigLIP"},
        "spec.stages[1].model",
        "'open_clip/ViT-B-16-SigLIP' and its like can't be stages: their tokenizers are on a model hub",
        "`modelchain models` lists those that can",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[1]}-{mistake[2][:20]}")
def test_what_it_can_not_do_is_said_with_its_remedy(
    mistake: tuple[dict[Path, Any], str, str, str], tmp_path: FilePath
) -> None:
    changes, field, says, remedy = mistake
    found = problems(tmp_path, changes)
    assert found.keys() == {field}
    assert says in found[field][0]
    assert remedy in found[field][1]


def test_weights_are_taken_at_another_size_of_images_and_of_groups(tmp_path: FilePath) -> None:
    """No parameter has these in its shape."""
    vision = {"name": "resnet18", "imageSize": 288, "normBatchSize": 16}
    small, large, _ = stages(tmp_path, two_nets(RESNET | {"vision": vision}))
    assert large.predecessor is not None
    assert is_copy(small.model_config_, large.model_config_)
    (change,) = growth_changes(small.model_config_, large.model_config_, large.expansion)
    assert (change.sizes, change.fidelity) == ("vision.imageSize 224 -> 288", Fidelity.INEXACT)
