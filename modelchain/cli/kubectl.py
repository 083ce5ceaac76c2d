"""Access to a cluster through the user's own kubectl: the commands here reach every cluster that it can log in to.

What kubectl writes to stderr is passed on at once (a credential plugin may ask to open a browser), except for its
errors: these become one ModelChainError, which says what to do.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from modelchain.errors import (
    ConfigurationError,
    ExitCode,
    MissingInputError,
    ModelChainError,
    PermissionRefusedError,
)
from modelchain.status import cut
from modelchain.validation.problem import printable
from modelchain.yaml_reader import JsonValue

INSTALL_CRD = "install ModelChain there (its Helm chart, or `kubectl apply --server-side -f crds/`)"

_OWN = re.compile(
    r"error: |Error from server|Error in configuration: |Unable to connect to the server|"
    r"The connection to the server |[EWIF]\d{4} \d\d:\d\d:\d\d|Please enter |See 'kubectl|Get \"https?://"
)
_USAGE = re.compile("See 'kubectl")
_PREFIX = re.compile(
    r"^(error: )?([Ee]rror from server( \(\w+\))?: |Error in configuration: |Unable to connect to the server: )?"
)
_NO_SUCH_KIND = re.compile(
    r"the server doesn't have a resource type|the server could not find the requested resource"
)
_NOT_CONFIGURED = re.compile(
    r"The connection to the server localhost:8080 was refused|Please enter Username|no configuration has been provided"
)
_CONFIGURATION = re.compile(
    r"Error in configuration|context .* does not exist|^error: stat |error loading config|invalid configuration|"
    r"no context exists|no such host.*kubeconfig"
)
_CREDENTIALS = re.compile(
    r"Unauthorized|must be logged in|provide credentials|getting credentials|executable .* not found|"
    r"token has expired|certificate has expired"
)
_NODE = re.compile(r"containerLogs|error dialing backend|no preferred addresses|have a host assigned")
_UNREACHABLE = re.compile(
    r"Unable to connect|connection to the server|dial tcp|i/o timeout|TLS handshake|ServiceUnavailable|no such host|"
    r"connection refused|connection reset|Client\.Timeout|context deadline exceeded|\bEOF\b|x509:|TooManyRequests|"
    r"unable to handle the request|InternalError|etcdserver|Timeout\)"
)


class ClusterError(ModelChainError):
    """kubectl failed for a reason of its own, or the cluster does not answer; later it may."""


class NoSuchObject(MissingInputError):  # noqa: N818  named for what it is about
    """The cluster has no such object."""


class Kubectl:
    """Runs kubectl with the flags that say which cluster, who, and which namespace."""

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._flags = tuple(flags)

    def read(self, *arguments: str) -> JsonValue:
        """What `kubectl ... -o json` prints. Raises NoSuchObject and whatever `explain` makes of the failure."""
        text = self.text(*arguments, "-o", "json")
        try:
            return json.loads(text)
        except ValueError:
            raise ClusterError(
                f"kubectl {arguments[0]} printed no JSON but {cut(printable(text), 80)!r}; is it kubectl?"
            ) from None

    def text(self, *arguments: str) -> str:
        """What kubectl prints. Raises as `read`."""
        with self._running(arguments, stdout=subprocess.PIPE) as (process, complaints):
            assert process.stdout is not None
            output = process.stdout.read()
        if process.returncode:
            raise explain(complaints.lines, arguments)
        return output.decode(errors="replace")

    def show(self, *arguments: str) -> int:
        """Let kubectl print to our own standard output; returns the exit code. Raises as `read`."""
        sys.stdout.flush()
        with self._running(arguments, stdout=None) as (process, complaints), _until_terminated():
            process.wait()
        if process.returncode == -signal.SIGPIPE or any("broken pipe" in line for line in complaints.lines):
            return 128 + signal.SIGPIPE  # `modelchain logs NAME | head`
        if process.returncode:
            raise explain(complaints.lines, arguments)
        return ExitCode.OK

    @contextmanager
    def _running(
        self, arguments: Sequence[str], *, stdout: int | None
    ) -> Iterator[tuple[subprocess.Popen[bytes], _Complaints]]:
        try:
            process = subprocess.Popen(
                ["kubectl", *arguments, *self._flags], stdout=stdout, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            raise ConfigurationError(
                "kubectl is not installed, or not on PATH: chains in a cluster are reached through it; "
                "install it, or give the chain's YAML file"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"kubectl can't be started: {error.strerror}; correct PATH") from None
        complaints = _Complaints(process)
        try:
            yield process, complaints
            process.wait()
        finally:  # of Ctrl-C it has heard as well; of other signals only from us
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2)
                process.kill()
                process.wait()
            complaints.join()


class _Complaints(threading.Thread):
    """Reads what kubectl writes to stderr, and passes on at once what is not an error of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="kubectl-stderr", daemon=True)
        self.lines: list[str] = []
        self._process = process
        self.start()

    def run(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            if _OWN.match(line):
                self.lines.append(line)
            elif line:
                self.lines.append(line)
                with suppress(
                    OSError
                ):  # nobody reads ours; kubectl would wait for ever if nobody read its own
                    print(line, file=sys.stderr, flush=True)


def explain(lines: Sequence[str], arguments: Sequence[str]) -> ModelChainError:
    """The error to show for what kubectl wrote to stderr when it failed. `arguments` are those of the call."""
    said = [line for line in lines if line.strip()]
    whole = "\n".join(said)
    own = [line for line in said if _OWN.match(line) and not _USAGE.match(line)] or said
    last = own[-1] if own else "it gave no reason"
    reason = cut(printable(_PREFIX.sub("", last)), 400)
    command = f"kubectl {' '.join(arguments[:2])}"
    if _NO_SUCH_KIND.search(last):
        return ConfigurationError(f"the cluster knows no ModelChains: their CRD is missing; {INSTALL_CRD}")
    node = next((line for line in own if _NODE.search(line)), None)
    if node is not None:  # with -f kubectl tries for a while, and ends with a word on its own deadline
        reason = cut(printable(_PREFIX.sub("", node)), 400)
        return ClusterError(
            f"the log can't be had from the pod's node: {reason}; see whether the node is there (`kubectl get nodes`)"
        )
    if "(NotFound)" in last:
        return NoSuchObject(reason)
    if "(Forbidden)" in last:
        return PermissionRefusedError(
            f"the cluster refuses it: {reason}; ask its administrator for that right, or choose a namespace with -n"
        )
    if _NOT_CONFIGURED.search(whole):
        return ConfigurationError(
            "kubectl knows no cluster; set KUBECONFIG or give --kubeconfig, and try `kubectl get namespaces`"
        )
    if _CONFIGURATION.search(last):
        return ConfigurationError(
            f"kubectl's configuration: {reason}; `kubectl config get-contexts` lists what there is"
        )
    if _CREDENTIALS.search(whole):
        return PermissionRefusedError(
            f"the cluster does not accept your credentials: {reason}; log in again, then try `kubectl auth whoami`"
        )
    if _UNREACHABLE.search(last):
        return ClusterError(
            f"the cluster does not answer: {reason}; is it the right one (`kubectl config current-context`)?"
        )
    return ClusterError(f"{command}: {reason}")


@contextmanager
def _until_terminated() -> Iterator[None]:
    """A SIGTERM ends the block, and with it kubectl, instead of leaving kubectl behind."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(ExitCode.TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
