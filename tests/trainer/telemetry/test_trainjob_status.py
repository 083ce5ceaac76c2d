"""Progress for the status of a TrainJob, against a server with TLS as the Kubeflow Trainer has one."""

from __future__ import annotations

import json
import logging
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import Progress
from modelchain_trainer.telemetry.trainjob_status import (
    AUTHORITY_VARIABLE,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    StatusReporter,
    StatusServer,
    find_server,
    trainer_status,
)
from tests.control_plane.certificates import make_certificates
from tests.processes import PATIENCE_SECONDS, wait_until
from tests.trainer.conftest import StageOf

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/vision/trainjobs/tiny/status"


class Server:
    """Takes what is sent: the token and the status."""

    def __init__(self, folder: Path) -> None:
        make_certificates(folder, "localhost", organization="trainer", authority="trainer-ca")
        (folder / "token").write_text("first\n")
        self.taken: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.folder = folder
        self.talks_http = True
        taken, server = self.taken, self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if not server.talks_http:
                    self.wfile.write(b"220 mail.example.com ESMTP\r\n")
                    return
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                taken.put((f"{self.path} {self.headers['Authorization']}", body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object, **__: object) -> None:
                """Nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """As the Trainer sets it in pods."""
        return {
            URL_VARIABLE: f"https://localhost:{self._server.server_port}{PATH}",
            AUTHORITY_VARIABLE: str(self.folder / "ca.crt"),
            TOKEN_VARIABLE: str(self.folder / "token"),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    own = Server(tmp_path)
    yield own
    own.close()


def progress(step: int, sequence: int, **more: Any) -> Progress:
    return Progress(
        phase="Training",
        step=step,
        steps=30,
        sequence=sequence,
        updated_at="2026-11-26T09:00:00.000Z",
        **more,
    )


def test_what_progress_says_is_told_in_the_words_of_the_api() -> None:
    told = trainer_status(
        progress(
            10,
            3,
            loss={"total": 0.23471},
            metrics={"digits/top1": 0.9},
            eta_seconds=12.2,
            samples_per_second=800,
        )
    )
    assert told == {
        "progressPercentage": 33,
        "estimatedRemainingSeconds": 13,
        "metrics": [
            {"name": "digits/top1", "value": "0.9"},
            {"name": "loss/total", "value": "0.23471"},
            {"name": "samplesPerSecond", "value": "800"},
        ],
        "lastUpdatedTime": "2026-11-26T09:00:00.000Z",
    }


def test_progress_is_sent_when_it_changes_with_the_token_of_the_day(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # it is not for addresses within the cluster
    now = [progress(3, 1)]
    found = find_server(server.environment)
    assert found is not None
    reporter = StatusReporter(found, lambda: now[0], seconds=0.01)
    reporter.start()
    head, body = server.taken.get(timeout=PATIENCE_SECONDS)
    assert head == f"{PATH} Bearer first"
    assert body["trainerStatus"]["progressPercentage"] == 10
    (server.folder / "token").write_text("second\n")
    now[0] = progress(6, 2)
    head, body = server.taken.get(timeout=PATIENCE_SECONDS)
    assert head.endswith("Bearer second")
    assert body["trainerStatus"]["progressPercentage"] == 20
    now[0] = progress(30, 3)
    reporter.close()
    assert server.taken.get(timeout=PATIENCE_SECONDS)[1]["trainerStatus"]["progressPercentage"] == 100
    assert server.taken.empty(), "nothing is sent twice"


def reporter_that_asked(server: StatusServer, *, times: int) -> StatusReporter:
    """One that has begun so many reports."""
    asked = threading.Semaphore(0)

    def latest() -> Progress:
        asked.release()
        return progress(3, 1)

    reporter = StatusReporter(server, latest, seconds=0.01)
    reporter.start()
    for _ in range(times):
        assert asked.acquire(timeout=PATIENCE_SECONDS)
    return reporter


def test_a_server_that_does_not_answer_is_told_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    environment = server.environment
    server.close()
    found = find_server(environment)
    assert found is not None
    with caplog.at_level(logging.WARNING):
        reporter = reporter_that_asked(found, times=3)
        reporter.close()
    assert len([one for one in caplog.records if "the training goes on" in one.message]) == 1


def test_a_server_that_talks_no_http_is_told_once_and_asked_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.talks_http = False
    found = find_server(server.environment)
    assert found is not None
    with caplog.at_level(logging.WARNING):
        reporter = reporter_that_asked(found, times=3)
        server.talks_http = True
        assert server.taken.get(timeout=PATIENCE_SECONDS)[1]["trainerStatus"]["progressPercentage"] == 10
        reporter.close()
    assert len([one for one in caplog.records if "the training goes on" in one.message]) == 1


@pytest.mark.parametrize("missing", [URL_VARIABLE, AUTHORITY_VARIABLE, TOKEN_VARIABLE])
def test_nothing_is_sent_where_the_trainer_does_not_ask_for_it(server: Server, missing: str) -> None:
    assert isinstance(find_server(server.environment), StatusServer)
    assert find_server({name: value for name, value in server.environment.items() if name != missing}) is None


def test_a_stage_that_trains_tells_how_far_it_is(
    server: Server, stage_of: StageOf, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    train(stage_of("small"))
    told: list[dict[str, Any]] = []
    wait_until(lambda: not server.taken.empty(), "it is told")
    while not server.taken.empty():
        told.append(server.taken.get()[1]["trainerStatus"])
    assert told[-1]["progressPercentage"] == 100
    assert {"loss/total", "samplesPerSecond"} <= {one["name"] for one in told[-1]["metrics"]}
