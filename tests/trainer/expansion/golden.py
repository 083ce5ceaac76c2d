"""What growth makes of given weights: two sums of each tensor, as they are recorded in golden_growth.json.

    make goldens        writes the file anew, where growth is meant to change

A growth that changes makes other weights of chains that are trained already, under the same digests: `digest.py` says
what has to change with it. Sums and not hashes, because processors round differently.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from modelchain.families import AnyConfig, Pooling
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import expand
from modelchain_trainer.model.build import parameter_shapes
from tests.trainer.expansion.families import classifier, language_model
from tests.trainer.expansion.growth import config_of

FILE: Final = Path(__file__).with_name("golden_growth.json")
_AVERAGE: Final[dict[str, Any]] = {"pooling": Pooling.AVERAGE, "input_norm": False, "layer_scale": 0.3}

Sums = dict[str, list[float]]  # of each tensor: weighted by a wave along it, and of squares


def cases() -> dict[str, tuple[AnyConfig, AnyConfig, ResolvedExpansion]]:
    """Growth of every family, and every setting of width and depth."""
    clip, larger = config_of(), config_of((24, 4), (40, 3), embed=20)
    return {
        "clip, exact": (clip, larger, ResolvedExpansion()),
        "clip, padded": (clip, larger, ResolvedExpansion(width=WidthExpansion.PADDED)),
        "clip, the paper's": (
            clip,
            config_of((24, 4), (40, 4), embed=20),
            ResolvedExpansion(width=WidthExpansion.SLICE, depth=DepthExpansion.INTERLEAVE),
        ),
        "clip, stacked": (clip, larger, ResolvedExpansion(depth=DepthExpansion.STACK)),
        "clip, wider heads": (
            clip,
            config_of((24, 2), (24, 2), vision_head=12, text_head=12),
            ResolvedExpansion(),
        ),
        "clip, other patches": (clip, config_of(image=24, patch=6), ResolvedExpansion()),
        "clip, averaged": (
            config_of(tower=_AVERAGE, causal=False),
            config_of((32, 3), (24, 3), tower=_AVERAGE, causal=False),
            ResolvedExpansion(),
        ),
        "classifier": (classifier(), classifier(width=24, layers=3, ratio=5.0), ResolvedExpansion()),
        "language model": (
            language_model(),
            language_model(width=40, layers=5, ratio=4.7),
            ResolvedExpansion(),
        ),
    }


def sums_of(small: AnyConfig, large: AnyConfig, expansion: ResolvedExpansion) -> Sums:
    """Of the large model that grows, in fp64, out of weights that a formula gives."""
    grown = expand(_weights(small), small, large, expansion, seed=0)
    return {
        name: [
            _rounded((tensor.flatten() * _wave(tensor.numel())).sum()),
            _rounded(tensor.square().sum()),
        ]
        for name, tensor in grown.items()
    }


def _rounded(value: Tensor) -> float:
    return float(f"{float(value):.9g}")


def _weights(config: AnyConfig) -> dict[str, Tensor]:
    """No two equal, and all of the size of trained ones."""
    return {
        name: (0.5 + 0.3 * _wave(shape.numel(), start=number)).reshape(shape)
        for number, (name, shape) in enumerate(parameter_shapes(config).items())
    }


def _wave(length: int, start: int = 0) -> Tensor:
    return torch.sin(start + math.sqrt(2) * torch.arange(length, dtype=torch.float64))


if __name__ == "__main__":
    recorded = {name: sums_of(*case) for name, case in cases().items()}
    lines = [
        f"{json.dumps(name)}: {{\n" + ",\n".join(f" {json.dumps(n)}: {s}" for n, s in sums.items()) + "\n}"
        for name, sums in recorded.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
