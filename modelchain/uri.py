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
_NAMES = "|".join(
    (
        # Amazon, Google, Azure, Alibaba, CloudFront, and who has an access token, an API key, a user and a password.
        f"{_IN_NAME}(signature|credential|token|secret|key|auth|jwt|hmac|session|bearer|pass|pwd|user|login){_IN_NAME}",
        "([^=&;?#]*[^a-z0-9=&;?#])?(sig|sas|sid|code|accessid)",
        f"{_IN_NAME}%[0-9a-f]{{2}}{_IN_NAME}",  # in whose letters one of these may hide
    )
)
# Parameters of a query or a fragment that carry a signature, a key or a token; and an @ behind a user, as %40.
CREDENTIALS_PATTERN: Final = (
    rf"(?i)^[a-z0-9+.-]*:?[/\\]{{2}}[^/?#\\]*%(25)*40|[?#](.*[&;?#])?({_NAMES})(=|%(25)*3d)"
)


def holds_credentials(uri: str) -> bool:
    """Whether the address holds a user, a password, a key or a token (or control characters: it is no address)."""
    return not re.fullmatch(URI_PATTERN, uri) or bool(re.search(CREDENTIALS_PATTERN, uri))


def without_credentials(url: str) -> str:
    """The URL for messages: without a user and password, a query and a fragment. Raises ValueError for no URL."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
