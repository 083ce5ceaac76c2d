"""What a stage does, from top to bottom: one rank of it."""

from __future__ import annotations

import logging

from modelchain.resolved import ResolvedStage
from modelchain.tasks import task_of as core_task_of
from modelchain_trainer import trainee
from modelchain_trainer.attempt import Attempt, begin
from modelchain_trainer.data.index import DatasetIndex, build_index, index_shards
from modelchain_trainer.data.loader import TrainingLoader
from modelchain_trainer.environment import ProcessEnvironment
from modelchain_trainer.evaluation import EvaluationSet
from modelchain_trainer.evaluation_sets import open_sets
from modelchain_trainer.failpoints import reach
from modelchain_trainer.loop import TrainingLoop
from modelchain_trainer.position import Position
from modelchain_trainer.publish import publish
from modelchain_trainer.stopping import StopRequest
from modelchain_trainer.tasks import task_of

logger = logging.getLogger(__name__)


def train_stage(
    stage: ResolvedStage, environment: ProcessEnvironment, stop: StopRequest, position: Position
) -> None:
    """Train a stage to its manifest, from its latest checkpoint if there is one. Every rank calls it.

    Raises ModelChainError for what a person can mend, Terminated if asked to end.
    """
    with begin(stage, environment, stop, position) as attempt:
        if attempt is None:
            return
        task = task_of(stage)
        tokenizer = task.tokenizer(stage)
        index = index_data(attempt)
        sets = open_evaluation_sets(attempt)
        model = trainee.prepare(attempt)
        loader = TrainingLoader(
            index,
            stage,
            rank=attempt.ranks.rank,
            world_size=attempt.ranks.world_size,
            first_step=model.step,
            field=task.field(stage),
            pin_memory=attempt.device.type == "cuda",
        )
        TrainingLoop(attempt, model, loader, sets, tokenizer).run()
        publish(attempt, model, sets, tokenizer)
        attempt.ranks.share("published", lambda: "yes")


def open_evaluation_sets(attempt: Attempt) -> list[EvaluationSet]:
    """The stage's evaluation sets. Rank 0 indexes their shards, the others read its indexes."""
    stage, ranks = attempt.stage, attempt.ranks
    sets = open_sets(stage, attempt.store, attempt.telemetry.advance) if ranks.first else []
    ranks.share("evaluation sets", lambda: "indexed")
    return sets if ranks.first else open_sets(stage, attempt.store, attempt.telemetry.advance)


def index_data(attempt: Attempt) -> DatasetIndex:
    """Where the training samples lie. The ranks index shards side by side, then read each other's indexes."""
    attempt.telemetry.phase("Indexing")
    reach("indexing")
    stage, ranks, store = attempt.stage, attempt.ranks, attempt.store

    def on_progress(_done: int, _total: int) -> None:
        attempt.telemetry.advance()

    if ranks.world_size > 1:
        index_shards(
            stage.data.shards, stage.store, store, on_progress, rank=ranks.rank, world_size=ranks.world_size
        )
        ranks.wait_for_all("indexed")
    keys = core_task_of(stage.task).text_keys(stage.data)
    return build_index(stage.data, stage.store, store, on_progress, text_keys=keys)
