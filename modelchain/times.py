"""Times as they are written down, in artifacts and in Kubernetes: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """A time as Kubernetes writes it: UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_rfc3339(text: str) -> float:
    """Seconds since the epoch of a time that `rfc3339` wrote, or of any RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()
