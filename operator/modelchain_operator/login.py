"""The credentials of lightkube's configuration for kopf's watches, so that both have one source."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
from pathlib import Path

import kopf
from lightkube.config.kubeconfig import SingleConfig

from modelchain.errors import ConfigurationError

# A service account's token is replaced in its file while it is still good: it is read again in time.
REREAD = dt.timedelta(minutes=5)


async def connection_info(config: SingleConfig) -> kopf.ConnectionInfo:
    """What kopf connects with. Raises ConfigurationError if the kubeconfig's credentials can't be had."""
    cluster, user = config.cluster, config.user
    token, expiration = user.token if user else None, None
    if user is not None and user.token_file is not None:
        token = await asyncio.to_thread(_read, user.token_file)
        expiration = dt.datetime.now(dt.UTC) + REREAD
    elif user is not None and user.exec is not None:
        token = await _token_of_command(
            [user.exec.command, *(user.exec.args or [])],
            {one.name: one.value for one in user.exec.env or []},
        )
        expiration = dt.datetime.now(dt.UTC) + REREAD
    return kopf.ConnectionInfo(
        server=cluster.server,
        ca_path=_path(config, cluster.certificate_auth),
        ca_data=cluster.certificate_auth_data,
        insecure=cluster.insecure or None,
        username=user.username if user else None,
        password=user.password if user else None,
        token=token,
        certificate_path=_path(config, user.client_cert) if user else None,
        certificate_data=user.client_cert_data if user else None,
        private_key_path=_path(config, user.client_key) if user else None,
        private_key_data=user.client_key_data if user else None,
        default_namespace=config.namespace,
        expiration=expiration,
    )


def _path(config: SingleConfig, path: str | None) -> str | None:
    return str(config.abs_file(path)) if path else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"{path}: the token of the service account can't be read: {error}") from None


async def _token_of_command(command: list[str], environment: dict[str, str]) -> str:
    """The token that a kubeconfig's `exec` command prints."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        return str(json.loads(printed)["status"]["token"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{command[0]}, which the kubeconfig names for its credentials, gave no token"
        ) from None
