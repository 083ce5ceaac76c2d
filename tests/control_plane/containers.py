"""A container of a pod as a local process: what it is started with, and that nothing of it is left behind."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.control_plane.api import Object
from tests.control_plane.preloaded import MARKER, PreloadedTrainer, is_trainer

TRAINER_PORT = "29500"  # fixed in the Kubeflow Trainer
TERMINATION_LOG = "termination-log"
MESSAGE_BYTES = 4096  # as much of a termination message as a kubelet reports

# The processes of pods die with the tests, also if those are killed: the pipe to this guard is closed then.
_GUARD = """
import os, sys, time
from pathlib import Path
sys.stdin.buffer.read()
for _ in range(3):
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if sys.argv[1].encode() in file.read_bytes():
                os.kill(int(file.parent.name), 9)
        except OSError:
            pass
    time.sleep(0.3)
"""


class ConfigError(Exception):
    """What a container is made of is missing. The message is the kubelet's; `reason` that of the waiting state."""

    def __init__(self, message: str, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(message)
        self.reason = reason


class MountError(ConfigError):
    """A volume that can't be mounted: a kubelet tells it in an event (FailedMount) and nowhere else."""

    def __init__(self, volume: str, message: str) -> None:
        super().__init__(f'MountVolume.SetUp failed for volume "{volume}" : {message}', "ContainerCreating")


@dataclass(frozen=True)
class Launch:
    """What a process is started with."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path  # scratch: working folder, log, termination message, mounted volumes

    @property
    def log(self) -> Path:
        return self.folder / "log"


Fetch = Callable[[str, str], Object | None]  # ("secrets" | "configmaps", name)


def plan(
    pod: Object, folder: Path, fetch: Fetch, hosts: Collection[str], image_environment: Mapping[str, str]
) -> Launch:
    """How to run the container of a pod here. `hosts`: names that mean this machine.

    Raises ConfigError where a kubelet would let the container wait.
    """
    containers = pod["spec"]["containers"]
    if len(containers) != 1:
        raise ConfigError("PodRunner runs pods of one container", "CreateContainerError")
    container = containers[0]
    mounts = _mount(pod, container, folder, fetch)
    given = _expanded(_environment(pod, container, fetch))

    def here(value: str) -> str:
        return _local(mounts.applied(value), hosts)

    command = [*container.get("command", ()), *container.get("args", ())]
    if not command:
        raise ConfigError("no command specified", "CreateContainerError")
    (folder / "tmp").mkdir(exist_ok=True)
    return Launch(
        command=tuple(here(_with_variables(word, given)) for word in command),
        environment={
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"],
            "OMP_NUM_THREADS": "1",
            **image_environment,
            **{name: here(value) for name, value in given.items()},
            **_meeting_port(given),
            "MODELCHAIN_TERMINATION_LOG": str(folder / TERMINATION_LOG),
        },
        folder=folder,
    )


class Container:
    """A running process, and all that it starts."""

    def __init__(self, launch: Launch, marker: str, *, preloaded: bool) -> None:
        """Start it; `preloaded`: a trainer as a fork of a process that has imported it.

        Raises ConfigError if there is no such program.
        """
        self.launch = launch
        self._mark = f"{MARKER}={marker}"
        self._frozen = False
        (launch.folder / TERMINATION_LOG).write_bytes(b"")
        if preloaded and is_trainer(launch.command):
            self._process: subprocess.Popen[bytes] | PreloadedTrainer = PreloadedTrainer(
                launch.folder, launch.log, launch.environment, marker
            )
        else:
            self._process = _started(launch, marker)
        self.pid = self._process.pid

    def exit_code(self) -> int | None:
        """128 + n after signal n, as a container runtime says it; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        kill_marked(self._mark)  # a container ends with its first process
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> None:
        """To the first process only, as a kubelet does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop all of it, so that nothing but SIGKILL ends it."""
        self._frozen = True
        kill_marked(self._mark, signal.SIGSTOP)

    def release(self) -> None:
        """Let what has stopped itself go on; what is frozen stays so."""
        if not self._frozen:
            kill_marked(self._mark, signal.SIGCONT)

    def is_stopped(self) -> bool:
        """Whether one of its processes has stopped."""
        return any(_state(pid) == "T" for pid in marked(self._mark))

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        kill_marked(self._mark)

    def message(self, policy: str) -> str:
        """The termination message; with FallbackToLogsOnError the end of the log where that is empty."""
        said = (self.launch.folder / TERMINATION_LOG).read_bytes()[:MESSAGE_BYTES]
        if not said and policy == "FallbackToLogsOnError" and self._process.returncode:
            said = b"\n".join(self.launch.log.read_bytes().splitlines()[-80:])[-2048:]
        return said.decode(errors="replace")


def _started(launch: Launch, marker: str) -> subprocess.Popen[bytes]:
    with launch.log.open("ab") as log:
        try:
            return subprocess.Popen(
                launch.command,
                cwd=launch.folder,
                env={**launch.environment, MARKER: marker},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"failed to start: {error}", "RunContainerError") from error


def start_guard(marker: str) -> subprocess.Popen[bytes]:
    """A process that ends what carries the marker when its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-IS", "-c", _GUARD, f"{MARKER}={marker}"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def kill_marked(mark: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to every process that has the mark in its environment."""
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def marked(mark: str) -> Iterator[int]:
    """All processes that have the mark in their environment."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in file.read_bytes():
                yield int(file.parent.name)


def _state(pid: int) -> str:
    """The letter that Linux gives the state of a process; T means stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""  # it has just ended


@dataclass(frozen=True)
class _Mounts:
    """Where files of volumes lie on this machine."""

    files: Mapping[str, Path]  # of ConfigMaps and Secrets
    scratch: Mapping[str, Path]  # emptyDir: such paths, /tmp say, mean something here too

    def applied(self, value: str) -> str:
        if value in self.scratch:
            return str(self.scratch[value])
        for path, folder in self.files.items():
            value = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?![\w.-])", str(folder), value)
        return value


def _mount(pod: Object, container: Object, folder: Path, fetch: Fetch) -> _Mounts:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
    files: dict[str, Path] = {}
    scratch: dict[str, Path] = {}
    for mount in container.get("volumeMounts", ()):
        volume, path = volumes[mount["name"]], mount["mountPath"].rstrip("/")
        target = folder / "volumes" / mount["name"]
        for field, kind, key in (("configMap", "configmaps", "name"), ("secret", "secrets", "secretName")):
            if field in volume:
                target.mkdir(parents=True, exist_ok=True)
                _write_volume(volume, kind, volume[field], volume[field][key], target, fetch)
                files[path] = target
        if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory":
            target.mkdir(parents=True, exist_ok=True)
            scratch[path] = target
    return _Mounts(files, scratch)


def _write_volume(volume: Object, kind: str, source: Object, name: str, target: Path, fetch: Fetch) -> None:
    found = fetch(kind, name)
    if found is None:
        if source.get("optional"):
            return
        raise MountError(volume["name"], f'{kind[:-1]} "{name}" not found')
    content = _content(kind, found)
    wanted = {item["key"]: item["path"] for item in source.get("items", ())} or {key: key for key in content}
    for key, path in wanted.items():
        if key not in content:
            said = {
                "configmaps": f"configmap references non-existent config key: {key}",
                "secrets": f"references non-existent secret key: {key}",
            }
            raise MountError(volume["name"], said[kind])
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content[key])


def _content(kind: str, found: Object) -> dict[str, bytes]:
    if kind == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    return {key: value.encode() for key, value in (found.get("data") or {}).items()}


def _environment(pod: Object, container: Object, fetch: Fetch) -> list[tuple[str, str, bool]]:
    """Name, value, and whether $(VAR) in it is to be replaced; later ones win."""
    entries: list[tuple[str, str, bool]] = []
    for source in container.get("envFrom", ()):
        for field, kind in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if field in source:
                found = fetch(kind, source[field]["name"])
                if found is None and not source[field].get("optional"):
                    raise ConfigError(f'{kind[:-1]} "{source[field]["name"]}" not found')
                for key, value in _content(kind, found or {}).items():
                    entries.append((source.get("prefix", "") + key, value.decode(), False))
    for variable in container.get("env", ()):
        if "valueFrom" not in variable:
            entries.append((variable["name"], variable.get("value", ""), True))
        elif (value := _value_from(pod, variable["valueFrom"], fetch)) is not None:
            entries.append((variable["name"], value, False))
    return entries


def _value_from(pod: Object, source: Object, fetch: Fetch) -> str | None:
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    for field, kind, title in (
        ("configMapKeyRef", "configmaps", "ConfigMap"),
        ("secretKeyRef", "secrets", "Secret"),
    ):
        if field in source:
            name, key = source[field]["name"], source[field]["key"]
            found = fetch(kind, name)
            content = _content(kind, found or {})
            if key in content:
                return content[key].decode()
            if source[field].get("optional"):
                return None
            if found is None:
                raise ConfigError(f'{kind[:-1]} "{name}" not found')
            raise ConfigError(f"couldn't find key {key} in {title} {pod['metadata']['namespace']}/{name}")
    raise ConfigError(f"PodRunner does not know {', '.join(source)}", "CreateContainerError")


def _field(pod: Object, path: str) -> str:
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return pod["metadata"].get(found.group(1), {}).get(found.group(2), "")
    fields = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": "127.0.0.1",
        "status.podIPs": "127.0.0.1",
        "status.hostIP": "127.0.0.1",
    }
    if path not in fields:
        raise ConfigError(f"PodRunner does not know fieldPath {path}", "CreateContainerError")
    return fields[path]


def _expanded(entries: list[tuple[str, str, bool]]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value, with_variables in entries:
        result[name] = _with_variables(value, result) if with_variables else value
    return result


def _with_variables(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) becomes its value, $$ becomes $, and what is not known stays as it is."""

    def replaced(found: re.Match[str]) -> str:
        return "$" if found.group(0) == "$$" else variables.get(found.group(1), found.group(0))

    return re.sub(r"\$\$|\$\(([^()]+)\)", replaced, text)


def _meeting_port(given: Mapping[str, str]) -> dict[str, str]:
    """All TrainJobs meet at the same port, each in a network of its own; here they share this machine's."""
    address, port = given.get("PET_MASTER_ADDR"), given.get("PET_MASTER_PORT")
    if address is None or port != TRAINER_PORT:
        return {}
    return {"PET_MASTER_PORT": str(30000 + zlib.crc32(address.encode()) % 2000)}


def _local(value: str, hosts: Collection[str]) -> str:
    """A host name (and perhaps a port) of a pod means this machine."""
    host, colon, port = value.partition(":")
    return f"127.0.0.1{colon}{port}" if host in hosts and (not colon or port.isdigit()) else value
