"""Embeddings of a whole set by an image-text model, and how well they find each other.

Shapes: n samples of the set, B samples of a batch, M distinct captions or classes, E embedding, T tokens, r rows of a
chunk, P pairs, K ranks of recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from modelchain.families.family import ImageTextConfig
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.evaluation.evaluation_set import EvaluationBatch, EvaluationSource, Run
from modelchain_trainer.losses import full_precision
from modelchain_trainer.model.clip import crop_tokens
from modelchain_trainer.model.family import AnyModel, ImageTextModel

TEXT_BATCH = 256
CHUNK_ELEMENTS = 2**24  # scores held at once: 64 MiB


class Encoder:
    """Embeddings on the model's device, shared over ranks: each computes some batches, all have all."""

    def __init__(self, model: AnyModel, run: Run) -> None:
        assert isinstance(model, ImageTextModel)
        assert run.tokenizer is not None
        self.model: ImageTextModel[ImageTextConfig] = model
        self.tokenizer = run.tokenizer
        self.run = run
        self.group = run.group
        self.device = model.logit_scale.device
        self.dtype = model.logit_scale.dtype
        self.size = model.config.embed_dim

    def images(self, images_u8_B3HW: Tensor) -> Tensor:
        """Unit embeddings [B, E]."""
        with self.run.autocast(self.device):
            return self.model.encode_image(normalize(images_u8_B3HW.to(self.device), self.dtype))

    def texts(self, tokens_MT: Tensor) -> Tensor:
        """Unit embeddings [M, E]; batches are spread over ranks."""
        text_ME = torch.zeros(tokens_MT.shape[0], self.size, dtype=self.dtype, device=self.device)
        for number, start in enumerate(range(0, tokens_MT.shape[0], TEXT_BATCH)):
            if number % self.group.world_size == self.group.rank:
                tokens_BT = crop_tokens(tokens_MT[start : start + TEXT_BATCH]).to(self.device)
                with self.run.autocast(self.device):
                    text_ME[start : start + TEXT_BATCH] = self.model.encode_text(tokens_BT)
                self.run.on_progress()
        return self.group.sum(text_ME)

    def embed(
        self, source: EvaluationSource, answers: Callable[[EvaluationBatch], Tensor], *, width: int, name: str
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [n, E] of a set's readable images and the answer to each, int64 [n, width], on every rank.

        Each rank fills its rows of a table of zeros, and the sum of all ranks' tables is the table. Raises
        UserDataError where too few samples of the set `name` can be used.
        """
        samples = len(source)
        image_nE = torch.zeros(samples, self.size, dtype=self.dtype, device=self.device)
        answer_nA = torch.zeros(samples, width, dtype=torch.int32, device=self.device)
        readable_n = torch.zeros(samples, dtype=torch.int32, device=self.device)
        for batch in source.batches(self.group.rank, self.group.world_size):
            self.run.on_progress()
            if not len(batch.indices):
                continue
            rows_B = batch.indices.to(self.device)
            image_nE[rows_B] = self.images(batch.images)
            answer_nA[rows_B] = answers(batch).to(self.device, torch.int32)
            readable_n[rows_B] = 1
        readable_n = self.group.sum(readable_n).bool()
        source.check_readable(readable_n, name)
        return self.group.sum(image_nE)[readable_n], self.group.sum(answer_nA)[readable_n].long()


def hits(
    rows_RE: Tensor, columns_ME: Tensor, pairs_P2: Tensor, ks: Sequence[int], group: Group
) -> list[float]:
    """For each k the share of rows that have one of their columns among the k of highest score.

    `pairs_P2` lists which columns belong to a row. Where other columns score exactly as high as a row's best
    own one, the row counts with the chance of a random order, so that a model that says the same of
    everything gets no credit.
    """
    hits_RK = torch.zeros(rows_RE.shape[0], len(ks), dtype=torch.float64, device=rows_RE.device)
    for start, end in row_chunks(rows_RE.shape[0], columns_ME.shape[0], group):
        with full_precision(rows_RE.device):
            score_rM = rows_RE[start:end] @ columns_ME.T
        own_rM = torch.zeros_like(score_rM, dtype=torch.bool)
        mine_P = (pairs_P2[:, 0] >= start) & (pairs_P2[:, 0] < end)
        own_rM[pairs_P2[mine_P, 0] - start, pairs_P2[mine_P, 1]] = True
        best_r1 = score_rM.masked_fill(~own_rM, -torch.inf).amax(dim=1, keepdim=True)
        equal_r1 = ((score_rM == best_r1) & ~own_rM).sum(dim=1, keepdim=True)
        # Not "greater": a model that says NaN must not be right.
        better_r1 = (~(score_rM < best_r1) & ~own_rM).sum(dim=1, keepdim=True) - equal_r1
        places_K = torch.tensor(ks, dtype=torch.float64, device=rows_RE.device)
        hits_RK[start:end] = ((places_K - better_r1) / (equal_r1 + 1)).clamp(0, 1)
    return group.sum(hits_RK).mean(dim=0).tolist()


def row_chunks(rows: int, columns: int, group: Group) -> Iterator[tuple[int, int]]:
    """This rank's part of `rows`, from and to, in pieces of at most CHUNK_ELEMENTS scores."""
    size = max(1, CHUNK_ELEMENTS // columns)
    for number, start in enumerate(range(0, rows, size)):
        if number % group.world_size == group.rank:
            yield start, min(start + size, rows)
