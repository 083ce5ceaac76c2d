"""Evaluation sets: in order, the same for every world size, with what can't be used left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelchain.errors import MissingInputError, UserDataError
from modelchain.spec import EvaluationSpec
from modelchain.store.folder import FolderStore
from modelchain_trainer.data import evaluation_data
from modelchain_trainer.data.evaluation_data import EvaluationBatch, EvaluationReader
from modelchain_trainer.data.sample import decode_image, evaluation_transform
from tests.trainer.data.shards import access, bomb, noise, number_of, png, thin, write_shards

SAMPLES, SIZE, BATCH = 50, 8, 8


def labelled(number: int) -> dict[str, bytes]:
    return {"png": png(number), "cls": f"{number % 7}\n".encode(), "txt": f"number {number}".encode()}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_data, "_BATCH", BATCH)


def reader(
    shards: tuple[str, ...],
    folder: Path,
    type_: str = "ZeroShot",
    *,
    classes: int | None = None,
    **data: object,
) -> EvaluationReader:
    spec = EvaluationSpec.model_validate(
        {"name": "val", "type": type_, "data": {"shards": list(shards), **data}}
    )
    return EvaluationReader(
        spec,
        access(folder),
        FolderStore(folder),
        image_size=SIZE,
        caption_keys=("txt",),
        classes=classes,
        workers=3,
    )


def judged(opened: EvaluationReader, world_size: int) -> list[int]:
    """The samples that so many ranks can use, in order, after their reading is judged."""
    readable = torch.zeros(len(opened), dtype=torch.bool)
    for rank in range(world_size):
        for batch in opened.batches(rank, world_size):
            readable[batch.indices] = True
    opened.check_readable(readable, "val")
    return readable.nonzero()[:, 0].tolist()


def numbers(batch: EvaluationBatch) -> list[int]:
    return [number_of(image) for image in batch.images.numpy()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return write_shards(tmp_path_factory.mktemp("val"), SAMPLES, 13, labelled)


def test_a_set_is_read_in_order_with_its_labels(shards: tuple[str, ...], tmp_path: Path) -> None:
    opened = reader(shards, tmp_path)
    for _ in range(2):  # again and again
        batches = list(opened.batches(0, 1))
        assert [number for batch in batches for number in numbers(batch)] == list(range(SAMPLES))
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(SAMPLES))
        labels = [batch.labels for batch in batches if batch.labels is not None]
        assert torch.cat(labels).tolist() == [number % 7 for number in range(SAMPLES)]
        assert all(batch.captions is None for batch in batches)
    assert len(opened) == SAMPLES


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_batches_are_dealt_out_whole(shards: tuple[str, ...], tmp_path: Path, world_size: int) -> None:
    opened = reader(shards, tmp_path)
    whole = list(opened.batches(0, 1))
    for rank in range(world_size):
        mine = list(opened.batches(rank, world_size))
        assert [batch.indices.tolist() for batch in mine] == [
            b.indices.tolist() for b in whole[rank::world_size]
        ]
        assert all(
            torch.equal(a.images, b.images) for a, b in zip(mine, whole[rank::world_size], strict=True)
        )


def test_captions_come_by_key(tmp_path: Path) -> None:
    def make(number: int) -> dict[str, bytes]:
        return {"png": png(number), "txt": f"raw {number}".encode(), "long.txt": f"long {number}".encode()}

    shards = write_shards(tmp_path / "val", 10, 10, make)
    (first, second) = reader(shards, tmp_path, "Retrieval", captionKeys=["long.txt", "txt"]).batches(0, 1)
    assert first.captions == [[f"long {number}", f"raw {number}"] for number in range(8)]
    assert second.labels is None
    (only, _) = reader(shards, tmp_path, "Retrieval").batches(0, 1)
    assert only.captions == [[f"raw {number}"] for number in range(8)]  # the chain's own keys


def test_any_samples_can_be_asked_for(shards: tuple[str, ...], tmp_path: Path) -> None:
    wanted = [3, 12, 13, 14, 49, 0]
    batch = reader(shards, tmp_path).samples(wanted)
    assert numbers(batch) == wanted
    assert batch.indices.tolist() == wanted
    assert reader(shards, tmp_path).samples([]).images.shape == (0, 3, SIZE, SIZE)


def test_pictures_pass_the_transform_of_evaluation(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "val", 3, 3, lambda n: {"png": noise(30, n), "cls": b"0"})
    (batch,) = reader(shards, tmp_path).batches(0, 1)
    for number, image in enumerate(batch.images):
        expected = evaluation_transform(decode_image(noise(30, number)), SIZE)
        assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(expected.copy()))


def test_a_set_can_be_its_first_samples(shards: tuple[str, ...], tmp_path: Path) -> None:
    opened = reader(shards, tmp_path, samples=20)
    assert len(opened) == 20
    assert [number for batch in opened.batches(0, 1) for number in numbers(batch)] == list(range(20))
    says = r"set val: data\.samples is 51, but its shards hold 50 samples; write at most 50$"
    with pytest.raises(UserDataError, match=says):
        reader(shards, tmp_path, samples=51)
    more = write_shards(
        tmp_path / "more", 10, 10, lambda n: {"png": png(n)} | ({} if n == 3 else {"cls": b"1"})
    )
    with pytest.raises(UserDataError, match=r"is 500, but its shards hold 10 samples; write at most 10$"):
        reader(more, tmp_path, samples=500)


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [
        ({"png": b"no picture", "cls": b"1"}, "not a readable image"),
        ({"cls": b"1"}, "has no image"),
        ({"png": png(0)}, "has no .cls"),
        ({"png": png(0), "cls": b"cat"}, "the .cls is not a class number"),
        ({"png": png(0), "cls": b"-1"}, "the .cls is not a class number"),
        ({"png": png(0), "cls": b"1e3"}, "the .cls is not a class number"),
        ({"png": png(0), "cls": b"99999999999999999999"}, "the .cls is not a class number"),
        ({"png": png(0), "cls": b"7"}, "the .cls is 7, but the classes are 0 to 6"),
    ],
)
def test_a_sample_that_can_not_be_used_is_left_out(
    tmp_path: Path, broken: dict[str, bytes], wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_shards(tmp_path / "val", 100, 40, lambda n: broken if n == 44 else labelled(n))
    opened = reader(shards, tmp_path, classes=7)
    indices = [number for number in range(100) if number != 44]
    for _ in range(3):  # the same each time, and said once
        assert judged(opened, 1) == indices
    (said,) = caplog.messages
    assert said.startswith("evaluation set val: 1 of its 100 samples can't be used and are left out; for ex")
    assert f"sample 000044 of {shards[1]}: {wrong}" in said
    labels = [
        label for batch in opened.batches(0, 1) if batch.labels is not None for label in batch.labels.tolist()
    ]
    assert labels == [number % 7 for number in indices]
    assert opened.samples([43, 44, 45]).indices.tolist() == [43, 45]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("bad", [1, 2, 100])
def test_too_many_samples_that_can_not_be_used_are_too_many_at_every_reading(
    tmp_path: Path, bad: int, world_size: int
) -> None:
    def make(number: int) -> dict[str, bytes]:
        return labelled(number) | ({"png": b"no picture"} if number in places else {})

    places = {1: {50}, 2: {3, 50}, 100: set(range(100))}[bad]
    opened = reader(write_shards(tmp_path / "val", 100, 40, make), tmp_path)
    for _ in range(4):
        if bad == 1:
            assert len(judged(opened, world_size)) == 99
        else:
            message = rf"^evaluation set val: {bad} of its 100 samples can't be used, more than .*sample 00000\d of "
            with pytest.raises(UserDataError, match=message):
                judged(opened, world_size)


@pytest.mark.filterwarnings("ignore:Image size")
def test_bombs_are_left_out_and_thin_pictures_are_seen(tmp_path: Path) -> None:
    """Linear probe and fine-tuning read their sets as this too."""

    def make(number: int) -> dict[str, bytes]:
        picture = bomb(60_000) if number == 5 else thin(number) if number % 2 else png(number)
        return {**labelled(number), "png": picture}

    opened = reader(write_shards(tmp_path / "data", 8, 8, make), tmp_path)
    (batch,) = opened.batches(0, 1)
    assert numbers(batch) == batch.indices.tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_a_caption_that_can_not_be_read_leaves_its_sample_out(tmp_path: Path) -> None:
    shards = write_shards(
        tmp_path / "val", 100, 40, lambda n: labelled(n) | ({"txt": b"\xff"} if n == 3 else {})
    )
    opened = reader(shards, tmp_path, "Retrieval")
    captions = [c for batch in opened.batches(0, 1) for c in batch.captions or []]
    assert captions == [[f"number {number}"] for number in range(100) if number != 3]


def test_a_wrong_class_key_is_said_at_once(shards: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserDataError, match=r"none of the 50 samples has a \.label; .*: \.cls \(50\)"):
        reader(shards, tmp_path, classKey="label")


def test_missing_shards_of_a_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"1 of 1 shards do not exist: .*nowhere\.tar"):
        reader((str(tmp_path / "nowhere.tar"),), tmp_path)
