"""What a plain YAML scalar stands for, by the rules of go-yaml v2, which kubectl uses."""

from __future__ import annotations

import math
import re


class NotJsonError(ValueError):
    """A number that JSON or 64 bits can't hold; `remedy` says what to write."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|([1-9][0-9]*|0))")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """What a plain scalar stands for, by go-yaml v2's rules and after the way through JSON (1.0 is 1)."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _NOT_FINITE.fullmatch(text):
        raise NotJsonError(f"{text} is no number that JSON knows", "write a finite number or remove it")
    digits = text.replace("_", "")
    if (match := _INTEGER.fullmatch(digits)) and text[0] != ".":
        sign, hexadecimal, binary, octal, decimal = match.groups()
        written = hexadecimal or binary or octal or decimal
        base = 16 if hexadecimal else 2 if binary else 8 if octal else 10
        # Python refuses to read thousands of digits; so many are too large whatever the base.
        number = int(sign + written, base) if len(written) < 100 else 2**63
        if not -(2**63) <= number < 2**63:
            raise NotJsonError(f"{_shortened(text)} is too large", "write a number of at most 64 bits")
        return number
    if _FLOAT.fullmatch(digits):
        number = float(digits)
        if math.isinf(number):
            raise NotJsonError(f"{_shortened(text)} is too large", "write a number of at most 64 bits")
        return int(number) if number.is_integer() and abs(number) < 2**63 else number
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else text[:20] + " ..."
