"""What an administrator decides: flags of `python -m modelchain_operator`, each with its environment variable.

A flag overrides its variable, a variable the default. An invalid value ends in one line (`UsageError`) that names
the flag or the variable in which it was given.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, NoReturn, TypeVar

from modelchain import __version__
from modelchain.endpoint import is_endpoint
from modelchain.errors import UsageError
from modelchain.uri import holds_credentials

T = TypeVar("T")

PREFIX = "MODELCHAIN_"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class LogFormat(StrEnum):
    TEXT = "text"  # for people
    JSON = "json"  # one object a line


class LeaseName(NamedTuple):
    """The Lease by which the replicas of one operator elect a leader."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class OwnIdentityStore:
    """A store that the operator may use with its own identity, for any chain that names it."""

    uri: str  # s3://bucket/prefix or file:///folder, without a slash at its end
    endpoint_url: str | None = None  # None: AWS

    def covers(self, uri: str, endpoint_url: str | None) -> bool:
        """Whether a chain's store is this one, or below it, at the same endpoint."""
        same = endpoint_url is None if self.endpoint_url is None else endpoint_url is not None
        if not same or (endpoint_url or "").rstrip("/") != (self.endpoint_url or "").rstrip("/"):
            return False
        path = uri.rstrip("/")
        if any(part in {"..", "."} for part in path.split("/")):
            return False
        return path == self.uri or path.startswith(f"{self.uri}/")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the operator runs. Every field is a flag; see `python -m modelchain_operator --help`."""

    namespaces: tuple[str, ...] = ()  # empty: all
    default_image: str | None = None  # the trainer's, where a chain names none
    resync_seconds: float = 180.0
    progress_seconds: float = 15.0
    artifact_check_seconds: float = 900.0
    workers: int = 16
    max_running_chains: int | None = None  # of a namespace; None: all
    store_threads: int = 8
    store_requests_per_second: float = 50.0
    own_identity_stores: tuple[OwnIdentityStore, ...] = ()
    allowed_endpoints: tuple[str, ...] = ("https://*",)
    http_host: str = "0.0.0.0"  # noqa: S104  the kubelet and Prometheus come from outside the pod
    http_port: int = 8080
    metrics_max_chains: int = 2000
    kubeconfig: str | None = None
    context: str | None = None
    log_format: LogFormat = LogFormat.TEXT
    log_level: str = "info"
    identity: str = field(default_factory=socket.gethostname)  # the pod's name, in Events and in the Lease
    lease: LeaseName | None = None  # by which a leader is elected; None: this operator acts alone
    lease_duration_seconds: float = 15.0
    renew_deadline_seconds: float = 10.0
    retry_period_seconds: float = 2.0


def read_settings(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from the command line (without the program's name) and the environment.

    Raises UsageError; SystemExit(0) after --help and --version.
    """
    environment = os.environ if environment is None else environment
    parsed = vars(build_parser().parse_args(arguments))
    values: dict[str, object] = {}
    for option in _OPTIONS:
        given = parsed.get(option.name)
        if given is None:
            text = environment.get(option.variable, "").strip()
            if not text:
                continue
            source, texts = option.variable, text.split(",") if option.many else [text]
        else:
            source, texts = option.flag, given if option.many else [given]
        parts = [_read(option, source, text.strip()) for text in texts if text.strip()]
        values[option.name] = tuple(parts) if option.many else parts[0]
    if not values.get("identity"):
        values.pop("identity", None)
        if pod := environment.get("POD_NAME", "").strip():
            values["identity"] = pod
    _check_election(values)
    return Settings(**values)  # pyright: ignore[reportArgumentType]  each option's parser gives its field's type


def _check_election(values: Mapping[str, object]) -> None:
    """Raises UsageError unless a leader stops before others may start, and tries to renew several times before that."""
    defaults = Settings(identity="")
    duration, deadline, period = (
        float(str(values.get(name, getattr(defaults, name))))
        for name in ("lease_duration_seconds", "renew_deadline_seconds", "retry_period_seconds")
    )
    if not duration > deadline > 2 * period:
        raise UsageError(
            "--lease-duration-seconds must be more than --renew-deadline-seconds, and that more than twice "
            f"--retry-period-seconds: {duration:g}, {deadline:g} and {period:g} are not"
        )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the operator's command line; it leaves values as text, which `read_settings` parses."""
    parser = _Parser(
        prog="python -m modelchain_operator",
        description="The Kubernetes operator of ModelChain: trains every ModelChain of the cluster, stage by stage.",
        epilog="A flag wins over its environment variable; where several values are possible, the variable "
        "holds them separated by commas. Exit codes: 0 stopped as asked, 64 wrong usage, 78 no cluster to "
        "work for, 80 another operator leads; anything else is unforeseen, and the operator may be started again.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"modelchain-operator {__version__}")
    defaults = Settings(identity="")
    for group in dict.fromkeys(option.group for option in _OPTIONS):
        section = parser.add_argument_group(group)
        for option in _OPTIONS:
            if option.group == group:
                default = _shown(getattr(defaults, option.name)) or option.shown_default
                section.add_argument(
                    option.flag,
                    dest=option.name,
                    metavar=option.metavar,
                    action="append" if option.many else "store",
                    default=None,
                    help=f"{option.help} (default: {default}) [{option.variable}]".replace("%", "%%"),
                )
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises usage errors instead of printing them: `__main__` prints all errors in one form."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=10, width=100)


@dataclass(frozen=True)
class _Option(Generic[T]):
    """A field of the settings: its flag, its variable and how its text is parsed."""

    group: str
    name: str
    flag: str
    metavar: str
    read: Callable[[str], T]  # raises ValueError that says what is expected
    help: str
    many: bool = False
    shown_default: str = ""

    @property
    def variable(self) -> str:
        """Its environment variable; in the plural where the flag may be repeated."""
        name = self.flag.removeprefix("--").replace("-", "_").upper()
        return PREFIX + (f"{name}S" if self.many else name)


def _read(option: _Option[T], source: str, text: str) -> T:
    try:
        return option.read(text)
    except ValueError as error:
        raise UsageError(f"{source}: {text!r} is not {error}") from None


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _seconds(minimum: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        what = f"a number of seconds; give {minimum:g} or more, without a unit, e.g. {max(minimum, 60):g}"
        try:
            value = float(text)
        except ValueError:
            raise ValueError(what) from None
        if not math.isfinite(value) or not minimum <= value <= 7 * 86400:
            raise ValueError(what)
        return value

    return read


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return int(text)

    return read


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 100_000:
        raise ValueError("a number of requests a second; give 1 or more, e.g. 50")
    return value


def _namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise ValueError("the name of a namespace: lower-case letters, digits and dashes, 63 at most")
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text.lower()

    return read


def _log_format(text: str) -> LogFormat:
    return LogFormat(_one_of(*LogFormat)(text))


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        if text == "localhost":
            return text
        raise ValueError("an address to listen at, e.g. 0.0.0.0, :: or 127.0.0.1") from None


def _text(text: str) -> str:
    if any(ord(character) < 33 for character in text):
        raise ValueError("one word")
    return text


def _lease_name(text: str) -> LeaseName:
    namespace, _, name = text.partition("/")
    if not (_NAMESPACE.fullmatch(namespace) and _NAMESPACE.fullmatch(name)):
        raise ValueError("the namespace and the name of a Lease; give e.g. modelchain-system/modelchain")
    return LeaseName(namespace, name)


def _own_identity_store(text: str) -> OwnIdentityStore:
    uri, _, endpoint = text.partition("=")
    uri = uri.strip().rstrip("/")
    what = "a store; give s3://bucket/prefix, s3://bucket/prefix=https://endpoint or file:///folder"
    if any(part in {"..", "."} for part in uri.split("/")):
        raise ValueError(what)
    bucket = uri.removeprefix("s3://") if uri.startswith("s3://") else ""
    folder = uri.startswith("file:///") and len(uri) > len("file:///")
    if holds_credentials(uri) or not (folder or (bucket and not bucket.startswith("/"))):
        raise ValueError(what)
    if "=" in text and (folder or not is_endpoint(endpoint.strip())):
        raise ValueError(what)
    return OwnIdentityStore(uri, endpoint.strip().rstrip("/") or None)


def _endpoint_pattern(text: str) -> str:
    if text == "*" or any(is_endpoint(text.replace("*", one)) for one in ("x", "1")):  # of a host, of a port
        return text.rstrip("/")
    raise ValueError(
        "a pattern of endpoints; give *, or e.g. https://*.example.com or http://minio.storage:9000"
    )


_CLUSTER, _CHAINS, _STORES, _PROCESS = "the cluster", "chains", "stores", "the process"
_ELECTION = "the election of a leader, as client-go has it"
_OPTIONS: tuple[_Option[object], ...] = (
    _Option(
        _CLUSTER,
        "namespaces",
        "--namespace",
        "NAME",
        _namespace,
        "look after the chains of this namespace; may be repeated",
        many=True,
        shown_default="all namespaces",
    ),
    _Option(
        _CLUSTER,
        "kubeconfig",
        "--kubeconfig",
        "FILE",
        str,
        "how to reach the cluster",
        shown_default="KUBECONFIG, or the pod's service account",
    ),
    _Option(
        _CLUSTER,
        "context",
        "--context",
        "NAME",
        str,
        "context of the kubeconfig",
        shown_default="its current one",
    ),
    _Option(
        _CHAINS,
        "default_image",
        "--default-image",
        "IMAGE",
        _text,
        "image of the trainer for chains that name none",
        shown_default="none: such a chain is refused",
    ),
    _Option(
        _CHAINS,
        "resync_seconds",
        "--resync-seconds",
        "SECONDS",
        _seconds(5),
        "list everything anew this often: what the watches have missed is found then",
    ),
    _Option(
        _CHAINS,
        "progress_seconds",
        "--progress-seconds",
        "SECONDS",
        _seconds(1),
        "write a chain's progress into its status no more often than this",
    ),
    _Option(
        _CHAINS,
        "workers",
        "--workers",
        "COUNT",
        _whole(1, 256),
        "chains that are looked after at the same time",
    ),
    _Option(
        _CHAINS,
        "max_running_chains",
        "--max-running-chains",
        "COUNT",
        _whole(1, 100_000),
        "chains of a namespace that train at the same time; the others wait, and the oldest goes next",
        shown_default="no limit",
    ),
    _Option(
        _STORES,
        "artifact_check_seconds",
        "--artifact-check-seconds",
        "SECONDS",
        _seconds(30),
        "look this often whether the artifacts of finished stages are still there",
    ),
    _Option(
        _STORES,
        "store_threads",
        "--store-threads",
        "COUNT",
        _whole(2, 256),
        "requests to stores that may be under way at the same time",
    ),
    _Option(
        _STORES,
        "store_requests_per_second",
        "--store-requests-per-second",
        "COUNT",
        _rate,
        "routine requests to all stores together: with more chains, each is looked at more rarely",
    ),
    _Option(
        _STORES,
        "own_identity_stores",
        "--own-identity-store",
        "URI[=ENDPOINT]",
        _own_identity_store,
        "read this store, and what lies below it, with the operator's own identity for chains without a "
        "Secret: s3://bucket/prefix (AWS), s3://bucket/prefix=https://endpoint, or file:///folder; "
        "may be repeated",
        many=True,
        shown_default="none: every chain needs store.secretRef",
    ),
    _Option(
        _STORES,
        "allowed_endpoints",
        "--allowed-endpoint",
        "PATTERN",
        _endpoint_pattern,
        "S3 endpoints that chains may name, * standing for any text without a slash, * alone for every one; "
        "addresses of cloud metadata are never asked; may be repeated",
        many=True,
    ),
    _Option(
        _PROCESS,
        "http_host",
        "--http-host",
        "ADDRESS",
        _host,
        "address of /metrics, /healthz and /readyz",
    ),
    _Option(
        _PROCESS,
        "http_port",
        "--http-port",
        "PORT",
        _whole(0, 65535),
        "port of /metrics, /healthz and /readyz; 0: any free one",
    ),
    _Option(
        _PROCESS,
        "metrics_max_chains",
        "--metrics-max-chains",
        "COUNT",
        _whole(0, 1_000_000),
        "chains that have series of their own in /metrics: first those that need a person, then those under way",
    ),
    _Option(
        _PROCESS,
        "log_format",
        "--log-format",
        "FORMAT",
        _log_format,
        "text for people, json for one object a line",
    ),
    _Option(
        _PROCESS,
        "log_level",
        "--log-level",
        "LEVEL",
        _one_of("debug", "info", "warning", "error"),
        "debug, info, warning or error",
    ),
    _Option(
        _PROCESS,
        "identity",
        "--identity",
        "NAME",
        _text,
        "name of this process in Events and in the Lease; no two that run at a time may share it",
        shown_default="POD_NAME, or the host's name",
    ),
    _Option(
        _ELECTION,
        "lease",
        "--lease",
        "NAMESPACE/NAME",
        _lease_name,
        "act only while holding this Lease; of several operators with the same one, the others stand by",
        shown_default="none: this operator acts, whoever else does",
    ),
    _Option(
        _ELECTION,
        "lease_duration_seconds",
        "--lease-duration-seconds",
        "SECONDS",
        _seconds(3),
        "take over from a leader that has not renewed the Lease for this long",
    ),
    _Option(
        _ELECTION,
        "renew_deadline_seconds",
        "--renew-deadline-seconds",
        "SECONDS",
        _seconds(2),
        "stop acting, and end, after trying in vain to renew the Lease for this long",
    ),
    _Option(
        _ELECTION,
        "retry_period_seconds",
        "--retry-period-seconds",
        "SECONDS",
        _seconds(0.5),
        "renew the Lease, or look whether it can be taken, this often",
    ),
)
