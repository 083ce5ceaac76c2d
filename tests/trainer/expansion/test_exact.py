"""Exact growth keeps the function; METHOD.md, "Expansion that keeps the function"."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from modelchain.families import ModelConfig
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion
from modelchain_trainer.expansion import Fidelity, embedding_map, expand, plan_expansion
from modelchain_trainer.expansion.resize import resize_matrix
from modelchain_trainer.model import model_from
from tests.trainer.expansion.growth import Grown, batch_of, config_of, grow, trained

EXACT_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vision width x2": ({}, {"vision": (32, 2)}),
    "vision width x3": ({}, {"vision": (48, 2)}),
    "text width x2": ({}, {"text": (32, 2)}),
    "text width x1.25": ({"text": (32, 2)}, {"text": (40, 2)}),
    "text width x2.5": ({"text": (16, 2)}, {"text": (40, 2)}),
    "text width by one head of five": ({"text": (40, 2)}, {"text": (48, 2)}),
    "vision depth x2": ({}, {"vision": (16, 4)}),
    "vision depth 3 -> 5": ({"vision": (16, 3)}, {"vision": (16, 5)}),
    "text depth 1 -> 4": ({"text": (16, 1)}, {"text": (16, 4)}),
    "embedding 12 -> 20": ({}, {"embed": 20}),
    "embedding 12 -> 13": ({}, {"embed": 13}),
    "embedding 12 -> 40": ({}, {"embed": 40}),
    "vision MLP units x1.5": ({}, {"vision_ratio": 6.0}),
    "text MLP units 4 -> 4.7": ({}, {"text_ratio": 4.7}),
    "quick GELU": ({"quick_gelu": True}, {"quick_gelu": True, "vision": (32, 3), "text": (24, 3)}),
    "heads of another width": ({"head_width": 16}, {"head_width": 16, "vision": (32, 2), "text": (48, 2)}),
    "vision heads wider": ({"vision": (32, 2)}, {"vision": (64, 3), "vision_head": 16}),
    "heads wider and more of them": (
        {"vision": (16, 2), "text": (16, 2)},
        {"vision": (48, 2), "text": (36, 3), "vision_head": 12, "text_head": 12},
    ),
    "everything": (
        {"vision": (16, 2), "text": (24, 3), "embed": 12},
        {"vision": (48, 5), "text": (56, 4), "embed": 17, "vision_ratio": 5.0, "text_ratio": 4.3},
    ),
    "nothing": ({}, {}),
}

# The paper's family, widths divided by 8 (heads of 8 channels instead of 64): vision, text, embedding.
FAMILY: dict[str, tuple[tuple[int, int], tuple[int, int], int]] = {
    "T": ((24, 2), (32, 2), 16),
    "C": ((32, 2), (40, 2), 16),
    "S": ((48, 2), (48, 2), 16),
    "M": ((64, 2), (56, 2), 16),
    "B": ((96, 2), (64, 2), 16),
    "L": ((128, 4), (96, 2), 16),
    "BL": ((128, 2), (96, 2), 24),
}
PAIRS = ["T-S", "S-B", "B-L", "B-BL", "T-C", "C-S", "S-M", "M-B", "T-M", "C-M", "T-B", "T-L", "T-BL"]


def member(name: str) -> ModelConfig:
    vision, text, embed = FAMILY[name]
    return config_of(vision=vision, text=text, embed=embed)


@pytest.mark.parametrize("case", EXACT_CASES)
def test_fp64_error_is_rounding(case: str) -> None:
    small, large = (config_of(**fields) for fields in EXACT_CASES[case])
    assert plan_expansion(small, large).fidelity is Fidelity.EXACT
    errors = grow(small, large).errors()
    assert max(errors.image, errors.text, errors.similarity) < 1e-12


@pytest.mark.parametrize("case", ["everything", "text width x1.25", "embedding 12 -> 40"])
def test_fp32_error_is_rounding(case: str) -> None:
    small, large = (config_of(**fields) for fields in EXACT_CASES[case])
    grown = grow(small, large, dtype=torch.float32)
    errors = grown.errors()
    assert {parameter.dtype for parameter in grown.large.parameters()} == {torch.float32}
    assert max(errors.image, errors.text, errors.similarity) < 1e-5


@pytest.mark.parametrize("pair", PAIRS)
def test_neighbours_of_the_papers_family_keep_their_function(pair: str) -> None:
    small, large = (member(name) for name in pair.split("-"))
    errors = grow(small, large).errors()
    assert errors.text < 1e-12
    if large.vision.width % small.vision.width == 0:
        assert max(errors.image, errors.similarity) < 1e-12
    else:
        assert plan_expansion(small, large).fidelity is Fidelity.NEAR_EXACT
        assert errors.image < 5e-4
        assert errors.image_cosine > 1 - 1e-6


@pytest.mark.parametrize("pair", ["T-S", "S-B", "B-L", "B-BL"])
def test_every_image_finds_the_same_text_first(pair: str) -> None:
    """Zero-shot classes of every image in the same order, near-exact growth included."""
    small, large = (member(name) for name in pair.split("-"))
    grown = grow(small, large, dtype=torch.float32)
    images, classes = batch_of(small, seed=1, size=24).images.float(), batch_of(small, seed=2, size=8).tokens
    with torch.no_grad():
        rankings = [
            (model.encode_image(images) @ model.encode_text(classes).T).argsort(dim=-1, descending=True)
            for model in (grown.small, grown.large)
        ]
        scales = [float(model.logit_scale) for model in (grown.small, grown.large)]
    assert len(rankings[0][:, 0].unique()) > 2, "the images must not all look like one class"
    assert torch.equal(rankings[0], rankings[1])
    assert scales[0] == scales[1]


@pytest.mark.parametrize("widths", [(24, 32), (24, 40), (56, 64), (64, 72), (16, 40), (96, 128)], ids=str)
def test_a_vision_width_that_does_not_divide_is_kept_nearly(widths: tuple[int, int]) -> None:
    errors = grow(config_of(vision=(widths[0], 3)), config_of(vision=(widths[1], 3))).errors()
    assert errors.image < 5e-4
    assert errors.image_cosine > 1 - 1e-6


def test_a_vision_tail_of_one_channel_is_kept_nearly() -> None:
    """A tail of one has no second entry to keep the mean: still small."""
    small = config_of(vision=(16, 2), head_width=1, text=(8, 1))
    large = config_of(vision=(17, 2), head_width=1, text=(8, 1))
    assert grow(small, large).errors().image < 5e-3


def test_a_vision_width_that_does_not_divide_is_exact_if_ln_pre_is_uniform() -> None:
    small, large = config_of(vision=(24, 3)), config_of(vision=(40, 4))
    model = trained(small)
    with torch.no_grad():
        model.get_parameter("visual.ln_pre.weight").fill_(0.7)
    state = expand(model.state_dict(), small, large, ResolvedExpansion(), seed=1)
    errors = Grown(model, model_from(state, large), batch_of(small)).errors()
    assert errors.image < 1e-12


def test_growing_twice_is_as_exact_as_growing_once() -> None:
    configs = [
        config_of(vision=(16, 2), text=(16, 2), embed=12),
        config_of(vision=(32, 3), text=(24, 2), embed=14),
    ]
    configs.append(config_of(vision=(64, 5), text=(40, 3), embed=14))
    once = grow(configs[0], configs[1])
    state = expand(once.large.state_dict(), configs[1], configs[2], ResolvedExpansion(), seed=3)
    twice = Grown(once.large, model_from(state, configs[2]), once.batch).errors()
    assert max(twice.image, twice.text, twice.similarity) < 1e-12


def test_a_copy_is_bit_for_bit() -> None:
    grown = grow(config_of(), config_of())
    before, after = grown.small.state_dict(), grown.large.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_stacking_under_exact_width_changes_the_function_only_by_the_new_blocks() -> None:
    stacked = ResolvedExpansion(depth=DepthExpansion.STACK)
    wider = grow(config_of(), config_of(vision=(32, 2), text=(24, 2)), stacked).errors()
    deeper = grow(config_of(), config_of(vision=(16, 4), text=(16, 4)), stacked).errors()
    assert max(wider.image, wider.text) < 1e-12
    assert min(deeper.image, deeper.text) > 1e-3


# open_clip's ladder, widths divided by 8 and fewer layers: width, head width and MLP ratio of the image tower; width
# and head width of the text tower; embedding; side of a patch.
LADDER: dict[str, tuple[tuple[int, int, float], tuple[int, int], int, int]] = {
    "ViT-B-16": ((96, 8, 4.0), (64, 8), 64, 8),
    "ViT-L-14": ((128, 8, 4.0), (96, 8), 96, 7),
    "ViT-H-14": ((160, 10, 4.0), (128, 8), 128, 7),
    "ViT-g-14": ((176, 11, 4.3637), (128, 8), 128, 7),
    "ViT-bigG-14": ((208, 13, 4.9231), (160, 8), 160, 7),
}


@pytest.mark.parametrize("pair", list(pairwise(LADDER)), ids="-".join)
def test_the_ladder_of_open_clip_is_climbed_with_heads_that_widen(pair: tuple[str, str]) -> None:
    configs = []
    for name in pair:
        (width, head, ratio), text, embed, patch = LADDER[name]
        configs.append(
            config_of(
                vision=(width, 2),
                text=(text[0], 2),
                embed=embed,
                image=3 * patch,
                patch=patch,
                vision_head=head,
                text_head=text[1],
                vision_ratio=ratio,
            )
        )
    small, large = configs
    patches_change = small.vision.patch_size != large.vision.patch_size
    expected = Fidelity.RESAMPLED if patches_change else Fidelity.NEAR_EXACT
    assert plan_expansion(small, large).fidelity is expected
    grown = grow(small, large)
    batch = batch_of(large)
    # Smaller patches see what they would have seen enlarged.
    pictures = enlarged(batch.images, large.vision.patch_size, small.vision.patch_size)
    map_FE = embedding_map(small.embed_dim, large.embed_dim)
    with torch.no_grad():
        before = grown.small.encode_image(pictures, normalize=False) @ map_FE
        after = grown.large.encode_image(batch.images, normalize=False)
        texts = grown.small.encode_text(batch.tokens, normalize=False) @ map_FE
        assert relative_error(grown.large.encode_text(batch.tokens, normalize=False), texts) < 1e-12
    assert relative_error(after, before) < 5e-4
    assert float(torch.nn.functional.cosine_similarity(before, after).min()) > 1 - 1e-6


def enlarged(images_BCHW: Tensor, patch: int, larger: int) -> Tensor:
    """Each patch by itself, so that no picture of a neighbour's enters it."""
    matrix = resize_matrix(patch, larger)
    patches = images_BCHW.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return torch.einsum("bcrpsq,Pp,Qq->bcrPsQ", patches, matrix, matrix).flatten(4, 5).flatten(2, 3)


def relative_error(after: Tensor, before: Tensor) -> float:
    """To what tells samples apart."""
    return float((after - before).norm() / (before - before.mean(dim=0)).norm())
