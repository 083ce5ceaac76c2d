"""Which models of a chain are trained alone, for how long, under which names, and by which metric they are compared.

A baseline is an ordinary stage without predecessor. One that has the digest of a stage of the chain (the first, where
it is trained for as many epochs) is that stage: it is trained once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence

from modelchain.cost import stage_macs
from modelchain.evaluations import leading_metrics, metrics_of
from modelchain.resolved import BaselineRun, ResolvedBaseline, ResolvedStage, needed_for
from modelchain.spec import BaselineSpec

ALL = "all"  # in spec.baseline.train: every model of the family
MAX_NAME = 30  # as of a stage that a user names: the name of a job has room for it
MOST_EPOCHS = 100_000  # as training.epochs


def resolve_baseline(
    spec: BaselineSpec | None,
    stages: Sequence[ResolvedStage],
    epochs: int,
    alone: Callable[[ResolvedStage, int], ResolvedStage],
) -> tuple[ResolvedBaseline | None, tuple[ResolvedStage, ...]]:
    """What is compared, and the stages to train for it that are not among the chain's.

    `alone` resolves the model of a stage, trained alone for so many epochs.
    """
    metric = baseline_metric(spec, stages)
    wanted = baseline_stages(spec, stages)
    if spec is None or metric is None or not wanted:
        return None, ()
    runs: list[BaselineRun] = []
    trained: dict[str, ResolvedStage] = {stage.digest: stage for stage in stages}
    made: list[ResolvedStage] = []
    for stage in wanted:
        whole = alone(stage, epochs)
        budget = sum(stage_macs(each) for each in needed_for([stage.name], stages))
        planned: list[tuple[ResolvedStage, str, int | None]] = [(whole, "alone", None)]
        if spec.budget_matched:
            matched = alone(stage, matched_epochs(budget, whole))
            planned.append((matched, "alone-matched", budget))
        for run, suffix, macs in planned:
            known = trained.get(run.digest)
            if known is None:
                taken = {each.name for each in (*stages, *made)}
                name = _free_name(stage.name, suffix, taken)
                known = run.model_copy(update={"name": name, "index": len(stages) + len(made)})
                trained[run.digest] = known
                made.append(known)
            if (stage.name, known.name) not in {(each.stage, each.run) for each in runs}:
                runs.append(BaselineRun(stage=stage.name, run=known.name, budget_macs=macs))
    return ResolvedBaseline(metric=metric, runs=tuple(runs)), tuple(made)


def baseline_stages(spec: BaselineSpec | None, stages: Sequence[ResolvedStage]) -> tuple[ResolvedStage, ...]:
    """The stages whose models are trained alone, in the chain's order; a frozen stage is nothing to train."""
    names = spec.train or () if spec is not None else ()
    return tuple(stage for stage in stages if stage.training.epochs and (stage.name in names or ALL in names))


def matched_epochs(budget_macs: int, whole: ResolvedStage) -> int:
    """The whole number of epochs, at least 1, that comes closest to a budget. `whole`: the model alone."""
    an_epoch = stage_macs(whole) / whole.training.epochs
    return min(MOST_EPOCHS, max(1, round(budget_macs / an_epoch)))


def baseline_metric(spec: BaselineSpec | None, stages: Sequence[ResolvedStage]) -> str | None:
    """The metric by which models are compared: the one that is named, else the leading one of a set that all are
    evaluated on; None if nothing is trained alone, or there is no such set.
    """
    wanted = baseline_stages(spec, stages)
    if spec is None or not wanted:
        return None
    if spec.metric is not None:
        return spec.metric
    common = set.intersection(
        *({metric for one in stage.evaluation for metric in metrics_of(one)} for stage in wanted)
    )
    return next((metric for metric in leading_metrics(wanted[-1].evaluation) if metric in common), None)


def _free_name(stage: str, suffix: str, taken: Collection[str]) -> str:
    """<stage>-<suffix>; where that is too long or taken, a hash of it stands for what is cut off."""
    name, room = f"{stage}-{suffix}", MAX_NAME - len(suffix) - 1
    salt = 0
    while len(name) > MAX_NAME or name in taken:
        short = hashlib.sha256(f"{stage}\0{salt}".encode()).hexdigest()[:4]
        name = f"{stage[: room - 5].rstrip('-')}-{short}-{suffix}"
        salt += 1
    return name
