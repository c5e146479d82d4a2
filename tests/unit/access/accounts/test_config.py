from __future__ import annotations

import pytest
from pydantic import ValidationError

from deployments.accounts.config import AccountsConfig


def provider(**changes: object) -> dict[str, object]:
    known = {"name": "studio", "issuer": "https://id.example", "client_id": "moyin"}
    return {**known, "redirect_uris": ["https://play.example/"], **changes}


def test_a_provider_s_word_on_emails_is_believed_where_the_operator_says_so() -> None:
    other = provider(name="other", issuer="https://other.example", links_emails=True)
    config = AccountsConfig.model_validate({"providers": [provider(), other]})
    assert config.policy.trusted_issuers == {"https://other.example"}
    assert set(config.open_id_providers({})) == {"studio", "other"}


def test_a_name_is_of_one_provider() -> None:
    """The later one would take the place of the other, and nobody be told."""
    with pytest.raises(ValidationError, match="same name"):
        AccountsConfig.model_validate({"providers": [provider(), provider(client_id="two")]})
