"""Values that name something: what is said where nothing is called so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import ValidationError

from modelchain.evaluations import metrics_of
from modelchain.spec import STAGE_NAME, EvaluationSpec
from modelchain.validation.problem import quoted
from modelchain.yaml_reader import FieldPath, JsonValue, value_at

TEACHER_OF_ALL: Final = (
    "the stages before the teacher could not learn from it",
    "name the teacher in the distillation of each stage that it teaches",
)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Names in `known` that look like `name`, best first, at most two: case, dashes and underscores do not
    count.
    """
    from difflib import get_close_matches

    plain = {_plain(one): one for one in known}
    if _plain(name) in plain:
        return [plain[_plain(name)]]
    return [plain[match] for match in get_close_matches(_plain(name), plain, n=2, cutoff=0.7)]


def unknown_stage(name: str, known: Sequence[str], otherwise: str) -> tuple[str, str]:
    """Message and remedy where no stage of `known` is called `name`; the remedy `otherwise` where none is like it."""
    near = nearest(name, known)
    return f"no stage is named {quoted(name)}", f"did you mean {near[0]}?" if near else otherwise


def earlier_stages(names: Sequence[str]) -> str:
    """The remedy of a field that names a stage before its own, of which these are all."""
    return f"name one of the stages before it: {', '.join(names)}" if names else "remove it"


def any_stages(names: Iterable[str]) -> str:
    """The remedy of a field that names some stages, or all."""
    return f"name stages ({', '.join(names)}), or [all]"


def one_of_metrics(metric: str, known: Sequence[str]) -> str:
    """The remedy where no metric of `known` is called `metric`."""
    if not known:
        return "add an evaluation set, or name models that are evaluated"
    near = nearest(metric, known)
    return f"did you mean {near[0]}?" if near else f"write one of {', '.join(known[:8])}"


def misnamed(path: FieldPath, name: str, document: JsonValue) -> tuple[str, str] | None:
    """Message and remedy of a field whose text could be no name of a stage or metric, by what the document has of
    them. None of a field that names neither, and where a stage is called so against the rules.
    """
    match path:
        case ("spec", "stages", int(index), *_, "from" | "teacher"):
            known = _stages(document, index)
            found = unknown_stage(name, known, earlier_stages(known))
        case ("spec", "baseline", "train", int()):
            known = _stages(document)
            found = unknown_stage(name, known, any_stages(known))
        case ("spec", "distillation", "teacher"):
            return TEACHER_OF_ALL
        case ("spec", "baseline", "metric"):
            return f"no evaluation gives {quoted(name)}", one_of_metrics(name, _metrics(document))
        case _:
            return None
    called_so = any(stage.get("name") == name for stage in _entries(document, ("spec", "stages")))
    return None if called_so else found


def _stages(document: JsonValue, before: int | None = None) -> list[str]:
    """The names of stages, of those before a position, that are names."""
    names = [stage.get("name") for stage in _entries(document, ("spec", "stages"))[:before]]
    return [name for name in names if isinstance(name, str) and re.fullmatch(STAGE_NAME, name)]


def _metrics(document: JsonValue) -> list[str]:
    """What the evaluation sets give, of the chain and of its stages, as far as they can be read."""
    stages = [("spec", "stages", index) for index in range(len(_entries(document, ("spec", "stages"))))]
    sets = [one for block in (("spec",), *stages) for one in _entries(document, (*block, "evaluation"))]
    return list(dict.fromkeys(metric for one in sets for metric in _metrics_of(one)))


def _metrics_of(written: JsonValue) -> tuple[str, ...]:
    try:
        return metrics_of(EvaluationSpec.model_validate(written))
    except ValidationError:
        return ()


def _entries(document: JsonValue, path: FieldPath) -> list[dict[str, JsonValue]]:
    """The mappings of a list; an empty one where something else stands."""
    listed = value_at(document, path)
    return [one if isinstance(one, dict) else {} for one in listed] if isinstance(listed, list) else []


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
