"""What an address in a chain may hold: no user, password, key or token, since whoever may read the chain reads it.

Both patterns are the CRD's too: they are in what Go and Python read alike.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

CONTROL_CHARACTERS: Final = r"\x00-\x1f\x7f-\x9f"  # within a class
# A path, or a URI without user, password or key. An @ may stand in a path (behind its first / or before any colon),
# behind the host or the bucket, and behind a container (az, abfs) or a repository (hf).
URI_PATTERN: Final = (
    r"^([^@{c}]*|[^:@{c}]*@[^{c}]*|[^:@/{c}]+/[^{c}]*|/([^/{c}][^{c}]*)?|(az|abfs|hf)://[^@/:{c}]*@[^{c}]*"
    r"|[A-Za-z0-9+.-]+://([^@/:?#{c}]*|\[[^@/{c}]*\])(:[0-9]*)?[/?#][^{c}]*)$"
).replace("{c}", CONTROL_CHARACTERS)

_IN_NAME = "[^=&;?#]*"
# Amazon, Google, Azure, Alibaba, CloudFront, and who has an access token, an API key, a user and a password.
_WORDS = "signature|credential|token|secret|key|auth|jwt|hmac|session|bearer|pass|pwd|user|login"
_ENDS = "sig|sas|sid|code|accessid"
_ENCODED = "%[0-9a-f]{2}"  # in whose letters one of these may hide
_EQUALS = "%(25)*3d"
_USER = r"^[a-z0-9+.-]*:?[/\\]{2}[^/?#\\]*%(25)*40"  # an @ behind a user, as %40
_NAMES = f"{_IN_NAME}({_WORDS}){_IN_NAME}|({_IN_NAME}[^a-z0-9=&;?#])?({_ENDS})|{_IN_NAME}{_ENCODED}{_IN_NAME}"
# Parameters of a query or a fragment that carry a signature, a key or a token. For the API server, whose time is
# linear; Python's is not.
CREDENTIALS_PATTERN: Final = rf"(?i){_USER}|[?#](.*[&;?#])?({_NAMES})(=|{_EQUALS})"


def holds_credentials(uri: str) -> bool:
    """Whether the address holds a user, a password, a key or a token (or control characters: it is no address)."""
    folded = uri.casefold()
    behind = re.split("[?#]", folded, maxsplit=1)[1:]
    return (
        not re.fullmatch(URI_PATTERN, uri)
        or re.search(_USER, folded) is not None
        or any(_is_credential(parameter) for query in behind for parameter in re.split("[?#&;]", query))
    )


def _is_credential(parameter: str) -> bool:
    """Whether a parameter, in lower case, has a name that `CREDENTIALS_PATTERN` matches."""
    name, equals, _ = parameter.partition("=")
    if not equals:
        ends = [found.start() for found in re.finditer(_EQUALS, name)]
        if not ends:
            return False
        name = name[: ends[-1]]
    return re.search(f"{_WORDS}|{_ENCODED}|(^|[^a-z0-9])({_ENDS})$", name) is not None


def without_credentials(url: str) -> str:
    """The URL for messages: without a user and password, a query and a fragment. Raises ValueError for no URL."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
