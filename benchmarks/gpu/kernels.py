"""Part `profile`: where the time of our training step goes on the device, uncompiled and compiled."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import settings
from benchmarks.gpu.record import Record, part_arguments
from benchmarks.gpu.step_runners import ModelChainSteps, forget_compiled, release

STEPS = 3
WARMUP_STEPS = 5
TOP = 25
NAME_LENGTH = 120
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}  # categories of the profiler's trace
# The first that a kernel's name matches says what it is.
KINDS = {
    "attention": r"flash|fmha|attention|attn",
    "optimizer": r"multi_tensor_apply|adam",
    "matrix product": r"gemm|nvjet|cutlass|cublas|xmma|wgmma",
    "copy": r"memcpy|memset|copy",
    "normalisation": r"layer_norm|layernorm|native_layer",
    "compiled": r"triton",
    "reduction": r"reduce|softmax|logsumexp",
    "elementwise": r"elementwise|vectorized",
    "index": r"index|gather|scatter|embedding|sort",
}


def main() -> None:
    options = part_arguments(__doc__)
    device = torch.device(options.device)
    record = Record(options.record, options.seconds)
    names = (
        ("oneCaptionCompiled", "oneCaption", "sevenCaptions") if device.type == "cuda" else ("oneCaption",)
    )
    for name in names:
        setting = settings.find(device.type, name)
        needs = 45.0 if setting.compile else 10.0 if device.type == "cuda" else 0.0

        def observe(setting: settings.Setting = setting) -> dict[str, object]:
            return profiled(setting, device)

        record.attempt(name, observe, needs_seconds=needs)
        forget_compiled()
        release(device)


def profiled(setting: settings.Setting, device: torch.device) -> dict[str, object]:
    """Tables of a few steps after the warm-up."""
    runner = ModelChainSteps(setting, device)
    runner.run(WARMUP_STEPS if device.type == "cuda" else 1)
    on_gpu = device.type == "cuda"
    # Recording what the CPU does would slow it and make gaps that are not there otherwise.
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        runner.run(STEPS)
    if not on_gpu:
        return {"steps": STEPS, "operators": operators(profiler)}
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return {"steps": STEPS, **kernel_tables(events)}


def kernel_tables(events: Iterable[dict[str, Any]]) -> dict[str, object]:
    """Time by kernel and by kind of kernel, and how long the device had nothing to do; of a profiler's trace.

    Times are milliseconds; `ts` and `dur` of the events are microseconds. Shares are of the time in which the
    device was busy, added up over streams; `idleShare` is of the span from the first event to the end of the last.
    """
    kernels = [event for event in events if event.get("cat") in ON_DEVICE and event.get("ph") == "X"]
    if not kernels:
        return {"kernels": [], "kinds": [], "busyMilliseconds": 0.0}
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in kernels:
        by_name[event["name"]].append(float(event["dur"]))
    total = sum(map(sum, by_name.values()))
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    rows = [
        {
            "name": name[:NAME_LENGTH],
            "kind": kind_of(name),
            "calls": len(durations),
            "milliseconds": round(sum(durations) / 1e3, 3),
            "share": round(sum(durations) / total, 4),
        }
        for name, durations in ranked[:TOP]
    ]
    kinds: dict[str, float] = defaultdict(float)
    for name, durations in by_name.items():
        kinds[kind_of(name)] += sum(durations)
    spans = sorted((float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in kernels)
    busy, gaps = _busy_and_gaps(spans)
    span = max(end for _, end in spans) - spans[0][0]
    return {
        "kernels": rows,
        "kinds": [
            {"kind": kind, "milliseconds": round(time / 1e3, 3), "share": round(time / total, 4)}
            for kind, time in sorted(kinds.items(), key=lambda item: -item[1])
        ],
        "launches": len(kernels),
        "busyMilliseconds": busy / 1e3,
        "spanMilliseconds": span / 1e3,
        "idleShare": 1 - busy / span,
        "longestGapsMilliseconds": [gap / 1e3 for gap in sorted(gaps, reverse=True)[:10]],
    }


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lower)), "other")


def _busy_and_gaps(spans: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """Length of the union of sorted spans, and the gaps between them."""
    busy, gaps = 0.0, []
    reached = spans[0][0]
    for start, end in spans:
        if start > reached:
            gaps.append(start - reached)
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy, gaps


def operators(profiler: profile) -> list[dict[str, object]]:
    """On a CPU: the operators with the most time of their own."""
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return [
        {
            "name": row.key[:NAME_LENGTH],
            "calls": row.count,
            "milliseconds": round(row.self_cpu_time_total / 1e3, 3),
        }
        for row in rows[:TOP]
    ]


if __name__ == "__main__":
    main()
