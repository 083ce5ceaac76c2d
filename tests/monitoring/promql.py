"""What a PromQL expression names: metrics with their matchers, and labels to group or match by.

No parser: promtool has one, and it checks the same expressions. This finds names in expressions that are valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*") | \[(?P<range>[^\]]*)\] | (?P<name>[a-zA-Z_:$][a-zA-Z0-9_:]*)
    | (?P<number>\d[\w.]*) | (?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^<>=(),{}]) | (?P<space>\s+)""",
    re.VERBOSE,
)
_OF_LABELS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {*_OF_LABELS, "and", "or", "unless", "offset", "bool", "inf", "nan"}


@dataclass(frozen=True)
class Selector:
    """One `metric{label="value"}`."""

    metric: str
    matchers: Mapping[str, str]  # by label, the value as written
    equal: frozenset[str]  # labels that are matched with `=`


@dataclass(frozen=True)
class Names:
    selectors: tuple[Selector, ...]
    labels: frozenset[str]  # of by, on, ignoring ...
    kept: frozenset[str] | None  # labels of the outermost aggregation; None: there is none


def names(expression: str) -> Names:
    """The names in an expression. AssertionError where a character belongs to nothing that is known here."""
    tokens = _tokens(expression)
    selectors: list[Selector] = []
    labels: set[str] = set()
    kept: frozenset[str] | None = None
    index = 0
    while index < len(tokens):
        kind, text = tokens[index]
        following = tokens[index + 1][1] if index + 1 < len(tokens) else ""
        index += 1
        if kind != "name":
            continue
        if text in _OF_LABELS and following == "(":
            end = next(i for i in range(index, len(tokens)) if tokens[i][1] == ")")
            found = frozenset(value for of, value in tokens[index:end] if of == "name")
            labels |= found
            if text == "by" and kept is None:
                kept = found
            index = end
        elif text not in _WORDS and following not in ("(", "by", "without"):
            matchers: dict[str, str] = {}
            equal: set[str] = set()
            if following == "{":
                index += 1
                while tokens[index][1] != "}":
                    if tokens[index][0] == "name":
                        label, operator, value = (tokens[index + i][1] for i in range(3))
                        matchers[label] = value[1:-1]
                        equal |= {label} if operator == "=" else set()
                        index += 3
                    else:
                        index += 1
            selectors.append(Selector(text, matchers, frozenset(equal)))
    return Names(tuple(selectors), frozenset(labels), kept)


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    end = 0
    while end < len(expression):
        found = _TOKEN.match(expression, end)
        assert found is not None and found.lastgroup is not None, (
            f"{expression!r}: what is {expression[end:]!r}?"
        )
        end = found.end()
        if found.lastgroup != "space":
            tokens.append((found.lastgroup, found[0]))
    return tokens
