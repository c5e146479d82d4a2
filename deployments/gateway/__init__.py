"""Contains the Ray Serve app that serves all paths but ``/v1`` and ``/accounts``.

Start with `builder.py` (the Serve application), `deployment.py` (the services of a replica) and
`app.py` (routes and middleware). The routes only parse requests and build responses.
"""
