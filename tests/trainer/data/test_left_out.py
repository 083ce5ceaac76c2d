"""Shards that are missing or damaged within a limit: the rest is trained on, the same rest by every attempt."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from modelchain.errors import MissingInputError, UserDataError
from modelchain.resolved import ResolvedData, ResolvedStage
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.index import DatasetIndex, build_index, open_index, write_training_index
from modelchain_trainer.data.left_out import find_shards, record_samples
from modelchain_trainer.retry_policy import RetryPolicy
from tests.trainer.data.shards import access, noise, stage_of, write_shards

PER_SHARD = 10


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        path.write_bytes(b"<html>not found</html>" * 100)


def build(shards: tuple[str, ...], folder: Path, most: int) -> DatasetIndex:
    data = ResolvedData(shards=shards, samples=PER_SHARD * len(shards), max_missing_shards=most)
    return build_index(data, access(folder), FolderStore(folder / "store"))


@pytest.mark.parametrize("how", ["missing", "empty", "cut short", "a page"])
def test_a_shard_that_can_not_be_used_is_left_out_within_the_limit(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_shards(tmp_path / "data", 4 * PER_SHARD, PER_SHARD)
    spoil(Path(shards[1]), how)
    with pytest.raises((UserDataError, MissingInputError), match=r"0001\.tar"):
        build(shards, tmp_path, 0)
    index = build(shards, tmp_path, 1)
    assert len(index) == 3 * PER_SHARD
    assert index.left_out == (shards[1],)
    assert [shard.uri for shard in index.shards] == [shards[0], shards[2], shards[3]]
    assert shards[1] in caplog.text


def test_missing_and_damaged_shards_count_together(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 4 * PER_SHARD, PER_SHARD)
    spoil(Path(shards[0]), "missing")
    spoil(Path(shards[3]), "cut short")
    assert len(build(shards, tmp_path, 2)) == 2 * PER_SHARD
    with pytest.raises(UserDataError, match=r"0003\.tar: was cut short"):
        build(shards, tmp_path, 1)
    spoil(Path(shards[1]), "missing")
    with pytest.raises(
        MissingInputError, match=r"2 of 4 shards do not exist, more than data\.maxMissingShards 1"
    ):
        build(shards, tmp_path, 1)


def test_without_a_shard_that_can_be_used_nothing_is_trained(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 2 * PER_SHARD, PER_SHARD)
    for shard in shards:
        spoil(Path(shard), "empty")
    with pytest.raises(UserDataError, match=r"none of the 2 shards can be used; for example .*is empty"):
        build(shards, tmp_path, 5)


def test_fewer_samples_than_stated_are_an_error_where_nothing_was_left_out(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 2 * PER_SHARD, PER_SHARD)
    data = ResolvedData(shards=shards, samples=2 * PER_SHARD + 1, max_missing_shards=5)
    with pytest.raises(UserDataError, match=r"hold 20 samples; write samples: 20"):
        build_index(data, access(tmp_path), FolderStore(tmp_path / "store"))


def test_no_number_of_samples_is_recommended_while_shards_are_left_out(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 2 * PER_SHARD, PER_SHARD)
    spoil(Path(shards[1]), "cut short")
    data = ResolvedData(shards=shards, samples=PER_SHARD - 1, max_missing_shards=1)
    with pytest.raises(UserDataError, match=rf"hold {PER_SHARD} samples; mend or take out .*0001\.tar"):
        build_index(data, access(tmp_path), FolderStore(tmp_path / "store"))


class Attempts:
    """Attempts of one stage that may do without two of four shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = write_shards(folder / "data", 4 * PER_SHARD, PER_SHARD)
        self.store = FolderStore(folder / "store")
        self.stage: ResolvedStage = stage_of(
            self.shards, 4 * PER_SHARD, batch=10, steps=4, data={"maxMissingShards": 2}
        )

    def begin(self) -> DatasetIndex:
        """What one rank alone does to find its samples."""
        index = self.folder / "index"
        shutil.rmtree(index, ignore_errors=True)
        index.mkdir()
        found = find_shards(self.stage, self.store, RetryPolicy())
        write_training_index(index, found, self.stage.data, self.store, retry_policy=RetryPolicy())
        opened = open_index(index, access(self.folder))
        record_samples(self.stage, self.store, opened, RetryPolicy())
        return opened


@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_a_shard_that_comes_back_stays_left_out_of_the_stage(tmp_path: Path, how: str) -> None:
    attempts = Attempts(tmp_path)
    good = Path(attempts.shards[2]).read_bytes()
    spoil(Path(attempts.shards[2]), how)
    first = attempts.begin()
    Path(attempts.shards[2]).write_bytes(good)
    again = attempts.begin()
    assert again.left_out == first.left_out == (attempts.shards[2],)
    assert again.starts.tolist() == first.starts.tolist()
    assert [shard.uri for shard in again.shards] == [shard.uri for shard in first.shards]


def test_other_samples_than_a_stage_began_with_are_refused_though_there_are_as_many(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin()
    (other,) = write_shards(
        tmp_path / "other", PER_SHARD, PER_SHARD, lambda n: {"png": noise(20 + n, n), "txt": b"another"}
    )
    shutil.copy(other, attempts.shards[0])
    with pytest.raises(UserDataError, match=r"data\.json: the stage began with other samples"):
        attempts.begin()


def test_shards_that_were_written_anew_with_the_same_places_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin()
    attempts.begin()
    assert "written anew" not in caplog.text
    os.utime(attempts.shards[0], ns=(1, 1))  # another version of as many bytes
    attempts.begin()
    assert "written anew since it began" in caplog.text


def test_a_shard_that_goes_after_the_stage_began_is_an_error(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin()
    spoil(Path(attempts.shards[0]), "missing")
    with pytest.raises(MissingInputError, match=r"1 of 4 shards do not exist: .*0000\.tar"):
        attempts.begin()


def test_a_shard_that_breaks_after_the_stage_began_is_an_error(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin()
    spoil(Path(attempts.shards[0]), "cut short")
    with pytest.raises(
        UserDataError, match=r"data\.json: the stage began with 40 samples, and .* hold 30 now"
    ):
        attempts.begin()


def test_a_record_that_can_not_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.begin()
    key = f"{attempts.stage.folder}/data.json"
    written = json.loads(attempts.store.get(key)[0])
    assert (written["leftOut"], written["samples"]) == ([], 40)
    attempts.store.put(key, b"{")
    with pytest.raises(UserDataError, match=r"data\.json: can't be read"):
        attempts.begin()
