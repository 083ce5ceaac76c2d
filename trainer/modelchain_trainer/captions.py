"""Captions of a batch in a few matrices by length, so that the text tower computes little padding.

Cropping a batch after its longest caption helps until one caption is long, and of several captions a sample one
usually is. Sorted by length and cut into a few buckets, each cropped after its own longest, the same captions take
little more than their tokens. A caption's embedding does not depend on how much of the padding behind it is left (a
causal tower pools at the end-of-text token; one that is not is given all of it again), so embeddings and gradients are
those of the whole matrix, to rounding.

Shapes: C captions a sample, m samples, M = C x m texts, T tokens, n texts of a bucket, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

MOST_BUCKETS = 4


@dataclass(frozen=True)
class Captions:
    """The captions of some samples, bucketed."""

    buckets: tuple[Tensor, ...]  # int64 [n, T] each, T ascending; together all M texts
    place: Tensor | None  # where each text [C, m] stands among those of all buckets; None: in its place
    shape: tuple[int, int]  # C, m

    def to(self, device: torch.device) -> Captions:
        """The same on another device, without waiting for it."""
        move = _upload(device)
        return replace(
            self,
            buckets=tuple(map(move, self.buckets)),
            place=None if self.place is None else move(self.place),
        )

    def encode(self, encode_texts: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """Embeddings [C, m, E]; `encode_texts` makes [M, E] of all buckets."""
        text_ME = encode_texts(self.buckets)
        if self.place is not None:
            text_ME = text_ME.index_select(0, self.place)
        return text_ME.unflatten(0, self.shape)


def bucketed(tokens_CmT: Tensor, *, multiple_of: int = 1, bucket_cost: int = 0) -> Captions:
    """Sort captions, on the CPU, into at most `MOST_BUCKETS` buckets of the least work.

    The end-of-text token is the largest of each row. Buckets are as long as their longest caption, rounded up to
    `multiple_of` (few lengths are few kernels to compile or pick). `bucket_cost` is what a bucket more must save,
    in tokens.
    """
    shape = (tokens_CmT.shape[0], tokens_CmT.shape[1])
    tokens_MT = tokens_CmT.flatten(0, 1)
    if tokens_MT.numel() == 0:
        return Captions((tokens_MT,), None, shape)
    length_M = tokens_MT.argmax(dim=-1) + 1
    length_M = (-(-length_M // multiple_of) * multiple_of).clamp(max=tokens_MT.shape[1])
    lengths, counts = length_M.unique(return_counts=True)  # ascending
    cuts = _cuts(lengths.tolist(), counts.tolist(), bucket_cost)
    if len(cuts) == 1:
        return Captions((tokens_MT[:, : cuts[0][1]].contiguous(),), None, shape)
    order_M = length_M.argsort(stable=True)
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(len(order_M))
    rows = (0, *(row for row, _ in cuts))
    buckets = tuple(
        tokens_MT[order_M[start:end], :length]
        for (start, end), (_, length) in zip(pairwise(rows), cuts, strict=True)
    )
    return Captions(buckets, place_M, shape)


def _cuts(lengths: Sequence[int], counts: Sequence[int], bucket_cost: int) -> list[tuple[int, int]]:
    """Where buckets of rows in ascending length end, and how long they are: (rows up to it, length).

    The least sum of rows x length + `bucket_cost` a bucket over all partitions into at most `MOST_BUCKETS`, by
    dynamic programming over distinct lengths (at most the context's).
    """
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    # best[j]: least work of the first j distinct lengths, and the buckets' ends among them.
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for j, length in enumerate(lengths, start=1):
        best.append((ends[j] * length + bucket_cost, (j,)))
    for _ in range(MOST_BUCKETS - 1):
        best = [
            best[0],
            *(
                min(
                    [best[j]]
                    + [
                        (best[i][0] + (ends[j] - ends[i]) * lengths[j - 1] + bucket_cost, (*best[i][1], j))
                        for i in range(1, j)
                    ]
                )
                for j in range(1, len(lengths) + 1)
            ),
        ]
    return [(ends[j], lengths[j - 1]) for j in best[-1][1]]


def _upload(device: torch.device) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        pinned = tensor if device.type != "cuda" or tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)

    return move
