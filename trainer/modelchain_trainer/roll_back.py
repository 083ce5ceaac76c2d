"""Back to the last good checkpoint once too many steps in a row were not finite, and on with other data.

As PaLM was trained past its spikes (Chowdhery et al., arXiv 2204.02311, section 5.1): from a checkpoint before them,
without the data that was seen from there to their end; the same data did no harm to another state of the model. The
steps keep their numbers, so the learning rate is what it would have been, and the data is shifted for the rest of the
stage. What was passed over is in every checkpoint and in the manifest. An attempt that is cut off before the next
checkpoint diverges at the same step and goes back to the same one.
"""

from __future__ import annotations

import logging

from modelchain.artifacts import PassedOver
from modelchain.resolved import ResolvedStage
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.checkpoint import delete_later, last_good_step
from modelchain_trainer.step import DivergedError
from modelchain_trainer.train_state import TrainState

logger = logging.getLogger(__name__)

MOST_ROLL_BACKS = 3  # of a stage; one that diverges again and again is not the data's fault


def roll_back(attempt: Attempt, state: TrainState, error: DivergedError) -> tuple[PassedOver, ...]:
    """What is passed over from now on. Checkpoints after the one to go back to are deleted. All ranks call it.

    Raises DivergedError where that has been done too often.
    """
    number = len(state.passed_over)
    if number == MOST_ROLL_BACKS:
        raise DivergedError(
            f"{error}; passing over the data did not help, {number} times", error.first
        ) from None
    step = int(attempt.ranks.share("rolled back", lambda: str(_last_good(attempt, error.first))))
    batches = error.end - step
    logger.warning(
        "steps %d to %d are not finite; going back to step %d, and passing over the data of %d steps from there",
        error.first + 1,
        error.end,
        step,
        batches,
    )
    return (*state.passed_over, PassedOver(step=step, batches=batches))


def shift_of(passed_over: tuple[PassedOver, ...]) -> int:
    """By how many global batches the data of a step is shifted."""
    return sum(stretch.batches for stretch in passed_over)


def with_data_until(stage: ResolvedStage, shift: int) -> ResolvedStage:
    """The stage as its data is read where it is shifted by so many batches: to a later end."""
    training = stage.training.model_copy(update={"steps": stage.training.steps + shift})
    return stage.model_copy(update={"training": training})


def _last_good(attempt: Attempt, bound: int) -> int:
    store, stage = attempt.store, attempt.stage
    step = attempt.retry_policy.call(lambda: last_good_step(store, stage, bound))
    attempt.retry_policy.call(lambda: delete_later(store, stage.folder, step))
    return step
