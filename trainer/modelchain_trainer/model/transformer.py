"""Pre-norm transformer blocks, with open_clip's parameter names: what every family's towers are made of.

q, k and v come from one matrix product, attention from torch's fused kernel, causality as a flag instead of a mask
where nothing else hides a token.

Shape suffixes: B rows, T tokens, D width, H heads, K width of a head, F width of q, k and v side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelchain.families import Pooling, VisionSpec
from modelchain_trainer.model.layers import LayerNorm, Linear, empty

GELU, QUICK_GELU, GELU_TANH = "gelu", "quick-gelu", "gelu-tanh"  # activations of an MLP


class Transformer(nn.Module):
    """Pre-norm blocks. Called, the last of them computes the pooled token only; `sequence` computes all tokens."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        activation: str,
        *,
        causal: bool,
        device: torch.device | str | None,
        norm_epsilon: float = 1e-5,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.gradient_checkpointing = False
        self.resblocks = nn.ModuleList(
            Block(width, heads, hidden, activation, device, norm_epsilon, layer_scale=layer_scale)
            for _ in range(layers)
        )

    def forward(self, x_BTD: Tensor, pooled_B: Tensor | None) -> Tensor:
        """The output [B, D] at position `pooled_B` of each row; None is position 0 of an uncausal tower."""
        *blocks, last = cast("list[Block]", list(self.resblocks))
        for block in blocks:
            x_BTD = self._run(block, x_BTD, self.causal)
        return self._run(last.pooled, x_BTD, pooled_B, self.causal)

    def sequence(self, x_BTD: Tensor, visible_BTT: Tensor | None) -> Tensor:
        """The outputs [B, T, D] of all positions; `visible_BTT` says which each attends to (None: as `causal`)."""
        for block in self.resblocks:
            x_BTD = self._run(block, x_BTD, self.causal, visible_BTT)
        return x_BTD

    def compile_blocks(self, *, dynamic: bool | None) -> None:
        """See `Clip.compile_blocks`."""
        *blocks, last = cast("list[Block]", list(self.resblocks))
        for block in blocks:
            block.compile(dynamic=dynamic)
        last.compile(dynamic=dynamic)  # for `sequence`
        last.pooled = torch.compile(last.pooled, dynamic=dynamic)

    def _run(self, part: Callable[..., Tensor], *arguments: object) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *arguments, use_reentrant=False)
        return part(*arguments)


def image_features(
    transformer: Transformer,
    norm: nn.LayerNorm,
    x_BTD: Tensor,
    vision: VisionSpec,
) -> Tensor:
    """What a tower's `Transformer` and the norm behind it make of an image [B, D], pooled as `vision` says."""
    if vision.pooling is Pooling.CLASS_TOKEN:
        return norm(transformer(x_BTD, None))
    patches_BND = transformer.sequence(x_BTD, None)[:, int(vision.class_token) :]
    if vision.norm_after_pooling:
        return norm(patches_BND.mean(dim=1))
    return norm(patches_BND).mean(dim=1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `layer_scale`, what is added is scaled channel by channel."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        device: torch.device | str | None,
        norm_epsilon: float = 1e-5,
        *,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width, eps=norm_epsilon, device=device)
        self.attn = Attention(width, heads, device)
        self.ls_1 = LayerScale(width, device) if layer_scale else nn.Identity()
        self.ln_2 = LayerNorm(width, eps=norm_epsilon, device=device)
        self.mlp = Mlp(width, hidden, activation, device)
        self.ls_2 = LayerScale(width, device) if layer_scale else nn.Identity()

    def forward(self, x_BTD: Tensor, causal: bool, visible_BTT: Tensor | None = None) -> Tensor:
        x_BTD = x_BTD + self.ls_1(self.attn(self.ln_1(x_BTD), causal, visible_BTT))
        return x_BTD + self.ls_2(self.mlp(self.ln_2(x_BTD)))

    def pooled(self, x_BTD: Tensor, position_B: Tensor | None, causal: bool) -> Tensor:
        """The block's output [B, D] at one position of each row; if `causal`, it attends to none behind itself.

        None is position 0 (the class token of the image tower, which is not causal).
        """
        visible_BT = None
        if position_B is None:
            x_BD = x_BTD[:, 0]
        else:
            # Not `take_along_dim`: torch.compile takes the number of tokens it meets there for a constant.
            x_BD = x_BTD.gather(1, position_B[:, None, None].expand(-1, 1, x_BTD.shape[2])).squeeze(1)
            if causal:
                visible_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device) <= position_B[:, None]
        x_BD = x_BD + self.ls_1(self.attn.pooled(self.ln_1(x_BD), self.ln_1(x_BTD), visible_BT))
        return x_BD + self.ls_2(self.mlp(self.ln_2(x_BD)))


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, width: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.gamma = empty(width, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head attention with the parameter names of torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = empty(3 * width, width, device=device)
        self.in_proj_bias = empty(3 * width, device=device)
        self.out_proj = Linear(width, width, device=device)

    def forward(self, x_BTD: Tensor, causal: bool, visible_BTT: Tensor | None = None) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BTF = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias)
        # Unbound where they stand, so that the backward pass puts their gradients there in one copy.
        q_BTHK, k_BTHK, v_BTHK = qkv_BTF.view(B, T, 3, self.heads, -1).unbind(2)
        y_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTHK.transpose(1, 2),
            v_BTHK.transpose(1, 2),
            attn_mask=None if visible_BTT is None else visible_BTT[:, None],
            is_causal=causal and visible_BTT is None,
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
    """Two layers with GELU, or an approximation of it, between them."""

    def __init__(self, width: int, hidden: int, activation: str, device: torch.device | str | None) -> None:
        super().__init__()
        self.activation = activation
        self.c_fc = Linear(width, hidden, device=device)
        self.c_proj = Linear(hidden, width, device=device)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        if self.activation == QUICK_GELU:
            return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))
        return self.c_proj(F.gelu(hidden, approximate="tanh" if self.activation == GELU_TANH else "none"))
