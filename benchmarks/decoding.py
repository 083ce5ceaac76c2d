"""What decoding costs the thread that starts a GPU's kernels: operations it starts a second, beside threads that decode
and beside processes.

A GPU's kernels are started from Python, one at a time, and each start lets go of the interpreter's lock and takes it
again. Here the operations are additions to eight numbers on the CPU, which cost about as much to start and nothing to
compute. Operations are counted by the wall clock, so the cores must be idle otherwise.
"""

from __future__ import annotations

import argparse
import io
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch
from PIL import Image

from modelchain_trainer.data.decoding import Decoder, DecodesRows, DecodingProcesses, Files
from modelchain_trainer.data.text_field import CaptionField
from modelchain_trainer.data.tokenizer import Tokenizer

ROWS = 32  # of a task, as in the loader
SIDE = 224
CROP = [0.5] * 40


def picture(side: int) -> bytes:
    """A JPEG of photograph-like smoothness."""
    small = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def operations(seconds: float) -> float:
    """How many this thread starts a second."""
    number, total, started = torch.zeros(8), 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        for _ in range(100):
            number.add_(1)
        total += 100
    return total / passed


def beside(decode: DecodesRows, threads: int, image: bytes, seconds: float) -> tuple[float, float]:
    """Operations a second, and pictures that were decoded meanwhile."""
    rows = [Files(0, image, (b"a photo of a cat on a mat",), CROP)] * ROWS
    decoded, stop, ready = [0] * threads, threading.Event(), threading.Barrier(threads + 1)

    def work(number: int) -> None:
        images_BHW3, tokens_CBT = np.zeros((ROWS, SIDE, SIDE, 3), np.uint8), np.zeros((1, ROWS, 77), np.int64)
        decode(rows, images_BHW3, tokens_CBT)
        ready.wait()
        while not stop.is_set():
            decode(rows, images_BHW3, tokens_CBT)
            decoded[number] += ROWS

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    before = sum(decoded)
    rate = operations(seconds)
    pictures = (sum(decoded) - before) / seconds
    stop.set()
    for worker in workers:
        worker.join()
    return rate, pictures


def compare(workers: int, image: bytes, seconds: float, repeats: int) -> None:
    """Measure in turn, print medians."""
    decoder = Decoder(
        CaptionField(Tokenizer(77)), ("txt",), image_size=SIDE, crop_scale=(0.9, 1.0), small_images=0
    )
    processes = DecodingProcesses(decoder, workers)
    measure: dict[str, Callable[[], tuple[float, float]]] = {
        "nothing": lambda: (operations(seconds), 0.0),
        "threads": lambda: beside(decoder, workers, image, seconds),
        "processes": lambda: beside(processes, workers, image, seconds),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measure}
    with closing(processes):
        for _ in range(repeats):
            for name, run in measure.items():
                found[name].append(run())
    for name, results in found.items():
        rates, pictures = (sorted(column) for column in zip(*results, strict=True))
        middle = repeats // 2
        print(
            f"beside {workers}: {name:9}  {rates[middle]:9,.0f} operations/s "
            f"({rates[0]:,.0f} to {rates[-1]:,.0f}), {pictures[middle]:,.0f} pictures/s"
        )


def main() -> int:
    """Measure for each number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="that decode; default: 1")
    parser.add_argument("--picture-size", type=int, default=512, help="pixels of a side; default: 512")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement; default: 2")
    parser.add_argument("--repeats", type=int, default=5, help="default: 5")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for workers in arguments.workers:
        compare(workers, picture(arguments.picture_size), arguments.seconds, arguments.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
