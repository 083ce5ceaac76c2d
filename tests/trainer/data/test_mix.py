"""Several sources: each is seen as often an epoch as the chain says, whatever ranks, workers and interruptions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.errors import UserDataError
from modelchain.mix import seen_in_epoch
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.index import build_index
from modelchain_trainer.data.loader import Batch, TrainingLoader
from modelchain_trainer.data.mix import Source
from modelchain_trainer.data.order import SampleOrder, shuffle
from modelchain_trainer.data.text_field import CaptionField
from modelchain_trainer.data.tokenizer import Tokenizer
from tests.trainer.data.shards import access, number_of, sample, stage_of, write_shards

REPEATS = st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 3.7]) | st.floats(0.05, 5).map(lambda r: round(r, 2))


def order_of(
    sizes: list[tuple[int, float]], *, block: int, batch: int, window_blocks: int, seed: int = 0
) -> tuple[SampleOrder, list[Source]]:
    """Sources of so many samples and repeats, in blocks of that many samples."""
    sources: list[Source] = []
    starts: list[int] = []
    first = 0
    for size, repeat in sizes:
        sources.append(Source(first, first + size, repeat))
        starts += range(first, first + size, block)
        first += size
    blocks = np.array([*starts, first], np.int64)
    order = SampleOrder(
        blocks, seed=seed, global_batch_size=batch, window_blocks=window_blocks, sources=sources
    )
    return order, sources


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), REPEATS), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 3),
    st.data(),
)
def test_each_epoch_sees_each_source_as_often_as_promised(
    sizes: list[tuple[int, float]], block: int, window_blocks: int, seed: int, data: st.DataObject
) -> None:
    total = sum(seen_in_epoch(size, repeat) for size, repeat in sizes)
    if not total:
        return
    batch = data.draw(st.sampled_from([n for n in range(1, 25) if total % n == 0]))  # nothing is left over
    order, sources = order_of(sizes, block=block, batch=batch, window_blocks=window_blocks, seed=seed)
    assert order.steps_per_epoch * batch == total
    count = sum(size for size, _ in sizes)
    so_far: Counter[int] = Counter()
    for epoch in range(4):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = np.concatenate([order.step_samples(step) for step in steps])
        assert len(np.unique(seen)) == len(seen), "each copy has a number of its own"
        times = Counter((seen % count).tolist())
        so_far.update(times)
        for source in sources:
            numbers = range(source.first, source.last)
            assert sum(times[n] for n in numbers) == source.seen
            low = source.seen // len(numbers)
            assert all(times[n] in (low, low + 1) for n in numbers)
            together = [so_far[n] for n in numbers]
            assert max(together) - min(together) <= 1, "every sample has its turn"


def test_the_copies_of_a_sample_lie_far_apart() -> None:
    sizes = [(2000, 3.0), (4000, 1.0), (1000, 1.5)]
    order, _ = order_of(sizes, block=10, batch=32, window_blocks=8)
    places: dict[int, list[int]] = {}
    for step in range(order.steps_per_epoch):
        for number in (order.step_samples(step) % 7000).tolist():
            places.setdefault(number, []).append(step)
    steps = order.steps_per_epoch
    for number, found in places.items():
        if len(found) > 1:
            apart = np.diff([*found, found[0] + steps]) / steps  # an epoch is a ring, cut open somewhere
            assert apart.min() > 0.6 / len(found), number


def test_a_mix_is_even_throughout_the_epoch() -> None:
    sizes = [(30_000, 2.4), (80_000, 0.5), (28_000, 1.0)]
    order, _ = order_of(sizes, block=10, batch=700, window_blocks=64)
    seen = np.concatenate([order.step_samples(step) for step in range(order.steps_per_epoch)]) % 138_000
    for part in np.array_split(seen, 5):
        shares = np.histogram(part, [0, 30_000, 110_000, 138_000])[0] / len(part)
        assert shares == pytest.approx([72 / 140, 40 / 140, 28 / 140], abs=0.03)


def epoch_of(order: SampleOrder, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers of an epoch's samples, copies' too: [steps, G]."""
    lanes = [
        np.concatenate([shuffle(window, order.seed) for window in order.windows(epoch, lane)])
        for lane in range(order.lanes)
    ]
    return np.concatenate([lane.reshape(order.steps_per_epoch, order.lane_rows) for lane in lanes], axis=1)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([(88_000, 2.0), (264_000, 1.0)], id="some twice"),
        pytest.param([(350_000, 2.5), (1_050_000, 0.2)], id="a fraction left over"),
        pytest.param([(40_000, 3.0), (25_050, 1.0)], id="lanes of a few blocks"),
    ],
)
def test_copies_lie_far_apart_where_lanes_are_many(sizes: list[tuple[int, float]]) -> None:
    order, sources = order_of(sizes, block=80, batch=1024, window_blocks=128)
    assert order.lanes == 128
    steps, copies = order.steps_per_epoch, sources[0].seen / sources[0].last
    for epoch in range(2):
        numbers = epoch_of(order, epoch).ravel() % sources[-1].last
        step = np.repeat(np.arange(steps), 1024)
        by_number = np.lexsort((step, numbers))
        same = np.diff(numbers[by_number]) == 0
        apart = np.diff(step[by_number])[same] / steps
        apart = np.minimum(apart, 1 - apart)  # an epoch is a ring, cut open somewhere
        assert np.median(apart) > 0.85 / np.ceil(copies)
        assert np.mean(apart < 1 / steps) < 0.002


@pytest.mark.parametrize("blocks", [[128, 1152], [256, 512], [500, 312], [1100, 3300]])
def test_no_source_comes_in_all_lanes_at_the_same_time(blocks: list[int]) -> None:
    """Where the blocks of a source are as many as the lanes, or a multiple, nothing may keep them in step."""
    sizes = list(zip([80 * n for n in blocks], [1.0, 2.0], strict=True))
    order, sources = order_of(sizes, block=80, batch=1024, window_blocks=128)
    seen = sum(source.seen for source in sources)
    for epoch in range(2):
        for part in np.array_split(epoch_of(order, epoch).ravel() % sources[-1].last, 10):
            assert np.mean(part < sources[0].last) == pytest.approx(sources[0].seen / seen, abs=0.09)


def test_an_epoch_leaves_out_less_than_a_batch_of_all_turns() -> None:
    order, sources = order_of([(1000, 2.5), (3000, 0.5)], block=7, batch=96, window_blocks=16)
    seen = sum(source.seen for source in sources)
    left_out = seen % 96
    assert left_out
    so_far = np.zeros(4000, int)
    for epoch in range(6):
        numbers = epoch_of(order, epoch).ravel()
        assert len(np.unique(numbers)) == len(numbers) == seen - left_out
        times = np.bincount(numbers % 4000, minlength=4000)
        assert times[:1000].max() == 3 and times[1000:].max() == 1
        assert (2 - times[:1000]).clip(0).sum() <= left_out
        so_far += times
        for source in sources:
            turns = (epoch + 1) * source.seen / (source.last - source.first)
            of_it = so_far[source.first : source.last]
            assert of_it.max() <= np.ceil(turns)
            assert (int(turns) - of_it).clip(0).sum() <= (epoch + 1) * left_out


def test_sources_that_are_seen_once_are_read_as_one() -> None:
    order, _ = order_of([(30, 1.0), (25, 1.0)], block=5, batch=5, window_blocks=4)
    plain = SampleOrder(np.arange(0, 56, 5), seed=0, global_batch_size=5, window_blocks=4)
    for step in range(33):
        assert np.array_equal(order.step_samples(step), plain.step_samples(step))


SOURCES = [{"patterns": 2, "samples": 40, "repeat": 2.5}, {"patterns": 1, "samples": 30, "repeat": 0.5}]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Three shards: of 20, 20 and 30 samples."""
    folder = tmp_path_factory.mktemp("mix")
    first = write_shards(folder / "one", 40, 20)
    return (*first, *write_shards(folder / "two", 30, 30, lambda n: sample(40 + n)))


def mixed(shards: tuple[str, ...], *, workers: int = 2, **data: Any) -> ResolvedStage:
    return stage_of(
        shards,
        115,
        batch=20,
        steps=13,
        data={"sources": SOURCES, "blockMebibytes": 1, "windowBlocks": 2, **data},
        training={"dataWorkers": workers},
    )


def batches(
    stage: ResolvedStage, folder: Path, *, rank: int = 0, ranks: int = 1, first_step: int = 0
) -> list[Batch]:
    index = build_index(stage.data, access(folder), FolderStore(folder))
    field = CaptionField(Tokenizer(8))
    return list(TrainingLoader(index, stage, rank=rank, world_size=ranks, first_step=first_step, field=field))


def test_ranks_threads_and_interruptions_change_nothing(shards: tuple[str, ...], tmp_path: Path) -> None:
    whole = batches(mixed(shards), tmp_path)
    assert len(whole) == 13
    seen = Counter(number_of(image) for batch in whole[:5] for image in batch.images.numpy())
    assert sum(seen[n] for n in range(40)) + sum(seen[n] for n in range(40, 70)) == 100
    assert 85 <= sum(seen[n] for n in range(40)) <= 100, "a hundred, less what did not fill the last batch"
    again = batches(mixed(shards, workers=0), tmp_path, first_step=7)
    halves = [batches(mixed(shards), tmp_path, rank=rank, ranks=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        joined = [half[step] for half in halves]
        assert torch.equal(torch.cat([part.images for part in joined]), batch.images)
        assert torch.equal(torch.cat([part.tokens for part in joined], dim=1), batch.tokens)
        if step >= 7:
            assert torch.equal(again[step - 7].images, batch.images)
            assert torch.equal(again[step - 7].tokens, batch.tokens)


def test_copies_of_a_sample_are_crops_of_their_own(tmp_path: Path) -> None:
    from tests.trainer.data.shards import noise

    shards = write_shards(tmp_path / "data", 4, 4, lambda n: {"png": noise(40, n), "txt": b"one of four"})
    stage = stage_of(
        shards,
        12,
        batch=12,
        steps=1,
        data={
            "sources": [{"patterns": 1, "samples": 4, "repeat": 3.0}],
            "randomCropScale": [0.3, 0.6],
        },
    )
    (batch,) = batches(stage, tmp_path / "store")
    assert len({image.tobytes() for image in batch.images.numpy()}) == 12


@pytest.mark.parametrize(("source", "right", "there"), [(0, 40, 2), (1, 30, 1)])
def test_a_wrong_number_of_samples_is_named_with_its_source(
    shards: tuple[str, ...], tmp_path: Path, source: int, right: int, there: int
) -> None:
    wrong = [dict(one) for one in SOURCES]
    wrong[source]["samples"] = right - 1
    with pytest.raises(
        UserDataError,
        match=rf"data\.sources\[{source}\]\.samples is {right - 1}, but the {there} shards hold {right} samples; "
        rf"write samples: {right}, or fix data\.sources\[{source}\]\.shards",
    ):
        batches(mixed(shards, sources=wrong), tmp_path)


def test_shards_are_left_out_of_any_source(shards: tuple[str, ...], tmp_path: Path) -> None:
    """Of the second source nothing is left; an epoch is shorter by what it would have seen of it."""
    gone = (*shards[:2], str(tmp_path / "gone.tar"))
    stage = mixed(gone, maxMissingShards=1)
    seen = [number_of(image) for batch in batches(stage, tmp_path)[:5] for image in batch.images.numpy()]
    assert set(Counter(seen).values()) == {2, 3}
    assert set(seen) == set(range(40))
