"""What every part of the resource is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

P = ParamSpec("P")
R = TypeVar("R")


class Block(BaseModel):
    """A part of the resource: camelCase outside, unknown fields refused, unchangeable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=False,
        protected_namespaces=(),
        defer_build=True,
    )


def memoised(results: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For pure functions of blocks: keep the latest results. Blocks without lists are hashable, as they are frozen,
    which type checkers do not see.
    """
    return cast("Callable[[Callable[P, R]], Callable[P, R]]", lru_cache(maxsize=results))


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings, in one line: the field, and what is wrong with it."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
