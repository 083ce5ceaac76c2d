"""A trainer that keeps the trainer's contract with runner and store, and trains nothing.

FAKE_TRAINER names a folder. In it, `<stage>.plan` says on one line each what the attempts of a stage do, one
after the other (the last line for all that follow); `<stage>.starts` gets a line for each attempt. An attempt
can `commit`, `fail CODE MESSAGE`, `silent CODE`, `die` (SIGKILL), do `nothing` (exit 0 without a manifest),
`train` (until told to stop, giving signs of life), `hang` (the same, giving none), be `deaf` (until killed).
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from modelchain.artifacts import (
    LEASE,
    PROGRESS,
    WEIGHTS,
    Failure,
    FileEntry,
    Manifest,
    Progress,
    attempt_folder,
)
from modelchain.commit import commit_stage, verify_stage
from modelchain.forking import serve
from modelchain.lease import LeaseKeeper
from modelchain.resolved import ResolvedStage
from modelchain.store import Store, open_store

SHA256_OF_WEIGHTS = hashlib.sha256(b"weights").hexdigest()


class Attempt:
    """One run of this program."""

    def __init__(self) -> None:
        self.stage = ResolvedStage.model_validate_json(os.environ["MODELCHAIN_STAGE"])
        self.token = f"{os.environ['MODELCHAIN_ATTEMPT']}-{os.getpid():08x}"
        self.store: Store = open_store(self.stage.store)
        self.folder = attempt_folder(self.stage.folder, self.token)
        self.stopping = threading.Event()
        self.deaf = False
        signal.signal(signal.SIGTERM, self._stop)
        threading.Thread(target=self._watch_parent, daemon=True).start()

    def run(self) -> int:
        behaviour, *rest = self._plan().split(maxsplit=2)
        self.deaf = behaviour == "deaf"
        if verify_stage(self.store, self.stage.folder, self.stage.digest) is not None:
            return 0
        chain = f"{self.stage.chain.namespace}/{self.stage.chain.name}"
        lease = f"{self.stage.folder}/{LEASE}"
        with LeaseKeeper(self.store, lease, holder=self.token, chain=chain, duration_seconds=30):
            return self._behave(behaviour, rest)

    def _behave(self, behaviour: str, rest: list[str]) -> int:
        self._progress(1)
        print(f"training {self.stage.name}", flush=True)
        match behaviour:
            case "commit":
                self._commit()
                return 0
            case "fail":
                return self._fail(int(rest[0]), rest[1])
            case "silent":
                print("something went wrong and nobody caught it", flush=True)
                return int(rest[0])
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "nothing":
                return 0
        step = 1
        while not self.stopping.wait(0.1):
            step += 1
            if behaviour == "train":
                self._progress(step)
        return self._fail(143, "asked to stop")

    def _plan(self) -> str:
        folder = Path(os.environ["FAKE_TRAINER"])
        starts = folder / f"{self.stage.name}.starts"
        with starts.open("a") as file:
            file.write(f"{os.getpid()} {self.token} {self.stage.training.micro_batch_size}\n")
        number = len(starts.read_text().splitlines())
        plan = folder / f"{self.stage.name}.plan"
        lines = plan.read_text().splitlines() if plan.exists() else ["commit"]
        return lines[min(number, len(lines)) - 1]

    def _progress(self, step: int) -> None:
        progress = Progress(
            phase="Training",
            step=step,
            steps=self.stage.training.steps,
            sequence=step,
            samples_per_second=100.0,
            loss={"total": 2.5, "task": 2.0, "distillation": 0.5},
            metrics={"digits/top1": 0.5},
            eta_seconds=60.0,
            updated_at="2027-01-15T08:00:00Z",
        )
        self.store.put(f"{self.folder}/{PROGRESS}", progress.model_dump_json(by_alias=True).encode())

    def _commit(self) -> None:
        self.store.put(f"{self.folder}/{WEIGHTS}", b"weights")
        weights = FileEntry(path=f"attempts/{self.token}/{WEIGHTS}", bytes=7, sha256=SHA256_OF_WEIGHTS)
        commit_stage(
            self.store,
            self.stage.folder,
            Manifest(
                digest=self.stage.digest,
                stage=self.stage.name,
                model=self.stage.model,
                chain=f"{self.stage.chain.namespace}/{self.stage.chain.name}",
                attempt=self.token,
                files=(weights,),
                metrics={"digits/top1": 0.75},
                steps=self.stage.training.steps,
                samples=self.stage.training.steps * self.stage.training.global_batch_size,
                macs=1.0,
                started_at="2027-01-15T08:00:00Z",
                completed_at="2027-01-15T09:00:00Z",
                train_seconds=1.0,
                versions={},
            ),
        )

    def _fail(self, code: int, message: str) -> int:
        failure = Failure(exit_code=code, reason="FakeError", message=message)
        Path(os.environ["MODELCHAIN_TERMINATION_LOG"]).write_text(failure.model_dump_json(by_alias=True))
        return code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if not self.deaf:
            self.stopping.set()

    def _watch_parent(self) -> None:
        os.read(int(os.environ["MODELCHAIN_PARENT_PIPE"]), 1)
        os._exit(137)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve(lambda: Attempt().run())
    sys.exit(Attempt().run())
