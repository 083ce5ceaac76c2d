"""Write modelchain/growth_figures.json: how far growth that is near-exact, or resamples, moves what a model says of a
picture.

    python -m tools.growth_figures

Two models are trained on the digits that come with scikit-learn, as examples/digits.yaml does, but on pictures of
56 pixels in patches of 8: so patches of 7 are to them what 14 are to 16 on 224 pixels. Each is grown in every such way,
in fp64, and embeds the 300 digits that it was not trained on before and after. The figure is how far embeddings moved,
as a share of their distance to the mean embedding (root mean squares of both).

Shape suffixes: N pictures, E embedding, H height, W width.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from modelchain.artifacts import Manifest
from modelchain.exactness import APPROXIMATIONS, Approximation
from modelchain.families import CLIP, ModelConfig
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import WidthExpansion
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.expansion import embedding_map, expand
from modelchain_trainer.model import Clip, model_from
from modelchain_trainer.model.weights import load_weights

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
SIDE, PATCH = 56, 8
WIDER: Final = (1.25, 1.5, 1.75, 2.0)  # of a width, where heads divide it
SIDES: Final = (64, 80, 112)  # of images, e.g. 224 -> 256, 320 and 448
PATCHES: Final = (7, 4)  # e.g. 16 -> 14, and half of it
HELD_OUT: Final = 30  # of each digit, the last ones: those that examples/prepare_digits.py keeps apart


def main() -> None:
    """Write the file."""
    moved: dict[str, list[float]] = {kind: [] for kind in Approximation}
    with tempfile.TemporaryDirectory() as folder:
        for state, config in trained_models(Path(folder)):
            for kind, large, expansion in approximate_growths(config):
                grown = expand(state, config, large, expansion, seed=0)
                figure = distance(model_from(state, config), model_from(grown, large))
                print(f"{kind}: {sizes(config)} -> {sizes(large)}, {figure:.2e}", flush=True)
                moved[kind].append(figure)
    figures = {
        kind: {"least": float(f"{min(found):.1e}"), "most": float(f"{max(found):.1e}")}
        for kind, found in moved.items()
    }
    APPROXIMATIONS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def trained_models(folder: Path) -> Iterator[tuple[dict[str, Tensor], ModelConfig]]:
    """The first two models of examples/digits.yaml at the size of images above, in fp64."""
    prepare = [sys.executable, "prepare_digits.py", "--output", str(folder / "data" / "digits")]
    subprocess.run(prepare, cwd=EXAMPLES, check=True)
    chain = yaml.safe_load((EXAMPLES / "digits.yaml").read_text(encoding="utf-8"))
    spec: dict[str, Any] = chain["spec"]
    del spec["baseline"], spec["stages"][2:]
    for stage in spec["stages"]:
        stage["modelConfig"]["vision"] |= {"imageSize": SIDE, "patchSize": PATCH}
    file = folder / "chain.yaml"
    file.write_text(yaml.safe_dump(chain), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "modelchain", "run", str(file)], check=True)
    for path in sorted(folder.glob("runs/**/manifest.json")):
        manifest = Manifest.model_validate_json(path.read_bytes())
        state, config = load_weights(path.parent / "attempts" / manifest.attempt, CLIP)
        assert isinstance(config, ModelConfig)
        yield {name: tensor.double() for name, tensor in state.items()}, config


def approximate_growths(
    config: ModelConfig,
) -> Iterator[tuple[Approximation, ModelConfig, ResolvedExpansion]]:
    """Models that a model of `config` grows into by one approximation each, and how."""

    def with_vision(**fields: int) -> ModelConfig:
        return config.model_copy(update={"vision": config.vision.model_copy(update=fields)})

    exact, padded = ResolvedExpansion(), ResolvedExpansion(width=WidthExpansion.PADDED)
    width, head = config.vision.width, config.vision.head_width
    for wider in (int(width * factor) for factor in WIDER):
        if wider % head == 0:
            yield Approximation.PADDED_WIDTH, with_vision(width=wider), padded
            if wider % width:
                yield Approximation.WIDTH, with_vision(width=wider), exact
    for side in SIDES:
        yield Approximation.IMAGE_SIZE, with_vision(image_size=side), exact
    for patch in PATCHES:
        yield Approximation.PATCH_SIZE, with_vision(patch_size=patch), exact


def sizes(config: ModelConfig) -> str:
    """Of its image tower."""
    vision = config.vision
    return f"{vision.image_size}/{vision.patch_size} {vision.width} x {vision.layers}"


def distance(before: Clip, after: Clip) -> float:
    """How far embeddings move, as a share of what tells them apart."""
    map_FE = embedding_map(before.config.embed_dim, after.config.embed_dim)
    with torch.no_grad():
        old_NE = before.encode_image(pictures(before.config.vision.image_size), normalize=False) @ map_FE
        new_NE = after.encode_image(pictures(after.config.vision.image_size), normalize=False)
    return float((new_NE - old_NE).norm() / (old_NE - old_NE.mean(dim=0)).norm())


def pictures(side: int) -> Tensor:
    """The digits that were held out [N, 3, side, side], as the trainer sees them."""
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    places = np.concatenate([np.flatnonzero(labels == digit)[-HELD_OUT:] for digit in range(10)])
    grey_NHW = np.rint(pixels.reshape(-1, 8, 8)[places] * (255 / 16)).astype(np.uint8)
    enlarged_NHW = np.stack([np.asarray(enlarged(grey_HW, side)) for grey_HW in grey_NHW])
    images = torch.from_numpy(enlarged_NHW)[:, None].expand(-1, 3, -1, -1)
    return normalize(images, torch.float64)


def enlarged(grey_HW: NDArray[np.uint8], side: int) -> Image.Image:
    """By way of the 32 pixels of the example's shards."""
    shard = Image.fromarray(grey_HW).resize((32, 32), Image.Resampling.BICUBIC)
    return shard.resize((side, side), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()
