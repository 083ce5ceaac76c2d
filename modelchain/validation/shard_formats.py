"""Shards that the name shows to be of no format that their reader takes: tars, and lines of JSON for documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modelchain.evaluations import evaluation_of
from modelchain.resolve import merged
from modelchain.shards import LINES, is_lines
from modelchain.spec import DataSpec, EvaluationSpec, ModelChain
from modelchain.tasks import Task
from modelchain.uri import holds_credentials
from modelchain.validation.problem import Finding, quoted
from modelchain.yaml_reader import FieldPath

_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4")
_OTHERS = (
    *(".txt", ".csv", ".tsv", ".ndjson", ".parquet", ".arrow", ".feather", ".tfrecord", ".zip", ".7z"),
    *(".h5", ".hdf5", ".npy", ".npz", ".pkl", ".lmdb", ".sqlite", ".warc", ".jpg", ".jpeg", ".png", ".webp"),
)


def check_shard_formats(chain: ModelChain, task: Task) -> Iterator[Finding]:
    """Shards of training data and of evaluation sets, and keys that lines of JSON have no field for."""
    spec = chain.spec
    documents = ("data", "textKey") in task.own_fields
    holders: list[tuple[FieldPath, DataSpec | None, DataSpec | None, Sequence[EvaluationSpec]]] = [
        (("spec",), spec.data, spec.data, spec.evaluation or ())
    ]
    for number, stage in enumerate(spec.stages):
        at = ("spec", "stages", number)
        holders.append((at, stage.data, merged(spec.data, stage.data), stage.evaluation or ()))
    for at, own, whole, evaluations in holders:
        key = whole.text_key if whole is not None else None
        if own is not None:
            yield from _check_formats(own.shards or (), (*at, "data", "shards"), documents=documents)
            for index, source in enumerate(own.sources or ()):
                where = (*at, "data", "sources", index, "shards")
                yield from _check_formats(source.shards, where, documents=documents)
            says = own.shards is not None or own.text_key is not None
            if documents and says and whole is not None:
                yield from _check_key(whole.shards or (), key, (*at, "data"), own)
        for index, evaluation in enumerate(evaluations):
            of_documents = "textKey" in evaluation_of(evaluation).data_fields
            place = (*at, "evaluation", index)
            for block, data in (("data", evaluation.data), ("trainData", evaluation.train_data)):
                if data is not None:
                    where = (*place, block, "shards")
                    yield from _check_formats(data.shards, where, documents=of_documents)
            if of_documents:
                used = evaluation.data.text_key or key
                yield from _check_key(evaluation.data.shards, used, (*place, "data"), evaluation.data)


def _check_formats(patterns: Sequence[str], at: FieldPath, *, documents: bool) -> Iterator[Finding]:
    if any(holds_credentials(pattern) for pattern in patterns):
        return  # what a message must not repeat; refused for that
    wanted = f"tars of text files, or as {LINES}" if documents else "webdataset tars"
    fitting = True
    for index, pattern in enumerate(patterns):
        name = pattern.partition("?")[0].lower()
        remedy = f"write the data as {wanted}"
        if name.startswith("pipe:"):
            wrong, remedy = "is webdataset's way to run a program", "name the files themselves, or copies"
        elif name.endswith(_COMPRESSED):
            wrong, remedy = "is compressed, and can't be read in parts", "unpack it"
        elif name.endswith(".json"):
            wrong = "is one JSON document"
            remedy += "; of a shard index of webdataset, write what `modelchain samples` prints"
        elif name.endswith(_OTHERS) or (is_lines(name) and not documents):
            wrong = f"is neither a tar nor a {LINES} file" if documents else "is no tar"
        else:
            continue
        fitting = False
        yield Finding((*at, index), f"{quoted(pattern)} {wrong}", remedy, frozenset({"shards", "task"}))
    of_lines = [is_lines(pattern) for pattern in patterns]
    if documents and fitting and any(of_lines) and not all(of_lines):
        message = f"{quoted(patterns[of_lines.index(False)])} stands beside shards of lines of JSON"
        remedy = f"write all shards as {LINES}, or all as tars"
        yield Finding((*at, of_lines.index(False)), message, remedy, frozenset({"shards", "task"}))


def _check_key(patterns: Sequence[str], key: str | None, at: FieldPath, own: object) -> Iterator[Finding]:
    """Lines of JSON have fields: a key without one reads nothing of them. `own`: the block that may say the key."""
    if key is None or ":" in key or not any(is_lines(pattern) for pattern in patterns):
        return
    field = "textKey" if getattr(own, "text_key", None) is not None else "shards"
    message = f"the shards hold lines of JSON, and textKey {quoted(key)} names a kind of file in a tar"
    remedy = f"write textKey: json:{'text' if key in ('txt', 'json', 'jsonl') else key} beside the shards"
    yield Finding((*at, field), message, remedy, frozenset({"textKey", "shards"}))
