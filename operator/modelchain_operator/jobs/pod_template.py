"""The pods of a job: image, resources, node selection, environment and security context.

They pass the `restricted` Pod Security level:
https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelchain.artifacts import attempt_prefix
from modelchain.cluster_labels import CONTAINER
from modelchain.errors import ConfigurationError
from modelchain.resolved import ATTEMPT_VARIABLE, STAGE_ENVIRONMENT_VARIABLE
from modelchain.spec import BundleKind, BundleReference
from modelchain_operator.jobs.merge import merge
from modelchain_operator.jobs.request import JobRequest, own_annotations, own_labels
from modelchain_operator.kubernetes.api import Object

COMMAND = ["python", "-m", "modelchain_trainer"]
CA_FOLDER = "/etc/modelchain/ca"
CA_FILE = "ca.crt"
DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
# The pod's own limit only matters without an operator that ends it in time: it counts from before the image
# is pulled and the other pods have started.
TIMEOUT_MARGIN_SECONDS = 3600


def build_pod_template(
    request: JobRequest, *, ports: Sequence[Object] = (), env: Sequence[Object] = ()
) -> Object:
    """The template of every pod of the job, with the user's `podTemplate` merged over it.

    What tells a pod which attempt it is can't be overridden. Raises ConfigurationError without an image.
    """
    own_env = [*_environment(request), *env]
    generated: Object = {
        "metadata": {"labels": own_labels(request), "annotations": own_annotations(request)},
        "spec": _pod_spec(request, _container(request, ports, own_env)),
    }
    template = merge(generated, request.spec.pod_template or {})
    metadata, spec = template.setdefault("metadata", {}), template.setdefault("spec", {})
    metadata["labels"] = {**metadata.get("labels", {}), **own_labels(request)}
    metadata["annotations"] = {**metadata.get("annotations", {}), **own_annotations(request)}
    spec.pop("restartPolicy", None)
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        if "resources" in container:
            container["resources"] = _quantities(container["resources"])
    trainer = next(container for container in spec["containers"] if container["name"] == CONTAINER)
    own = {item["name"] for item in own_env if is_reserved(item["name"])}
    trainer["env"] = [
        *(item for item in own_env if item["name"] in own),
        *(item for item in trainer.get("env", []) if item["name"] not in own),
    ]
    return template


def is_reserved(variable: str) -> bool:
    """Whether a variable says which attempt a pod is, so that a chain may not set it."""
    return variable in (STAGE_ENVIRONMENT_VARIABLE, ATTEMPT_VARIABLE) or variable.startswith("PET_")


def _pod_spec(request: JobRequest, container: Object) -> Object:
    spec, store = request.spec, request.store
    volumes: list[Object] = [
        {"name": "dshm", "emptyDir": {"medium": "Memory"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if store.ca_bundle_ref:
        volumes.append({"name": "ca", **_bundle(store.ca_bundle_ref)})
    pod: Object = {
        "containers": [container],
        "volumes": volumes,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": request.stage.job.termination_grace_period_seconds,
        "automountServiceAccountToken": False,  # for the Kubernetes API, which a trainer does not use
        "enableServiceLinks": False,  # a Service named `master` would set MASTER_PORT
    }
    if request.stage.job.active_deadline_seconds:
        pod["activeDeadlineSeconds"] = request.stage.job.active_deadline_seconds + TIMEOUT_MARGIN_SECONDS
    for name, value in (
        ("nodeSelector", spec.node_selector),
        ("tolerations", spec.tolerations),
        ("affinity", spec.affinity),
        ("priorityClassName", spec.priority_class_name),
        ("serviceAccountName", spec.service_account_name),
    ):
        if value:
            pod[name] = value
    return pod


def _container(request: JobRequest, ports: Sequence[Object], env: Sequence[Object]) -> Object:
    stage, defaults = request.stage, request.defaults
    image = stage.image or defaults.image
    if not image:
        raise ConfigurationError(f"stage {stage.name} names no image: set spec.image")
    mounts = [{"name": "dshm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if request.store.ca_bundle_ref:
        mounts.append({"name": "ca", "mountPath": CA_FOLDER})  # whole: a renewed certificate then arrives
    container: Object = {
        "name": CONTAINER,
        "image": image,
        "command": [*COMMAND],
        "env": [*env],
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # for failures before the trainer can write a message
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            # Not on the pod: the training operator adds an init container to workers that runs as root.
            "runAsNonRoot": True,
        },
    }
    if defaults.image_pull_policy:
        container["imagePullPolicy"] = defaults.image_pull_policy
    if ports:
        container["ports"] = [*ports]
    if resources := _resources(request):
        container["resources"] = resources
    return container


def _resources(request: JobRequest) -> Object:
    given = {name: value for name, value in (request.spec.resources or {}).items() if value}
    if request.stage.job.gpus_per_node:
        name = request.spec.gpu_resource_name or DEFAULT_GPU_RESOURCE
        given["limits"] = {name: str(request.stage.job.gpus_per_node), **given.get("limits", {})}
    return _quantities(given)


def _quantities(resources: Mapping[str, Any]) -> Object:
    """Amounts as text: PyTorchJob's schema refuses fractions as numbers (cpu: 0.5)."""
    return {
        name: {key: str(amount) for key, amount in value.items()} if isinstance(value, Mapping) else value
        for name, value in resources.items()
    }


def _environment(request: JobRequest) -> list[Object]:
    stage = request.stage
    if request.store.ca_bundle_ref:
        store = stage.store.model_copy(update={"ca_bundle": f"{CA_FOLDER}/{CA_FILE}"})
        stage = stage.model_copy(update={"store": store})
    env: list[Object] = [
        # Kubernetes expands $(NAME) and $$ in values; in JSON a dollar can be written otherwise.
        {"name": STAGE_ENVIRONMENT_VARIABLE, "value": stage.to_json().replace("$", "\\u0024")},
        {"name": ATTEMPT_VARIABLE, "value": attempt_prefix(stage.chain.uid, request.attempt)},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108  the root file system is read-only
    ]
    if secret := request.store.secret_ref:
        env += [
            _from_secret("AWS_ACCESS_KEY_ID", secret.name, secret.keys.access_key_id),
            _from_secret("AWS_SECRET_ACCESS_KEY", secret.name, secret.keys.secret_access_key),
            _from_secret("AWS_SESSION_TOKEN", secret.name, secret.keys.session_token, optional=True),
        ]
    return env


def _bundle(reference: BundleReference) -> Object:
    """The certificates as the source of a volume: that key alone, for a Secret may hold a private key beside it."""
    items = [{"key": reference.key, "path": CA_FILE}]
    if reference.kind is BundleKind.SECRET:
        return {"secret": {"secretName": reference.name, "items": items}}
    return {"configMap": {"name": reference.name, "items": items}}


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> Object:
    reference: Object = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}
