"""The reverse proxy: which route a request takes, to which upstream, with which headers.

Tables, balancing, health and header rules are plain; only `forward` and `sockets` do I/O.
"""

from moyin.proxy.engine import Proxy
from moyin.proxy.route import Route, RouteTable

__all__ = ["Proxy", "Route", "RouteTable"]
