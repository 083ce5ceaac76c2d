"""What an index of very many samples costs a node: memory, time, and requests to the store at a start.

    python -m benchmarks.data_index memory    # 100 million samples, simulated shards
    python -m benchmarks.data_index requests  # 64 ranks of 8 nodes, 10,000 shards

`memory` merges made-up indexes of shards as a node's first rank does, then lets several processes open them, draw the
order of two epochs and read all columns. It adds up the mapped files, once, and what each process has of its own.
`requests` counts the calls of every rank on a simulated store that holds what shards and indexes are made of, for the
first start and for a later one, without a network and without reading tars: a first start reads each shard besides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from modelchain.resolved import ResolvedData, ResolvedStore
from modelchain.store import NotFound, ObjectInfo
from modelchain.store.folder import FolderStore
from modelchain_trainer.data import index as index_module
from modelchain_trainer.data.index import open_index, write_training_index
from modelchain_trainer.data.kept_index import index_missing
from modelchain_trainer.data.order import SampleOrder, cut_blocks
from modelchain_trainer.data.shard_index import ShardIndex
from modelchain_trainer.data.shard_list import Located, ShardList
from modelchain_trainer.retry_policy import RetryPolicy

ACCESS = ResolvedStore(uri="s3://simulated/chains")
SHARD_SAMPLES = 10_000
SAMPLE_BYTES = 40_960


def made_up_shard(samples: int = SHARD_SAMPLES) -> ShardIndex:
    """A shard whose samples have one picture and one caption each."""
    number = np.arange(samples, dtype=np.int64)
    ones = np.ones(samples, np.int64)
    return ShardIndex(
        extensions=("jpg", "txt"),
        starts=number * SAMPLE_BYTES,
        lengths=ones * SAMPLE_BYTES,
        members=ones * 2,
        extension=np.tile(np.array([0, 1], np.int64), samples),
        offsets=np.tile(np.array([512, SAMPLE_BYTES - 1024], np.int64), samples),
        sizes=np.tile(np.array([SAMPLE_BYTES - 2048, 60], np.int64), samples),
    )


def made_up_list(shards: int, store: FolderStore) -> ShardList:
    size = SHARD_SAMPLES * SAMPLE_BYTES
    located = [
        Located(
            f"s3://simulated/data/{number:06d}.tar",
            store,
            ObjectInfo(f"{number:06d}.tar", size, f"{number:032x}", 0),
        )
        for number in range(shards)
    ]
    return ShardList(located, [], ACCESS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["memory", "requests"])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--ranks-of-a-node", type=int, default=8)
    options = parser.parse_args()
    measure_memory(options) if options.what == "memory" else measure_requests(options)


def measure_memory(options: argparse.Namespace) -> None:
    shard = made_up_shard()

    def read_made_up(shards: ShardList, *_: object) -> Iterator[tuple[Located, ShardIndex]]:
        return ((located, shard) for located in shards.shards)

    index_module.read_kept = read_made_up
    store = FolderStore(Path())
    data = ResolvedData(shards=("unused",), samples=options.shards * SHARD_SAMPLES)
    with tempfile.TemporaryDirectory(prefix="data-index-") as name:
        folder = Path(name)
        started = time.process_time()
        write_training_index(
            folder, made_up_list(options.shards, store), data, store, retry_policy=RetryPolicy()
        )
        seconds = time.process_time() - started
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(
            f"{data.samples:,} samples: written once a node in {seconds:.0f} s of CPU, {size / 2**30:.2f} GiB of files"
        )
        processes: list[tuple[BaseProcess, Any]] = []  # and where each reports
        context = multiprocessing.get_context("spawn")
        for rank in range(options.ranks_of_a_node):
            here, there = context.Pipe()
            process = context.Process(target=use_index, args=(folder, rank, there))
            process.start()
            processes.append((process, here))
        found: list[tuple[float, int]] = [connection.recv() for _, connection in processes]
        for process, _ in processes:
            process.join()
    own = sum(grown for _, grown in found)
    print(
        f"each rank opened it and drew the order of an epoch in {max(seconds for seconds, _ in found):.1f} s of CPU"
    )
    print(
        f"memory of a node: {size / 2**30:.2f} GiB of mapped files, and {own / 2**30:.2f} GiB that its "
        f"{len(found)} ranks have of their own: {(size + own) / 2**30:.2f} GiB"
    )


def use_index(folder: Path, rank: int, connection: Any) -> None:
    """What a rank does with the index: it opens it, draws the order of an epoch, and reads all its columns."""
    started, before = time.process_time(), anonymous_bytes()
    index = open_index(folder, ACCESS)
    order = SampleOrder(cut_blocks(index, 4 << 20), seed=0, global_batch_size=32_768, window_blocks=128)
    for epoch in (0, 1):  # while the end of one is trained, the next is read ahead
        order.slices(epoch * order.steps_per_epoch, range(16 * rank, 16 * rank + 16))
    seconds = time.process_time() - started
    for column in (index.starts, index.lengths, index.image_offsets, index.image_sizes):
        column.max()
    index.text_offsets.max()
    index.text_sizes.max()
    connection.send((seconds, anonymous_bytes() - before))


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


class CountingS3(FolderStore):
    """Objects by name only; counts requests, a listing as one for each 1,000 objects it shows."""

    uri = "s3://simulated"

    def __init__(self, names: dict[str, bytes], requests: Counter[str]) -> None:
        super().__init__(Path())
        self.uri = "s3://simulated"
        self._names, self._requests = names, requests

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = sorted(name for name in self._names if name.startswith(prefix))
        self._requests["LIST"] += 1 + len(found) // 1000
        return (ObjectInfo(name, SHARD_SAMPLES * SAMPLE_BYTES, name, 0) for name in found)

    def head(self, key: str) -> ObjectInfo | None:
        self._requests["HEAD"] += 1
        return ObjectInfo(key, SHARD_SAMPLES * SAMPLE_BYTES, key, 0) if key in self._names else None

    def get(self, key: str) -> tuple[bytes, str]:
        self._requests["GET"] += 1
        if key not in self._names:
            raise NotFound(key)
        return self._names[key], ""

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        assert not if_absent
        assert if_match is None
        self._requests["PUT"] += 1
        self._names[key] = data
        return ""


def measure_requests(options: argparse.Namespace) -> None:
    from modelchain_trainer.data import kept_index, shard_list

    requests: Counter[str] = Counter()
    data = {f"{number:06d}.tar": b"" for number in range(options.shards)}
    shards_of, kept = CountingS3(data, requests), CountingS3({}, requests)
    shard_list.open_location = lambda _uri, _access: shards_of
    small = made_up_shard(10)
    kept_index.build_from_store = lambda *_: small
    spec = ResolvedData(
        shards=(f"s3://simulated/data/{{000000..{options.shards - 1:06d}}}.tar",), samples=10 * options.shards
    )
    for start in ("first start, besides reading the shards", "later start"):
        requests.clear()
        text = ShardList.find(spec.shards, ACCESS, RetryPolicy()).to_text()
        shards = ShardList.from_text(text, ACCESS)
        for rank in range(options.ranks):
            index_missing(
                shards, kept, RetryPolicy(), lambda _count: None, rank=rank, world_size=options.ranks
            )
        for _node in range(options.ranks // options.ranks_of_a_node):
            with tempfile.TemporaryDirectory() as folder:
                write_training_index(Path(folder), shards, spec, kept, retry_policy=RetryPolicy())
        print(
            f"{start}: {requests.total():,} requests ({dict(requests)}), {len(text) / 2**20:.1f} MiB to every rank"
        )


if __name__ == "__main__":
    main()
