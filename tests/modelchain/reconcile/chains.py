"""Small resolved chains and what is seen of them, for the tests of the reconcile core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelchain.artifacts import Manifest, Progress
from modelchain.reconcile.actions import Decision
from modelchain.reconcile.decide import decide
from modelchain.reconcile.observation import Job, JobPhase, Observation, StageFacts
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.spec import ModelChain
from modelchain.status import ChainStatus, StageStatus

NOW = 1_800_000_000.0


def chain(
    stages: Sequence[tuple[str, str | None]] = (("tiny", None), ("small", "tiny"), ("base", "small")),
    *,
    teachers: Mapping[str, str] | None = None,
    epochs: Mapping[str, int] | None = None,
    retry: Mapping[str, int] | None = None,
    job: Mapping[str, int] | None = None,
    suspend: bool = False,
    baseline: Mapping[str, Any] | None = None,
) -> ResolvedChain:
    """A chain of these stages (name, predecessor), of which some have other `teachers` than their predecessor; other
    `epochs` for a stage are an edit that changes its digest.
    """
    spec: dict[str, Any] = {
        "store": {"uri": "file:///store"},
        "data": {"shards": ["data.tar"], "samples": 64},
        "evaluation": [
            {"name": "digits", "type": "ZeroShot", "data": {"shards": ["val.tar"]}, "classes": ["a", "b"]}
        ],
        "training": {"epochs": 2, "globalBatchSize": 8},
        "suspend": suspend,
        "stages": [],
    }
    if retry is not None:
        spec["retry"] = dict(retry)
    if baseline is not None:
        spec["baseline"] = dict(baseline)
    if job is not None:
        spec["job"] = dict(job)
    for name, predecessor in stages:
        stage: dict[str, Any] = {
            "name": name,
            "model": "ViT-T-16",
            "training": {"epochs": (epochs or {}).get(name, 2)},
        }
        if predecessor is not None:
            stage["from"] = predecessor
        if teachers and name in teachers:
            stage["distillation"] = {"teacher": teachers[name]}
        spec["stages"].append(stage)
    metadata = {"name": "family", "namespace": "default", "uid": "0123-4567"}
    document = {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": metadata,
        "spec": spec,
    }
    return resolve(ModelChain.model_validate(document))


def manifest(stage: ResolvedStage, *, chain_name: str = "default/family") -> Manifest:
    """A verified manifest of the stage."""
    return Manifest(
        digest=stage.digest,
        stage=stage.name,
        model=stage.model,
        chain=chain_name,
        attempt="0123-1-aa",
        files=(),
        metrics={"digits/top1": 0.75},
        steps=stage.training.steps,
        samples=stage.training.steps * stage.training.global_batch_size,
        macs=1e9,
        started_at="2027-01-15T08:00:00Z",
        completed_at="2027-01-15T09:00:00Z",
        train_seconds=10.0,
        versions={},
    )


def progress(step: int, **figures: Any) -> Progress:
    """The heartbeat of an attempt that trains."""
    return Progress(
        phase="Training", step=step, steps=16, sequence=step, updated_at="2027-01-15T08:00:00Z", **figures
    )


def job(stage: ResolvedStage, attempt: int = 1, phase: JobPhase = JobPhase.RUNNING, **more: Any) -> Job:
    """A job of the stage."""
    more.setdefault("started_at", None if phase in (JobPhase.PENDING, JobPhase.QUEUED) else NOW)
    more.setdefault("digest", stage.digest)
    more.setdefault("name", f"family-{stage.name}-{attempt}")
    return Job(stage=stage.name, attempt=attempt, phase=phase, **more)


def empty_store(resolved: ResolvedChain) -> dict[str, StageFacts]:
    """A store that was looked at and holds nothing."""
    return {stage.name: StageFacts() for stage in resolved.all_stages}


class Play:
    """Plays looks one after the other: each starts from the status that the last one wrote."""

    def __init__(self, resolved: ResolvedChain) -> None:
        self.chain = resolved
        self.status: ChainStatus | None = None
        self.now = NOW
        self.generation = 1
        self.store = empty_store(resolved)
        self.more: dict[str, Any] = {}

    def look(self, *jobs: Job, after: float = 0.0, **facts: StageFacts) -> Decision:
        """Look `after` seconds later, with these jobs, and with these facts in place of those of the last
        look.
        """
        self.now += after
        self.store = {**self.store, **facts}
        read_at = {"store_read_at": dict.fromkeys(self.store, self.now)}
        seen = Observation(
            status=self.status,
            generation=self.generation,
            jobs=jobs,
            store=self.store,
            **{**read_at, **self.more},
        )
        decision = decide(self.chain, seen, self.now)
        assert decide(self.chain, seen, self.now) == decision, "decide must be a function of what it is given"
        self.status = ChainStatus.model_validate_json(decision.status.model_dump_json(by_alias=True))
        assert self.status == decision.status, "the status must survive being written and read"
        return decision

    def stage(self, name: str) -> ResolvedStage:
        return self.chain.stage(name)

    def __getitem__(self, name: str) -> StageStatus:
        assert self.status is not None
        found = self.status.find_stage(name)
        assert found is not None
        return found
