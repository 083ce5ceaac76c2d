"""What the CRD says in CEL: rules between fields, which the API server holds a chain against before it is stored.

They are those of `modelchain.validation` that CEL can say within its cost budget, in the same words. The rest (models
by name, whether one grows out of another, the order of stages, brace ranges, quantities, pod templates) the operator
says in the condition Accepted. No rule relies on a default of training or data: digest versions may differ in it.

CEL in CRDs: Kubernetes documentation, "Common Expression Language in Kubernetes"; optional fields (`.?`) need 1.29.
A message can't name the stage: to find it costs more than the whole budget (`filter` and `map` count as unbounded).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pydantic import BaseModel

from modelchain.evaluations import EVALUATIONS, misplaced, own_fields, readers_of
from modelchain.families import FAMILIES, LanguageModelConfig, TextSpec, VisionSpec
from modelchain.spec import (
    READABLE_SCHEMES,
    DataSpec,
    DistillationSchedule,
    EvaluationSpec,
    EvaluationType,
    ExpansionSpec,
    JobSpec,
    LearningRateSchedule,
    ModelChainSpec,
    StageSpec,
    StoreSpec,
    TokenizerSpec,
    TrainingSpec,
    WeightsSpec,
)
from modelchain.tasks import TASKS, tasks_for

_TASK = "(has(self.task) ? self.task : 'Clip')"
# Fields of a stage that say its model.
_MODELS = ("model", *(family.field for family in FAMILIES))
_SIZES = {  # fields of spec.data that say how much data there is, and the tasks that read them
    task.size_field: [one.name.value for one in TASKS.values() if one.size_field == task.size_field]
    for task in TASKS.values()
}
MAX_CHAIN_NAME = 63  # the name is a label of the chain's jobs


@dataclass(frozen=True)
class Rule:
    """A validation rule; `path` is the field below `self` that the message is about."""

    expression: str
    message: str
    path: str = ""

    def to_schema(self) -> dict[str, str]:
        """As an entry of x-kubernetes-validations."""
        rule = {"rule": self.expression, "message": self.message}
        if self.path:
            rule["fieldPath"] = self.path
        return rule


CHAIN_RULES = (
    Rule(
        f"self.metadata.name.size() <= {MAX_CHAIN_NAME}",
        f"the name is too long, and the chain's jobs carry it as a label; write at most {MAX_CHAIN_NAME} characters",
        ".metadata.name",
    ),
)


# Spec-level rules speak of `s`, a stage, and of `self`, the spec; a stage's value counts before the chain's. The API
# server asks them at every write of a status, and each field that is looked up costs: hence the chain's own values are
# looked up once for all stages, and what is rarely given is asked for first.

_FIELDS = {
    "batch": "training.globalBatchSize",
    "samples": "data.samples",
    "epochs": "training.epochs",
    "warmup": "training.warmupSteps",
    "micro": "training.microBatchSize",
    "peak": "training.learningRate",
    "floor": "training.minimumLearningRate",
    "nodes": "job.nodes",
    "processes": "job.processesPerNode",
    "gpus": "job.gpusPerNode",
}


def _optional(owner: str, field: str) -> str:
    """CEL: the optional value of `block.field`."""
    return owner + "".join(f".?{part}" for part in field.split("."))


def _no_stage(condition: str, message: str, path: str) -> Rule:
    """No stage `s` is like that. In the condition, `{batch}` is the optional value of that field that holds for the
    stage.
    """
    expression = f"self.stages.all(s, !({condition}))"
    for name, field in _FIELDS.items():
        if (placeholder := f"{{{name}}}") in condition:
            expression = expression.replace(placeholder, f"{_optional('s', field)}.or({name})")
            expression = f"[{_optional('self', field)}].all({name}, {expression})"
    return Rule(expression, message, path)


def _missing(
    field: str, remedy: str, tasks: Sequence[str] | None = None, *, or_field: str | None = None
) -> Rule:
    """A field that each stage of chains of these tasks (None: of all) needs, or another one in its place."""
    others = "" if tasks is None else f"!({_TASK} in {list(tasks)}) || "

    def given(owner: str) -> str:
        fields = [field] if or_field is None else [field, or_field]
        return " || ".join(f"{_optional(owner, one)}.hasValue()" for one in fields)

    return Rule(
        f"{others}{given('self')} || self.stages.all(s, {given('s')})",
        f"{field} is missing; {remedy}, here or in every stage",
        f".{field}",
    )


def _is_one_of(tasks: Sequence[str]) -> str:
    """CEL: whether the chain's task is one of these."""
    return f"{_TASK} == '{tasks[0]}'" if len(tasks) == 1 else f"{_TASK} in {list(tasks)}"


_GPUS = "{gpus}.orValue(1)"
_WORLD = f"({{nodes}}.orValue(1) * {{processes}}.orValue({_GPUS} > 0 ? {_GPUS} : 1))"


def _given(*names: str) -> str:
    return " && ".join(f"{{{name}}}.hasValue()" for name in names)


_FITTING = (
    _no_stage(
        f"{_given('samples', 'batch')} && {{samples}}.value() < {{batch}}.value()",
        "the samples do not fill one batch; write a smaller training.globalBatchSize, or add samples",
        ".data.samples",
    ),
    _no_stage(
        f"{_given('warmup', 'epochs', 'samples', 'batch')} && {{samples}}.value() >= {{batch}}.value()"
        " && {epochs}.value() > 0 && {warmup}.value() >= {epochs}.value() * ({samples}.value() / {batch}.value())",
        "the warm-up does not end within the stage; write fewer training.warmupSteps, or remove it for the default",
        ".training.warmupSteps",
    ),
    _no_stage(
        f"{_given('batch')} && {{batch}}.value() % {_WORLD} != 0",
        "the batch does not divide among the processes (job.nodes x job.processesPerNode); write a multiple of them",
        ".training.globalBatchSize",
    ),
    _no_stage(
        f"{_given('micro', 'batch')} && {{batch}}.value() % {_WORLD} == 0"
        f" && type({{micro}}.value()) == int && {{batch}}.value() / {_WORLD} % {{micro}}.value() != 0",
        "micro-batches do not divide the samples of each process; write a divisor of globalBatchSize / processes",
        ".training.microBatchSize",
    ),
    _no_stage(
        f"{_given('floor', 'peak')} && {{floor}}.value() > {{peak}}.value()",
        "the learning rate would rise at the end; write a minimumLearningRate of at most learningRate",
        ".training.minimumLearningRate",
    ),
)

_SPEC = (
    _no_stage(
        "!self.stages.exists_one(t, t.name == s.name)",
        "two stages have the same name; give each stage a name of its own",
        ".stages",
    ),
    _no_stage(
        "has(s.from) && !self.stages.exists(t, t.name == s.from)",
        "from names no stage; name one of the stages before it",
        ".stages",
    ),
    _no_stage(
        "has(s.fromWeights) && s.name != self.stages[0].name",
        "a stage that grows out of another can't start from other weights too; keep fromWeights to the first stage",
        ".stages",
    ),
    Rule(
        "!has(self.stages[0].distillation)",
        "distillation: the first stage has no predecessor to learn from; remove it, or set spec.distillation",
        ".stages",
    ),
    Rule(
        "!has(self.stages[0].expansion) || has(self.stages[0].fromWeights)",
        "expansion: the first stage has no predecessor to grow out of; remove it, or set spec.expansion",
        ".stages",
    ),
    Rule(
        "!has(self.baseline) || !has(self.baseline.train)"
        " || self.baseline.train.all(n, n == 'all' || self.stages.exists(s, s.name == n))",
        "train names no stage; name stages of this chain, or [all]",
        ".baseline.train",
    ),
    Rule(
        "!has(self.baseline) || (has(self.baseline.train) && self.baseline.train.size() > 0)"
        " || !(has(self.baseline.metric) || self.?baseline.budgetMatched.orValue(false))",
        "nothing is trained alone that could be compared; write train: [all], or remove metric and budgetMatched",
        ".baseline",
    ),
    *(
        Rule(
            f"{_is_one_of(tasks)} || self.stages.all(s, !has(s.{field}))",
            f"{field} is a model of task {' or '.join(tasks)}, and the chain's is another; "
            "write a model of its task, or give the chain another task",
            ".stages",
        )
        for field, tasks in (
            ("model", ("Clip",)),
            *((one.field, tuple(task.name.value for task in tasks_for(one.config))) for one in FAMILIES),
        )
    ),
    _missing("data.shards", "list the tars to train on", or_field="data.sources"),
    *(
        _missing(
            f"data.{size}",
            f"write how many {size} all shards have together",
            tasks,
            or_field="data.sources" if size == "samples" else None,
        )
        for size, tasks in _SIZES.items()
    ),
    _missing("training.epochs", "write how many times each sample is seen"),
    *_FITTING,
)

_CAN_BE_WRITTEN = (
    "self.startsWith('file:///') || (self.startsWith('s3://') && self.size() > 5 && !self.startsWith('s3:///'))"
    " || !(self.contains('://') || self.startsWith('s3:') || self.startsWith('file:'))"
)
_STORE_URI = Rule(
    _CAN_BE_WRITTEN, "can't be used as a store; write s3://bucket/prefix, file:///folder or a path"
)
_URI = Rule(
    " || ".join([_CAN_BE_WRITTEN, *(f"self.startsWith('{scheme}://')" for scheme in READABLE_SCHEMES)]),
    "can't be read; write s3://bucket/prefix, https://server/path, file:///folder or a path",
)


def _default(field: str) -> int:
    """A size of the image tower that is left out."""
    return next(info.default for info in VisionSpec.model_fields.values() if info.alias == field)


def _or_default(field: str) -> str:
    return f"(has(self.{field}) ? self.{field} : {_default(field)})"


_HEADS = Rule(
    "self.width % self.heads == 0",
    "the heads do not divide the width; make width a multiple of heads",
    ".heads",
)


def _is_of_type(kinds: Iterable[EvaluationType]) -> str:
    """CEL: whether a set is of one of these types."""
    return f"self.type in [{', '.join(repr(str(kind)) for kind in kinds)}]"


def _evaluation_rules() -> Iterator[Rule]:
    """What sets of each type need, and which fields they have (modelchain/evaluations.py)."""
    for kind, evaluation in EVALUATIONS.items():
        if evaluation.one_of:
            needs, remedy = evaluation.lacks
            given = " || ".join(f"has(self.{field})" for field in evaluation.one_of)
            yield Rule(f"self.type != '{kind}' || {given}", f"a {kind} set needs {needs}; {remedy}")
    training = [kind for kind, evaluation in EVALUATIONS.items() if evaluation.trains]
    yield Rule(
        f"!({_is_of_type(training)}) || !has(self.everySteps)",
        f"{' and '.join(training)} sets are evaluated once, at the end of a stage; remove everySteps",
        ".everySteps",
    )
    for of_data in (False, True):
        for field in own_fields(of_data=of_data):
            readers = readers_of(field, of_data=of_data)
            path = f"data.{field}" if of_data else field
            message, remedy = misplaced(field, of_data=of_data)
            yield Rule(f"{_is_of_type(readers)} || !has(self.{path})", f"{message}; {remedy}", f".{path}")
            if of_data and not any(kind in training for kind in readers):
                path = f"trainData.{field}"
                yield Rule(f"!has(self.trainData) || !has(self.{path})", f"{message}; remove it", f".{path}")


_UNITS = Rule(
    "!has(self.mlpRatio) || double(self.width) * self.mlpRatio >= 1.0",
    "this leaves the MLP without units; write about 4",
    ".mlpRatio",
)

BLOCK_RULES: Mapping[type[BaseModel], tuple[Rule, ...]] = {
    DataSpec: (
        Rule(
            "!has(self.sources) || !(has(self.shards) || has(self.samples))",
            "sources have shards and samples of their own; remove those beside them, or make them a source",
            ".sources",
        ),
    ),
    ModelChainSpec: _SPEC,
    StageSpec: (
        Rule(
            " || ".join(f"has(self.{field})" for field in _MODELS),
            f"the stage has no model; write {', '.join(_MODELS[:-1])} or {_MODELS[-1]}",
        ),
        *(
            Rule(
                f"!(has(self.{one}) && has(self.{other}))",
                f"both {one} and {other} are given; remove one of the two",
                f".{other}",
            )
            for one, other in combinations(_MODELS, 2)
        ),
        Rule(
            "!has(self.from) || self.from != self.name",
            "a stage can't grow out of itself; name one of the stages before it",
            ".from",
        ),
    ),
    EvaluationSpec: (
        *_evaluation_rules(),
        Rule(
            "!(has(self.classes) && has(self.classesUri))",
            "both classes and classesUri are given; remove one of the two",
            ".classesUri",
        ),
    ),
    LearningRateSchedule: (
        Rule(
            "!has(self.decayFraction) || (has(self.type) && self.type == 'WarmupStableDecay')",
            "a Cosine schedule has no decayFraction; write type: WarmupStableDecay, or remove it",
            ".decayFraction",
        ),
    ),
    TrainingSpec: (
        Rule(
            "!(has(self.sharding) && self.sharding == 'Full' && has(self.compile) && self.compile)",
            "blocks that gather their weights (sharding: Full) are not compiled; remove it,"
            " or write sharding: Optimizer",
            ".compile",
        ),
    ),
    ExpansionSpec: tuple(
        Rule(
            f"!(has(self.width) && self.width == 'Fresh' && has(self.{field}))",
            f"nothing grows under width: Fresh, so {field} is never used; remove it, or write another width",
            f".{field}",
        )
        for field in ("depth", "weights", "optimizerState")
    ),
    DistillationSchedule: tuple(
        Rule(
            f"!has(self.{field}) || (has(self.type) && self.type == 'Linear')",
            f"a Constant schedule has no {field}; write type: Linear, or remove it",
            f".{field}",
        )
        for field in ("until", "endWeight")
    ),
    JobSpec: (
        Rule(
            "!has(self.processesPerNode) || !has(self.gpusPerNode) || self.gpusPerNode == 0"
            " || self.processesPerNode <= self.gpusPerNode",
            "each process needs a GPU of its own; write at most gpusPerNode, or gpusPerNode: 0 to train on the CPU",
            ".processesPerNode",
        ),
    ),
    VisionSpec: (
        Rule(
            f"self.width % {_or_default('headWidth')} == 0",
            "heads do not divide the width; make width a multiple of headWidth"
            f" ({_default('headWidth')} unless given)",
            ".headWidth",
        ),
        Rule(
            f"{_or_default('imageSize')} % {_or_default('patchSize')} == 0",
            f"patches do not divide the image; make imageSize ({_default('imageSize')} unless given) a multiple of"
            f" patchSize ({_default('patchSize')} unless given)",
            ".patchSize",
        ),
        _UNITS,
    ),
    TextSpec: (_HEADS, _UNITS),
    LanguageModelConfig: (_HEADS, _UNITS),
}

# Rules of one field: `self` is its value, or with [] each of its items.
FIELD_RULES: Mapping[tuple[type[BaseModel], str], tuple[Rule, ...]] = {
    (StoreSpec, "uri"): (_STORE_URI,),
    (StoreSpec, "endpointUrl"): (
        Rule(
            "self.startsWith('http://') || self.startsWith('https://')",
            "no address of a server; start it with http:// or https://, e.g. http://minio:9000",
        ),
    ),
    (DataSpec, "shards[]"): (_URI,),
    (DataSpec, "randomCropScale"): (
        Rule("self[0] <= self[1]", "the smallest area is above the largest; write the smaller one first"),
    ),
    (EvaluationSpec, "classesUri"): (_URI,),
    (EvaluationSpec, "templates[]"): (
        Rule(
            "self.contains('{}')",
            "no place for the class name; write {} where it belongs: 'a photo of a {}.'",
        ),
    ),
    (WeightsSpec, "uri"): (_URI,),
    (TokenizerSpec, "uri"): (_URI,),
    **{
        (kind, "evaluation"): (
            Rule(
                "self.all(e, self.exists_one(f, f.name == e.name))",
                "two sets have the same name; give each set a name of its own",
            ),
        )
        for kind in (ModelChainSpec, StageSpec)
    },
}
