"""The indexes of shards as they are kept in the store: those of up to 32 consecutive shards in one object.

So 10,000 shards are 313 objects to read at a start, and an attempt that is killed while it indexes loses little.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from modelchain.errors import UserDataError
from modelchain.store import NotFound, Store
from modelchain_trainer.data.shard_index import VERSION, ShardIndex, build_from_store
from modelchain_trainer.data.shard_list import Located, ShardList
from modelchain_trainer.retry_policy import RetryPolicy

INDEX_FOLDER = "indexes"
GROUP = 32  # shards

_READERS = 16
_BUILDERS = 16
_AHEAD = 64  # groups that are read before they are asked for

# An index, or what is wrong with the shard.
Found = ShardIndex | UserDataError


def index_missing(
    shards: ShardList,
    index_store: Store,
    retry_policy: RetryPolicy,
    on_progress: Callable[[int], None],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Put the indexes of this rank's share of the groups into the store, where they are not there yet.

    `on_progress(shards)` is called as they are done. Bad shards are kept as such: whoever reads them decides.
    """
    known = {info.key for info in retry_policy.call(lambda: list(index_store.list(f"{INDEX_FOLDER}/")))}
    for number, group in enumerate(groups_of(shards)):
        if number % world_size == rank and index_key(group) not in known:
            _build_group(group, index_store, retry_policy, on_progress)


def read_kept(
    shards: ShardList, index_store: Store, retry_policy: RetryPolicy, on_progress: Callable[[int], None]
) -> Iterator[tuple[Located, Found]]:
    """Every shard with its index, in order; made now where it is not kept, or kept in a form that can't be read."""
    groups = groups_of(shards)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="modelchain-index") as pool:
        pending = deque(
            pool.submit(_read_group, group, index_store, retry_policy) for group in groups[:_AHEAD]
        )
        try:
            for number, group in enumerate(groups):
                found = pending.popleft().result()
                if number + _AHEAD < len(groups):
                    pending.append(
                        pool.submit(_read_group, groups[number + _AHEAD], index_store, retry_policy)
                    )
                if found is None:
                    found = _build_group(group, index_store, retry_policy, on_progress)
                else:
                    on_progress(len(group))
                yield from zip(group, found, strict=True)
        except BaseException:
            retry_policy.stop()  # the other threads end with their next request
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def groups_of(shards: ShardList) -> list[tuple[Located, ...]]:
    """The shards whose indexes lie in one object."""
    return [shards.shards[first : first + GROUP] for first in range(0, len(shards.shards), GROUP)]


def index_key(group: Sequence[Located]) -> str:
    """Where the indexes of a group are kept: another name as soon as the bytes of any shard are replaced."""
    identity = "\n".join(
        [str(VERSION), *(f"{shard.uri}\n{shard.info.size}\n{shard.info.etag}" for shard in group)]
    )
    return f"{INDEX_FOLDER}/{hashlib.sha256(identity.encode()).hexdigest()}.json"


def _read_group(
    group: Sequence[Located], index_store: Store, retry_policy: RetryPolicy
) -> list[Found] | None:
    """What is kept of a group; None if nothing is that can be read."""
    try:
        documents = json.loads(retry_policy.call(lambda: index_store.get(index_key(group)))[0])
        if not isinstance(documents, list) or len(documents) != len(group):
            raise ValueError("of another group")
        return [_found(shard, document) for shard, document in zip(group, documents, strict=True)]
    except (NotFound, ValueError):
        return None


def _found(shard: Located, document: object) -> Found:
    if isinstance(document, dict) and isinstance(document.get("bad"), str):
        return UserDataError(document["bad"])
    return ShardIndex.from_document(document, shard.info.size)


def _build_group(
    group: Sequence[Located],
    index_store: Store,
    retry_policy: RetryPolicy,
    on_progress: Callable[[int], None],
) -> list[Found]:
    def build(shard: Located) -> Found:
        try:
            index = build_from_store(shard.store, shard.info, shard.uri, retry_policy)
        except UserDataError as error:
            return error
        on_progress(1)
        return index

    with ThreadPoolExecutor(_BUILDERS, thread_name_prefix="modelchain-scan") as pool:
        try:
            found = list(pool.map(build, group))
        except BaseException:
            retry_policy.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    documents = [
        {"bad": str(one)}
        if isinstance(one, UserDataError)
        else one.to_document(shard.uri, shard.info.size, shard.info.etag)
        for shard, one in zip(group, found, strict=True)
    ]
    retry_policy.call(lambda: index_store.put(index_key(group), json.dumps(documents).encode()))
    return found
