"""A small chain on generated pictures, run by the real programs, and the means to strike them down."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelchain.artifacts import WEIGHTS, Manifest
from modelchain.commit import (
    StoredCheckpoint,
    download_verified,
    list_checkpoints,
    read_manifest,
    verify_checkpoint,
    verify_stage,
)
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain, ResolvedStage, ResolvedStore
from modelchain.store import Store, open_store
from modelchain.validation import load_chains
from tests.processes import PATIENCE_SECONDS
from tests.squares import COLOURS, SAMPLES, write_squares

BATCH = 8
EPOCHS = 12
STEPS = EPOCHS * SAMPLES // BATCH
CHECKPOINT_STEPS = 8


def model(width: int, layers: int) -> dict[str, Any]:
    """A model that trains a step in milliseconds."""
    return {
        "embedDim": 16,
        "vision": {"imageSize": 8, "patchSize": 4, "width": width, "layers": layers, "headWidth": 8},
        "text": {"contextLength": 8, "width": 16, "layers": layers, "heads": 2},
    }


def document(store: ResolvedStore) -> dict[str, Any]:
    """The chain: `tiny`, and `small` that grows out of it and learns from it."""
    access = store.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "squares"},
        "spec": {
            "store": access,
            "data": {"shards": ["data/{000..001}.tar"], "samples": SAMPLES, "blockMebibytes": 1},
            "evaluation": [
                {
                    "name": "squares",
                    "type": "ZeroShot",
                    "data": {"shards": ["data/000.tar"]},
                    "classes": list(COLOURS),
                    "everySteps": 24,
                }
            ],
            "training": {
                "epochs": EPOCHS,
                "globalBatchSize": BATCH,
                "warmupSteps": 2,
                "checkpointEverySteps": CHECKPOINT_STEPS,
                "logEverySteps": 1,
                "dataWorkers": 1,
            },
            "job": {"gpusPerNode": 0},
            "retry": {"limit": 1000, "backoffSeconds": 0, "leaseSeconds": 5},
            "stages": [
                {"name": "tiny", "modelConfig": model(16, 1)},
                {"name": "small", "modelConfig": model(32, 2)},
            ],
        },
    }


@dataclass(frozen=True)
class Outcome:
    """What a chain has made: for each stage the hash of its weights, and its metrics."""

    weights: dict[str, str]
    metrics: dict[str, dict[str, float]]


class Bench:
    """A folder with the chain, its data and, if it is a folder, its store."""

    def __init__(self, folder: Path, store: ResolvedStore | None = None, *, processes: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "chain.yaml"
        self.processes = processes
        self.access = store or ResolvedStore(uri=str(folder / "store"))
        self._runs: list[Run] = []
        write_squares(folder / "data", captions={"txt": "a {colour} square, number {number}"})
        self.write(document(self.access))

    def write(self, chain: dict[str, Any]) -> None:
        """Write the chain's file."""
        self.file.write_text(yaml.safe_dump(chain))

    @property
    def chain(self) -> ResolvedChain:
        """The chain as the file has it now."""
        return resolve(load_chains(self.file)[0], base=self.folder)

    @property
    def store(self) -> Store:
        """The chain's store."""
        return open_store(self.access)

    def start(self, *, failpoint: str = "") -> Run:
        """Start `modelchain run`. A rank that reaches the failpoint dies there, as by `kill -9`."""
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        if failpoint:
            variables["MODELCHAIN_FAILPOINT"] = failpoint
        command = [sys.executable, "-m", "modelchain", "run", str(self.file), "-o", "json"]
        run = Run([*command, "--processes", str(self.processes)], variables, marker=str(self.folder))
        self._runs.append(run)
        return run

    def close(self) -> None:
        """End what a failed test has left running."""
        for run in self._runs:
            if run.process.poll() is None:
                run.kill()

    def run(self) -> Run:
        """Run the chain to its end."""
        run = self.start()
        run.wait()
        return run

    def outcome(self) -> Outcome:
        """What the chain has made. Every file that a manifest lists is read and checked."""
        weights: dict[str, str] = {}
        metrics: dict[str, dict[str, float]] = {}
        for stage in self.chain.stages:
            manifest = self.verified(stage)
            assert manifest is not None, f"stage {stage.name} is not complete"
            (entry,) = [entry for entry in manifest.files if entry.path.endswith(WEIGHTS)]
            weights[stage.name], metrics[stage.name] = entry.sha256, manifest.metrics
        return Outcome(weights, metrics)

    def verified(self, stage: ResolvedStage) -> Manifest | None:
        """The stage's manifest with every file read and checked; None if there is none."""
        manifest = verify_stage(self.store, stage.folder, stage.digest)
        for entry in manifest.files if manifest is not None else ():
            self._read(stage.folder, entry)
        return manifest

    def check_checkpoints(self, stage: ResolvedStage) -> int:
        """Every checkpoint that looks whole is whole, to the last bit; returns how many there are."""
        whole = 0
        for stored in self._finished(stage):
            manifest = verify_checkpoint(self.store, stage.folder, stage.digest, stored)
            assert manifest is not None, f"{stored} looks whole and is not"
            folder = f"{stage.folder}/attempts/{stored.token}/checkpoints/{stored.step:010d}"
            for entry in manifest.files:
                self._read(folder, entry)
            whole += 1
        return whole

    def wait_for_a_new_checkpoint(self, stage: ResolvedStage, run: Run) -> None:
        """Wait until the stage has come to its next checkpoint: it is in mid-training then."""
        newest = max((stored.step for stored in self._finished(stage)), default=0)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(stored.step > newest for stored in self._finished(stage)):
            assert time.monotonic() < deadline, f"no checkpoint of {stage.name} after step {newest}"
            assert run.process.poll() is None, run.end()
            time.sleep(0.02)

    def _finished(self, stage: ResolvedStage) -> list[StoredCheckpoint]:
        return [stored for stored in list_checkpoints(self.store, stage.folder) if stored.finished]

    def attempts(self, stage: ResolvedStage) -> set[str]:
        """Tokens of all attempts that ever wrote anything."""
        prefix = f"{stage.folder}/attempts/"
        return {info.key.removeprefix(prefix).partition("/")[0] for info in self.store.list(prefix)}

    def is_complete(self, stage: ResolvedStage) -> bool:
        """Whether the stage has a manifest."""
        return read_manifest(self.store, stage.folder, stage.digest) is not None

    def _read(self, folder: str, entry: Any) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            download_verified(self.store, folder, entry, Path(scratch) / "file")


class Run:
    """`modelchain run` as a process, and everything that it starts."""

    def __init__(self, command: list[str], variables: dict[str, str], *, marker: str) -> None:
        self._marker = marker.encode()
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**variables, "BENCH": marker},  # forks show the environment that they were forked with
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put({"event": "end of output"})

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The next event of a kind."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                event = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"waited in vain for {what}; seen: {self.seen[-5:]}") from None
            self.seen.append(event)
            if wanted(event):
                return event
            assert event["event"] != "end of output", (
                f"ended before {what}; seen: {self.seen[-5:]} {self.error()}"
            )

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        while not self._events.empty():
            self.seen.append(self._events.get())
        assert code == 0 or self.seen, self.error()
        return code

    def error(self) -> str:
        """What it wrote to standard error, once it has ended."""
        if self.process.poll() is None or self.process.stderr is None:
            return ""
        return self.process.stderr.read()

    def end(self) -> str:
        """How it ended, for one who did not expect it: its exit code, last events and standard error."""
        self.wait()
        return f"exit code {self.process.returncode}; {self.seen[-5:]} {self.error()}"

    def result(self) -> dict[str, Any]:
        """The last event."""
        return next(event for event in reversed(self.seen) if event["event"] == "result")

    def workers(self) -> list[int]:
        """The ranks that live: each leads a process group in its launcher's session."""
        return [pid for pid, (_, group, session) in self._children().items() if pid == group != session]

    def launchers(self) -> list[int]:
        """The launchers that live: each leads a session, and is a child of the server that starts them."""
        found = self._children()
        return [pid for pid, (parent, _, session) in found.items() if pid == session and parent in found]

    def kill(self) -> None:
        """Kill the runner, and see that nothing of it outlives it."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self._children():
            assert time.monotonic() < deadline, f"outlived their runner: {left}"
            time.sleep(0.05)

    def _children(self) -> dict[int, tuple[int, int, int]]:
        """Trainers of this bench, whoever their parent is now: parent, process group and session of each."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    b"modelchain_trainer" not in (folder / "cmdline").read_bytes()
                    or self._marker not in (folder / "environ").read_bytes()
                ):
                    continue
                state, *ids = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue  # it has just ended
            if state not in {"Z", "X"}:
                parent, group, session = map(int, ids)
                found[int(folder.name)] = (parent, group, session)
        return found


def strike(pids: list[int]) -> int:
    """`kill -9` for each; returns how many there were."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)


def partial_files(folder: Path) -> Iterator[Path]:
    """Files below `folder` that are just being written."""
    for parent, _folders, names in os.walk(folder):
        for name in names:
            if name.startswith(".partial-"):
                yield Path(parent) / name
