"""Forwards requests to the studio's other services: Moyin's reverse proxy.

Route tables, balancing and header rules are pure; `forward`, `sockets` and health checks do I/O.
"""

from moyin.proxy.engine import Proxy
from moyin.proxy.route import Route, RouteTable

__all__ = ["Proxy", "Route", "RouteTable"]
