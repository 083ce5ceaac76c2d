"""A run of the study, as a line of the work list: what is trained on what, with which seed.

    {"dataset": "digits", "split": "selection", "fold": 0, "seed": 0, "recipe": "trunk:later=3", "family": "3"}
    {"dataset": "digits", "split": "selection", "fold": 0, "seed": 0, "recipe": "alone", "model": "w128", "epochs": 15}

The first is a chain, the second a model alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.family.datasets import SPLITS, find_dataset
from benchmarks.family.errors import StudyError
from benchmarks.family.families import family, find_size
from benchmarks.family.recipes import variant
from modelchain.block import first_problem

WORK_LIST = "runs.jsonl"


class Run(BaseModel):
    """One line. Equal runs train the same weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    split: str
    fold: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)]
    recipe: str
    family: str | None = None  # of a chain
    model: str | None = None  # alone
    epochs: Annotated[int, Field(ge=1)] | None = None  # alone

    @model_validator(mode="after")
    def _is_known(self) -> Run:
        try:
            dataset = find_dataset(self.dataset)
            object.__setattr__(self, "recipe", variant(self.recipe).text)
            if self.family is not None:
                family(self.dataset, self.family)
            if self.model is not None:
                find_size(self.dataset, self.model)
        except StudyError as error:
            raise ValueError(str(error)) from None
        if self.split not in SPLITS:
            raise ValueError(f"split is one of {', '.join(SPLITS)}")
        if self.fold >= dataset.folds:
            raise ValueError(f"{self.dataset} has folds 0 to {dataset.folds - 1}")
        if (self.family is None) == (self.model is None) or (self.model is None) != (self.epochs is None):
            raise ValueError("a chain has a family, a model alone has a model and epochs")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Those it trains, smallest first."""
        return (self.model,) if self.model is not None else family(self.dataset, self.family or "")

    @property
    def label(self) -> str:
        """For people: what is trained, without data and seed."""
        what = f"{self.model} {self.epochs} epochs" if self.model is not None else f"family {self.family}"
        return f"{what}, {self.recipe}"

    def to_json(self) -> str:
        """The line."""
        return self.model_dump_json(exclude_none=True)


def read_runs(path: Path) -> list[Run]:
    """The runs of a work list, each once. Raises StudyError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise StudyError(f"{path}: can't be read: {error}; write it with `list`") from error
    runs: dict[Run, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            runs[Run.model_validate_json(line)] = None
        except ValidationError as error:
            raise StudyError(f"{path}:{number}: {first_problem(error)}") from None
    return list(runs)


def add_runs(path: Path, runs: Iterable[Run]) -> int:
    """Add to a work list the runs that it does not have; returns how many. Raises StudyError."""
    known = set(read_runs(path)) if path.exists() else set()
    new = [run for run in dict.fromkeys(runs) if run not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(run.to_json() + "\n" for run in new)
    return len(new)
