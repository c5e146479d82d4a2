"""Contains the gateway's HTTP routes, which parse requests, call `moyin`, and build responses.

Generated clients call a route by its OpenAPI operation id, which FastAPI builds from the route's
``name``. So a name must not change.
"""
