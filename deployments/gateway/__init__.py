"""Serves ``/``: jobs, artifacts, templates, ComfyUI's API, and the routes of other services.

Read `builder.py` (the Serve application), `deployment.py` (the parts of a replica), `app.py` (which
routes and middleware the app consists of), then the file in `routes/` of the subject. Routes only
parse and respond; their logic is in the wings:

| routes | logic |
|---|---|
| `jobs.py`, `job_events.py` | `moyin/jobs` |
| `artifacts.py` | `moyin/store`, signed links in `moyin/access/gatekeeper/tokens.py` |
| `templates.py` | `moyin/render/templates` |
| `comfy_api/*.py` | `moyin/comfy_api`, in the file of the same name |
| other services, by the route table in `config.py` | `moyin/proxy` |
"""
