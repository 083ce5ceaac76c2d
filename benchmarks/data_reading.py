"""How fast one rank of many gets its samples from an S3 that takes its time.

    python -m benchmarks.data_reading

Requests, windows, threads and the order of samples are the loader's own. The store is simulated: each request waits for
a latency, then for its bytes at the speed of one connection, as S3 does; the bytes are made up, and nothing is
decoded. So the figure says what reading alone would allow.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import threading
import time
from pathlib import Path

import numpy as np

from modelchain.store import Store
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.index import DatasetIndex, Shard
from modelchain_trainer.data.order import SampleOrder, cut_blocks
from modelchain_trainer.data.reader import WindowReader, read_ahead_bytes
from modelchain_trainer.retry_policy import RetryPolicy

SHARD_SAMPLES = 10_000


class SlowStore(FolderStore):
    """Any object, of bytes that begin like a tar; counts requests and bytes."""

    def __init__(self, latency: float, bytes_a_second: float, largest: int) -> None:
        super().__init__(Path())
        self._latency, self._speed = latency, bytes_a_second
        self._bytes = tarfile.TarInfo("0.jpg").tobuf() + bytes(largest)
        self._counting = threading.Lock()
        self.requests = self.bytes_read = 0

    def get_range(self, key: str, start: int, length: int) -> bytes:  # noqa: ARG002
        with self._counting:
            self.requests += 1
            self.bytes_read += length
        time.sleep(self._latency + length / self._speed)
        return self._bytes[:length]


def made_up_index(samples: int, sample_bytes: int, store: Store) -> DatasetIndex:
    """Samples of one size, in shards of 10,000."""
    number = np.arange(samples, dtype=np.int64)
    firsts = [*range(0, samples, SHARD_SAMPLES), samples]
    column = np.full(samples, 512, np.int32)
    return DatasetIndex(
        shards=tuple(
            Shard(f"s3://simulated/{shard:06d}.tar", store, f"{shard:06d}.tar")
            for shard in range(len(firsts) - 1)
        ),
        text_keys=("txt",),
        unused="",
        first_samples=np.array(firsts, np.int64),
        starts=number % SHARD_SAMPLES * sample_bytes,
        lengths=np.full(samples, sample_bytes, np.int32),
        image_offsets=column,
        image_sizes=np.full(samples, sample_bytes - 1024, np.int32),
        text_offsets=column[:, None],
        text_sizes=column[:, None],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--sample-bytes", type=int, default=30_720)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--block-mebibytes", type=int, default=4)
    parser.add_argument("--window-blocks", type=int, default=128)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before the first byte")
    parser.add_argument("--megabytes", type=float, default=80, help="a second, of one connection")
    parser.add_argument("--seconds", type=float, default=10, help="measured, after 3 of warm-up")
    options = parser.parse_args()
    print(f"{'ranks':>6}{'samples/s of a rank':>21}{'MB/s':>8}{'requests/s':>12}{'read / used':>13}")
    for ranks in options.ranks:
        figures = measure(ranks, options)
        print(
            f"{ranks:6}{figures['samplesPerSecond']:21,.0f}{figures['megabytesPerSecond']:8,.0f}"
            f"{figures['requestsPerSecond']:12,.1f}{figures['readOverUsed']:13.2f}"
        )
        print(json.dumps({"ranks": ranks, **figures}))


def measure(ranks: int, options: argparse.Namespace) -> dict[str, float]:
    """The first rank of so many, as fast as it can."""
    block_bytes = options.block_mebibytes << 20
    store = SlowStore(options.latency, options.megabytes * 1e6, block_bytes + options.sample_bytes)
    index = made_up_index(options.samples, options.sample_bytes, store)
    order = SampleOrder(
        cut_blocks(index, block_bytes),
        seed=0,
        global_batch_size=options.batch_size,
        window_blocks=options.window_blocks,
    )
    rows = options.batch_size // ranks
    lanes = range(-(-rows // order.lane_rows))
    retry_policy = RetryPolicy()
    steps = order.steps_per_epoch
    reader = WindowReader(
        index,
        order,
        lanes,
        first_step=0,
        end_step=steps,
        budget=read_ahead_bytes(len(lanes) * (options.window_blocks // order.lanes), block_bytes),
        retry_policy=retry_policy,
    )
    started: float | None = None
    begin, first_step, requests, read = time.perf_counter(), 0, 0, 0
    step = 0
    for step in range(steps):
        now = time.perf_counter()
        if started is None and now - begin > 3:
            started, first_step, requests, read = now, step, store.requests, store.bytes_read
        if started is not None and now - started > options.seconds:
            break
        reader.advance(step)
        for part in order.slices(step, lanes):
            for segment in reader.segments(part.window):
                segment.result()
    assert started is not None, "too few samples"
    seconds = time.perf_counter() - started
    reader.close()
    samples = (step - first_step) * rows
    return {
        "samplesPerSecond": samples / seconds,
        "megabytesPerSecond": (store.bytes_read - read) / seconds / 1e6,
        "requestsPerSecond": (store.requests - requests) / seconds,
        "readOverUsed": (store.bytes_read - read) / (samples * options.sample_bytes),
    }


if __name__ == "__main__":
    main()
