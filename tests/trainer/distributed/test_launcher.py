"""The launcher as a process, with a stand-in for the worker: what matters here is who is told what."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from modelchain.artifacts import Failure
from modelchain.errors import ExitCode
from modelchain.resolved import PARENT_PIPE_VARIABLE
from tests.processes import PATIENCE_SECONDS, is_alive, wait_until
from tests.trainer.stages import smallest_stage

STAGE = smallest_stage()

# What every stand-in for the worker begins with: `fail` reports as a rank does.
WORKER = """
import json, os, signal, sys, time
rank = int(os.environ["RANK"])
def fail(code, reason, message):
    failure = {"exitCode": code, "reason": reason, "message": message, "rank": rank}
    with open(os.environ["MODELCHAIN_RANK_REPORT"], "w") as file:
        json.dump({"failure": failure}, file)
    sys.exit(code)
"""

LAUNCHER = """
import runpy, sys
from modelchain_trainer.distributed import supervision
start, worker = sys.argv.pop(1), sys.argv.pop(1)
supervision.WORKER = (sys.executable, worker)
supervision.worker.main = lambda: runpy.run_path(worker, run_name="__main__") and 0
supervision.KILL_AFTER_SECONDS = 1.0
from modelchain_trainer.distributed.launcher import main
sys.exit(main(start_rank=getattr(supervision, start)))
"""

Start = Callable[..., "Launch"]


class Launch:
    """A running launcher, its folder and its termination message."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, errors

    def termination_message(self) -> Failure:
        return Failure.model_validate_json((self.folder / "termination-log").read_bytes())

    def wait_for(self, name: str, ranks: int = 1) -> list[str]:
        """Until each rank has written its file `<name>-<rank>`; their contents."""
        paths = [self.folder / f"{name}-{rank}" for rank in range(ranks)]
        wait_until(
            lambda: all(path.exists() and path.read_text().endswith("\n") for path in paths),
            f"{name} is written",
        )
        return [path.read_text().strip() for path in paths]


@pytest.fixture(params=["spawn_rank", "fork_rank"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    launches: list[Launch] = []

    def start(worker: str, *, pipe: int | None = None, **variables: str) -> Launch:
        script = tmp_path / "worker.py"
        script.write_text(WORKER + worker)
        stage_file = tmp_path / "stage.json"
        stage_file.write_text(json.dumps({**STAGE, "store": {"uri": str(tmp_path / "store")}}))
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, request.param, str(script), "--stage", str(stage_file)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            pass_fds=() if pipe is None else (pipe,),
            env=_clean(os.environ)
            | {"MODELCHAIN_TERMINATION_LOG": str(tmp_path / "termination-log"), "TMPDIR": str(tmp_path)}
            | variables,
        )
        launches.append(Launch(process, tmp_path))
        return launches[-1]

    yield start
    for launch in launches:
        launch.process.kill()
        launch.process.communicate()


def _clean(variables: Mapping[str, str]) -> dict[str, str]:
    prefixes = ("PET_", "MODELCHAIN_", "MASTER_", "RANK", "WORLD_SIZE")
    return {name: value for name, value in variables.items() if not name.startswith(prefixes)}


def _wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(is_alive(pid) for pid in pids), f"{pids} are gone", pause=0.05)


def test_every_rank_is_told_its_place_and_one_token_is_made_of_the_prefix(start: Start) -> None:
    worker = """
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MODELCHAIN_TOKEN")
with open(f"env-{rank}", "w") as file:
    print(*(os.environ[name] for name in names), file=file)
"""
    launch = start(worker, PET_NPROC_PER_NODE="2", MODELCHAIN_ATTEMPT="0123abcd-7")
    assert launch.wait() == (0, "")
    first, second = (text.split() for text in launch.wait_for("env", 2))
    assert first[:4] == ["0", "0", "2", "2"]
    assert second[:4] == ["1", "1", "2", "2"]
    assert first[4:] == second[4:]
    assert first[5].startswith("0123abcd-7-")
    assert len(first[5]) == len("0123abcd-7-") + 8
    assert not list(launch.folder.glob("modelchain-scratch-*")), "temporary files were left behind"


def test_the_root_cause_is_the_first_rank_that_failed_by_itself(start: Start) -> None:
    worker = """
if rank == 1:
    while not os.path.exists("ready"): time.sleep(0.01)
    fail(65, "UserDataError", "shard 3 is no tar")
signal.signal(signal.SIGTERM, lambda *_: fail(1, "LostPeerError", "rank 1 is gone"))
open("ready", "w").close()
time.sleep(600)
"""
    launch = start(worker, PET_NPROC_PER_NODE="2", MODELCHAIN_ATTEMPT="0123abcd-1")
    code, errors = launch.wait()
    assert code == 65
    assert errors.strip() == "modelchain_trainer: UserDataError (rank 1): shard 3 is no tar"
    assert launch.termination_message().message == "shard 3 is no tar"
    (file,) = (launch.folder / "store" / STAGE["folder"]).glob("attempts/0123abcd-1-*/failure.json")
    assert Failure.model_validate_json(file.read_bytes()).exit_code == 65


def test_ranks_that_ignore_sigterm_are_killed_after_a_failed_one(start: Start) -> None:
    worker = """
if rank == 1:
    while not os.path.exists("pid-0"): time.sleep(0.05)
    fail(78, "ConfigurationError", "no")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("pid-0", "w") as file: print(os.getpid(), file=file)
time.sleep(600)
"""
    launch = start(worker, PET_NPROC_PER_NODE="2")
    (pid,) = launch.wait_for("pid")
    assert launch.wait()[0] == 78
    assert not is_alive(int(pid))


def test_sigterm_reaches_every_rank_once_and_their_checkpoint_is_waited_for(start: Start) -> None:
    worker = """
count = 0
def stop(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, stop)
with open(f"ready-{rank}", "w") as file: print("yes", file=file)
while not count: time.sleep(0.01)
time.sleep(0.5 + rank)  # a checkpoint; longer than the time that a failure leaves
with open(f"count-{rank}", "w") as file: print(count, file=file)
fail(143, "Terminated", "checkpoint at step 7")
"""
    launch = start(worker, PET_NPROC_PER_NODE="2")
    launch.wait_for("ready", 2)
    launch.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    launch.process.send_signal(signal.SIGTERM)
    assert launch.wait()[0] == 143
    assert launch.wait_for("count", 2) == ["1", "1"]
    assert launch.termination_message().message == "checkpoint at step 7"


def test_ctrl_c_stops_the_same_way_and_ends_with_130(start: Start) -> None:
    worker = """
signal.signal(signal.SIGTERM, lambda *_: fail(143, "Terminated", "checkpoint"))
with open(f"ready-{rank}", "w") as file: print("yes", file=file)
time.sleep(600)
"""
    launch = start(worker)
    launch.wait_for("ready")
    launch.process.send_signal(signal.SIGINT)
    assert launch.wait()[0] == 130


def test_a_killed_rank_ends_with_its_signal(start: Start) -> None:
    launch = start("os.kill(os.getpid(), signal.SIGKILL)")
    code, errors = launch.wait()
    assert code == 137
    assert "rank 0 was killed by SIGKILL; the kernel does that when memory runs out" in errors


def test_a_rank_that_says_nothing_ends_with_its_code(start: Start) -> None:
    launch = start("sys.exit(3)")
    code, errors = launch.wait()
    assert code == 3
    assert "exit code 3 without saying why" in errors


def test_a_termination_message_fits_into_4096_bytes(start: Start) -> None:
    launch = start("fail(65, 'UserDataError', '\\u00fc' * 50_000)")
    assert launch.wait()[0] == 65
    assert (launch.folder / "termination-log").stat().st_size <= 4096
    assert launch.termination_message().message.startswith("üüü")


def test_a_second_node_reports_under_the_token_of_the_first(start: Start) -> None:
    worker = """
with open(os.path.join(os.environ["MODELCHAIN_SCRATCH"], "token"), "w") as file: file.write("0123abcd-1-first")
assert "MODELCHAIN_TOKEN" not in os.environ
fail(74, "DiskFullError", "no space on node 1")
"""
    launch = start(worker, PET_NNODES="2", PET_NODE_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert launch.wait()[0] == 74
    file = launch.folder / "store" / STAGE["folder"] / "attempts/0123abcd-1-first/failure.json"
    assert Failure.model_validate_json(file.read_bytes()).message == "no space on node 1"


def test_the_loss_of_a_peer_does_not_hide_what_the_peer_said(start: Start) -> None:
    folder = Path("store") / STAGE["folder"] / "attempts/0123abcd-1-first"
    worker = f"""
os.makedirs({str(folder)!r})
with open({str(folder / "failure.json")!r}, "w") as file: file.write("what the peer said")
with open(os.path.join(os.environ["MODELCHAIN_SCRATCH"], "token"), "w") as file: file.write("0123abcd-1-first")
fail(1, "LostPeerError", "rank 0 is gone")
"""
    launch = start(worker, PET_NNODES="2", PET_NODE_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert launch.wait()[0] == 1
    assert (launch.folder / folder / "failure.json").read_text() == "what the peer said"


def test_without_a_folder_for_temporary_files_it_says_so(tmp_path: Path) -> None:
    code = """
import json, os, sys, tempfile
def missing(*_, **__): raise FileNotFoundError("none")
tempfile.gettempdir = missing
from modelchain_trainer.distributed.launcher import main
sys.exit(main())
"""
    stage = json.dumps({**STAGE, "store": {"uri": str(tmp_path / "store")}})
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=_clean(os.environ) | {"MODELCHAIN_STAGE": stage},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 73
    assert "set TMPDIR" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_store_that_cannot_be_written_does_not_hide_the_cause(start: Start) -> None:
    launch = start("open('store', 'w').close(); fail(74, 'DiskFullError', 'full')")
    assert launch.wait()[0] == 74


@pytest.mark.parametrize("blocking", [True, False])
def test_when_its_parent_is_gone_launcher_and_ranks_die(start: Start, blocking: bool) -> None:
    mine, theirs = os.pipe()
    os.set_blocking(mine, blocking)
    worker = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(f"pid-{rank}", "w") as file: print(os.getpid(), file=file)
time.sleep(600)
"""
    launch = start(worker, pipe=mine, PET_NPROC_PER_NODE="2", **{PARENT_PIPE_VARIABLE: str(mine)})
    os.close(mine)
    pids = [int(text) for text in launch.wait_for("pid", 2)]
    assert all(is_alive(pid) for pid in pids)
    os.close(theirs)  # as the kernel does for a process that was killed
    assert launch.wait()[0] == 137
    _wait_until_gone(pids)


def test_a_parent_that_can_not_be_watched_ends_launcher_and_ranks(start: Start) -> None:
    mine, theirs = os.pipe()
    launch = start("time.sleep(600)", pipe=theirs, **{PARENT_PIPE_VARIABLE: str(theirs)})  # the wrong end
    os.close(theirs)
    code, errors = launch.wait()
    os.close(mine)
    assert code == 137
    assert "can't be read (Bad file descriptor); this launcher ends" in errors


def test_ranks_die_with_a_launcher_that_was_killed(start: Start) -> None:
    worker = """
from modelchain_trainer.worker import die_with
die_with(int(os.environ["MODELCHAIN_LAUNCHER_PID"]))
with open(f"pid-{rank}", "w") as file: print(os.getpid(), file=file)
time.sleep(600)
"""
    launch = start(worker, PET_NPROC_PER_NODE="2")
    pids = [int(text) for text in launch.wait_for("pid", 2)]
    launch.process.kill()
    launch.wait()
    _wait_until_gone(pids)


@pytest.mark.parametrize(
    ("stage", "code", "message"),
    [
        ("{", 64, "Invalid JSON"),
        ("{}", 64, "chain: Field required"),
        (json.dumps({**STAGE, "store": {"uri": "store"}, "colour": 1}), 64, "colour"),
        ("", 64, "no stage to train"),
    ],
)
def test_a_stage_that_is_none_is_a_usage_error(
    stage: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from modelchain_trainer.distributed.launcher import main

    assert main([], {"MODELCHAIN_STAGE": stage}) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_batch_that_the_processes_do_not_divide_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from modelchain_trainer.distributed.launcher import main

    stage = json.dumps({**STAGE, "store": {"uri": "store"}})
    assert main([], {"MODELCHAIN_STAGE": stage, "PET_NPROC_PER_NODE": "3"}) == 78
    assert "training.globalBatchSize 4 cannot be divided among 3 processes" in capsys.readouterr().err


def test_the_launcher_imports_no_torch() -> None:
    code = (
        "import sys, modelchain_trainer.distributed.launcher; "
        "sys.exit('torch' in sys.modules or 'boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sigterm_while_the_launcher_is_being_imported_ends_it_as_process_1_too(tmp_path: Path) -> None:
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(600)\n"
    (tmp_path / "pydantic.py").write_text(slow)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    with subprocess.Popen(
        [sys.executable, "-m", "modelchain_trainer"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.terminate()
        assert (
            process.wait(timeout=PATIENCE_SECONDS) == ExitCode.TERMINATED
        )  # by a handler: as process 1, -15 would be no end
