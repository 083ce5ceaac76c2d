"""Growth of the shared embedding: an isometry, so that every similarity stays what it was.

Appending zero columns to both projections would keep similarities too, but for ever: the gradient of a
product of two zeros is zero, so contrastive training could never use the new dimensions. Instead both towers'
embeddings are turned into the larger space by one matrix with orthonormal rows,

    map = [ I - (1 - cos) P P^T | sin P ]       (map map^T = I)

where P is random with orthonormal columns (rows, if the space more than doubles). Norms and inner products
are kept exactly, the leading dimensions stay nearly what they were, and every new dimension has features of
its own mixture, hence a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelchain_trainer.model.build import generator_for

_SINE = 0.5


def embedding_map(small: int, large: int) -> Tensor:
    """The map [small, large] (fp64, orthonormal rows) that growth multiplies both projections with.

    The same for the same sizes. A grown model's embedding is its predecessor's times this; so its transpose
    is the projection back at which a distillation loss starts at zero.
    """
    new = large - small
    if new == 0:
        return torch.eye(small, dtype=torch.float64)
    generator = generator_for("embedding", seed=0)
    random = torch.randn(max(small, new), min(small, new), dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(random).Q
    p = basis if new <= small else basis.T
    kept = torch.eye(small, dtype=torch.float64) - (1 - math.sqrt(1 - _SINE**2)) * (p @ p.T)
    return torch.cat([kept, _SINE * p], dim=1)
