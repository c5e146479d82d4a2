"""Defines the HTTP routes of the accounts app, which call the services in `moyin/access`.

Generated clients call a route by its OpenAPI operation id, which FastAPI builds from the route's
``name``. So a name must not change.
"""
