"""Plain requests to the API server, as the node makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import httpx2

Object: TypeAlias = dict[str, Any]  # a Kubernetes object as the API sends it

_STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}
_GONE = (404, 409)  # 409: another object of that name has taken its place
_LATER = (429, 500, 502, 503, 504)


class Unreachable(Exception):  # noqa: N818  (a state of the API server, not a mistake of ours)
    """The API server does not answer now, or asks to come again later."""


class Api:
    """The administrator's connection. Not for several threads at a time."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            verify=False,  # its certificate is made at start
            timeout=10,
            trust_env=False,
        )

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Object | None:
        """An object or a list; None if there is none."""
        return self._send("GET", path, params=parameters)

    def create(self, path: str, body: Object) -> Object | None:
        """None if the object exists, or what it belongs to is gone."""
        return self._send("POST", path, json=body)

    def patch(self, path: str, body: Object) -> Object | None:
        """A strategic merge patch: conditions are merged by type. None if the object is gone."""
        return self._send("PATCH", path, json=body, headers=_STRATEGIC)

    def delete(self, path: str, *, uid: str, grace_seconds: int | None = None) -> None:
        """Delete this very object; that it is gone already is fine."""
        body: Object = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        self._send("DELETE", path, json=body)

    def close(self) -> None:
        self._client.close()

    def _send(self, method: str, path: str, **arguments: Any) -> Object | None:
        try:
            answer = self._client.request(method, path, **arguments)
        except httpx2.TransportError as error:
            raise Unreachable(f"{method} {path}: {error}") from error
        if answer.status_code in _GONE:
            return None
        if answer.status_code in _LATER:
            raise Unreachable(f"{method} {path}: {answer.status_code} {answer.text}")
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()
