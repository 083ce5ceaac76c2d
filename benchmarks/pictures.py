"""Shards of made-up pictures and captions that cost a data loader what real ones do."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = [
    "red",
    "small",
    "old",
    "dog",
    "house",
    "river",
    "car",
    "woman",
    "street",
    "bird",
    "near",
    "with",
    "on",
]


def write_shards(
    folder: Path,
    *,
    shards: int,
    samples: int,
    picture_size: tuple[int, int] = (400, 300),
    caption_words: int = 10,
) -> str:
    """Write so many webdataset shards and return their pattern; `samples` are those of all together.

    Smooth random pictures (width, height) with some grain, which take a JPEG decoder as long as photographs, and one
    caption each, of `caption_words` on the average.
    """
    random = np.random.default_rng(0)
    width, height = picture_size
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as tar:
            for number in range(shard, samples, shards):
                coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
                pixels = (pixels + random.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
                jpeg = io.BytesIO()
                Image.fromarray(pixels).save(jpeg, "JPEG", quality=85)
                count = int(
                    random.integers(max(1, caption_words // 2), caption_words + caption_words // 2 + 1)
                )
                caption = " ".join(random.choice(WORDS, count))
                for suffix, content in (("jpg", jpeg.getvalue()), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return f"{folder}/{{00..{shards - 1:02d}}}.tar"
