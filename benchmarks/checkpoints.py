"""What a checkpoint takes of the training: how long the loop stands still for its copy, and what writing it computes.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoints [--model ViT-B-16] [--folder FOLDER]

The copy stops the loop; hashing and writing run beside it, in a thread, and take processor time from training on a CPU
only. Both are given as shares of a minute: of training with a checkpoint at each. Processor seconds hardly depend on
what else runs on the machine; wall seconds of the copy do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from modelchain import catalogue
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore
from modelchain.validation import load_chains
from modelchain_trainer.checkpoint import CheckpointState, CheckpointWriter, take_snapshot
from modelchain_trainer.model.build import build_model
from modelchain_trainer.optimizer import AdamW

CHAIN = Path(__file__).parents[1] / "examples" / "cc3m.yaml"
RUNS = 3
MINUTE = 60.0


def main() -> None:
    """Measure the checkpoints of one model, and print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-16", help="of the catalogue")
    parser.add_argument("--folder", type=Path, help="where the store lies; default: a temporary folder")
    options = parser.parse_args()
    config = catalogue.find(options.model)
    model = build_model(config, seed=0)
    stage = _stage()
    optimizer = AdamW(model.named_parameters(), stage.training)
    moments = {f"optimizer.{name}": tensor for name, tensor in optimizer.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        runs = [_measure(stage, Path(name), model.state_dict(), moments, run) for run in range(RUNS)]
    wall, copying, writing = (sorted(column)[RUNS // 2] for column in zip(*runs, strict=True))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.model}, {count / 1e6:.0f} M parameters, {12 * count / 2**30:.2f} GiB a checkpoint:")
    print(f"  the loop stands still for {wall:.2f} s: {wall / MINUTE:.2%} of a minute")
    print(f"  the copy computes for {copying:.2f} s: {copying / MINUTE:.2%} of a minute")
    print(
        f"  hashing and writing compute for {writing:.2f} s: {writing / MINUTE:.2%} of a minute of one core"
    )


def _measure(
    stage: ResolvedStage, folder: Path, model: Mapping[str, Tensor], moments: Mapping[str, Tensor], run: int
) -> tuple[float, float, float]:
    """Wall and processor seconds of the copy, and processor seconds of the writing."""
    scratch = folder / f"scratch-{run}"
    scratch.mkdir()
    writer = CheckpointWriter(
        FolderStore(folder / "store"),
        stage,
        f"attempt-{run}",
        scratch,
        world_size=1,
        before_commit=lambda: None,
        committed=lambda _step: None,
    )
    state = CheckpointState(
        step=run + 1, train_seconds=0.0, started_at="2026-01-01T00:00:00Z", corrupt_samples={}, attempts=()
    )
    started, computed = time.perf_counter(), time.process_time()
    snapshot = take_snapshot(state, model, moments)
    wall, copying = time.perf_counter() - started, time.process_time() - computed
    writer.start(snapshot)
    computed = time.process_time()
    writer.wait()
    return wall, copying, time.process_time() - computed


def _stage() -> ResolvedStage:
    """Any stage: a checkpoint is of its model and moments, whatever made them."""
    (chain,) = load_chains(CHAIN)
    return resolve(chain).stages[-1]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
