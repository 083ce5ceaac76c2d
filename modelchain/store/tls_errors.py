"""What is wrong with a TLS connection to a store, in words a person can act on."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import urlsplit

from urllib3.util.ssl_match_hostname import CertificateError

# Of OpenSSL's X509_V_ERR_*: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID = 9
_EXPIRED = 10
_OTHER_HOST = frozenset({62, 64})  # by name, by address
_HOSTS = re.compile(
    r"'([^']{1,100})'"
)  # of urllib3's "hostname 'ours' doesn't match either of 'one', 'other'"
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})


TlsError: TypeAlias = "ssl.SSLError | CertificateError"


def tls_error(error: BaseException) -> TlsError | None:
    """The error of TLS that `error` comes from, however libraries have wrapped it; None if there is none."""
    return next((one for one in _causes(error) if isinstance(one, ssl.SSLError | CertificateError)), None)


def explain_tls(error: TlsError, endpoint: str | None) -> tuple[str, str] | None:
    """What is wrong for good with the certificate or the protocol, and what the server says of itself (the hosts
    that its certificate is for); None for what may pass.
    """
    host = urlsplit(endpoint or "").hostname
    at = f" of {host}" if host else ""
    if isinstance(error, CertificateError) or getattr(error, "verify_code", 0) in _OTHER_HOST:
        text = f"the server's certificate is not for {host or 'this host'}; write the endpoint with a name that it has"
        return text, ", ".join(_HOSTS.findall(str(error).partition(" match ")[2])[:5])
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            text = f"the server's certificate{at} has expired; have it renewed (or set this machine's clock)"
        elif error.verify_code == _NOT_YET_VALID:
            text = f"the server's certificate{at} is not valid yet; set the clocks of both machines"
        else:
            text = f"the server's certificate{at} is not trusted; give its authority as the store's CA bundle"
        return text, error.verify_message
    if error.reason in _NO_TLS:
        return (
            "the server does not speak TLS at this port; write the endpoint with http://, or another port",
            "",
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and all that it was made from: botocore keeps it in `kwargs`, urllib3 in `args` and `reason`."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        kwargs = getattr(one, "kwargs", None)
        inner = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        inner += list(kwargs.values()) if isinstance(kwargs, dict) else []
        waiting += [each for each in inner if isinstance(each, BaseException)]
