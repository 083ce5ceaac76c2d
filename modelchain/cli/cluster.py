"""Chains that live in a cluster: which one a command means, and what the cluster says of it.

`kubectl modelchain COMMAND NAME` and `modelchain COMMAND NAME` are the same command. NAME is a file where there is one,
else a chain of the cluster that kubectl talks to (`options.names_a_chain`).
"""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from modelchain import __version__
from modelchain.block import first_problem
from modelchain.cli.kubectl import Kubectl, NoSuchObject
from modelchain.cli.options import CLUSTER_FLAGS, names_a_cluster
from modelchain.errors import MissingInputError, ModelChainError, UserDataError
from modelchain.spec import GROUP, ModelChainSpec
from modelchain.status import ChainStatus
from modelchain.yaml_reader import JsonValue

if TYPE_CHECKING:
    from modelchain.spec import ModelChain

RESOURCE = f"modelchains.{GROUP}"


class Shown(BaseModel):
    """A part of a Kubernetes object that is read here; the rest is ignored."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel, defer_build=True
    )


class Metadata(Shown):
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class ClusterChain(Shown):
    """A ModelChain as the cluster has it. `status` is None until an operator has written it."""

    metadata: Metadata
    spec: dict[str, object] = {}
    status: ChainStatus | None = None

    @property
    def full_name(self) -> str:
        """namespace/name."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    def read_spec(self) -> ModelChainSpec | None:
        """The spec; None if this release can't read it (a newer one may have written it)."""
        try:
            return ModelChainSpec.model_validate(self.spec)
        except ValidationError:
            return None

    def to_model_chain(self) -> ModelChain:
        """The chain, every rule checked. Raises InvalidChain with all that is wrong."""
        from modelchain.spec import API_VERSION, KIND
        from modelchain.validation import InvalidChain, check_object

        metadata = {
            "name": self.metadata.name,
            "namespace": self.metadata.namespace,
            "uid": self.metadata.uid,
        }
        document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": self.spec}
        checked = check_object(self.full_name, cast("dict[str, JsonValue]", document))
        if checked.chain is None:
            raise InvalidChain(checked.problems)
        return checked.chain


class ContainerState(Shown):
    class Waiting(Shown):
        reason: str = ""
        message: str = ""

    waiting: Waiting | None = None


class ContainerStatus(Shown):
    name: str
    state: ContainerState = ContainerState()


class PodCondition(Shown):
    type: str
    status: str
    message: str = ""


class PodStatus(Shown):
    phase: str = "Unknown"
    conditions: tuple[PodCondition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(Shown):
    metadata: Metadata
    status: PodStatus = Field(default_factory=PodStatus)


class Event(Shown):
    message: str = ""
    event_time: str | None = None
    last_timestamp: str | None = None
    first_timestamp: str | None = None

    @property
    def time(self) -> str:
        """When it was last seen, RFC 3339, which sorts as text."""
        return self.last_timestamp or self.event_time or self.first_timestamp or ""


class Cluster:
    """The cluster and namespace that a command line names."""

    def __init__(self, kubectl: Kubectl, *, namespace: str | None = None) -> None:
        self.kubectl = kubectl
        self._namespace = namespace

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Cluster:
        """As the flags of `add_cluster_options` say."""
        given = {name: value for name in CLUSTER_FLAGS if (value := vars(arguments).get(name))}
        namespace = given.pop("namespace", None)
        return cls(Kubectl([f"--{name}={value}" for name, value in given.items()]), namespace=namespace)

    def chain(self, name: str) -> ClusterChain:
        """The chain of that name. Raises MissingInputError, with similar names, if there is none."""
        try:
            found = self.kubectl.read("get", RESOURCE, name, *self._in_namespace())
        except NoSuchObject:
            raise MissingInputError(self._nothing_named(name)) from None
        return _parsed(found)

    def chains(self, *, everywhere: bool = False) -> list[ClusterChain]:
        """All chains of the namespace, or of all namespaces, in the order of their names."""
        where = ("--all-namespaces",) if everywhere else self._in_namespace()
        return [_parsed(item) for item in _items(self.kubectl.read("get", RESOURCE, *where))]

    def pods(self, namespace: str, selector: str) -> list[Pod]:
        """The pods that a label selector matches."""
        found = self.kubectl.read("get", "pods", "-n", namespace, "-l", selector)
        return [Pod.model_validate(item) for item in _items(found)]

    def warnings(self, chain: Metadata) -> list[str]:
        """Notes of the chain's Events of type Warning, the newest first; none where they may not be read."""
        selector = f"involvedObject.uid={chain.uid},type=Warning"
        try:
            found = self.kubectl.read("get", "events", "-n", chain.namespace, "--field-selector", selector)
        except ModelChainError:
            return []
        events = [Event.model_validate(item) for item in _items(found)]
        return [one.message for one in sorted(events, key=lambda one: one.time, reverse=True) if one.message]

    def config_map_entry(self, namespace: str, name: str, key: str) -> str | None:
        """One entry of a ConfigMap, None if it has none. Raises NoSuchObject."""
        found = self.kubectl.read("get", "configmap", name, "-n", namespace)
        data = found.get("data") if isinstance(found, dict) else None
        value = data.get(key) if isinstance(data, dict) else None
        return value if isinstance(value, str) else None

    def where(self) -> str:
        """The namespace in words, for messages."""
        namespace = self._namespace
        if namespace is None:
            try:
                namespace = self.kubectl.text("config", "view", "--minify", "-o", "jsonpath={..namespace}")
            except ModelChainError:
                namespace = ""
        return f"namespace {namespace}" if namespace else "the current namespace"

    def _in_namespace(self) -> tuple[str, ...]:
        return () if self._namespace is None else ("-n", self._namespace)

    def _nothing_named(self, name: str) -> str:
        text = f"no chain is named {name} in {self.where()}"
        names = [chain.name for chain in self._names()]
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            return f"{text}; did you mean {' or '.join(near)}?"
        try:
            elsewhere = [chain.namespace for chain in self._names(everywhere=True) if chain.name == name]
        except ModelChainError:  # not everybody may look into all namespaces
            elsewhere = []
        if elsewhere:
            return f"{text}; there is one in {', '.join(elsewhere[:4])}: add -n {elsewhere[0]}"
        if names:
            return f"{text}; there are: {', '.join(names[:8])}{' ...' * (len(names) > 8)}"
        return f"{text}, which holds no chain; `kubectl get modelchains -A` lists those of all namespaces"

    def _names(self, *, everywhere: bool = False) -> list[Metadata]:
        where = ("--all-namespaces",) if everywhere else self._in_namespace()
        found = self.kubectl.read("get", RESOURCE, *where)
        return [Metadata.model_validate(item["metadata"]) for item in _items(found) if isinstance(item, dict)]


def find_chain(source: str, arguments: argparse.Namespace) -> ClusterChain:
    """The chain that was given to a command that takes files and chains.

    An error of the cluster also says that there is no such file.
    """
    try:
        return Cluster.of(arguments).chain(source)
    except ModelChainError as error:
        if names_a_cluster(arguments):
            raise
        raise type(error)(f"{source}: there is no such file, and of the cluster: {error}") from None


def _parsed(value: JsonValue) -> ClusterChain:
    try:
        return ClusterChain.model_validate(value)
    except ValidationError as error:
        metadata = value.get("metadata") if isinstance(value, dict) else None
        fields: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        raise UserDataError(
            f"chain {fields.get('namespace')}/{fields.get('name')}: modelchain {__version__} can't read it: "
            f"{first_problem(error)}; use the release that the operator has"
        ) from None


def _items(value: JsonValue) -> list[JsonValue]:
    items = value.get("items") if isinstance(value, dict) else None
    return items if isinstance(items, list) else []
