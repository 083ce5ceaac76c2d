"""Write the reference pages from the types and parsers that they describe.

    python docs/generate_reference.py

Each page is written by hand but for what stands between `<!-- begin generated: NAME -->` and `<!-- end generated -->`.
`NAME` is a function of GENERATORS. The pages are committed, so they read well without a build, and
tests/docs/test_reference.py fails where one is not what this program would write.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, WrapValidator
from pydantic.fields import FieldInfo

from modelchain import digest, spec, status
from modelchain.cli import build_parser
from modelchain.families import FAMILIES, clip, open_clip_adapter, towers
from modelchain_operator import settings

DOCS = Path(__file__).parent
WIDTH = 98  # characters that a line of code has on a page
REGION = re.compile(r"(<!-- begin generated: ([a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)

# Blocks of the spec, in the order in which people write them, and where each may stand.
SPEC_BLOCKS: Mapping[str, tuple[type[BaseModel], str]] = {
    "spec": (spec.ModelChainSpec, ""),
    "store": (spec.StoreSpec, "spec.store"),
    "store.secretRef": (spec.CredentialsReference, "spec.store"),
    "store.secretRef.keys": (spec.CredentialKeys, "spec.store.secretRef"),
    "store.caBundleRef": (spec.BundleReference, "spec.store"),
    "data": (spec.DataSpec, "spec.data, spec.stages[].data"),
    "data.sources": (spec.DataSourceSpec, "an item of sources"),
    "evaluation": (spec.EvaluationSpec, "an item of spec.evaluation, spec.stages[].evaluation"),
    "evaluation.data": (spec.EvaluationDataSpec, "the data of an evaluation set"),
    "evaluation.fineTune": (spec.FineTuneSpec, "the recipe of a FineTune set"),
    "training": (spec.TrainingSpec, "spec.training, spec.stages[].training"),
    "training.schedule": (spec.LearningRateSchedule, "the schedule of the learning rate"),
    "distillation": (spec.DistillationSpec, "spec.distillation, spec.stages[].distillation"),
    "distillation.schedule": (spec.DistillationSchedule, "the schedule of distillation"),
    "expansion": (spec.ExpansionSpec, "spec.expansion, spec.stages[].expansion"),
    "baseline": (spec.BaselineSpec, "spec.baseline"),
    "job": (spec.JobSpec, "spec.job, spec.stages[].job"),
    "job.schedulingPolicy": (spec.SchedulingPolicySpec, "gang scheduling of a PyTorchJob"),
    "retry": (spec.RetrySpec, "spec.retry, spec.stages[].retry"),
    "stages": (spec.StageSpec, "an item of spec.stages"),
    "modelConfig": (clip.ModelConfig, "spec.stages[].modelConfig"),
    "modelConfig.vision": (towers.VisionSpec, "the vision of spec.stages[].modelConfig and classifierConfig"),
    "modelConfig.text": (clip.TextSpec, "the text of spec.stages[].modelConfig and openClipConfig"),
    **{family.field: (family.config, f"spec.stages[].{family.field}") for family in FAMILIES[1:]},
    "openClipConfig.vision": (open_clip_adapter.ImageTowerSpec, "spec.stages[].openClipConfig.vision"),
    "data.tokenizer": (spec.TokenizerSpec, "spec.data.tokenizer, spec.stages[].data.tokenizer"),
    "fromWeights": (spec.WeightsSpec, "spec.stages[].fromWeights"),
}
STATUS_BLOCKS: Mapping[str, tuple[type[BaseModel], str]] = {
    "status": (status.ChainStatus, ""),
    "stages": (status.StageStatus, "an item of status.stages, status.baselines"),
    "lastEnded": (status.EndedAttempt, "status.stages[].lastEnded"),
    "quality": (status.Quality, "status.quality"),
    "columns": (status.Columns, "status.columns"),
    "measurement": (status.Measurement, "status.measurement"),
    "measurement.models": (status.ModelMeasured, "an item of status.measurement.models"),
    "formerStages": (status.FormerStage, "an item of status.formerStages"),
    "conditions": (status.Condition, "an item of status.conditions"),
}
# Without a default in the types, as a stage would otherwise hide the chain's value; but a stage needs one.
_NEEDED = {
    "data.shards": "required, here or for the chain, or `sources`",
    "data.samples": "required, here or for the chain, or `sources` or `tokens`",
    "training.epochs": "required, here or for the chain",
}
_PATTERNS = {
    r"^[a-z]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and dashes",
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$": "name of an object",
    r"^[-._a-zA-Z0-9]+$": "key of a Secret or ConfigMap",
    r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$": "value of a label",
    r"^[A-Za-z0-9_.-]{1,64}$": "letters, digits and _.-, at most 64",
    r"^[a-z][-a-z0-9]*/[A-Za-z0-9@]+$": "set/metric",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
    "^(True|False|Unknown)$": "",
    "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9])?$": "one word",
}
_DEFAULT = re.compile(r" ?Default: (.+?)\.(?= [A-Z]|$)")


def main() -> int:
    """Rewrite every page that has a generated part."""
    for page in pages():
        text = page.read_text()
        if (new := regenerated(text)) != text:
            page.write_text(new)
            print(f"{page.relative_to(DOCS.parent)}: written", file=sys.stderr)
    return 0


def pages() -> list[Path]:
    """The pages with a generated part."""
    return [page for page in sorted(DOCS.rglob("*.md")) if REGION.search(page.read_text())]


def regenerated(text: str) -> str:
    """A page with its generated parts as they should be."""
    return REGION.sub(lambda found: f"{found[1]}\n{GENERATORS[found[2]]()}\n{found[3]}", text)


def spec_reference() -> str:
    """Every field of `spec`."""
    return "\n".join(_blocks(SPEC_BLOCKS, "spec"))


def status_reference() -> str:
    """Every field of `status`."""
    return "\n".join(_blocks(STATUS_BLOCKS, "status"))


def cli_reference() -> str:
    """Every command of `modelchain`, from its parsers."""
    parser = build_parser()
    lines: list[str] = []
    for action in parser._actions:  # noqa: SLF001  argparse has no other way to ask for its commands
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, command in action.choices.items():
                lines += _command(f"modelchain {name}", command, level=2)
    return "\n".join(lines)


def cluster_flags() -> str:
    """The flags that every command with a cluster takes."""
    group = next(one for one in build_parser()._action_groups if one.title == "cluster")  # noqa: SLF001
    return "\n".join(_options(group._group_actions))  # noqa: SLF001


def operator_reference() -> str:
    """Every flag of the operator, by group."""
    parser = settings.build_parser()
    lines: list[str] = []
    for group in parser._action_groups:  # noqa: SLF001
        actions = [action for action in group._group_actions if action.dest not in ("help", "version")]  # noqa: SLF001
        if actions:
            title = str(group.title)
            lines += [f"## {title[0].upper()}{title[1:]}", "", *_operator_flags(actions), ""]
    return "\n".join([*lines, _escaped(str(parser.epilog)), ""])


GENERATORS: Mapping[str, Callable[[], str]] = {
    "spec": spec_reference,
    "status": status_reference,
    "cli": cli_reference,
    "cluster-flags": cluster_flags,
    "operator-flags": operator_reference,
}


def _blocks(blocks: Mapping[str, tuple[type[BaseModel], str]], root: str) -> Iterator[str]:
    for name, (kind, where) in blocks.items():
        yield f"## {name if name == root else f'{root}.{name}'}"
        yield ""
        if where:
            yield f"Stands in: {where}."
            yield ""
        yield "| Field | Type | Default | What it is |"
        yield "| --- | --- | --- | --- |"
        for field, info in kind.model_fields.items():
            yield _row(name, str(info.alias or field), info)
        yield ""


def _row(block: str, field: str, info: FieldInfo) -> str:
    text = " ".join((info.description or "").split())
    found = _DEFAULT.search(text)
    text = _DEFAULT.sub("", text) if found else text
    if decides_weights(block, field):
        text += " **In the digest.**"
    return f"| `{field}` | {_type(info)} | {_default(block, field, info, found)} | {_escaped(text)} |"


def _default(block: str, field: str, info: FieldInfo, found: re.Match[str] | None) -> str:
    if found:
        return _escaped(_code_if_value(found[1]))
    if info.is_required():
        return "required"
    if needed := _NEEDED.get(f"{block}.{field}"):
        return needed
    value = info.get_default(call_default_factory=True) if info.default_factory is not None else info.default
    if value is None or value in ((), {}, ""):
        return "none"
    return f"`{_plain(value)}`"


def _code_if_value(text: str) -> str:
    """Values as code, sentences as they are."""
    quoted = re.fullmatch(r"'(.*)'", text)
    if quoted or (re.fullmatch(r"\S+|\[[^\]]*\]", text) and text not in ("AWS", "all", "none")):
        return f"`{quoted[1] if quoted else text}`"
    return text


def decides_weights(block: str, field: str) -> bool:
    """Whether another value gives the stage another digest. (The tables of the digest are the truth about that.)"""
    tables: Mapping[str, Mapping[str, object]] = {
        "data": {**digest._DATA, "shards": None, "sources": None},  # noqa: SLF001
        "data.sources": {**digest._SOURCE, "shards": None},  # noqa: SLF001
        "training": {**digest._TRAINING, "schedule": None},  # noqa: SLF001
        "training.schedule": digest._LEARNING_RATE_SCHEDULE,  # noqa: SLF001
        "distillation": {**digest._DISTILLATION, "schedule": None, "teacher": None},  # noqa: SLF001
        "distillation.schedule": digest._DISTILLATION_SCHEDULE,  # noqa: SLF001
        "expansion": digest._EXPANSION,  # noqa: SLF001
        "modelConfig.vision": towers.VISION_DIGEST,
        "modelConfig.text": clip.TEXT_DIGEST,
        "openClipConfig.vision": open_clip_adapter.IMAGE_TOWER_DIGEST,
        **{one.field: {**one.digest, "vision": None, "text": None} for one in FAMILIES},
        "data.tokenizer": digest._TOKENIZER,  # noqa: SLF001
        "stages": dict.fromkeys(("model", *(family.field for family in FAMILIES), "from", "fromWeights")),
        "fromWeights": {"sha256": None},
        "spec": {"task": None},
    }
    return field in tables.get(block, ())


def _type(info: FieldInfo) -> str:
    return _escaped(_named(info.annotation, info.metadata))


def _named(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and its limits, in words."""
    metadata = list(metadata)
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        metadata = [*more, *metadata]
    if get_origin(kind) in (Union, types.UnionType):
        options = [one for one in get_args(kind) if one is not type(None)]
        return " or ".join(_named(one, metadata) for one in options)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{_heading(kind)}](#{_heading(kind).lower().replace('.', '')})"
    limits = _limits(metadata)
    if get_origin(kind) in (list, tuple):
        item = next(one for one in get_args(kind) if one is not Ellipsis)
        return f"list{_count(limits)} of {_named(item)}"
    if kind is dict or get_origin(kind) is dict:
        arguments = get_args(kind)
        values = (
            _named(arguments[1]) if len(arguments) == 2 and arguments[1] is not Any else "values as in a pod"
        )
        return f"map{_count(limits)} of {values}"
    names = {int: "integer", float: "number", str: "text", bool: "boolean"}
    auto = f", or `{spec.AUTO}`" if any(isinstance(one, WrapValidator) for one in metadata) else ""
    return names[kind] + _range(kind, limits) + auto


def _limits(metadata: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in metadata:
        parts = one.metadata if isinstance(one, FieldInfo) else [one]
        for part in parts:
            for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
                value = getattr(part, name, None)
                if value is not None:
                    found[name] = value
    return found


def _range(kind: type, limits: Mapping[str, Any]) -> str:
    if kind is str:
        parts = []
        if pattern := limits.get("pattern"):
            parts += [words] if (words := _PATTERNS.get(pattern, f"`{pattern}`")) else []
        if longest := limits.get("max_length"):
            parts.append(f"at most {longest} characters")
        return f" ({', '.join(parts)})" if parts else ""
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if "ge" in limits and "le" in limits:
        return f", {_plain(low)} to {_plain(high)}" if low != high else f", {_plain(low)}"
    parts = []
    if low is not None:
        parts.append(f"{'at least' if 'ge' in limits else 'over'} {_plain(low)}")
    if high is not None:
        parts.append(f"{'at most' if 'le' in limits else 'under'} {_plain(high)}")
    return f", {', '.join(parts)}" if parts else ""


def _count(limits: Mapping[str, Any]) -> str:
    low, high = limits.get("min_length"), limits.get("max_length")
    if low is not None and low == high:
        return f" ({low})"
    if low and high:
        return f" ({low} to {high})"
    return f" (at most {high})" if high else ""


def _plain(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 2**16 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _heading(kind: type[BaseModel]) -> str:
    """Of the section that has its fields."""
    for root, blocks in (("spec", SPEC_BLOCKS), ("status", STATUS_BLOCKS)):
        for name, (one, _) in blocks.items():
            if one is kind:
                return name if name == root else f"{root}.{name}"
    raise LookupError(f"{kind.__name__} has no section of its own")


def _command(title: str, parser: argparse.ArgumentParser, *, level: int) -> list[str]:
    positional = [one for one in parser._actions if not one.option_strings]  # noqa: SLF001
    own = [
        action
        for group in parser._action_groups  # noqa: SLF001
        for action in group._group_actions  # noqa: SLF001
        if group.title != "cluster" and action.option_strings and action.dest != "help"
    ]
    clustered = any(group.title == "cluster" for group in parser._action_groups)  # noqa: SLF001
    usage = " ".join([title, "[options]" if own or clustered else "", *(map(_placeholder, positional))])
    lines = [f"{'#' * level} {title}", "", _escaped(" ".join(str(parser.description).split())), ""]
    lines += ["```text", " ".join(usage.split()), "```", ""]
    lines += [*_options([*positional, *own]), ""]
    if clustered:
        lines += ["Also the [flags that say which cluster](#which-cluster).", ""]
    if parser.epilog:
        text = str(parser.epilog)
        lines += ["```text", *_wrapped(text), "```", ""] if "\n" in text else [_escaped(text), ""]
    return lines


def _wrapped(text: str) -> Iterator[str]:
    """A laid out text, its paragraphs and the second column of its lists broken for the width of a page."""
    paragraphs: list[tuple[int, str]] = []  # with the place where their text stands
    for line in text.rstrip().splitlines():
        begins = len(line) - len(line.lstrip())
        if paragraphs and line.strip() and paragraphs[-1][1] and begins == paragraphs[-1][0]:
            hanging, before = paragraphs.pop()
            paragraphs.append((hanging, f"{before} {line.strip()}"))
            continue
        column = re.match(r" *\S+(?: \S+)*  +", line)
        paragraphs.append((column.end() if column else begins, line))
    for hanging, line in paragraphs:
        yield from textwrap.wrap(line, WIDTH, subsequent_indent=" " * hanging, break_on_hyphens=False) or [""]


def _options(actions: Iterable[argparse.Action]) -> list[str]:
    rows = [f"| {_flag(action)} | {_escaped(_help(action))} |" for action in actions]
    return ["| Argument | What it does |", "| --- | --- |", *rows] if rows else []


def _operator_flags(actions: Iterable[argparse.Action]) -> list[str]:
    lines = ["| Flag, and environment variable | Default | What it does |", "| --- | --- | --- |"]
    for action in actions:
        found = re.fullmatch(r"(.*) \(default: (.*)\) \[([A-Z_]+)\]", _help(action), re.DOTALL)
        if found is None:
            raise ValueError(
                f"{action.option_strings}: its help does not end in its default and its variable"
            )
        text, default, variable = found.groups()
        lines.append(f"| {_flag(action)}<br>`{variable}` | {_escaped(default)} | {_escaped(text)} |")
    return lines


def _flag(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_placeholder(action)}`"
    value = "" if action.nargs == 0 else f" {_placeholder(action)}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _placeholder(action: argparse.Action) -> str:
    if action.choices is not None:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    elif isinstance(action.metavar, str):
        name = action.metavar
    else:
        name = action.dest.upper()
    return {"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _help(action: argparse.Action) -> str:
    return " ".join((action.help or "").replace("%%", "%").split())


def _escaped(text: str) -> str:
    """As Markdown shows it in a table: no column ends inside, and nothing is taken for HTML."""
    parts = re.split(r"(`[^`]*`|\[[\w.]+\]\(#\w+\)|\*\*In the digest\.\*\*)", text)
    plain = [
        part if index % 2 else part.replace("<", "&lt;").replace("*", "\\*")
        for index, part in enumerate(parts)
    ]
    return "".join(plain).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
