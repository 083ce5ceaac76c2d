"""Captions in buckets by length: the same embeddings and gradients, of fewer tokens."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modelchain_trainer.captions import MOST_BUCKETS, Captions, bucketed
from modelchain_trainer.model.build import build_model
from tests.trainer.test_step import config

CONTEXT, END = 12, 49407
length_lists = st.lists(st.integers(1, CONTEXT), min_size=1, max_size=24)


def rows(lengths: list[int]) -> Tensor:
    """Texts [1, m, T] of these lengths, the end-of-text token included, none like another."""
    tokens_mT = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    for number, (row, length) in enumerate(zip(tokens_mT, lengths, strict=True)):
        row[: length - 1] = torch.arange(length - 1) + 1 + CONTEXT * number
        row[length - 1] = END
    return tokens_mT[None]


@given(length_lists, st.sampled_from([1, 4, 8]), st.sampled_from([0, 5, 1000]))
def test_every_text_is_in_its_place_and_whole(lengths: list[int], multiple_of: int, bucket_cost: int) -> None:
    tokens_CmT = rows(lengths)
    captions = bucketed(tokens_CmT, multiple_of=multiple_of, bucket_cost=bucket_cost)

    def padded(tokens_nT: Tensor) -> Tensor:
        assert tokens_nT.shape[1] % multiple_of == 0 or tokens_nT.shape[1] == CONTEXT
        return torch.nn.functional.pad(tokens_nT, (0, CONTEXT - tokens_nT.shape[1]))

    assert torch.equal(captions.encode(lambda texts: torch.cat([*map(padded, texts)])), tokens_CmT)
    assert len(captions.buckets) <= MOST_BUCKETS


def tokens_computed(captions: Captions) -> int:
    """What is left of the padding included."""
    return sum(bucket.numel() for bucket in captions.buckets)


@given(length_lists, st.integers(0, 30))
def test_no_other_cuts_are_less_work(lengths: list[int], bucket_cost: int) -> None:
    captions = bucketed(rows(lengths), bucket_cost=bucket_cost)
    work = tokens_computed(captions) + bucket_cost * len(captions.buckets)
    ascending = sorted(lengths)
    for buckets in range(1, min(MOST_BUCKETS, len(lengths)) + 1):
        for ends in combinations(range(1, len(lengths)), buckets - 1):
            cuts = (0, *ends, len(lengths))
            parts = [ascending[start:end] for start, end in pairwise(cuts)]
            assert work <= sum(len(part) * part[-1] + bucket_cost for part in parts)


def test_buckets_that_save_little_are_not_made() -> None:
    assert len(bucketed(rows([3, 12]), bucket_cost=100).buckets) == 1
    assert len(bucketed(rows([3, 12])).buckets) == 2
    assert tokens_computed(bucketed(rows([3, 12]))) == 15


def test_no_captions_are_one_empty_bucket() -> None:
    captions = bucketed(torch.zeros(2, 0, CONTEXT, dtype=torch.int64))
    assert captions.encode(lambda texts: torch.cat(list(texts)).float()).shape == (2, 0, CONTEXT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_embeddings_and_gradients_are_those_of_the_whole_matrix(dtype: torch.dtype, tolerance: float) -> None:
    model = build_model(config(32, 24), seed=3).to(dtype)
    tokens_CmT = torch.cat([rows([3, 9, 4, 12, 5]), rows([11, 3, 3, 10, 6])])
    towards_CmE = torch.randn(2, 5, 24, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for captions in (bucketed(tokens_CmT), bucketed(tokens_CmT, bucket_cost=10**6)):
        model.zero_grad()
        text_CmE = captions.encode(model.encode_texts)
        (text_CmE * towards_CmE).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((text_CmE.detach(), gradients))
    assert len(bucketed(tokens_CmT).buckets) == MOST_BUCKETS
    (text, gradients), (whole, whole_gradients) = found
    torch.testing.assert_close(text, whole, rtol=0, atol=tolerance)
    assert gradients.keys() == whole_gradients.keys()
    for name, gradient in gradients.items():
        largest = max(1.0, float(whole_gradients[name].abs().max()))  # sums of many terms round by their size
        torch.testing.assert_close(
            gradient, whole_gradients[name], rtol=0, atol=tolerance * largest, msg=name
        )


@pytest.mark.parametrize("causal", [True, False])
def test_buckets_are_looked_up_once_and_give_the_bits_of_each_by_itself(causal: bool) -> None:
    model = build_model(config(32, 24, causal=causal), seed=3)
    captions = bucketed(torch.cat([rows([3, 9, 4, 12, 5]), rows([11, 3, 3, 10, 6])]))
    towards_ME = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    lookups: list[Tensor] = []
    model.token_embedding.register_forward_hook(lambda *call: lookups.append(call[-1]))

    def gradients(text_ME: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (text_ME * towards_ME).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = model.encode_texts(captions.buckets)
    assert len(lookups) == 1
    apart = torch.cat([model.encode_text(bucket_nT) for bucket_nT in captions.buckets])
    assert torch.equal(together, apart)
    found, expected = gradients(together), gradients(apart)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
