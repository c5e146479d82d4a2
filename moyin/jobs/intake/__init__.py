"""Consumes message queues: each message becomes one job, whose result is published."""

from moyin.jobs.intake.broker import Broker, BrokerLost, Delivery, Session
from moyin.jobs.intake.worker import IntakeWorker

__all__ = ["Broker", "BrokerLost", "Delivery", "IntakeWorker", "Session"]
