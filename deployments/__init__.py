"""Contains the Ray Serve apps, a folder each with a builder, which binds, and a deployment."""
