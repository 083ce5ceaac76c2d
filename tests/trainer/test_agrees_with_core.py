"""What the core computes without torch, held against torch: costs, growth rules, the distillation schedule."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modelchain import catalogue, cost
from modelchain.errors import ConfigurationError
from modelchain.families import CLIP, LockedTower, ModelConfig, Pooling, TextSpec, VisionSpec
from modelchain.families.clip import text_macs
from modelchain.growth import unbuildable, ungrowable
from modelchain.resolve import resolve_distillation
from modelchain.resolved import ResolvedExpansion, ResolvedStage
from modelchain.spec import DistillationSpec
from modelchain_trainer.expansion import expand, plan_expansion
from modelchain_trainer.model.build import parameter_shapes
from modelchain_trainer.model.open_clip_config import to_open_clip
from modelchain_trainer.schedule import distillation_weight
from tests.trainer.stages import smallest_stage

TINY = ModelConfig(
    embed_dim=32,
    vision=VisionSpec(image_size=28, patch_size=7, width=48, layers=3, head_width=16),
    text=TextSpec(context_length=16, width=32, layers=2, heads=2),
)
SQUAT = ModelConfig(
    embed_dim=48,
    quick_gelu=True,
    vision=VisionSpec(image_size=64, patch_size=8, width=80, layers=1, head_width=20, mlp_ratio=2.5),
    text=TextSpec(context_length=77, width=96, layers=5, heads=3, mlp_ratio=1.3),
)
ODD = ModelConfig(
    embed_dim=7,
    vision=VisionSpec(image_size=33, patch_size=11, width=24, layers=2, head_width=8, mlp_ratio=4.3637),
    text=TextSpec(context_length=5, width=24, layers=1, heads=1),
)
NAMED = (
    "ViT-T-16",
    "ViT-C-16",
    "ViT-M-16",
    "ViT-BL-16",
    "open_clip/ViT-B-32-quickgelu",
    "open_clip/ViT-B-16-plus-240",
    "open_clip/ViT-S-16-alt",
)
PLAIN = [name for name in catalogue.names() if isinstance(catalogue.find_any(name), ModelConfig)]
COUNTED = {
    "tiny": TINY,
    "mean": TINY.model_copy(
        update={
            "vision": TINY.vision.model_copy(
                update={"pooling": Pooling.AVERAGE, "input_norm": False, "layer_scale": 0.1}
            )
        }
    ),
    "text that is not causal": TINY.model_copy(
        update={"text": TINY.text.model_copy(update={"causal": False})}
    ),
    "squat": SQUAT,
    "odd": ODD,
    **{name: catalogue.find(name) for name in NAMED},
}


@pytest.fixture(scope="module")
def open_clip_class() -> Any:
    """open_clip's own model. Ours gives the same embeddings with fewer operations, so it is no yardstick."""
    from open_clip.model import CLIP

    return CLIP


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_those_that_torch_counts_in_open_clips_model(name: str, open_clip_class: Any) -> None:
    config = COUNTED[name]
    with torch.device("meta"):  # shapes without numbers: the largest model takes no memory
        model = open_clip_class(**cast("dict[str, Any]", to_open_clip(config)["model_cfg"]))
        image_BCHW = torch.empty(1, 3, config.vision.image_size, config.vision.image_size)
        tokens_BT = torch.zeros(1, config.text.context_length, dtype=torch.long)
    assert _counted_macs(lambda: model.encode_image(image_BCHW)) == CLIP.image_macs(config)
    assert _counted_macs(lambda: model.encode_text(tokens_BT)) == text_macs(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters(config)


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
@pytest.mark.parametrize("tower", [None, *LockedTower])
def test_a_steps_macs_are_those_that_torch_counts_with_a_tower_locked(
    tower: LockedTower | None, open_clip_class: Any
) -> None:
    with torch.device("meta"):
        model = open_clip_class(**cast("dict[str, Any]", to_open_clip(TINY)["model_cfg"]))
        images_BCHW = torch.empty(1, 3, TINY.vision.image_size, TINY.vision.image_size)
        tokens_BT = torch.zeros(1, TINY.text.context_length, dtype=torch.long)
    if tower is LockedTower.IMAGE:
        model.lock_image_tower()
    elif tower is LockedTower.TEXT:
        model.lock_text_tower()
        model.text_projection.requires_grad_(False)

    def step() -> None:
        image, text = model.encode_image(images_BCHW), model.encode_text(tokens_BT)
        (image.sum() + text.sum()).backward()

    stage = ResolvedStage.model_validate(_stage(TINY, tower))
    # No gradient flows into the pixels: the first layer of the image tower has two passes, not three.
    patches = (TINY.vision.image_size // TINY.vision.patch_size) ** 2
    pixels = patches * 3 * TINY.vision.patch_size**2 * TINY.vision.width
    left_out = 0 if tower is LockedTower.IMAGE else pixels
    steps = stage.training.steps * stage.training.global_batch_size
    assert _counted_macs(step) == cost.stage_macs(stage) / steps - left_out


def _stage(config: ModelConfig, tower: LockedTower | None) -> dict[str, Any]:
    training = {"lockedTower": tower}
    return smallest_stage(
        modelConfig=config.model_dump(mode="json", by_alias=True), training=training, store={"uri": "store"}
    )


def _counted_macs(forward: Any) -> float:
    """What torch counts; it counts a multiply-accumulate as two operations."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", PLAIN)
def test_parameters_are_those_of_the_trainers_model(name: str) -> None:
    config = catalogue.find(name)
    assert sum(shape.numel() for shape in parameter_shapes(config).values()) == cost.parameters(config)


sizes = st.builds(
    lambda embed, width, layers, head, ratio, text, heads, text_layers, context, gelu: ModelConfig(
        embed_dim=embed,
        quick_gelu=gelu,
        vision=VisionSpec(
            width=width, layers=layers, head_width=head, mlp_ratio=ratio, image_size=32, patch_size=8
        ),
        text=TextSpec(width=text, layers=text_layers, heads=heads, context_length=context),
    ),
    *(st.sampled_from([8, 16]), st.sampled_from([16, 24, 32]), st.integers(1, 3), st.sampled_from([8, 16])),
    *(
        st.sampled_from([0.01, 2.0, 4.0]),
        st.sampled_from([16, 32]),
        st.sampled_from([1, 2, 3]),
        st.integers(1, 2),
    ),
    *(st.sampled_from([16, 77]), st.booleans()),
)


@settings(max_examples=200, deadline=None)
@given(sizes, sizes)
def test_validation_accepts_exactly_the_growth_that_the_trainer_can_do(
    small: ModelConfig, large: ModelConfig
) -> None:
    if [*unbuildable(small), *unbuildable(large)] or [*ungrowable(small, large)]:
        with pytest.raises(ConfigurationError):
            plan_expansion(small, large)
        return
    state = {name: torch.zeros(shape) for name, shape in parameter_shapes(small).items()}
    grown = expand(state, small, large, ResolvedExpansion(), seed=0)
    assert {name: tensor.shape for name, tensor in grown.items()} == parameter_shapes(large)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([0.0, 0.98, 15.6]),
    st.sampled_from([0.0, 0.5]),
    st.floats(0.01, 1) | st.sampled_from([0.1, 0.3, 0.7, 1.0]),
    st.integers(1, 200),
    st.sampled_from(["Linear", "Constant"]),
)
def test_the_plan_counts_the_teacher_in_exactly_the_steps_that_the_trainer_runs_it(
    weight: float, end: float, until: float, steps: int, kind: str
) -> None:
    schedule = {"type": kind} | ({"until": until, "endWeight": end} if kind == "Linear" else {})
    spec = resolve_distillation(DistillationSpec.model_validate({"weight": weight, "schedule": schedule}))
    running = [distillation_weight(spec, step, steps) > 0 for step in range(steps)]
    for until_step in range(steps + 1):
        assert cost.scheduled_teacher_steps(spec, steps, until_step=until_step) == sum(running[:until_step])
