"""The form of the address of a server: of an S3 endpoint, and of the host of any URL.

One form for the validation, the CRD and the operator: what one takes, no other may read as another host.
"""

from __future__ import annotations

import ipaddress
import re

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"  # 1 to 65535
_AUTHORITY = rf"({_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]{{2,45}}\])(:{_PORT})?"
# Without user, query and fragment. In what Go, Rust and Python read alike.
ENDPOINT_PATTERN = rf"^https?://{_AUTHORITY}(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?$"
MAX_HOST = 253
ENDPOINT_FORM = "http:// or https://, a name or an address, a port from 1 to 65535 or none, a path or none"


def is_endpoint(text: str) -> bool:
    """Whether it is the URL of an S3 endpoint: HTTP or HTTPS, a host, nothing but a port and a path behind it."""
    return re.fullmatch(ENDPOINT_PATTERN, text) is not None and is_authority(text.split("/")[2])


def is_authority(text: str) -> bool:
    """Whether it is `host` or `host:port`; an address of IPv6 in brackets."""
    if re.fullmatch(_AUTHORITY, text) is None:
        return False
    if text.startswith("["):
        try:
            ipaddress.IPv6Address(text[1:].partition("]")[0])
        except ValueError:
            return False
        return True
    return len(text.partition(":")[0]) <= MAX_HOST
