"""Which bytes an answer to a ranged read holds (RFC 9110, section 14.4)."""

from __future__ import annotations

import re
from typing import NamedTuple

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class ContentRange(NamedTuple):
    """Bytes [start, end) of an object."""

    start: int
    end: int
    size: int | None  # of the whole object; None where the server does not know it

    def answers(self, start: int, length: int | None) -> bool:
        """Whether these are the bytes from `start`: `length` of them, or what the object has."""
        whole = self.end if self.size is None else self.size
        return self.start == start and self.end >= (whole if length is None else min(start + length, whole))


def parse_content_range(said: str) -> ContentRange | None:
    """What a Content-Range header says; None where it is none of one range of bytes."""
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None:
        return None
    first, last, size = found.groups()
    return ContentRange(int(first), int(last) + 1, None if size == "*" else int(size))
