"""Batches on which the forward pass of a rank overflows."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, inf

from modelchain_trainer.tasks.contrastive import ContrastiveObjective

STEPS_VARIABLE, RANKS_VARIABLE, SEEN_VARIABLE = (
    "OVERFLOWING_STEPS",
    "OVERFLOWING_RANKS",
    "SEEN_STEPS",
)


def overflowing(steps: Collection[int], note: Callable[[int], None]) -> Callable[..., Tensor]:
    """`ContrastiveObjective.accumulate` that overflows on the batches with these places in the data.

    `note` gets the place of each batch that is trained on.
    """
    accumulate, features = ContrastiveObjective.accumulate, ContrastiveObjective._features

    def overflown(self: ContrastiveObjective, *arguments: Any, **options: Any) -> Any:
        student, *others = features(self, *arguments, **options)
        return replace(student, image=student.image * inf), *others

    def accumulate_noted(self: ContrastiveObjective, batch: Any, **options: Any) -> Tensor:
        note(batch.step)
        if batch.step not in steps:
            return accumulate(self, batch, **options)
        with mock.patch.object(ContrastiveObjective, "_features", overflown):
            return accumulate(self, batch, **options)

    return accumulate_noted


def environment(steps: Collection[int], ranks: Collection[int], seen: Path) -> dict[str, str]:
    """What makes a rank of the fork server overflow, and where each writes which batches it has trained on."""
    return {
        STEPS_VARIABLE: " ".join(map(str, steps)),
        RANKS_VARIABLE: " ".join(map(str, ranks)),
        SEEN_VARIABLE: str(seen),
    }


def seen_by(rank: int, seen: Path) -> list[int]:
    """The batches that a rank has trained on, by their places in the data."""
    return [int(line) for line in seen.with_suffix(f".{rank}").read_text().split()]


def prepare() -> None:
    """In a rank of the fork server, before it begins."""
    rank = os.environ["RANK"]
    mine = rank in os.environ[RANKS_VARIABLE].split()
    steps = [int(step) for step in os.environ[STEPS_VARIABLE].split()] if mine else []
    file = Path(os.environ[SEEN_VARIABLE]).with_suffix(f".{rank}")

    def note(step: int) -> None:
        with file.open("a") as lines:
            lines.write(f"{step}\n")

    ContrastiveObjective.accumulate = overflowing(steps, note)
