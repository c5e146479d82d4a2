"""Contains Moyin's reverse proxy, which forwards requests to the studio's other services.

`route`, `paths` and `headers` are pure functions; `forward`, `sockets` and `pool` do I/O. The proxy
itself is `engine.Proxy`.
"""
