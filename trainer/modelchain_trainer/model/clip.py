"""CLIP: an image transformer and a causal text transformer that share an embedding space.

Parameter names, shapes and function are open_clip's `CLIP` (github.com/mlfoundations/open_clip, after Radford
et al., arXiv 2103.00020), so a state dict fits both. What differs is only how the function is computed:

- q, k and v come from one matrix product, attention from torch's fused kernel, causality as a flag instead of
  a mask;
- patches are cut by a reshape and projected by a matrix product (the convolution's stride is its kernel
  size);
- the last block computes only the token that is pooled, if one is: the others' outputs are read by nobody. That is
  exact, and saves most of one block of each tower, forwards and backwards;
- texts may be cut after the longest caption (`crop_tokens`; in training each bucket of texts of like length, see
  captions.py): a causal tower pools at the end-of-text token, so no position behind it can reach the embedding. One
  that is not causal (open_clip's `no_causal_mask`) is given the padding again;
- under autocast the residual stream stays fp32 in both towers, which takes fewer casts than a bf16 stream and
  rounds less; embeddings are normalised in fp32 at least.

Shape suffixes: B images or texts, T tokens, D width, H heads, K width of a head, N patches, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from modelchain.families import DualEncoderConfig, LockedTower, ModelConfig, VisionSpec
from modelchain_trainer.model import open_clip_config, transformers_clip
from modelchain_trainer.model.clip_layout import clip_layout
from modelchain_trainer.model.family import Family, ImageTextModel, ImageTower
from modelchain_trainer.model.layers import (
    CHANNELS,
    Embedding,
    LayerNorm,
    PatchEmbedding,
    check_buildable,
    empty,
    grid_side,
    keep_patches,
    vision_heads,
)
from modelchain_trainer.model.transformer import GELU, QUICK_GELU, Transformer, image_features

C = TypeVar("C", bound=DualEncoderConfig)
MOST_COMPILATIONS = 32  # of one block's code; torch's default is 8


class DualEncoder(ImageTextModel[C]):
    """A text tower beside an image tower of whatever kind, which has been built for the same embedding."""

    logit_bias: nn.Parameter | None

    def __init__(self, config: C, visual: nn.Module, *, device: torch.device | str | None) -> None:
        super().__init__()
        text = config.text
        self.config = config
        self.visual = visual
        self.token_embedding = Embedding(text.vocab_size, text.width, device=device)
        self.positional_embedding = empty(text.context_length, text.width, device=device)
        self.transformer = Transformer(
            text.width,
            text.layers,
            text.heads,
            text.hidden_width,
            _activation(config.quick_gelu),
            causal=text.causal,
            device=device,
        )
        self.ln_final = LayerNorm(text.width, device=device)
        self.text_projection = empty(text.width, config.embed_dim, device=device)
        self.logit_scale = empty(device=device)
        self.register_parameter("logit_bias", empty(device=device) if config.logit_bias else None)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`. This is of the text tower."""
        self.transformer.gradient_checkpointing = enabled

    def lock(self, tower: LockedTower) -> None:
        """See `ImageTextModel`."""
        image = tower is LockedTower.IMAGE
        for name, parameter in self.named_parameters():
            if name not in ("logit_scale", "logit_bias") and name.startswith("visual.") == image:
                parameter.requires_grad_(False)

    def compile_blocks(self) -> None:
        """Compile the blocks of the text tower, each by itself.

        All blocks of a tower run one compiled code, so that it takes seconds however many there are; whole towers
        take minutes. Texts come in many lengths and numbers, which is one code too.
        """
        # Training with and without a graph, teaching and evaluating are codes of their own of one block.
        torch._dynamo.config.recompile_limit = MOST_COMPILATIONS  # noqa: SLF001 - documented, whatever its name
        self.transformer.compile_blocks(dynamic=True)

    def encode_text(self, tokens_BT: Tensor, normalize: bool = True) -> Tensor:
        """Embeddings [B, E] of texts.

        `tokens_BT` is int64 [B, T] with T at most the context length; the end-of-text token is the largest of
        each row. Pass what `crop_tokens` returns: the result is the same, and in a causal tower the work shrinks
        with T.
        """
        return self._encode(tokens_BT, self.token_embedding(self._padded(tokens_BT)), normalize)

    def encode_texts(self, texts: Sequence[Tensor]) -> Tensor:
        """See `ImageTextModel`."""
        embedded = self._embedded([self._padded(tokens_BT) for tokens_BT in texts])
        return torch.cat([self._encode(*each) for each in zip(texts, embedded, strict=True)])

    def _embedded(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """The rows [B, T, D] of the vocabulary's table for several matrices of tokens [B, T].

        On the CPU each row is taken from the table once for all of them: the gradient of a lookup is as large as the
        table, and to make and add up one a matrix takes as long as much of a small model. The sums are the same bits.
        """
        if len(texts) == 1 or texts[0].is_cuda:  # which `unique` would wait for
            return [self.token_embedding(tokens_BT) for tokens_BT in texts]
        tokens_P = torch.cat([tokens_BT.flatten() for tokens_BT in texts])
        used_U, place_P = tokens_P.unique(return_inverse=True)
        rows_UD = self.token_embedding(used_U)
        places = place_P.split([tokens_BT.numel() for tokens_BT in texts])
        return [
            F.embedding(place_BT.view(tokens_BT.shape), rows_UD)
            for tokens_BT, place_BT in zip(texts, places, strict=True)
        ]

    def _padded(self, tokens_BT: Tensor) -> Tensor:
        """The tokens that the tower sees: one that is not causal sees the padding."""
        if self.transformer.causal:
            return tokens_BT
        return F.pad(tokens_BT, (0, self.config.text.context_length - tokens_BT.shape[1]))

    def _encode(self, tokens_BT: Tensor, embedded_BTD: Tensor, normalize: bool = True) -> Tensor:
        """Embeddings of texts out of those of their tokens, padded as the tower sees them."""
        x_BTD = embedded_BTD + self.positional_embedding[: embedded_BTD.shape[1]]
        pooled_BD = self.ln_final(self.transformer(x_BTD, tokens_BT.argmax(dim=-1)))
        text_BE = pooled_BD @ self.text_projection
        return unit(text_BE) if normalize else text_BE

    def forward(self, images_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit image embeddings [B, E], unit text embeddings [B', E] and the factor [] of their products."""
        return self.encode_image(images_BCHW), self.encode_text(tokens_BT), self.logit_scale.exp()


class Clip(DualEncoder[ModelConfig]):
    """The whole model. Parameters are allocated but not initialised: use `build_model` or `model_from`."""

    visual: VisionTower

    def __init__(self, config: ModelConfig, *, device: torch.device | str | None = None) -> None:
        check_buildable(config)
        super().__init__(config, _image_tower(config, device), device=device)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`."""
        super().set_gradient_checkpointing(enabled)
        self.visual.set_gradient_checkpointing(enabled)

    def compile_blocks(self) -> None:
        """Of both towers."""
        super().compile_blocks()
        self.visual.transformer.compile_blocks(dynamic=None)

    def image_tower(self) -> ImageTower:
        """The image tower, up to the embedding."""
        return self.visual

    def new_image_tower(self) -> ImageTower:
        """See `Model`."""
        return _image_tower(self.config, self.logit_scale.device)

    def encode_image(
        self, images_BCHW: Tensor, normalize: bool = True, kept_BK: Tensor | None = None
    ) -> Tensor:
        """Embeddings [B, E] of normalised float images [B, 3, S, S]; of unit length if `normalize`.

        `kept_BK` are the places of the patches that are seen; None: all.
        """
        image_BE = self.visual(images_BCHW, kept_BK)
        return unit(image_BE) if normalize else image_BE


def crop_tokens(tokens: Tensor, *, multiple_of: int = 1) -> Tensor:
    """Tokens [..., T] cut after the last end-of-text token of the batch: a view [..., T'] with T' <= T.

    `multiple_of` rounds T' up, so that compiled kernels see fewer lengths. Call it on CPU tensors: on a GPU
    it would wait for the device. Embeddings are those of the uncropped tokens.
    """
    if tokens.numel() == 0:
        return tokens
    longest = int(tokens.argmax(dim=-1).max()) + 1
    rounded = -(-longest // multiple_of) * multiple_of
    return tokens[..., : min(rounded, tokens.shape[-1])]


class VisionTower(ImageTower):
    """Patches and a class token through a transformer; the class token's output, or the mean of the patches',
    projected, is the embedding."""

    def __init__(
        self, vision: VisionSpec, embed_dim: int, quick_gelu: bool, device: torch.device | str | None
    ) -> None:
        super().__init__()
        width, patch = vision.width, vision.patch_size
        self.vision = vision
        self.conv1 = PatchEmbedding(CHANNELS, width, patch, patch, bias=False, device=device)
        self.class_embedding = empty(width, device=device)
        self.positional_embedding = empty(grid_side(vision) ** 2 + 1, width, device=device)
        self.ln_pre = LayerNorm(width, device=device) if vision.input_norm else nn.Identity()
        self.transformer = Transformer(
            width,
            vision.layers,
            vision_heads(vision),
            vision.hidden_width,
            _activation(quick_gelu),
            causal=False,
            device=device,
            layer_scale=vision.layer_scale is not None,
        )
        self.ln_post = LayerNorm(width, device=device)
        self.proj = empty(width, embed_dim, device=device)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`."""
        self.transformer.gradient_checkpointing = enabled

    def forward(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        patches_BND = self.conv1(images_BCHW)
        class_B1D = self.class_embedding.expand(patches_BND.shape[0], 1, -1)
        x_BTD = torch.cat([class_B1D, patches_BND], dim=1) + self.positional_embedding
        x_BTD = self.ln_pre(keep_patches(x_BTD, kept_BK))
        return image_features(self.transformer, self.ln_post, x_BTD, self.vision) @ self.proj


def _activation(quick_gelu: bool) -> str:
    return QUICK_GELU if quick_gelu else GELU


def _image_tower(config: ModelConfig, device: torch.device | str | None) -> VisionTower:
    return VisionTower(config.vision, config.embed_dim, config.quick_gelu, device)


def unit(x_BE: Tensor) -> Tensor:
    """Embeddings of unit length, in fp32 at least."""
    return F.normalize(x_BE.to(torch.promote_types(x_BE.dtype, torch.float32)), dim=-1)


CLIP = Family(
    config=ModelConfig,
    build=lambda config, device: Clip(config, device=device),
    layout=clip_layout,
    to_config=open_clip_config.to_open_clip,
    from_config=open_clip_config.from_open_clip,
    other_files=transformers_clip.OTHER_FILES,
)
