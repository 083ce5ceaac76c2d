"""Part `programs`: both training programs as a user starts them, on JPEG shards (benchmarks/throughput.py)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks import throughput
from benchmarks.gpu.kit import SAMPLES_A_SHARD, SHARDS, write_data
from benchmarks.gpu.record import Record, part_arguments

COPIES = 64  # of each shard: more batches an epoch than processes load them
WORKERS = 14
OPTIONS = {
    "cuda": {
        "--model": "ViT-B-16",
        "--teacher": "none",
        "--image-size": "224",
        "--batch-size": "512",
        "--precision": "bf16",
        "--warmup-steps": "15",
        "--steps": "30",
    },
    "cpu": {
        "--model": "ViT-T-16",
        "--teacher": "none",
        "--image-size": "32",
        "--batch-size": "8",
        "--precision": "bf16",
        "--warmup-steps": "1",
        "--steps": "2",
    },
}


def main() -> None:
    options = part_arguments(__doc__)
    record = Record(options.record, options.seconds)
    on_gpu = options.device == "cuda"
    with tempfile.TemporaryDirectory(prefix="programs-") as name:
        folder = Path(name)
        shards, samples = link_shards(options.kit, folder / "shards", copies=COPIES if on_gpu else 1)
        workers = min(WORKERS, max(1, len(os.sched_getaffinity(0)) - 2)) if on_gpu else 1
        flags = OPTIONS[options.device] | {
            "--device": options.device,
            "--shards": shards,
            "--samples": str(samples),
            "--workers": str(workers),
        }
        for compiled in (False, True) if on_gpu else (False,):
            suffix = "Compiled" if compiled else ""
            chosen = throughput.parse_arguments(
                [part for flag in flags.items() for part in flag] + (["--compile"] if compiled else [])
            )
            settings = {key: str(value) for key, value in vars(chosen).items() if key != "shards"}
            record.put(f"settings{suffix}", settings)
            workplace_folder = folder / f"work{suffix}"
            workplace_folder.mkdir()
            needs = (60.0 if compiled else 20.0) if on_gpu else 0.0
            if record.seconds_left < needs:
                record.attempt(f"modelchain{suffix}", dict, needs_seconds=needs)
                continue
            workplace = throughput.prepare(workplace_folder, chosen)
            speeds = []
            for program, run in (
                ("modelchain", throughput.run_modelchain),
                ("open_clip", throughput.run_open_clip),
            ):

                def measure(run: throughput.Runner = run) -> dict[str, object]:
                    found = run(workplace, chosen, 0)  # noqa: B023 - called at once
                    speeds.append(found.samples_per_second)  # noqa: B023
                    return asdict(found)

                record.attempt(f"{program}{suffix}", measure, needs_seconds=needs / 2)
            if len(speeds) == 2:
                record.put(f"ratio{suffix}", speeds[0] / speeds[1])


def link_shards(kit: Path | None, folder: Path, *, copies: int) -> tuple[str, int]:
    """Each shard of the kit (or made here) `copies` times, as links: the pattern and the number of samples."""
    folder.mkdir()
    source = folder.parent / "data" if kit is None else kit / "data"
    if not source.is_dir():
        write_data(source)
    found = sorted(source.glob("*.tar"))
    assert len(found) == SHARDS, f"{len(found)} shards in {source}, not {SHARDS}: pack the kit again"
    for number in range(copies * SHARDS):
        (folder / f"{number:04}.tar").symlink_to(found[number % SHARDS].resolve())
    return f"{folder}/{{0000..{copies * SHARDS - 1:04}}}.tar", copies * SHARDS * SAMPLES_A_SHARD


if __name__ == "__main__":
    main()
