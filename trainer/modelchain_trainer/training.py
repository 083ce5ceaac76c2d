"""What a stage does, from top to bottom: one rank of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from modelchain.resolved import ResolvedStage
from modelchain_trainer import train_state
from modelchain_trainer.attempt import Attempt, begin
from modelchain_trainer.data.left_out import find_shards, record_samples
from modelchain_trainer.data.shard_list import ShardList
from modelchain_trainer.data.source import DataSource, OpenData
from modelchain_trainer.environment import ProcessEnvironment
from modelchain_trainer.evaluation.evaluation_set import EvaluationSet, Opening, Run
from modelchain_trainer.evaluation.sets import open_sets
from modelchain_trainer.failpoints import reach
from modelchain_trainer.loop import TrainingLoop
from modelchain_trainer.position import Position
from modelchain_trainer.publish import publish
from modelchain_trainer.retry_policy import RetryPolicy
from modelchain_trainer.roll_back import roll_back, shift_of, with_data_until
from modelchain_trainer.step import DivergedError
from modelchain_trainer.stopping import StopRequest
from modelchain_trainer.tasks import task_of
from modelchain_trainer.train_state import TrainState

logger = logging.getLogger(__name__)


def train_stage(
    stage: ResolvedStage, environment: ProcessEnvironment, stop: StopRequest, position: Position
) -> None:
    """Train a stage to its manifest, from its latest checkpoint if there is one. Every rank calls it.

    Raises ModelChainError for what a person can fix, Terminated if asked to end.
    """
    with begin(stage, environment, stop, position) as attempt:
        if attempt is None:
            return
        task = task_of(stage)
        source = task.source(stage)
        data = index_data(attempt, source)
        sets = open_evaluation_sets(attempt)
        run = Run(
            stage.training.precision, attempt.ranks.group, attempt.telemetry.advance, task.tokenizer(stage)
        )
        model = _train(attempt, data, sets, run)
        publish(attempt, model, sets, run)
        attempt.ranks.share("published", lambda: "yes")


def _train(attempt: Attempt, data: OpenData, sets: Sequence[EvaluationSet], run: Run) -> TrainState:
    """The stage's model after its last step; data from which it diverges is passed over."""
    model = train_state.prepare(attempt)
    while True:
        shift = shift_of(model.passed_over)
        source = task_of(attempt.stage).source(with_data_until(attempt.stage, shift))
        loader = source.loader(
            data,
            rank=attempt.ranks.rank,
            world_size=attempt.ranks.world_size,
            first_step=model.step + shift,
            pin_memory=attempt.device.type == "cuda",
        )
        try:
            TrainingLoop(attempt, model, loader, sets, run).run()
        except DivergedError as error:
            passed_over, started_at = roll_back(attempt, model, error), model.started_at
        else:
            return model
        del model, loader  # before there is another
        model = train_state.prepare(attempt, passed_over, started_at)


def open_evaluation_sets(attempt: Attempt) -> list[EvaluationSet]:
    """The stage's evaluation sets. Rank 0 indexes their shards, the others read its indexes."""
    stage, ranks = attempt.stage, attempt.ranks
    opening = Opening(stage, attempt.store, attempt.telemetry.advance)
    sets = open_sets(opening) if ranks.first else []
    ranks.share("evaluation sets", lambda: "indexed")
    return sets if ranks.first else open_sets(opening)


def index_data(attempt: Attempt, source: DataSource) -> OpenData:
    """The training data, open on every rank (see `data.source`).

    Rank 0 asks which shards there are. The ranks index those that were never seen side by side; then one rank of each
    node puts the index together in a file that all its ranks map.
    """
    attempt.telemetry.phase("Indexing")
    reach("indexing")
    stage, ranks, store = attempt.stage, attempt.ranks, attempt.store
    retry_policy = RetryPolicy()  # one of its own: it is stopped where a shard is bad

    def find() -> str:
        return find_shards(stage, store, retry_policy).to_text()

    shards = ShardList.from_text(ranks.share("shards", find), stage.store)
    if ranks.world_size > 1:
        source.share_work(
            shards,
            store,
            retry_policy,
            attempt.telemetry.advance,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        ranks.wait_for_all("indexed")
    folder = attempt.scratch.parent / "index"  # of the node
    if ranks.first_of_node:
        folder.mkdir(exist_ok=True)
        source.write(folder, shards, store, retry_policy, attempt.telemetry.advance)
    ranks.wait_for_all("index written")
    data = source.open(folder)
    if ranks.first:
        record_samples(stage, store, data, retry_policy)
    return data
