"""What a stage is trained on, and the shards that it does without: decided when it first looks, and never again.

The order of samples follows from which there are. A shard that is missing today and back tomorrow would give another
order in the middle of a stage, so what was left out is written down beside the stage's lease.
"""

from __future__ import annotations

import logging

from modelchain.artifacts import DATA, DataRecord
from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.store import ConflictError, Store
from modelchain_trainer.data.shard_list import ShardList
from modelchain_trainer.data.source import OpenData
from modelchain_trainer.retry_policy import RetryPolicy

logger = logging.getLogger(__name__)


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


def record_samples(stage: ResolvedStage, store: Store, index: OpenData, retry_policy: RetryPolicy) -> None:
    """Write down what the stage is trained on and does without. Raises UserDataError where another attempt has begun
    with other samples; shards that were written anew with their samples in the same places are named in the log.
    """
    record = _read(stage, store, retry_policy)
    mine = DataRecord(
        left_out=index.left_out, samples=len(index), layout=index.layout, versions=index.versions
    )
    if record is None:
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
    if record.layout and record.layout != mine.layout:
        raise UserDataError(
            f"{store.uri_of(_key(stage))}: the stage began with other samples than its shards hold now, or in another "
            "order; put the shards back as they were, or name new ones, which makes a new stage"
        )
    if record.versions and record.versions != mine.versions:
        logger.warning(
            "stage %s: shards were written anew since it began, with samples in the same places; if those are others, "
            "it goes on with them",
            stage.name,
        )


def _read(stage: ResolvedStage, store: Store, retry_policy: RetryPolicy) -> DataRecord | None:
    found = retry_policy.call(lambda: store.find(_key(stage)))
    try:
        return found and DataRecord.model_validate_json(found[0])
    except ValueError:
        raise UserDataError(
            f"{store.uri_of(_key(stage))}: can't be read, and says which samples the stage began with; restore it"
        ) from None


def _key(stage: ResolvedStage) -> str:
    return f"{stage.folder}/{DATA}"
