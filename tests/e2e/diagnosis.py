"""What a failed run shows of the cluster."""

from __future__ import annotations

from tests.e2e.cluster import kubectl
from tests.e2e.settings import Settings


def show(settings: Settings) -> None:
    """Print chains, pods, events and logs of the run's namespaces."""
    everything = "modelchains,deployments,pytorchjobs,jobs,pods"
    for namespace in (settings.system_namespace, settings.namespace):
        _show("get", everything, "-o", "wide", "-n", namespace)
    _show("describe", "modelchains", "-n", settings.namespace)
    for namespace in (settings.system_namespace, settings.namespace):
        _show("get", "events", "--sort-by=.lastTimestamp", "-n", namespace)
    release = f"app.kubernetes.io/instance={settings.release}"  # the operator, and what `helm test` runs
    _show("logs", "-l", release, "--tail=20", "--prefix", "-n", settings.system_namespace)
    _show("logs", "-l", "modelchain.dev/stage", "--tail=30", "--prefix", "-n", settings.namespace)


def _show(*arguments: str) -> None:
    text = kubectl(*arguments, check=False)
    if text.strip():
        print(f"\n--- kubectl {' '.join(arguments)}\n{text.rstrip()}", flush=True)
