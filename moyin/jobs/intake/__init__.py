"""Takes jobs from message queues: each message id becomes one job, and its result is published."""

from moyin.jobs.intake.broker import Broker, BrokerLost, Delivery, Session
from moyin.jobs.intake.worker import IntakeWorker

__all__ = ["Broker", "BrokerLost", "Delivery", "IntakeWorker", "Session"]
