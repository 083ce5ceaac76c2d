"""The proxy for requests to a server, as the environment names it: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.

One reading for S3, for data on the web and for the Kubernetes API: libraries take what they can't read for the name of
a host, or for a server that does not answer, and some of them show its password.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from modelchain.endpoint import is_endpoint
from modelchain.errors import ConfigurationError

_USER = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%-]*")  # RFC 3986, section 3.2.1


def proxy_for(url: str) -> str | None:
    """The URL of the proxy for requests to `url`; None where there is none, or `url` is excepted.

    Raises ConfigurationError where the environment names what can be no proxy.
    """
    parts = urlsplit(url)
    named = getproxies().get(parts.scheme)
    if not named or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = named if "://" in named else f"http://{named.removeprefix('//')}"
    scheme, _, rest = proxy.partition("://")
    user, _, server = rest.rpartition("@")
    if not is_endpoint(f"{scheme}://{server}") or _USER.fullmatch(user) is None:
        raise ConfigurationError(
            f"{parts.scheme.upper()}_PROXY of the environment is no address of an HTTP proxy: write http://HOST:PORT, "
            "or http://USER:PASSWORD@HOST:PORT with other characters than letters and digits as %XX"
        )
    return proxy
