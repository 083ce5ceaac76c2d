"""CLIP: an image transformer and a causal text transformer that share an embedding space.

Parameter names, shapes and function are open_clip's `CLIP` (github.com/mlfoundations/open_clip, after Radford
et al., arXiv 2103.00020), so a state dict fits both. What differs is only how the function is computed:

- q, k and v come from one matrix product, attention from torch's fused kernel, causality as a flag instead of
  a mask;
- patches are cut by a reshape and projected by a matrix product (the convolution's stride is its kernel
  size);
- the last block computes only the token that is pooled: the others' outputs are read by nobody. That is
  exact, and saves most of one block of each tower, forwards and backwards;
- texts may be cut after the longest caption (`crop_tokens`; in training each bucket of texts of like length, see
  captions.py): the tower is causal and pools at the end-of-text token, so no position behind it can reach the
  embedding;
- under autocast the residual stream stays fp32 in both towers, which takes fewer casts than a bf16 stream and
  rounds less; embeddings are normalised in fp32 at least.

Shape suffixes: B images or texts, T tokens, D width, H heads, K width of a head, N patches, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelchain.errors import ConfigurationError
from modelchain.growth import unbuildable
from modelchain.spec import AnyConfig, ModelConfig, VisionSpec

CHANNELS = 3
MOST_COMPILATIONS = 32  # of one block's code; torch's default is 8


class Clip(nn.Module):
    """The whole model. Parameters are allocated but not initialised: use `build_model` or `model_from`."""

    logit_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        check_buildable(config)
        text = config.text
        self.config = config
        self.visual = VisionTower(config.vision, config.embed_dim, config.quick_gelu, device)
        self.token_embedding = Embedding(text.vocab_size, text.width, device=device)
        self.positional_embedding = _empty(text.context_length, text.width, device=device)
        self.transformer = Transformer(
            text.width,
            text.layers,
            text.heads,
            text.hidden_width,
            config.quick_gelu,
            causal=True,
            device=device,
        )
        self.ln_final = LayerNorm(text.width, device=device)
        self.text_projection = _empty(text.width, config.embed_dim, device=device)
        self.logit_scale = _empty(device=device)
        self.register_parameter("logit_bias", _empty(device=device) if config.logit_bias else None)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: less memory, more
        time."""
        self.visual.transformer.gradient_checkpointing = enabled
        self.transformer.gradient_checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile the blocks of both towers, each by itself.

        All blocks of a tower run one compiled code, so that it takes seconds however many there are; whole towers
        take minutes. Texts come in many lengths and numbers, which is one code too.
        """
        # Training with and without a graph, teaching and evaluating are codes of their own of one block.
        torch._dynamo.config.recompile_limit = MOST_COMPILATIONS  # noqa: SLF001 - documented, whatever its name
        self.visual.transformer.compile_blocks(dynamic=None)
        self.transformer.compile_blocks(dynamic=True)

    def encode_image(self, images_BCHW: Tensor, normalize: bool = True) -> Tensor:
        """Embeddings [B, E] of normalised float images [B, 3, S, S]; of unit length if `normalize`."""
        image_BE = self.visual(images_BCHW)
        return _unit(image_BE) if normalize else image_BE

    def encode_text(self, tokens_BT: Tensor, normalize: bool = True) -> Tensor:
        """Embeddings [B, E] of texts.

        `tokens_BT` is int64 [B, T] with T at most the context length; the end-of-text token is the largest of
        each row. Pass what `crop_tokens` returns: the result is the same and the work shrinks with T.
        """
        eot_B = tokens_BT.argmax(dim=-1)
        x_BTD = self.token_embedding(tokens_BT) + self.positional_embedding[: tokens_BT.shape[1]]
        pooled_BD = self.ln_final(self.transformer(x_BTD, eot_B))
        text_BE = pooled_BD @ self.text_projection
        return _unit(text_BE) if normalize else text_BE

    def forward(self, images_BCHW: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit image embeddings [B, E], unit text embeddings [B', E] and the factor [] of their products."""
        return self.encode_image(images_BCHW), self.encode_text(tokens_BT), self.logit_scale.exp()


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


def vision_heads(vision: VisionSpec) -> int:
    """Attention heads of the image tower."""
    return vision.width // vision.head_width


def grid_side(vision: VisionSpec) -> int:
    """Patches along one side of the image."""
    return vision.image_size // vision.patch_size


def check_buildable(config: AnyConfig) -> None:
    """Raise ConfigurationError for a configuration that is no model: sizes that do not divide."""
    for part, message, remedy in unbuildable(config):
        raise ConfigurationError(f"{'.'.join(part)}: {message}; {remedy}")


class VisionTower(nn.Module):
    """Patches and a class token through a transformer; the class token's output, projected, is the
    embedding."""

    def __init__(
        self, vision: VisionSpec, embed_dim: int, quick_gelu: bool, device: torch.device | str | None
    ) -> None:
        super().__init__()
        width, patch = vision.width, vision.patch_size
        self.conv1 = PatchEmbedding(CHANNELS, width, patch, patch, bias=False, device=device)
        self.class_embedding = _empty(width, device=device)
        self.positional_embedding = _empty(grid_side(vision) ** 2 + 1, width, device=device)
        self.ln_pre = LayerNorm(width, device=device)
        self.transformer = Transformer(
            width,
            vision.layers,
            vision_heads(vision),
            vision.hidden_width,
            quick_gelu,
            causal=False,
            device=device,
        )
        self.ln_post = LayerNorm(width, device=device)
        self.proj = _empty(width, embed_dim, device=device)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        patches_BND = self.conv1(images_BCHW)
        class_B1D = self.class_embedding.expand(patches_BND.shape[0], 1, -1)
        x_BTD = self.ln_pre(torch.cat([class_B1D, patches_BND], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x_BTD, None)) @ self.proj


class Transformer(nn.Module):
    """Pre-norm blocks, of which the last computes the pooled token only."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        quick_gelu: bool,
        *,
        causal: bool,
        device: torch.device | str | None,
        norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.gradient_checkpointing = False
        self.resblocks = nn.ModuleList(
            Block(width, heads, hidden, quick_gelu, device, norm_epsilon) for _ in range(layers)
        )

    def forward(self, x_BTD: Tensor, pooled_B: Tensor | None) -> Tensor:
        """The output [B, D] at position `pooled_B` of each row; None is position 0 of an uncausal tower."""
        *blocks, last = cast("list[Block]", list(self.resblocks))
        for block in blocks:
            x_BTD = self._run(block, x_BTD, self.causal)
        return self._run(last.pooled, x_BTD, pooled_B)

    def compile_blocks(self, *, dynamic: bool | None) -> None:
        """See `Clip.compile_blocks`."""
        *blocks, last = cast("list[Block]", list(self.resblocks))
        for block in blocks:
            block.compile(dynamic=dynamic)
        last.pooled = torch.compile(last.pooled, dynamic=dynamic)

    def _run(self, part: Callable[..., Tensor], *arguments: object) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *arguments, use_reentrant=False)
        return part(*arguments)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        quick_gelu: bool,
        device: torch.device | str | None,
        norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width, eps=norm_epsilon, device=device)
        self.attn = Attention(width, heads, device)
        self.ln_2 = LayerNorm(width, eps=norm_epsilon, device=device)
        self.mlp = Mlp(width, hidden, quick_gelu, device)

    def forward(self, x_BTD: Tensor, causal: bool) -> Tensor:
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD), causal)
        return x_BTD + self.mlp(self.ln_2(x_BTD))

    def pooled(self, x_BTD: Tensor, position_B: Tensor | None) -> Tensor:
        """The block's output [B, D] at one position of each row, which attends to all positions up to itself.

        None is position 0, which attends to all positions (the class token of the uncausal image tower).
        """
        if position_B is None:
            x_BD, visible_BT = x_BTD[:, 0], None
        else:
            # Not `take_along_dim`: torch.compile takes the number of tokens it meets there for a constant.
            x_BD = x_BTD.gather(1, position_B[:, None, None].expand(-1, 1, x_BTD.shape[2])).squeeze(1)
            visible_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) <= position_B[:, None]
        x_BD = x_BD + self.attn.pooled(self.ln_1(x_BD), self.ln_1(x_BTD), visible_BT)
        return x_BD + self.mlp(self.ln_2(x_BD))


class Attention(nn.Module):
    """Multi-head attention with the parameter names of torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = _empty(3 * width, width, device=device)
        self.in_proj_bias = _empty(3 * width, device=device)
        self.out_proj = Linear(width, width, device=device)

    def forward(self, x_BTD: Tensor, causal: bool) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BTF = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias)
        # Unbound where they stand, so that the backward pass puts their gradients there in one copy.
        q_BTHK, k_BTHK, v_BTHK = qkv_BTF.view(B, T, 3, self.heads, -1).unbind(2)
        y_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2), is_causal=causal
        )
        return self.out_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))

    def pooled(self, query_BD: Tensor, x_BTD: Tensor, visible_BT: Tensor | None) -> Tensor:
        """Attention of one query a row to the visible (None: all) positions: [B, D]."""
        B, T, D = x_BTD.shape
        q_weight, kv_weight = self.in_proj_weight.split([D, 2 * D])
        q_bias, kv_bias = self.in_proj_bias.split([D, 2 * D])
        q_BH1K = F.linear(query_BD, q_weight, q_bias).view(B, self.heads, 1, -1)
        kv_BTF = F.linear(x_BTD, kv_weight, kv_bias)
        k_BTHK, v_BTHK = kv_BTF.view(B, T, 2, self.heads, -1).unbind(2)
        mask = None if visible_BT is None else visible_BT[:, None, None, :]
        y_BH1K = F.scaled_dot_product_attention(
            q_BH1K, k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2), attn_mask=mask
        )
        return self.out_proj(y_BH1K.reshape(B, D))


class Mlp(nn.Module):
    """Two layers with GELU, or its fast approximation, between them."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool, device: torch.device | str | None) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = Linear(width, hidden, device=device)
        self.c_proj = Linear(hidden, width, device=device)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden))


# torch's layers fill themselves with numbers that `build_model` or a state dict replaces at once. Skipping
# that also keeps torch._dynamo out: random numbers on the meta device import it.
class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Left to `build_model`."""


class LayerNorm(nn.LayerNorm):
    def reset_parameters(self) -> None:
        """Left to `build_model`."""


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Left to `build_model`."""


class PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel size, as one matrix product: [B, 3, S, S] -> [B, N, D]."""

    def reset_parameters(self) -> None:
        """Left to `build_model`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name torch gives it)
        B, C, height, width = input.shape
        patch = self.kernel_size[0]
        rows, columns = height // patch, width // patch
        patches = input.reshape(B, C, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(B, rows * columns, -1), self.weight.flatten(1), self.bias)


def _empty(*shape: int, device: torch.device | str | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device))


def _unit(x_BE: Tensor) -> Tensor:
    return F.normalize(x_BE.to(torch.promote_types(x_BE.dtype, torch.float32)), dim=-1)
