"""What the operator writes into its log: for people, and for machines."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from modelchain_operator.kubernetes.key import Key
from modelchain_operator.settings import LogFormat
from modelchain_operator.telemetry import logs

KEY = Key("default", "family")
logger = logging.getLogger("modelchain_operator.reconciler")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The log as it was before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs._TAMED}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    logging.captureWarnings(False)


def lines(log_format: LogFormat = LogFormat.JSON, level: str = "info") -> tuple[io.StringIO, Any]:
    stream = io.StringIO()
    logs.configure(log_format, level, stream)
    return stream, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_names_the_chain_and_the_stage() -> None:
    _, read = lines()
    logger.info("%s: stage %s: started", KEY, "tiny", extra={"stage": "tiny"})
    logger.warning("nothing in particular")
    first, second = read()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("ts"))
    assert first == {
        "level": "info",
        "logger": "modelchain_operator.reconciler",
        "message": "default/family: stage tiny: started",
        "chain": "default/family",
        "stage": "tiny",
    }
    assert set(second) == {"ts", "level", "logger", "message"}


def test_a_chain_is_found_also_as_the_only_argument() -> None:
    _, read = lines()
    logger.info("%s", KEY, extra={"chain": KEY})
    assert read()[0]["chain"] == "default/family"


def test_a_text_line_is_short_and_in_one_piece() -> None:
    stream, _ = lines(LogFormat.TEXT)
    logger.warning("%s: %s", KEY, "a trainer said\n2027-01-15T08:00:00Z ERROR all is lost\x1b[31m")
    written = stream.getvalue().splitlines()
    assert len(written) == 1
    assert re.match(r"\d{4}-\S+Z WARNING reconciler: default/family: a trainer said 2027", written[0])
    assert "\x1b" not in written[0]


# ESC, NUL, line feeds of several kinds (NEL, LINE SEPARATOR), CSI (C1), and what turns the direction of text.
CONTROLS = "\x1b[31m\0\r\n\x85\x9b\u2028\u2029\u202e\u2066"


@pytest.mark.parametrize("log_format", list(LogFormat), ids=str)
def test_neither_a_message_nor_a_traceback_can_forge_a_line_or_move_a_terminals_cursor(
    log_format: LogFormat,
) -> None:
    stream, _ = lines(log_format)
    forged = f"a store said{CONTROLS}2027-01-15T08:00:00Z ERROR all is lost"
    try:
        raise ValueError(forged)
    except ValueError:
        logger.exception("%s: %s", KEY, forged)
    written = stream.getvalue()
    assert "all is lost" in written
    assert all(line.isprintable() for line in written.split("\n"))
    ours = [line for line in written.split("\n") if line and not line.startswith("  ")]
    assert len(ours) == 1


@pytest.mark.parametrize("log_format", list(LogFormat), ids=str)
def test_a_message_of_any_length_is_cut(log_format: LogFormat) -> None:
    stream, _ = lines(log_format)
    logger.error("x" * 1_000_000)
    assert len(stream.getvalue()) < 5000


def test_an_exception_goes_with_its_line() -> None:
    stream, read = lines()
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        logger.exception("it failed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "ZeroDivisionError: by nothing" in read()[0]["exception"]


@pytest.mark.parametrize(
    "name", ["botocore.auth", "httpx2", "kopf.objects", "urllib3.connectionpool", "aiohttp.access"]
)
def test_libraries_that_tell_every_request_are_quiet_even_when_debugging(name: str) -> None:
    """Their finer levels hold signatures and session tokens."""
    stream, _ = lines(level="debug")
    logging.getLogger(name).debug("Authorization: secret")
    logging.getLogger(name).info("GET /")
    logger.debug("ours")
    assert stream.getvalue().count("\n") == 1
    assert "ours" in stream.getvalue()


def test_the_level_holds_and_a_second_configuration_replaces_the_first() -> None:
    first, _ = lines()
    second, read = lines(level="warning")
    logger.info("not this")
    logger.warning("this")
    assert first.getvalue() == ""
    assert [line["message"] for line in read()] == ["this"]
    assert second.getvalue().count("\n") == 1


def test_a_message_that_does_not_fit_its_arguments_is_still_written() -> None:
    _, read = lines()
    arguments = ("one",)
    logger.info("%d of %d", *arguments)
    assert read()[0]["message"] == "%d of %d"
