import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.artifacts import EvaluationLine, Progress, TrainLine
from modelchain.errors import DiskFullError
from modelchain.store import StoreUnavailable
from modelchain.store.folder import FolderStore
from modelchain_trainer.telemetry.metrics_log import (
    MetricsLog,
    decode_lines,
    encode_files,
    encode_line,
)
from modelchain_trainer.telemetry.recorder import StepRate, Telemetry
from modelchain_trainer.telemetry.tensorboard_events import Scalars, crc32c, encode_events
from tests.clock import Clock
from tests.processes import wait_until

FOLDER = "stages/tiny-0/attempts/uid-1-abc"


def train_line(step: int) -> TrainLine:
    return TrainLine(
        step=step,
        epoch=step / 10,
        samples=step * 8,
        macs=step * 1e6,
        computed_macs=step * 7e5,
        time=step * 0.5,
        wall_time=1.7e9 + step,
        learning_rate=1e-3,
        loss={"total": 2.0 / (step + 1), "task": 1.5 / (step + 1), "distillation": 0.5 / (step + 1)},
        distillation_weight=0.98,
        logit_scale=14.3,
        gradient_norm=1.25,
        samples_per_second=16.0,
        data_wait_fraction=0.25,
    )


def evaluation_line(step: int, **metrics: float) -> EvaluationLine:
    named = {name.replace("_", "/"): value for name, value in metrics.items()}
    return EvaluationLine(step=step, samples=8 * step, macs=1e6, time=0.5, wall_time=1.7e9, metrics=named)


class _Outage(FolderStore):
    """A folder whose server can be switched off."""

    error: Exception | None = None
    refused = 0  # writes while it was

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if self.error is not None:
            self.refused += 1
            raise self.error
        return super().put(key, data, if_absent=if_absent, if_match=if_match)


@pytest.fixture
def store(tmp_path: Path) -> _Outage:
    return _Outage(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry(store: _Outage, clock: Clock) -> Iterator[Telemetry]:
    telemetry = Telemetry(store, FOLDER, steps=100, heartbeat_seconds=0.02, clock=clock)
    yield telemetry
    telemetry.close()


def _progress(store: FolderStore) -> Progress:
    return Progress.model_validate_json(store.get(f"{FOLDER}/progress.json")[0])


def _has_progress(store: FolderStore, step: int) -> bool:
    return store.head(f"{FOLDER}/progress.json") is not None and _progress(store).step == step


def test_progress_shows_step_speed_loss_and_time_left(
    telemetry: Telemetry, store: _Outage, clock: Clock
) -> None:
    telemetry.start()
    telemetry.phase("Training")
    telemetry.step(0)
    clock.now += 2.0
    telemetry.step(10)
    telemetry.train(train_line(10), {"BadImage": 2})
    telemetry.evaluation(evaluation_line(10, digits_top1=0.5))
    telemetry.checkpoint(10)
    wait_until(lambda: _has_progress(store, 10) and _progress(store).checkpoint_step == 10, "it is written")
    progress = _progress(store)
    assert (progress.phase, progress.steps, progress.samples_per_second) == ("Training", 100, 16.0)
    assert progress.loss["total"] == train_line(10).loss["total"]
    assert progress.metrics == {"digits/top1": 0.5}
    assert progress.corrupt_samples == {"BadImage": 2}
    assert progress.eta_seconds == 90 / (10 / 2.0)


def test_the_rate_of_steps_is_known_however_often_they_are_interrupted() -> None:
    rate, now, known = StepRate(), 0.0, None
    for begin in range(0, 60, 3):  # three steps of 0.1 s, then an evaluation of 5 s
        for step in range(begin + 1, begin + 4):
            now += 0.1
            known = rate.step(step, now)
        rate.pause()
        now += 5.0
    assert known == pytest.approx(10.0)


def test_the_rate_of_steps_follows_a_change() -> None:
    rate = StepRate()
    slow = [rate.step(step, 0.5 * step) for step in range(20)]
    assert (slow[0], slow[-1]) == (None, pytest.approx(2.0))
    fast = [rate.step(20 + step, 9.6 + 0.1 * step) for step in range(400)]
    assert fast[-1] == pytest.approx(10.0, rel=0.01)


def test_an_attempt_without_progress_falls_silent(telemetry: Telemetry, store: _Outage) -> None:
    telemetry.start()
    telemetry.step(1)
    wait_until(lambda: _has_progress(store, 1), "step 1 is written")
    before = store.get(f"{FOLDER}/progress.json")
    time.sleep(0.3)
    assert store.get(f"{FOLDER}/progress.json") == before
    telemetry.advance()
    written = Progress.model_validate_json(before[0])
    wait_until(lambda: _progress(store).sequence > written.sequence, "it is written again")


def test_progress_goes_on_after_an_outage_of_the_store(telemetry: Telemetry, store: _Outage) -> None:
    telemetry.start()
    telemetry.step(1)
    wait_until(lambda: _has_progress(store, 1), "step 1 is written")
    store.error = StoreUnavailable("http://store: refused")
    telemetry.step(2)
    wait_until(lambda: store.refused > 1, "it was tried again")
    telemetry.check()
    store.error = None
    wait_until(lambda: _has_progress(store, 2), "step 2 is written")


@pytest.mark.parametrize("error", [DiskFullError("/store: no space left"), KeyError("ETag")])
def test_what_time_does_not_mend_reaches_the_training(
    telemetry: Telemetry, store: _Outage, error: Exception
) -> None:
    store.error = error
    telemetry.start()

    def failed() -> bool:
        try:
            telemetry.check()
        except type(error):
            return True
        return False

    wait_until(failed, "it is told")


def test_metrics_are_in_the_store_after_a_flush_and_again_after_a_failed_one(
    telemetry: Telemetry, store: _Outage
) -> None:
    telemetry.train(train_line(1), {})
    store.error = StoreUnavailable("http://store: refused")
    with pytest.raises(StoreUnavailable):
        telemetry.flush()
    store.error = None
    telemetry.flush()
    names = {info.key.rpartition("/")[2] for info in store.list(FOLDER)}
    assert names == {"metrics-0000000000.jsonl", "events.out.tfevents.0000000000.modelchain"}


def test_closing_writes_what_is_left(store: _Outage) -> None:
    telemetry = Telemetry(store, FOLDER, steps=100, heartbeat_seconds=60)
    telemetry.start()
    telemetry.train(train_line(1), {})
    telemetry.phase("Complete")
    telemetry.close()
    assert _progress(store).phase == "Complete"
    assert store.head(f"{FOLDER}/metrics-0000000000.jsonl") is not None


def test_without_a_store_nothing_happens() -> None:
    telemetry = Telemetry(None, "", steps=3)
    telemetry.start()
    telemetry.step(1)
    telemetry.train(train_line(1), {})
    telemetry.flush()
    telemetry.close()


def test_lines_are_the_documented_json() -> None:
    line = json.loads(encode_line(train_line(3)))
    assert line.pop("wallTime") == 1.7e9 + 3
    assert set(line) == {
        "kind", "step", "epoch", "samples", "macs", "computedMacs", "time", "learningRate", "loss",
        "distillationWeight", "logitScale", "gradientNorm", "samplesPerSecond", "dataWaitFraction",
    }  # fmt: skip
    assert set(line["loss"]) == {"total", "task", "distillation"}
    evaluation = json.loads(encode_line(evaluation_line(3, digits_top1=0.93)))
    assert (evaluation["kind"], evaluation["metrics"]) == ("evaluation", {"digits/top1": 0.93})


def test_segments_begin_at_checkpoints_and_only_the_last_one_changes() -> None:
    log = MetricsLog()
    log.append(train_line(5))
    log.begin_segment(5)
    assert set(encode_files(log.take_changed())) == {
        "metrics-0000000000.jsonl",
        "events.out.tfevents.0000000000.modelchain",
    }
    log.append(train_line(10))
    assert set(encode_files(log.take_changed())) == {
        "metrics-0000000005.jsonl",
        "events.out.tfevents.0000000005.modelchain",
    }
    assert log.take_changed() == {}


def test_a_resumed_log_has_the_history_up_to_its_step_and_no_more() -> None:
    first = MetricsLog()
    for step in (5, 10, 15):
        first.append(train_line(step))
        first.append(evaluation_line(step, digits_top1=step / 100))
        first.begin_segment(step)
    history = [
        line
        for name, data in first.files().items()
        if name.startswith("metrics")
        for line in decode_lines(data, 10)
    ]
    second = MetricsLog(history, 10)
    assert second.evaluated_steps() == {5, 10}
    assert second.metrics() == {"digits/top1": 0.1}
    second.append(train_line(15))
    second.append(evaluation_line(15, digits_top1=0.15))

    def lines(log: MetricsLog) -> bytes:
        return b"".join(data for name, data in sorted(log.files().items()) if name.startswith("metrics"))

    assert lines(second) == lines(first)


def test_a_line_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        decode_lines(b'{"step": 3}\n', 10)


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_stock_tensorboard_reads_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    path = tmp_path / "events.out.tfevents.0000000000.modelchain"
    path.write_bytes(
        encode_events([Scalars(3, 1.7e9, {"loss/total": 0.5}), Scalars(4, 1.7e9 + 1, {"loss/total": 0.25})])
    )
    events = list(EventFileLoader(str(path)).Load())
    assert events[0].file_version == "brain.Event:2"
    values = [(e.step, v.tag, v.tensor.float_val[0]) for e in events[1:] for v in e.summary.value]
    assert values == [(3, "loss/total", 0.5), (4, "loss/total", 0.25)]
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length < 64
