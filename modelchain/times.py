"""Times as they are written down, in artifacts and in Kubernetes: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator

# What Kubernetes takes for a date-time and Python reads.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def rfc3339(seconds: float) -> str:
    """A time as Kubernetes writes it: UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_rfc3339(text: str) -> float:
    """Seconds since the epoch of a time that `rfc3339` wrote, or of any RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def _checked(text: str) -> str:
    if not _RFC3339.fullmatch(text):
        raise ValueError("a time as RFC 3339 has it, such as 2027-01-15T08:00:00Z")
    from_rfc3339(text)  # there is that day
    return text


Rfc3339 = Annotated[str, AfterValidator(_checked)]
