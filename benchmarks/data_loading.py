"""Processor time of a whole data loader a sample, side by side with open_clip's own pipeline.

    OMP_NUM_THREADS=1 python -m benchmarks.data_loading

Both read the same webdataset shards from the local disk: JPEG pictures and one caption each, made here. Ours is
`TrainingLoader`, theirs is what `open_clip_train.data.get_data` builds for training with the augmentation of
`image_transform`; both in the consumer's own process, without workers. Both are measured by their process's
processor time, which other work on the machine does not change much, in turn, and samples a second of one core are its
reciprocal. Ours gives uint8 pixels, which are normalised on the device; theirs gives normalised floats.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.pictures import write_shards

SHARDS = 8
PROGRAMS = ("modelchain", "open_clip")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--picture-size", type=int, default=512, help="side of the JPEGs, in pixels")
    parser.add_argument("--image-size", type=int, default=224, help="side of the model's images")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=12, help="measured, after 4 of warm-up")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program, in turn")
    parser.add_argument("--shards", help="pattern of shards that are there already")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program is not None:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory(prefix="data-loading-") as folder:
        size = (options.picture_size, options.picture_size)
        shards = options.shards or write_shards(
            Path(folder) / "data", shards=SHARDS, samples=options.samples, picture_size=size
        )
        runs: dict[str, list[float]] = {program: [] for program in PROGRAMS}
        for _ in range(options.repeats):
            for program in PROGRAMS:
                command = [sys.executable, "-m", "benchmarks.data_loading", *sys.argv[1:]]
                command += ["--program", program, "--shards", shards]
                found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                runs[program].append(json.loads(found.splitlines()[-1]))
    speeds = {program: 1 / median(seconds) for program, seconds in runs.items()}
    for program, seconds in runs.items():
        times = ", ".join(f"{1000 * one:.2f}" for one in seconds)
        print(f"{program:12}{speeds[program]:8.0f} samples/s a core   (ms of CPU a sample: {times})")
    print(f"ratio {speeds['modelchain'] / speeds['open_clip']:.2f}x")


def measure(options: argparse.Namespace) -> float:
    """Processor seconds a sample of one program, in this process."""
    import torch

    torch.set_num_threads(1)
    batches = ours(options) if options.program == "modelchain" else theirs(options)
    for _ in itertools.islice(batches, 4):
        pass
    started = time.process_time()
    for _ in itertools.islice(batches, options.batches):
        pass
    return (time.process_time() - started) / (options.batches * options.batch_size)


def ours(options: argparse.Namespace) -> Iterator[object]:
    from benchmarks.throughput import chain, parse_arguments, sized
    from modelchain import catalogue
    from modelchain.resolve import resolve
    from modelchain.store import open_store
    from modelchain_trainer.data.index import build_index
    from modelchain_trainer.data.loader import TrainingLoader
    from modelchain_trainer.data.text_field import CaptionField
    from modelchain_trainer.data.tokenizer import Tokenizer

    folder = Path(tempfile.mkdtemp(prefix="data-loading-store-"))
    flags = ["--batch-size", str(options.batch_size), "--samples", str(options.samples)]
    flags += ["--steps", str(4 + options.batches), "--warmup-steps", "0", "--workers", "0"]
    config = sized(catalogue.find("ViT-B-16"), options.image_size)
    (stage,) = resolve(chain(folder, options.shards, [config], parse_arguments(flags))).stages
    index = build_index(stage.data, stage.store, open_store(stage.store))
    tokenizer = Tokenizer(77)
    return TrainingLoader(index, stage, rank=0, world_size=1, first_step=0, field=CaptionField(tokenizer))


def theirs(options: argparse.Namespace) -> Iterator[object]:
    from open_clip import get_tokenizer
    from open_clip.transform import image_transform
    from open_clip_train.data import get_data
    from open_clip_train.params import parse_args

    flags = ["--train-data", options.shards, "--dataset-type", "webdataset", "--workers", "0"]
    flags += ["--train-num-samples", str(options.samples), "--batch-size", str(options.batch_size)]
    arguments = parse_args(flags)
    arguments.distributed, arguments.rank, arguments.world_size = False, 0, 1
    transform = image_transform(options.image_size, is_train=True)
    data = get_data(arguments, (transform, transform), epoch=0, tokenizer=get_tokenizer("ViT-B-16"))
    while True:
        yield from data["train"].dataloader


if __name__ == "__main__":
    main()
