"""How long growth takes, what memory it needs, and how far the grown model's function is from the small
one's.

    python benchmarks/expansion.py                                  ViT-B-16 -> ViT-L-16
    python benchmarks/expansion.py --small ViT-S-16 --large ViT-B-16 --width slice --depth stack -o json

Seconds are those of `expand` alone, on one thread: it moves memory more than it computes. Memory is the
peak of the process's resident memory during growth above what it held before the small model existed (both
models included), to be compared with the bytes of both models. The error is that of the unit embeddings of
random images and texts in fp32: the norm of the difference over the norm.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from modelchain.catalogue import find
from modelchain.families import ModelConfig
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.expansion import embedding_map, expand, plan_expansion
from modelchain_trainer.model import Clip, build_model, crop_tokens, model_from

START_OF_TEXT, END_OF_TEXT = 49406, 49407
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Result:
    small: str
    large: str
    growth: str
    threads: int
    seconds: list[float]  # by the wall clock, of each repetition
    cpu_seconds: list[float]  # of all threads together
    model_bytes: int  # of both models
    peak_bytes: int | None  # above the baseline; None where the system does not tell
    image_error: float | None
    text_error: float | None

    def __str__(self) -> str:
        each = ", ".join(f"{wall:.2f}" for wall in self.seconds)
        lines = [
            f"{self.small} -> {self.large} on {self.threads} threads: {self.growth}",
            f"  seconds       {min(self.seconds):.2f} (best of {each}); of the CPU {min(self.cpu_seconds):.2f}",
            f"  both models   {self.model_bytes / MEBIBYTE:.0f} MiB",
        ]
        if self.peak_bytes is not None:
            peak, ratio = self.peak_bytes / MEBIBYTE, self.peak_bytes / self.model_bytes
            lines.append(f"  peak memory   {peak:.0f} MiB above the baseline, {ratio:.2f}x both models")
        if self.image_error is not None:
            lines.append(f"  error (fp32)  images {self.image_error:.1e}, texts {self.text_error:.1e}")
        return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    result = measure(
        arguments.small,
        arguments.large,
        ResolvedExpansion(width=WidthExpansion(arguments.width), depth=DepthExpansion(arguments.depth)),
        repetitions=arguments.repetitions,
        samples=arguments.samples,
    )
    print(json.dumps(asdict(result), indent=2) if arguments.output == "json" else result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure growth: seconds, memory, error.")
    parser.add_argument("--small", default="ViT-B-16", help="a model of the catalogue (default: %(default)s)")
    parser.add_argument("--large", default="ViT-L-16", help="a model of the catalogue (default: %(default)s)")
    parser.add_argument("--width", choices=list(WidthExpansion), default=WidthExpansion.EXACT)
    parser.add_argument("--depth", choices=list(DepthExpansion), default=DepthExpansion.IDENTITY)
    parser.add_argument("--repetitions", type=int, default=3, help="how often to grow (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="images and texts to compare; 0: none")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser.parse_args()


def measure(
    small_name: str, large_name: str, expansion: ResolvedExpansion, *, repetitions: int, samples: int
) -> Result:
    """Grow `small_name` into `large_name` several times and compare their functions on `samples` samples."""
    small_config, large_config = find(small_name), find(large_name)
    plan = plan_expansion(small_config, large_config, expansion)
    torch.ones(1024, 1024).matmul(
        torch.ones(1024, 1024)
    )  # the baseline holds what torch allocates at first use
    baseline = resident_bytes("VmRSS")
    small = perturbed(small_config)
    state = small.state_dict()
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    peak: int | None = None
    grown: dict[str, Tensor] = {}
    for _ in range(repetitions):
        grown.clear()
        reset_peak()
        begin, cpu_begin = time.perf_counter(), time.process_time()
        grown = expand(state, small_config, large_config, expansion, seed=0)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
        reached = resident_bytes("VmHWM")
        if reached is not None and baseline is not None:
            peak = max(peak or 0, reached - baseline)
    large = model_from(grown, large_config)
    model_bytes = sum(tensor.nbytes for tensor in [*state.values(), *grown.values()])
    image_error, text_error = errors(small, large, samples) if samples else (None, None)
    return Result(
        small_name,
        large_name,
        str(plan),
        torch.get_num_threads(),
        seconds,
        cpu_seconds,
        model_bytes,
        peak,
        image_error,
        text_error,
    )


def perturbed(config: ModelConfig) -> Clip:
    """A new model whose norms and biases are no longer 1 and 0, as after training."""
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def errors(small: Clip, large: Clip, samples: int) -> tuple[float, float]:
    """Relative difference of the image and of the text embeddings of two models, of which one grew from the other."""
    generator = torch.Generator().manual_seed(1)
    side, context = small.config.vision.image_size, small.config.text.context_length
    images = torch.randn(samples, 3, side, side, generator=generator)
    tokens = torch.zeros(samples, context, dtype=torch.int64)
    for row in tokens:
        length = int(torch.randint(4, 20, (), generator=generator))
        row[0], row[length] = START_OF_TEXT, END_OF_TEXT
        row[1:length] = torch.randint(1, 40000, (length - 1,), generator=generator)
    tokens = crop_tokens(tokens)
    map_FE = embedding_map(small.config.embed_dim, large.config.embed_dim).float()
    pairs = (
        (small.encode_image(images) @ map_FE, large.encode_image(resized(images, large))),
        (small.encode_text(tokens) @ map_FE, large.encode_text(tokens)),
    )
    image_error, text_error = [float((before - after).norm() / before.norm()) for before, after in pairs]
    return image_error, text_error


def resized(images: Tensor, model: Clip) -> Tensor:
    side = model.config.vision.image_size
    if images.shape[-1] == side:
        return images
    return torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def resident_bytes(field: str) -> int | None:
    """VmRSS (now) or VmHWM (peak) of this process; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def reset_peak() -> None:
    """Let VmHWM begin anew. Without the right to, it stays the peak of the whole process, which is no less."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


if __name__ == "__main__":
    main()
