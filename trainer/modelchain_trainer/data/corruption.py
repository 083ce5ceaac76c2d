"""How many samples could not be used, why, and when that is too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelchain.errors import UserDataError
from modelchain_trainer.data.sample import Cause
from modelchain_trainer.data.shard_index import split_name
from modelchain_trainer.data.tar import scan
from modelchain_trainer.retry_policy import RetryPolicy

if TYPE_CHECKING:
    from modelchain_trainer.data.index import DatasetIndex

# Bad samples come in clusters (a damaged block), and early or late. So as many are forgiven as this many
# samples may have: data within the limit never fails, and data far beyond it fails soon.
_HEAD_START = 100_000


@dataclass(frozen=True)
class Corrupt:
    """A sample that can't be used."""

    sample: int
    cause: Cause
    message: str


class CorruptionCounter:
    """Counts corrupt samples by cause, and fails when they are more than a share of those seen."""

    def __init__(self, index: DatasetIndex, max_fraction: float, limit: str) -> None:
        """`limit`: what allows `max_fraction`, for the message."""
        self._index, self._max_fraction, self._limit = index, max_fraction, limit
        self._seen = 0
        self.by_cause: dict[str, int] = {}

    def add(self, seen: int, corrupt: Sequence[Corrupt]) -> None:
        """Count `seen` more samples, of which some are corrupt. Raises UserDataError where all in all too
        many are: more than the share of those seen and of one more pass over the data (at most 100,000).
        """
        self._seen += seen
        for found in corrupt:
            self.by_cause[found.cause] = self.by_cause.get(found.cause, 0) + 1
        total = sum(self.by_cause.values())
        if corrupt and total > self._max_fraction * (self._seen + min(_HEAD_START, len(self._index))):
            causes = ", ".join(f"{count} {cause}" for cause, count in sorted(self.by_cause.items()))
            raise UserDataError(
                f"{total} of the {self._seen} samples read so far can't be used ({causes}), more than "
                f"{self._limit}; for example "
                f"{describe(self._index, corrupt[-1])}; fix the shards"
            )


def describe(index: DatasetIndex, corrupt: Corrupt, retry_policy: RetryPolicy | None = None) -> str:
    """One corrupt sample, for people: its key, its shard, and what is wrong with it."""
    return f"{describe_sample(index, corrupt.sample, retry_policy)}: {corrupt.message}"


def describe_sample(index: DatasetIndex, sample: int, retry_policy: RetryPolicy | None = None) -> str:
    """A sample, for people: its key, read from the shard, and the shard."""
    shard = index.shard_of(sample)
    start, length = int(index.starts[sample]), int(index.lengths[sample])
    patient = retry_policy or RetryPolicy()

    def read(at: int, count: int) -> bytes:
        return patient.call(lambda: shard.store.get_range(shard.key, start + at, count))

    # One member is enough, so the archive may seem to end after the sample.
    member = next(scan(read, length, shard.uri))
    name = split_name(member.name)
    return f"sample {name[0] if name else member.name} of {shard.uri}"
