"""What a job trains, read back from the job itself: the chain's spec may say something else by now, or be invalid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from modelchain.cluster_labels import CONTAINER
from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ResolvedChain, ResolvedStage
from modelchain.spec import CredentialsReference, JobSpec, StoreSpec
from modelchain.status import StageStatus
from modelchain_operator.acceptance import Accepted
from modelchain_operator.jobs import backend_of
from modelchain_operator.jobs.trees import JobTree
from modelchain_operator.kubernetes.api import Object


def recovered(body: Object, trees: Iterable[JobTree], open_stages: Iterable[StageStatus]) -> Accepted | None:
    """Those of the open stages whose job says what it trains, as a chain; None if there is none.

    `trees` hold jobs as the API server has them, with their pod templates. Of the spec, only `suspend` and the store's
    `secretRef` count.
    """
    wanted = {(stage.name, stage.attempt): stage.digest for stage in open_stages}
    stages: list[ResolvedStage] = []
    for tree in trees:
        stage = stage_of(tree.job) if tree.job is not None else None
        if stage is not None and wanted.get((tree.place.stage, tree.place.attempt)) == stage.digest:
            alone = {"predecessor": None, "teacher": None}  # complete, since the stage has started
            stages.append(stage.model_copy(update=alone))
    if not stages:
        return None
    spec = body.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    store = stages[0].store
    chain = ResolvedChain(
        chain=stages[0].chain,
        suspend=spec.get("suspend") is True,
        store=store,
        baseline_epochs=1,
        stages=tuple(stages),
    )
    access = StoreSpec(
        uri=store.uri, endpoint_url=store.endpoint_url, region=store.region, secret_ref=_secret_ref(spec)
    )
    return Accepted(
        chain, access, jobs={stage.name: JobSpec() for stage in stages}, macs={}, speedup_planned=None
    )


def stage_of(job: Object) -> ResolvedStage | None:
    """The stage that a job's pods train, by its environment; None if it has none."""
    for container in _containers(job):
        for variable in container.get("env") or ():
            if variable.get("name") == STAGE_ENVIRONMENT_VARIABLE:
                try:
                    return ResolvedStage.model_validate_json(variable.get("value") or "")
                except ValidationError:
                    return None  # of another version
    return None


def _containers(job: Object) -> Iterator[dict[str, Any]]:
    for template in backend_of(job).pod_templates(job):
        pod = template.get("spec") or {}
        yield from (one for one in pod.get("containers") or () if one.get("name") == CONTAINER)


def _secret_ref(spec: dict[str, Any]) -> CredentialsReference | None:
    """As the spec has it, if that much of it is valid."""
    try:
        return StoreSpec.model_validate(spec.get("store")).secret_ref
    except ValidationError:
        return None
