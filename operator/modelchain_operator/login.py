"""The credentials of lightkube's configuration, for kopf's watches and for our own requests."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
from pathlib import Path

import kopf
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import User

from modelchain.errors import ConfigurationError

# A service account's token is replaced in its file while it is still good: it is read again in time.
REREAD = dt.timedelta(minutes=5)


class ConnectionInfo(kopf.ConnectionInfo):
    """kopf's, for clusters whose certificate authority Python 3.13 refuses as well."""

    def as_ssl_context(self) -> ssl.SSLContext:
        """How kopf's connections check the API server."""
        return as_kubectl_verifies(super().as_ssl_context())


def as_kubectl_verifies(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context, without the insistence of Python 3.13 on extensions that RFC 5280 asks of certificates.

    The authorities of many clusters lack some (key usage, authority key identifier), and kubectl does not mind.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def connection_info(config: SingleConfig) -> kopf.ConnectionInfo:
    """What kopf connects with. Raises ConfigurationError if the kubeconfig's credentials can't be had."""
    cluster, user = config.cluster, config.user
    changes = user is not None and (user.token_file is not None or user.exec is not None)
    return ConnectionInfo(
        server=cluster.server,
        ca_path=_path(config, cluster.certificate_auth),
        ca_data=cluster.certificate_auth_data,
        insecure=cluster.insecure or None,
        username=user.username if user else None,
        password=user.password if user else None,
        token=await read_token(user) if user else None,
        certificate_path=_path(config, user.client_cert) if user else None,
        certificate_data=user.client_cert_data if user else None,
        private_key_path=_path(config, user.client_key) if user else None,
        private_key_data=user.client_key_data if user else None,
        default_namespace=config.namespace,
        expiration=dt.datetime.now(dt.UTC) + REREAD if changes else None,
    )


async def read_token(user: User) -> str | None:
    """The user's token as it is now; None if there is none. Raises ConfigurationError if it can't be had."""
    if user.token_file is not None:
        return await asyncio.to_thread(_read, user.token_file)
    if user.token is None and user.exec is not None:
        environment = {one.name: one.value for one in user.exec.env or []}
        return await _token_of_command([user.exec.command, *(user.exec.args or [])], environment)
    return user.token


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
