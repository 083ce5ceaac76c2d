"""A run as a ModelChain: the YAML file that `modelchain run` is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.family.datasets import DataSet, Part, find_dataset, read_parts
from benchmarks.family.errors import StudyError
from benchmarks.family.families import SIZES, find_size
from benchmarks.family.recipes import Settings, variant
from benchmarks.family.runs import Run
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain
from modelchain.spec import ModelChain
from modelchain.validation import load_chains

WARMUP_AT_MOST = 5  # a stage's steps over its warm-up
SHOWN_HASH = 8  # hex digits


@dataclass(frozen=True)
class Folders:
    """Where the study works: everything below one folder, which may move."""

    work: Path

    @property
    def chains(self) -> Path:
        """The YAML files."""
        return self.work / "chains"

    @property
    def store(self) -> Path:
        """One store for all chains: what two runs have in common is trained once."""
        return self.work / "store"

    def data(self, dataset: str) -> Path:
        """The shards of a data set."""
        return self.work / "data" / dataset


def document(
    run: Run, parts: Mapping[str, Part], *, evaluations: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """The chain of a run. `evaluations`: how often each stage is evaluated after its beginning.

    Raises StudyError.
    """
    dataset = find_dataset(run.dataset)
    chosen = variant(run.recipe)
    settings = chosen.complete_settings(dataset.settings)
    split = dataset.parts(run.split, run.fold)
    train, evaluated = (
        [parts[name] for name in names if name in parts] for names in (split.train, split.evaluation)
    )
    if len(train) != len(split.train) or len(evaluated) != len(split.evaluation):
        raise StudyError(
            f"the shards of {run.dataset} lack a part; run `python -m benchmarks.family prepare` again"
        )
    size = sum(part.samples for part in train)
    rows = size // dataset.row
    batch = settings.batch or dataset.batch_size
    if rows < batch:
        raise StudyError(f"{run.dataset} has {rows} samples to train on, which is no batch of {batch}")
    epochs = stage_epochs(run, settings)
    stages: list[dict[str, Any]] = []
    for index, model in enumerate(run.models):
        steps = epochs[index] * (rows // batch)
        stages.append(
            _stage(run, dataset, settings, index, epochs[index], steps, chosen.fragment(index, len(epochs)))
            | {"evaluation": [_evaluation(dataset, evaluated, steps, evaluations)]}
        )
        assert stages[-1]["name"] == model
    chain = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": "study"},
        "spec": {
            **dataset.spec,
            "store": {"uri": "../store"},
            "data": {"shards": _shards(dataset, train), dataset.size_field: size, **dataset.data},
            "training": {
                "globalBatchSize": batch,
                "seed": run.seed,
                "dataWorkers": 1,
                "logEverySteps": 50,
                # A run takes a minute or so, and is trained again if it is cut off.
                "checkpointEverySteps": 10**6,
                "keepCheckpoints": 1,
            },
            "job": {"gpusPerNode": int(device == "cuda")},
            "retry": {"limit": 0},
            "stages": stages,
        },
    }
    chain["metadata"] = {"name": f"study-{identity(run, chain)}"}
    return chain


def stage_epochs(run: Run, settings: Settings) -> tuple[int, ...]:
    """Epochs of each stage. Raises StudyError."""
    if run.epochs is not None:
        return (run.epochs,)
    count = len(run.models)
    if settings.epochs is None:
        return (settings.first, *[settings.later] * (count - 1))
    if len(settings.epochs) != count:
        raise StudyError(
            f"{run.recipe}: epochs has {len(settings.epochs)} numbers, and family {run.family} has {count} models"
        )
    return settings.epochs


def identity(run: Run, chain: Mapping[str, Any]) -> str:
    """A short hash of all that decides the outcome: the run, and the chain as this version of the study writes it."""
    spec = {key: value for key, value in chain["spec"].items() if key not in {"store", "job", "retry"}}
    watched = {"everySteps", "checkpointEverySteps", "keepCheckpoints", "logEverySteps", "dataWorkers"}
    form = json.dumps([run.model_dump(exclude_none=True), _without(spec, watched)], sort_keys=True)
    return hashlib.sha256(form.encode()).hexdigest()[:16]


def file_stem(run: Run, chain: Mapping[str, Any]) -> str:
    """Name of the run's result, for people first: data, split, fold, seed, what, recipe, hash."""
    what = (run.model and f"{run.model}-e{run.epochs}") or f"family{run.family}"
    name = variant(run.recipe).name
    short = identity(run, chain)[:SHOWN_HASH]
    return f"{run.dataset}-{run.split}-f{run.fold}-s{run.seed}-{what}-{name}-{short}"


def write_chain(run: Run, folders: Folders, *, evaluations: int, device: str) -> tuple[Path, ResolvedChain]:
    """Write the chain's file, and resolve it.

    Raises StudyError, and ModelChainError where the chain is not valid.
    """
    chain = document(
        run, read_parts(folders.data(run.dataset), run.dataset), evaluations=evaluations, device=device
    )
    folders.chains.mkdir(parents=True, exist_ok=True)
    path = folders.chains / f"{file_stem(run, chain)}.yaml"
    path.write_text(yaml.safe_dump(chain, sort_keys=False))
    (loaded,) = load_chains(path)
    return path, resolve(loaded, base=path.parent.resolve())


def resolve_run(run: Run, parts: Mapping[str, Part]) -> ResolvedChain:
    """The chain without a file, to count what it costs."""
    return resolve(ModelChain.model_validate(document(run, parts)))


def _stage(
    run: Run,
    dataset: DataSet,
    settings: Settings,
    index: int,
    epochs: int,
    steps: int,
    fragment: dict[str, Any],
) -> dict[str, Any]:
    size = find_size(run.dataset, run.models[index])
    smallest = next(iter(_widths(run.dataset)))
    peak = settings.lr * (size.tower[0] / smallest) ** -settings.lr_power
    warmup = settings.warmup
    if index:
        peak *= settings.lr_grown
        warmup = settings.warmup if settings.warmup_grown is None else settings.warmup_grown
    peak = float(f"{peak:.4g}")
    training: dict[str, Any] = {
        "epochs": epochs,
        "learningRate": peak,
        "minimumLearningRate": float(f"{peak * settings.lr_floor:.4g}"),
        "warmupSteps": min(warmup, steps // WARMUP_AT_MOST),
        "weightDecay": settings.wd,
    }
    if settings.ema is not None:
        training["emaDecay"] = settings.ema
    if settings.beta2 is not None:
        training["beta2"] = settings.beta2
    own = dict(fragment.get("training", {}))
    schedule = dict(own.get("schedule", {}))
    if settings.decay is not None and schedule.get("type") == "WarmupStableDecay":
        schedule["decayFraction"] = settings.decay
    if schedule.get("type") == "Cosine":
        schedule = {"type": "Cosine"}  # nothing of what it overrides
    if schedule:
        own["schedule"] = schedule
    stage: dict[str, Any] = {"name": size.name, **dataset.shape.fields(size)}
    return stage | fragment | {"training": training | own}


def _widths(dataset: str) -> list[int]:
    return sorted(size.tower[0] for size in SIZES[dataset].values())


def _evaluation(dataset: DataSet, evaluated: list[Part], steps: int, evaluations: int) -> dict[str, Any]:
    found = {**dataset.evaluation, "data": {"shards": _shards(dataset, evaluated)}}
    if evaluations > 1:
        found["everySteps"] = max(1, -(-steps // evaluations))
    return found


def _shards(dataset: DataSet, parts: list[Part]) -> list[str]:
    """Relative to the chains' folder, so that digests are the same wherever the study works."""
    return [f"../data/{dataset.name}/{shard}" for part in parts for shard in part.shards]


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(each, names) for key, each in value.items() if key not in names}
    return [_without(each, names) for each in value] if isinstance(value, list) else value
