"""Fields of objects that others write: what is of another type than it should be counts as not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelchain.times import from_rfc3339


def mapping(value: object) -> Mapping[str, Any]:
    """An object's fields; of anything else, none."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    """Those items of a list that have fields."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def string(value: object) -> str:
    """A text; of anything else, the empty one."""
    return value if isinstance(value, str) else ""


def integer(value: object) -> int | None:
    """An integer of 64 bits; None of anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if -(2**63) <= value < 2**63 else None


def timestamp(value: object) -> float | None:
    """Seconds since the epoch of a time as RFC 3339; None of anything else."""
    try:
        return from_rfc3339(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
