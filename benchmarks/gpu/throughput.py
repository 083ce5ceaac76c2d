"""Part `throughput`: whole training steps of both programs in turn on the same device, data in memory.

Each program is a process (worker.py); while one measures, the other waits without activations. A batch that does
not fit is halved for both.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.flops import peak_flops
from benchmarks.gpu.record import Record, part_arguments
from benchmarks.gpu.settings import GPU, Setting, settings

PROGRAMS = ("modelchain", "open_clip")
ROUNDS = {"cuda": 3, "cpu": 1}  # measurements of each program, in turn
STDERR_LINES = 25
LONGEST_SECONDS = 180.0  # of a setting: one that takes longer leaves time to those behind it
# What one H100 is to reach.
GOALS = {
    "oneCaption": ("samplesPerSecond", 2808.0),
    "oneCaptionCompiled": ("ratio", 1.5),
    "sevenCaptionsCompiled": ("ratio", 1.5),
}


class WorkerError(Exception):
    """A worker could not do what it was asked. `entry` says why, for the record."""

    def __init__(self, entry: dict[str, object]) -> None:
        super().__init__(str(entry.get("error")))
        self.entry = entry


class Worker:
    """worker.py as a process, started again after it has died."""

    def __init__(self, program: str, device: str) -> None:
        self._program, self._device = program, device
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._log = Path(tempfile.mkstemp(prefix=f"{program}-", suffix=".log")[1])

    def ask(self, seconds: float, **request: object) -> dict[str, Any]:
        """Its answer. Raises WorkerError if there is none in time, or it says that it failed."""
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=max(1.0, seconds))
        except (OSError, queue.Empty) as error:
            line, why = "", f"no answer within {seconds:.0f} s ({type(error).__name__})"
        else:
            why = "its process has ended"
        if not line:
            self.close()
            tail = self._log.read_text(errors="replace").splitlines()[-STDERR_LINES:]
            raise WorkerError({"error": f"{self._program}: {why}", "standardError": tail})
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer)
        return answer

    def close(self) -> None:
        """End the process and what it has started (the compiler's)."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove_log(self) -> None:
        """What it has printed."""
        self._log.unlink(missing_ok=True)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._answers = queue.Queue()
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.gpu.worker", self._program, self._device],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            threading.Thread(target=_listen, args=(self._process, self._answers), daemon=True).start()
        return self._process


def _listen(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")


def main() -> None:
    options = part_arguments(__doc__)
    record = Record(options.record, options.seconds)
    workers = {program: Worker(program, options.device) for program in PROGRAMS}
    try:
        record.attempt("ceiling", lambda: workers["modelchain"].ask(60, do="ceiling"))
        for setting in settings(options.device):
            if record.seconds_left < setting.seconds:
                record.attempt(setting.name, dict, needs_seconds=setting.seconds)
            else:
                compare(setting, options.device, workers, record)
    finally:
        for worker in workers.values():
            worker.close()
            worker.remove_log()


def compare(setting: Setting, device: str, workers: dict[str, Worker], record: Record) -> None:
    """Measure both programs in this setting; what one of them can't do leaves the other's figures."""
    batch_size = setting.batch_size
    while True:
        entry, out_of_memory = _compare(setting, batch_size, device, workers, record)
        if not out_of_memory or batch_size < 2:
            break
        record.put(f"{setting.name}At{batch_size}", entry)
        batch_size //= 2
    record.put(setting.name, entry)


def _compare(
    setting: Setting, batch_size: int, device: str, workers: dict[str, Worker], record: Record
) -> tuple[dict[str, Any], bool]:
    programs: dict[str, Any] = {program: {} for program in PROGRAMS}
    entry: dict[str, Any] = {"setting": asdict(setting) | {"batch_size": batch_size}, "programs": programs}
    out_of_memory = False
    end = time.monotonic() + LONGEST_SECONDS

    def ask(program: str, **request: object) -> dict[str, Any] | None:
        nonlocal out_of_memory
        if "failed" in programs[program]:
            return None
        try:
            left = min(record.seconds_left, end - time.monotonic())
            return workers[program].ask(left, **request)
        except WorkerError as error:
            programs[program]["failed"] = error.entry
            out_of_memory |= bool(error.entry.get("outOfMemory"))
            return None

    for program in PROGRAMS:
        prepared = ask(program, do="prepare", setting=setting.name, batchSize=batch_size)
        if prepared is not None:
            programs[program] |= {"prepared": prepared, "rounds": []}
            record.put(setting.name, entry)
    for _ in range(ROUNDS[device]):
        for program in PROGRAMS:
            measured = ask(program, do="measure", steps=setting.steps)
            if measured is not None:
                programs[program]["rounds"].append(measured)
                record.put(setting.name, entry)
    for program in PROGRAMS:
        if "prepared" in programs[program]:
            ask(program, do="forget")
    _conclude(setting, entry, record.entries.get("ceiling"))
    return entry, out_of_memory


def _conclude(setting: Setting, entry: dict[str, Any], ceiling: Any) -> None:
    """Medians of the rounds, MFU and the ratio of speeds."""
    programs = entry["programs"]
    for figures in programs.values():
        if not figures.get("rounds"):
            continue
        speed = median(each["samplesPerSecond"] for each in figures["rounds"])
        flops = speed * figures["prepared"]["flopsPerSample"]
        figures |= {"samplesPerSecond": speed, "flops": flops, "mfu": mfu(flops, ceiling)}
        if "peakAllocatedBytes" in figures["rounds"][0]:
            figures["peakAllocatedBytes"] = max(each["peakAllocatedBytes"] for each in figures["rounds"])
    speeds = [programs[program].get("samplesPerSecond") for program in PROGRAMS]
    if None not in speeds:
        entry["ratio"] = speeds[0] / speeds[1]
    if setting.name in GOALS and setting in GPU:
        name, goal = GOALS[setting.name]
        found = entry.get("ratio") if name == "ratio" else speeds[0]
        entry["goal"] = {"of": name, "atLeast": goal, "found": found}


def mfu(flops: float, ceiling: Any) -> dict[str, float]:
    """The part of the data sheet's peak, and of the measured matrix product."""
    if not isinstance(ceiling, dict) or "matmulFlops" not in ceiling:
        return {}
    parts = {"ofMeasuredMatmul": flops / ceiling["matmulFlops"]}
    peak = peak_flops(ceiling["gpu"] or "")
    return parts if peak is None else parts | {"ofDataSheet": flops / peak}


if __name__ == "__main__":
    main()
