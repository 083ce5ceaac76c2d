"""Whether a chain can be trained as it is written: every rule that the CRD's schema can't express."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from modelchain import cost
from modelchain.errors import ModelChainError
from modelchain.resolve import merged
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.spec import JobSpec, ModelChain, StoreSpec
from modelchain.validation import check_object
from modelchain_operator.informers.slim import TOO_LARGE, bounded
from modelchain_operator.jobs import Backend, JobDefaults, JobRequest, backend_for
from modelchain_operator.jobs.request import request_digests
from modelchain_operator.kubernetes.api import Object

logger = logging.getLogger(__name__)

CACHED = 512  # answers kept, of 45 KiB each for four stages; another takes one to two milliseconds


@dataclass(frozen=True)
class Accepted:
    """A chain as it will be trained."""

    chain: ResolvedChain
    store: StoreSpec
    jobs: dict[str, JobSpec]  # by stage and baseline: the stage's block over the chain's
    macs: dict[str, float]
    speedup_planned: float | None
    plan: cost.Plan | None = None  # None: of recovered stages
    defaults: JobDefaults | None = None  # None: of recovered stages
    problems: tuple[str, ...] = ()  # why it is refused as it is written now; this is then what still runs

    @cached_property
    def requests(self) -> dict[str, tuple[str, str]]:
        """By stage and baseline: `request_digests` of its jobs. Empty where only what still runs is known."""
        if self.defaults is None:
            return {}
        return {stage.name: request_digests(self.request(stage)) for stage in self.chain.all_stages}

    def request(self, stage: ResolvedStage) -> JobRequest:
        """The first attempt of a stage."""
        return JobRequest(
            stage=stage,
            spec=self.jobs[stage.name],
            store=self.store,
            attempt=1,
            defaults=self.defaults or JobDefaults(),
        )

    def backend(self, stage: str) -> Backend:
        """What runs the stage's jobs."""
        return backend_for(self.jobs[stage])


@dataclass(frozen=True)
class Refused:
    """A chain that can't be trained, and everything that has to be fixed."""

    problems: tuple[str, ...]


def accept(body: Object, *, default_image: str | None) -> Accepted | Refused:
    """Validate a chain as the API server sent it. `default_image` is the trainer's where the chain names none.

    Never raises: a defect of the operator refuses the chain that shows it, and no other.
    """
    try:
        return _accept(body, default_image)
    except Exception as error:
        metadata = body["metadata"]
        logger.exception("chain %s/%s can't be validated", metadata.get("namespace"), metadata.get("name"))
        text = f"the operator fails to read this chain ({type(error).__name__}), which is a defect of the operator"
        return Refused((f"{text}; please report it with the chain and the operator's log",))


def _accept(body: Object, default_image: str | None) -> Accepted | Refused:
    if bounded(body).get(TOO_LARGE):
        return Refused(
            ("the chain is larger than the operator keeps; write less into podTemplate, classes or shards",)
        )
    document = {name: body.get(name) for name in ("apiVersion", "kind", "metadata", "spec")}
    checked = check_object("", document)
    problems = [_text(problem.path, problem.message, problem.remedy) for problem in checked.problems]
    if checked.chain is None or checked.resolved is None:
        return Refused(tuple(problems))
    chain, resolved = checked.chain, checked.resolved
    problems = [*_cluster_problems(chain, default_image)]
    if problems:
        return Refused(tuple(problems))
    try:
        plan = cost.plan(resolved)
    except ModelChainError as error:
        return Refused((str(error),))
    accepted = Accepted(
        chain=resolved,
        store=chain.spec.store,
        jobs=_jobs(chain, resolved),
        macs={stage.name: float(stage.macs) for stage in plan.stages},
        speedup_planned=plan.speedup,
        plan=plan,
        defaults=JobDefaults(image=default_image),
    )
    problems = list(_unbuildable(accepted))
    return Refused(tuple(problems)) if problems else accepted


def _unbuildable(accepted: Accepted) -> Iterator[str]:
    """Stages whose pod template makes no job: it is a type of Kubernetes, and the schema lets anything stand in it."""
    for index, stage in enumerate(accepted.chain.stages):
        if accepted.jobs[stage.name].pod_template is None:
            continue
        try:
            accepted.backend(stage.name).build(accepted.request(stage))
        except Exception as error:  # noqa: BLE001  whatever it is, the template causes it
            what = f"{type(error).__name__}: {error}"
            yield _text(
                f"spec.stages[{index}].job.podTemplate (or spec.job.podTemplate)",
                f"it does not fit a pod ({what})",
                "compare it with kubectl explain pod.spec",
            )


def _jobs(chain: ModelChain, resolved: ResolvedChain) -> dict[str, JobSpec]:
    """What each stage's jobs are built from; a baseline is trained as its stage is."""
    jobs = {stage.name: merged(chain.spec.job, stage.job) or JobSpec() for stage in chain.spec.stages}
    runs = resolved.baseline.runs if resolved.baseline is not None else ()
    return {run.run: jobs[run.stage] for run in runs} | jobs


class Acceptance:
    """Validates every generation of a chain once."""

    def __init__(self, default_image: str | None) -> None:
        self._default_image = default_image
        self._known: OrderedDict[tuple[str, int], Accepted | Refused] = OrderedDict()

    def validate(self, body: Object) -> Accepted | Refused:
        """As `accept`, cached by generation: the answer depends on the spec only."""
        metadata = body["metadata"]
        key = (metadata["uid"], metadata.get("generation", 0))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = accept(body, default_image=self._default_image)
        self._known.move_to_end(key)
        while len(self._known) > CACHED:
            self._known.popitem(last=False)
        return known

    def forget(self, body: Object) -> None:
        """Drop the cached answer: the chain is at rest."""
        metadata = body["metadata"]
        self._known.pop((metadata["uid"], metadata.get("generation", 0)), None)


def _cluster_problems(chain: ModelChain, default_image: str | None) -> list[str]:
    """What works on one machine and not on a cluster."""
    problems: list[str] = []
    spec = chain.spec
    if "://" not in spec.store.uri:
        problems.append(
            _text(
                "spec.store.uri",
                f"{spec.store.uri!r} is a path, which pods do not share",
                "give s3://bucket/prefix, or file:///folder of a volume that every pod mounts",
            )
        )
    for index, stage in enumerate(spec.stages):
        job = merged(spec.job, stage.job) or JobSpec()
        problems += [
            _text(f"spec.stages[{index}].job.{one.field}", one.message, one.remedy)
            for one in backend_for(job).unsupported(job)
        ]
        if not (stage.image or spec.image or default_image):
            problems.append(
                _text(
                    f"spec.stages[{index}].image",
                    "no image is given, and the operator has no default one",
                    "set spec.image to an image with modelchain[trainer]",
                )
            )
    return problems


def _text(path: str, message: str, remedy: str) -> str:
    where = f"{path}: {message}" if path else message
    return f"{where}; {remedy}" if remedy else where
