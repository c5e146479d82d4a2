"""Deploys the workers of jobs: the Serve app ``workers``."""
