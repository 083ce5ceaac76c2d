"""Evaluation sets of images, opened: their samples located, their classes named."""

from __future__ import annotations

from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.spec import EvaluationSpec
from modelchain.store import open_location, split_uri
from modelchain_trainer.data.evaluation_data import EvaluationReader
from modelchain_trainer.evaluation.evaluation_set import Opening
from modelchain_trainer.retry_policy import RetryPolicy


def open_images(spec: EvaluationSpec, opening: Opening, classes: int | None = None) -> EvaluationReader:
    """The set's samples, of so many classes. Raises MissingInputError for shards that do not exist."""
    stage = opening.stage
    side = stage.model_config_.image_side
    assert side is not None, "validation lets no model that sees no images have such a set"
    return EvaluationReader(
        spec,
        stage.store,
        opening.index_store,
        image_size=side,
        caption_keys=stage.data.caption_keys,
        classes=classes,
        workers=stage.training.data_workers,
        on_progress=lambda _done, _total: opening.on_progress(),
    )


def class_names(spec: EvaluationSpec, stage: ResolvedStage) -> tuple[str, ...]:
    """In the order of their numbers, from the spec or from its file of one name a line; none where it has neither.

    Raises MissingInputError for a file that does not exist, and UserDataError for one that holds no names.
    """
    if spec.classes is not None:
        return tuple(spec.classes)
    if spec.classes_uri is None:
        return ()
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
