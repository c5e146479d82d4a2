"""Template files, and templates as clients see them."""
