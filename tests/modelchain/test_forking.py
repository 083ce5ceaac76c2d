"""Forks of a server are to who asks for them what `subprocess.Popen` would start."""

from __future__ import annotations

import os
import signal
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
