"""Training steps at seven captions with long tails, side by side with open_clip's model and loss on padded texts.

    OMP_NUM_THREADS=1 python -m benchmarks.captions              # whole steps, student and teacher
    OMP_NUM_THREADS=1 python -m benchmarks.captions --part text  # our text tower: in buckets, and padded

Batches lie in memory, their captions are those of benchmarks/gpu/synthetic.py: of seven a sample one is raw, three are
short descriptions and three are longer than the context. Both sides run in one process and take turns, a step at a
time, so that what else the machine does meets both alike; a ratio is the median over pairs of steps, by processor
time.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles

import torch
from torch import Tensor

from benchmarks.gpu.settings import Setting
from benchmarks.gpu.step_runners import ModelChainSteps, OpenClipSteps
from benchmarks.gpu.synthetic import batches
from modelchain_trainer.captions import bucketed
from modelchain_trainer.model.build import build_model
from modelchain_trainer.tasks.contrastive import CPU_BUCKET_COST

Side = tuple[str, Callable[[], object]]


def main() -> None:
    options = parse_arguments()
    teacher = None if options.teacher == "none" else options.teacher
    setting = Setting(
        "sevenCaptions",
        options.model,
        teacher,
        7,
        options.batch_size,
        compile=False,
        precision="fp32",
        image_size=options.image_size,
    )
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sides = whole_steps(setting) if options.part == "steps" else text_towers(setting)
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    pairs = [tuple(measure(run) for _, run in sides) for _ in range(options.warmup + options.pairs)]
    for (name, _), seconds in zip(sides, zip(*pairs[options.warmup :], strict=True), strict=True):
        print(f"{name:40}{median(seconds):8.3f} s of CPU a step of {options.batch_size} samples")
    ratios = [theirs / ours for ours, theirs in pairs[options.warmup :]]
    low, _, high = quantiles(ratios, n=4)
    print(f"ratio {median(ratios):.2f}x, median of {len(ratios)} pairs (quartiles {low:.2f} to {high:.2f})")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Those of the command line, or these."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=["steps", "text"], default="steps")
    parser.add_argument("--model", default="ViT-C-16", help="model that is trained (modelchain models)")
    parser.add_argument("--teacher", default="ViT-T-16", help="its teacher, or none")
    parser.add_argument("--image-size", type=int, default=112, help="side of the images, in pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9, help="pairs of steps that are measured")
    parser.add_argument("--warmup", type=int, default=2, help="pairs before them")
    return parser.parse_args(arguments)


def whole_steps(setting: Setting) -> list[Side]:
    """Our step, and that of open_clip's model and loss."""
    cpu = torch.device("cpu")
    ours, theirs = ModelChainSteps(setting, cpu), OpenClipSteps(setting, cpu)
    print(f"captions: {ours.captions}")
    return [("ModelChain", lambda: ours.run(1)), ("open_clip, padded to 77", lambda: theirs.run(1))]


def text_towers(setting: Setting) -> list[Side]:
    """Forward and backward pass of one tower over the same captions, in buckets and as whole matrices."""
    model = build_model(setting.config(), seed=1)
    rows = batches(setting, pinned=False)

    def turn(encode: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        left = [copy.copy(rows)]

        def run() -> None:
            if not left[0]:
                left[0] = copy.copy(rows)
            model.zero_grad()
            encode(left[0].pop().tokens).square().sum().backward()

        return run

    def in_buckets(tokens_CbT: Tensor) -> Tensor:
        return bucketed(tokens_CbT, bucket_cost=CPU_BUCKET_COST).encode(model.encode_texts)

    def padded(tokens_CbT: Tensor) -> Tensor:
        return model.encode_text(tokens_CbT.flatten(0, 1))

    return [("text tower, in buckets", turn(in_buckets)), ("text tower, padded to 77", turn(padded))]


def measure(run: Callable[[], object]) -> float:
    """Processor seconds."""
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
