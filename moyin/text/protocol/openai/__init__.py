"""OpenAI chat completions: shapes, translation, streams."""
