"""Runs a scenario with the Python client; a test compares the results with the TypeScript client's.

The first line of standard input is JSON with the scenario, and the stack's address and key. To have
the gateway killed, the program prints ``{"kill": "ID OF THE JOB"}`` and waits until the test sends
a line. At the end, it prints ``{"results": [...]}``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

from moyin_client import (
    Batch,
    Chat,
    Client,
    Http,
    Job,
    MoyinError,
    Pipeline,
    Render,
    RetryPolicy,
    verify_webhook,
)

# A busy machine takes minutes to start a replica anew.
PATIENT = RetryPolicy(tries=60, longest_pause=5.0)
_SECONDS = 180.0
Step = Mapping[str, Any]


class Runner:
    """Executes the steps of a scenario; the Python and the TypeScript client must get equal results.

    Each public method but `run` executes the steps whose member ``do`` has its name.
    """

    def __init__(self, client: Client, webhooks: Queue[tuple[dict[str, str], bytes]]) -> None:
        self._client = client
        self._webhooks = webhooks
        self._jobs: dict[str, Job] = {}

    def run(self, step: Step) -> dict[str, Any]:
        execute_step: Callable[[Step], dict[str, Any]] = getattr(self, step["do"])
        return {"do": step["do"], **execute_step(step)}

    def submit(self, step: Step) -> dict[str, Any]:
        work, options = build_work(step["job"])
        key = f"{options['metadata']['scenario']}-{step['as']}"
        job = self._client.submit(work, idempotency_key=key, **options)
        self._jobs[step["as"]] = job
        if not step.get("twice"):
            return {"status": job.status}
        repeated_job = self._client.submit(work, idempotency_key=key, **options)
        return {
            "status": job.status,
            "again": "the same job" if repeated_job.id == job.id else repeated_job.id,
        }

    def follow(self, step: Step) -> dict[str, Any]:
        job, kill_at = self._jobs[step["job"]], step["kill_at"]
        events = []
        for event in self._client.events(job):
            events.append(event)
            if event.type == kill_at:
                kill_at = None
                print(json.dumps({"kill": job.id}), flush=True)
                sys.stdin.readline()
        ids = [event.id for event in events]
        all_ids = [event.id for event in self._client.events(job)]
        half_index = len(ids) // 2
        resumed_ids = [
            event.id for event in self._client.events(job, last_event_id=ids[half_index])
        ]
        return {
            "types": [event.type for event in events if event.type != "progress"],
            "repeated": len(ids) - len(set(ids)),
            "lost": len(set(all_ids) - set(ids)),
            "resumed": "the rest" if resumed_ids == ids[half_index + 1 :] else [ids, resumed_ids],
        }

    def fetch(self, step: Step) -> dict[str, Any]:
        [artifact] = self._client.wait(self._jobs[step["job"]]).artifacts
        content = self._client.download(artifact)
        return {
            "media_type": artifact.media_type,
            "begins": content[:8].hex(),
            "thumbnail": _detect_media_type(self._client.download(artifact, width=step["width"])),
        }

    def graph(self, step: Step) -> dict[str, Any]:
        graph = self._client.graph(self._jobs[step["job"]])
        return {"inputs": graph[step["node"]]["inputs"]}

    def webhook(self, step: Step) -> dict[str, Any]:
        secret = self._client.webhook_secret()
        headers, body = self._webhooks.get(timeout=_SECONDS)
        webhook = verify_webhook(secret, headers, body)
        assert webhook.job.id == self._jobs[step["job"]].id
        code_for_changed_body = _get_error_code(
            lambda: verify_webhook(secret, headers, body + b" ")
        )
        return {
            "type": webhook.type,
            "status": webhook.job.status,
            "changed": code_for_changed_body,
        }

    def cancel(self, step: Step) -> dict[str, Any]:
        job = self._jobs[step["job"]]
        for event in self._client.events(job):
            if event.type == step["at"]:
                break
        self._client.cancel(job)
        job = self._client.wait(job)
        second_cancel_code = _get_error_code(lambda: self._client.cancel(job))
        canceller = job.cancelled_by.kind if job.cancelled_by else None
        return {"status": job.status, "by": canceller, "again": second_cancel_code}

    def children(self, step: Step) -> dict[str, Any]:
        job = self._client.wait(self._jobs[step["job"]])
        children = job.children or ()
        width = step["width"]
        picture_digests = {
            hashlib.sha256(self._client.download(artifact, width=width)).hexdigest()
            for child in children
            for artifact in child.artifacts
        }
        statuses = [child.status for child in children]
        return {"status": job.status, "children": statuses, "pictures": len(picture_digests)}

    def outputs(self, step: Step) -> dict[str, Any]:
        job = self._client.wait(self._jobs[step["job"]])
        outputs = [
            "text" if job_output.text else "artifacts" if job_output.artifacts else "body"
            for job_output in job.outputs
        ]
        return {"status": job.status, "outputs": outputs}

    def refused(self, step: Step) -> dict[str, Any]:
        work, options = build_work(step["job"])
        try:
            job = self._client.submit(work, **options)
        except MoyinError as error:
            return {"status": error.status, "code": error.code, "field": error.field}
        return {"status": job.status}

    def missing(self, _: Step) -> dict[str, Any]:
        try:
            job = self._client.job("no-such-job")
        except MoyinError as error:
            has_request_id = bool(error.request_id)
            return {"status": error.status, "code": error.code, "request_id": has_request_id}
        return {"status": job.status}

    def file(self, step: Step) -> dict[str, Any]:
        file = self._client.upload(
            step["text"].encode(), name=step["name"], media_type=step["media_type"]
        )
        listed_artifacts = list(self._client.artifacts(media_type=step["media_type"]))
        link = self._client.link(file, expires_in=60)
        with urllib.request.urlopen(link.url, timeout=60) as response:
            linked_content = response.read().decode()
        downloaded_text = self._client.download(file).decode()
        self._client.delete_artifact(file)
        deleted_file_code = _get_error_code(lambda: self._client.download(file))
        return {
            "listed": len(listed_artifacts),
            "read": downloaded_text,
            "linked": linked_content,
            "deleted": deleted_file_code,
        }

    def list(self, step: Step) -> dict[str, Any]:
        jobs = self._client.jobs(**step["filter"], page_size=2)
        return {"parts": [job.metadata["part"] for job in jobs]}

    def usage(self, step: Step) -> dict[str, Any]:
        report = self._client.usage(group_by=step["group_by"])
        groups_add_up = report.total.calls == sum(group.calls for group in report.groups)
        return {"group_by": [*report.group_by], "groups": groups_add_up}

    def delete(self, step: Step) -> dict[str, Any]:
        self._client.delete(self._jobs[step["job"]])
        count_after_first = len([*self._client.jobs(**step["filter"])])
        dry_run_result = self._client.delete_jobs(dry_run=True, **step["filter"])
        deletion_result = self._client.delete_jobs(**step["filter"])
        count_after_all = len([*self._client.jobs(**step["filter"])])
        return {
            "left": count_after_first,
            "counted": dry_run_result.matched,
            "done": deletion_result.done,
            "listed": count_after_all,
        }


def build_work(job: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Convert a body of ``POST /jobs`` to the arguments of the Python client.

    Returns:
        The job's content, such as a `Render` or a `Pipeline`, and keyword arguments such as the
            priority.
    """
    options = {
        name: job[name] for name in ("priority", "metadata", "webhook", "deadline") if name in job
    }
    members = {name: value for name, value in job.items() if name not in options}
    kind = members.pop("kind")
    if kind == "chat":
        return Chat(**members), options
    if kind == "http":
        return Http(**members["request"]), options
    if kind == "pipeline":
        return Pipeline(steps=[build_work(step)[0] for step in members["steps"]]), options
    if "batch" in members:
        members["batch"] = Batch(**members["batch"])
    return Render(**members), options


def substitute(value: Any, variables: Mapping[str, Any]) -> Any:
    """Return a part of the scenario with the values of its variables filled in.

    Args:
        value: any JSON value; a string such as ``$name`` is a variable.
        variables: the values by name.
    """
    if isinstance(value, str) and value.startswith("$") and not value.startswith("${"):
        return variables[value[1:]]
    if isinstance(value, list):
        return [substitute(item, variables) for item in value]
    if isinstance(value, dict):
        return {name: substitute(item, variables) for name, item in value.items()}
    return value


@contextmanager
def receiving_webhooks(webhooks: Queue[tuple[dict[str, str], bytes]]) -> Iterator[str]:
    """Receive webhooks into the queue on a local server; yield the server's URL."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            webhooks.put((dict(self.headers.items()), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing, because the test parses the program's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _detect_media_type(picture: bytes) -> str:
    return "image/webp" if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP" else "another type"


def _get_error_code(call: Callable[[], object]) -> str:
    try:
        call()
    except MoyinError as error:
        return error.code
    return "no error"


def main() -> None:
    task = json.loads(sys.stdin.readline())
    webhooks: Queue[tuple[dict[str, str], bytes]] = Queue(maxsize=10)
    with (
        receiving_webhooks(webhooks) as url,
        Client(task["url"], task["key"], retry=PATIENT) as client,
    ):
        runner = Runner(client, webhooks)
        steps = substitute(task["steps"], task["variables"] | {"webhook": url})
        print(json.dumps({"results": [runner.run(step) for step in steps]}))


if __name__ == "__main__":
    main()
