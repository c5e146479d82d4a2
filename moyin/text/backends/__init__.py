"""Model servers behind the port `moyin.domain.backend.ModelBackend`."""
