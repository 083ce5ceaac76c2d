"""What a model can do: its metrics on evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from modelchain_trainer.evaluation.evaluation_set import EvaluationSet, Run
from modelchain_trainer.model.family import AnyModel


def evaluate(model: AnyModel, sets: Sequence[EvaluationSet], run: Run) -> dict[str, float]:
    """Metrics of the model on all sets, `<set>/<metric>`, the same on every rank; all ranks call it.

    Raises UserDataError for a set of which too few samples can be used.
    """
    with evaluating(model):
        return {
            f"{one.spec.name}/{name}": figure
            for one in sets
            for name, figure in one.measure(model, run).items()
        }


@contextmanager
def evaluating(model: AnyModel) -> Iterator[None]:
    """The model in evaluation mode, without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
