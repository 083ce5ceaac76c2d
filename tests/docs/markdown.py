"""The fenced blocks of the documentation's pages, and what is said of them to the tests.

A comment of its own line, right above a block, speaks to the tests:

    <!-- check: numbers vary, long -->

- `numbers vary`: figures in the output shown are of the machine that made it;
- `exits 65`: so ends its last command;
- `long`: it takes minutes; what stands below it on the page then is run with it, by `make test-all`;
- `cluster`: it is run on the tests' control plane, by `make test-all`, as all that begins with kubectl or helm;
- `last`: on the control plane, it is run when all other pages are done.

A block with a title (```yaml title="chain.yaml") is a file that the reader saves; commands below it find it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHELLS = frozenset({"console", "bash", "sh", "shell", "zsh", "shell-session"})

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_CHECK = re.compile(r"\s*<!-- check: (.+) -->\s*")
_TITLE = re.compile(r'title="([^"]+)"')
_WORDS = re.compile(r"numbers vary|long|cluster|last|exits \d+")


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the output shown below it."""

    text: str
    output: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    page: str  # relative to the repository
    line: int
    language: str
    title: str | None
    text: str
    checks: frozenset[str] = field(default_factory=frozenset)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"

    @property
    def exit_code(self) -> int:
        """Of its last command."""
        return next((int(check.split()[1]) for check in self.checks if check.startswith("exits")), 0)

    def commands(self) -> list[Command]:
        """What stands behind `$ `; a line that ends in a backslash, or an open quote, goes on in the next."""
        found: list[tuple[list[str], list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif not found:
                raise ValueError(f"{self.where}: begins with {line!r}; a command stands behind '$ '")
            elif not found[-1][1] and _goes_on(found[-1][0]):
                found[-1][0].append(line)
            else:
                found[-1][1].append(line)
        return [Command("\n".join(command), tuple(output)) for command, output in found]


def pages() -> list[Path]:
    """Every page of the documentation."""
    own = list(DOCS.rglob("*.md"))
    return sorted([*own, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"])


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in their order."""
    name, lines = page.relative_to(ROOT).as_posix(), page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opened = _FENCE.fullmatch(lines[at])
        if opened is None:
            at += 1
            continue
        closed = next(
            (number for number in range(at + 1, len(lines)) if lines[number].strip() == opened["ticks"]),
            None,
        )
        if closed is None:
            raise ValueError(f"{name}:{at + 1}: this block is never closed")
        indent = len(opened["indent"])
        above = _CHECK.fullmatch(lines[at - 1]) if at else None
        title = _TITLE.search(opened["info"])
        yield Block(
            page=name,
            line=at + 1,
            language=opened["info"].split()[0] if opened["info"].split() else "",
            title=title[1] if title else None,
            text="\n".join(line[indent:] for line in lines[at + 1 : closed]) + "\n",
            checks=_read_checks(above[1], f"{name}:{at}") if above else frozenset(),
        )
        at = closed + 1


def indented_lines(page: Path) -> Iterator[tuple[int, str]]:
    """Lines that Markdown shows as code for their indentation alone: what tests of blocks would not see."""
    fenced, in_list = False, False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or not line.strip():
            continue
        elif line.startswith("    "):
            if not in_list:
                yield number, line.strip()
        else:
            in_list = line.lstrip().startswith(("- ", "* ", "1. ")) or (in_list and line.startswith(" "))


def _goes_on(lines: list[str]) -> bool:
    text = "\n".join(lines)
    return text.endswith("\\") or text.count("'") % 2 == 1


def _read_checks(text: str, where: str) -> frozenset[str]:
    words = frozenset(word.strip() for word in text.split(","))
    unknown = [word for word in words if not _WORDS.fullmatch(word)]
    if unknown:
        raise ValueError(f"{where}: unknown to the tests: {', '.join(unknown)}")
    return words
