"""Chains with models of timm: what they can't do is said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest

from modelchain.cost import parameters
from modelchain.exactness import Fidelity, growth_changes
from modelchain.families import TIMM, ClassifierConfig, TimmConfig, VisionSpec
from modelchain.growth import is_copy
from modelchain.memory import kept_bytes, sharding_of
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedStage
from modelchain.spec import Sharding
from modelchain.validation import check_file
from tests.modelchain.documents import Path, document
from tests.modelchain.validation.test_tasks import classifier

MODEL = ("stages", 1, "timmConfig")
RESNET: dict[str, Any] = {"name": "resnet18", "classes": 3}
CONVNEXT: dict[str, Any] = {"name": "convnext_atto", "classes": 3}


def chain(model: dict[str, Any], **changes: Any) -> dict[Path, Any]:
    """A classifier of ours that teaches a model of timm."""
    made: dict[Any, Any] = classifier() | {("training", "globalBatchSize"): 128}
    made["stages",][1] = {"name": "net", "timmConfig": model, "expansion": {"width": "Fresh"}} | changes
    return made


def two_nets(large: dict[str, Any]) -> dict[Path, Any]:
    """A model of timm that starts with the weights of another."""
    made = chain(large, expansion={})
    made["stages",][0] = {"name": "small", "timmConfig": RESNET}
    return made


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
    small, net = stages(tmp_path, chain(RESNET))
    assert net.predecessor is None
    assert net.teacher is not None
    assert net.teacher.name == small.name
    assert net.folder.startswith("stages/resnet18-224-3-")
    back = chain(CONVNEXT)
    back["stages",].reverse()
    back["stages",][0].pop("expansion")
    back["stages",][1]["expansion"] = {"width": "Fresh"}
    net, base = stages(tmp_path, back)
    assert base.teacher is not None
    assert base.teacher.model_config_ == net.model_config_


def test_what_is_normed_together_decides_the_weights() -> None:
    form = TIMM.digest_form(TimmConfig(**RESNET))
    assert form == {"name": "resnet18", "classes": 3, "imageSize": 224}
    assert TIMM.digest_form(TimmConfig(**RESNET, norm_batch_size=16)) == form | {"normBatchSize": 16}


MISTAKES: list[tuple[dict[Path, Any], str, str, str]] = [
    (
        chain(RESNET | {"name": "resnet19"}),
        "spec.stages[1].timmConfig.name",
        "there is no model 'resnet19' among timm's",
        "write resnet1",
    ),
    (
        chain(RESNET | {"name": "ResNet-18"}),
        "spec.stages[1].timmConfig.name",
        '"ResNet-18" is no model\'s name',
        "write resnet18",
    ),
    (
        chain(RESNET | {"imageSize": 100}),
        "spec.stages[1].timmConfig.imageSize",
        "an image of 100 pixels is no multiple of 32",
        "e.g. 96 or 128",
    ),
    (
        chain(CONVNEXT | {"normBatchSize": 16}),
        "spec.stages[1].timmConfig.normBatchSize",
        "convnext_atto has no BatchNorm",
        "leave it out",
    ),
    (
        chain(RESNET, expansion={}),
        "spec.stages[1].timmConfig",
        "a model under timmConfig can't grow out of one under classifierConfig",
        "write expansion.width: Fresh",
    ),
    (
        chain(RESNET | {"classes": 4}),
        "spec.stages[1].timmConfig.classes",
        "the number of classes is 4, not 3",
        "write 3",
    ),
    (
        two_nets(RESNET | {"classes": 4}),
        "spec.stages[1].timmConfig.classes",
        'the stage can\'t grow out of "small": classes is 4, not 3, and models under timmConfig do not grow',
        "write 3, or expansion.width: Fresh",
    ),
    (
        two_nets({"name": "resnet34", "classes": 3}),
        "spec.stages[1].timmConfig.name",
        "name is resnet34, not resnet18",
        "write resnet18, or expansion.width: Fresh",
    ),
    (
        chain(RESNET, training={"globalBatchSize": 80}),
        "spec.stages[1].training.globalBatchSize",
        '"net" norms 32 samples together (normBatchSize), which do not divide the 40 of each of 2 processes',
        "write a multiple of 64, e.g. 64",
    ),
    (
        chain(RESNET) | {("job", "nodes"): 8},
        "spec.training.globalBatchSize",
        '"net" norms 32 samples together (normBatchSize), which do not divide the 8 of each of 16 processes',
        "or a normBatchSize that divides 8",
    ),
    (
        chain(RESNET, training={"microBatchSize": 16}),
        "spec.stages[1].training.microBatchSize",
        "which do not divide a micro-batch of 16",
        "write a multiple of 32",
    ),
    (
        chain(RESNET, training={"gradientCheckpointing": True}),
        "spec.stages[1].training.gradientCheckpointing",
        '"net" has BatchNorm, whose statistics a second forward pass would count twice',
        "write gradientCheckpointing: false",
    ),
    (
        chain(CONVNEXT, training={"sharding": "Full"}),
        "spec.stages[1].training.sharding",
        '"net", a model under timmConfig, can\'t lie in parts',
        "write sharding: Optimizer in the stage's training",
    ),
    (
        chain(CONVNEXT, training={"compile": True}),
        "spec.stages[1].training.compile",
        '"net", a model under timmConfig, is not compiled',
        "write compile: false",
    ),
    (
        chain(CONVNEXT, training={"patchDropout": 0.5}),
        "spec.stages[1].timmConfig",
        '"net" has no patches that could be left out',
        "patchDropout: 0",
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


def test_what_works_with_one_norm_over_samples_or_none_is_accepted(tmp_path: FilePath) -> None:
    several = {("job", "nodes"): 2}
    assert not problems(tmp_path, chain(RESNET) | several)
    assert not problems(
        tmp_path, chain(RESNET | {"normBatchSize": 16}, training={"microBatchSize": 16}) | several
    )
    assert not problems(tmp_path, chain(CONVNEXT, training={"gradientCheckpointing": True}) | several)


def test_weights_are_taken_at_another_size_of_images_and_of_groups(tmp_path: FilePath) -> None:
    """No parameter has these in its shape."""
    changes = two_nets(RESNET | {"imageSize": 288, "normBatchSize": 16})
    small, large = stages(tmp_path, changes)
    assert large.predecessor is not None
    assert is_copy(small.model_config_, large.model_config_)
    (change,) = growth_changes(small.model_config_, large.model_config_, large.expansion)
    assert (change.sizes, change.fidelity) == ("imageSize 224 -> 288", Fidelity.INEXACT)
    assert not is_copy(small.model_config_, TimmConfig(name="resnet18", classes=4))
    vision = VisionSpec(width=64, layers=1)
    grown = ClassifierConfig(classes=3, vision=VisionSpec(width=64, layers=2))
    assert not is_copy(ClassifierConfig(classes=3, vision=vision), grown)


def test_what_is_asked_of_steps_is_not_asked_of_weights_that_are_held(tmp_path: FilePath) -> None:
    """Their values are the chain's, for the stages that are trained."""
    made = chain(RESNET)
    made["stages",].reverse()
    held, taught = made["stages",]
    held.pop("expansion")
    held |= {"fromWeights": {"uri": "s3://models/net", "sha256": "0" * 64}, "training": {"epochs": 0}}
    taught["expansion"] = {"width": "Fresh"}
    of_steps = {"globalBatchSize": 80, "microBatchSize": 8, "compile": True, "gradientCheckpointing": True}
    made |= {("training", name): value for name, value in of_steps.items()}
    assert not problems(tmp_path, made)
    held["training"] = {"epochs": 1}
    assert problems(tmp_path, made).keys() == {
        f"spec.training.{name}" for name in ("globalBatchSize", "compile", "gradientCheckpointing")
    }


def test_a_model_that_can_not_lie_in_parts_is_never_chosen_to(tmp_path: FilePath) -> None:
    """Neither as a student nor as a teacher, whose size counts in full."""
    small, net = stages(tmp_path, chain(CONVNEXT))
    assert sharding_of(net, ranks=8, gpu_bytes=2**20) is Sharding.OPTIMIZER
    assert net.teacher is not None
    taught = small.model_copy(
        update={
            "teacher": net.teacher.model_copy(update={"model_config_": net.model_config_}),
            "training": small.training.model_copy(update={"sharding": Sharding.FULL}),
        }
    )
    alone = taught.model_copy(update={"teacher": None})
    more = kept_bytes(taught, ranks=8, gpu_bytes=2**30) - kept_bytes(alone, ranks=8, gpu_bytes=2**30)
    assert more == 4 * parameters(net.model_config_)
