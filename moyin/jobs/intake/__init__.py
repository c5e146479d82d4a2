"""Turns the messages of brokers' queues into jobs, and publishes the results."""

from moyin.jobs.intake.broker import Broker, BrokerLost, Delivery, Session
from moyin.jobs.intake.worker import IntakeWorker

__all__ = ["Broker", "BrokerLost", "Delivery", "IntakeWorker", "Session"]
