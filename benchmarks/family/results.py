"""What a run has come to: one JSON file a run, from which alone the study goes on.

The file holds all that the tables need and all that tells two runs apart. Results of another digest version (other
weights under the same settings), of another selection rule or of other data are refused, never mixed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from benchmarks.family.errors import StudyError
from benchmarks.family.runs import Run
from modelchain.block import first_problem
from modelchain.digest import DIGEST_VERSION
from modelchain.report.data import ChainArtifacts, StageArtifacts

RESULTS = Path(__file__).parents[1] / "results" / "family"

# Of "How chain and alone are compared" in docs/method.md. Raise it with every change of what is compared, or how.
SELECTION_RULE_VERSION = 1


class Part(BaseModel):
    """A part of a result: camelCase in the file, unchangeable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class Point(Part):
    """An evaluation: compute spent on this stage until then, and the metrics."""

    step: int
    macs: float
    metrics: dict[str, float]


class StageResult(Part):
    """One model."""

    name: str
    digest: str
    model: dict[str, Any]  # its configuration
    spec: dict[str, Any]  # what decided its weights, resolved: training, expansion, distillation
    steps: int
    samples: int
    macs: float  # as the trainer counted them
    planned_macs: float
    metrics: dict[str, float]  # at its end
    curve: tuple[Point, ...]
    train_seconds: float
    shared: bool  # trained by another run of the study, as the same stage


class Machine(Part):
    """Where it was trained."""

    processor: str
    cores: int
    device: str  # cpu, or the GPU's name
    platform: str


class Result(Part):
    """One run."""

    run: Run
    metric: str  # which decides
    digest_version: int
    selection_rule_version: int
    data_sha256: dict[str, str]  # of the shards of each part that it trained or evaluated on
    train_parts: tuple[str, ...]
    evaluation_parts: tuple[str, ...]
    evaluated_samples: int
    chain: dict[str, Any]  # the document that `modelchain run` was given
    stages: tuple[StageResult, ...]
    wall_seconds: float
    cpu_seconds: float | None = None  # of the runner and its trainers
    jobs: int  # runs side by side, so that seconds can be judged
    versions: dict[str, str]
    machine: Machine

    @property
    def macs(self) -> float:
        """Of all its stages."""
        return sum(stage.macs for stage in self.stages)

    def value(self, model: str) -> float:
        """The metric that decides, of one model at its end. Raises StudyError."""
        for stage in self.stages:
            if stage.name == model:
                if self.metric not in stage.metrics:
                    raise StudyError(
                        f"the result of {self.run.label} has no {self.metric}; its metrics are "
                        f"{', '.join(stage.metrics)}"
                    )
                return stage.metrics[self.metric]
        raise StudyError(f"the result of {self.run.label} has no model {model}")


def stage_result(stage: StageArtifacts, *, planned_macs: float, chain: str) -> StageResult:
    """A finished stage, out of the store. Raises StudyError for one that is not."""
    manifest, resolved = stage.manifest, stage.resolved
    if manifest is None or resolved is None:
        raise StudyError(f"stage {stage.name} is not complete in the store")
    deciding = resolved.model_dump(mode="json", by_alias=True, exclude_none=True)
    return StageResult(
        name=stage.name,
        digest=manifest.digest,
        model=deciding["modelConfig"],
        spec={key: deciding[key] for key in ("training", "expansion", "distillation")},
        steps=manifest.steps,
        samples=manifest.samples,
        macs=manifest.macs,
        planned_macs=planned_macs,
        metrics=manifest.metrics,
        curve=tuple(
            Point(step=line.step, macs=line.macs, metrics=dict(line.metrics))
            for line in stage.metrics.evaluations
        ),
        train_seconds=manifest.train_seconds,
        shared=manifest.chain != chain,
    )


def versions_of(artifacts: ChainArtifacts) -> dict[str, str]:
    """Of what trained the last stage."""
    manifest = artifacts.stages[-1].manifest
    return dict(manifest.versions) if manifest is not None else {}


def this_machine(device: str) -> Machine:
    """The machine that this runs on."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        device=device,
        platform=platform.platform(terse=True),
    )


def write_result(path: Path, result: Result) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(result.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")
    unfinished.replace(path)


def read_result(path: Path) -> Result:
    """One file. Raises StudyError for a damaged one, and for one that can't be compared."""
    try:
        result = Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StudyError(
            f"{path}: is no result of this study: {first_problem(error)}; remove it, and its run is done again"
        ) from None
    for name, found, known in (
        ("digest version", result.digest_version, DIGEST_VERSION),
        ("selection rule", result.selection_rule_version, SELECTION_RULE_VERSION),
    ):
        if found != known:
            raise StudyError(
                f"{path}: was made with {name} {found}, and this is {known}: the two can't be compared; remove "
                "it, or give another folder with --results"
            )
    return result


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, which are of one kind. Raises StudyError."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise StudyError(f"{folder}: has no results; make some with `python -m benchmarks.family run`")
    results = [read_result(path) for path in paths]
    require_one_data(zip(paths, results, strict=True))
    return results


def require_one_data(results: Iterable[tuple[Path, Result]]) -> None:
    """Raises StudyError where two results name the same part of a data set and mean other bytes."""
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    for path, result in results:
        for part, digest in result.data_sha256.items():
            known, where = seen.setdefault((result.run.dataset, part), (digest, path))
            if known != digest:
                raise StudyError(
                    f"{path}: its part {part} of {result.run.dataset} holds other data than that of {where}; "
                    "keep them in folders of their own"
                )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def digests_of(parts: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of each of these parts."""
    return {name: parts[name].sha256 for name in names}
