"""The evaluation sets of a stage, opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from modelchain.evaluations import evaluation_of
from modelchain.spec import EvaluationSpec, EvaluationType
from modelchain_trainer.evaluation.accuracy import AccuracySet
from modelchain_trainer.evaluation.evaluation_set import EvaluationSet, Opening
from modelchain_trainer.evaluation.fine_tuning import FineTuneSet
from modelchain_trainer.evaluation.linear_probe import LinearProbeSet
from modelchain_trainer.evaluation.perplexity import PerplexitySet
from modelchain_trainer.evaluation.retrieval import RetrievalSet
from modelchain_trainer.evaluation.zero_shot import ZeroShotSet

OPENERS: Final[Mapping[EvaluationType, Callable[[EvaluationSpec, Opening], EvaluationSet]]] = (
    MappingProxyType(
        {
            EvaluationType.ZERO_SHOT: ZeroShotSet.open,
            EvaluationType.RETRIEVAL: RetrievalSet.open,
            EvaluationType.ACCURACY: AccuracySet.open,
            EvaluationType.PERPLEXITY: PerplexitySet.open,
            EvaluationType.LINEAR_PROBE: LinearProbeSet.open,
            EvaluationType.FINE_TUNE: FineTuneSet.open,
        }
    )
)


def open_sets(opening: Opening) -> list[EvaluationSet]:
    """All sets of the stage. Raises MissingInputError for shards or class files that do not exist, and UserDataError
    for those that can't be used.
    """
    return [OPENERS[spec.type](spec, opening) for spec in opening.stage.evaluation]


def is_due(evaluation: EvaluationSpec, step: int, steps: int) -> bool:
    """Whether a set is evaluated at `step`: at both ends and every so often; what trains at the last step alone."""
    if evaluation_of(evaluation).trains:
        return step == steps
    every = evaluation.every_steps
    return step in (0, steps) or (every is not None and step % every == 0)
