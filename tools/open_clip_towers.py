"""Write modelchain/open_clip_towers.json: what image towers of open_clip cost, for the core, which imports no torch.

    python -m tools.open_clip_towers

They are those of open_clip's configurations that need no model hub, but for its own vision transformers, which
ModelChain has itself, and for convolutional models, which stand in modelchain/timm_models.json. Each is counted at the
size of images that its configuration has, by torch on its meta device. A test holds entries against the libraries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from modelchain_trainer.model.open_clip_adapter import image_module
from tools import timm_models

FILE: Final = Path(__file__).parents[1] / "modelchain" / "open_clip_towers.json"
_SIZES: Final = (8, 16)  # of the embedding: what one number more costs is its projection
_OF_THE_TRAINING: Final = ("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_size")


def main() -> None:
    """Write the file."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(entry_of(vision_cfg, size))}"
        for name, (vision_cfg, size) in towers().items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def towers() -> dict[str, tuple[dict[str, Any], int]]:
    """Of each what open_clip builds it from, and the size of its images."""
    import open_clip

    found: dict[str, tuple[dict[str, Any], int]] = {}
    for name in open_clip.list_models():
        config: dict[str, Any] = open_clip.get_model_config(name) or {}
        text, vision = config["text_cfg"], dict(config["vision_cfg"])
        size = vision.pop("image_size")
        resnet = isinstance(vision.get("layers"), list)
        tower = name.removesuffix("-quickgelu") if resnet else vision.get("timm_model_name")
        hub = "hf_model_name" in text or "hf_tokenizer_name" in text
        if tower and not hub and tower not in timm_models.NAMES:
            vision = {key: value for key, value in vision.items() if key not in _OF_THE_TRAINING}
            assert found.setdefault(tower, (vision, size)) == (vision, size), tower
    return dict(sorted(found.items()))


def entry_of(vision_cfg: dict[str, Any], size: int) -> dict[str, Any]:
    """What stands in the file for a tower, but for its embedding."""
    with torch.device("meta"):
        less, more = (image_module(vision_cfg, size, embed_dim).eval() for embed_dim in _SIZES)
    step = _SIZES[1] - _SIZES[0]
    output_parameters = (parameters(more) - parameters(less)) // step
    output_macs = (macs(more, size) - macs(less, size)) // step
    shapes = {name: parameter.shape for name, parameter in less.named_parameters()}
    projection = next(
        name for name, one in more.named_parameters() if one.ndim == 2 and one.shape != shapes[name]
    )
    return {
        "visionCfg": vision_cfg,
        "imageSize": size,
        "parameters": parameters(less) - _SIZES[0] * output_parameters,
        "largestParameter": max(one.numel() for name, one in less.named_parameters() if name != projection),
        "macs": macs(less, size) - _SIZES[0] * output_macs,
        "features": shapes[projection][1],
        "outputParameters": output_parameters,
        "outputMacs": output_macs,
        "batchNorm": any(isinstance(one, _BatchNorm) for one in less.modules()),
    }


def parameters(model: nn.Module) -> int:
    """Numbers that are learnt."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, side: int) -> int:
    """Products of a forward pass over one image, of attention too."""
    model.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
