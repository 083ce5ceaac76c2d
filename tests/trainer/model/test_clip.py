"""The model by itself; test_open_clip.py holds it against open_clip's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from modelchain.errors import ConfigurationError
from modelchain.families import ModelConfig
from modelchain_trainer.model import build_model, crop_tokens
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.transformer import GELU, Block, Transformer

START, END = 49406, 49407
CONTEXT = 12


def tokens_of(*lengths: int) -> Tensor:
    """One row for each number of words between start and end of text."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[0] = START
        row[1 : length + 1] = torch.randint(1, 40000, (length,), generator=generator)
        row[length + 1] = END
    return tokens


@pytest.fixture(scope="module")
def model(tiny: ModelConfig) -> Clip:
    return build_model(tiny, seed=3)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def test_embeddings_have_the_asked_size_and_unit_length(model: Clip, images: Tensor) -> None:
    with torch.no_grad():
        image_BE, text_BE, scale = model(images, tokens_of(2, 5, 1))
    assert image_BE.shape == text_BE.shape == (3, 20)
    torch.testing.assert_close(image_BE.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text_BE.norm(dim=-1), torch.ones(3))
    assert scale.item() == pytest.approx(1 / 0.07)


def test_unnormalised_embeddings_point_the_same_way(model: Clip, images: Tensor) -> None:
    with torch.no_grad():
        raw, unit = model.encode_image(images, normalize=False), model.encode_image(images)
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(raw / raw.norm(dim=-1, keepdim=True), unit)


@pytest.mark.parametrize(
    ("causal", "position_B"),
    [(False, None), (True, torch.tensor([0, 3, 6, 2])), (False, torch.tensor([0, 3, 6, 2]))],
    ids=["image", "text", "text that is not causal"],
)
def test_the_last_block_computes_for_the_pooled_token_what_it_would_for_all(
    causal: bool, position_B: Tensor | None
) -> None:
    torch.manual_seed(0)
    block = Block(24, 3, 40, GELU, None).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_BTD = torch.randn(4, 7, 24, dtype=torch.float64)
    every = block(x_BTD, causal)
    expected = every[:, 0] if position_B is None else every[torch.arange(4), position_B]
    torch.testing.assert_close(block.pooled(x_BTD, position_B, causal), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_cropped_tokens_have_the_same_embeddings_and_gradients(model: Clip, causal: bool) -> None:
    tokens = tokens_of(2, 5, 1, 3)
    text = model.config.text.model_copy(update={"causal": causal})
    double = Clip(model.config.model_copy(update={"text": text}))
    double.load_state_dict(model.state_dict())
    double.double()
    assert crop_tokens(tokens).shape == (4, 7)
    weights = torch.randn(4, 20, dtype=torch.float64)
    gradients = []
    embeddings = []
    for given in (tokens, crop_tokens(tokens), crop_tokens(tokens, multiple_of=4)):
        double.zero_grad()
        embedding = double.encode_text(given)
        (embedding * weights).sum().backward()
        embeddings.append(embedding.detach())
        gradients.append([p.grad.clone() for p in double.parameters() if p.grad is not None])
    for other in (1, 2):
        torch.testing.assert_close(embeddings[0], embeddings[other], rtol=1e-12, atol=1e-12)
        for a, b in zip(gradients[0], gradients[other], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_tokens_are_cropped_after_the_longest_caption_of_all() -> None:
    captions = torch.stack([tokens_of(1, 2), tokens_of(4, 3)])  # [captions, batch, tokens]
    assert crop_tokens(captions).shape == (2, 2, 6)
    assert crop_tokens(captions, multiple_of=4).shape == (2, 2, 8)
    assert crop_tokens(captions, multiple_of=16).shape == (2, 2, CONTEXT), "never beyond the context"
    assert crop_tokens(tokens_of(CONTEXT - 2)).shape == (1, CONTEXT)
    assert crop_tokens(torch.zeros(0, CONTEXT, dtype=torch.int64)).shape == (0, CONTEXT)


def test_a_token_changes_no_text_that_ends_before_it(model: Clip) -> None:
    tokens = tokens_of(3)
    changed = tokens.clone()
    changed[0, 6:] = 17
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokens), model.encode_text(changed))


def test_every_parameter_receives_gradient(model: Clip, images: Tensor) -> None:
    model.zero_grad()
    image_BE, text_BE, scale = model(images, tokens_of(2, 5, 1))
    torch.nn.functional.cross_entropy(scale * image_BE @ text_BE.T, torch.arange(3)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_autocast_keeps_the_residual_stream_and_the_embeddings_in_fp32(model: Clip, images: Tensor) -> None:
    streams: list[torch.dtype] = []
    blocks = [block for part in model.modules() if isinstance(part, Transformer) for block in part.resblocks]
    hooks = [block.register_forward_hook(lambda _m, _i, out: streams.append(out.dtype)) for block in blocks]
    with torch.no_grad():
        exact = model(images, tokens_of(2, 5, 1))
        streams.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images, tokens_of(2, 5, 1))
    for hook in hooks:
        hook.remove()
    assert streams
    assert set(streams) == {torch.float32}
    for a, b in zip(exact[:2], rounded[:2], strict=True):
        assert b.dtype == torch.float32
        assert torch.cosine_similarity(a, b).min() > 0.999


@pytest.mark.slow  # torch's checkpoint imports torch._dynamo
def test_gradient_checkpointing_changes_no_gradient(tiny: ModelConfig, images: Tensor) -> None:
    gradients = []
    for enabled in (False, True):
        model = build_model(tiny, seed=3)
        model.set_gradient_checkpointing(enabled)
        image_BE, text_BE, scale = model(images, tokens_of(2, 5, 1))
        torch.nn.functional.cross_entropy(scale * image_BE @ text_BE.T, torch.arange(3)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision": {"head_width": 24}}, "vision.headWidth"),
        ({"vision": {"patch_size": 7}}, "vision.patchSize"),
        ({"text": {"heads": 5}}, "text.heads"),
        ({"text": {"mlp_ratio": 0.01}}, "text.mlpRatio"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_by_name(
    tiny: ModelConfig, changes: dict[str, dict[str, float]], named: str
) -> None:
    document = tiny.model_dump()
    for part, values in changes.items():
        document[part] |= values
    with pytest.raises(ConfigurationError, match=named):
        Clip(ModelConfig.model_validate(document))


@pytest.mark.slow  # a process of its own
def test_a_step_imports_neither_open_clip_nor_torchvision_nor_dynamo() -> None:
    program = """
import sys
import torch
from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain_trainer.model import build_model, crop_tokens, model_from
from modelchain_trainer.model.weights import load_weights, save_weights
import modelchain_trainer.expansion
config = ModelConfig(
    embed_dim=8,
    vision=VisionSpec(image_size=8, patch_size=4, width=8, layers=1, head_width=8),
    text=TextSpec(width=8, layers=1, heads=1),
)
model = model_from(build_model(config, seed=0).state_dict(), config)
tokens = torch.zeros(2, 77, dtype=torch.int64)
tokens[:, 3] = 49407
image, text, scale = model(torch.zeros(2, 3, 8, 8), crop_tokens(tokens))
(scale * (image * text).sum()).backward()
print([name for name in ("open_clip", "torchvision", "torch._dynamo") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
