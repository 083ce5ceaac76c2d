"""Forks of a server are to who asks for them what `subprocess.Popen` would start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from modelchain.forking import ForkServer, ServedProcess
from tests.processes import is_alive, parent_of, wait_until

# Does what WORD says. NAME.fifo, where there is one, holds the server before it serves.
SERVER = """
import os, signal, sys
from pathlib import Path
from modelchain.forking import serve
def run():
    print(os.environ["WORD"], os.getcwd(), os.getsid(0) == os.getpid(), "INHERITED" in os.environ, flush=True)
    match os.environ["WORD"].split():
        case ["exit", code]: sys.exit(int(code))
        case ["return", code]: return int(code)
        case ["raise"]: raise ValueError("its message")
        case ["wait"]: signal.pause()
        case ["checkpoint"]:
            signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
            print("training", flush=True)
            while True: signal.pause()
if Path("fifo").exists(): open("fifo").read()
serve(run)
"""

Start = Callable[[str], ServedProcess]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "INHERITED": "by the server alone"}
    server = ForkServer([sys.executable, "-c", SERVER], environment, tmp_path / "server.log")
    yield server
    server.close()


def begin(server: ForkServer, word: str, folder: Path, **more: str) -> ServedProcess:
    """A process whose pid is known."""
    folder.mkdir(exist_ok=True)
    environment: Mapping[str, str] = {"PATH": os.environ["PATH"], "WORD": word, **more}
    process = server.start(environment, folder, folder / "log")
    wait_until(lambda: process.poll() is not None or process.pid is not None, "it is forked")
    return process


def end(process: ServedProcess) -> int:
    """Its exit code."""
    wait_until(lambda: process.poll() is not None, "it has ended")
    assert process.returncode is not None
    return process.returncode


@pytest.mark.parametrize(("word", "code"), [("exit 7", 7), ("return 3", 3), ("raise", 1), ("nothing", 1)])
def test_it_has_its_own_folder_log_session_environment_and_exit_code(
    server: ForkServer, tmp_path: Path, word: str, code: int
) -> None:
    folder = tmp_path / "own"
    assert end(begin(server, word, folder)) == code
    said = (folder / "log").read_text().splitlines()
    assert said[0] == f"{word} {folder} True False"
    assert (word == "raise") == (said[-1] == "ValueError: its message")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_and_no_other(server: ForkServer, tmp_path: Path, number: int) -> None:
    first, second = (begin(server, "wait", tmp_path / name) for name in ("first", "second"))
    first.send_signal(number)
    assert end(first) == -number
    assert second.poll() is None


def test_what_is_forked_ends_with_its_server(server: ForkServer, tmp_path: Path) -> None:
    process = begin(server, "wait", tmp_path / "own")
    log = tmp_path / "own/log"
    wait_until(lambda: log.exists() and "wait" in log.read_text(), "it runs")
    assert process.pid is not None
    os.kill(parent_of(process.pid), signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
    wait_until(lambda: not is_alive(process.pid or 0), "it is gone")
    assert server.ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_leaves_them_the_time_for_a_checkpoint(
    server: ForkServer, tmp_path: Path, number: int
) -> None:
    """As a service manager ends a group, or a machine that shuts down."""
    process = begin(server, "checkpoint", tmp_path / "own")
    log = tmp_path / "own/log"
    wait_until(lambda: log.exists() and "training" in log.read_text(), "it trains")
    assert process.pid is not None
    os.kill(parent_of(process.pid), number)
    os.kill(process.pid, signal.SIGTERM)
    assert end(process) == 143
    assert log.read_text().endswith("saved\n")
    assert not server.ended


def test_a_request_larger_than_a_pipe_is_sent_whole_though_signals_come(
    server: ForkServer, tmp_path: Path
) -> None:
    """The server is held before it reads, so that the pipe is full when the signal comes."""
    first = begin(server, "wait", tmp_path / "first")
    assert first.pid is not None
    reader = parent_of(first.pid)
    os.kill(reader, signal.SIGSTOP)
    heard: list[int] = []
    before = signal.signal(
        signal.SIGALRM, lambda number, _: (heard.append(number), os.kill(reader, signal.SIGCONT))
    )
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        second = begin(server, "exit 7", tmp_path / "second", LARGE="x" * 300_000)
        assert end(second) == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard


def test_a_server_that_does_not_answer_is_ended(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin(server, "wait", tmp_path / "own")
    assert process.pid is not None
    os.kill(parent_of(process.pid), signal.SIGSTOP)
    monkeypatch.setattr("modelchain.forking._ANSWER_SECONDS", 0.1)
    assert end(process) == -signal.SIGKILL


def test_a_log_that_can_not_be_written_is_told_to_who_asks(server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        server.start({}, tmp_path, tmp_path / "none/log")


def test_a_folder_that_is_gone_is_told_in_its_own_log(server: ForkServer, tmp_path: Path) -> None:
    process = server.start({"PATH": "", "WORD": "nothing"}, tmp_path / "none", tmp_path / "log")
    assert end(process) == 1
    assert "FileNotFoundError" in (tmp_path / "log").read_text()


THREADS = """
import os
from concurrent.futures import ThreadPoolExecutor
from modelchain.forking import ForkedProcess
def poll_to_end(process):
    while (code := process.poll()) is None: pass
    return code
forks = [ForkedProcess(lambda: 7, os.environ) for _ in range(40)]
with ThreadPoolExecutor(4) as pool:
    for fork in forks:
        assert list(pool.map(poll_to_end, [fork] * 4)) == [7] * 4
"""


def test_several_threads_may_ask_how_a_fork_ended() -> None:
    subprocess.run([sys.executable, "-c", THREADS], check=True)


def test_before_its_server_is_ready_a_signal_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    server = ForkServer([sys.executable, "-c", SERVER], os.environ, tmp_path / "server.log")
    process = server.start({}, tmp_path, tmp_path / "log")
    assert (process.poll(), process.pid) == (None, None)
    process.send_signal(signal.SIGTERM)
    assert end(process) == -signal.SIGTERM
    server.close()
