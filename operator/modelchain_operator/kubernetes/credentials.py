"""Credentials, for kopf's watches and for the other requests."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
from pathlib import Path

import kopf

from modelchain.errors import ConfigurationError
from modelchain.proxies import proxy_for
from modelchain_operator.kubernetes.cluster_access import ClusterAccess, ExecCommand

# A service account's token is replaced in its file before it expires.
REREAD = dt.timedelta(minutes=5)


class ConnectionInfo(kopf.ConnectionInfo):
    """kopf's, also for clusters whose certificate authority Python 3.13 refuses."""

    def as_ssl_context(self) -> ssl.SSLContext:
        """How kopf's connections verify the API server."""
        return as_kubectl_verifies(super().as_ssl_context())


def as_kubectl_verifies(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context, without Python 3.13's check for extensions that RFC 5280 requires of certificates.

    The authorities of many clusters lack some (key usage, authority key identifier), and kubectl accepts them.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def connection_info(access: ClusterAccess) -> kopf.ConnectionInfo:
    """What kopf connects with. Raises ConfigurationError if there are no credentials."""
    return _connection_info(access, await read_token(access))


def tls_context(access: ClusterAccess) -> ssl.SSLContext:
    """How other connections verify the API server, and authenticate. Raises OSError, ssl.SSLError."""
    return _connection_info(access, None).as_ssl_context()


def _connection_info(access: ClusterAccess, token: str | None) -> ConnectionInfo:
    return ConnectionInfo(
        server=access.server,
        ca_path=access.ca_path,
        ca_data=None if access.ca_path else access.ca_data,
        insecure=access.insecure or None,
        username=access.username,
        password=access.password,
        token=token,
        certificate_path=access.client_certificate_path,
        certificate_data=None if access.client_certificate_path else access.client_certificate_data,
        private_key_path=access.client_key_path,
        private_key_data=None if access.client_key_path else access.client_key_data,
        default_namespace=access.namespace,
        proxy_url=proxy_for(access.server),
        expiration=dt.datetime.now(dt.UTC) + REREAD if access.token_changes else None,
    )


async def read_token(access: ClusterAccess) -> str | None:
    """The token as it is now; None if there is none. Raises ConfigurationError if it can't be read."""
    if access.token_file is not None:
        return await asyncio.to_thread(_read, access.token_file)
    if access.token is None and access.token_command is not None:
        return await _token_of_command(access.token_command)
    return access.token


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"{path}: the token of the service account can't be read: {error}") from None


async def _token_of_command(asked: ExecCommand) -> str:
    """The token that a kubeconfig's `exec` command prints."""
    try:
        process = await asyncio.create_subprocess_exec(
            *asked.command, env={**os.environ, **asked.environment}, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        return str(json.loads(printed)["status"]["token"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{asked.command[0]}, which the kubeconfig names for its credentials, gave no token"
        ) from None
