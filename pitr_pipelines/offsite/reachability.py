"""Can the store be reached at all? Asked before the day's only call is spent, without calling it.

A connection is opened to the endpoint, or to the proxy before it, and closed again: no request is sent. So
a name that does not resolve, a route that is down or a firewall costs no day. It proves nothing else.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pitr_pipelines.offsite.answers import StoreUnavailable
from pitr_pipelines.offsite_settings import Place

_PORTS = {"http": 80, "https": 443}


def check_reachable(place: Place, endpoint_url: str) -> None:
    """Raise StoreUnavailable if nobody answers at `endpoint_url`, or at the proxy that leads to it."""
    endpoint = urlsplit(endpoint_url)
    proxy = _proxy(place, endpoint.scheme, endpoint.hostname or "")
    asked = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}") if proxy else endpoint
    host = asked.hostname or ""
    port = asked.port or _PORTS.get(asked.scheme or "http", 443)
    try:
        socket.create_connection((host, port), timeout=place.connect_timeout_s).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise StoreUnavailable(
            f"the {'proxy' if proxy else 'store'} {host} cannot be reached at port {port}: {reason}",
            remedy="Look at `endpoint_url`, `proxies`, the name service, the route and the firewall. The "
            "day's call is not spent: ask again.",
        ) from None


def _proxy(place: Place, scheme: str, host: str) -> str | None:
    if place.proxies is not None:
        return place.proxies.get("https" if scheme == "https" else "http")
    return None if proxy_bypass(host) else getproxies().get(scheme)
