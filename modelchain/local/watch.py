"""Reads the store in a thread of its own, so that a slow or absent one never holds up the runner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from modelchain.clock import steady
from modelchain.errors import ModelChainError, UserDataError
from modelchain.measuring import read_measurement
from modelchain.reconcile.observation import StageFacts, StoreProblem, Unmeasurable
from modelchain.resolved import ResolvedChain
from modelchain.stage_probe import StageProbe, StoreSnapshot, problem_of, unresponsive_message
from modelchain.status import Measurement
from modelchain.store import Store, StoreUnavailable

log = logging.getLogger(__name__)

LOCAL_SECONDS = 0.5  # between reads of a folder
REMOTE_SECONDS = 2.0  # of a store that charges for each request
RARE_SECONDS = 15.0  # of a stage that can't start yet
UNRESPONSIVE_SECONDS = 6.0  # a read that takes longer means that the store is unresponsive


@dataclass
class _StageWatch:
    """State of one stage between reads."""

    probe: StageProbe
    facts: StageFacts | None = None
    probed_at: float = 0.0  # monotonic: when that read began
    read_at: float = 0.0  # seconds since the epoch: likewise
    stale_before: float = 0.0  # monotonic: older facts are stale
    attempt: int | None = None  # the one that runs


class StoreWatch:
    """Keeps reading the stages that are not finished, and writes the chain's record when there is a new
    one.
    """

    def __init__(self, store: Store, chain: ResolvedChain) -> None:
        self._store = store
        self._chain = chain
        self._watches = {
            stage.name: _StageWatch(StageProbe(store, chain.chain, stage.folder, stage.digest))
            for stage in chain.all_stages
        }
        self._interval = REMOTE_SECONDS if store.uri.startswith("s3://") else LOCAL_SECONDS
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._finished: frozenset[str] = frozenset()
        self._not_yet: frozenset[str] = frozenset()
        self._readable_since = steady()
        self._busy_since: float | None = None  # monotonic: a read is under way since
        self._was_unresponsive = False
        self._record: tuple[str, bytes] | None = None
        self._measuring = False
        self._measurement: Measurement | Unmeasurable | None = None
        self._error: Exception | None = None  # ended the thread
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def read_all(self) -> None:
        """Read every stage once, in this thread. Raises what the store raises."""
        for watch in self._watches.values():
            self._probe(watch, raising=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, *, timeout_seconds: float) -> None:
        """Write the last record and end; a store that does not answer is not waited for longer."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def follow(self, running: Mapping[str, int], *, finished: Set[str], not_yet: Set[str]) -> None:
        """Which attempts run now, which stages need not be read any more, and which only rarely."""
        with self._lock:
            self._finished, self._not_yet = frozenset(finished), frozenset(not_yet)
            for name, watch in self._watches.items():
                watch.attempt = running.get(name)

    def refresh(self, stage: str) -> None:
        """Something has happened to the stage: what is known of it is stale."""
        with self._lock:
            self._watches[stage].stale_before = time.monotonic()
        self._wake.set()

    def measure(self) -> None:
        """Read the evaluations of the models trained alone, which are all complete; `snapshot` says what they show."""
        with self._lock:
            self._measuring = self._measurement is None
        self._wake.set()

    def write(self, key: str, data: bytes) -> None:
        """Write the record when the store allows; only the newest is written."""
        with self._lock:
            self._record = (key, data)
        self._wake.set()

    def snapshot(self) -> StoreSnapshot:
        """What is known now. Raises the error that has ended the thread, if one has."""
        with self._lock:
            if self._error is not None:
                raise self._error
            unresponsive = (
                self._busy_since is not None and time.monotonic() - self._busy_since > UNRESPONSIVE_SECONDS
            )
            self._was_unresponsive = self._was_unresponsive or unresponsive
            facts = {
                name: replace(
                    watch.facts, problem=StoreProblem.UNAVAILABLE, message=unresponsive_message(self._store)
                )
                if unresponsive and watch.facts.problem is None
                else watch.facts
                for name, watch in self._watches.items()
                if watch.facts is not None and watch.probed_at >= watch.stale_before
            }
            changed = {
                (name, attempt): at
                for name, watch in self._watches.items()
                for attempt, at in watch.probe.progress_changed_at.copy().items()
            }
            read_at = {name: watch.read_at for name, watch in self._watches.items()}
            return StoreSnapshot(facts, self._readable_since, changed, self._measurement, read_at)

    def _run(self) -> None:
        try:
            self._read_until_closed()
        except Exception as error:  # noqa: BLE001 - raised by `snapshot`, in the thread of the runner
            with self._lock:
                self._error = error

    def _read_until_closed(self) -> None:
        while True:
            self._wake.clear()
            self._write_record()
            if self._closing:
                return
            with self._lock:
                due = [watch for name, watch in self._watches.items() if self._is_due(name, watch)]
            for watch in due:
                if self._closing:
                    break
                self._probe(watch, raising=False)
            if self._measuring and not self._closing:
                self._measure()
            if not self._closing:
                self._wake.wait(self._interval)

    def _is_due(self, name: str, watch: _StageWatch) -> bool:
        if watch.facts is None or watch.probed_at < watch.stale_before:
            return True
        if name in self._not_yet:
            return time.monotonic() - watch.probed_at > RARE_SECONDS
        return name not in self._finished

    def _probe(self, watch: _StageWatch, *, raising: bool) -> None:
        began, read_at = time.monotonic(), steady()
        with self._lock:
            self._busy_since = began
            watch.probe.follow(watch.attempt)
        facts = watch.facts
        whole = facts is None or facts.problem is not None or watch.probed_at < watch.stale_before
        try:
            facts = watch.probe.read(whole=whole)
        except Exception as error:
            if raising and not isinstance(error, UserDataError):
                raise
            if not isinstance(error, ModelChainError):
                log.exception("%s: reading it has failed", self._store.uri)
            facts = problem_of(error, self._store, quoting=True)
        finally:
            with self._lock:
                self._busy_since = None
        unavailable = facts.problem is StoreProblem.UNAVAILABLE
        with self._lock:
            if not unavailable and self._was_unresponsive:
                self._readable_since = steady()
            self._was_unresponsive = unavailable
            watch.facts, watch.probed_at, watch.read_at = facts, began, read_at

    def _measure(self) -> None:
        try:
            found = read_measurement(self._store, self._chain)
        except StoreUnavailable:
            return  # the next round tries again
        except ModelChainError as error:
            found = Unmeasurable(str(error))
        except Exception as error:
            log.exception("the evaluations of the models trained alone can't be read")
            found = Unmeasurable(f"reading their evaluations has failed: unforeseen {type(error).__name__}")
        with self._lock:
            self._measuring, self._measurement = False, found

    def _write_record(self) -> None:
        with self._lock:
            record = self._record
        if record is None:
            return
        try:
            self._store.put(*record)
        except ModelChainError:
            return  # still the newest: the next round tries again
        with self._lock:
            if self._record is record:
                self._record = None
