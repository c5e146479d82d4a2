"""Ray Serve: one folder per app; each has a builder (the only place that binds) and a deployment."""
