"""Two steps of a student and its teacher, on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modelchain.families import AnyConfig
from modelchain.resolved import ResolvedStage
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model import build_model, model_from
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.step import TrainStep
from modelchain_trainer.tasks import task_of
from tests.trainer.ranks import on_ranks


def check_that_neither_ranks_nor_micro_batches_matter(
    stage: ResolvedStage, taught_by: AnyConfig, rows: Any, *, ranks: int, moves: str
) -> None:
    """In fp64, to rounding: ranks that share `rows`, in the stage's micro-batches, end with the parameters and buffers
    of one that takes them at once. The buffer `moves` is no longer what it was.
    """
    config = stage.model_config_
    start = build_model(config, seed=1).double().state_dict()
    taught = build_model(taught_by, seed=2).double().state_dict()

    def after_two_steps(group: Group, of: ResolvedStage) -> dict[str, Tensor]:
        model = model_from({name: tensor.clone() for name, tensor in start.items()}, config)
        teacher = model_from({name: tensor.clone() for name, tensor in taught.items()}, taught_by)
        projections = task_of(of).projections(config, taught_by)
        assert projections is not None
        projections.double()
        named = [
            *model.named_parameters(),
            *((f"projections.{name}", parameter) for name, parameter in projections.named_parameters()),
        ]
        optimizer = AdamW(named, of.training)
        trained = TrainStep(model, teacher, projections, optimizer, of, torch.device("cpu"), group)
        share = len(rows.images) // group.world_size
        mine = slice(group.rank * share, (group.rank + 1) * share)
        for step in range(2):
            trained.run(replace(rows, images=rows.images[mine], tokens=rows.tokens[:, mine]), step)
        return model.state_dict()

    whole = stage.training.model_copy(update={"micro_batch_size": None})
    expected = after_two_steps(Group(), stage.model_copy(update={"training": whole}))
    assert not torch.equal(expected[moves], start[moves])
    for found in on_ranks(ranks, lambda group: after_two_steps(group, stage)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
