"""Jobs out of message queues: at least once in, one job per message id, results published."""

from moyin.intake.broker import Broker, BrokerLost, Delivery, Session
from moyin.intake.worker import IntakeWorker

__all__ = ["Broker", "BrokerLost", "Delivery", "IntakeWorker", "Session"]
