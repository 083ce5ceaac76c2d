"""What a job trains, read back from the job itself: the chain's spec may say something else by now, or be invalid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from modelchain.cluster_labels import CONTAINER
from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ResolvedChain, ResolvedStage
from modelchain.spec import JobSpec, StoreSpec
from modelchain.status import StageStatus
from modelchain_operator.acceptance import Accepted
from modelchain_operator.informers.slim import bounded
from modelchain_operator.jobs import backend_of
from modelchain_operator.jobs.trees import JobTree
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import mapping, mappings, string
from modelchain_operator.observe import reference_of


def recovered(body: Object, trees: Iterable[JobTree], open_stages: Iterable[StageStatus]) -> Accepted | None:
    """Those of the open stages whose job says what it trains, as a chain; None if there is none.

    `trees` hold jobs as the API server has them, with their pod templates. Whoever may create jobs may write what
    stands there, so a job counts only if it says, value for value, what the chain's status says its attempt was told.
    Of the spec, `suspend` and what the store refers to count: names of objects in the chain's own namespace.
    """
    reference = reference_of(body)
    wanted = {(stage.name, stage.attempt): stage.resolved_sha256 for stage in open_stages}
    found: dict[str, ResolvedStage] = {}
    for tree in trees:
        stage = stage_of(tree.job) if tree.job is not None else None
        if (
            stage is not None
            and (stage.chain, stage.name) == (reference, tree.place.stage)
            and wanted.get((tree.place.stage, tree.place.attempt)) == stage.sha256()
        ):
            alone = {"predecessor": None, "teacher": None}  # complete, since the stage has started
            found.setdefault(stage.name, stage.model_copy(update=alone))
    if not found:
        return None
    stages = tuple(found.values())
    spec = mapping(bounded(body).get("spec"))
    store = stages[0].store
    chain = ResolvedChain(
        chain=reference,
        suspend=spec.get("suspend") is True,
        store=store,
        baseline_epochs=1,
        stages=stages,
    )
    named = _store_of(spec)
    access = StoreSpec(
        uri=store.uri,
        endpoint_url=store.endpoint_url,
        region=store.region,
        secret_ref=named.secret_ref if named is not None else None,
        ca_bundle_ref=named.ca_bundle_ref if named is not None else None,
    )
    return Accepted(
        chain, access, jobs={stage.name: JobSpec() for stage in stages}, macs={}, speedup_planned=None
    )


def stage_of(job: Object) -> ResolvedStage | None:
    """The stage that a job's pods train, by its environment; None if it has none."""
    for container in _containers(job):
        for variable in mappings(container.get("env")):
            if variable.get("name") == STAGE_ENVIRONMENT_VARIABLE:
                try:
                    return ResolvedStage.model_validate_json(string(variable.get("value")))
                except ValidationError:
                    return None  # of another version
    return None


def _containers(job: Object) -> Iterator[Mapping[str, Any]]:
    for template in backend_of(job).pod_templates(job):
        containers = mappings(mapping(template.get("spec")).get("containers"))
        yield from (one for one in containers if one.get("name") == CONTAINER)


def _store_of(spec: Mapping[str, Any]) -> StoreSpec | None:
    """As the spec has it, if that much of it is valid."""
    try:
        return StoreSpec.model_validate(spec.get("store"))
    except ValidationError:
        return None
