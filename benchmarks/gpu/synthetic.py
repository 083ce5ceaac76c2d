"""Batches in memory, as the data loaders of both programs hand them over.

Captions are random tokens; what matters of them is their length. A raw caption has 13 tokens on the average,
begin and end included, with a long tail (log-normal with a deviation of 0.5, so that the longest of 512 has
about 50): alone where a sample has one caption. Of seven captions, one is raw, three are short descriptions of
20 tokens on the average with the same tail, and three are longer than the context of 77 and are cut there.

Shapes: C captions, b rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.settings import Setting

RAW_MEAN, SHORT_MEAN, LONG_MEAN = 13, 20, 110
TAIL = 0.5  # standard deviation of the logarithm of a length
SHORTEST = 3  # begin, a word, end
BEGIN, END = 49406, 49407
BATCHES = 4  # distinct ones, used in turn
PICTURES = 64  # distinct ones: random numbers are slow to make, and nothing depends on how many differ


@dataclass(frozen=True)
class Rows:
    """A batch of either program: images uint8 or normalised fp32 [b, 3, S, S], tokens int64 [C, b, T]."""

    images: Tensor
    tokens: Tensor


def batches(setting: Setting, *, pinned: bool) -> list[Rows]:
    """`BATCHES` batches of uint8 images and whole token matrices."""
    generator = torch.Generator().manual_seed(0)
    side = setting.image_size
    pictures = torch.randint(256, (PICTURES, 3, side, side), generator=generator, dtype=torch.uint8)
    made = []
    for _ in range(BATCHES):
        images = pictures[torch.randint(PICTURES, (setting.batch_size,), generator=generator)]
        tokens = _tokens(
            setting.captions, setting.batch_size, setting.config().text.context_length, generator
        )
        made.append(Rows(images.pin_memory(), tokens.pin_memory()) if pinned else Rows(images, tokens))
    return made


def caption_means(captions: int) -> list[int]:
    """Mean length of each caption of a sample, before the context cuts it."""
    return [RAW_MEAN, *[SHORT_MEAN] * ((captions - 1) // 2), *[LONG_MEAN] * (captions // 2)][:captions]


def described(rows: list[Rows]) -> dict[str, object]:
    """The lengths of all captions, for the report."""
    lengths_N = torch.cat([batch.tokens.argmax(dim=-1).flatten() + 1 for batch in rows]).float()
    quantiles = torch.tensor([0.5, 0.9, 0.99])
    longest = [int(batch.tokens.argmax(dim=-1).max()) + 1 for batch in rows]
    return {
        "meanTokens": lengths_N.mean().item(),
        "quantiles": dict(zip(("p50", "p90", "p99"), lengths_N.quantile(quantiles).tolist(), strict=True)),
        "longestOfEachBatch": longest,
    }


def _tokens(captions: int, rows: int, context: int, generator: torch.Generator) -> Tensor:
    tokens_CbT = torch.zeros(captions, rows, context, dtype=torch.int64)
    for column, mean in zip(tokens_CbT, caption_means(captions), strict=True):
        tail_b = torch.randn(rows, generator=generator).mul_(TAIL).sub_(TAIL**2 / 2).exp_()
        floor = context if mean == LONG_MEAN else SHORTEST
        for row, length in zip(column, (tail_b * mean).round().int().tolist(), strict=True):
            length = min(max(length, floor), context)
            row[:length] = torch.randint(1, BEGIN, (length,), generator=generator)
            row[0], row[length - 1] = BEGIN, END
    return tokens_CbT
