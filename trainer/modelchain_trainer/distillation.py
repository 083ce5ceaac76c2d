"""Feature distillation of CLIP models from the teacher: the squared distance of normalised embeddings.

Chain-of-Models Pre-Training (arXiv 2604.12391), L_IFD, with the squared distance *summed* over dimensions and
averaged over the batch, so that a weight means the same at every embedding size.

Shapes: b rows of this rank, N rows of the global batch, C captions, E embedding of the student, F of the
teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelchain_trainer.expansion.embedding import embedding_map


class Projections(nn.Module):
    """Linear maps from the student's embeddings to the teacher's, where their sizes differ.

    Trained with the student, kept in checkpoints, left behind at the end. They start as the map that growth
    turns embeddings with (`embedding_map`): a grown student begins at its teacher's embedding exactly.
    """

    def __init__(self, student_size: int, teacher_size: int) -> None:
        super().__init__()
        start = (
            embedding_map(teacher_size, student_size).float()
            if teacher_size < student_size
            else torch.eye(teacher_size, student_size)
        )
        self.image = nn.Parameter(start.clone())
        self.text = nn.Parameter(start.clone())


def build_projections(student_size: int, teacher_size: int) -> Projections | None:
    """The projections between embeddings of these sizes; None where they agree and none is needed."""
    return None if student_size == teacher_size else Projections(student_size, teacher_size)


@dataclass(frozen=True)
class Distance:
    """One term of the distillation loss: this rank's share of it and its gradients."""

    loss: Tensor  # []; the sum over all ranks is the term
    student_gradient: Tensor  # [rows, E]
    projection_gradient: Tensor | None  # [F, E], this rank's share


def distance(
    student_RE: Tensor, teacher_RF: Tensor, projection_FE: Tensor | None, *, weight: float, rows: int
) -> Distance:
    """`weight` times the squared distance between embeddings, averaged over `rows`, the rows of all ranks
    together.

    `student_RE` and `teacher_RF` are L2-normalised rows of this rank. No autograd: the gradients are written
    out.
    """
    projected_RF = student_RE if projection_FE is None else student_RE @ projection_FE.T
    difference_RF = projected_RF - teacher_RF
    loss = difference_RF.square().sum() * (weight / rows)
    gradient_RF = difference_RF * (2 * weight / rows)
    if projection_FE is None:
        return Distance(loss, gradient_RF, None)
    return Distance(loss, gradient_RF @ projection_FE, gradient_RF.T @ student_RE)
