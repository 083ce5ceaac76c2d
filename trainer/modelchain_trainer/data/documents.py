"""The documents of a data set, in the order of its shards and of the bytes in each: texts of tars, or lines of JSON."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from modelchain.errors import MissingInputError, UserDataError
from modelchain.shards import LINES, is_lines
from modelchain.store import NotFound, Replaced, Store, StoreError
from modelchain_trainer.data.corruption import describe_sample
from modelchain_trainer.data.index import MAX_HIDDEN_FRACTION, DatasetIndex, OnProgress, write_text_index
from modelchain_trainer.data.order import cut_blocks
from modelchain_trainer.data.reader import read_segment
from modelchain_trainer.data.sample import Cause, CorruptSampleError
from modelchain_trainer.data.shard_list import Located, ShardList, versions_of
from modelchain_trainer.data.text_keys import text_of
from modelchain_trainer.retry_policy import RetryPolicy

_DEFAULT_KEYS = {False: "txt", True: "json:text"}  # of shards of lines
_BLOCK = 8 << 20  # bytes that are read at once
_END = 1 << 16  # bytes, of the end of a shard of lines, that are looked at first
_THREADS = 16
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("|\\?\Z)', re.DOTALL)  # of JSON; it may lack its end

_logger = logging.getLogger(__name__)

Document = str | CorruptSampleError  # or why there is none


@dataclass(frozen=True)
class DocumentList:
    """Documents that can be read once, and the shards that are done without."""

    documents: Iterator[Document]
    left_out: tuple[str, ...]
    versions: str  # hash of the versions of the shards


def find_documents(
    shards: ShardList,
    key: str | None,
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    max_missing: int = 0,
    max_hidden_fraction: float = MAX_HIDDEN_FRACTION,
    retry_policy: RetryPolicy,
) -> DocumentList:
    """The documents of shards, by the key of their texts (see data.textKey).

    `on_progress(done, total)` counts shards that are looked through, then what is read of the documents, at least
    every 8 MiB.
    Raises UserDataError for bad shards, for tars beside lines of JSON and for compressed ones.
    """
    packed = next(
        (shard.uri for shard in shards.shards if f"{LINES}." in shard.uri.rpartition("/")[2].lower()), None
    )
    if packed is not None:
        raise UserDataError(
            f"{packed}: compressed lines of JSON can't be read in parts; unpack it to {LINES}"
        )
    lines = [is_lines(shard.uri) for shard in shards.shards]
    if any(lines) and not all(lines):
        uri = next(shard.uri for shard in shards.shards if not is_lines(shard.uri))
        raise UserDataError(
            f"{uri}: stands beside shards of lines of JSON; write all shards as {LINES}, or as tars"
        )
    of_lines = all(lines)
    on_progress = on_progress or _ignore
    key = key or _DEFAULT_KEYS[of_lines]
    if of_lines:
        if ":" not in key:
            raise UserDataError(f"data.textKey is {key}, but the shards hold lines of JSON; write json:FIELD")
        whole, bad = list(shards.shards), list[str]()
        if not shards.settled:
            whole, bad = _whole(shards, max_missing - len(shards.missing), on_progress, retry_policy)
        found = _of_lines(whole, key, on_progress, retry_policy)
        versions = versions_of(shard.info.etag for shard in whole)
        return DocumentList(found, (*shards.missing, *bad), versions)
    with tempfile.TemporaryDirectory(prefix="modelchain-documents-") as folder:
        index = write_text_index(
            Path(folder),
            shards,
            (key,),
            index_store,
            on_progress,
            max_hidden_fraction=max_hidden_fraction,
            max_bad=max_missing - len(shards.missing),
            retry_policy=retry_policy,
        )
    return DocumentList(_of_tars(index, key, on_progress, retry_policy), index.left_out, index.versions)


def _of_tars(
    index: DatasetIndex, key: str, on_progress: OnProgress, retry_policy: RetryPolicy
) -> Iterator[Document]:
    blocks = cut_blocks(index, _BLOCK).tolist()
    for number, (first, last) in enumerate(pairwise(blocks), start=1):
        segment = read_segment(index, first, last, retry_policy)
        on_progress(number, len(blocks) - 1)
        for sample in range(first, last):
            try:
                yield text_of(segment.text(sample, 0, Cause.MISSING_TEXT), key)
            except CorruptSampleError as error:
                yield _unusable(error, describe_sample(index, sample, retry_policy))


def _whole(
    shards: ShardList, max_bad: int, on_progress: OnProgress, retry_policy: RetryPolicy
) -> tuple[list[Located], list[str]]:
    """The shards of lines that are whole, and the addresses of those that are not. Raises UserDataError for more than
    `max_bad` of these.
    """
    faults: list[str | None] = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="modelchain-lines") as pool:
        try:
            for fault in pool.map(lambda shard: _fault(shard, retry_policy), shards.shards):
                faults.append(fault)
                on_progress(len(faults), len(shards.shards))
        except BaseException:
            retry_policy.stop()  # the other threads end with their next request
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    bad = {shard.uri: fault for shard, fault in zip(shards.shards, faults, strict=True) if fault is not None}
    if bad and (len(bad) > max_bad or len(bad) == len(faults)):
        raise UserDataError(next(iter(bad.values())))
    for message in bad.values():
        _logger.warning("%s; left out", message)
    return [shard for shard in shards.shards if shard.uri not in bad], list(bad)


def _fault(shard: Located, retry_policy: RetryPolicy) -> str | None:
    """Why a shard of lines can't be used: it ends within a document, as a broken-off copy does. One that holds nothing,
    as Spark writes them, is only warned of.

    Only its end is read, the last line at least. A cut between two lines looks like a smaller shard.
    """
    size, length = shard.info.size, min(_END, shard.info.size)
    end = last = b""
    while size:
        end = _block(shard, size - length, length, retry_policy)
        _, newline, last = end.rpartition(b"\n")
        if length == size or (newline and end.strip()):
            break
        length = min(2 * length, size)
    if not end.strip():
        _logger.warning("%s: holds no documents (%d bytes); it is done without", shard.uri, size)
    if _is_cut(last.decode("utf-8", "replace")):
        return f"{shard.uri}: was cut short: it ends at byte {size}, within a document; copy it again"
    return None


def _is_cut(line: str) -> bool:
    """Whether a line ends within a string, an object or an array of JSON."""
    outside = _STRING.sub(lambda found: "" if found[1] == '"' else "[", line)
    return sum(map(outside.count, "[{")) > sum(map(outside.count, "]}"))


def _of_lines(
    shards: list[Located], key: str, on_progress: OnProgress, retry_policy: RetryPolicy
) -> Iterator[Document]:
    for number, shard in enumerate(shards, start=1):
        on_read = partial(on_progress, number, len(shards))
        for line_number, line in enumerate(_lines(shard, on_read, retry_policy), start=1):
            if not line.strip():
                continue
            try:
                yield text_of(line, key)
            except CorruptSampleError as error:
                yield _unusable(error, f"line {line_number} of {shard.uri}")


def _lines(shard: Located, on_read: Callable[[], None], retry_policy: RetryPolicy) -> Iterator[bytes]:
    """Without their ends. Read in blocks: a file may be larger than memory, a line may not."""
    begun: list[bytes] = []  # parts of the line that goes on in the next block
    for start in range(0, shard.info.size, _BLOCK):
        data = _block(shard, start, min(_BLOCK, shard.info.size - start), retry_policy)
        on_read()
        end, *others = data.split(b"\n")
        begun.append(end)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if any(begun):
        yield b"".join(begun)


def _block(shard: Located, start: int, length: int, retry_policy: RetryPolicy) -> bytes:
    key, etag = shard.info.key, shard.info.etag
    try:
        data = retry_policy.call(lambda: shard.store.get_range_of(key, start, length, etag))
    except NotFound as error:
        raise MissingInputError(f"{shard.uri}: was removed while it was read; put it back") from error
    except Replaced:
        data = b""
    if len(data) != length:
        raise StoreError(
            f"{shard.uri}: was replaced, cut or grown while it was read; let nothing write to the shards"
        )
    return data


def _ignore(done: int, total: int) -> None:
    """Nobody wants to know."""


def _unusable(error: CorruptSampleError, where: str) -> CorruptSampleError:
    missing = error.cause in (Cause.MISSING_TEXT, Cause.MISSING_CAPTION)
    cause = Cause.MISSING_TEXT if missing else Cause.BAD_TEXT
    return CorruptSampleError(cause, f"{where}: {error}")
