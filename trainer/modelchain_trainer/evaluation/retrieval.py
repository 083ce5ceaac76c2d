"""Retrieval: images find their captions, and captions their images.

Shapes: n samples of the set, M distinct captions, C captions of a sample, E embedding, T tokens, r rows of a chunk,
P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modelchain.evaluations import RECALL_AT
from modelchain.spec import EvaluationSpec
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.evaluation.embeddings import Encoder, hits, row_chunks
from modelchain_trainer.evaluation.evaluation_set import (
    EvaluationBatch,
    EvaluationSet,
    EvaluationSource,
    Opening,
    Run,
)
from modelchain_trainer.evaluation.images import open_images
from modelchain_trainer.losses import full_precision
from modelchain_trainer.model.family import AnyModel


@dataclass(frozen=True)
class RetrievalSet(EvaluationSet):
    """Images with captions."""

    spec: EvaluationSpec
    source: EvaluationSource
    captions: int  # of each sample

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> RetrievalSet:
        """The samples, with as many captions as the set or else the stage names.

        Raises MissingInputError for shards that do not exist.
        """
        captions = len(spec.data.caption_keys or opening.stage.data.caption_keys)
        return cls(spec, open_images(spec, opening), captions)

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """`loss`, the contrastive loss over the whole set, and `imageToText@k`, `textToImage@k` for k of 1, 5, 10: the
        share of images that find one of their captions among the k best of all distinct captions, and of distinct
        captions that find one of their images.
        """
        encoder = Encoder(model, run)

        def answers(batch: EvaluationBatch) -> Tensor:
            assert batch.captions is not None
            tokens = encoder.tokenizer([caption for captions in batch.captions for caption in captions])
            return tokens.reshape(len(batch.captions), -1)

        context = encoder.model.config.text_length
        image_nE, tokens_nCT = encoder.embed(
            self.source, answers, width=self.captions * context, name=self.spec.name
        )
        tokens_nCT = tokens_nCT.unflatten(1, (-1, context)).cpu()
        # Captions that read the same are one candidate: which of them is found says nothing.
        distinct_MT, text_of_nC = torch.unique(tokens_nCT.flatten(0, 1), dim=0, return_inverse=True)
        text_of_nC = text_of_nC.view(tokens_nCT.shape[:2]).to(encoder.device)
        text_ME = encoder.texts(distinct_MT)

        n, captions = text_of_nC.shape
        image_of_P = torch.arange(n, device=encoder.device).repeat_interleave(captions)
        pairs_P2 = torch.stack([image_of_P, text_of_nC.flatten()], dim=1)
        to_text = hits(image_nE, text_ME, pairs_P2, RECALL_AT, run.group)
        to_image = hits(text_ME, image_nE, pairs_P2.flip(1), RECALL_AT, run.group)
        scale = encoder.model.logit_scale.exp()
        losses = [_loss(image_nE * scale, text_ME[text_of_nC[:, c]], run.group) for c in range(captions)]
        return {
            "loss": sum(losses) / captions,
            **{f"imageToText@{k}": share for k, share in zip(RECALL_AT, to_text, strict=True)},
            **{f"textToImage@{k}": share for k, share in zip(RECALL_AT, to_image, strict=True)},
        }


def _loss(scaled_nE: Tensor, text_nE: Tensor, group: Group) -> float:
    """Symmetric contrastive loss of n pairs, n x n logits in chunks."""
    loss_n = torch.zeros(scaled_nE.shape[0], dtype=torch.float64, device=scaled_nE.device)
    for start, end in row_chunks(scaled_nE.shape[0], scaled_nE.shape[0], group):
        for rows_nE, columns_nE in ((scaled_nE, text_nE), (text_nE, scaled_nE)):
            with full_precision(rows_nE.device):
                logits_rn = rows_nE[start:end] @ columns_nE.T
            loss_n[start:end] += (logits_rn.logsumexp(dim=1) - logits_rn.diagonal(start)) / 2
    return group.sum(loss_n).mean().item()
