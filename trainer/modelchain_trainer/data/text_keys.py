"""What a caption key or class key asks for: a text file (`txt`), or one field of a JSON file (`json:caption`)."""

from __future__ import annotations

import json

from modelchain_trainer.data.sample import Cause, CorruptSampleError, decode_caption

_FIELDS_NAMED = 8


def extension_of(key: str) -> str:
    """The extension of the file that holds what a key asks for."""
    return key.partition(":")[0].lower()


def text_of(
    data: bytes, key: str, *, missing: Cause = Cause.MISSING_CAPTION, bad: Cause = Cause.BAD_CAPTION
) -> str:
    """The text that a key asks for, out of the bytes of its file. Never empty.

    Raises CorruptSampleError where it is missing, or is `bad`: empty or no Unicode.
    """
    extension, _, field = key.partition(":")
    if not field:
        return decode_caption(data, key, bad)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptSampleError(bad, f"the .{extension} is not JSON") from error
    text = _look_up(document, field)
    if text is None:
        names = list(document)[:_FIELDS_NAMED] if isinstance(document, dict) else []
        written = ", ".join(names).encode("utf-8", "backslashreplace").decode()
        message = f"the .{extension} has no text in its field {field} (it has: {written or 'no fields'})"
        raise CorruptSampleError(missing, message)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: "\ud83d" is valid JSON
        message = f"the field {field} of the .{extension} is not Unicode"
        raise CorruptSampleError(bad, message) from error
    if not text.strip():
        raise CorruptSampleError(bad, f"the field {field} of the .{extension} is empty")
    return text


def _look_up(value: object, field: str) -> str | None:
    """The text, or whole number, in that field. `a.b` is field b of the object a, unless there is a field `a.b`."""
    if not isinstance(value, dict):
        return None
    if field not in value and "." in field:
        outer, _, inner = field.partition(".")
        return _look_up(value.get(outer), inner)
    found = value.get(field)
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return found if isinstance(found, str) else None
