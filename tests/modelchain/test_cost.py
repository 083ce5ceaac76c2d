"""Costs in closed form. tests/trainer/test_agrees_with_core.py holds them against what torch counts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelchain import catalogue
from modelchain.cost import (
    Plan,
    forward_macs,
    parameters,
    plan,
    scheduled_teacher_steps,
    stage_macs,
)
from modelchain.families import CLIP, LockedTower, ModelConfig
from modelchain.families.clip import text_macs
from modelchain.families.towers import (
    Pooling,
    VisionSpec,
    block_macs,
    computed_image_tower_macs,
    image_tokens,
    image_tower_macs,
)
from modelchain.memory import kept_bytes
from modelchain.resolve import resolve, resolve_distillation
from modelchain.spec import DistillationSpec
from modelchain.validation import load_chains
from tests.modelchain.documents import REMOVED, resolved

EXAMPLES = FilePath(__file__).parents[2] / "examples"


def cc3m(**spec: Any) -> Plan:
    (chain,) = load_chains(EXAMPLES / "cc3m.yaml")
    return plan(resolve(chain.model_copy(update={"spec": chain.spec.model_copy(update=spec)})))


def test_the_papers_chain_costs_what_the_paper_says() -> None:
    planned = cc3m()
    assert f"{planned.cost_ratio:.1%}" == "28.2%"  # published: 28 % of ViT-L alone
    assert f"{planned.speedup:.2f}" == "5.57"  # published: 5.68
    assert planned.largest.name == "vit-l"
    assert [stage.epochs for stage in planned.stages] == [128, 24, 18, 15]


def test_with_one_caption_the_chain_is_cheaper_still() -> None:
    (chain,) = load_chains(EXAMPLES / "cc3m.yaml")
    assert chain.spec.data is not None
    planned = cc3m(data=chain.spec.data.model_copy(update={"caption_keys": ["txt"]}))
    assert f"{planned.cost_ratio:.1%}" == "22.4%"
    assert f"{planned.speedup:.2f}" == "6.34"


@pytest.mark.parametrize(
    ("name", "image", "caption"),
    [
        ("ViT-T-16", 1.25, 0.76),
        ("ViT-S-16", 4.60, 1.69),
        ("ViT-B-16", 17.56, 2.98),
        ("ViT-L-16", 61.55, 6.65),
    ],
)
def test_forward_macs_of_the_family(name: str, image: float, caption: float) -> None:
    model = catalogue.find(name)
    assert CLIP.image_macs(model) / 1e9 == pytest.approx(image, abs=0.005)
    assert text_macs(model) / 1e9 == pytest.approx(caption, abs=0.005)
    assert forward_macs(model, 7) == CLIP.image_macs(model) + 7 * text_macs(model)


def test_parameters_of_openais_vit_b_32() -> None:
    assert parameters(catalogue.find("open_clip/ViT-B-32")) == 151_277_313  # as published with CLIP


def test_a_stage_costs_three_passes_and_one_of_its_predecessor() -> None:
    first, second, _ = resolved({("distillation", "schedule"): REMOVED}).stages
    small, large = forward_macs(first.model_config_, 2), forward_macs(second.model_config_, 2)
    seen = second.training.steps * 256
    assert stage_macs(first) == 3 * small * first.training.steps * 256
    assert stage_macs(second) == (3 * large + small) * seen


def test_patches_that_are_dropped_are_not_counted_of_the_student_but_of_its_teacher() -> None:
    for dropping, whole in zip(
        resolved({("training", "patchDropout"): 0.5}).stages, resolved().stages, strict=True
    ):
        assert isinstance(dropping.model_config_, ModelConfig)
        vision = dropping.model_config_.vision
        saved = image_tower_macs(vision) - image_tower_macs(vision, 0.5)
        blocks = vision.layers * block_macs(image_tokens(vision), vision)
        assert saved > 0.5 * (blocks - vision.layers * block_macs(1, vision))  # scores shrink with the square
        assert stage_macs(whole) - stage_macs(dropping) == 3 * saved * whole.training.steps * 256


@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.99])
def test_no_more_is_computed_of_an_image_than_counted(dropout: float) -> None:
    vision = VisionSpec(width=192, layers=2)
    counted, computed = image_tower_macs(vision, dropout), computed_image_tower_macs(vision, dropout)
    assert computed < counted, "the last block computes the class token alone"
    pooled = vision.model_copy(update={"pooling": Pooling.AVERAGE})
    assert computed_image_tower_macs(pooled, dropout) == image_tower_macs(pooled, dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_locked_tower_costs_one_pass_of_three_where_there_are_weights_to_lock(dropout: float) -> None:
    training: dict[Any, Any] = {("training", "patchDropout"): dropout}
    free = resolved(training).stages
    locked = resolved({**training, ("training", "lockedTower"): "Image"}).stages
    assert stage_macs(free[0]) == stage_macs(locked[0]), "the first stage starts from its seed"
    model = locked[1].model_config_
    assert isinstance(model, ModelConfig)
    tower = image_tower_macs(model.vision, dropout) + model.vision.width * model.embed_dim
    assert stage_macs(free[1]) - stage_macs(locked[1]) == 2 * tower * locked[1].training.steps * 256
    gpu = 80 * 2**30
    saved = kept_bytes(free[1], ranks=1, gpu_bytes=gpu) - kept_bytes(locked[1], ranks=1, gpu_bytes=gpu)
    parameters = CLIP.of_tower(model, LockedTower.IMAGE, 1)[0]
    assert saved == 3 * 4 * parameters, "gradients and two moments"


def test_distillation_that_is_off_saves_the_predecessors_pass() -> None:
    first, second, _ = resolved({("distillation",): {"weight": 0}}).stages
    assert stage_macs(second) == 3 * forward_macs(second.model_config_, 2) * second.training.steps * 256
    planned = plan(resolved({("distillation",): {"weight": 0}}))
    assert [stage.teacher_samples for stage in planned.stages] == [0, 0, 0]
    assert first.training.steps > 0


def test_macs_up_to_a_step_grow_to_those_of_the_stage() -> None:
    stage = resolved({("distillation", "schedule", "endWeight"): 0}).stages[1]
    steps = stage.training.steps
    costs = [stage_macs(stage, until_step=step) for step in range(steps + 1)]
    assert costs[0] == 0 and costs[-1] == stage_macs(stage) == stage_macs(stage, until_step=steps + 5)
    each = [after - before for before, after in pairwise(costs)]
    with_teacher, without = each[0], each[-1]
    assert with_teacher > without
    assert each == [with_teacher] * -(-steps // 2) + [without] * (steps // 2)  # schedule ends at half


def test_alone_means_the_baselines_epochs_over_the_stages_own_data() -> None:
    planned = plan(resolved({("baseline",): {"epochs": 10}, ("stages", 1, "data"): {"samples": 256 * 7 + 3}}))
    assert planned.stages[1].alone_macs == 3 * planned.stages[1].macs_per_sample * 10 * 7 * 256
    assert planned.family_macs == sum(stage.alone_macs for stage in planned.stages)
    assert planned.cost_ratio == planned.chain_macs / planned.stages[2].alone_macs
    assert planned.speedup == planned.family_macs / planned.chain_macs


def test_a_single_stage_costs_exactly_what_it_costs_alone() -> None:
    planned = plan(resolved({("stages",): [{"name": "only", "model": "ViT-T-16"}]}))
    assert (planned.cost_ratio, planned.speedup) == (1, 1)


schedules = st.builds(
    lambda weight, until, end: {
        "weight": weight,
        "schedule": {"type": "Linear", "until": until, "endWeight": end},
    },
    st.sampled_from([0, 0.98, 15.6]),
    st.floats(0.001, 1) | st.sampled_from([0.1, 0.3, 0.5, 0.7, 1]),
    st.sampled_from([0, 0.5, 20]),
) | st.sampled_from([{"weight": 0}, {"weight": 0.98}])


@given(schedules, st.integers(1, 300))
def test_the_predecessor_runs_in_the_steps_with_a_weight(distillation: dict[str, Any], steps: int) -> None:
    spec = resolve_distillation(DistillationSpec.model_validate(distillation))
    counts = [scheduled_teacher_steps(spec, steps, until_step=step) for step in range(steps + 1)]
    running = [after - before for before, after in pairwise(counts)]
    start, end = spec.weight, spec.schedule.end_weight or 0.0
    if spec.schedule.type == "Constant":
        assert running == [int(start > 0)] * steps
        return
    assert counts[-1] == scheduled_teacher_steps(spec, steps)
    for step, runs in enumerate(running):
        share = step / (steps * (spec.schedule.until or 0))
        weight = end if share >= 1 else start + share * (end - start)
        assert runs == int(weight > 0), step
