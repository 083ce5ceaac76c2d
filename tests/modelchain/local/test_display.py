"""What a run shows: JSON lines, plain lines, and the live table."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from modelchain.local.display import JsonDisplay, LineDisplay, SteadyDisplay
from modelchain.local.events import AttemptFailed, Note, ProgressMade, RunEnded, StageResult, changes
from modelchain.local.live import LiveDisplay, table_of
from modelchain.reconcile.observation import StageFacts
from modelchain.status import ChainStatus, StagePhase
from tests.modelchain.reconcile.chains import Play, chain, job, manifest, progress

TIME = "2027-01-15T08:00:00Z"


def running(step: int = 4) -> ChainStatus:
    """The second of three stages runs."""
    play = Play(chain())
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    figures = progress(
        step,
        samples_per_second=1234.5,
        loss={"total": 2.5, "task": 2.0, "distillation": 0.5},
        metrics={"digits/top1": 0.25},
        eta_seconds=90.0,
    )
    play.look(job(play.stage("small")), small=StageFacts(progress=figures, progress_attempt=1))
    assert play.status is not None
    return play.status


def at(step: int, activity: str = "Training") -> ProgressMade:
    """Progress of the second stage."""
    return ProgressMade(
        time=TIME,
        stage="small",
        attempt=1,
        activity=activity,
        step=step,
        steps=16,
        samples_per_second=1234.5,
        eta_seconds=90,
        loss={"total": 2.5, "task": 2.0, "distillation": 0.5},
        metrics={"digits/top1": 0.25},
    )


def ended(phase: str = "Complete") -> RunEnded:
    """The end of a run."""
    stage = StageResult(
        name="tiny",
        phase=StagePhase.COMPLETE,
        step=16,
        steps=16,
        attempt=1,
        metrics={"digits/top1": 0.75},
        weights_uri="s3://b/x",
    )
    return RunEnded(
        time=TIME,
        chain="default/family",
        phase=phase,
        exit_code=0,
        message="it is over",
        stages=(stage,),
        cost_ratio_planned=0.282,
        speedup_planned=5.57,
    )


def test_json_lines_say_what_has_changed_and_nothing_twice() -> None:
    out = io.StringIO()
    display = JsonDisplay(out)
    before = None
    for status in (running(4), running(4), running(5)):
        for event in changes(before, status, TIME):
            display.tell(event)
        before = status
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["stage"]) for line in lines] == [
        ("stage", "tiny"),
        ("stage", "small"),
        ("progress", "small"),
        ("stage", "base"),
        ("progress", "small"),
    ]
    assert lines[2] == {
        "event": "progress",
        "time": TIME,
        "stage": "small",
        "attempt": 1,
        "activity": "Training",
        "step": 4,
        "steps": 16,
        "samplesPerSecond": 1234.5,
        "etaSeconds": 90,
        "loss": {"total": 2.5, "task": 2.0, "distillation": 0.5},
        "metrics": {"digits/top1": 0.25},
    }


def test_a_log_gets_progress_every_ten_seconds_and_every_change_of_activity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    display = LineDisplay(chain(), out)
    clock = [100.0]
    monkeypatch.setattr("modelchain.local.display.time.monotonic", lambda: clock[0])
    for second, event in (
        (0, at(1)),
        (1, at(2)),
        (9, at(3)),
        (10, at(4)),
        (11, at(4, "Evaluating")),
        (12, at(5)),
    ):
        clock[0] = 100.0 + second
        display.tell(event)
    lines = [line.partition(" ")[2] for line in out.getvalue().splitlines()]
    assert [line.partition("step ")[2].partition("/")[0] for line in lines] == ["1", "4", "4", "5"]
    assert lines[0] == (
        "small  step 1/16, 1,234 samples/s, loss 2.500 (task 2.000, distillation 0.500), top-1 25.0%, 1m to go"
    )
    assert lines[2] == "small  Evaluating, step 4/16"


def test_a_failed_attempt_shows_the_end_of_its_log() -> None:
    out = io.StringIO()
    LineDisplay(chain(), out).tell(
        AttemptFailed(
            time=TIME,
            stage="small",
            attempt=2,
            counted=True,
            exit_code=1,
            reason="Unknown",
            message="no word",
            log="/logs/small-2.log",
            tail=("one", "two"),
        )
    )
    text = out.getvalue()
    assert "attempt 2 ended: Unknown: no word" in text
    assert "last lines of /logs/small-2.log" in text
    assert "    | two" in text


def test_the_end_names_metrics_weights_and_cost() -> None:
    out = io.StringIO()
    LineDisplay(chain(), out).tell(ended())
    text = out.getvalue()
    assert "digits/top1 0.75" in text
    assert "s3://b/x" in text
    assert "28.2%" in text
    assert "5.57x" in text


def test_the_cost_is_not_boasted_of_before_it_was_paid() -> None:
    out = io.StringIO()
    LineDisplay(chain(), out).tell(ended("Failed"))
    assert "5.57x" not in out.getvalue()


def test_the_table_has_a_row_a_stage_with_its_figures() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=False, record=True)
    console.print(table_of(chain(), running(), width=140))
    tiny, small, base = (
        line
        for line in console.export_text().splitlines()
        if line.strip().startswith(("tiny", "small", "base"))
    )
    assert "Cached" in tiny
    assert "75.0%" in tiny
    for figure in ("Running", "4/16", "1,234", "2.500", "2.000", "0.500", "25.0%", "1m"):
        assert figure in small
    assert "Pending" in base


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_the_terminal_and_keeps_what_matters(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table_of(chain(), running(), width=width))
    lines = console.export_text().splitlines()
    small = next(line for line in lines if line.strip().startswith("small"))
    assert all(len(line) <= width and "…" not in line for line in lines)
    assert all(figure in small for figure in ("Running", "4/16", "1,234", "2.500", "25.0%", "1m"))


def test_the_live_display_prints_notes_above_its_table_and_gives_the_terminal_back() -> None:
    stream = io.StringIO()
    display = LiveDisplay(chain(), Console(file=stream, width=120, force_terminal=True))
    display.show(running())
    display.tell(Note(time=TIME, message="somebody else holds the chain"))
    display.tell(ended())
    display.close()
    text = stream.getvalue()
    assert "somebody else holds the chain" in text
    assert "it is over" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden and is shown again


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError(text)

    monkeypatch.setattr("modelchain.local.display.sys.stdout", open("/dev/null", "w"))  # noqa: PTH123, SIM115
    display = SteadyDisplay(JsonDisplay(Gone()))
    display.tell(Note(time=TIME, message="hello"))
    display.tell(Note(time=TIME, message="still there?"))
    display.show(running())
    display.close()
