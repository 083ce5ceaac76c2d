"""The evaluation sets of a stage, opened: their samples located, their classes named."""

from __future__ import annotations

from collections.abc import Callable

from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.spec import EvaluationSpec, EvaluationType, FineTuneSpec
from modelchain.store import Store, open_location, split_uri
from modelchain_trainer.data.evaluation_data import EvaluationReader
from modelchain_trainer.evaluation.evaluate import AnySet, EvaluationSet
from modelchain_trainer.evaluation.fine_tuning import Tuning
from modelchain_trainer.evaluation.perplexity import open_perplexity_set
from modelchain_trainer.retry_policy import RetryPolicy


def open_sets(stage: ResolvedStage, index_store: Store, on_progress: Callable[[], None]) -> list[AnySet]:
    """All sets of the stage. Raises MissingInputError for shards or class files that do not exist."""
    return [_open(stage, spec, index_store, on_progress) for spec in stage.evaluation]


def is_due(evaluation: EvaluationSpec, step: int, steps: int) -> bool:
    """Whether a set is evaluated at `step`: at both ends and every so often; what trains at the last step alone."""
    if evaluation.type.trains:
        return step == steps
    every = evaluation.every_steps
    return step in (0, steps) or (every is not None and step % every == 0)


def _open(
    stage: ResolvedStage, spec: EvaluationSpec, index_store: Store, on_progress: Callable[[], None]
) -> AnySet:
    side = stage.model_config_.image_side
    if side is None:
        return open_perplexity_set(stage, spec, index_store, on_progress)

    def reader(of: EvaluationSpec) -> EvaluationReader:
        return EvaluationReader(
            of,
            stage.store,
            index_store,
            image_size=side,
            caption_keys=stage.data.caption_keys,
            workers=stage.training.data_workers,
            on_progress=lambda _done, _total: on_progress(),
        )

    source = reader(spec)
    if spec.type.trains:
        if spec.train_data is None:
            raise UserDataError(f"evaluation set {spec.name}: a {spec.type} set needs trainData")
        train_source = reader(spec.model_copy(update={"data": spec.train_data}))
        tuning = None
        if spec.type is EvaluationType.FINE_TUNE:
            tuning = Tuning(stage, train_source.index, spec.fine_tune or FineTuneSpec())
        classes = _classes(stage, spec)
        return EvaluationSet(spec, source, classes=classes, train_source=train_source, tuning=tuning)
    if spec.type is not EvaluationType.RETRIEVAL:
        return EvaluationSet(spec, source, classes=_classes(stage, spec))
    return EvaluationSet(spec, source, captions=len(spec.data.caption_keys or stage.data.caption_keys))


def _classes(stage: ResolvedStage, spec: EvaluationSpec) -> tuple[str, ...]:
    """Class names in the order of their numbers, from the spec or from its file of one name a line."""
    if spec.classes is not None:
        return tuple(spec.classes)
    if spec.classes_uri is None:
        if spec.type is not EvaluationType.ZERO_SHOT:
            return ()  # a head needs no names
        raise UserDataError(f"evaluation set {spec.name}: a ZeroShot set needs classes or classesUri")
    parent, name = split_uri(spec.classes_uri)
    data, _ = RetryPolicy().call(lambda: open_location(parent, stage.store).get(name))
    try:
        names = [line.strip() for line in data.decode().splitlines()]
    except UnicodeDecodeError:
        raise UserDataError(f"{spec.classes_uri}: no UTF-8 text; write one class name a line") from None
    while names and not names[-1]:
        names.pop()
    if len(names) < 2 or not all(names):
        raise UserDataError(f"{spec.classes_uri}: write one class name a line, at least two, no line empty")
    return tuple(names)
