"""One program's training steps in a process of its own: `python -m benchmarks.gpu.worker PROGRAM DEVICE`.

Reads a JSON object a line and answers each with one. Between two measurements it holds weights and batches, but no
activations, so that the other program has the memory.

    {"do": "prepare", "setting": NAME, "batchSize": n or null}     build, warm up, compile
    {"do": "measure", "steps": n}                                  so many steps, by the wall clock
    {"do": "ceiling"}                                              the device's matrix product
    {"do": "forget"}
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import Any

import torch

from benchmarks.gpu import ceilings, settings
from benchmarks.gpu.record import failure
from benchmarks.gpu.step_runners import StepRunner, forget_compiled, make, release

WARMUP_STEPS = {"cuda": 5, "cpu": 2}  # every batch once: each may have a length to compile for
SETTLING_STEPS = 2  # before each measurement: the allocator has given everything back


class Worker:
    """Holds at most one runner."""

    def __init__(self, program: str, device: torch.device) -> None:
        self._program = program
        self._device = device
        self._runner: StepRunner | None = None
        self._batch_size = 0

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        """One request; what goes wrong is part of the answer."""
        try:
            if request["do"] == "prepare":
                return self._prepare(request["setting"], request["batchSize"])
            if request["do"] == "measure":
                return self._measure(request["steps"])
            if request["do"] == "ceiling":
                return {"matmulFlops": ceilings.matmul_flops(self._device), "gpu": self._gpu()}
            entry: dict[str, object] = {}
        except Exception as error:  # noqa: BLE001 - the next setting may well work
            entry = failure(error) | {"outOfMemory": isinstance(error, torch.OutOfMemoryError)}
        self._forget()  # not before the error is gone, whose traceback holds on to tensors
        return entry

    def _prepare(self, name: str, batch_size: int | None) -> dict[str, object]:
        self._forget()
        setting = settings.find(self._device.type, name)
        if batch_size is not None:
            setting = dataclasses.replace(setting, batch_size=batch_size)
        started = time.perf_counter()
        runner = make(self._program, setting, self._device)
        built = time.perf_counter()
        first_loss = runner.run(1)
        first = time.perf_counter()
        runner.run(WARMUP_STEPS[self._device.type] - 1)
        self._runner, self._batch_size = runner, setting.batch_size
        release(self._device)
        return {
            "buildSeconds": built - started,
            "firstStepSeconds": first - built,
            "warmupSeconds": time.perf_counter() - first,
            "firstLoss": first_loss,
            "compilations": _compilations(),
            "captions": runner.captions,
            "flopsPerSample": runner.flops_per_sample,
        }

    def _measure(self, steps: int) -> dict[str, object]:
        assert self._runner is not None, "nothing is prepared"
        on_gpu = self._device.type == "cuda"
        self._runner.run(SETTLING_STEPS if on_gpu else 1)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.perf_counter()
        loss = self._runner.run(steps)
        seconds = time.perf_counter() - started
        answer: dict[str, object] = {
            "samplesPerSecond": steps * self._batch_size / seconds,
            "secondsPerStep": seconds / steps,
            "loss": loss,
        }
        if on_gpu:
            answer["peakAllocatedBytes"] = torch.cuda.max_memory_allocated()
            answer["peakReservedBytes"] = torch.cuda.max_memory_reserved()
        release(self._device)
        return answer

    def _forget(self) -> None:
        self._runner = None
        forget_compiled()
        release(self._device)

    def _gpu(self) -> str | None:
        return torch.cuda.get_device_name() if self._device.type == "cuda" else None


def _compilations() -> int:
    """Graphs compiled by this process so far."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def main() -> None:
    program, device = sys.argv[1:]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(program, torch.device(device))
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
