"""What a job trains, read back from the job itself: the chain's spec may say something else by now, or be invalid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from modelchain.artifacts import stage_folder
from modelchain.catalogue import size_name
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
    Of an attempt of which nothing is recorded (an older version has started it, or two jobs may have been made under
    its name), it counts if it has the digest of the status and the store of the spec. Of the spec, `suspend` and what
    the store refers to count: names of objects in the chain's own namespace.
    """
    reference = reference_of(body)
    spec = mapping(bounded(body).get("spec"))
    named = _store_of(spec)
    known = {(stage.name, stage.attempt): stage for stage in open_stages}
    found: dict[str, ResolvedStage] = {}
    for tree in trees:
        stage = stage_of(tree.job) if tree.job is not None else None
        status = known.get((tree.place.stage, tree.place.attempt))
        if stage is None or status is None or (stage.chain, stage.name) != (reference, status.name):
            continue
        if _is_told(stage, status, named):
            alone = {"predecessor": None, "teacher": None}  # complete, since the stage has started
            found.setdefault(stage.name, stage.model_copy(update=alone))
    if not found:
        return None
    return _accepted(tuple(found.values()), named, suspend=spec.get("suspend") is True)


def _is_told(stage: ResolvedStage, status: StageStatus, named: StoreSpec | None) -> bool:
    """Whether an attempt may have been told to train `stage`. `named`: the chain's store as the spec has it."""
    if status.told_sha256 is not None:
        return stage.sha256() == status.told_sha256
    store = stage.store
    return (
        named is not None
        and (store.uri, store.endpoint_url, store.region) == (named.uri, named.endpoint_url, named.region)
        and stage.digest == status.digest
        and stage.folder == stage_folder(size_name(stage.model_config_), stage.digest)
    )


def _accepted(stages: tuple[ResolvedStage, ...], named: StoreSpec | None, *, suspend: bool) -> Accepted:
    """These stages alone, with what the spec names of the store."""
    store = stages[0].store
    chain = ResolvedChain(
        chain=stages[0].chain, suspend=suspend, store=store, baseline_epochs=1, stages=stages
    )
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
