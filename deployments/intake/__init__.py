"""Deploys the intake, which takes jobs from message queues: the optional Serve app ``intake``."""
