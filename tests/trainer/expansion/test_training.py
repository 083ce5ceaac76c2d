"""A grown model must learn with all of itself: copies part, and nothing that is new stays without gradient."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from modelchain_trainer.model import Clip
from tests.trainer.expansion.growth import Batch, batch_of, config_of, grow

STEPS = 10


@dataclass(frozen=True)
class Trained:
    """A model of larger width, with two new blocks a tower and a larger embedding; before and after."""

    width: int
    start: dict[str, Tensor]
    end: dict[str, Tensor]
    gradients: list[dict[str, Tensor]]  # of each step


def train(model: Clip, batch: Batch, *, steps: int) -> list[dict[str, Tensor]]:
    """Contrastive steps of AdamW as the paper's recipe has it; returns the gradients of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    gradients = []
    for _ in range(steps):
        optimizer.zero_grad()
        image_BE, text_BE, scale = model(batch.images.to(model.logit_scale.dtype), batch.tokens)
        logits = scale * image_BE @ text_BE.T
        target = torch.arange(len(logits))
        (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return gradients


@pytest.fixture(scope="module", params=[32, 40], ids=["width x2", "width x2.5"])
def trained(request: pytest.FixtureRequest) -> Trained:
    width = request.param
    small = config_of(vision=(16, 2), text=(16, 2), embed=12)
    large = config_of(vision=(width, 4), text=(width, 4), embed=18)
    model = grow(small, large, strength=0.3).large  # of full strength, units that never fire have no gradient
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = train(model, batch_of(small, size=8), steps=STEPS)
    return Trained(width, start, model.state_dict(), gradients)


def closest_pair(rows: Tensor) -> float:
    """The smallest relative distance between two of the rows."""
    rows = rows.flatten(1)
    distance = torch.cdist(rows[None], rows[None])[0]
    distance.fill_diagonal_(float("inf"))
    return float(distance.min() / rows.norm(dim=1).mean())


def writers(state: dict[str, Tensor], tower: str) -> Tensor:
    """Everything that writes into a tower's residual stream, one row a channel."""
    leaves = ("attn.out_proj.weight", "attn.out_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    names = [f"{tower}transformer.resblocks.{block}.{leaf}" for block in range(4) for leaf in leaves]
    return torch.cat([state[name].reshape(len(state[name]), -1) for name in names], dim=1)


def as_read_from_copies(rows: Tensor) -> Tensor:
    """What reader rows [..., width] make of a stream whose copies are equal: [..., 16]."""
    return rows[..., :16] + rows[..., 16:32]


@pytest.mark.parametrize("tower", ["visual.", ""], ids=["image", "text"])
def test_no_two_channels_of_the_stream_stay_copies(trained: Trained, tower: str) -> None:
    rows = writers(trained.end, tower)
    steps = rows - writers(trained.start, tower)
    assert closest_pair(rows) > 1e-3
    assert closest_pair(steps) > 0.1, "copies must not receive the same updates"


@pytest.mark.parametrize("tower", ["visual.", ""], ids=["image", "text"])
@pytest.mark.parametrize("block", range(4))
def test_no_two_heads_stay_copies(trained: Trained, tower: str, block: int) -> None:
    """Not by their readers' rows, which differ from the start: by what they compute from equal copies of x."""
    name = f"{tower}transformer.resblocks.{block}.attn."
    for part in range(3):
        rows = trained.end[f"{name}in_proj_weight"].unflatten(0, (3, -1, 8))[part]  # [heads, 8, width]
        assert closest_pair(as_read_from_copies(rows)) > 1e-3
    columns = trained.end[f"{name}out_proj.weight"] - trained.start[f"{name}out_proj.weight"]
    assert closest_pair(columns.unflatten(1, (-1, 8)).transpose(0, 1)) > 1e-2


@pytest.mark.parametrize("tower", ["visual.", ""], ids=["image", "text"])
@pytest.mark.parametrize("block", range(4))
def test_no_two_mlp_units_stay_copies(trained: Trained, tower: str, block: int) -> None:
    name = f"{tower}transformer.resblocks.{block}.mlp."
    rows, start = trained.end[f"{name}c_fc.weight"], trained.start[f"{name}c_fc.weight"]
    assert closest_pair(as_read_from_copies(rows)) > 1e-4
    assert closest_pair(as_read_from_copies(rows - start)) > 1e-2, "copies must not receive the same updates"
    columns = trained.end[f"{name}c_proj.weight"] - trained.start[f"{name}c_proj.weight"]
    assert closest_pair(columns.T) > 1e-3


def test_copies_in_kept_blocks_compute_the_same_before_training() -> None:
    """The tests above would show nothing if they already differed."""
    small, large = config_of(vision=(16, 2)), config_of(vision=(32, 2))
    state = grow(small, large).large.state_dict()
    rows = state["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    assert closest_pair(as_read_from_copies(rows)) < 1e-12


def test_every_parameter_has_gradient_everywhere_after_two_steps(trained: Trained) -> None:
    """At the first step some have none by design: what reads a tail that is zero, what feeds zero writers."""
    third = trained.gradients[2]
    assert third.keys() == trained.start.keys()
    for name, gradient in third.items():
        if name == "token_embedding.weight":
            gradient = gradient[gradient.any(dim=1)]  # the words that the batch has
        if name.endswith("in_proj_bias"):
            query, _, value = gradient.chunk(3)  # the softmax takes no notice of the keys'
            gradient = torch.cat([query, value])
        rows = gradient.reshape(len(gradient), -1).abs() if gradient.ndim else gradient.reshape(1, 1).abs()
        rounding = 1e-13 * rows.max()
        assert (rows.amax(dim=1) > rounding).all(), f"{name}: rows without gradient"
        assert (rows.amax(dim=0) > rounding).all(), f"{name}: columns without gradient"


@pytest.mark.parametrize("name", ["visual.proj", "text_projection"])
def test_new_embedding_dimensions_learn_of_their_own(trained: Trained, name: str) -> None:
    """The embedding starts in a subspace of 12 dimensions and must leave it; zero columns never would."""
    before, after = (
        torch.linalg.svdvals(as_read_from_copies(state[name].T)) for state in (trained.start, trained.end)
    )
    assert before[12] < 1e-12
    assert after[15] > 1e-4 * after[0]


def test_a_new_blocks_writers_learn_from_the_first_step(trained: Trained) -> None:
    for tower in ("visual.", ""):
        for leaf in ("attn.out_proj.weight", "mlp.c_proj.weight"):
            name = f"{tower}transformer.resblocks.1.{leaf}"
            assert not trained.start[name].any()
            assert trained.gradients[0][name].ne(0).float().mean() > 0.99


def test_units_part_in_every_block_if_only_the_mlps_grow() -> None:
    """New blocks write nothing at first: repeated units in them must differ by what they read."""
    small, large = (
        config_of(vision=(16, 1), text=(8, 1)),
        config_of(vision=(16, 2), vision_ratio=8.0, text=(8, 1)),
    )
    grown = grow(small, large, strength=0.3)
    train(grown.large, grown.batch, steps=STEPS)
    for block in range(2):
        rows = grown.large.state_dict()[f"visual.transformer.resblocks.{block}.mlp.c_fc.weight"]
        assert closest_pair(rows) > 1e-4


def test_even_splits_would_leave_copies_together() -> None:
    """The reason for uneven splits, shown: with equal halves, copies of a channel never part."""
    small, large = config_of(vision=(16, 1), text=(8, 1)), config_of(vision=(32, 1), text=(8, 1))
    grown = grow(small, large)
    state = grown.large.state_dict()
    prefix = "visual.transformer.resblocks.0."
    for name in ("attn.in_proj_weight", "mlp.c_fc.weight"):
        whole = state[prefix + name][:, :16] + state[prefix + name][:, 16:]
        state[prefix + name].copy_(torch.cat([whole / 2, whole / 2], dim=1))
    for name in ("attn.out_proj.weight", "mlp.c_proj.weight"):
        weight = state[prefix + name]
        whole = weight[:, : weight.shape[1] // 2] + weight[:, weight.shape[1] // 2 :]
        weight.copy_(torch.cat([whole / 2, whole / 2], dim=1))
    projection = state["visual.proj"]
    projection.copy_(torch.cat([(projection[:16] + projection[16:]) / 2] * 2))
    assert grown.errors().image < 1e-12
    train(grown.large, grown.batch, steps=STEPS)
    rows = grown.large.state_dict()[prefix + "mlp.c_proj.weight"]
    assert (rows[:16] - rows[16:]).norm() < 1e-6 * rows.norm()
