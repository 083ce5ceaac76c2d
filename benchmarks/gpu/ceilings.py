"""What the device can do at most: a large matrix product, a large copy. Medians, on random data."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from statistics import median

import torch


def matmul_flops(device: torch.device) -> float:
    """FLOP a second of an 8192 x 8192 x 8192 product in bf16 (512 on a CPU)."""
    size = 8192 if device.type == "cuda" else 512
    generator = torch.Generator(device).manual_seed(0)
    # Several operands in turn: one pair would partly stay in the cache.
    pairs = [
        [torch.randn(size, size, device=device, generator=generator).to(torch.bfloat16) for _ in range(2)]
        for _ in range(3)
    ]
    out = torch.empty(size, size, device=device, dtype=torch.bfloat16)
    seconds = median_seconds(lambda number: torch.mm(*pairs[number % 3], out=out), device)
    return 2 * size**3 / seconds


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written a second, from the device's memory to itself: 1 GiB (64 MiB on a CPU)."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda _: target.copy_(source), device)


def upload_bytes_per_second(device: torch.device) -> float:
    """Bytes a second from pinned memory of the host: what images and tokens travel through."""
    size = 2**28
    source = torch.randint(256, (size,), dtype=torch.uint8).pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / median_seconds(lambda _: target.copy_(source, non_blocking=True), device)


def median_seconds(run: Callable[[int], object], device: torch.device, repeats: int = 20) -> float:
    """Of `run(number)`, after three that are not counted; by the device's own clock where it has one."""
    for number in range(3):
        run(number)
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for number in range(repeats):
            run(number)
            marks.append(time.perf_counter())
        return median(later - earlier for earlier, later in itertools.pairwise(marks))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for number in range(repeats):
        run(number)
        events[number + 1].record()
    torch.cuda.synchronize(device)
    return median(earlier.elapsed_time(later) / 1e3 for earlier, later in itertools.pairwise(events))
