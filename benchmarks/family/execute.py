"""Trains the runs of a work list side by side, each with `modelchain run`, and keeps what came out of each.

It may be ended at any time, and goes on where it was: a run whose result is there is not run again. Two runs with
a stage in common do not train it at the same time: the second one waits for its turn, and finds it in the store.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.family.chain import Folders, write_chain
from benchmarks.family.datasets import Part, find_dataset, read_parts
from benchmarks.family.errors import StudyError
from benchmarks.family.pace import Pace, StageTime
from benchmarks.family.results import (
    SELECTION_RULE_VERSION,
    Result,
    digests_of,
    read_result,
    stage_result,
    this_machine,
    versions_of,
    write_result,
)
from benchmarks.family.runs import Run
from modelchain.artifacts import MANIFEST
from modelchain.cost import stage_macs
from modelchain.digest import DIGEST_VERSION
from modelchain.report.reading import read_chain
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.store import open_store

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1
SHOW_SECONDS = 30.0
ENDING_SECONDS = 10.0  # for runs that are told to stop
CLOSING_SECONDS = 3.0  # before the deadline: to stop what runs


@dataclass(frozen=True)
class Options:
    """How runs are trained here."""

    work: Path
    results: Path
    jobs: int
    seconds: float | None = None  # when to stop
    evaluations: int = 1
    device: str = "cpu"
    keep: bool = False  # weights that no other run of the list needs


@dataclass(frozen=True)
class Task:
    """A run that has no result yet."""

    run: Run
    file: Path
    chain: ResolvedChain
    result: Path
    parts: dict[str, Part]

    @property
    def folders(self) -> list[str]:
        """Of its stages, in the store."""
        return [stage.folder for stage in self.chain.stages]


@dataclass
class Active:
    """A run under way."""

    task: Task
    process: subprocess.Popen[bytes]
    log: Path
    started: float


@dataclass
class Tally:
    """How the work list stands."""

    total: int
    done: int = 0
    failed: list[tuple[Run, Path]] = field(default_factory=list)
    left: int = 0


class Execution:
    """One execution of a work list."""

    def __init__(self, runs: Sequence[Run], options: Options, say: Callable[[str], None]) -> None:
        """`say` is told of progress, one line at a time. Raises StudyError, ModelChainError for a bad run."""
        self._options = options
        self._say = say
        self._folders = Folders(options.work)
        self._parts = {
            name: read_parts(self._folders.data(name), name)
            for name in dict.fromkeys(run.dataset for run in runs)
        }
        self._pending: list[Task] = []
        self._tally = Tally(len(runs))
        for run in runs:
            self._add(run)
        self._wanted = Counter(folder for task in self._pending for folder in task.folders)
        self._active: list[Active] = []
        self._stopping = False
        self._began = time.monotonic()
        self._pace = Pace()

    def run(self) -> Tally:
        """Train until nothing is left, the time is up, or SIGINT or SIGTERM comes."""
        handlers = {each: signal.signal(each, self._stop) for each in (signal.SIGINT, signal.SIGTERM)}
        shown = 0.0
        try:
            while True:
                self._collect()
                if self._time_left() <= CLOSING_SECONDS:
                    self._stopping = True
                if not self._stopping:
                    self._start()
                if self._stopping or not self._active:
                    break
                if time.monotonic() - shown >= SHOW_SECONDS:
                    shown = time.monotonic()
                    self._show()
                time.sleep(POLL_SECONDS)
        finally:
            self._end()
            for each, handler in handlers.items():
                signal.signal(each, handler)
        self._tally.left = self._tally.total - self._tally.done - len(self._tally.failed)
        self._show()
        return self._tally

    def _add(self, run: Run) -> None:
        file, chain = write_chain(
            run, self._folders, evaluations=self._options.evaluations, device=self._options.device
        )
        result = self._options.results / f"{file.stem}.json"
        if result.exists():
            read_result(result)  # refuses what can't be compared
            self._tally.done += 1
            return
        self._pending.append(Task(run, file, chain, result, self._parts[run.dataset]))

    # ---- start

    def _start(self) -> None:
        while len(self._active) < self._options.jobs:
            task = self._next()
            if task is None:
                return
            self._pending.remove(task)
            self._active.append(self._launch(task))

    def _next(self) -> Task | None:
        """The first run none of whose missing stages is under way, and that there is time for."""
        under_way = {
            folder
            for active in self._active
            for folder in active.task.folders
            if not self._is_complete(folder)
        }
        for task in self._pending:
            if not under_way.isdisjoint(task.folders):
                continue
            if self._estimate(task) <= self._time_left() - CLOSING_SECONDS:
                return task
        return None

    def _estimate(self, task: Task) -> float:
        missing = [stage for stage in task.chain.stages if not self._is_complete(stage.folder)]
        return self._pace.estimate([StageTime(_kind(task, stage), stage.training.steps) for stage in missing])

    def _is_complete(self, folder: str) -> bool:
        return (self._folders.store / folder / MANIFEST).exists()

    def _launch(self, task: Task) -> Active:
        logs = self._options.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{task.file.stem}.log"
        # What no run of an earlier list needed is gone from the store.
        options = ["--retrain-missing", "-o", "json", "--log-dir", logs]
        command = [sys.executable, "-m", "modelchain", "run", task.file, *options]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=_environment(self._options.device),
                start_new_session=True,  # a terminal's Ctrl-C reaches us, and we tell them
            )
        return Active(task, process, log, time.monotonic())

    # ---- collect

    def _collect(self) -> None:
        for active in list(self._active):
            pid, status, usage = os.wait4(
                active.process.pid, os.WNOHANG
            )  # tells what it and its trainers used
            if not pid:
                continue
            active.process.returncode = os.waitstatus_to_exitcode(status)
            self._active.remove(active)
            seconds = time.monotonic() - active.started
            if active.process.returncode == 0:
                self._keep(active.task, seconds, usage.ru_utime + usage.ru_stime)
                self._tally.done += 1
            else:
                self._tally.failed.append((active.task.run, active.log))
                self._say(
                    f"FAILED with {active.process.returncode}: {active.task.run.label}; log: {active.log}"
                )
            self._release(active.task)

    def _keep(self, task: Task, seconds: float, cpu_seconds: float) -> None:
        dataset = find_dataset(task.run.dataset)
        split = dataset.parts(task.run.split, task.run.fold)
        artifacts = read_chain(open_store(task.chain.store), task.chain)
        stages = tuple(
            stage_result(stage, planned_macs=float(stage_macs(resolved)), chain=task.chain.chain.full_name)
            for stage, resolved in zip(artifacts.stages, task.chain.stages, strict=True)
        )
        result = Result(
            run=task.run,
            metric=dataset.metric.name,
            digest_version=DIGEST_VERSION,
            selection_rule_version=SELECTION_RULE_VERSION,
            data_sha256=digests_of(task.parts, (*split.train, *split.evaluation)),
            train_parts=split.train,
            evaluation_parts=split.evaluation,
            evaluated_samples=sum(task.parts[name].samples for name in split.evaluation),
            chain=_read_yaml(task.file),
            stages=stages,
            wall_seconds=round(seconds, 2),
            cpu_seconds=round(cpu_seconds, 2),
            jobs=self._options.jobs,
            versions=versions_of(artifacts),
            machine=this_machine(_device_name(self._options.device)),
        )
        write_result(task.result, result)
        own = [
            StageTime(_kind(task, resolved), done.steps, done.train_seconds)
            for resolved, done in zip(task.chain.stages, stages, strict=True)
            if not done.shared
        ]
        self._pace.learn(own, seconds)
        values = ", ".join(
            f"{stage.name} {dataset.metric.rounded(result.value(stage.name))}" for stage in stages
        )
        self._say(
            f"{task.run.dataset} {task.run.split} fold {task.run.fold} seed {task.run.seed}, {task.run.label}: "
            f"{values} {dataset.metric.unit} ({seconds:.0f} s)"
        )

    def _release(self, task: Task) -> None:
        """Remove the weights that no run to come grows out of."""
        self._wanted.subtract(task.folders)
        if not self._options.keep:
            for folder in task.folders:
                if self._wanted[folder] <= 0:
                    shutil.rmtree(self._folders.store / folder, ignore_errors=True)

    # ---- end

    def _end(self) -> None:
        """Stop what runs; it leaves nothing that a later execution could take for a result."""
        deadline = time.monotonic() + min(ENDING_SECONDS, max(0.0, self._time_left()))
        for active in self._active:
            active.process.send_signal(signal.SIGINT)
        for active in self._active:
            try:
                active.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                active.process.kill()  # its trainer ends with it
                active.process.wait()
        self._active.clear()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _time_left(self) -> float:
        if self._options.seconds is None:
            return float("inf")
        return self._options.seconds - (time.monotonic() - self._began)

    def _show(self) -> None:
        tally, spent = self._tally, time.monotonic() - self._began
        left = "" if self._options.seconds is None else f" of {self._options.seconds / 60:.1f}"
        self._say(
            f"[{spent / 60:.1f}{left} min] {tally.done} of {tally.total} done, {len(self._active)} running, "
            f"{len(tally.failed)} failed"
        )


def _kind(task: Task, stage: ResolvedStage) -> tuple[str, str]:
    return task.run.dataset, stage.name


def _environment(device: str) -> dict[str, str]:
    """One thread a run; the repository's own code, installed or not."""
    paths = [str(ROOT), str(ROOT / "trainer"), os.environ.get("PYTHONPATH", "")]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return (
        dict(os.environ)
        | threads
        | hidden
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MODELCHAIN_DEVICE": device}
    )


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else device


def _read_yaml(path: Path) -> dict[str, object]:
    import yaml

    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict):
        raise StudyError(f"{path}: is no chain")
    return content
