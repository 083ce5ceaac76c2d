"""`modelchain run` as a process, with tests/modelchain/local/fake_trainer.py in the trainer's place."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelchain.status import ChainRecord
from tests.processes import PATIENCE_SECONDS, wait_until

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

# The program under test, but for the command that it starts.
_DRIVER = """
import itertools, os, sys, time
from pathlib import Path

clock, step, seen, calls = time.time, Path("clock.step"), Path("clock.seen"), itertools.count()

def stepped():
    if not step.exists():
        return clock()
    if next(calls) == 60:
        seen.touch()
    return clock() + float(step.read_text())

time.time = stepped
import modelchain.local.processes as processes
from modelchain.local.watch import StoreWatch
from modelchain.store import StoreError

snapshot = StoreWatch.snapshot

def breaking(watch):
    if Path("store.broken").exists():
        raise StoreError("the store has gone mad")
    return snapshot(watch)

StoreWatch.snapshot = breaking
processes.TRAINER = (sys.executable, sys.argv[1])
if processes.TRAINER_SERVER is not None:
    processes.TRAINER_SERVER = (*processes.TRAINER, "serve")
from modelchain.cli import main
sys.exit(main(sys.argv[2:]))
"""

CHAIN = """
apiVersion: modelchain.dev/v1alpha1
kind: ModelChain
metadata: {name: family}
spec:
  store: {uri: store}
  data: {shards: [train.tar], samples: 64}
  evaluation: [{name: digits, type: ZeroShot, data: {shards: [val.tar]}, classes: [zero, one]}]
  training: {epochs: 2, globalBatchSize: 8}
  job: {gpusPerNode: 0, terminationGracePeriodSeconds: 5}
  retry: {limit: 1, backoffSeconds: 0}
  stages:
    - {name: tiny, model: ViT-T-16}
    - {name: small, model: ViT-S-16}
"""


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """With -o json."""
        return [json.loads(line) for line in self.out.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in self.events if event["event"] == kind]


class Run:
    """A run that goes on."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self) -> Finished:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        return Finished(self.process.returncode, out, err)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


class Bench:
    """A folder with a chain, its store and the plans of the fake trainer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plans = folder / "plans"
        self.plans.mkdir()
        self.file = folder / "chain.yaml"
        self.file.write_text(CHAIN)
        self._runs: list[Run] = []

    def close(self) -> None:
        """End what a failed test has left running; the trainers go with their runners."""
        for run in self._runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()

    def edit(self, pattern: str, replacement: str) -> None:
        """Change the chain's file."""
        text, count = re.subn(pattern, replacement, self.file.read_text())
        assert count, pattern
        self.file.write_text(text)

    def plan(self, stage: str, *attempts: str) -> None:
        """What the attempts of a stage do."""
        (self.plans / f"{stage}.plan").write_text("\n".join(attempts))

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
        """Start `modelchain run` on the chain."""
        run = Run(
            subprocess.Popen(
                [sys.executable, "-c", _DRIVER, str(FAKE_TRAINER), "run", str(self.file), *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=self.folder,
                env={**os.environ, "FAKE_TRAINER": str(self.plans), **(environment or {})},
            )
        )
        self._runs.append(run)
        return run

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
        """Run `modelchain run -o json` on the chain to its end."""
        return self.start("-o", "json", *arguments, environment=environment).end()

    def step_clock(self, *, hours: float) -> None:
        """Set the clock of the runs ahead, and wait until one has asked for the time sixty times since."""
        (self.folder / "clock.part").write_text(str(hours * 3600))
        (self.folder / "clock.part").rename(self.folder / "clock.step")
        wait_until((self.folder / "clock.seen").exists, "the run to ask for the time")

    def starts(self, stage: str) -> list[list[str]]:
        """Process id, token and micro-batch size of every attempt that was started."""
        file = self.plans / f"{stage}.starts"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def record(self) -> ChainRecord:
        """The chain's record in the store."""
        return ChainRecord.model_validate_json(
            (self.folder / "store/chains/default/family.json").read_bytes()
        )

    def wait_for_start(self, stage: str) -> int:
        """Wait until the first attempt of the stage gives a sign of life; returns its process id."""

        def alive() -> bool:
            starts = self.starts(stage)
            if not starts:
                return False
            token = starts[0][1]
            return any(self.folder.glob(f"store/stages/*/attempts/{token}/progress.json"))

        wait_until(alive, f"an attempt of {stage} starts")
        return int(self.starts(stage)[0][0])


def kill(pid: int) -> None:
    """As `kill -9`."""
    os.kill(pid, signal.SIGKILL)
