"""The chart's release: installed, upgraded and uninstalled by helm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.e2e.cluster import exists, helm, kubectl, wait_for_deployment, wait_until
from tests.e2e.settings import Failed, Settings

CHART = Path(__file__).parents[2] / "charts" / "modelchain"
CRD = "modelchains.modelchain.dev"
READY_SECONDS = 300.0  # with the pull of its image


class Release:
    """One release of the chart, in the run's own namespace."""

    def __init__(self, settings: Settings) -> None:
        self._name, self._namespace = (
            settings.release,
            settings.system_namespace,
        )  # its Deployment's name as well
        self._values = [
            *_image("image", settings.operator_image),
            *_image("trainer.image", settings.trainer_image),
            "--set=allowedEndpoints={*}",  # the run's store speaks http
            "--set=progressSeconds=1",  # so that the run sees in time how far a stage is
        ]

    def install(self) -> None:
        """`helm install`; the operator is ready then, and may do in the cluster what it has to."""
        helm("install", self._name, str(CHART), "-n", self._namespace, *self._values)
        wait_for_deployment(self._name, self._namespace, seconds=READY_SECONDS)
        helm("test", self._name, "-n", self._namespace)

    def upgrade(self, values: Mapping[str, str]) -> None:
        """`helm upgrade` with other values; the operator's pod is another one then."""
        before = self.operator_pods()
        changes = [f"--set={name}={value}" for name, value in values.items()]
        helm("upgrade", self._name, str(CHART), "-n", self._namespace, "--reuse-values", *changes)
        wait_for_deployment(self._name, self._namespace, seconds=READY_SECONDS)
        if before & self.operator_pods():
            raise Failed(f"helm upgrade --set {values} left the operator's pod as it was: {before}")

    def uninstall(self) -> None:
        """`helm uninstall`; its pod is gone then, which helm does not wait for."""
        helm("uninstall", self._name, "-n", self._namespace, "--wait", "--timeout=2m")
        wait_until(lambda: not self.operator_pods(), "the operator's pod is gone", seconds=60)

    def operator_pods(self) -> set[str]:
        """Names of the operator's pods."""
        labels = f"app.kubernetes.io/instance={self._name},app.kubernetes.io/name=modelchain"
        return set(kubectl("get", "pods", "-n", self._namespace, "-l", labels, "-o", "name").split())


def has_crd() -> bool:
    """Whether the cluster has the kind ModelChain."""
    return exists("crd", CRD)


def _image(value: str, image: str) -> list[str]:
    """The values of the chart that name an image."""
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon is of a port, or there is none
        repository, tag = name, ""
    if not tag and not digest:
        raise Failed(f"{image}: say which by a tag or a digest")
    return [
        f"--set-string={value}.{key}={text}"
        for key, text in (("repository", repository), ("tag", tag), ("digest", digest))
    ]
