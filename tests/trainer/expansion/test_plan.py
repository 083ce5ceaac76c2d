from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from modelchain.catalogue import family, find
from modelchain.errors import ConfigurationError, UserDataError
from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import Fidelity, expand, plan_expansion
from modelchain_trainer.expansion.depth import source_of
from modelchain_trainer.model.families import layout_of
from tests.trainer.expansion.growth import config_of, trained

BASE = ModelConfig(
    embed_dim=64,
    vision=VisionSpec(image_size=32, patch_size=8, width=64, layers=3, head_width=16),
    text=TextSpec(width=48, layers=3, heads=3),
)


def changed(part: str | None, **values: Any) -> ModelConfig:
    document = BASE.model_dump()
    (document[part] if part else document).update(values)
    return ModelConfig.model_validate(document)


@pytest.mark.parametrize(
    ("large", "named"),
    [
        (changed(None, embed_dim=32), "embedDim: embedDim shrinks from 64 to 32"),
        (changed("vision", width=48), "vision.width: the vision width shrinks from 64 to 48"),
        (changed("vision", layers=2), "vision.layers: the number of vision layers shrinks from 3 to 2"),
        (changed("vision", mlp_ratio=2), "vision.mlpRatio: the vision MLP shrinks from 256 to 128 units"),
        (changed("vision", head_width=32), "vision.headWidth: the vision heads become fewer, from 4 to 2"),
        (changed("text", width=32, heads=2), "text.width: the text width shrinks from 48 to 32"),
        (changed("text", layers=1), "text.layers: the number of text layers shrinks from 3 to 1"),
        (changed("text", mlp_ratio=3.9), "text.mlpRatio: the text MLP shrinks from 192 to 187 units"),
        (
            changed("text", width=96, heads=2),
            "text.heads: the text heads become fewer, from 3 to 2",
        ),
        (changed("text", context_length=32), "text.contextLength: contextLength is 32, not 77"),
        (changed(None, quick_gelu=True), "quickGelu: quickGelu is true, not false"),
        (changed("text", causal=False), "text.causal: text.causal is false, not true"),
        (changed("vision", patch_size=5), "vision.patchSize"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_growth_that_is_impossible_is_refused_by_what_differs(large: ModelConfig, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_expansion(BASE, large)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        expand({}, BASE, large, ResolvedExpansion(), seed=0)


def test_it_says_what_grows_and_how_exactly() -> None:
    plan = plan_expansion(find("ViT-B-16"), find("ViT-L-16"))
    assert {(c.dimension, c.before, c.after, c.fidelity.value) for c in plan.changes} == {
        ("vision.width", 768, 1024, "near-exact"),
        ("vision.layers", 12, 24, "exact"),
        ("vision MLP units", 3072, 4096, "exact"),
        ("text.width", 512, 768, "exact"),
        ("text MLP units", 2048, 3072, "exact"),
    }
    assert plan.fidelity is Fidelity.NEAR_EXACT
    assert "vision.width 768 -> 1024 (near-exact: 1024 is no multiple of 768" in str(plan)
    assert "vision.layers 12 -> 24 (exact)" in str(plan)


def test_the_papers_growth_is_inexact_and_says_why() -> None:
    paper = ResolvedExpansion(width=WidthExpansion.SLICE, depth=DepthExpansion.INTERLEAVE)
    plan = plan_expansion(find("ViT-S-16"), find("ViT-L-16"), paper)
    assert plan.fidelity is Fidelity.INEXACT
    assert "leading slices" in str(plan)
    assert "copies of blocks" in str(plan)


def test_equal_models_are_a_copy_under_any_growth() -> None:
    plan = plan_expansion(BASE, BASE, ResolvedExpansion(width=WidthExpansion.SLICE))
    assert plan.changes == ()
    assert plan.fidelity is Fidelity.EXACT
    assert "copy" in str(plan)


def test_the_familys_members_grow_out_of_one_another() -> None:
    """T, C, S, M, B, and L or BL; BL embeds in more dimensions than L."""
    members = [find(name) for name in family()]
    for small, large in pairwise(members[:6]):
        plan_expansion(small, large)
    plan_expansion(find("ViT-B-16"), find("ViT-L-16"))
    with pytest.raises(ConfigurationError, match="embedDim"):
        plan_expansion(find("ViT-BL-16"), find("ViT-L-16"))


def origins_of(small: int, large: int, depth: DepthExpansion) -> str:
    """Out of which block each one of the large model is made; new ones have a star."""
    before, after = (layout_of(config_of(vision=(16, layers))) for layers in (small, large))
    found = []
    for block in range(large):
        source = source_of(f"visual.transformer.resblocks.{block}.ln_1.weight", before, after, depth)
        assert source.name.endswith(".ln_1.weight")
        assert source.silent == (source.new_block and depth is DepthExpansion.IDENTITY)
        found.append(source.name.split(".")[3] + "*" * source.new_block)
    return " ".join(found)


@pytest.mark.parametrize("depth", [DepthExpansion.IDENTITY, DepthExpansion.INTERLEAVE])
@pytest.mark.parametrize(
    ("small", "large", "origins"),
    [
        (3, 3, "0 1 2"),
        (3, 6, "0 0* 1 1* 2 2*"),
        (3, 4, "0 0* 1 2"),
        (2, 5, "0 0* 0* 1 1*"),
        (1, 3, "0 0* 0*"),
        (12, 14, "0 0* 1 2 3 4 5 6 6* 7 8 9 10 11"),
    ],
)
def test_new_blocks_stand_behind_their_source_and_are_spread(
    small: int, large: int, origins: str, depth: DepthExpansion
) -> None:
    """For a doubling as in the paper: its block l becomes blocks 2l and 2l + 1."""
    assert origins_of(small, large, depth) == origins


@pytest.mark.parametrize(
    ("small", "large", "origins"),
    [(3, 3, "0 1 2"), (3, 6, "0 1 2 0* 1* 2*"), (3, 4, "0 1 2 0*"), (2, 5, "0 1 0* 1* 0*")],
)
def test_stacking_repeats_the_whole_tower(small: int, large: int, origins: str) -> None:
    assert origins_of(small, large, DepthExpansion.STACK) == origins


def test_weights_of_another_model_are_refused() -> None:
    small, large = config_of(), config_of(vision=(32, 2))
    state = trained(small).state_dict()
    del state["text_projection"]
    with pytest.raises(UserDataError, match="text_projection"):
        expand(state, small, large, ResolvedExpansion(), seed=0)
    state["text_projection"] = torch.zeros(3, 3)
    with pytest.raises(UserDataError, match=r"text_projection has shape \[3, 3\]"):
        expand(state, small, large, ResolvedExpansion(), seed=0)
