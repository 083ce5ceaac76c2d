"""Padded growth: the old model as it is, in a stream with room for more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import Fidelity, expand, plan_expansion
from modelchain_trainer.model import model_from
from tests.trainer.expansion.growth import Grown, batch_of, config_of, grow, trained
from tests.trainer.expansion.test_exact import EXACT_CASES
from tests.trainer.expansion.test_training import STEPS, closest_pair, train, writers

PADDED = ResolvedExpansion(width=WidthExpansion.PADDED)


def vision_width_grows(fields: tuple[dict[str, Any], dict[str, Any]]) -> bool:
    small, large = (config_of(**one) for one in fields)
    return large.vision.width > small.vision.width


@pytest.mark.parametrize(
    "case", [name for name, fields in EXACT_CASES.items() if not vision_width_grows(fields)]
)
def test_fp64_error_is_rounding_where_ln_pre_does_not_grow(case: str) -> None:
    small, large = (config_of(**fields) for fields in EXACT_CASES[case])
    assert plan_expansion(small, large, PADDED).fidelity is Fidelity.EXACT
    errors = grow(small, large, PADDED).errors()
    assert max(errors.image, errors.text, errors.similarity) < 1e-12


@pytest.mark.parametrize("case", [name for name, fields in EXACT_CASES.items() if vision_width_grows(fields)])
def test_a_wider_image_tower_is_kept_nearly_and_its_text_tower_exactly(case: str) -> None:
    small, large = (config_of(**fields) for fields in EXACT_CASES[case])
    assert plan_expansion(small, large, PADDED).fidelity is Fidelity.NEAR_EXACT
    errors = grow(small, large, PADDED).errors()
    assert errors.text < 1e-12
    assert errors.image < 5e-4
    assert errors.image_cosine > 1 - 1e-6


@pytest.mark.parametrize("widths", [(16, 32), (24, 32), (24, 40)], ids=str)
def test_a_wider_image_tower_is_exact_if_ln_pre_is_uniform(widths: tuple[int, int]) -> None:
    small, large = config_of(vision=(widths[0], 3)), config_of(vision=(widths[1], 4))
    model = trained(small)
    with torch.no_grad():
        model.get_parameter("visual.ln_pre.weight").fill_(0.7)
    state = expand(model.state_dict(), small, large, PADDED, seed=1)
    assert Grown(model, model_from(state, large), batch_of(small)).errors().image < 1e-12


@pytest.mark.parametrize("ratio", [4.0, 8.0], ids=["units as before", "twice the units a width"])
@pytest.mark.parametrize("width", [16, 32], ids=["width as before", "width x2"])
@pytest.mark.parametrize("depth", [DepthExpansion.IDENTITY, DepthExpansion.STACK])
def test_copies_part_and_everything_learns_within_ten_steps(
    depth: DepthExpansion, width: int, ratio: float
) -> None:
    small = config_of(vision=(16, 2), text=(16, 2), embed=12)
    large = config_of(vision=(width, 4), text=(width, 4), embed=18, vision_ratio=ratio, text_ratio=ratio)
    expansion = ResolvedExpansion(width=WidthExpansion.PADDED, depth=depth)
    grown = grow(small, large, expansion, strength=0.3)
    start = {name: tensor.clone() for name, tensor in grown.large.state_dict().items()}
    gradients = train(grown.large, batch_of(small, size=8), steps=STEPS)
    end = grown.large.state_dict()
    for tower in ("visual.", ""):
        steps = writers(end, tower) - writers(start, tower)
        assert closest_pair(steps) > 0.1, "no two channels of the stream receive the same updates"
        for block in range(4):
            name = f"{tower}transformer.resblocks.{block}."
            for leaf, parts, size in (("mlp.c_fc.weight", 1, 1), ("attn.in_proj_weight", 3, 8)):
                # What they read of the old stream: new entries are read differently from the start.
                steps = (end[name + leaf] - start[name + leaf])[:, :16].unflatten(0, (parts, -1, size))
                assert all(len(part) == 1 or closest_pair(part) > 1e-4 for part in steps), name + leaf
    for name, gradient in gradients[3].items():
        if name in {"token_embedding.weight", "logit_scale"} or name.endswith("in_proj_bias"):
            continue  # words that the batch has not; keys, of whose bias the softmax takes no notice
        rows = gradient.reshape(len(gradient), -1).abs()
        rounding = 1e-13 * rows.max()
        assert (rows.amax(dim=1) > rounding).all(), f"{name}: rows without gradient"
        assert (rows.amax(dim=0) > rounding).all(), f"{name}: columns without gradient"


def test_copies_in_kept_blocks_compute_the_same_before_training_and_nothing_reads_them() -> None:
    """The test above would show nothing if they already differed."""
    small, large = config_of(vision=(16, 2)), config_of(vision=(16, 2), vision_ratio=8.0)
    state = grow(small, large, PADDED).large.state_dict()
    name = "visual.transformer.resblocks.1.mlp."
    rows, columns = state[f"{name}c_fc.weight"], state[f"{name}c_proj.weight"]
    assert torch.equal(rows[:64], rows[64:])
    assert columns[:, :64].any()
    assert not columns[:, 64:].any()
