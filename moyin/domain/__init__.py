"""The domain: frozen dataclasses that know no framework and no wire format."""
