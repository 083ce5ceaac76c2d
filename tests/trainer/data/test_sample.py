"""Pixels are open_clip's, and what is no picture is said to be none."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelchain_trainer.data.loader import TrainingLoader
from modelchain_trainer.data.randomness import key, uniforms
from modelchain_trainer.data.sample import (
    CROP_NUMBERS,
    MAX_PIXELS,
    Cause,
    CorruptSampleError,
    crop_and_resize_into,
    decode_caption,
    decode_image,
    enough_pixels,
    evaluation_transform,
    normalize,
    random_crop,
)
from modelchain_trainer.data.text_field import CaptionField
from modelchain_trainer.data.tokenizer import Tokenizer
from tests.trainer.data.shards import bomb, index_of, noise, png, stage_of, write_shards

Transform = Callable[..., Callable[[Image.Image], torch.Tensor]]

SIZES = [(8, 8), (40, 40), (64, 48), (47, 81), (31, 200), (33, 32), (33, 31), (500, 375), (3, 7)]


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def photograph(side: int, grain: int = 8) -> Image.Image:
    """Smooth shapes with some grain, as a camera gives them."""
    random = np.random.default_rng(side)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(
        (pixels + random.integers(-grain, grain + 1, pixels.shape)).clip(0, 255).astype(np.uint8)
    )


def crop_and_resize(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    pixels_HW3 = np.empty((size, size, 3), np.uint8)
    crop_and_resize_into(np.array(image), box, pixels_HW3)
    return pixels_HW3


def encoded(image: Image.Image, format_: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format_)
    return file.getvalue()


def numbers(seed: int) -> list[float]:
    return uniforms(key(seed), CROP_NUMBERS).tolist()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_pictures_of_all_modes_become_rgb(format_: str, mode: str) -> None:
    image = picture(20, 10).convert(mode)
    try:
        data = encoded(image, format_)
    except OSError:  # the format has no such mode
        return
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert decoded.size == (20, 10)
    with Image.open(io.BytesIO(data)) as again:
        assert decoded.tobytes() == again.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        png(1)[:40],
        noise(64)[:-2000],
        noise(64, quality="JPEG")[:-500],
        noise(64, quality="WEBP")[:200],
        png(1)[:20] + b"\xff\xff" + png(1)[22:],
        encoded(picture(40, 40), "BMP")[:300],
        encoded(picture(40, 40), "GIF")[:300],
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=[
        "empty",
        "text",
        "png head",
        "png cut",
        "jpeg cut",
        "webp cut",
        "png changed",
        "bmp cut",
        "gif cut",
        "svg",
    ],
)
def test_what_is_no_picture_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptSampleError) as raised:
        decode_image(data)
    assert raised.value.cause is Cause.BAD_IMAGE
    assert "\n" not in str(raised.value)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1),
)
def test_changed_bytes_make_a_picture_or_a_corrupt_sample(
    format_: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(picture(12, 12), format_))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        assert decode_image(bytes(data)).mode == "RGB"
    except CorruptSampleError as error:
        assert error.cause is Cause.BAD_IMAGE


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [int(math.sqrt(MAX_PIXELS)) + 1, 60000])
def test_a_decompression_bomb_is_not_unpacked(side: int) -> None:
    with pytest.raises(CorruptSampleError, match="pixels"):
        decode_image(bomb(side))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b" \n\t", "is empty"), (b"caf\xe9", "not UTF-8"), (b"\xff\xfea\x00", "not UTF-8")],
)
def test_captions_that_say_nothing_are_corrupt(data: bytes, message: str) -> None:
    with pytest.raises(CorruptSampleError, match=rf"the \.txt {message}|the \.txt is {message}") as raised:
        decode_caption(data, "txt")
    assert raised.value.cause is Cause.BAD_CAPTION


def test_captions_are_utf_8_with_or_without_a_mark() -> None:
    assert decode_caption("café 日本".encode(), "txt") == "café 日本"
    assert decode_caption("café".encode("utf-8-sig"), "txt") == "café"


@settings(deadline=None, max_examples=200)
@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_crops_lie_in_the_picture(width: int, height: int, low: float, high: float, seed: int) -> None:
    left, top, right, bottom = random_crop(width, height, (min(low, high), max(low, high)), numbers(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_are_spread_as_those_of_torchvision() -> None:
    """Means and deviations of side, ratio and place over many draws, against its formulas done with numpy."""
    width, height, scale = 640, 480, (0.3, 1.0)
    boxes = np.array([random_crop(width, height, scale, numbers(seed)) for seed in range(4000)])
    rng = np.random.default_rng(0)
    expected = []
    while len(expected) < 4000:
        area = rng.uniform(*scale) * width * height
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            expected.append((left, top, left + w, top + h))
    for ours, theirs in zip(boxes.T, np.array(expected).T, strict=True):
        assert abs(ours.mean() - theirs.mean()) < 8
        assert abs(ours.std() - theirs.std()) < 8


def test_a_picture_that_no_crop_fits_gives_its_centre() -> None:
    assert random_crop(300, 100, (1.0, 1.0), numbers(0)) == (83, 0, 216, 100)  # as wide as 4:3 allows
    assert random_crop(100, 300, (1.0, 1.0), numbers(0)) == (0, 83, 100, 216)
    assert random_crop(100, 100, (1.0, 1.0), [0.0, 0.9, 0.5, 0.5] * 10) == (0, 0, 100, 100)


def test_normalised_pixels_have_openai_statistics() -> None:
    images = (
        torch.arange(0, 256, dtype=torch.uint8)
        .repeat(2, 3, 1, 1)
        .contiguous(memory_format=torch.channels_last)
    )
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    result = normalize(images, torch.float32)
    assert result.is_contiguous()
    torch.testing.assert_close(result, (images / 255 - mean) / deviation, atol=2e-6, rtol=0)
    assert normalize(images, torch.bfloat16).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def transform_of_open_clip() -> Transform:
    from open_clip.transform import image_transform  # seconds

    return cast("Transform", image_transform)


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
def test_evaluation_sees_the_pixels_that_open_clip_sees(
    transform_of_open_clip: Transform,
) -> None:
    for size in (16, 32, 33):
        theirs = transform_of_open_clip(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
        for width, height in SIZES:
            image = picture(width, height)
            expected = theirs(image).mul(255).round().to(torch.uint8)
            ours = torch.from_numpy(evaluation_transform(image, size).copy()).permute(2, 0, 1)
            assert torch.equal(ours, expected), (size, width, height)


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
def test_training_resizes_a_crop_as_torchvision_does() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    crop = cast("Any", resized_crop)  # declared for tensors, takes pictures too

    for number, (width, height) in enumerate(SIZES):
        image = picture(width, height)
        left, top, right, bottom = box = random_crop(width, height, (0.5, 1.0), numbers(number))
        expected = crop(image, top, left, bottom - top, right - left, [24, 24], InterpolationMode.BICUBIC)
        difference = crop_and_resize(image, box, 24).astype(int) - np.asarray(expected)
        if max(width, height) > 6 * min(width, height):  # noise that is clipped between the two passes
            assert abs(difference).mean() < 0.5, (width, height)
        else:
            assert abs(difference).mean() < 0.05, (width, height)
            assert abs(difference).max() <= 1, (width, height)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (1, 40), (40, 1), (1, 1), (224, 224), (225, 224)])
@pytest.mark.parametrize("size", [8, 24, 33, 224])
def test_a_resize_in_place_is_that_of_interpolate(width: int, height: int, size: int) -> None:
    image = picture(width, height)
    left, top, right, bottom = box = random_crop(width, height, (0.5, 1.0), numbers(size))
    crop_HW3 = np.array(image)[top:bottom, left:right]
    expected_13HW = torch.nn.functional.interpolate(
        torch.from_numpy(crop_HW3).permute(2, 0, 1)[None], (size, size), mode="bicubic", antialias=True
    )
    assert np.array_equal(crop_and_resize(image, box, size), expected_13HW[0].permute(1, 2, 0).numpy())


def moved_by_draft(data: bytes, size: int) -> float:
    """By how much decoding at a part of the size moves the pixels of a whole JPEG at that size, on average."""
    enough = enough_pixels(size, (0.9, 1.0))
    whole, drafted = decode_image(data), decode_image(data, enough=enough)
    assert min(drafted.size) >= enough or drafted.size == whole.size
    assert (drafted.size < whole.size) == (min(whole.size) >= 2 * enough)
    exact, fast = (crop_and_resize(image, (0, 0, *image.size), size) for image in (whole, drafted))
    return float(abs(exact.astype(int) - fast).mean())


@pytest.mark.parametrize("quality", [75, 90, 95])
@pytest.mark.parametrize("side", [230, 480, 512, 760, 1024, 2048])
@pytest.mark.parametrize("grain", [0, 8, 24, 48])
def test_decoding_at_a_part_of_the_size_moves_smooth_pixels_by_less_than_one(
    side: int, quality: int, grain: int
) -> None:
    """And grainy ones by less than a fifth of their grain's standard deviation."""
    file = io.BytesIO()
    photograph(side, grain).save(file, "JPEG", quality=quality)
    deviation = math.sqrt(((2 * grain + 1) ** 2 - 1) / 12)
    assert moved_by_draft(file.getvalue(), 224) < max(1, deviation / 5)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("size", [64, 112, 160, 200])
def test_decoding_at_a_part_of_the_size_moves_pixels_of_real_photographs_a_little(
    name: str, size: int
) -> None:
    """Temples under trees, and a blossom before a blurred ground."""
    data = (resources.files("sklearn.datasets.images") / name).read_bytes()
    assert 0.5 < moved_by_draft(data, size) < 4


def test_whole_decoding_can_be_asked_for(tmp_path: Path) -> None:
    file = io.BytesIO()
    photograph(512).save(file, "JPEG", quality=90)
    shards = write_shards(tmp_path / "data", 4, 4, lambda _: {"jpg": file.getvalue(), "txt": b"shapes"})
    seen: list[torch.Tensor] = []
    for draft in (True, False):
        stage = stage_of(shards, 4, batch=4, steps=1, data={"draftDecoding": draft})
        index = index_of(shards, 4, tmp_path / "store")
        field = CaptionField(Tokenizer(8))
        (batch,) = TrainingLoader(index, stage, rank=0, world_size=1, first_step=0, field=field)
        seen.append(batch.images)
    size = seen[0].shape[-1]
    exact = crop_and_resize(decode_image(file.getvalue()), (0, 0, 512, 512), size)
    assert torch.equal(seen[1][0], torch.from_numpy(exact).permute(2, 0, 1))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
def test_normalisation_is_that_of_open_clip(
    transform_of_open_clip: Transform,
) -> None:
    image = picture(32, 32)
    ours = normalize(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None], torch.float32)[0]
    torch.testing.assert_close(ours, transform_of_open_clip(32, is_train=False)(image), atol=2e-6, rtol=0)
