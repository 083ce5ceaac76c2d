"""Write modelchain/timm_models.json: what timm's models cost, for the core, which imports no torch.

    python tools/timm_models.py

Parameters and products of the forward pass are those of timm's own modules, counted by torch on its meta device. A
model is listed only where at every multiple of 32 pixels the products are `tile * n ** 2 + whole`, n being the image's
side over 32, so that a chain's image size costs what torch would count. A test holds entries against the library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FILE: Final = Path(__file__).parents[1] / "modelchain" / "timm_models.json"
TILE: Final = 32  # pixels
CLASSES: Final = 10  # of the head, which is taken off again
_SCALES: Final = (1, 2, 5)

_SIZES = ("002", "004", "006", "008", "016", "032", "040", "064", "080", "120", "160", "320")
NAMES: Final = (
    *(f"resnet{size}" for size in ("10t", "14t", "18", "26", "34", "50", "101", "152")),
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    *(f"regnetx_{size}" for size in _SIZES if size != "040"),
    *(f"regnety_{size}" for size in _SIZES),
    *(f"efficientnet_b{size}" for size in range(6)),
    *(f"mobilenetv3_{size}" for size in ("small_050", "small_075", "small_100", "large_075", "large_100")),
    *(f"mobilenetv4_conv_{size}" for size in ("small_035", "small_050", "small", "medium", "large")),
    *(
        f"convnext_{size}"
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge", "xxlarge")
    ),
    *(
        f"convnextv2_{size}"
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "huge")
    ),
)


def main() -> None:
    """Write the file."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry_of(name))}" for name in NAMES]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def entry_of(name: str) -> dict[str, Any]:
    """What stands in the file for a model of that name, without its head."""
    import timm

    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=CLASSES).eval()
    head = model.get_classifier()
    assert isinstance(head, nn.Linear), name
    assert head.bias is not None, name
    normed = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    assert len(list(model.buffers())) == 3 * len(normed), f"{name} has other buffers than BatchNorm's"
    random = [one for one in model.modules() if isinstance(one, nn.Dropout) and one.p]
    assert not random, f"{name} drops at random"
    counted = {scale: macs(model, scale * TILE) - head.weight.numel() for scale in _SCALES}
    tile = (counted[2] - counted[1]) // 3
    whole = counted[1] - tile
    assert all(count == tile * scale**2 + whole for scale, count in counted.items()), f"{name}: {counted}"
    weights = [parameter.numel() for parameter in model.parameters()]
    return {
        "parameters": sum(weights) - head.weight.numel() - head.bias.numel(),
        "largestParameter": max(n for n in weights),
        "tileMacs": tile,
        "wholeMacs": whole,
        "features": head.in_features,
        "batchNorm": bool(normed),
    }


def macs(model: nn.Module, side: int) -> int:
    """Products of a forward pass over one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
