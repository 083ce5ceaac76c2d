"""What a problem is, and how it is written for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from modelchain.errors import UserDataError
from modelchain.yaml_reader import FieldPath


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `document` (the file), its line, the field, what is wrong and what to do."""

    document: str
    path: str  # spec.stages[2].training.epochs; empty for the document as a whole
    message: str
    remedy: str
    line: int | None = None

    def __str__(self) -> str:
        where = self.document if self.line is None else f"{self.document}:{self.line}"
        parts = [where, self.path, self.message] if self.path else [where, self.message]
        text = ": ".join(parts)
        return printable(f"{text}; {self.remedy}" if self.remedy else text)


class InvalidChain(UserDataError):  # noqa: N818  named for what it is about
    """A file with problems. The message has one line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Finding:
    """A problem that does not know its file yet.

    `fields` are the names of the fields it is about: `epochs`, or `schedule.type` where the last part is
    common.
    """

    path: FieldPath
    message: str
    remedy: str
    fields: frozenset[str] = field(default_factory=frozenset)
    line: int | None = None  # where it is not the field's

    def follows_from(self, other: Finding) -> bool:
        """Whether fixing `other` may fix this one: whoever misspelt `epochs` need not read that it is
        missing.
        """
        return bool(self.fields & other.fields) and (
            self.stage == other.stage
            or self.stage is None
            or other.stage is None
            or STAGE_NAMES in self.fields
        )

    @property
    def stage(self) -> int | None:
        """The position of the stage it is about."""
        position = self.path[2] if self.path[:2] == ("spec", "stages") and len(self.path) > 2 else None
        return position if isinstance(position, int) else None


STAGE_NAMES = "names of stages"  # in `fields`: about the names of other stages too


def dotted(path: FieldPath) -> str:
    """A path as people write it: ('spec', 'stages', 2, 'name') is spec.stages[2].name."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def quoted(value: object) -> str:
    """A value for a message: text in quotes, shortened, anything else as YAML shows it."""
    if isinstance(value, str):
        return f'"{value if len(value) <= 60 else value[:57] + "..."}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return str(value)


def printable(text: str) -> str:
    """Text on one line: what a file holds must neither break a message nor reach the terminal as a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
