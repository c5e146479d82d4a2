"""Defines the HTTP routes of the accounts app, which call the services in `moyin/access`.

The ``name`` of a route keeps the OpenAPI operation id by which generated clients call the route.
"""
