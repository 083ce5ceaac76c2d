"""Rank 0 alone downloads and grows what a stage starts from, however long it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelchain.resolved import ResolvedStage
from tests.trainer import held_first
from tests.trainer.results import manifest_of


def test_the_others_wait_for_rank_0_for_longer_than_a_collective_does(
    stage_in: Callable[..., ResolvedStage], fork_server: Any, tmp_path: Path
) -> None:
    stage, let_go = stage_in(tmp_path / "store", "held", epochs=1), tmp_path / "let-go"
    first, second = fork_server.start(
        stage,
        tmp_path / "run",
        ranks=2,
        prepare=held_first.__name__,
        environment={held_first.LET_GO: str(let_go)},
    )
    try:
        assert second.wait() == 0, second.log.read_text()
    finally:
        let_go.touch()
        ended = first.wait()
    assert ended == 0, first.log.read_text()
    assert manifest_of(stage) is not None
