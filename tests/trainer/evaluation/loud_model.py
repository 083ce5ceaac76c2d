"""A model whose figures differ from sample to sample without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modelchain.families import ModelConfig
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.clip import Clip


@contextmanager
def loud_model(config: ModelConfig) -> Iterator[Clip]:
    """A new model, louder: else it says nearly the same of everything. Meanwhile torch has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    built = build_model(config, seed=3)
    with torch.no_grad():
        built.token_embedding.weight.mul_(20)
        for name, parameter in built.visual.named_parameters():
            if ".attn." in name and parameter.ndim == 2:
                parameter.mul_(4)
    yield built
    torch.set_num_threads(threads)
