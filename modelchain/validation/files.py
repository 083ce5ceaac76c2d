"""Reads a file of chains, as kubectl would, and collects what is wrong in all of its documents."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelchain.errors import MissingInputError, PermissionRefusedError, UserDataError
from modelchain.resolved import ResolvedChain
from modelchain.spec import API_VERSION, GROUP, KIND, ModelChain
from modelchain.validation.names import nearest
from modelchain.validation.problem import Finding, InvalidChain, Problem, dotted, quoted
from modelchain.validation.rules import check_rules
from modelchain.validation.structure import parse
from modelchain.yaml_reader import Document, FieldPath, JsonValue, YamlError, read_documents

STDIN = "-"


@dataclass(frozen=True)
class CheckedChain:
    """One ModelChain of a file, and what is wrong with it. `chain` and `resolved` are None if anything is."""

    chain: ModelChain | None
    problems: tuple[Problem, ...]
    resolved: ResolvedChain | None = None


def load_chains(path: Path | str) -> list[ModelChain]:
    """The chains of a file ('-' is standard input), every rule checked. Other resources in it are passed
    over.

    Raises InvalidChain with all problems of all documents, MissingInputError if there is no such file,
    PermissionRefusedError if it can't be read.

    """
    checked = check_file(path)
    problems = [problem for one in checked for problem in one.problems]
    if problems:
        raise InvalidChain(problems)
    return [one.chain for one in checked if one.chain is not None]


def check_file(path: Path | str) -> list[CheckedChain]:
    """Each document of a file that is, or was meant to be, a ModelChain.

    Raises as `load_chains`, but InvalidChain.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    text = _read(path)
    try:
        documents = read_documents(text)
    except YamlError as error:
        where = "" if error.column is None else f"column {error.column}: "
        problem = Problem(name, "", f"{where}not valid YAML: {error.message}", "", error.line)
        return [CheckedChain(None, (problem,))]
    checked = [one for document in documents for one in _check_document(name, document)]
    if not checked:
        what = "is empty" if not documents else "has no ModelChain"
        problem = Problem(
            name, "", f"the file {what}", f"start it with 'apiVersion: {API_VERSION}' and 'kind: {KIND}'"
        )
        return [CheckedChain(None, (problem,))]
    return _distinct(name, checked)


def check_object(name: str, value: dict[str, JsonValue]) -> CheckedChain:
    """A ModelChain that was read already, e.g. from the Kubernetes API. `name` is what its problems begin with."""
    chain, resolved, findings = _findings(value, [])
    problems = tuple(
        Problem(name, dotted(finding.path), finding.message, finding.remedy) for finding in findings
    )
    return CheckedChain(chain, problems, resolved)


def _distinct(file: str, checked: list[CheckedChain]) -> list[CheckedChain]:
    """Two chains of one name in a file would overwrite each other in a cluster."""
    seen: set[tuple[str, str]] = set()
    result: list[CheckedChain] = []
    for one in checked:
        if one.chain is not None:
            metadata = one.chain.metadata
            if (metadata.namespace, metadata.name) in seen:
                message = f"another chain of this file is named {quoted(metadata.name)} too"
                problem = Problem(file, "metadata.name", message, "give each a name of its own")
                one = CheckedChain(None, (problem,))
            seen.add((metadata.namespace, metadata.name))
        result.append(one)
    return result


def _read(path: Path | str) -> bytes:
    if str(path) == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file; give the path of a chain's YAML file") from None
    except IsADirectoryError:
        raise MissingInputError(f"{path}: is a folder; give the path of a chain's YAML file") from None
    except NotADirectoryError:
        raise MissingInputError(f"{path}: no such file; a part of the path is no folder") from None
    except PermissionError:
        raise PermissionRefusedError(f"{path}: permission denied; make the file readable") from None
    except (OSError, ValueError) as error:
        raise UserDataError(f"{path}: can't be read: {error}") from None


def _check_document(name: str, document: Document) -> Iterator[CheckedChain]:
    value, root = document.value, ()
    if isinstance(value, dict) and value.get("kind") == "List" and value.get("apiVersion") == "v1":
        items = value.get("items")  # what `kubectl get modelchains -o yaml` prints
        resources = [
            (item, ("items", index)) for index, item in enumerate(items if isinstance(items, list) else [])
        ]
    else:
        resources = [(value, root)]
    for resource, prefix in resources:
        if _is_other_resource(resource):
            continue
        yield _check_resource(name, document, resource, prefix)


def _is_other_resource(value: JsonValue) -> bool:
    """A resource that kubectl may apply together with the chain: a Secret, a ConfigMap ..."""
    if not isinstance(value, dict):
        return False
    kind, version = value.get("kind"), value.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        return False
    return kind != KIND and not version.startswith(f"{GROUP}/") and not nearest(kind, [KIND])


def _check_resource(name: str, document: Document, value: JsonValue, prefix: FieldPath) -> CheckedChain:
    read = [
        Finding(
            problem.path[len(prefix) :], problem.message, problem.remedy, _names(problem.path), problem.line
        )
        for problem in document.problems
        if problem.path[: len(prefix)] == prefix
    ]
    if not isinstance(value, dict):
        wrong = Finding((), f"the document is {quoted(value)}, not a {KIND}", f"start it with 'kind: {KIND}'")
        return CheckedChain(None, (_problem(name, document, prefix, wrong),))
    chain, resolved, findings = _findings(value, read)
    problems = tuple(_problem(name, document, prefix, finding) for finding in findings)
    by_line = tuple(sorted(problems, key=lambda problem: problem.line or 0))
    return CheckedChain(chain, by_line, resolved)


def _findings(
    value: dict[str, JsonValue], read: list[Finding]
) -> tuple[ModelChain | None, ResolvedChain | None, list[Finding]]:
    """The chain, if nothing is wrong with it, and all that is: found in reading, in structure, in rules."""
    resolved: ResolvedChain | None = None
    parsed = parse(value, unreadable={finding.path for finding in read})
    findings = [*read, *parsed.findings]
    if parsed.chain is not None:
        resolved, rules = check_rules(parsed.chain)
        findings += [one for one in rules if not any(one.follows_from(other) for other in findings)]
    return (None, None, findings) if findings else (parsed.chain, resolved, findings)


def _problem(name: str, document: Document, prefix: FieldPath, finding: Finding) -> Problem:
    path = (*prefix, *finding.path)
    return Problem(
        name, dotted(path), finding.message, finding.remedy, finding.line or document.line_of(path)
    )


def _names(path: FieldPath) -> frozenset[str]:
    return frozenset(part for part in path[-1:] if isinstance(part, str))
