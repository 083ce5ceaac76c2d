"""Text from elsewhere (a trainer, a store, a cluster), made fit for a line of a log, a status or an Event."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/\s'\"<>]*@")


def without_controls(text: str) -> str:
    """`text` with a blank for each character that is not printed: those that move a cursor, break a line or turn the
    direction of what follows (Unicode's categories C, Zl and Zp), and unusual blanks.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def one_line(text: str) -> str:
    """`text` on one line, with single blanks, without control characters."""
    return " ".join(without_controls(text).split())


def without_users(text: str) -> str:
    """`text` without the users and passwords of the URLs in it: libraries quote the proxy that they were given."""
    return _USER.sub("", text) if "://" in text else text
