"""The Dockerfile, read, and its install steps run in a folder where no container can be built."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The folders of the image that its steps write to, where they begin a path.
_IMAGE_PATH = re.compile(r"(?<![\w.*/])/(?=(?:opt|src)\b)")


@dataclass(frozen=True)
class Instruction:
    keyword: str
    argument: str

    @property
    def exec_form(self) -> list[str] | None:
        """The words of `RUN ["python", ...]`; None of a line for a shell."""
        return json.loads(self.argument) if self.argument.startswith("[") else None


@dataclass(frozen=True)
class Stage:
    name: str
    base: str  # a stage's name or an image
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, keyword: str) -> Instruction:
        """The instruction that counts, of a kind of which the last one does."""
        return [one for one in self.instructions if one.keyword == keyword][-1]


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in their order."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, re.sub(r"\\\n", " ", lines).splitlines())):
        keyword, _, argument = line.partition(" ")
        if keyword == "FROM":
            base, _, name = argument.split()
            stage = stages[name] = Stage(name, base)
        elif stage is not None:
            stage.instructions.append(Instruction(keyword, argument.strip()))
    return stages


@dataclass
class Container:
    """What a stage's steps run in."""

    folder: Path
    environment: dict[str, str]


class Sandbox:
    """Runs the stages that a target needs, with `root` in the place of the image's root.

    Stages share it, so a COPY from one to another has nothing to do. What Debian's packages are for is taken from
    this machine, and the packages of Python from uv's cache where it has them.
    """

    def __init__(self, root: Path, stages: dict[str, Stage]) -> None:
        self._root, self._stages = root, stages
        self._built: dict[str, Container] = {}

    def build(self, target: str) -> Container:
        """Run the steps of a stage, and first of those that it needs."""
        if target not in self._built:
            stage = self._stages[target]
            container = self._container(stage.base)
            for instruction in stage.instructions:
                self._step(instruction, container)
            self._built[target] = container
        return self._built[target]

    def run(self, target: str, words: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program as a container of the target would."""
        return _run(words, self.build(target), check=check)

    def _container(self, base: str) -> Container:
        if base in self._stages:
            built = self.build(base)
            return Container(built.folder, dict(built.environment))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return Container(self._root, {**os.environ, "PATH": path})

    def _step(self, instruction: Instruction, container: Container) -> None:
        match instruction.keyword:
            case "ENV":
                self._set(instruction.argument, container)
            case "WORKDIR":
                container.folder = Path(self._moved(instruction.argument))
                container.folder.mkdir(parents=True, exist_ok=True)
            case "COPY" if instruction.argument.startswith("--from="):
                self._copy_from(instruction.argument)
            case "COPY":
                _copy(instruction.argument, container)
            case "RUN" if instruction.argument.startswith("apt-get "):
                pass
            case "RUN":
                shell = ["sh", "-ec", self._moved(instruction.argument)]
                _run(instruction.exec_form or shell, container)
            case "ARG" | "USER" | "EXPOSE" | "ENTRYPOINT" | "CMD" | "LABEL":
                pass
            case _:
                raise NotImplementedError(f"{instruction}: say here what it means for these tests")

    def _set(self, argument: str, container: Container) -> None:
        values = dict(word.split("=", 1) for word in shlex.split(argument))
        values.pop("UV_NO_CACHE", None)
        if "PATH" in values:  # the programs of the base image are this machine's
            values["PATH"] = f"{self._moved(values['PATH'])}:{container.environment['PATH']}"
        container.environment.update(values)

    def _copy_from(self, argument: str) -> None:
        option, source, target = argument.split()
        stage = option.removeprefix("--from=")
        self.build(stage)
        assert source == target, f"COPY {argument}: stages share one root here"
        assert Path(self._moved(source)).exists(), f"COPY {argument}: stage {stage} does not make it"

    def _moved(self, text: str) -> str:
        return _IMAGE_PATH.sub(f"{self._root}/", text)


def _copy(argument: str, container: Container) -> None:
    *names, target = argument.split()
    for name in names:
        assert name in context(), f"COPY {argument}: .dockerignore keeps {name} out"
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, container.folder / target, ignore=ignore)
        else:
            shutil.copy(ROOT / name, container.folder / target)


def _run(words: list[str], container: Container, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    words = [shutil.which(words[0], path=container.environment["PATH"]) or words[0], *words[1:]]
    done = subprocess.run(
        words,
        check=False,
        cwd=container.folder,
        env=container.environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert not check or done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


def context() -> set[str]:
    """What .dockerignore lets in, which leaves out everything first."""
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*", "everything is left out first"
    return {line.removeprefix("!") for line in lines if line.startswith("!")}
