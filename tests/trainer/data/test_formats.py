"""Pictures of every format and depth keep their pixels, whatever Pillow makes of them."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from modelchain_trainer.data.sample import Cause, CorruptSampleError, decode_image, evaluation_transform


def encoded(image: Image.Image, format_: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format_)
    return file.getvalue()


@pytest.mark.parametrize(
    "format_", ["BMP", "GIF", "TIFF", "PPM", "JPEG2000", "ICO", "TGA", "DDS", "PCX", "SGI"]
)
def test_pictures_of_all_formats_are_read(format_: str) -> None:
    image = Image.fromarray(np.full((32, 32, 3), (200, 30, 90), np.uint8))
    decoded = decode_image(encoded(image, format_))
    assert decoded.mode == "RGB"
    assert decoded.size == (32, 32)
    assert abs(np.asarray(decoded).astype(int) - (200, 30, 90)).max() <= 3


def test_the_first_picture_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(file.getvalue()).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled_to_8_bits(format_: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (64, 1))
    seen = np.asarray(decode_image(encoded(Image.fromarray(ramp), format_))).astype(int)
    assert len(np.unique(seen)) == 256
    assert abs(seen - ramp[:, :, None] / 257).max() <= 0.5


def test_grey_of_8_bits_is_left_as_it_is() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    assert (np.asarray(decode_image(encoded(Image.fromarray(ramp), "PNG")))[:, :, 0] == ramp).all()


@pytest.mark.parametrize("type_", [np.int32, np.float32])
def test_pixels_without_a_scale_are_corrupt_samples(type_: type) -> None:
    pixels = np.full((8, 8), 70000, type_)
    with pytest.raises(CorruptSampleError, match="have no scale") as raised:
        decode_image(encoded(Image.fromarray(pixels), "TIFF"))
    assert raised.value.cause is Cause.BAD_IMAGE


def test_nothing_that_runs_another_program_is_opened() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(CorruptSampleError, match="of no format"):
        decode_image(script)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (3, 89_000_000 // 3)])
def test_a_thin_picture_takes_no_more_than_its_crop(size: tuple[int, int]) -> None:
    """Resized as a whole, the first two would have 2 x 10^9 pixels."""
    started = time.process_time()
    pixels_HW3 = evaluation_transform(Image.new("RGB", size, (10, 20, 30)), 224)
    assert pixels_HW3.shape == (224, 224, 3)
    assert (pixels_HW3 == (10, 20, 30)).all()
    assert time.process_time() - started < 10


@pytest.mark.parametrize("shape", [(340, 20), (20, 340), (1500, 9), (500, 31), (31, 503)])
def test_the_crop_of_a_thin_picture_is_that_of_the_whole_one_resized(shape: tuple[int, int]) -> None:
    """Pillow decides by the shape in which direction it resizes first, and clips in between: noise shows that."""
    height, width = shape
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    for pixels, most in ((noise, 255), (noise // 4 + 96, 1)):  # the second is never clipped
        image, size = Image.fromarray(pixels.astype(np.uint8)), 24
        resized = int(size * max(shape) / min(shape))
        assert resized > 16 * size
        whole_size = (size, resized) if width < height else (resized, size)
        whole = image.resize(whole_size, Image.Resampling.BICUBIC)
        left, top = round((whole.width - size) / 2), round((whole.height - size) / 2)
        expected = np.asarray(whole.crop((left, top, left + size, top + size))).astype(int)
        difference = abs(evaluation_transform(image, size) - expected)
        assert difference.max() <= most
        assert difference.mean() < 0.5
