"""The model against open_clip's own: function, gradients, initialisation and files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelchain.families import ModelConfig, Pooling, TextSpec, VisionSpec
from modelchain_trainer.model import Clip, build_model, crop_tokens, save_weights
from modelchain_trainer.model.open_clip_config import to_open_clip

if TYPE_CHECKING:
    from open_clip.model import CLIP

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("open_clip")]  # importing it takes seconds

CONFIGURATIONS = {
    "plain": ModelConfig(
        embed_dim=20,
        vision=VisionSpec(image_size=24, patch_size=8, width=32, layers=2, head_width=16),
        text=TextSpec(context_length=12, vocab_size=49408, width=24, layers=3, heads=3),
    ),
    "quick GELU": ModelConfig(
        embed_dim=8,
        quick_gelu=True,
        vision=VisionSpec(image_size=16, patch_size=4, width=24, layers=3, head_width=8),
        text=TextSpec(context_length=77, vocab_size=49408, width=16, layers=2, heads=2),
    ),
    "one block, odd MLP": ModelConfig(
        embed_dim=32,
        vision=VisionSpec(image_size=14, patch_size=7, width=22, layers=1, head_width=11, mlp_ratio=4.3637),
        text=TextSpec(context_length=9, vocab_size=49408, width=10, layers=1, heads=1, mlp_ratio=2.5),
    ),
    "mean, scaled": ModelConfig(
        embed_dim=12,
        vision=VisionSpec(
            image_size=24,
            patch_size=8,
            width=24,
            layers=2,
            head_width=8,
            pooling=Pooling.AVERAGE,
            layer_scale=0.1,
        ),
        text=TextSpec(context_length=9, vocab_size=49408, width=16, layers=1, heads=1),
    ),
    "mean before the norm": ModelConfig(
        embed_dim=12,
        vision=VisionSpec(
            image_size=24,
            patch_size=8,
            width=24,
            layers=2,
            head_width=8,
            pooling=Pooling.AVERAGE,
            norm_after_pooling=True,
            input_norm=False,
        ),
        text=TextSpec(context_length=9, vocab_size=49408, width=16, layers=1, heads=1),
    ),
    "a text tower that is not causal": ModelConfig(
        embed_dim=12,
        vision=VisionSpec(image_size=16, patch_size=8, width=16, layers=1, head_width=8),
        text=TextSpec(context_length=12, vocab_size=49408, width=24, layers=2, heads=3, causal=False),
    ),
    "one patch": ModelConfig(
        embed_dim=16,
        vision=VisionSpec(image_size=16, patch_size=16, width=16, layers=2, head_width=4),
        text=TextSpec(context_length=16, vocab_size=49408, width=8, layers=4, heads=8),
    ),
}


@pytest.fixture(params=CONFIGURATIONS.values(), ids=list(CONFIGURATIONS), scope="module")
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.fixture(scope="module")
def stock(config: ModelConfig) -> CLIP:
    """open_clip's model, with every parameter away from its initial value."""
    from open_clip.model import CLIP

    torch.manual_seed(1)
    model_cfg = to_open_clip(config)["model_cfg"]
    assert isinstance(model_cfg, dict)
    model = CLIP(**model_cfg).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def ours(config: ModelConfig, stock: CLIP) -> Clip:
    model = Clip(config).double()
    model.load_state_dict(stock.state_dict())
    return model


@pytest.fixture(scope="module")
def batch(config: ModelConfig) -> tuple[Tensor, Tensor]:
    size, context = config.vision.image_size, config.text.context_length
    tokens = torch.zeros(5, context, dtype=torch.int64)
    for row, length in zip(tokens, (3, 1, context - 2, 4, 2), strict=True):
        row[0], row[length + 1] = 49406, 49407
        row[1 : length + 1] = torch.randint(1, 40000, (length,))
    return torch.randn(5, 3, size, size, dtype=torch.float64), tokens


def test_names_and_shapes_are_open_clips(ours: Clip, stock: CLIP) -> None:
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in stock.state_dict().items()
    }


def test_embeddings_are_open_clips(ours: Clip, stock: CLIP, batch: tuple[Tensor, Tensor]) -> None:
    images, tokens = batch
    with torch.no_grad():
        for normalize in (True, False):
            expected = (
                stock.encode_image(images, normalize=normalize),
                stock.encode_text(tokens, normalize=normalize),
            )
            got = (
                ours.encode_image(images, normalize=normalize),
                ours.encode_text(tokens, normalize=normalize),
            )
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_fp32_embeddings_differ_by_rounding_only(
    ours: Clip, stock: CLIP, batch: tuple[Tensor, Tensor]
) -> None:
    images, tokens = batch
    with torch.no_grad():
        expected = stock.encode_image(images, normalize=True), stock.encode_text(tokens, normalize=True)
        ours.float()
        got = ours.encode_image(images.float()), ours.encode_text(tokens)
        ours.double()
        ours.load_state_dict(stock.state_dict())
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).norm() / b.norm() < 2e-6


def test_gradients_are_open_clips(ours: Clip, stock: CLIP, batch: tuple[Tensor, Tensor]) -> None:
    images, tokens = batch
    gradients = []
    for model, given in ((ours, crop_tokens(tokens)), (stock, tokens)):
        model.zero_grad()
        image_BE, text_BE = (
            model.encode_image(images, normalize=True),
            model.encode_text(given, normalize=True),
        )
        logits = model.logit_scale.exp() * image_BE @ text_BE.T
        torch.nn.functional.cross_entropy(logits, torch.arange(5)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[1].items():
        assert torch.allclose(gradients[0][name], expected, rtol=1e-9, atol=1e-12), name


def test_initialisation_has_open_clips_distributions() -> None:
    from open_clip.model import CLIP

    config = ModelConfig(
        embed_dim=96,
        vision=VisionSpec(image_size=96, patch_size=8, width=128, layers=2, head_width=32),
        text=TextSpec(context_length=77, vocab_size=49408, width=64, layers=3, heads=2),
    )
    torch.manual_seed(0)
    model_cfg = to_open_clip(config)["model_cfg"]
    assert isinstance(model_cfg, dict)
    stock = CLIP(**model_cfg).state_dict()
    ours = build_model(config, seed=0).state_dict()
    for name, expected in stock.items():
        got = ours[name]
        if expected.unique().numel() == 1:
            assert torch.equal(got, expected), name
            continue
        # Four standard errors of the spread; then uniform or normal: the largest number tells.
        tolerance = 4 * 2**0.5 / expected.numel() ** 0.5
        assert got.std().item() == pytest.approx(expected.std().item(), rel=tolerance), name
        assert abs(got.mean()) < 5 * got.std() / got.numel() ** 0.5, name
        if expected.numel() >= 1000:
            peaks = got.abs().max() / got.std(), expected.abs().max() / expected.std()
            assert (peaks[0] < 1.9) == (peaks[1] < 1.9), name


def test_stock_open_clip_loads_the_folder_and_computes_the_same_embeddings(
    tmp_path: Path, tiny: ModelConfig
) -> None:
    """In a process that can't import anything of ours."""
    model = build_model(tiny, seed=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_weights(model, tiny, tmp_path / "model")
    picture = tmp_path / "picture.png"
    from PIL import Image

    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 60).convert("RGB").save(picture)
    program = f"""
import sys
sys.modules["modelchain"] = sys.modules["modelchain_trainer"] = None
import open_clip, torch
from PIL import Image
from safetensors.torch import save_file
model, _, preprocess = open_clip.create_model_and_transforms({f"local-dir:{tmp_path / 'model'}"!r})
tokens = open_clip.get_tokenizer({f"local-dir:{tmp_path / 'model'}"!r})(["a red square", "two blue circles"])
image = preprocess(Image.open({str(picture)!r}))[None]
model.eval()
with torch.no_grad():
    save_file({{
        "image": image, "tokens": tokens,
        "image_embedding": model.encode_image(image, normalize=True),
        "text_embedding": model.encode_text(tokens, normalize=True),
    }}, {str(tmp_path / "result.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    result = load_file(tmp_path / "result.safetensors")
    assert result["tokens"].shape == (2, 12)
    assert result["image"].shape == (1, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(result["image"]), result["image_embedding"])
        torch.testing.assert_close(model.encode_text(crop_tokens(result["tokens"])), result["text_embedding"])


def test_a_folder_that_open_clip_wrote_can_be_read(tmp_path: Path) -> None:
    from open_clip.model import CLIP

    from modelchain_trainer.model import load_weights

    config = CONFIGURATIONS["quick GELU"]
    document = to_open_clip(config)
    model_cfg = document["model_cfg"]
    assert isinstance(model_cfg, dict)
    stock = CLIP(**model_cfg)
    save_file(stock.half().state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    state, loaded = load_weights(tmp_path)
    assert loaded == config
    for name, tensor in stock.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.float())
