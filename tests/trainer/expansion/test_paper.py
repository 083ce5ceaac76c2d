"""The paper's growth: leading slices in a fresh model, plain copies of blocks."""

from __future__ import annotations

import pytest
import torch

from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import expand
from modelchain_trainer.model import build_model
from tests.trainer.expansion.growth import PAPER, config_of, grow, trained

SMALL = config_of(vision=(16, 2), text=(16, 2), embed=12)
LARGE = config_of(vision=(24, 4), text=(40, 3), embed=20)
SEED = 7


def slices(shape: torch.Size) -> tuple[slice, ...]:
    return tuple(slice(size) for size in shape)


def is_leading(name: str) -> bool:
    return "resblocks" not in name or "resblocks.0." in name


def test_every_small_tensor_fills_the_leading_part_of_its_large_one() -> None:
    grown = grow(SMALL, LARGE, PAPER)
    before, after = grown.small.state_dict(), grown.large.state_dict()
    checked = 0
    for name, tensor in before.items():
        if is_leading(name) and "in_proj" not in name:
            assert torch.equal(after[name][slices(tensor.shape)], tensor), name
            checked += 1
    assert checked == 34


def test_queries_keys_and_values_are_sliced_each_for_itself() -> None:
    grown = grow(SMALL, LARGE, PAPER)
    before, after = grown.small.state_dict(), grown.large.state_dict()
    for tower in ("visual.", ""):
        name = f"{tower}transformer.resblocks.0.attn.in_proj_"
        for small, large in zip(
            before[f"{name}weight"].chunk(3), after[f"{name}weight"].chunk(3), strict=True
        ):
            assert torch.equal(large[:16, :16], small)
        for small, large in zip(before[f"{name}bias"].chunk(3), after[f"{name}bias"].chunk(3), strict=True):
            assert torch.equal(large[:16], small)


def test_all_other_numbers_are_those_of_a_fresh_model() -> None:
    grown = grow(SMALL, LARGE, PAPER, dtype=torch.float32)
    before, after = grown.small.state_dict(), grown.large.state_dict()
    fresh = build_model(LARGE, seed=SEED).state_dict()
    for name, tensor in before.items():
        if is_leading(name) and "in_proj" not in name and after[name].shape != tensor.shape:
            kept = torch.zeros(after[name].shape, dtype=torch.bool)
            kept[slices(tensor.shape)] = True
            assert torch.equal(after[name][~kept], fresh[name][~kept]), name
    assert grown.large.logit_scale == grown.small.logit_scale


def test_blocks_are_stacked_beside_their_source_as_in_the_paper() -> None:
    """Block l becomes blocks 2l and 2l+1."""
    grown = grow(config_of(vision=(16, 3)), config_of(vision=(16, 6)), PAPER)
    before, after = grown.small.state_dict(), grown.large.state_dict()
    for block in range(6):
        for leaf in ("attn.out_proj.weight", "mlp.c_fc.bias", "ln_1.weight"):
            source = before[f"visual.transformer.resblocks.{block // 2}.{leaf}"]
            assert torch.equal(after[f"visual.transformer.resblocks.{block}.{leaf}"], source)


def test_it_does_not_keep_the_function() -> None:
    """What `exact` is for."""
    errors = grow(SMALL, LARGE, PAPER).errors()
    assert min(errors.image, errors.text) > 0.05


def test_slices_can_be_had_with_new_blocks_that_do_nothing() -> None:
    identity = ResolvedExpansion(width=WidthExpansion.SLICE, depth=DepthExpansion.IDENTITY)
    state = grow(SMALL, LARGE, identity).large.state_dict()
    for leaf in ("attn.out_proj.weight", "attn.out_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"):
        assert not state[f"visual.transformer.resblocks.1.{leaf}"].any()
        assert state[f"visual.transformer.resblocks.2.{leaf}"].any()
    deeper = grow(config_of(), config_of(vision=(16, 5), text=(16, 3)), identity).errors()
    assert max(deeper.image, deeper.text) < 1e-12


@pytest.mark.parametrize("expansion", [PAPER, ResolvedExpansion()], ids=["paper", "exact"])
def test_equal_arguments_give_equal_tensors_and_seeds_matter(expansion: ResolvedExpansion) -> None:
    small = trained(SMALL).state_dict()
    first, second, other = (expand(small, SMALL, LARGE, expansion, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["transformer.resblocks.0.mlp.c_fc.weight"], other["transformer.resblocks.0.mlp.c_fc.weight"]
    )


@pytest.mark.parametrize("expansion", [PAPER, ResolvedExpansion()], ids=["paper", "exact"])
@pytest.mark.parametrize("large", [SMALL, LARGE], ids=["copy", "growth"])
def test_the_predecessor_stays_as_it_is(expansion: ResolvedExpansion, large: object) -> None:
    """The student is trained in place while the predecessor teaches: they must share no memory."""
    assert isinstance(large, type(SMALL))
    small = trained(SMALL).state_dict()
    before = {name: tensor.clone() for name, tensor in small.items()}
    grown = expand(small, SMALL, large, expansion, seed=1)
    for tensor in grown.values():
        assert tensor.is_contiguous()
        tensor.fill_(123.0)
    assert all(torch.equal(before[name], small[name]) for name in before)
