"""Helm as an administrator runs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.control_plane import binaries
from tests.processes import PATIENCE_SECONDS

CHART = Path(__file__).parents[2] / "charts" / "modelchain"
RELEASE, NAMESPACE = "modelchain", "modelchain-system"
Object = dict[str, Any]


def helm(
    *arguments: str, kubeconfig: Path | None = None, check: bool = True, timeout: float = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run Helm; without a kubeconfig it reaches no cluster."""
    done = subprocess.run(
        [binaries.path("helm"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "KUBECONFIG": str(kubeconfig or os.devnull)},
    )
    if check and done.returncode:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done


def render(*arguments: str, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> str:
    """`helm template` with these values."""
    given = [] if values is None else ["--set-json", *_assignments(values)]
    return helm("template", RELEASE, str(chart), "--namespace", NAMESPACE, *given, *arguments).stdout


def objects(text: str) -> list[Object]:
    """The objects of a rendered chart."""
    return [document for document in yaml.safe_load_all(text) if document]


def only(found: Sequence[Object], kind: str) -> Object:
    """The one object of a kind."""
    (item,) = [one for one in found if one["kind"] == kind]
    return item


def environment(deployment: Object, pod_name: str) -> dict[str, str]:
    """What the operator's container is told, as a kubelet would tell it."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.name": pod_name}
    return {
        one["name"]: fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        if "valueFrom" in one
        else one.get("value", "")
        for one in container["env"]
    }


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [",".join(f"{name}={json.dumps(value)}" for name, value in values.items())]
