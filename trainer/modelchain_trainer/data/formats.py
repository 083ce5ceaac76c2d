"""Pictures as Pillow opens them: which formats, and how pixels of any depth become RGB."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

_COMMON = ("JPEG", "PNG", "WEBP")
# EPS runs Ghostscript, WMF draws with Windows' own code, and the others are readers that somebody must supply.
_REFUSED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5"})
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
_16_BITS_IN_32 = frozenset(
    {"PNG", "PPM"}
)  # formats whose 16-bit grey Pillow may keep in 32 bits, from 0 to 65535


def open_picture(data: bytes) -> Image.Image:
    """An open picture of whatever format Pillow reads; only its head is read. Raises whatever Pillow raises."""
    try:
        return Image.open(io.BytesIO(data), formats=_COMMON)
    except Image.UnidentifiedImageError:
        return Image.open(io.BytesIO(data), formats=_others())


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture (of several, the first) as 8-bit RGB. 16-bit grey is scaled, not cut off at 255; transparency is
    ignored, as torchvision and open_clip do. Raises whatever Pillow raises, and ValueError for pixels without a scale.
    """
    if image.mode in _DEEP or (image.mode == "I" and image.format in _16_BITS_IN_32):
        deep_HW = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep_HW + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no scale; convert them to 8 or 16 bits")
    if image.mode == "RGB":
        image.load()  # converting would copy it
        return image
    return image.convert("RGB")


@cache
def _others() -> tuple[str, ...]:
    Image.init()  # takes about 0.1 s, so only where it is needed
    return tuple(name for name in Image.OPEN if name not in _COMMON and name not in _REFUSED)
