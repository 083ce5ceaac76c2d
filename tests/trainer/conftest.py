"""A small data set, small stages, and ranks that start at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import new_attempt_token
from modelchain.resolved import ResolvedStage, ResolvedStore
from modelchain_trainer.environment import (
    LAUNCHER_VARIABLE,
    REPORT_VARIABLE,
    SCRATCH_VARIABLE,
    TOKEN_VARIABLE,
    ProcessEnvironment,
    free_port,
)
from modelchain_trainer.position import Position
from modelchain_trainer.stopping import StopRequest
from tests.squares import COLOURS, SAMPLES, write_squares
from tests.trainer.stages import changed, smallest_stage

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the machine, and none must wait spinning

FORK_SERVER = Path(__file__).parent / "fork_server.py"

StageOf = Callable[..., ResolvedStage]


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pattern of two shards with 64 noisy coloured squares, two captions and a class each; a ZeroShot set."""
    return write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="session")
def stage_in(squares: str) -> StageOf:
    """Makes stages: `stage_in(store, "small", width=16, predecessor=..., training={...}, retry={...}, ...)`."""

    def make(
        store: Path | ResolvedStore,
        name: str,
        *,
        width: int = 16,
        layers: int = 1,
        embed_dim: int = 16,
        epochs: int = 3,
        predecessor: ResolvedStage | None = None,
        **changes: Any,
    ) -> ResolvedStage:
        digest = hashlib.sha256(name.encode()).hexdigest()
        batch = 16
        stage = smallest_stage(
            chain={"name": "squares", "uid": "uid-of-squares"},
            name=name,
            digest=digest,
            folder=f"stages/{name}-{digest[:16]}",
            model=name,
            modelConfig={
                "embedDim": embed_dim,
                "vision": {"imageSize": 8, "patchSize": 4, "width": width, "layers": layers, "headWidth": 16},
                "text": {"contextLength": 16, "width": width, "layers": layers, "heads": width // 16},
            },
            store={"uri": str(store)} if isinstance(store, Path) else store.model_dump(by_alias=True),
            data={"shards": [squares], "samples": SAMPLES, "blockMebibytes": 1},
            evaluation=[
                {
                    "name": "squares",
                    "type": "ZeroShot",
                    "data": {"shards": [squares]},
                    "classes": list(COLOURS),
                    "templates": ["a {} square"],
                    "everySteps": 6,
                }
            ],
            training={
                "epochs": epochs,
                "globalBatchSize": batch,
                "learningRate": 1e-3,
                "warmupSteps": 2,
                "checkpointEverySteps": 4,
                "logEverySteps": 1,
                "dataWorkers": 2,
                "stepsPerEpoch": SAMPLES // batch,
                "steps": epochs * (SAMPLES // batch),
            },
            retry={"leaseSeconds": 2},
        )
        if predecessor is not None:
            stage["predecessor"] = stage["teacher"] = {
                "name": predecessor.name,
                "digest": predecessor.digest,
                "folder": predecessor.folder,
                "modelConfig": predecessor.model_config_.model_dump(by_alias=True),
            }
        return ResolvedStage.model_validate(changed(stage, changes))

    return make


@pytest.fixture
def stage_of(stage_in: StageOf, tmp_path: Path) -> StageOf:
    """`stage_in` with a store of this test's own."""
    return partial(stage_in, tmp_path / "store")


@pytest.fixture(scope="session")
def trained_small(
    stage_in: StageOf, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store in which the stage "small" is complete, to be copied."""
    folder = tmp_path_factory.mktemp("small")
    assert fork_server.run(stage_in(folder / "store", "small"), folder / "run") == 0
    return folder / "store"


@dataclass(frozen=True)
class Rank:
    """A forked worker."""

    pid: int
    log: Path
    report: Path
    _server: ForkServer

    def wait(self) -> int:
        """Exit code; negative for a signal."""
        return self._server.request({"wait": self.pid})


class ForkServer:
    """tests/trainer/fork_server.py as a process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FORK_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def request(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(
        self,
        stage: ResolvedStage,
        folder: Path,
        *,
        ranks: int = 1,
        failpoint: str = "",
        maximum_file_bytes: int | None = None,
        prepare: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> list[Rank]:
        """Start the ranks of one attempt, with `folder` for their files; the failpoint is rank 0's.

        `prepare` is a module whose `prepare` each rank calls first, with more variables in its `environment`.
        """
        folder.mkdir(parents=True)
        shared = {
            **os.environ,
            **(environment or {}),
            "MODELCHAIN_STAGE": stage.to_json(),
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            SCRATCH_VARIABLE: str(folder),
            TOKEN_VARIABLE: new_attempt_token(stage.chain.uid, 1),
            LAUNCHER_VARIABLE: str(self._process.pid),
        }
        started = []
        for rank in range(ranks):
            log, report = folder / f"log-{rank}", folder / f"report-{rank}.json"
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), REPORT_VARIABLE: str(report)}
            own["MODELCHAIN_FAILPOINT"] = failpoint if rank == 0 else ""
            request = {
                "environment": {**shared, **own},
                "log": str(log),
                "maximumFileBytes": maximum_file_bytes,
                "prepare": prepare,
            }
            started.append(Rank(self.request(request), log, report, self))
        return started

    def run(self, stage: ResolvedStage, folder: Path, **options: Any) -> int:
        """Run an attempt; the largest exit code, or the smallest if a rank was killed."""
        codes = [rank.wait() for rank in self.start(stage, folder, **options)]
        return min(codes) if min(codes) < 0 else max(codes)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Position]:
    """Trains a stage in the test's own process, as its only rank."""
    launches = iter(range(100))

    def train(stage: ResolvedStage, attempt: str = "uid-1-nonce") -> Position:
        from modelchain_trainer.training import train_stage

        scratch = tmp_path / f"scratch-{next(launches)}"
        scratch.mkdir()
        environment = ProcessEnvironment(
            rank=0,
            local_rank=0,
            world_size=1,
            local_world_size=1,
            master_address="127.0.0.1",
            master_port=1,
            token=attempt,
            report=None,
            scratch=scratch,
            launcher_pid=None,
        )
        position = Position()
        train_stage(stage, environment, StopRequest(), position)
        return position

    return train
