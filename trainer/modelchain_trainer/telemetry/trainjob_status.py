"""Progress for a TrainJob's own status (`status.trainerStatus`), where the Kubeflow Trainer asks for it.

With its feature gate TrainJobStatus, it tells the pods where to send it; nothing is sent anywhere else. What is sent is
what progress.json says. A server that does not answer costs a line in the log and nothing more.
https://github.com/kubeflow/trainer/blob/v2.3.0/docs/user-guides/trainjob-progress.md
"""

from __future__ import annotations

import json
import logging
import math
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelchain.artifacts import Progress

logger = logging.getLogger(__name__)

URL_VARIABLE = "KUBEFLOW_TRAINER_SERVER_URL"
AUTHORITY_VARIABLE = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
TOKEN_VARIABLE = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105  the name of a variable that names a file
UPDATE_SECONDS = 10.0  # between two updates; the Trainer asks for at least 5
TIMEOUT_SECONDS = 5.0
MOST_METRICS, LONGEST_NAME = 256, 64  # as the API has them


@dataclass(frozen=True)
class StatusServer:
    """Where to send it. The token is read anew each time: it is rotated in place."""

    url: str
    authority: Path
    token: Path

    def send(self, status: Mapping[str, object]) -> None:
        """Raises OSError where it is not taken, http.client.HTTPException where the answer is no HTTP."""
        request = urllib.request.Request(  # noqa: S310  its scheme is checked where it is read
            self.url,
            data=json.dumps({"trainerStatus": status}).encode(),
            headers={
                "Authorization": f"Bearer {self.token.read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        context = ssl.create_default_context(cafile=str(self.authority))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with direct.open(request, timeout=TIMEOUT_SECONDS):
            pass


def find_server(environment: Mapping[str, str]) -> StatusServer | None:
    """The server that the Trainer names; None outside of TrainJobs, or without the feature."""
    url, authority, token = (
        environment.get(name, "") for name in (URL_VARIABLE, AUTHORITY_VARIABLE, TOKEN_VARIABLE)
    )
    if not (url.startswith("https://") and authority and token):
        return None
    return StatusServer(url, Path(authority), Path(token))


def trainer_status(progress: Progress) -> dict[str, object]:
    """What is told of it, as the API of TrainJobs has it."""
    figures = {f"loss/{name}": value for name, value in progress.loss.items()}
    figures |= progress.metrics
    if progress.samples_per_second is not None:
        figures["samplesPerSecond"] = progress.samples_per_second
    status: dict[str, object] = {
        "progressPercentage": min(100, 100 * progress.step // progress.steps) if progress.steps else 100,
        "metrics": [
            {"name": name[:LONGEST_NAME], "value": f"{value:.6g}"}
            for name, value in sorted(figures.items())[:MOST_METRICS]
        ],
        "lastUpdatedTime": progress.updated_at,
    }
    if progress.eta_seconds is not None:
        status["estimatedRemainingSeconds"] = math.ceil(progress.eta_seconds)
    return status


class StatusReporter:
    """Sends progress in a thread of its own, as often as it changes and not more often than every few seconds."""

    def __init__(
        self, server: StatusServer, progress: Callable[[], Progress], *, seconds: float = UPDATE_SECONDS
    ) -> None:
        """`progress` gives the latest; it may be called from any thread."""
        self._server, self._progress, self._seconds = server, progress, seconds
        self._sent = -1  # the sequence of what was sent last
        self._unanswered = False  # which has been said
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trainjob-status", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send what is left, and end."""
        self._closing.set()
        self._thread.join(2 * TIMEOUT_SECONDS)

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            self._send()
            if closing:
                return
            self._closing.wait(self._seconds)

    def _send(self) -> None:
        progress = self._progress()
        if progress.sequence == self._sent:
            return
        try:
            self._server.send(trainer_status(progress))
        except Exception as error:  # noqa: BLE001 - whatever the server answers, the thread goes on
            if not self._unanswered:
                logger.warning(
                    "the TrainJob's status does not get the progress (%s); the training goes on", error
                )
            self._unanswered = True
        else:
            self._sent, self._unanswered = progress.sequence, False
