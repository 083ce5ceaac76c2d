"""Compiled towers: as many compilations as there are kinds of call, however many lengths captions have.

The graphs are captured and differentiated as for a GPU, but run by torch's own kernels ("aot_eager"): no
compiler of C++ is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from modelchain.spec import ModelConfig, TextSpec, VisionSpec
from modelchain_trainer.model import build_model

pytestmark = pytest.mark.slow

CONTEXT = 80
LENGTHS = range(8, CONTEXT + 1, 8)  # more than torch compiles one function for (8)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def captions(length: int) -> Tensor:
    """Three texts of up to `length` tokens."""
    tokens_BT = torch.randint(1, 49000, (3, length), generator=torch.Generator().manual_seed(length))
    for row, end in zip(tokens_BT, (length - 1, length // 2, 2), strict=True):
        row[end], row[end + 1 :] = 49407, 0
    return tokens_BT


def test_the_text_tower_compiles_twice_whatever_the_lengths_and_equals_itself_uncompiled() -> None:
    model = build_model(
        ModelConfig(
            embed_dim=16,
            vision=VisionSpec(image_size=16, patch_size=8, width=32, layers=2, head_width=16),
            text=TextSpec(context_length=CONTEXT, width=32, layers=2, heads=2),
        ),
        seed=1,
    )
    compiled = torch.compile(model.encode_text, backend="aot_eager")
    for length in LENGTHS:
        gradients: list[dict[str, Tensor]] = []
        for encode in (model.encode_text, compiled):
            model.zero_grad()
            encode(captions(length)).square().cumsum(0).sum().backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(gradients[1], gradients[0])
        torch.testing.assert_close(compiled(captions(length)), model.encode_text(captions(length)))
    assert counters["stats"]["unique_graphs"] == 2  # for the first length, then for any
