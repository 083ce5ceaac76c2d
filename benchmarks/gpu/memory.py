"""Part `memory`: how much a training step takes by the size of its micro-batch, and what fits at most."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.gpu import settings
from benchmarks.gpu.record import Record, part_arguments
from benchmarks.gpu.step_runners import ModelChainSteps, release

SIZES = {"cuda": (64, 128, 256, 512, 1024, 2048), "cpu": (2, 4)}


def main() -> None:
    options = part_arguments(__doc__)
    device = torch.device(options.device)
    record = Record(options.record, options.seconds)
    for checkpointing in (False, True):
        kind = "gradientCheckpointing" if checkpointing else "plain"
        largest = 0
        for size in SIZES[device.type]:

            def measure(size: int = size, checkpointing: bool = checkpointing) -> dict[str, object]:
                return peak(size, device, gradient_checkpointing=checkpointing)

            if not record.attempt(
                f"{kind}{size}", measure, needs_seconds=8.0 if device.type == "cuda" else 0
            ):
                break  # a larger one does not fit either
            largest = size
            release(device)
        release(device)
        record.put(f"{kind}Largest", largest)


def peak(size: int, device: torch.device, *, gradient_checkpointing: bool) -> dict[str, object]:
    """Two steps of one micro-batch of this size; the second finds the optimizer's state in place."""
    setting = dataclasses.replace(settings.find(device.type, "oneCaption"), batch_size=size)
    runner = ModelChainSteps(setting, device, gradient_checkpointing=gradient_checkpointing)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runner.run(2)
    found: dict[str, object] = {"captions": runner.captions}
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated()
        held = torch.cuda.memory_allocated()  # weights and the optimizer's state
        found |= {
            "peakAllocatedBytes": allocated,
            "peakReservedBytes": torch.cuda.max_memory_reserved(),
            "bytesASample": (allocated - held) / size,
        }
    return found


if __name__ == "__main__":
    main()
