"""From the bytes of a sample to pixels: decoding, the crop of training, the transform of evaluation,
normalisation.

The transforms are open_clip's (torchvision's RandomResizedCrop and Resize + CenterCrop, bicubic, on RGB
images), with randomness that is a function of given numbers. That of evaluation is the same pixel for pixel.
That of training resizes with torch, three times as fast as Pillow and but for rounding the same, and lets the JPEG
decoder halve pictures that are large enough. That moves pixels: by less than 1 of 255 on average where they are
smooth, by 1 to 4 where they are full of detail, about as another filter of resizing does. EXIF orientation is ignored,
as there.

Shape suffixes: B images, 3 colours, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from modelchain_trainer.data.formats import open_picture, to_rgb
from modelchain_trainer.model.open_clip_config import MEAN, STANDARD_DEVIATION

CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
CROP_NUMBERS = 4 * CROP_TRIES  # uniform random numbers that `random_crop` uses

MAX_PIXELS = 89_478_485  # a quarter of a gibibyte in RGB; more is taken for a decompression bomb

_THIN = 16  # times as long as wide: from there on, evaluation resizes only what its crop will show

Pixels = NDArray[np.uint8]


class Cause(StrEnum):
    """Why a sample can't be used."""

    BAD_IMAGE = "BadImage"
    MISSING_IMAGE = "MissingImage"
    MISSING_CAPTION = "MissingCaption"
    BAD_CAPTION = "BadCaption"
    MISSING_LABEL = "MissingLabel"
    BAD_LABEL = "BadLabel"
    MISSING_TEXT = "MissingText"
    BAD_TEXT = "BadText"


class CorruptSampleError(Exception):
    """One sample that can't be used; the message says what is wrong with it."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def decode_image(data: bytes, *, enough: int | None = None) -> Image.Image:
    """A picture of any format that Pillow reads, as RGB. Raises CorruptSampleError for what is none, or damaged.

    A JPEG whose shorter side stays at least `enough` pixels may be decoded at a half, a quarter or an eighth
    of its size, which takes a fraction of the time.
    """
    try:
        with open_picture(data) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise CorruptSampleError(
                    Cause.BAD_IMAGE, f"{width} x {height} pixels, more than {MAX_PIXELS} in all"
                )
            if enough is not None:
                image.draft(image.mode, (enough, enough))
            return to_rgb(image)
    except (CorruptSampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise CorruptSampleError(Cause.BAD_IMAGE, f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:
        # Foreign bytes make Pillow's readers raise whatever they like, besides OSError.
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "of no format that Pillow reads" if unknown else _one_line(error)
        raise CorruptSampleError(Cause.BAD_IMAGE, f"not a readable image: {reason}") from error


def decode_caption(data: bytes, key: str, bad: Cause = Cause.BAD_CAPTION) -> str:
    """The text of a caption file. Raises CorruptSampleError where it is empty or not UTF-8."""
    try:
        caption = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptSampleError(bad, f"the .{key} is not UTF-8") from error
    if not caption.strip():
        raise CorruptSampleError(bad, f"the .{key} is empty")
    return caption


def random_crop(
    width: int, height: int, scale: tuple[float, float], numbers: Sequence[float]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop: torchvision's RandomResizedCrop.

    `numbers` are CROP_NUMBERS uniform random numbers in [0, 1). Ten times an area (a share of the image,
    within `scale`) and a ratio of the sides (log-uniform within 3/4 .. 4/3) are drawn; if none fits, the
    central crop nearest to the image's own ratio is taken.
    """
    area = width * height
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for draw in range(0, CROP_NUMBERS, 4):
        target = area * (scale[0] + (scale[1] - scale[0]) * numbers[draw])
        ratio = math.exp(low + (high - low) * numbers[draw + 1])
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(numbers[draw + 2] * (height - crop_height + 1))
            left = int(numbers[draw + 3] * (width - crop_width + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = width, height
    if width / height < CROP_RATIO[0]:
        crop_height = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        crop_width = round(height * CROP_RATIO[1])
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def enough_pixels(size: int, crop_scale: tuple[float, float]) -> int:
    """Shorter side of a picture out of which crops of these areas need not be enlarged to `size`."""
    return math.ceil(size / math.sqrt(crop_scale[0]))


def crop_and_resize_into(image_HW3: Pixels, box: tuple[int, int, int, int], out_HW3: Pixels) -> None:
    """Fill a square of pixels with the part of an image in `box`."""
    left, top, right, bottom = box
    size = len(out_HW3)
    pixels_HW3 = image_HW3[top:bottom, left:right]  # the filter must not see pixels outside the crop
    if pixels_HW3.shape[:2] == (size, size):
        out_HW3[:] = pixels_HW3
        return
    # What F.interpolate(mode="bicubic", antialias=True) calls. Writing to where the pixels belong, colours last as they
    # come, takes a quarter of the time: by itself it makes planes of colours, which are put together again.
    torch.ops.aten._upsample_bicubic2d_aa.out(  # noqa: SLF001
        _as_batch(pixels_HW3), [size, size], align_corners=False, out=_as_batch(out_HW3)
    )


def _as_batch(pixels_HW3: Pixels) -> torch.Tensor:
    """The same memory as [1, 3, H, W]; numpy's views cost a fraction of torch's."""
    return torch.from_numpy(pixels_HW3.transpose(2, 0, 1)[None])


def evaluation_transform(image: Image.Image, size: int) -> Pixels:
    """Shorter side to `size`, then the central square: [H, W, 3]."""
    width, height = image.size
    shorter, longer = min(width, height), max(width, height)
    if shorter != size:
        resized = int(size * longer / shorter)
        new_size = (size, resized) if width <= height else (resized, size)
        if resized > _THIN * size:
            return np.asarray(_central_square(image, size, resized))
        image = image.resize(new_size, Image.Resampling.BICUBIC)
        width, height = new_size
    left, top = round((width - size) / 2), round((height - size) / 2)
    if (width, height) != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def _central_square(image: Image.Image, size: int, resized: int) -> Image.Image:
    """The centre of the picture resized to `size` x `resized`, which may be too large for any memory."""
    width, height = image.size
    begin = round((resized - size) / 2) * max(width, height) / resized
    end = begin + size * max(width, height) / resized
    box = (0, begin, width, end) if width <= height else (begin, 0, end, height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def normalize(images_B3HW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 pixels [B, 3, H, W] to numbers of mean 0 and deviation 1 (by OpenAI's statistics), contiguous, on
    the same device; computed in float32 and returned in `dtype`.
    """
    factor, shift = _statistics(images_B3HW.device)
    scaled = images_B3HW.to(torch.float32, memory_format=torch.contiguous_format)
    return scaled.mul_(factor).sub_(shift).to(dtype)


@cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / 255 - mean) / deviation as one multiplication and one subtraction; kept on the device."""
    deviation = torch.tensor(STANDARD_DEVIATION, device=device).view(3, 1, 1)
    shift = torch.tensor(MEAN, device=device).view(3, 1, 1) / deviation
    return 1 / (255 * deviation), shift


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
