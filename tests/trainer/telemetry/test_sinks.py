"""Sinks of metrics: a thread serves them, one that fails is left out, and Weights & Biases gets every line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import MetricsLine
from modelchain.errors import ConfigurationError
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore
from modelchain_trainer.telemetry.metrics_log import MetricsLog
from modelchain_trainer.telemetry.recorder import Telemetry
from modelchain_trainer.telemetry.sinks import SINKS_VARIABLE, MetricSink, MetricSinks, find_sinks
from tests.trainer.stages import smallest_stage
from tests.trainer.telemetry.test_recorder import FOLDER, evaluation_line, train_line

BLOCK, FULL, LAST = 32768, 1, 4  # bytes, and kinds of fragments, of the files of `wandb sync`
STAGE = ResolvedStage.model_validate(smallest_stage(store={"uri": "s3://private-bucket/chains"}))


class Listed:
    """A sink that keeps what it is told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.history: Sequence[MetricsLine] = ()
        self.lines: list[MetricsLine] = []
        self.closed_by: str | None = None
        self._fails_at = fails_at

    def resume(self, history: Sequence[MetricsLine]) -> None:
        self.history = history

    def write(self, line: MetricsLine) -> None:
        if line.step == self._fails_at:
            raise ConnectionError("the service is away")
        self.lines.append(line)

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


def test_all_lines_of_an_attempt_reach_its_sinks_after_those_of_earlier_ones(tmp_path: Path) -> None:
    sink = Listed()
    telemetry = Telemetry(FolderStore(tmp_path), FOLDER, steps=9, sinks=MetricSinks({"listed": lambda: sink}))
    telemetry.start()
    telemetry.resume(MetricsLog([train_line(1), evaluation_line(2, digits_top1=0.5)], 2), 2)
    telemetry.train(train_line(3), {})
    telemetry.begin_segment(3)
    telemetry.evaluation(evaluation_line(4, digits_top1=0.5))
    telemetry.close()
    assert list(sink.history) == [train_line(1), evaluation_line(2, digits_top1=0.5)]
    assert sink.lines == [train_line(3), evaluation_line(4, digits_top1=0.5)]
    assert sink.closed_by == "metric sinks", "no service holds up a step"


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def absent() -> MetricSink:
        raise OSError("no route")

    broken, whole = Listed(fails_at=2), Listed()
    sinks = MetricSinks({"absent": absent, "broken": lambda: broken, "whole": lambda: whole})
    for step in range(1, 5):
        sinks.write(train_line(step))
    sinks.close()
    assert [line.step for line in whole.lines] == [1, 2, 3, 4]
    assert [line.step for line in broken.lines] == [1]
    assert broken.closed_by is None
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "metrics go to absent no more: no route",
        "metrics go to broken no more: the service is away",
    ]


def test_what_can_not_be_had_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"no sink is called 'wandbb'; there are wandb"):
        find_sinks(STAGE, tmp_path, {SINKS_VARIABLE: "wandbb"})
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match="needs the package wandb; install it"):
        find_sinks(STAGE, tmp_path, {SINKS_VARIABLE: "wandb"})
    find_sinks(STAGE, tmp_path, {}).close()


@pytest.mark.slow
def test_weights_and_biases_has_every_line_of_all_attempts_at_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline: what `wandb sync` would send."""
    environment = {SINKS_VARIABLE: "wandb", "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for lines in (
        [train_line(1), evaluation_line(2, digits_top1=0.5)],
        [evaluation_line(2, digits_top1=0.5), train_line(3)],
    ):
        sinks = find_sinks(STAGE, tmp_path / "scratch", environment)
        for line in lines:
            sinks.write(line)
        sinks.close()

    found = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert {path.name for path in found} == {f"run-{STAGE.digest[:16]}.wandb"}
    records = [record for path in found for record in _records(path)]
    history = [
        {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [line["step"] for line in history] == ["1", "2", "2", "3"]
    assert float(history[0]["loss/total"]) == train_line(1).loss["total"]
    assert float(history[1]["digits/top1"]) == 0.5
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.project, run.run_group, run.display_name) for run in runs} == {
        ("modelchain", "default/digits", "digits/tiny")
    }
    assert b"private-bucket" not in b"".join(path.read_bytes() for path in found)


def test_an_offline_run_that_would_be_lost_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sinks = find_sinks(STAGE, tmp_path, {SINKS_VARIABLE: "wandb", "WANDB_MODE": "offline"})
    sinks.write(train_line(1))
    sinks.close()
    assert "WANDB_DIR" in caplog.text


def _records(path: Path) -> list[Any]:
    """The records of a .wandb file: after 7 bytes of its own a log as LevelDB's, in blocks of 32 KiB.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto import wandb_internal_pb2

    content, position, whole, found = path.read_bytes(), 7, b"", []
    assert content.startswith(b":W&B")
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found
