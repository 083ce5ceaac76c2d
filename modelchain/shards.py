"""Shard patterns: `s3://data/cc3m/{00000..00331}.tar` and `part-{a,b}.tar` become the shards they stand for.

The notation is the shell's and webdataset's: ranges of whole numbers, padded as they are written, with an
optional step ({0..10..2}), and lists; several in one pattern multiply, the last one turning fastest. Braces
do not nest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from modelchain.errors import UserDataError

LINES = ".jsonl"  # what the names of shards of lines of JSON end in, in either case
MAX_SHARDS = 1_000_000  # of all patterns together; a slip such as {0..99999999} must not fill the memory

_BRACES = re.compile(r"\{([^{}]*)\}")
_LAST_NUMBER = re.compile(r"(.*?)(\d{1,18})(\D*)", re.DOTALL)
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?")


class ShardPatternError(UserDataError):
    """A pattern that stands for no shard, or one that can't be read."""


def is_lines(uri: str) -> bool:
    """Whether a shard, or those of a pattern, hold lines of JSON."""
    return uri.lower().endswith(LINES)


def expand(pattern: str) -> list[str]:
    """The shards of one pattern, in order. Raises ShardPatternError."""
    return list(_expanded(pattern))


def expand_all(patterns: Iterable[str]) -> list[str]:
    """The shards of several patterns, in order.

    Raises ShardPatternError, also for a shard that occurs twice.
    """
    shards: list[str] = []
    for pattern in patterns:
        if len(shards) + count(pattern) > MAX_SHARDS:
            raise ShardPatternError(
                f"{pattern}: more than {MAX_SHARDS} shards in all; write fewer, larger shards"
            )
        shards.extend(_expanded(pattern))
    duplicate = first_duplicate(shards)
    if duplicate is not None:
        raise ShardPatternError(
            f"shard {duplicate} occurs twice; its samples would be seen twice an epoch: list it once"
        )
    return shards


def count(pattern: str) -> int:
    """How many shards a pattern stands for, without writing them out. Raises ShardPatternError."""
    total = 1
    for alternatives in _parse(pattern)[1]:
        total *= len(alternatives)
    return total


def compact(shards: Sequence[str]) -> list[str]:
    """Few patterns that stand for these shards in this order: runs that count up become ranges.

    Raises ShardPatternError for a shard with a brace in its name, which no pattern can say.
    """
    patterns: list[str] = []
    run: tuple[str, str, str, int] | None = None  # text before and after the number, its first one, how many
    for shard in shards:
        if "{" in shard or "}" in shard:
            raise ShardPatternError(f"{shard}: has a brace in its name; rename it")
        found = _LAST_NUMBER.fullmatch(shard)
        before, number, after = found.groups() if found is not None else (shard, "", "")
        counts_up = (
            run is not None and number and run[:2] == (before, after) and number == _add(run[2], run[3])
        )
        if (
            run is not None
            and counts_up
            and (len(number) == len(run[2]) or run[2][0] != "0" or run[2] == "0")
        ):
            run = before, after, run[2], run[3] + 1
            continue
        patterns += [] if run is None else [_pattern(*run)]
        run = before, after, number, 1
    return patterns if run is None else [*patterns, _pattern(*run)]


def _add(number: str, more: int) -> str:
    return f"{int(number) + more:0{len(number)}d}" if number else ""


def _pattern(before: str, after: str, first: str, many: int) -> str:
    return before + (first if many == 1 else f"{{{first}..{_add(first, many - 1)}}}") + after


def first_duplicate(shards: Sequence[str]) -> str | None:
    """The first shard that occurs a second time; None if all differ."""
    if len(set(shards)) == len(shards):
        return None
    seen: set[str] = set()
    for shard in shards:
        if shard in seen:
            return shard
        seen.add(shard)
    return None


class _Numbers:
    """The numbers of a range as text, made one at a time: a range may be long."""

    def __init__(self, first: int, last: int, step: int, digits: int) -> None:
        self._range = range(first, last + 1, step)
        self._digits = digits

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self._digits}d}" for number in self._range)


def _expanded(pattern: str) -> Iterator[str]:
    texts, choices = _parse(pattern)
    if count(pattern) > MAX_SHARDS:
        raise ShardPatternError(f"{pattern}: {count(pattern)} shards; the most is {MAX_SHARDS}")
    around = [[text] for text in texts]
    between = [part for pair in zip(choices, around[1:], strict=True) for part in pair]
    yield from map("".join, product(around[0], *between))


def _parse(pattern: str) -> tuple[list[str], list[_Numbers | list[str]]]:
    """The text between the braces (one more than there are braces), and what stands in each."""
    pieces = _BRACES.split(pattern)
    texts, braces = pieces[0::2], pieces[1::2]
    if any("{" in text or "}" in text for text in texts):
        raise ShardPatternError(
            f"{pattern}: a brace is not closed, or braces nest; write one range or list a pair"
        )
    return texts, [_alternatives(pattern, inside) for inside in braces]


def _alternatives(pattern: str, inside: str) -> _Numbers | list[str]:
    written = "{" + inside + "}"
    if not inside:
        raise ShardPatternError(
            f"{pattern}: {written} is empty and stands for no shard; write a range such as {{000..127}}"
        )
    match = _RANGE.fullmatch(inside)
    if match is None:
        parts = inside.split(",")
        if ".." in inside or len(parts) == 1:
            raise ShardPatternError(
                f"{pattern}: {written} is no range such as {{000..127}} and no list such as {{train,extra}}"
            )
        if not all(parts):
            raise ShardPatternError(f"{pattern}: {written} has an empty part; remove the spare comma")
        return parts
    first, last, step = match[1], match[2], int(match[3] or 1)
    if int(last) < int(first):
        raise ShardPatternError(
            f"{pattern}: {written} runs backwards and stands for no shard; write {{{last}..{first}}}"
        )
    if step == 0:
        raise ShardPatternError(f"{pattern}: {written} has step 0; leave the step out, or make it at least 1")
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    return _Numbers(int(first), int(last), step, max(len(first), len(last)) if padded else 1)
