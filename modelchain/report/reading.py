"""Reads what the store holds of a chain: manifests, attempts, metrics, examples. Nothing is written.

`read_chain` starts from a resolved chain, `read_recorded_chain` from what a runner or the operator left in
chains/<namespace>/<name>.json, so that a report can be made where the chain's file is not at hand. What is
missing or damaged is left out and named in `notes`; it is an error only if no stage of the chain has started.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from modelchain.artifacts import (
    FAILURE,
    METRICS_FILES,
    PREDICTIONS,
    PROGRESS,
    STAGE,
    Failure,
    Manifest,
    Progress,
    attempt_folder,
    chain_key,
)
from modelchain.block import first_problem
from modelchain.commit import DamagedManifestError, MissingArtifactsError, read_manifest, require_files
from modelchain.errors import MissingInputError, UserDataError
from modelchain.report.data import Baseline, ChainArtifacts, StageArtifacts
from modelchain.report.metrics import Example, Metrics, join_attempts, parse_lines, parse_predictions
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.status import ChainRecord, ChainStatus, RecordedStage, StageStatus, record_of
from modelchain.store import ObjectInfo, Store

Model = TypeVar("Model", bound=BaseModel)


def read_chain(store: Store, chain: ResolvedChain, *, status: ChainStatus | None = None) -> ChainArtifacts:
    """Everything the store holds of `chain`. Raises MissingInputError if no stage of it has started.

    `status`: the chain's status where the caller has it (from the cluster); None: the one recorded in the store.
    """
    notes: list[str] = []
    namespace, name = chain.chain.namespace, chain.chain.name
    record = _read_object(store, chain_key(namespace, name), ChainRecord, notes)
    told = status is not None
    if status is None and record is not None:
        status = record.status
    stages = tuple(
        _read_stage(store, recorded, resolved, _status_of(status, recorded), notes)
        for recorded, resolved in zip(record_of(chain, ChainStatus(), 0).stages, chain.stages, strict=True)
    )
    baselines = _read_baselines(store, record_of(chain, ChainStatus(), 0), stages, status, notes, chain)
    if not any(stage.started for stage in stages):
        advice = "train it with `modelchain run`, or name its store with --store"
        if record is not None and any(stage.folder not in _folders(stages) for stage in record.stages):
            advice = (
                "what was trained there under this name had other settings: "
                f"`modelchain report --store {store.uri} {namespace}/{name}` reports on that"
            )
        raise MissingInputError(
            f"chain {namespace}/{name}: none of its stages has started in {store.uri}; {advice}"
        )
    return ChainArtifacts(
        namespace=namespace,
        name=name,
        store_uri=store.uri,
        stages=stages,
        baseline_epochs=chain.baseline_epochs,
        status=status,
        recorded_at=record.updated_at if record is not None and not told else None,
        notes=tuple(notes),
        metric=chain.baseline.metric if chain.baseline is not None else None,
        baselines=baselines,
    )


def read_recorded_chain(store: Store, namespace: str, name: str) -> ChainArtifacts:
    """Everything the store holds of a chain that is known by its name alone.

    Raises MissingInputError if the store knows no such chain or none of its stages has started, UserDataError
    if what it knows can't be read.
    """
    key = chain_key(namespace, name)
    found = store.find(key)
    if found is None:
        raise MissingInputError(f"{store.uri_of(key)}: there is no such chain; {_known_chains(store)}")
    try:
        record = ChainRecord.model_validate_json(found[0])
    except ValidationError as error:
        raise UserDataError(
            f"{store.uri_of(key)}: this is no record of a chain: {first_problem(error)}"
        ) from None
    notes: list[str] = []
    stages = tuple(
        _read_stage(
            store,
            recorded,
            _resolved_stage(store, recorded, notes),
            _status_of(record.status, recorded),
            notes,
        )
        for recorded in record.stages
    )
    baselines = _read_baselines(store, record, stages, record.status, notes)
    if not any(stage.started for stage in stages):
        raise MissingInputError(f"chain {namespace}/{name}: none of its stages has started in {store.uri}")
    return ChainArtifacts(
        namespace=namespace,
        name=name,
        store_uri=store.uri,
        stages=stages,
        baseline_epochs=record.baseline_epochs,
        status=record.status,
        recorded_at=record.updated_at,
        notes=tuple(notes),
        metric=record.metric,
        baselines=baselines,
    )


def _read_baselines(
    store: Store,
    record: ChainRecord,
    stages: Sequence[StageArtifacts],
    status: ChainStatus | None,
    notes: list[str],
    chain: ResolvedChain | None = None,
) -> tuple[Baseline, ...]:
    """The models that the chain trains alone. One with the digest of a stage of the chain is that stage."""
    read = {stage.recorded.digest: stage for stage in stages}
    found: list[Baseline] = []
    for recorded in record.baselines:
        artifacts = read.get(recorded.digest)
        if artifacts is None:
            resolved = (
                chain.stage(recorded.name) if chain is not None else _resolved_stage(store, recorded, notes)
            )
            artifacts = _read_stage(store, recorded, resolved, _status_of(status, recorded), notes)
            read[recorded.digest] = artifacts
        found.append(Baseline(recorded.measures, artifacts, recorded.budget_matched))
    return tuple(found)


def read_history(store: Store, folder: str, manifest: Manifest) -> Metrics:
    """The metrics of a finished stage, over all attempts at it."""
    _, by_attempt = _attempts(store, folder, manifest)
    return join_attempts([_read_metrics(store, files) for files in by_attempt.values()])


def _attempts(
    store: Store, folder: str, manifest: Manifest | None
) -> tuple[list[ObjectInfo], dict[str, list[ObjectInfo]]]:
    """The files of the winning attempt; and those of each attempt by its token, the one that counts last."""
    by_attempt: dict[str, list[ObjectInfo]] = {}
    prefix = f"{folder}/attempts/"
    for info in store.list(prefix):
        token, _, _ = info.key.removeprefix(prefix).partition("/")
        by_attempt.setdefault(token, []).append(info)
    tokens = sorted(by_attempt, key=lambda token: max(info.modified for info in by_attempt[token]))
    won = manifest.attempt if manifest is not None else None
    if won is not None:
        tokens = [*(token for token in tokens if token != won), won]
    finished = by_attempt.get(won, []) if won is not None else []
    return finished, {token: by_attempt.get(token, []) for token in tokens}


def _folders(stages: tuple[StageArtifacts, ...]) -> set[str]:
    return {stage.recorded.folder for stage in stages}


def _known_chains(store: Store) -> str:
    keys = [info.key for info in store.list("chains/") if info.key.endswith(".json")]
    names = [key[len("chains/") : -len(".json")] for key in keys if not key.endswith(".lease.json")]
    return f"the store knows {', '.join(names[:8])}" if names else "the store knows no chains"


def _status_of(status: ChainStatus | None, recorded: RecordedStage) -> StageStatus | None:
    """The status of a stage, unless it is about other weights (the chain was edited since)."""
    found = status.find_stage(recorded.name) if status is not None else None
    return found if found is not None and found.digest in ("", recorded.digest) else None


def _resolved_stage(store: Store, recorded: RecordedStage, notes: list[str]) -> ResolvedStage | None:
    """The stage of stage.json, with the names of this chain: another chain may have trained it."""
    key = f"{recorded.folder}/{STAGE}"
    stage = _read_object(store, key, ResolvedStage, notes)
    if stage is None:
        return None
    if stage.digest != recorded.digest:
        notes.append(f"{store.uri_of(key)} belongs to another stage, so it is left out.")
        return None
    predecessor = stage.predecessor
    if predecessor is not None and recorded.predecessor is not None:
        predecessor = predecessor.model_copy(update={"name": recorded.predecessor})
    names = {
        "name": recorded.name,
        "index": recorded.index,
        "model": recorded.model,
        "predecessor": predecessor,
    }
    return stage.model_copy(update=names)


def _read_stage(
    store: Store,
    recorded: RecordedStage,
    resolved: ResolvedStage | None,
    status: StageStatus | None,
    notes: list[str],
) -> StageArtifacts:
    manifest = _read_manifest(store, recorded, notes)
    finished, by_attempt = _attempts(store, recorded.folder, manifest)
    if manifest is not None:
        try:
            require_files(store, recorded.folder, manifest, finished)
        except MissingArtifactsError as error:  # what was measured stays true
            notes.append(f"Stage {recorded.name}: {error}")
    tokens = list(by_attempt)
    if not tokens:
        return StageArtifacts(recorded, resolved, status, manifest)
    last = attempt_folder(recorded.folder, tokens[-1])
    metrics = join_attempts([_read_metrics(store, files) for files in by_attempt.values()])
    if metrics.unreadable_lines:
        notes.append(f"Stage {recorded.name}: {metrics.unreadable_lines} lines of metrics can't be read.")
    if not metrics.training and not metrics.evaluations:
        notes.append(
            f"Stage {recorded.name}: there are no metrics in {store.uri_of(last)}, so it has no curves."
        )
    example_set, examples = _read_examples(store, f"{last}/{PREDICTIONS}", notes)
    return StageArtifacts(
        recorded=recorded,
        resolved=resolved,
        status=status,
        manifest=manifest,
        attempts=tuple(tokens),
        progress=_read_object(store, f"{last}/{PROGRESS}", Progress, notes),
        failure=None if manifest is not None else _read_object(store, f"{last}/{FAILURE}", Failure, notes),
        metrics=metrics,
        example_set=example_set,
        examples=examples,
    )


def _read_manifest(store: Store, recorded: RecordedStage, notes: list[str]) -> Manifest | None:
    try:
        return read_manifest(store, recorded.folder, recorded.digest)
    except DamagedManifestError as error:
        notes.append(f"Stage {recorded.name}: {error}")
        return None


def _read_metrics(store: Store, files: list[ObjectInfo]) -> list[Metrics]:
    keys = [info.key for info in files if fnmatchcase(info.key.rpartition("/")[2], METRICS_FILES)]
    return [
        parse_lines(found[0])
        for key in sorted(keys)
        if (found := store.find(key)) is not None  # else pruned between the listing and now
    ]


def _read_examples(store: Store, key: str, notes: list[str]) -> tuple[str | None, tuple[Example, ...]]:
    found = store.find(key)
    if found is None:
        return None, ()
    try:
        return parse_predictions(found[0])
    except ValueError:
        notes.append(f"{store.uri_of(key)} can't be read, so its examples are left out.")
        return None, ()


def _read_object(store: Store, key: str, kind: type[Model], notes: list[str]) -> Model | None:
    """The JSON object at `key`; None if there is none or it is damaged (which is noted)."""
    found = store.find(key)
    if found is None:
        return None
    try:
        return kind.model_validate_json(found[0])
    except ValidationError as error:
        notes.append(f"{store.uri_of(key)} can't be read: {first_problem(error)}.")
        return None
