"""When corrupt samples are too many: never where their share is allowed, soon where it is far from that."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.errors import ExitCode, UserDataError
from modelchain.store import StoreUnavailable
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.corruption import Corrupt, CorruptionCounter, describe, describe_sample
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.sample import Cause
from tests.trainer.data.shards import index_of, png, write_shards

BAD = Corrupt(0, Cause.BAD_IMAGE, "not a readable image: no JPEG, PNG or WebP")


class OfLength(SimpleNamespace):
    """The part of an index that counting needs."""

    def __len__(self) -> int:
        return self.samples


def counter(samples: int, fraction: float) -> CorruptionCounter:
    index = cast("DatasetIndex", cast("Any", OfLength(samples=samples)))
    return CorruptionCounter(index, fraction, "data.maxCorruptFraction allows")


@pytest.fixture(autouse=True)
def no_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of an error reads the sample's name from its shard."""
    monkeypatch.setattr("modelchain_trainer.data.corruption.describe", lambda *_: "an example")


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(10, 3000),
    share=st.floats(0, 1),
    batch=st.integers(1, 100),
    clustered=st.booleans(),
    seed=st.integers(0, 999),
)
def test_data_within_the_limit_never_fails(
    samples: int, share: float, batch: int, clustered: bool, seed: int
) -> None:
    bad = int(samples * share)
    count = counter(samples, bad / samples)
    generator = random.Random(seed)
    for _ in range(5):  # epochs
        epoch = [True] * bad + [False] * (samples - bad)
        if not clustered:
            generator.shuffle(epoch)
        for start in range(0, samples, batch):
            part = epoch[start : start + batch]
            count.add(len(part), [BAD] * sum(part))
    assert sum(count.by_cause.values()) == 5 * bad


@pytest.mark.parametrize(("samples", "batches"), [(1000, 12), (3_000_000, 120)])
def test_ten_times_the_limit_fails_soon(samples: int, batches: int) -> None:
    count = counter(samples, 0.01)
    with pytest.raises(UserDataError, match=r"can't be used \(\d+ BadImage\), more than data") as raised:
        for _ in range(batches):
            count.add(100, [BAD] * 10)
    assert raised.value.exit_code is ExitCode.DATA


def test_causes_are_counted_apart() -> None:
    count = counter(1000, 1)
    count.add(10, [BAD, Corrupt(3, Cause.BAD_CAPTION, "x"), BAD])
    assert count.by_cause == {"BadImage": 2, "BadCaption": 1}


def test_a_store_that_is_away_for_a_moment_takes_no_message_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "data", 10, 10, lambda n: {"png": png(n), "txt": b"x"})
    index = index_of(shards, 10, tmp_path / "store")
    read, answers = FolderStore.get_range, iter([StoreUnavailable("away")])

    def get_range(store: FolderStore, key: str, start: int, length: int) -> bytes:
        for error in answers:
            raise error
        return read(store, key, start, length)

    monkeypatch.setattr(FolderStore, "get_range", get_range)
    assert describe_sample(index, 7) == f"sample 000007 of {shards[0]}"
    assert next(answers, None) is None


def test_a_sample_is_named_by_key_and_shard(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 30, 10, lambda n: {"png": png(n), "txt": b"x"})
    index = index_of(shards, 30, tmp_path / "store")
    assert (
        describe(index, Corrupt(17, Cause.BAD_IMAGE, "is no image"))
        == f"sample 000017 of {shards[1]}: is no image"
    )
