"""Rules of single blocks, wherever they are written: at the chain or in a stage."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping

from pydantic.alias_generators import to_camel

from modelchain import shards
from modelchain.block import Block
from modelchain.cluster_labels import CONTAINER
from modelchain.endpoint import ENDPOINT_FORM, is_authority, is_endpoint
from modelchain.evaluations import evaluation_of, misplaced, own_fields, readers_of
from modelchain.mix import seen_in_epoch
from modelchain.spec import (
    READABLE_SCHEMES,
    WEIGHTS_SUFFIXES,
    DataSourceSpec,
    DataSpec,
    DistillationScheduleType,
    DistillationSpec,
    EvaluationSpec,
    JobSpec,
    LearningRateScheduleType,
    ModelChain,
    TrainingSpec,
)
from modelchain.uri import CONTROL_CHARACTERS, holds_credentials
from modelchain.validation.job_metadata import check_job_metadata
from modelchain.validation.names import nearest
from modelchain.validation.problem import Finding, quoted
from modelchain.yaml_reader import FieldPath

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_RESOURCE_FIELDS = ("requests", "limits", "claims")
_AFFINITY_FIELDS = ("nodeAffinity", "podAffinity", "podAntiAffinity")
_POD_TEMPLATE_FIELDS = ("metadata", "spec")
_NAMED_LISTS = ("containers", "initContainers", "volumes")  # of a pod; merged by name over the generated ones
# Lists of a container, merged by that field over ours.
_KEYED_LISTS = {
    "env": ("name", str),
    "ports": ("containerPort", int),
    "volumeMounts": ("mountPath", str),
    "volumeDevices": ("devicePath", str),
}
MAX_POD_TEMPLATE = (
    65536  # bytes of JSON; a job holds it once for each kind of replica, beside the stage itself
)
_OWN_VARIABLE = re.compile(
    r"MODELCHAIN_STAGE|MODELCHAIN_ATTEMPT|PET_.+|RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|JOB_COMPLETION_INDEX"
)
_BRACES = re.compile(r"\{[^{}]*\}")  # ranges of shards: each is of one server or another
_TOLERATION_FIELDS = ("key", "operator", "value", "effect", "tolerationSeconds")


def check_blocks(chain: ModelChain) -> Iterator[Finding]:
    """What is wrong within a block."""
    spec, root = chain.spec, ("spec",)
    yield from _check_uri(spec.store.uri, ("spec", "store", "uri"), only_read=False)
    yield from _check_endpoint(spec.store.endpoint_url, ("spec", "store", "endpointUrl"))
    for at, holder in (
        (root, spec),
        *((("spec", "stages", i), stage) for i, stage in enumerate(spec.stages)),
    ):
        if holder.data is not None:
            yield from _check_data(holder.data, (*at, "data"))
        if holder.evaluation is not None:
            yield from _check_evaluations(holder.evaluation, (*at, "evaluation"))
        if holder.training is not None:
            yield from _check_learning_rate_schedule(holder.training, (*at, "training"))
        if holder.distillation is not None:
            yield from _check_schedule(holder.distillation, (*at, "distillation"))
        if holder.job is not None:
            yield from _check_job(holder.job, (*at, "job"))
    for index, stage in enumerate(spec.stages):
        if stage.from_weights is not None:
            at = ("spec", "stages", index, "fromWeights", "uri")
            yield from _check_uri(stage.from_weights.uri, at)
            yield from _check_weights_file(stage.from_weights.uri, at)


# How programs end the names of weights that can't be read, or of what lies beside weights.
_NO_WEIGHTS = (".ckpt", ".gguf", ".h5", ".json", ".msgpack", ".npz", ".onnx", ".tar", ".yaml", ".zip")


def _check_weights_file(uri: str, path: FieldPath) -> Iterator[Finding]:
    if uri.partition("?")[0].lower().endswith(_NO_WEIGHTS) and not holds_credentials(uri):
        message = f"{quoted(uri)} names no file of weights that can be read"
        remedy = f"write a folder, or a file that ends in {', '.join(WEIGHTS_SUFFIXES[:-1])} or {WEIGHTS_SUFFIXES[-1]}"
        yield _finding(path, message, remedy)


# ~, ~user, $NAME, ${NAME}, also behind a scheme; a ~ or $ within a name is a name.
_OF_A_SHELL = re.compile(r"(?:file:/{0,3})?~(?:/|[A-Za-z_][\w-]*/|$)|.*\$(?:[A-Za-z_]|\{)")


_INSTEAD_OF_KEYS = (
    "remove it and name a Secret with the keys under store.secretRef (on a laptop: AWS_* variables)"
)


def _finding(path: FieldPath, message: str, remedy: str, *about: str) -> Finding:
    names = {part for part in path[-2:] if isinstance(part, str)}
    return Finding(path, message, remedy, frozenset(names | set(about)))


def _check_text(uri: str, path: FieldPath, instead: str) -> Iterator[Finding]:
    """Control characters, and keys: neither is quoted, since messages reach more people than the chain does.
    `instead`: of keys in an address.
    """
    if re.search(f"[{CONTROL_CHARACTERS}]", uri):
        yield _finding(path, "the address holds control characters", "write it without")
    elif holds_credentials(uri):
        message = (
            "the address holds a user, a password, a token or a key, which all readers of the chain can read"
        )
        yield _finding(path, message, instead)


def _check_uri(uri: str, path: FieldPath, *, only_read: bool = True) -> Iterator[Finding]:
    scheme, separator, rest = uri.partition("://")
    instead = "remove it; copy what is not public to S3" if scheme in ("http", "https") else _INSTEAD_OF_KEYS
    if unfit := list(_check_text(uri, path, instead)):
        yield from unfit
        return
    if _OF_A_SHELL.match(uri):
        message = f"{quoted(uri)}: ~ and variables are only known to a shell"
        yield _finding(path, message, "write the path itself, or one relative to this file")
        return
    if uri.startswith("hf-hub:"):
        message = f"{quoted(uri)} is open_clip's way to name a repository of a hub"
        yield _finding(path, message, f"write hf://{uri.removeprefix('hf-hub:')}, or a folder with its files")
        return
    if not separator:
        if re.match(r"(s3|file):", uri):
            yield _finding(path, f"{quoted(uri)} lacks slashes", "write s3://bucket/prefix or file:///folder")
        return
    if scheme == "s3":
        if not rest.partition("/")[0]:
            yield _finding(path, f"{quoted(uri)} names no bucket", "write s3://bucket/prefix")
    elif only_read and scheme in ("http", "https"):
        server = re.split("[/?#]", _BRACES.sub("0", rest))[0]
        if not is_authority(server):
            message = f"{quoted(uri)} names {quoted(server) + ', which is ' if server else ''}no server"
            yield _finding(path, message, f"write {scheme}://server/path")
    elif only_read and scheme in READABLE_SCHEMES:
        if not rest.partition("/")[0]:
            yield _finding(path, f"{quoted(uri)} names no bucket", f"write {scheme}://bucket/path")
    elif scheme != "file":
        elsewhere = "https://server/path, " if only_read else ""
        remedy = f"use s3://bucket/prefix, {elsewhere}file:///folder or a path"
        yield _finding(path, f"{scheme}:// can't be {'read' if only_read else 'used as a store'}", remedy)
    elif not rest.startswith("/"):
        remedy = f"write file:///{rest} for the path /{rest}, or a relative path without file://"
        yield _finding(path, f"{quoted(uri)} is no absolute path", remedy)


def _check_endpoint(url: str | None, path: FieldPath) -> Iterator[Finding]:
    if url is None:
        return
    if unfit := list(_check_text(url, path, _INSTEAD_OF_KEYS)):
        yield from unfit
    elif not is_endpoint(url):
        message = f"{quoted(re.split('[?#]', url)[0])} is no address of a server"
        remedy = "start it with http:// or https://" if "://" not in url else f"write {ENDPOINT_FORM}"
        if "?" in url or "#" in url:
            message += " alone: a query or a fragment is none"
        yield _finding(path, message, f"{remedy}, e.g. http://minio:9000")


def _check_data(data: DataSpec, at: FieldPath) -> Iterator[Finding]:
    if data.shards is not None:
        yield from _check_shards(data.shards, (*at, "shards"))
    if data.sources is not None:
        yield from _check_sources(data.sources, (*at, "sources"))
    if data.tokenizer is not None:
        yield from _check_uri(data.tokenizer.uri, (*at, "tokenizer", "uri"))
    if data.caption_keys is not None:
        yield from _check_caption_keys(data.caption_keys, (*at, "captionKeys"))
    if data.image_keys is not None:
        yield from _check_distinct(data.image_keys, (*at, "imageKeys"), "extension")
    if data.random_crop_scale is not None:
        low, high = data.random_crop_scale
        if low > high:
            message = f"the smallest area {low:g} is above the largest {high:g}"
            yield _finding((*at, "randomCropScale"), message, f"write [{high:g}, {low:g}]")


def _check_sources(sources: list[DataSourceSpec], at: FieldPath) -> Iterator[Finding]:
    unreadable = False
    for index, source in enumerate(sources):
        found = list(_check_shards(source.shards, (*at, index, "shards")))
        unreadable |= bool(found)
        yield from found
        if source.repeat is not None and not seen_in_epoch(source.samples, source.repeat):
            message = f"{source.repeat:g} times {source.samples} samples are none an epoch"
            remedy = f"write at least {1 / source.samples:g}, or remove the source"
            yield _finding((*at, index, "repeat"), message, remedy, "samples")
    if unreadable:
        return
    patterns = [pattern for source in sources for pattern in source.shards]
    yield from _check_all_shards(patterns, at, "in two sources", "list it once, with a higher repeat")


def _check_shards(patterns: list[str], at: FieldPath) -> Iterator[Finding]:
    readable = []
    for index, pattern in enumerate(patterns):
        if unfit := list(_check_uri(pattern, (*at, index))):
            yield from unfit
            continue
        try:
            shards.count(pattern)
            readable.append(pattern)
        except shards.ShardPatternError as error:
            message, _, remedy = str(error).partition("; ")
            yield _finding((*at, index), message, remedy, "shards")
    twice = "twice, so its samples would be seen twice an epoch"
    yield from _check_all_shards(readable, at, twice, "list it once")


def _check_all_shards(patterns: list[str], at: FieldPath, twice: str, remedy: str) -> Iterator[Finding]:
    """How many there are of readable patterns, and whether one occurs again, which `twice` and `remedy` tell."""
    if (total := sum(map(shards.count, patterns))) > shards.MAX_SHARDS:
        message = f"{total} shards in all, more than {shards.MAX_SHARDS}"
        yield _finding(at, message, "check the ranges, or write fewer, larger shards", "shards")
        return
    duplicate = shards.first_duplicate([shard for pattern in patterns for shard in shards.expand(pattern)])
    if duplicate is not None:
        yield _finding(at, f"shard {quoted(duplicate)} occurs {twice}", remedy, "shards")


def _check_caption_keys(keys: list[str], at: FieldPath) -> Iterator[Finding]:
    yield from _check_distinct(keys, at, "caption")
    for index, key in enumerate(keys):
        if key.lower().rpartition(".")[2] == "json":
            message = f"{quoted(key)} is a file of JSON, whose text would be learnt as it stands"
            yield _finding((*at, index), message, f"name the field that holds the caption: {key}:caption")


def _check_distinct(names: list[str], at: FieldPath, what: str) -> Iterator[Finding]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield _finding((*at, index), f"{what} {quoted(name)} is listed twice", "remove one of the two")


def _check_evaluations(evaluations: list[EvaluationSpec], at: FieldPath) -> Iterator[Finding]:
    names = [evaluation.name for evaluation in evaluations]
    for index, evaluation in enumerate(evaluations):
        own: FieldPath = (*at, index)
        if evaluation.name in names[:index]:
            message = f"{quoted(evaluation.name)} is the name of another set too"
            yield _finding((*own, "name"), message, "give each set a name of its own")
        yield from _check_shards(evaluation.data.shards, (*own, "data", "shards"))
        yield from _check_evaluation(evaluation, own)


def _check_evaluation(evaluation: EvaluationSpec, at: FieldPath) -> Iterator[Finding]:
    """What a set of its type needs, and what nothing would read."""
    rules = evaluation_of(evaluation)
    given = _given(evaluation)
    yield from _check_fields_of_type(evaluation, given, at)
    yield from _check_fields_of_type(evaluation, _given(evaluation.data), (*at, "data"), of_data=True)
    if rules.trains and evaluation.train_data is not None:
        train_data = _given(evaluation.train_data)
        yield from _check_fields_of_type(evaluation, train_data, (*at, "trainData"), of_data=True)
    if rules.one_of and given.isdisjoint(rules.one_of):
        needs, remedy = rules.lacks
        message = f"a {evaluation.type} set needs {needs}"
        yield _finding((*at, rules.one_of[0]), message, remedy, *rules.one_of[1:], "evaluation.type")
    if rules.trains and evaluation.every_steps is not None:
        message = f"a {evaluation.type} set is evaluated once, at the end of a stage"
        yield _finding((*at, "everySteps"), message, "remove it", "evaluation.type")
    if evaluation.classes is not None and evaluation.classes_uri is not None:
        message = "both classes and classesUri are given"
        yield _finding((*at, "classesUri"), message, "remove one of the two", "classes")
    if evaluation.classes_uri is not None:
        yield from _check_uri(evaluation.classes_uri, (*at, "classesUri"))
    for index, template in enumerate(evaluation.templates or ()):
        if "{}" not in template:
            message = f"{quoted(template)} has no place for the class name"
            yield _finding(
                (*at, "templates", index), message, "write {} where it belongs: 'a photo of a {}.'"
            )
    if evaluation.train_data is not None:
        yield from _check_shards(evaluation.train_data.shards, (*at, "trainData", "shards"))
    if evaluation.data.caption_keys is not None:
        yield from _check_caption_keys(evaluation.data.caption_keys, (*at, "data", "captionKeys"))


def _given(block: Block) -> set[str]:
    """The fields that are written."""
    return {to_camel(name) for name in block.model_fields_set}


def _check_fields_of_type(
    evaluation: EvaluationSpec, given: Collection[str], at: FieldPath, *, of_data: bool = False
) -> Iterator[Finding]:
    """Fields, of the set or of its data, that sets of other types have."""
    for field in own_fields(of_data=of_data):
        if field in given and evaluation.type not in readers_of(field, of_data=of_data):
            message, remedy = misplaced(field, of_data=of_data)
            if "trainData" in at:  # the types that have the field need not have trainData
                remedy = "remove it"
            yield _finding(
                (*at, field), f"{message}, this one is {evaluation.type}", remedy, "evaluation.type"
            )


def _check_learning_rate_schedule(training: TrainingSpec, at: FieldPath) -> Iterator[Finding]:
    schedule = training.schedule
    if schedule is None or schedule.type is LearningRateScheduleType.WARMUP_STABLE_DECAY:
        return
    if schedule.decay_fraction is not None:
        message = "a Cosine schedule has no decayFraction"
        remedy = "write type: WarmupStableDecay, or remove it"
        yield _finding((*at, "schedule", "decayFraction"), message, remedy, "schedule.type")


def _check_schedule(distillation: DistillationSpec, at: FieldPath) -> Iterator[Finding]:
    schedule = distillation.schedule
    if schedule is None or schedule.type is DistillationScheduleType.LINEAR:
        return
    for name, value in (("until", schedule.until), ("endWeight", schedule.end_weight)):
        if value is not None:
            message = f"a Constant schedule has no {name}"
            yield _finding(
                (*at, "schedule", name), message, "write type: Linear, or remove it", "schedule.type"
            )


def _check_job(job: JobSpec, at: FieldPath) -> Iterator[Finding]:
    if job.gpus_per_node and job.processes_per_node and job.processes_per_node > job.gpus_per_node:
        message = (
            f"{job.processes_per_node} processes share {job.gpus_per_node} GPUs, each needs one of its own"
        )
        remedy = f"write at most {job.gpus_per_node}, or gpusPerNode: 0 to train on the CPU"
        yield _finding((*at, "processesPerNode"), message, remedy, "gpusPerNode")
    yield from check_job_metadata(job, at)
    yield from _check_resources(job, (*at, "resources"))
    for index, toleration in enumerate(job.tolerations or ()):
        yield from _check_known(toleration, _TOLERATION_FIELDS, (*at, "tolerations", index))
    if job.affinity is not None:
        yield from _check_known(job.affinity, _AFFINITY_FIELDS, (*at, "affinity"))
    if job.pod_template is not None:
        yield from _check_pod_template(job.pod_template, (*at, "podTemplate"))


def _check_pod_template(template: Mapping[str, object], at: FieldPath) -> Iterator[Finding]:
    yield from _check_known(template, _POD_TEMPLATE_FIELDS, at)
    size = len(json.dumps(template))
    if size > MAX_POD_TEMPLATE:
        message = f"the template has {size} bytes as JSON, a job has room for {MAX_POD_TEMPLATE}"
        yield _finding(at, message, "keep what is long in a ConfigMap and mount it")
    for name in _POD_TEMPLATE_FIELDS:
        if not isinstance(template.get(name, {}), dict):
            message = f"is {quoted(template[name])}, a mapping is needed"
            yield _finding((*at, name), message, "write fields under it, indented", "podTemplate")
    metadata = template.get("metadata")
    if isinstance(metadata, dict):
        yield from _check_metadata(metadata, (*at, "metadata"))
    spec = template.get("spec")
    if isinstance(spec, dict):
        yield from _check_own_fields(spec, (*at, "spec"))
    for name in _NAMED_LISTS:
        items = spec.get(name, []) if isinstance(spec, dict) else []
        if not isinstance(items, list):
            message = f"is {quoted(items)}, a list is needed"
            remedy = "write it as a list, each item with a name"
            yield _finding((*at, "spec", name), message, remedy, "podTemplate")
            continue
        for index, item in enumerate(items):
            if not (isinstance(item, dict) and isinstance(item.get("name"), str)):
                remedy = "give it one: the container named pytorch is the trainer's, any other is added"
                remedy = remedy if name == "containers" else "give it one"
                yield _finding(
                    (*at, "spec", name, index), "has no name to merge it by", remedy, "podTemplate"
                )
            elif name != "volumes":
                yield from _check_container(item, (*at, "spec", name, index))


def _check_container(container: Mapping[str, object], at: FieldPath) -> Iterator[Finding]:
    """What of it is read or merged here; the rest the API server holds against its types."""
    for name, (key, kind) in _KEYED_LISTS.items():
        items = container.get(name)
        if items is not None and not isinstance(items, list):
            message = f"is {quoted(items)}, a list is needed"
            yield _finding((*at, name), message, f"write it as a list, each item with {key}", "podTemplate")
            continue
        for index, item in enumerate(items or ()):
            if not (isinstance(item, dict) and isinstance(item.get(key), kind)):
                yield _finding((*at, name, index), f"has no {key}", "give it one", "podTemplate")
    resources = container.get("resources")
    parts = resources if isinstance(resources, dict) else {}
    if not isinstance(resources, dict | None) or not all(
        isinstance(parts.get(name, {}), dict | None) for name in ("requests", "limits")
    ):
        message = "is no mapping of requests and limits"
        yield _finding((*at, "resources"), message, "write e.g. {requests: {cpu: 8}}", "podTemplate")


def _check_own_fields(spec: Mapping[str, object], at: FieldPath) -> Iterator[Finding]:
    """What says which attempt a pod is, and that it is made anew by the chain alone."""
    if "restartPolicy" in spec:
        message = "pods are never restarted in place: the chain counts attempts"
        yield _finding((*at, "restartPolicy"), message, "remove it; spec.retry says how often", "podTemplate")
    containers = spec.get("containers")
    for index, container in enumerate(containers if isinstance(containers, list) else ()):
        if not isinstance(container, dict) or container.get("name") != CONTAINER:
            continue
        env = container.get("env")
        for place, item in enumerate(env if isinstance(env, list) else ()):
            name = item.get("name") if isinstance(item, dict) else None
            if isinstance(name, str) and _OWN_VARIABLE.fullmatch(name):
                message = f"{name} tells the trainer which attempt it is, and is set for it"
                path = (*at, "containers", index, "env", place)
                yield _finding(path, message, "remove it", "podTemplate")


def _check_metadata(metadata: Mapping[str, object], at: FieldPath) -> Iterator[Finding]:
    yield from _check_known(metadata, ("labels", "annotations"), at)
    for name, entries in metadata.items():
        if not isinstance(entries, dict | None):
            message = f"is {quoted(entries)}, a mapping is needed"
            yield _finding((*at, name), message, "write fields under it, indented", "podTemplate")
        for key, value in entries.items() if isinstance(entries, dict) else ():
            if str(key).startswith("modelchain.dev/"):
                message = "the operator knows its pods by the names that begin with modelchain.dev/"
                yield _finding((*at, name, str(key)), message, "choose another name", "podTemplate")
            if not isinstance(value, str):
                message = f"is {quoted(value)}, a text is needed"
                remedy = f'put it in quotes: "{quoted(value)}"'
                yield _finding((*at, name, str(key)), message, remedy, "podTemplate")


def _check_resources(job: JobSpec, at: FieldPath) -> Iterator[Finding]:
    if job.resources is None:
        return
    yield from _check_known(job.resources, _RESOURCE_FIELDS, at)
    for kind in ("requests", "limits"):
        amounts = job.resources.get(kind, {})
        if not isinstance(amounts, dict):
            message = f"is {quoted(amounts)}, a mapping is needed"
            yield _finding((*at, kind), message, "write e.g. {cpu: 8, memory: 64Gi}", "resources")
            continue
        for resource, amount in amounts.items():
            path = (*at, kind, str(resource))
            if isinstance(amount, bool) or not _QUANTITY.fullmatch(str(amount)):
                message = f"{quoted(amount)} is no quantity of Kubernetes"
                yield _finding(path, message, _quantity_remedy(str(resource), amount), "resources")
            elif resource == (job.gpu_resource_name or "nvidia.com/gpu"):
                message = "the GPUs of a pod are set by job.gpusPerNode"
                yield _finding(path, message, f"remove it and write gpusPerNode: {amount}", "resources")


def _quantity_remedy(resource: str, amount: object) -> str:
    match = re.fullmatch(r"([0-9.]+)\s*([KMGTPE])(i?)B?|([0-9.]+)\s*([kmgtpe])(i?)b?", str(amount))
    if resource in ("memory", "ephemeral-storage") and match:
        number, unit = match[1] or match[4], (match[2] or match[5]).upper()
        return f"write {number}{unit}i (powers of 1024) or {number}{unit} (powers of 1000)"
    return "write e.g. 8 or 500m for cpu, 64Gi for memory"


def _check_known(value: Mapping[str, object], known: tuple[str, ...], at: FieldPath) -> Iterator[Finding]:
    for name in value:
        if name not in known:
            near = nearest(name, known)
            remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            yield _finding((*at, name), f"there is no field {quoted(name)}", remedy)
