"""Reads how many renders of a pool wait in Temporal's queue, and for how long."""

from __future__ import annotations

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.service import RPCError

from moyin.domain.queue_place import Backlog
from moyin.jobs.workflows.client import RPC_TIMEOUT, TemporalConnection
from moyin.jobs.workflows.types import get_render_queue


async def read_backlog(temporal: TemporalConnection, pool: str) -> Backlog:
    """Return Temporal's estimate of the renders that wait for the pool.

    Raises:
        ServiceUnavailable: Temporal does not respond.
    """
    client = await temporal.get_client()
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=get_render_queue(pool)),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        report_stats=True,
    )
    try:
        response = await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
    except RPCError as error:
        raise temporal.report_outage(error) from error
    stats = response.stats
    if not stats.approximate_backlog_count:
        return Backlog()
    backlog_age = stats.approximate_backlog_age
    return Backlog(
        count=stats.approximate_backlog_count,
        oldest_wait=backlog_age.seconds + backlog_age.nanos / 1e9,
    )
