"""Contains the Ray Serve app that serves all paths but ``/v1`` and ``/accounts``.

Start with `builder.py` (the Serve application), `deployment.py` (the services of a replica) and
`app.py` (routes and middleware). The routes only parse requests and build responses. Their logic is
in `moyin`:

| routes | logic |
|---|---|
| `jobs.py`, `job_events.py` | `moyin/jobs` |
| `artifacts.py` | `moyin/store`, signed links in `moyin/access/gatekeeper/links.py` |
| `templates.py` | `moyin/render/templates` |
| `comfy_api/*.py` | the file of the same name in `moyin/comfy_api` |
| other services, by the route table in `config.py` | `moyin/proxy` |
"""
