"""The words of a failure reach a person whatever is in them."""

from __future__ import annotations

from pathlib import Path

from modelchain.errors import ExitCode, UserDataError
from modelchain_trainer.ending import RankReport, failure_of
from modelchain_trainer.environment import SCRATCH_VARIABLE, ProcessEnvironment


def test_a_message_with_a_name_that_is_not_utf_8_keeps_its_exit_code(tmp_path: Path) -> None:
    environment = ProcessEnvironment.read({SCRATCH_VARIABLE: str(tmp_path)})
    error = UserDataError("/data/caf\udce9/train.tar: is damaged")
    failure, foreseen = failure_of(error, environment, None)
    RankReport(failure=failure).write(tmp_path / "report.json")
    report = RankReport.read(tmp_path / "report.json")
    assert foreseen
    assert report is not None
    assert report.failure.exit_code == ExitCode.DATA
    assert report.failure.message == r"/data/caf\udce9/train.tar: is damaged"
