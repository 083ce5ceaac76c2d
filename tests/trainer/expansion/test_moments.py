"""The optimizer's moments of a grown model: those that its gradients would have left behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from modelchain.families import ModelConfig, TimmConfig
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import expand, expand_moments
from modelchain_trainer.expansion.spaces import Copies
from modelchain_trainer.model import Clip
from modelchain_trainer.model.build import build_model, model_from, parameter_shapes
from tests.trainer.expansion.families import language_model, trained
from tests.trainer.expansion.growth import EXACT, PAPER, Grown, config_of, grow

PADDED = ResolvedExpansion(width=WidthExpansion.PADDED)
Gradients = dict[str, Tensor]


def test_a_copy_has_the_same_moments_and_shares_none() -> None:
    """Of models that do not grow too; projections to a teacher are no part of the model."""
    small, large = (
        TimmConfig(name="resnet10t", classes=3, image_size=size, norm_batch_size=8) for size in (32, 64)
    )
    names = [name for name, _ in build_model(small, seed=1).named_parameters()]
    moments = {
        name: torch.full((2,), float(place)) for place, name in enumerate(names[1:])
    }  # the first is locked
    for power in (1, 2):
        found = expand_moments(
            moments | {"projections.image": torch.ones(2)}, small, large, ResolvedExpansion(), power=power
        )
        assert list(found) == names[1:]
        assert all(torch.equal(found[name], one) and found[name] is not one for name, one in moments.items())


def gradients(model: Clip, grown: Grown) -> Gradients:
    """Of the contrastive loss on the batch, which depends on embeddings only through their similarities."""
    model.zero_grad()
    image_BE, text_BE, scale = model(grown.batch.images, grown.batch.tokens)
    logits = scale * image_BE @ text_BE.T
    target = torch.arange(len(logits))
    (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def mean_over_copies(tensor: Tensor, small: ModelConfig, large: ModelConfig, name: str) -> Tensor:
    """Each element's mean over the copies of its source along every axis: what uneven splits leave the same."""
    vision = name.startswith("visual.")
    before, after = (small.vision, large.vision) if vision else (small.text, large.text)
    return _mean_over(tensor, {after.width: before.width, after.hidden_width: before.hidden_width}, name)


def _mean_over(tensor: Tensor, copied: dict[int, int], name: str) -> Tensor:
    """`copied` are the sizes that have copies, and those of their sources."""
    in_proj = "in_proj" in name
    tensor = tensor.unflatten(0, (3, -1)) if in_proj else tensor
    for dim, size in enumerate(tensor.shape):
        if size in copied:
            tensor = _averaged(tensor, Copies(copied[size], size), dim)
    return tensor.flatten(0, 1) if in_proj else tensor


def _averaged(tensor: Tensor, copies: Copies, dim: int) -> Tensor:
    source = torch.arange(copies.large) % copies.small
    shape = list(tensor.shape)
    shape[dim] = copies.small
    sums = tensor.new_zeros(shape).index_add_(dim, source, tensor)
    count = torch.bincount(source).view([-1] + [1] * (tensor.ndim - dim - 1))
    return copies.repeat(sums / count, dim)


def assert_close(found: Tensor, expected: Tensor, name: str, *, tolerance: float) -> None:
    error = (found - expected).norm() / expected.norm().clamp(min=1e-30)
    assert error < tolerance or expected.norm() < 1e-12, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("small", "large"),
    [
        pytest.param(config_of(), config_of(vision=(32, 2), text=(48, 2)), id="widths x2 and x3"),
        pytest.param(config_of(), config_of(vision_ratio=6.0, text_ratio=8.0), id="units x1.5 and x2"),
        pytest.param(config_of(), config_of(embed=20), id="embedding 12 -> 20"),
        pytest.param(config_of(), config_of(embed=40), id="embedding 12 -> 40"),
        pytest.param(
            config_of(), config_of(vision=(32, 4), text=(32, 5), embed=20, vision_ratio=6.0), id="everything"
        ),
    ],
)
def test_the_mean_gradient_of_copies_is_the_lifted_gradient_of_their_source(
    small: ModelConfig, large: ModelConfig
) -> None:
    grown = grow(small, large, EXACT)
    lifted = expand_moments(gradients(grown.small, grown), small, large, EXACT, power=1)
    for name, gradient in gradients(grown.large, grown).items():
        if _is_new(name, grown):
            assert not lifted[name].any(), name
        else:
            mean = mean_over_copies(gradient, small, large, name)
            assert_close(lifted[name], mean, name, tolerance=1e-9)


def _is_new(name: str, grown: Grown) -> bool:
    """A parameter of a block whose writers growth has set to zero."""
    if ".resblocks." not in name:
        return False
    tower, _, rest = name.partition(".resblocks.")
    block = rest.partition(".")[0]
    return not grown.large.state_dict()[f"{tower}.resblocks.{block}.mlp.c_proj.weight"].any()


def test_a_tied_table_has_the_moments_of_what_it_writes_and_of_what_it_reads() -> None:
    small_config, large_config = language_model(width=16), language_model(width=48)
    small = trained(small_config)
    how = ResolvedExpansion()
    large = model_from(expand(small.state_dict(), small_config, large_config, how, seed=0), large_config)
    tokens = torch.randint(23, (4, 12), generator=torch.Generator().manual_seed(0))
    found: list[Gradients] = []
    for model in (small, large):
        F.cross_entropy(model.predict(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    lifted = expand_moments(found[0], small_config, large_config, how, power=1)
    copied = {48: 16, large_config.hidden_width: small_config.hidden_width}
    for name, expected in lifted.items():
        assert_close(_mean_over(found[1][name], copied, name), expected, name, tolerance=1e-9)


@pytest.mark.parametrize("expansion", [EXACT, PADDED], ids=["Exact", "Padded"])
def test_a_scaled_stream_scales_gradients_and_the_moments_with_them(expansion: ResolvedExpansion) -> None:
    """With one copy of the stream and a tail, nothing has to be averaged."""
    small, large = config_of(text=(32, 2)), config_of(text=(56, 2))
    grown = grow(small, large, expansion)
    lifted = expand_moments(gradients(grown.small, grown), small, large, expansion, power=1)
    found = gradients(grown.large, grown)
    for leaf in ("ln_final.weight", "ln_final.bias", "transformer.resblocks.1.ln_2.weight"):
        assert_close(found[leaf][:32], lifted[leaf][:32], leaf, tolerance=1e-9)
        assert not lifted[leaf][32:].any()
    for leaf in ("attn.out_proj.bias", "mlp.c_proj.bias"):
        for block in range(2):  # norms take no notice of what all channels share
            name = f"transformer.resblocks.{block}.{leaf}"
            centred, expected = (g[:32] - g[:32].mean() for g in (found[name], lifted[name]))
            assert_close(centred, expected, name, tolerance=1e-9)


@pytest.mark.parametrize(
    "expansion",
    [EXACT, PADDED, PAPER, ResolvedExpansion(depth=DepthExpansion.STACK)],
    ids=["Exact", "Padded", "Slice", "Stack"],
)
@pytest.mark.parametrize("power", [1, 2])
def test_every_parameter_gets_moments_of_its_shape(expansion: ResolvedExpansion, power: int) -> None:
    small = config_of(vision=(16, 2), text=(24, 3), embed=12)
    large = config_of(
        vision=(40, 5),
        text=(56, 4),
        embed=17,
        image=32,
        patch=4,
        vision_ratio=5.0,
        text_ratio=4.3,
        vision_head=10,
        text_head=14,
    )
    grown = expand_moments(_squares(small), small, large, expansion, power=power)
    assert {name: tensor.shape for name, tensor in grown.items()} == parameter_shapes(large)
    assert all((tensor >= 0).all() for tensor in grown.values()) or power == 1
    assert all(tensor.isfinite().all() for tensor in grown.values())


def _squares(config: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator, dtype=torch.float64)
        for name, shape in parameter_shapes(config).items()
    }


def test_second_moments_scale_with_the_square_of_the_gradients_share() -> None:
    small, large = config_of(), config_of(vision=(32, 2), vision_ratio=4.0)
    squares = _squares(small)
    grown = expand_moments(squares, small, large, EXACT, power=2)
    name = "visual.transformer.resblocks.0."
    fc, written = grown[f"{name}mlp.c_fc.weight"], squares[f"{name}mlp.c_fc.weight"] / 4
    assert torch.equal(fc, written.repeat(2, 2)), "units are written twice, the stream is read twice"
    projection, read = grown[f"{name}mlp.c_proj.weight"], squares[f"{name}mlp.c_proj.weight"] / 4
    assert torch.equal(projection, read.repeat(2, 2))
    assert torch.equal(grown["logit_scale"], squares["logit_scale"])


@pytest.mark.parametrize("expansion", [PAPER, PADDED], ids=["Slice", "Padded"])
def test_what_is_new_begins_without_moments(expansion: ResolvedExpansion) -> None:
    small, large = config_of(vision=(16, 2)), config_of(vision=(32, 2))
    grown = expand_moments(_squares(small), small, large, expansion, power=2)
    block = "visual.transformer.resblocks.0."
    for leaf, rows, columns in (("attn.out_proj.weight", 16, 16), ("mlp.c_fc.weight", 64, 16)):
        old = torch.zeros_like(grown[block + leaf], dtype=torch.bool)
        old[:rows, :columns] = True
        assert torch.equal(grown[block + leaf] > 0, old), leaf


def test_equal_models_keep_their_moments() -> None:
    config = config_of()
    squares = _squares(config)
    for expansion in (EXACT, PADDED, PAPER):
        grown = expand_moments(squares, config, config, expansion, power=2)
        for name, tensor in squares.items():
            assert torch.equal(grown[name], tensor), name
            assert grown[name].data_ptr() != tensor.data_ptr()


def test_what_was_locked_has_no_moments_to_grow() -> None:
    before, after = config_of(), config_of(vision=(32, 2), text=(48, 2))
    small = {name: torch.ones(shape) for name, shape in parameter_shapes(before).items()}
    text = {name: tensor for name, tensor in small.items() if not name.startswith("visual.")}
    grown = expand_moments(text, before, after, EXACT, power=1)
    whole = expand_moments(small, before, after, EXACT, power=1)
    assert grown.keys() == {name for name in whole if not name.startswith("visual.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in grown.items())
