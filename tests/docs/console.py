"""Runs the commands of a page as its reader would: in one folder, one after the other, in one shell's environment."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.docs.markdown import ROOT, Block, Command
from tests.processes import PATIENCE_SECONDS

NUMBER = r"[-+]?\d[\dhmsd.,]*"  # and ages, as kubectl writes them: 3m45s
STAYS = re.compile(r"\s(-w|--watch|--follow)(\s|$)|\blogs\b.*\s-f\b")  # until somebody stops it

# kubectl 1.37 says where, 1.32 does not; the pages show what both say
NEWER_KUBECTL = re.compile(r'(?<=" deleted) from \S+ namespace$', re.MULTILINE)
SEARCHES = re.compile(r"\| grep [^|]*$")


class Console:
    """A reader's terminal at the top of a checkout: its examples are there, its data and its results are not."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        replaced: Mapping[str, str] | None = None,
        programs: Path | None = None,
    ) -> None:
        """`replaced`: words that stand in the page for something that has another name here. `programs`: a folder
        of programs that the reader has besides ours.
        """
        self.folder = folder / "checkout"
        self._replaced = dict(replaced or {})
        self._state = folder / "environment"
        self._watchers: list[tuple[Block, Command, subprocess.Popen[str]]] = []
        self._before: dict[str, Callable[[], object]] = {}
        self._after: dict[str, Callable[[], object]] = {}
        for name in ("examples", "charts", "crds"):
            ignored = shutil.ignore_patterns("data", "runs", "__pycache__", ".*")
            shutil.copytree(ROOT / name, self.folder / name, ignore=ignored)
        self.environment: dict[str, str] = {
            **os.environ,
            "PATH": os.pathsep.join(
                map(str, (*([programs] if programs else []), Path(sys.executable).parent, os.environ["PATH"]))
            ),
            "HOME": str(folder),
            "COLUMNS": "140",
            "TERM": "dumb",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }

    def read(self, block: Block, is_run: Callable[[Command], bool] = lambda _: True) -> None:
        """Do what a reader does with a block: save a file, or run commands (those that are run) and look at what
        they print.
        """
        if block.title is not None:
            target = self.folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._here(block.text))
            return
        if block.language != "console":
            return
        commands = block.commands()
        for command in filter(is_run, commands):
            last = command is commands[-1]
            if STAYS.search(command.text):
                self._watch(block, command)
            else:
                self._run(block, command, block.exit_code if last else 0)

    def before(self, command: str, action: Callable[[], object]) -> None:
        """Do something before each command that begins so: what a cluster would do, and this one does not."""
        self._before[command] = action

    def after(self, command: str, action: Callable[[], object]) -> None:
        """Do something after each command that begins so."""
        self._after[command] = action

    def close(self) -> None:
        """End what runs until it is stopped, and see that it printed what the page shows."""
        for block, command, text in self.stop():
            _compare(block, command, text)

    def stop(self) -> list[tuple[Block, Command, str]]:
        """End what runs until it is stopped; what it printed."""
        watchers, self._watchers = self._watchers, []
        for _, _, process in watchers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        return [
            (block, command, process.communicate(timeout=PATIENCE_SECONDS)[0])
            for block, command, process in watchers
        ]

    def _run(self, block: Block, command: Command, exit_code: int) -> None:
        for beginning, action in self._before.items():
            if command.text.startswith(beginning):
                action()
        script = f"{self._here(command.text)}\ncode=$?; env -0 > {self._state}; exit $code"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        found_nothing = SEARCHES.search(command.text) and done.returncode == 1 and not done.stdout
        assert done.returncode == exit_code or found_nothing, (
            f"{block.where}: {command.text}\nended with {done.returncode}:\n{done.stdout}"
        )
        variables = (item.partition("=") for item in self._state.read_text().split("\0") if "=" in item)
        self.environment = {name: value for name, _, value in variables}
        _compare(block, command, done.stdout)
        for beginning, action in self._after.items():
            if command.text.startswith(beginning):
                action()

    def _watch(self, block: Block, command: Command) -> None:
        process = subprocess.Popen(
            ["bash", "-c", self._here(command.text)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._watchers.append((block, command, process))

    def _here(self, text: str) -> str:
        for written, here in self._replaced.items():
            text = re.sub(rf"(?<!\w){re.escape(written)}(?!\w)", lambda _, here=here: here, text)
        return text


def pattern(shown: Sequence[str], *, numbers_vary: bool) -> re.Pattern[str]:
    """What output matches the lines shown: `...` stands for anything, alone on a line for any lines."""
    lines = [_line(line.rstrip(), numbers_vary) for line in shown]
    return re.compile("".join(lines).removesuffix("\n"), re.DOTALL)


def _line(line: str, numbers_vary: bool) -> str:
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*?"
    parts: list[str] = []
    for part in re.split(rf"(\.\.\.| +|{NUMBER})" if numbers_vary else r"(\.\.\.)", line):
        if part == "...":
            parts.append(r"[^\n]*?")
        elif numbers_vary and re.fullmatch(r" +", part):
            parts.append(" +")
        elif numbers_vary and re.fullmatch(NUMBER, part):
            parts.append(NUMBER)
        else:
            parts.append(re.escape(part))
    return "".join(parts) + "\n"


def _compare(block: Block, command: Command, printed: str) -> None:
    shown = list(command.output)
    while shown and not shown[-1].strip():
        shown.pop()
    if not shown:
        return
    text = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    text = NEWER_KUBECTL.sub("", text)
    expected = pattern(shown, numbers_vary="numbers vary" in block.checks)
    if not expected.fullmatch(text) and not expected.fullmatch(f"{text}\n"):
        raise AssertionError(
            f"{block.where}: {command.text}\nprints\n\n{text}\n\nand the page shows\n\n" + "\n".join(shown)
        )
