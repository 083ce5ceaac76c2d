"""Which shards there are, how large and in which version. One rank asks for all, by listings where that is cheaper."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from modelchain.errors import MissingInputError
from modelchain.resolved import ResolvedStore
from modelchain.shards import expand_all
from modelchain.store import Forbidden, ObjectInfo, Store, open_location, split_uri
from modelchain_trainer.retry_policy import RetryPolicy

_THREADS = 16
_NAMED = 5  # missing shards named in a message
_WORTH_A_LISTING = 100  # shards in one folder of S3: a listing shows up to 1,000 objects with one request


@dataclass(frozen=True)
class Located:
    """A shard that is there."""

    uri: str
    store: Store
    info: ObjectInfo


class ShardList:
    """The shards of a data set in their order; of each its size and etag."""

    def __init__(
        self,
        shards: Sequence[Located],
        missing: Sequence[str],
        access: ResolvedStore,
        *,
        settled: bool = False,
    ) -> None:
        self.shards = tuple(shards)
        self.missing = tuple(
            missing
        )  # those that are done without: within what is allowed, they do not exist
        self.access = access
        self.settled = settled  # a stage has begun with them, and no others

    @classmethod
    def find(
        cls,
        patterns: Sequence[str],
        access: ResolvedStore,
        retry_policy: RetryPolicy,
        *,
        max_missing: int = 0,
        without: Sequence[str] | None = None,
    ) -> ShardList:
        """The shards that the patterns stand for, but those in `without`; up to `max_missing` may not exist.
        `without`: a stage has begun with the others.

        Raises MissingInputError that names those that do not exist (NotFound for a bucket).
        """
        unwanted = set(without or ())
        uris = [uri for uri in expand_all(patterns) if uri not in unwanted]
        stores = _open_stores(uris, access)
        folders: dict[str, list[str]] = defaultdict(list)
        for uri in uris:
            folders[split_uri(uri)[0]].append(split_uri(uri)[1])
        infos: dict[str, ObjectInfo] = {}
        for folder, names in folders.items():
            for info in _infos(stores[folder], names, retry_policy):
                infos[f"{folder}/{info.key}"] = info
        found = {uri: infos.get("/".join(split_uri(uri))) for uri in uris}
        missing = [uri for uri, info in found.items() if info is None]
        if len(missing) > max_missing:
            raise MissingInputError(_describe_missing(missing, len(uris), max_missing))
        there = [
            Located(uri, stores[split_uri(uri)[0]], info) for uri, info in found.items() if info is not None
        ]
        return cls(there, [*(without or ()), *missing], access, settled=without is not None)

    def to_text(self) -> str:
        """For another rank: what the store said, in the order of the shards."""
        there = [[shard.uri, shard.info.size, shard.info.etag] for shard in self.shards]
        return json.dumps({"shards": there, "missing": self.missing, "settled": self.settled})

    @classmethod
    def from_text(cls, text: str, access: ResolvedStore) -> ShardList:
        """What `to_text` wrote; nothing is asked of the stores."""
        document = json.loads(text)
        stores = _open_stores([uri for uri, _, _ in document["shards"]], access)
        there = [
            Located(uri, stores[split_uri(uri)[0]], ObjectInfo(split_uri(uri)[1], size, etag, 0.0))
            for uri, size, etag in document["shards"]
        ]
        return cls(there, document["missing"], access, settled=document["settled"])


def versions_of(etags: Iterable[str]) -> str:
    """Hash of the versions of shards in their order: another one as soon as one was written anew."""
    return hashlib.sha256("\n".join(etags).encode()).hexdigest()


def _open_stores(uris: Sequence[str], access: ResolvedStore) -> dict[str, Store]:
    return {
        folder: open_location(folder, access) for folder in dict.fromkeys(split_uri(uri)[0] for uri in uris)
    }


def _infos(store: Store, names: Sequence[str], retry_policy: RetryPolicy) -> list[ObjectInfo]:
    """What there is of these names."""
    if store.uri.startswith("s3://") and len(names) >= _WORTH_A_LISTING:
        wanted = set(names)
        prefix = _common_prefix(min(names), max(names))
        with suppress(Forbidden):  # who may read shards may not be allowed to list them
            return [
                info for info in retry_policy.call(lambda: list(store.list(prefix))) if info.key in wanted
            ]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="modelchain-head") as pool:
        found = pool.map(lambda name: retry_policy.call(lambda: store.head(name)), names)
        return [info for info in found if info is not None]


def _common_prefix(one: str, other: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _describe_missing(missing: Sequence[str], total: int, max_missing: int) -> str:
    named = ", ".join(missing[:_NAMED]) + (
        f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    )
    limit = f", more than data.maxMissingShards {max_missing} allows" if max_missing else ""
    return f"{len(missing)} of {total} shards do not exist{limit}: {named}; write them, or fix the shard list"
