"""What an attempt tells the world while it runs: progress.json, metrics-<n>.jsonl, TensorBoard events.

A thread writes them, so that a slow or absent store never holds up a step. progress.json is written only when
there *is* progress: a step, a phase, a shard indexed, a batch evaluated, a file uploaded. So an attempt that
hangs stops updating it, and observers notice. Only rank 0 has a telemetry that writes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from modelchain.artifacts import PROGRESS, EvaluationLine, MetricsLine, PassedOver, Progress, TrainLine
from modelchain.store import Store, StoreUnavailable
from modelchain_trainer.telemetry.metrics_log import MetricsLog, encode_files
from modelchain_trainer.telemetry.sinks import MetricSinks

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
REMOTE_HEARTBEAT_SECONDS = 5.0  # for stores that charge for each request
METRICS_SECONDS = 10.0
CLOSE_SECONDS = 10.0
RATE_SECONDS = 1.0  # of steps, before their rate is taken


class StepRate:
    """Steps a second, smoothed, while steps are taken: what lies between them (evaluations) does not count, however
    often it comes.
    """

    def __init__(self) -> None:
        self._rate: float | None = None
        self._last: tuple[int, float] | None = None  # step, when it was done
        self._steps = 0
        self._seconds = 0.0

    def step(self, step: int, now: float) -> float | None:
        """The rate once `step` steps are done, at `now` seconds; None: it is not known yet."""
        if self._last is not None:
            self._steps += step - self._last[0]
            self._seconds += now - self._last[1]
        self._last = (step, now)
        if self._seconds >= RATE_SECONDS:
            rate = self._steps / self._seconds
            self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate
            self._steps, self._seconds = 0, 0.0
        return self._rate

    def pause(self) -> None:
        """What comes until the next step is not a step."""
        self._last = None


class Telemetry:
    """What an attempt reports: progress, metrics, failures. Methods may be called from any thread; only `flush` waits
    for the store.
    """

    def __init__(
        self,
        store: Store | None,
        folder: str,
        *,
        steps: int,
        heartbeat_seconds: float | None = None,
        sinks: MetricSinks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is written before `start`, and nothing at all without a store.

        `folder` is the attempt's; `steps` the stage's; `sinks` get every line of metrics too.
        """
        remote = store is not None and store.uri.startswith("s3://")
        self._store = store
        self._sinks = sinks or MetricSinks({})
        self._folder = folder
        self._steps = steps
        self._clock = clock
        self._seconds = heartbeat_seconds or (REMOTE_HEARTBEAT_SECONDS if remote else HEARTBEAT_SECONDS)
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # one writer of metrics at a time, so that an older file never wins
        self._progress = Progress(phase="Starting", step=0, steps=steps, sequence=0, updated_at=_now())
        self._written_sequence = -1
        self._log = MetricsLog()
        self._rate = StepRate()
        self._error: Exception | None = None
        self._silenced = False  # the store is away, and that has been said
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        if self._store is not None:
            self._thread.start()

    def check(self) -> None:
        """Raises what keeps the thread from writing, if it does not pass (forbidden, disk full, unforeseen)."""
        if self._error is not None:
            raise self._error

    def resume(self, log: MetricsLog, step: int) -> None:
        """Go on from what an earlier attempt has measured."""
        with self._lock:
            self._log = log
        self._sinks.resume(log.lines())
        self._update(step=step, checkpoint_step=step, metrics=log.metrics())

    def roll_back(self, step: int) -> None:
        """Take back what was measured after `step`, to which the training returns."""
        with self._lock:
            self._log.roll_back(step)
        self._update(step=step, checkpoint_step=step or None, eta_seconds=None, metrics=self.metrics())

    def passed_over(self, stretches: tuple[PassedOver, ...]) -> None:
        """Data that the stage does without."""
        if stretches:
            self._update(passed_over=stretches)

    def evaluated_steps(self) -> frozenset[int]:
        """Steps whose evaluation is in the metrics already."""
        with self._lock:
            return self._log.evaluated_steps()

    def progress(self) -> Progress:
        """How far it is, as progress.json says it or will."""
        with self._lock:
            return self._progress

    def metrics(self) -> dict[str, float]:
        """The latest figure of each metric."""
        with self._lock:
            return self._log.metrics()

    def files(self) -> dict[str, bytes]:
        """All files of metrics, whether they are in the store yet or not."""
        with self._lock:
            return self._log.files()

    def phase(self, name: str) -> None:
        """Enter a phase (artifacts.Progress lists them)."""
        if name != self._progress.phase:
            self._rate.pause()
            self._update(phase=name)

    def advance(self) -> None:
        """Something within the phase went on."""
        self._update()

    def step(self, step: int) -> None:
        """`step` steps are done."""
        rate = self._rate.step(step, self._clock())
        eta = (self._steps - step) / rate if rate else None
        self._update(step=step, eta_seconds=eta)

    def train(self, line: TrainLine, corrupt: Mapping[str, int]) -> None:
        """A line of metrics."""
        self._append(line)
        self._update(
            samples_per_second=line.samples_per_second,
            data_wait_fraction=line.data_wait_fraction,
            loss=dict(line.loss),
            corrupt_samples=dict(corrupt),
        )

    def evaluation(self, line: EvaluationLine) -> None:
        """Results of an evaluation."""
        self._append(line)
        self._update(metrics=self.metrics())

    def begin_segment(self, step: int) -> None:
        """A checkpoint is taken here: the lines up to it go into files that do not change any more."""
        with self._lock:
            self._log.begin_segment(step)

    def checkpoint(self, step: int) -> None:
        """A checkpoint is whole in the store."""
        self._update(checkpoint_step=step)

    def flush(self) -> None:
        """Write all metrics that are not in the store yet. Raises StoreError."""
        if self._store is None:
            return
        with self._writing:
            with self._lock:
                unwritten = self._log.take_changed()
            try:
                for step, lines in sorted(unwritten.items()):
                    for name, data in encode_files({step: lines}).items():
                        self._store.put(f"{self._folder}/{name}", data)
                    del unwritten[step]
            finally:
                with self._lock:
                    self._log.put_back(unwritten)

    def close(self) -> None:
        """Write what is left, as far as the store allows within a few seconds."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        self._sinks.close()

    def _append(self, line: MetricsLine) -> None:
        with self._lock:
            self._log.append(line)
        self._sinks.write(line)

    def _update(self, **changes: object) -> None:
        with self._lock:
            self._progress = self._progress.model_copy(
                update={**changes, "sequence": self._progress.sequence + 1, "updated_at": _now()}
            )

    def _run(self) -> None:
        next_metrics = time.monotonic() + METRICS_SECONDS
        while True:
            self._attempt(self._write_progress)
            closing = self._closing.wait(self._seconds)
            if closing or time.monotonic() >= next_metrics:
                self._attempt(self.flush)
                next_metrics = time.monotonic() + METRICS_SECONDS
            if closing:
                self._attempt(self._write_progress)
                return

    def _write_progress(self) -> None:
        with self._lock:
            progress = self._progress
        if self._store is None or progress.sequence == self._written_sequence:
            return
        data = progress.model_dump_json(by_alias=True, exclude_none=True).encode()
        self._store.put(f"{self._folder}/{PROGRESS}", data)
        self._written_sequence = progress.sequence

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except StoreUnavailable as error:
            if not self._silenced:
                logger.warning(
                    "%s; the training goes on, and progress is written once the store is back", error
                )
            self._silenced = True
        except Exception as error:  # noqa: BLE001 - raised in the training's thread, by `check`
            self._error = self._error or error
        else:
            self._silenced = False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
