"""The chains, their jobs and pods as the API server last sent them; not older than the last resync.

A pass begins with this, so that a chain at rest costs no request. Before anything is written or done, the
API server is asked itself: the cache is allowed to be wrong.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from modelchain_operator.informers.slim import MAX_SPEC_BYTES, bounded, packed, slim
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object, ObjectVersion
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN, Kind

# An answer that still shows an object may be read after the watch has told of its deletion. No answer takes longer.
DELETED_SECONDS = 300.0


@dataclass(frozen=True)
class CachedChain:
    """A chain, packed: thousands of idle ones may be here for weeks."""

    uid: str
    resource_version: str
    packed: bytes

    def body(self) -> Object:
        """The chain as the API server sent it, less what is not read."""
        return json.loads(zlib.decompress(self.packed))


class _Owner(NamedTuple):
    """A chain as the labels of its jobs and pods name it."""

    namespace: str
    uid: str


@dataclass
class _Belongings:
    """The jobs and pods that name one chain, in one namespace."""

    objects: dict[tuple[Kind, str], Object] = field(default_factory=dict)  # by kind and uid


class _Deleted:
    """The last versions of objects that were deleted a short while ago."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By uid, oldest first: version, and when its deletion was told.
        self._versions: dict[str, tuple[str, float]] = {}

    def add(self, uid: str, version: str) -> None:
        now = self._clock()
        self._versions.pop(uid, None)
        self._versions[uid] = version, now
        while next(iter(self._versions.values()))[1] < now - DELETED_SECONDS:
            del self._versions[next(iter(self._versions))]

    def covers(self, uid: str, version: str) -> bool:
        """Whether that version is from before the object's deletion. A newer one is no contradiction: what a watch by
        labels calls deleted may only have lost its label.
        """
        known = self._versions.get(uid)
        return known is not None and not is_newer(version, known[0])


class Cache:
    """Chains by name, jobs and pods by the namespace and chain that their labels name. Used in one event loop.

    A label is no proof: which of them are a chain's, `jobs.trees` says. But what stands in another namespace never
    is, so it lies apart and wakes nobody.
    """

    def __init__(
        self,
        on_chain: Callable[[Key, Object | None], None] = lambda _key, _body: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_chain` is called with every chain that has changed; with None for one that is gone."""
        self._on_chain = on_chain
        self._deleted = _Deleted(clock)
        self._chains: dict[Key, CachedChain] = {}
        self._keys: dict[_Owner, Key] = {}
        self._belongings: dict[_Owner, _Belongings] = {}

    # ---- reading

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._chains))

    def __len__(self) -> int:
        return len(self._chains)

    def chain(self, key: Key) -> CachedChain | None:
        """The chain of that name."""
        return self._chains.get(key)

    def objects(self, kind: Kind, namespace: str, chain_uid: str) -> list[Object]:
        """Jobs or pods in that namespace that name the chain."""
        belongings = self._belongings.get(_Owner(namespace, chain_uid))
        if belongings is None:
            return []
        return [item for (of, _), item in belongings.objects.items() if of == kind]

    # ---- what watches show

    def show_chain(self, body: Object) -> Key | None:
        """A chain was created or changed. Returns its name if it differs from the cached one."""
        metadata = body["metadata"]
        key, uid, version = (
            Key(metadata["namespace"], metadata["name"]),
            metadata["uid"],
            metadata["resourceVersion"],
        )
        known = self._chains.get(key)
        if known is not None and known.uid == uid and not is_newer(version, known.resource_version):
            return None
        if self._deleted.covers(uid, version):
            return None
        if known is not None and known.uid != uid:
            self._keys.pop(_Owner(key.namespace, known.uid), None)
        kept = slim(CHAIN, body)
        compressed = packed(kept)
        if len(compressed) > MAX_SPEC_BYTES:
            compressed = packed(bounded(kept))
        self._chains[key] = CachedChain(uid=uid, resource_version=version, packed=compressed)
        self._keys[_Owner(key.namespace, uid)] = key
        self._on_chain(key, body)
        return key

    def drop_chain(self, key: Key, uid: str | None = None, version: str | None = None) -> bool:
        """A chain is gone (that one, if `uid` is given; it was deleted at `version`). Returns whether it was here."""
        known = self._chains.get(key)
        if uid is not None and version is not None:
            self._deleted.add(uid, version)
        if known is None or (uid is not None and known.uid != uid):
            return False
        del self._chains[key]
        if version is None:
            self._deleted.add(known.uid, known.resource_version)
        owner = _Owner(key.namespace, known.uid)
        self._keys.pop(owner, None)
        self._belongings.pop(owner, None)
        self._on_chain(key, None)
        return True

    def show(self, kind: Kind, item: Object, *, deleted: bool = False) -> Key | None:
        """A job or a pod was created, changed or deleted. Returns the name of its chain if it differs from the cached
        one.
        """
        metadata = item["metadata"]
        chain_uid = (metadata.get("labels") or {}).get(labels.CHAIN_UID)
        if not chain_uid:
            return None
        owner = _Owner(metadata["namespace"], chain_uid)
        belongings = self._belongings.setdefault(owner, _Belongings())
        place = (kind, metadata["uid"])
        known, version = belongings.objects.get(place), metadata["resourceVersion"]
        if deleted:
            self._deleted.add(metadata["uid"], version)
            belongings.objects.pop(place, None)
            return self._keys.get(owner) if known is not None else None
        if known is not None and not is_newer(version, known["metadata"]["resourceVersion"]):
            return None
        if self._deleted.covers(metadata["uid"], version):
            return None
        belongings.objects[place] = slim(kind, item)
        return self._keys.get(owner)

    # ---- what listings show

    def chain_uids(self) -> dict[Key, str]:
        """The chains known now, by name: to be taken before a listing begins, for `stale_chains`."""
        return {key: chain.uid for key, chain in self._chains.items()}

    def stale_chains(
        self, listed: Iterable[ObjectVersion], before: dict[Key, str]
    ) -> tuple[list[Key], list[Key]]:
        """The differences of a listing of all chains: those to be read again, and those that are gone.

        A chain that came while the listing was under way (it is not in `before`) is not gone.
        """
        there = {Key(one.namespace, one.name): one for one in listed}
        gone = [
            key for key, known in self._chains.items() if key not in there and before.get(key) == known.uid
        ]
        stale = [
            key
            for key, one in there.items()
            if (known := self._chains.get(key)) is None
            or known.uid != one.uid
            or is_newer(one.resource_version, known.resource_version)
        ]
        return stale, gone

    def uids(self, kind: Kind) -> dict[str, str]:
        """The jobs or pods known now, and their namespaces: to be taken before a listing begins, for `drop_absent`."""
        return {
            uid: owner.namespace
            for owner, belongings in self._belongings.items()
            for of, uid in belongings.objects
            if of == kind
        }

    def stale_owners(self, kind: Kind, listed: Iterable[ObjectVersion]) -> set[tuple[str, str]]:
        """The chains (namespace, uid) of which a listing shows jobs or pods that are not known here, or older."""
        return {
            (one.namespace, one.chain_uid) for one in listed if one.chain_uid and self._is_stale(kind, one)
        }

    def drop_absent(self, kind: Kind, listed: Set[str], before: Container[str]) -> set[Key]:
        """Forget the jobs or pods that a listing does not show; those that are not in `before` came while it was under
        way, and stay. Returns the chains for which that is news.
        """
        changed: set[Key] = set()
        for owner, belongings in list(self._belongings.items()):
            gone = [
                place
                for place in belongings.objects
                if place[0] == kind and place[1] in before and place[1] not in listed
            ]
            for place in gone:
                self._deleted.add(place[1], belongings.objects.pop(place)["metadata"]["resourceVersion"])
            if gone and owner in self._keys:
                changed.add(self._keys[owner])
            if not belongings.objects:
                del self._belongings[owner]
        return changed

    def _is_stale(self, kind: Kind, one: ObjectVersion) -> bool:
        belongings = self._belongings.get(_Owner(one.namespace, one.chain_uid))
        known = belongings.objects.get((kind, one.uid)) if belongings is not None else None
        return known is None or is_newer(one.resource_version, known["metadata"]["resourceVersion"])


def is_newer(version: str, than: str) -> bool:
    """Whether a resource version is newer. They are numbers in order since Kubernetes 1.35; where one is not a
    number, any other version counts as newer.
    """
    try:
        return int(version) > int(than)
    except ValueError:
        return version != than
