"""Makes anonymous ids of tenants, which ComfyUI's processes may know."""

from __future__ import annotations

import hashlib

from moyin.domain.renderer import RenderRequest
from moyin.render.comfyui.bridge.guard import get_moyin_data
from moyin.render.comfyui.bridge.tenants import TENANT_KEY


def make_tenant_id(owner: str) -> str:
    """Return an id of a tenant that does not reveal the tenant's name."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def get_request_tenant(request: RenderRequest) -> str:
    """Return the anonymous id of a request's tenant, or "" if the request has none."""
    return str(get_moyin_data(request.extra_data).get(TENANT_KEY, ""))
