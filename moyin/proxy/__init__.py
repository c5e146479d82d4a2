"""Contains Moyin's reverse proxy, which forwards requests to the studio's other services.

`route`, `paths` and `headers` are pure functions; `forward`, `sockets` and `pool` do I/O.
"""

from moyin.proxy.engine import Proxy
from moyin.proxy.route import Route, RouteTable

__all__ = ["Proxy", "Route", "RouteTable"]
