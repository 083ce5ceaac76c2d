"""One connection to one bucket: the client, and the patience with a server that goes away.

Nothing else sends a request to S3 again: botocore's own retries are off, or the tries of the two would multiply.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from boto3.session import Session
from botocore.exceptions import ClientError

from modelchain.errors import ModelChainError
from modelchain.resolved import ResolvedStore
from modelchain.store.base import Credentials, StoreUnavailable
from modelchain.store.s3_clients import SharedClients, Timeouts, make_client
from modelchain.store.s3_errors import explain, is_missing, missing_bucket, status_of
from modelchain.store.s3_transport import require_time

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_ANSWER_SECONDS = 15.0


class Busy(Exception):  # noqa: N818
    """Raised by an action: somebody writes the object at this moment, ask again."""


class Connection:
    """The way to a bucket. Threads may share it; the first call makes the client."""

    def __init__(
        self,
        bucket: str,
        access: ResolvedStore,
        *,
        patience_seconds: float,
        credentials: Credentials | None = None,
        clients: SharedClients | None = None,
    ) -> None:
        """`credentials`: instead of those that boto3 finds. `clients`: where to take the client from."""
        self.bucket = bucket
        self.endpoint = access.endpoint_url
        if clients is None and self.endpoint is None:
            self.endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._access = access
        self._credentials = credentials
        self._shared = clients
        self._patience_seconds = patience_seconds
        self._clients: dict[int, S3Client] = {}  # by process: a forked one must not share our connections
        self._client_lock = threading.Lock()
        self._answered = False
        self._bucket_seen = False

    def call(
        self, uri: str, action: Callable[[S3Client], T], *, progress: Callable[[], int] = lambda: 0
    ) -> T:
        """Call `action` until it succeeds, fails for good, or the store has not answered for too long.

        `uri` names the object in messages. A growing `progress()` renews the patience.
        """
        deadline: float | None = None
        done, wait = progress(), 0.2
        while True:
            try:
                result = action(self.client())
                require_time(uri)
            except Busy:
                time.sleep(random.uniform(0.01, 0.2))  # noqa: S311
                continue
            except Exception as error:
                require_time(uri)
                problem, cause = self._explain(error, uri), error
                if problem is None:
                    raise
            else:
                self._answered = True
                return result
            if not isinstance(problem, StoreUnavailable):
                raise problem from cause
            now = time.monotonic()
            if progress() != done:
                done, deadline, wait = progress(), None, 0.2
            if deadline is None:
                seconds = self._patience_seconds
                deadline = now + (seconds if self._answered else min(seconds, FIRST_ANSWER_SECONDS))
            if now + wait > deadline:
                raise problem from cause
            log.info("%s; trying again in %.1f s", problem, wait)
            time.sleep(wait * random.uniform(0.7, 1.0))  # noqa: S311
            wait = min(wait * 2, 5.0)

    def _explain(self, error: Exception, uri: str) -> ModelChainError | None:
        if isinstance(error, ClientError):
            self._answered = self._answered or 0 < status_of(error) < 500
        return explain(error, uri, self.bucket, self.endpoint)

    def require_bucket(self, uri: str, client: S3Client) -> None:
        """Raises MissingBucket if the bucket does not exist; asks once."""
        if self._bucket_seen:
            return
        try:
            client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if is_missing(error):
                raise missing_bucket(self.bucket, uri, self.endpoint) from error
            if status_of(error) != 403:  # may read objects, but not ask about the bucket
                raise
        self._bucket_seen = True

    def client(self) -> S3Client:
        """The client of this process, or the one shared with other stores."""
        if self._shared is not None:
            return self._shared.get(self._access, self._credentials)
        with self._client_lock:
            client = self._clients.get(os.getpid())
            if client is None:
                client = self._clients[os.getpid()] = make_client(
                    Session(), self._access, self.endpoint, self._credentials, timeouts=Timeouts()
                )
            return client
