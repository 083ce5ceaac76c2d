"""Shards that a stage does without: decided when it first looks at them, and never again.

The order of samples follows from which there are. A shard that is missing today and back tomorrow would give another
order in the middle of a stage, so what was left out is written down beside the stage's lease.
"""

from __future__ import annotations

from modelchain.artifacts import DATA, DataRecord
from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.store import ConflictError, Store
from modelchain_trainer.data.shard_list import ShardList
from modelchain_trainer.data.source import OpenData
from modelchain_trainer.retry_policy import RetryPolicy


def find_shards(stage: ResolvedStage, store: Store, retry_policy: RetryPolicy) -> ShardList:
    """The shards of the stage: those that it once began with, or as many as there are now within what is allowed.

    Raises MissingInputError where too many are missing, or one that the stage began with.
    """
    record = _read(stage, store, retry_policy)
    if record is None:
        return ShardList.find(
            stage.data.shards, stage.store, retry_policy, max_missing=stage.data.max_missing_shards
        )
    return ShardList.find(stage.data.shards, stage.store, retry_policy, without=record.left_out)


def record_left_out(stage: ResolvedStage, store: Store, index: OpenData, retry_policy: RetryPolicy) -> None:
    """Write down what the stage does without, where it may do without any. Raises UserDataError where another attempt
    has begun with other samples.
    """
    if not stage.data.max_missing_shards:
        return
    record = _read(stage, store, retry_policy)
    if record is None:
        mine = DataRecord(left_out=index.left_out, samples=len(index))
        data = mine.model_dump_json(by_alias=True, indent=2).encode()
        try:
            retry_policy.call(lambda: store.put(_key(stage), data, if_absent=True))
        except ConflictError:
            record = _read(stage, store, retry_policy)
        else:
            return
    if record is None or record.samples != len(index):
        raise UserDataError(
            f"{store.uri_of(_key(stage))}: the stage began with {record.samples if record else 'other'} samples, "
            f"and its shards hold {len(index)} now; put the shards back as they were"
        )


def _read(stage: ResolvedStage, store: Store, retry_policy: RetryPolicy) -> DataRecord | None:
    if not stage.data.max_missing_shards:
        return None
    found = retry_policy.call(lambda: store.find(_key(stage)))
    try:
        return found and DataRecord.model_validate_json(found[0])
    except ValueError:
        raise UserDataError(
            f"{store.uri_of(_key(stage))}: can't be read, and says which shards the stage does without; restore it"
        ) from None


def _key(stage: ResolvedStage) -> str:
    return f"{stage.folder}/{DATA}"
