"""Rules of spec.baseline: which models are trained alone, and by which metric they are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelchain.baselines import ALL
from modelchain.evaluations import metrics_of
from modelchain.resolve import merged
from modelchain.spec import MAX_BASELINES, BaselineSpec, EvaluationSpec, ModelChain, StageSpec
from modelchain.validation.names import any_stages, one_of_metrics, unknown_stage
from modelchain.validation.problem import STAGE_NAMES, Finding, quoted
from modelchain.yaml_reader import FieldPath

_AT: FieldPath = ("spec", "baseline")


def check_baseline(chain: ModelChain) -> Iterator[Finding]:
    """What is wrong with the block."""
    spec = chain.spec.baseline
    if spec is None:
        return
    if not spec.train:
        yield from _check_idle(spec)
        return
    yield from _check_train(spec.train, chain)
    trained = [
        stage
        for stage in chain.spec.stages
        if (stage.name in spec.train or ALL in spec.train) and not _is_frozen(stage, chain)
    ]
    runs = len(trained) * (2 if spec.budget_matched else 1)
    if runs > MAX_BASELINES:
        yield Finding(
            (*_AT, "train"),
            f"these are {runs} runs",
            f"name fewer models, for at most {MAX_BASELINES} runs",
            frozenset({"train", "budgetMatched"}),
        )
    if trained:
        yield from _check_metric(spec, trained, chain)


def _check_idle(spec: BaselineSpec) -> Iterator[Finding]:
    """A setting that nothing would ever read is a misunderstanding."""
    for name, given in (("budgetMatched", spec.budget_matched), ("metric", spec.metric)):
        if given:
            message = "nothing is trained alone that could be compared"
            yield Finding(
                (*_AT, name), message, "write train: [all] beside it, or remove it", frozenset({name})
            )


def _check_train(names: Sequence[str], chain: ModelChain) -> Iterator[Finding]:
    stages = {stage.name: stage for stage in chain.spec.stages}
    for index, name in enumerate(names):
        path, about = (*_AT, "train", index), frozenset({"train"})
        if name in names[:index]:
            yield Finding(path, f"{quoted(name)} is named twice", "name it once", about)
        elif name == ALL:
            continue
        elif name not in stages:
            message, remedy = unknown_stage(name, list(stages), any_stages(stages))
            yield Finding(path, message, remedy, about | {STAGE_NAMES})
        elif _is_frozen(stages[name], chain):
            message = f"{quoted(name)} holds existing weights and is not trained"
            yield Finding(path, message, "remove it: there is nothing to compare", about)


def _check_metric(spec: BaselineSpec, trained: Sequence[StageSpec], chain: ModelChain) -> Iterator[Finding]:
    given = {stage.name: _metrics(_evaluation(stage, chain)) for stage in trained}
    about = frozenset({"metric", "evaluation", "train"})
    if spec.metric is None:
        if not set.intersection(*map(set, given.values())):
            message = (
                "no evaluation set is measured on all of these models, so nothing says which are equally good"
            )
            yield Finding((*_AT, "train"), message, "add a set to spec.evaluation", about)
        return
    lacking = [name for name, metrics in given.items() if spec.metric not in metrics]
    if not lacking:
        return
    known = list(dict.fromkeys(metric for name in lacking for metric in given[name]))
    message = f"no evaluation of {quoted(lacking[0])} gives {quoted(spec.metric)}"
    yield Finding((*_AT, "metric"), message, one_of_metrics(spec.metric, known), about)


def _evaluation(stage: StageSpec, chain: ModelChain) -> Sequence[EvaluationSpec]:
    return (chain.spec.evaluation if stage.evaluation is None else stage.evaluation) or ()


def _metrics(evaluation: Sequence[EvaluationSpec]) -> tuple[str, ...]:
    return tuple(metric for one in evaluation for metric in metrics_of(one))


def _is_frozen(stage: StageSpec, chain: ModelChain) -> bool:
    training = merged(chain.spec.training, stage.training)
    return training is not None and training.epochs == 0
