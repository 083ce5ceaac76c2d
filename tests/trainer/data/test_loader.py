"""Batches: the same for every world size, number of threads and resumption, with corrupt samples replaced."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from modelchain.errors import ConfigurationError, MissingInputError, UserDataError
from modelchain.families import ModelConfig
from modelchain.families.towers import image_tokens
from modelchain.resolved import ResolvedStage
from modelchain.store import Store, StoreUnavailable
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.assembly import Assembler, Part
from modelchain_trainer.data.corruption import Corrupt
from modelchain_trainer.data.index import DatasetIndex, build_index
from modelchain_trainer.data.loader import Batch, TrainingLoader
from modelchain_trainer.data.order import SampleOrder, cut_blocks
from modelchain_trainer.data.reader import segment_bytes
from modelchain_trainer.data.text_field import CaptionField, LabelField, NoText
from modelchain_trainer.data.tokenizer import Tokenizer
from modelchain_trainer.retry_policy import RetryPolicy
from tests.seaweedfs import SeaweedFS
from tests.trainer.data.shards import (
    access,
    bomb,
    index_of,
    noise,
    number_of,
    png,
    sample,
    stage_of,
    thin,
    write_shards,
)

SAMPLES = 100
CORRUPT: dict[int, dict[str, bytes]] = {
    7: {"png": b"no picture", "txt": b"seven"},
    13: {"png": png(13)[:50], "txt": b"thirteen"},
    21: {"txt": b"no image at all"},
    34: {"png": png(34)},
    55: {"png": png(55), "txt": b"caf\xe9"},
    89: {"png": png(89), "txt": b" \n"},
}
CAUSES = {"BadImage": 2, "MissingImage": 1, "MissingCaption": 1, "BadCaption": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(8)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], DatasetIndex]:
    """100 good samples in 4 shards."""
    folder = tmp_path_factory.mktemp("clean")
    shards = write_shards(folder / "data", SAMPLES, 25)
    return shards, index_of(shards, SAMPLES, folder / "store")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], DatasetIndex]:
    """100 samples in 4 shards, six of them corrupt, each in its own way."""
    folder = tmp_path_factory.mktemp("damaged")
    shards = write_shards(folder / "data", SAMPLES, 25, lambda n: CORRUPT.get(n) or sample(n))
    return shards, index_of(shards, SAMPLES, folder / "store", max_corrupt_fraction=0.1)


Data = tuple[tuple[str, ...], DatasetIndex]


def load(
    index: DatasetIndex,
    stage: ResolvedStage,
    tokenizer: Tokenizer,
    *,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
) -> list[Batch]:
    loader = TrainingLoader(
        index, stage, rank=rank, world_size=world_size, first_step=first_step, field=CaptionField(tokenizer)
    )
    return list(loader)


def test_patches_that_are_kept_follow_from_the_sample_and_the_epoch(
    clean: Data, tokenizer: Tokenizer
) -> None:
    shards, index = clean
    stage = stage_of(shards, SAMPLES, batch=20, steps=8, training={"patchDropout": 0.5})
    assert isinstance(stage.model_config_, ModelConfig)
    kept = image_tokens(stage.model_config_.vision) // 2
    batches = load(index, stage, tokenizer)
    patches = [batch.patches for batch in batches]
    whole = torch.stack([one for one in patches if one is not None])
    assert whole.shape == (8, 20, kept)
    assert (whole.diff(dim=-1) > 0).all()  # each once, in order
    assert whole.min() == 0
    assert whole.max() == 2 * kept - 1
    assert len(whole.flatten(0, 1).unique(dim=0)) == 6  # every choice of two out of four
    halves = [load(index, stage, tokenizer, rank=rank, world_size=2, first_step=3) for rank in range(2)]
    for batch, *parts in zip(batches[3:], *halves, strict=True):
        assert batch.patches is not None
        assert torch.equal(batch.patches, torch.cat([p.patches for p in parts if p.patches is not None]))
    assert load(index, stage_of(shards, SAMPLES, batch=20, steps=1), tokenizer)[0].patches is None


def test_lanes_of_a_few_rows_share_tasks(
    clean: Data, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task for each would cost more than small pictures."""
    shards, index = clean
    filled: list[int] = []
    fill = Assembler.fill

    def counting(
        assembler: Assembler, step: int, parts: Sequence[Part], *rows: NDArray[Any]
    ) -> list[Corrupt]:
        filled.append(sum(len(part.samples) for part, _ in parts))
        return fill(assembler, step, parts, *rows)

    monkeypatch.setattr(Assembler, "fill", counting)
    blocks = {"blockMebibytes": 1, "windowBlocks": 50}
    stage = stage_of(shards, SAMPLES, batch=50, steps=1, data=blocks)
    (batch,) = load(index, stage, tokenizer)
    assert sorted(filled) == [18, 32]
    apart = joined([load(index, stage, tokenizer, rank=rank, world_size=50) for rank in range(50)])
    assert torch.equal(batch.images, apart[0].images)
    assert torch.equal(batch.tokens, apart[0].tokens)


def assert_same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    assert [batch.step for batch in ours] == [batch.step for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tokens, other.tokens)


def joined(ranks: Sequence[Sequence[Batch]]) -> list[Batch]:
    """The global batches that ranks have the rows of."""
    return [
        Batch(
            images=torch.cat([batch.images for batch in parts]),
            tokens=torch.cat([batch.tokens for batch in parts], dim=1),
            step=parts[0].step,
        )
        for parts in zip(*ranks, strict=True)
    ]


def test_a_batch_holds_the_samples_of_its_step_with_their_own_captions(
    clean: Data, tokenizer: Tokenizer
) -> None:
    shards, index = clean
    stage = stage_of(shards, SAMPLES, batch=12, steps=20)
    order = SampleOrder(cut_blocks(index, 4 << 20), seed=0, global_batch_size=12, window_blocks=128)
    batches = load(index, stage, tokenizer)
    assert [batch.step for batch in batches] == list(range(20))
    for batch in batches:
        assert batch.images.shape == (12, 3, 8, 8)
        assert batch.images.dtype == torch.uint8
        assert batch.tokens.shape == (1, 12, 8)
        numbers = [number_of(image) for image in batch.images.numpy()]
        assert numbers == order.step_samples(batch.step).tolist()
        assert torch.equal(batch.tokens[0], tokenizer([f"number {number}" for number in numbers]))


def test_each_caption_key_has_its_own_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def make(number: int) -> dict[str, bytes]:
        return {"png": png(number), "txt": f"raw {number}".encode(), "long.txt": f"long {number}".encode()}

    shards = write_shards(tmp_path / "data", 20, 20, make)
    index = index_of(shards, 20, tmp_path / "store", caption_keys=("long.txt", "txt"))
    (batch,) = load(index, stage_of(shards, 20, batch=10, steps=1), tokenizer)
    numbers = [number_of(image) for image in batch.images.numpy()]
    assert torch.equal(batch.tokens[0], tokenizer([f"long {number}" for number in numbers]))
    assert torch.equal(batch.tokens[1], tokenizer([f"raw {number}" for number in numbers]))


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("kind", ["clean", "damaged"])
def test_all_world_sizes_see_the_same_batches(
    kind: str, world_size: int, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    shards, index = request.getfixturevalue(kind)
    stage = stage_of(
        shards, SAMPLES, batch=12, steps=10, data={"maxCorruptFraction": 1.0, "randomCropScale": [0.5, 1.0]}
    )
    ranks = [load(index, stage, tokenizer, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert_same(joined(ranks), load(index, stage, tokenizer))


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_the_number_of_threads_changes_nothing(damaged: Data, tokenizer: Tokenizer, workers: int) -> None:
    shards, index = damaged
    data = {"maxCorruptFraction": 1.0, "randomCropScale": [0.5, 1.0]}
    expected = load(index, stage_of(shards, SAMPLES, batch=10, steps=25, data=data), tokenizer)
    stage = stage_of(shards, SAMPLES, batch=10, steps=25, data=data, training={"dataWorkers": workers})
    assert_same(load(index, stage, tokenizer), expected)


@pytest.mark.parametrize("first_step", [1, 9, 10, 17, 24])
def test_resuming_gives_what_was_left(damaged: Data, tokenizer: Tokenizer, first_step: int) -> None:
    shards, index = damaged
    stage = stage_of(
        shards, SAMPLES, batch=10, steps=25, data={"maxCorruptFraction": 1.0, "randomCropScale": [0.5, 1.0]}
    )
    whole = load(index, stage, tokenizer)
    assert_same(load(index, stage, tokenizer, first_step=first_step), whole[first_step:])


def test_small_blocks_and_windows_give_each_sample_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = write_shards(tmp_path / "data", 60, 20, lambda n: sample(n) | {"bin": bytes(100_000)})
    index = index_of(shards, 60, tmp_path / "store")
    stage = stage_of(shards, 60, batch=6, steps=20, data={"blockMebibytes": 1, "windowBlocks": 2})
    numbers = [number_of(i) for batch in load(index, stage, tokenizer) for i in batch.images.numpy()]
    assert sorted(numbers[:60]) == list(range(60))
    assert sorted(numbers[60:]) == list(range(60))
    assert numbers[:60] != numbers[60:]


def test_crops_change_with_the_epoch_and_not_with_anything_else(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = write_shards(tmp_path / "data", 8, 8, lambda n: {"png": noise(30, n), "txt": b"noise"})
    index = index_of(shards, 8, tmp_path / "store")
    stage = stage_of(shards, 8, batch=8, steps=3, data={"randomCropScale": [0.3, 0.6]})
    crops = [{image.tobytes() for image in batch.images.numpy()} for batch in load(index, stage, tokenizer)]
    assert all(len(images) == 8 for images in crops)
    assert not crops[0] & crops[1]
    assert_same(load(index, stage, tokenizer), load(index, stage, tokenizer))


def test_corrupt_samples_are_replaced_and_counted(damaged: Data, tokenizer: Tokenizer) -> None:
    shards, index = damaged
    stage = stage_of(shards, SAMPLES, batch=10, steps=20, data={"maxCorruptFraction": 0.06})  # just as many
    loader = TrainingLoader(index, stage, rank=0, world_size=1, first_step=0, field=CaptionField(tokenizer))
    seen: list[int] = []
    for batch in loader:
        numbers = [number_of(image) for image in batch.images.numpy()]
        assert torch.equal(batch.tokens[0], tokenizer([f"number {number}" for number in numbers]))
        seen += numbers
    assert loader.corrupt == {cause: 2 * count for cause, count in CAUSES.items()}
    assert not set(seen) & set(CORRUPT)
    assert set(seen) == set(range(SAMPLES)) - set(CORRUPT)
    assert len(seen) == 200


@pytest.mark.filterwarnings("ignore:Image size")
def test_bombs_are_replaced_and_thin_pictures_are_trained_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bombs = {3: 12_000, 17: 60_000}

    def make(number: int) -> dict[str, bytes]:
        picture = bomb(bombs[number]) if number in bombs else thin(number) if number % 2 else png(number)
        return {**sample(number), "png": picture}

    shards = write_shards(tmp_path / "data", 20, 10, make)
    stage = stage_of(
        shards, 20, batch=10, steps=2, data={"maxCorruptFraction": 0.1, "randomCropScale": [0.5, 1]}
    )
    loader = TrainingLoader(
        index_of(shards, 20, tmp_path / "store"),
        stage,
        rank=0,
        world_size=1,
        first_step=0,
        field=CaptionField(tokenizer),
    )
    started = time.process_time()
    seen = {number_of(image) for batch in loader for image in batch.images.numpy()}
    assert time.process_time() - started < 20, (
        "each picture by itself has billions of pixels, if it is unpacked"
    )
    assert seen == set(range(20)) - set(bombs)
    assert loader.corrupt == {"BadImage": 2}


def test_ranks_count_their_own_rows_only(damaged: Data, tokenizer: Tokenizer) -> None:
    shards, index = damaged
    stage = stage_of(shards, SAMPLES, batch=10, steps=10, data={"maxCorruptFraction": 1.0})
    total: dict[str, int] = {}
    for rank in range(5):
        loader = TrainingLoader(
            index, stage, rank=rank, world_size=5, first_step=0, field=CaptionField(tokenizer)
        )
        for _ in loader:
            pass
        for cause, count in loader.corrupt.items():
            total[cause] = total.get(cause, 0) + count
    assert total == CAUSES


def test_too_many_corrupt_samples_end_the_stage_with_an_example(damaged: Data, tokenizer: Tokenizer) -> None:
    shards, index = damaged
    stage = stage_of(shards, SAMPLES, batch=10, steps=200, data={"maxCorruptFraction": 0.05})
    with pytest.raises(UserDataError) as raised:
        load(index, stage, tokenizer)
    message = str(raised.value)
    assert re.match(r"\d+ of the \d+ samples read so far can't be used \(", message)
    assert all(re.search(rf"\d+ {cause}", message) for cause in CAUSES)
    assert "more than data.maxCorruptFraction 0.05 allows" in message
    assert any(f"sample {number:06d} of {shards[number // 25]}: " in message for number in CORRUPT)
    assert "\n" not in message


def test_one_corrupt_sample_is_too_many_where_none_is_allowed(damaged: Data, tokenizer: Tokenizer) -> None:
    shards, index = damaged
    with pytest.raises(UserDataError, match="allows; for example sample"):
        load(index, stage_of(shards, SAMPLES, batch=10, steps=20, data={"maxCorruptFraction": 0}), tokenizer)


def test_a_window_without_a_good_sample_takes_one_from_elsewhere(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def make(number: int) -> dict[str, bytes]:
        return {"png": b"no picture", "txt": b"x"} if number < 20 else sample(number)

    shards = write_shards(tmp_path / "data", 80, 20, make)
    index = index_of(shards, 80, tmp_path / "store")
    stage = stage_of(shards, 80, batch=8, steps=10, data={"maxCorruptFraction": 1.0, "windowBlocks": 1})
    numbers = [number_of(image) for batch in load(index, stage, tokenizer) for image in batch.images.numpy()]
    assert len(numbers) == 80
    assert min(numbers) >= 20


def test_data_without_any_good_sample_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = write_shards(tmp_path / "data", 20, 20, lambda _: {"png": b"no picture", "txt": b"x"})
    index = index_of(shards, 20, tmp_path / "store")
    stage = stage_of(shards, 20, batch=10, steps=2, data={"maxCorruptFraction": 1.0})
    with pytest.raises(
        UserDataError, match=r"sample \d+ of .*0000\.tar: not a readable image.*none of 32 other"
    ):
        load(index, stage, tokenizer)


def test_a_batch_that_ranks_can_not_share_is_refused(clean: Data, tokenizer: Tokenizer) -> None:
    shards, index = clean
    with pytest.raises(ConfigurationError, match="globalBatchSize 10 is not divisible by the 3 processes"):
        load(index, stage_of(shards, SAMPLES, batch=10, steps=1), tokenizer, world_size=3)


def test_waiting_is_measured(clean: Data, tokenizer: Tokenizer) -> None:
    shards, index = clean
    loader = TrainingLoader(
        index,
        stage_of(shards, SAMPLES, batch=10, steps=3),
        rank=0,
        world_size=1,
        first_step=0,
        field=CaptionField(tokenizer),
    )
    waits = [0.0, *(loader.wait_seconds for _ in loader)]
    assert waits == sorted(waits)
    assert waits[-1] > 0


def flaky(index: DatasetIndex, fails: Callable[[int], Exception | None]) -> DatasetIndex:
    """An index whose shards lie in a store that fails at some reads."""

    class Flaky(FolderStore):
        reads = 0
        lock = threading.Lock()

        def get_range(self, key: str, start: int, length: int) -> bytes:
            with self.lock:
                Flaky.reads += 1
                error = fails(Flaky.reads)
            if error is not None:
                raise error
            return super().get_range(key, start, length)

    store = Flaky(Path(index.shards[0].uri).parent)
    return dataclasses.replace(index, shards=tuple(dataclasses.replace(s, store=store) for s in index.shards))


def test_an_outage_changes_nothing(
    clean: Data, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelchain_trainer.retry_policy._FIRST_PAUSE", 0.01)
    shards, index = clean
    stage = stage_of(shards, SAMPLES, batch=12, steps=10)
    unsteady = flaky(index, lambda read: StoreUnavailable("away") if read % 3 else None)
    assert_same(load(unsteady, stage, tokenizer), load(index, stage, tokenizer))


def test_an_outage_without_end_is_a_failure_that_may_be_tried_again(
    clean: Data, tokenizer: Tokenizer
) -> None:
    shards, index = clean
    dead = flaky(index, lambda _: StoreUnavailable("s3://data/0000.tar: no answer"))
    loader = TrainingLoader(
        dead,
        stage_of(shards, SAMPLES, batch=12, steps=10),
        rank=0,
        world_size=1,
        first_step=0,
        field=CaptionField(tokenizer),
        retry_policy=RetryPolicy(0.1),
    )
    with pytest.raises(StoreUnavailable, match="no answer"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)


def test_a_shard_that_vanishes_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = write_shards(tmp_path / "data", 40, 10)
    index = index_of(shards, 40, tmp_path / "store")
    Path(shards[2]).unlink()
    with pytest.raises(MissingInputError, match=r"0002\.tar: was removed"):
        load(index, stage_of(shards, 40, batch=10, steps=4), tokenizer)


def test_closing_ends_all_threads(clean: Data, tokenizer: Tokenizer) -> None:
    shards, index = clean
    before = set(threading.enumerate())
    order = SampleOrder(cut_blocks(index, 4 << 20), seed=0, global_batch_size=12, window_blocks=128)
    needed = {
        (index.shard_of(first).key, int(index.starts[first]), segment_bytes(index, first, last))
        for part in order.slices(0, range(order.lanes))
        for first, last in part.window.segments
    }
    waiting = threading.Event()

    class Away(FolderStore):
        """Gives the windows of the first batch, and nothing else: readers wait for the rest."""

        def get_range(self, key: str, start: int, length: int) -> bytes:
            if (key, start, length) in needed:
                return super().get_range(key, start, length)
            waiting.set()
            raise StoreUnavailable("away")

    store = Away(Path(index.shards[0].uri).parent)
    stuck = dataclasses.replace(
        index, shards=tuple(dataclasses.replace(shard, store=store) for shard in index.shards)
    )
    stage = stage_of(shards, SAMPLES, batch=12, steps=10**6)
    loader = TrainingLoader(stuck, stage, rank=0, world_size=1, first_step=0, field=CaptionField(tokenizer))
    next(loader)
    assert waiting.wait(60)
    loader.close()
    for thread in threading.enumerate():
        if thread.name.startswith(("modelchain-read", "modelchain-decode")):
            thread.join(60)
    assert set(threading.enumerate()) <= before


@pytest.mark.slow
def test_s3_gives_the_same_batches_as_a_folder_also_over_a_restart(
    clean: Data, tokenizer: Tokenizer, seaweedfs: SeaweedFS, s3_store: Store
) -> None:
    shards, index = clean
    for path in map(Path, shards):
        s3_store.upload(path.name, path)
    etags = {info.key: info.etag for info in s3_store.list("")}
    remote = dataclasses.replace(
        index,
        shards=tuple(
            dataclasses.replace(s, store=s3_store, uri=f"{s3_store.uri}/{s.key}", etag=etags[s.key])
            for s in index.shards
        ),
    )
    stage = stage_of(shards, SAMPLES, batch=10, steps=50, data={"blockMebibytes": 1})
    loader = TrainingLoader(remote, stage, rank=0, world_size=1, first_step=0, field=CaptionField(tokenizer))
    batches = [next(loader) for _ in range(5)]
    seaweedfs.kill()
    restart = threading.Timer(1, seaweedfs.start)
    restart.start()
    batches += loader
    restart.join()
    assert_same(batches, load(index, stage, tokenizer))


def test_a_sample_without_its_label_is_counted_as_one_without_a_label(tmp_path: Path) -> None:
    shards = write_shards(
        tmp_path / "data", 40, 20, lambda n: {"png": png(n)} | ({} if n == 7 else {"cls": b"1"})
    )
    stage = stage_of(shards, 40, batch=20, steps=2, data={"maxCorruptFraction": 0.1})
    index = build_index(stage.data, access(tmp_path), FolderStore(tmp_path), text_keys=["cls"])
    loader = TrainingLoader(index, stage, rank=0, world_size=1, first_step=0, field=LabelField(2))
    assert all(bool((batch.tokens == 1).all()) for batch in loader)
    assert loader.corrupt == {"MissingLabel": 1}


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_samples_of_images_alone_are_read_as_they_are(tmp_path: Path, *, processes: bool) -> None:
    shards = write_shards(tmp_path / "data", 40, 20, lambda n: {"png": png(n), "json": b"{}"})
    stage = stage_of(shards, 40, batch=8, steps=5)
    index = build_index(stage.data, access(tmp_path), FolderStore(tmp_path), text_keys=())
    loader = TrainingLoader(
        index, stage, rank=0, world_size=1, first_step=0, field=NoText(), processes=processes
    )
    batches = list(loader)
    assert {batch.tokens.shape for batch in batches} == {(0, 8, 0)}
    seen = [number_of(image) for batch in batches for image in batch.images.numpy()]
    assert sorted(seen) == list(range(40))
    assert loader.corrupt == {}


def labels_loader(folder: Path, label_of: Callable[[int], int], first_step: int = 0) -> TrainingLoader:
    """40 samples, five epochs of batches of 8, a head of two classes."""
    shards = write_shards(folder / "data", 40, 20, lambda n: {"png": png(n), "cls": b"%d" % label_of(n)})
    stage = stage_of(shards, 40, batch=8, steps=25, data={"maxCorruptFraction": 0.1})
    index = build_index(stage.data, access(folder), FolderStore(folder), text_keys=["cls"])
    return TrainingLoader(index, stage, rank=0, world_size=1, first_step=first_step, field=LabelField(2))


def test_a_label_beyond_the_head_is_a_bad_label_and_its_substitute_the_same_after_a_resume(
    tmp_path: Path,
) -> None:
    def label_of(number: int) -> int:
        return 2 if number == 7 else number % 2

    loader = labels_loader(tmp_path, label_of)
    batches = list(loader)
    assert loader.corrupt == {"BadLabel": 5}
    assert {int(label) for batch in batches for label in batch.tokens.flatten()} == {0, 1}
    for first_step in (5, 13):
        assert_same(list(labels_loader(tmp_path, label_of, first_step)), batches[first_step:])


def test_more_labels_beyond_the_head_than_allowed_end_with_one_of_them_and_what_to_do(tmp_path: Path) -> None:
    message = (
        r"can't be used \(\d+ BadLabel\), more than data\.maxCorruptFraction 0\.1 allows; for example sample 0000\d+ "
        r"of .*\.tar: the \.cls is 5, but the classes are 0 to 1 \(write as many classes as the labels have"
    )
    with pytest.raises(UserDataError, match=message):
        list(labels_loader(tmp_path, lambda number: 5 * (number % 2)))
