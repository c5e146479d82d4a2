from __future__ import annotations

import pytest
from pydantic import ValidationError

from deployments.accounts.config import AccountsConfig


def make_provider_settings(**changes: object) -> dict[str, object]:
    settings = {"name": "studio", "issuer": "https://id.example", "client_id": "moyin"}
    return {**settings, "redirect_uris": ["https://play.example/"], **changes}


def test_only_configured_providers_are_trusted_with_emails() -> None:
    other_provider = make_provider_settings(
        name="other", issuer="https://other.example", links_emails=True
    )
    config = AccountsConfig.model_validate(
        {"providers": [make_provider_settings(), other_provider]}
    )
    assert config.sign_in_policy.trusted_issuers == {"https://other.example"}
    assert set(config.build_providers_by_name({})) == {"studio", "other"}


def test_provider_names_are_unique() -> None:
    """Two providers of one name are refused, because the second would replace the first."""
    with pytest.raises(ValidationError, match="names must be unique"):
        AccountsConfig.model_validate(
            {"providers": [make_provider_settings(), make_provider_settings(client_id="two")]}
        )
