"""Jobs out of message queues: at least once in, one job per message id, results published."""

from moyin.jobs.intake.broker import Broker, BrokerLost, Delivery, Session
from moyin.jobs.intake.worker import IntakeWorker

__all__ = ["Broker", "BrokerLost", "Delivery", "IntakeWorker", "Session"]
