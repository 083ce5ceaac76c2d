"""A causal language model: GPT-2's function (Radford et al. 2019), over documents packed into sequences.

A sequence holds several documents, each behind an end-of-text token. A token attends to those before it in its own
document only, and positions start again with each document: so a document's logits are those that it has alone.
What of a document stands in an earlier sequence is not seen; it begins anew at position 0.

Shape suffixes: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from modelchain.families import Activation, LanguageModelConfig
from modelchain_trainer.model import gpt2_config
from modelchain_trainer.model.family import Family, Model
from modelchain_trainer.model.layers import Embedding, LayerNorm, check_buildable, empty
from modelchain_trainer.model.layout import (
    ZERO,
    Axis,
    BlockStarts,
    Kind,
    Layout,
    Parameter,
    Space,
    TowerSpaces,
    norm,
    normal,
    transformer,
)
from modelchain_trainer.model.transformer import GELU, GELU_TANH, Transformer

_DEVIATION = (
    0.02  # of GPT-2's first weights; of what writes into the stream by the root of twice the layers less
)
_TOWER = "transformer.resblocks."
_TEXT = TowerSpaces.named("text")
_VOCABULARY, _CONTEXT = Space("vocabulary", Kind.FIXED), Space("context", Kind.FIXED)
_READING = Space("text.reading", Kind.TIED_READING, stream=_TEXT.stream.name)


class LanguageModel(Model[LanguageModelConfig]):
    """The whole model. Parameters are allocated but not initialised: use `build_model` or `model_from`."""

    def __init__(self, config: LanguageModelConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        check_buildable(config)
        self.config = config
        self.token_embedding = Embedding(config.vocabulary_size, config.width, device=device)
        self.positional_embedding = empty(config.context_length, config.width, device=device)
        self.transformer = Transformer(
            config.width,
            config.layers,
            config.heads,
            config.hidden_width,
            GELU_TANH if config.activation is Activation.GELU_TANH else GELU,
            causal=True,
            device=device,
        )
        self.ln_final = LayerNorm(config.width, device=device)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Keep only each block's input for the backward pass and compute the rest again."""
        self.transformer.gradient_checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile the blocks, each by itself (see `Clip.compile_blocks`)."""
        for block in self.transformer.resblocks:
            block.compile(dynamic=None)

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Features [B, T, D], which `logits` reads, of int64 tokens, T at most the context.

        `positions_BT` (int64) are their places in their documents; None: each sequence is one document.
        """
        if positions_BT is None:
            positions_TD = self.positional_embedding[: tokens_BT.shape[1]]
            x_BTD = self.token_embedding(tokens_BT) + positions_TD
            return self.ln_final(self.transformer.sequence(x_BTD, None))
        x_BTD = self.token_embedding(tokens_BT) + F.embedding(positions_BT, self.positional_embedding)
        return self.ln_final(self.transformer.sequence(x_BTD, visible(positions_BT)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits [..., V] of features [..., D]."""
        return F.linear(features, self.token_embedding.weight)

    def predict(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of the token behind each; see `forward`."""
        return self.logits(self(tokens_BT, positions_BT))


def visible(positions_BT: Tensor) -> Tensor:
    """Which tokens each token attends to, bool [B, T, T]: those before it in its document, and itself."""
    document_BT = (positions_BT == 0).cumsum(dim=1)
    place_T = torch.arange(positions_BT.shape[1], device=positions_BT.device)
    return (document_BT[:, :, None] == document_BT[:, None, :]) & (place_T[:, None] >= place_T)


@lru_cache(maxsize=16)
def language_model_layout(config: LanguageModelConfig) -> Layout:
    """The layout of a `LanguageModel`: the table of tokens writes into the stream, and reads its last norm."""
    stream, usual = _TEXT.stream, normal(_DEVIATION)
    deep = normal(_DEVIATION * (2 * config.layers) ** -0.5)
    starts = BlockStarts(
        in_proj=usual, out_proj=deep, c_fc=usual, c_fc_bias=ZERO, c_proj=deep, c_proj_bias=ZERO
    )
    return Layout(
        parameters={
            "token_embedding.weight": Parameter((Axis(_VOCABULARY), Axis(stream)), usual),
            "positional_embedding": Parameter((Axis(_CONTEXT), Axis(stream)), usual),
            **transformer(_TOWER, _TEXT, config.layers, starts),
            **norm("ln_final", _READING),
        },
        sizes={
            **_TEXT.sizes(config.width, config.hidden_width),
            _READING.name: config.width,
            _VOCABULARY.name: config.vocabulary_size,
            _CONTEXT.name: config.context_length,
        },
        depths={_TOWER: config.layers},
    )


LANGUAGE_MODEL = Family(
    config=LanguageModelConfig,
    build=lambda config, device: LanguageModel(config, device=device),
    layout=language_model_layout,
    to_config=gpt2_config.to_gpt2,
    from_config=gpt2_config.from_gpt2,
    published_names=gpt2_config.gpt2_names,
    own_names=gpt2_config.own_names,
)
