from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from modelchain_trainer.expansion import Fidelity, plan_expansion
from modelchain_trainer.expansion.resize import resample_filters, resize_matrix, resize_positions
from modelchain_trainer.model import Clip
from tests.trainer.expansion.growth import config_of, grow


def enlarged(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def embeddings(model: Clip, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.encode_image(images)


def test_positions_of_the_same_grid_stay_as_they_are() -> None:
    positions = torch.randn(10, 4)
    assert torch.equal(resize_positions(positions, 3), positions)


def test_positions_keep_the_class_token_and_smooth_fields() -> None:
    ramp = torch.linspace(0, 1, 8)
    grid = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"), dim=-1).reshape(64, 2)
    positions = torch.cat([torch.tensor([[5.0, -3.0]]), grid])
    resized = resize_positions(positions, 16)
    assert torch.equal(resized[0], positions[0])
    field = resized[1:].reshape(16, 16, 2)
    assert (field[1:-1, :, 0].diff(dim=0) > 0).all(), "the first axis stays the first axis"
    assert (field[:, 1:-1, 1].diff(dim=1) > 0).all()
    assert field.mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
def test_positions_are_interpolated_as_open_clip_does() -> None:
    from open_clip.model import resize_pos_embed

    class Holder:
        class visual:  # noqa: N801
            grid_size = (6, 6)

    state = {"visual.positional_embedding": torch.randn(17, 5)}
    expected = dict(state)
    resize_pos_embed(expected, Holder)
    got = resize_positions(state["visual.positional_embedding"], 6)
    torch.testing.assert_close(got, expected["visual.positional_embedding"])


@pytest.mark.parametrize("sides", [(4, 8), (8, 12), (7, 16), (8, 8)], ids=str)
def test_enlarged_patches_meet_the_same_response(sides: tuple[int, int]) -> None:
    """FlexiViT's resize is exact where patches grow."""
    filters = torch.randn(5, 3, sides[0], sides[0], dtype=torch.float64)
    patches = torch.randn(6, 3, sides[0], sides[0], dtype=torch.float64)
    matrix = resize_matrix(*sides)
    larger = matrix @ patches @ matrix.T
    torch.testing.assert_close(larger, enlarged(patches, sides[1]))
    before = patches.flatten(1) @ filters.flatten(1).T
    after = larger.flatten(1) @ resample_filters(filters, sides[1]).flatten(1).T
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("sides", [(8, 4), (16, 7)], ids=str)
def test_smaller_patches_meet_the_response_of_their_enlargement(sides: tuple[int, int]) -> None:
    filters = torch.randn(5, 3, sides[0], sides[0], dtype=torch.float64)
    patches = torch.randn(6, 3, sides[1], sides[1], dtype=torch.float64)
    before = enlarged(patches, sides[0]).flatten(1) @ filters.flatten(1).T
    after = patches.flatten(1) @ resample_filters(filters, sides[1]).flatten(1).T
    torch.testing.assert_close(before, after)


def test_images_and_patches_that_grow_alike_give_the_same_embeddings() -> None:
    small, large = config_of(image=24, patch=8), config_of(vision=(32, 3), image=48, patch=16)
    assert plan_expansion(small, large).fidelity is Fidelity.RESAMPLED
    grown = grow(small, large)
    patches = grown.batch.images.unflatten(2, (3, 8)).unflatten(4, (3, 8))  # B C 3 8 3 8
    matrix = resize_matrix(8, 16)
    larger = torch.einsum("bcipjq,sp,tq->bcisjt", patches, matrix, matrix).flatten(4).flatten(2, 3)
    torch.testing.assert_close(
        embeddings(grown.small, grown.batch.images), embeddings(grown.large, larger), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(("image", "patch"), [(48, 8), (24, 4)], ids=["larger image", "smaller patch"])
def test_a_finer_grid_sees_much_the_same_in_smooth_images(image: int, patch: int) -> None:
    grown = grow(config_of(image=24, patch=8), config_of(image=image, patch=patch), strength=0.2)
    generator = torch.Generator().manual_seed(0)
    smooth = enlarged(torch.randn(8, 3, 2, 2, generator=generator, dtype=torch.float64), 24)
    before = embeddings(grown.small, smooth)
    after = embeddings(grown.large, enlarged(smooth, image))
    centred = [embedding - embedding.mean(dim=0) for embedding in (before, after)]
    similarity = F.cosine_similarity(centred[0][:, None], centred[1][None], dim=-1)
    assert similarity.diagonal().min() > 0.6
    assert similarity.argmax(dim=0).tolist() == list(range(8)), "each image is nearest to itself"
