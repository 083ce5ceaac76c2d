"""The operator's log: lines for people, or a JSON object a line; no text from elsewhere can forge a line, and no URL
shows a user or a password.

JSON lines hold `ts` (RFC 3339, UTC), `level`, `logger`, `message`, and where it is known `chain` (namespace/name)
and `stage`: from `extra=`, or from a `Key` among the arguments of the message.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

from modelchain.text import one_line, without_controls, without_users
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.settings import LogFormat

# Never more than this, whatever level is asked for: at finer ones they tell every request, with its signature
# and its tokens, or every object they see.
_TAMED = {
    "aiohttp": logging.WARNING,
    "asyncio": logging.WARNING,
    "boto3": logging.WARNING,
    "botocore": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpcore2": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "kopf": logging.WARNING,
    "s3transfer": logging.WARNING,
    "urllib3": logging.ERROR,  # warns of every connection that it opens again
}
MAX_MESSAGE = 4096


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr) from now on, in this format, from this level (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, least in _TAMED.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """`2026-11-24T02:03:04Z INFO reconciler: message`; a traceback below it, where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("modelchain_operator.")
        text = f"{_time(record)} {record.levelname} {name}: {_message(record)}"
        trace = _traceback(self, record)
        return f"{text}\n{trace}" if trace else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        chain = getattr(record, "chain", None) or _key_among(record.args)
        if chain is not None:
            line["chain"] = str(chain)
        stage = getattr(record, "stage", None)
        if stage is not None:
            line["stage"] = str(stage)
        trace = _traceback(self, record)
        if trace:
            line["exception"] = trace
        return json.dumps(line, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    """On one line: text from elsewhere (a trainer's message, a server's answer) must not look like a line of
    ours.
    """
    try:
        text = record.getMessage()
    except (TypeError, ValueError):
        text = str(record.msg)
    line = one_line(without_users(text))
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 3] + "..."


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Its lines, each below the line of ours by two blanks: an error may quote text from elsewhere."""
    if not (record.exc_info and record.exc_info[0]):
        return ""
    lines = formatter.formatException(record.exc_info).splitlines()
    return "\n".join(f"  {without_controls(without_users(line))}" for line in lines)


def _key_among(arguments: object) -> Key | None:
    if isinstance(arguments, tuple) and not isinstance(arguments, Key):
        return next((argument for argument in arguments if isinstance(argument, Key)), None)
    return None
