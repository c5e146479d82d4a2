"""Defines the JSON bodies of the jobs API; requests with unknown members are rejected."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, model_validator

from moyin.domain.job import MAX_BATCH_CHILDREN, CancellerKind, ChatProtocol, JobStatus
from moyin.http.validation import UtcDatetime

MAX_STEPS = 20
# The link of an archive contains the ids of its files. With 200 ids the link has 6 kB; proxies
# refuse longer links.
MAX_ARCHIVE_IDS = 200
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
# Metadata must not contain NUL, because PostgreSQL can't store it and a search by metadata would
# fail.
MetadataKey = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00]*$")]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")]
HeaderValue = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,4096}$")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpCall(_Request):
    """A request to a route of the gateway, with the rights of the job's submitter."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: str = Field(
        min_length=1, max_length=8192, description="Starts with `/`; may have a query."
    )
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, max_length=50)
    body: JsonValue = Field(None, description="Sent as JSON; a string is sent as text.")


class ChatStep(_Request):
    """A request to a language model; the router chooses the back end."""

    kind: Literal["chat"]
    protocol: ChatProtocol = Field(
        ChatProtocol.OPENAI, description="The API format of `request` and of the answer."
    )
    request: dict[str, JsonValue] = Field(
        description="The body of an OpenAI chat completion, an Anthropic message, or an Ollama chat or "
        "generate request, without `stream`."
    )


class RenderStep(_Request):
    """A render by ComfyUI: a graph in `workflow`, or a `template` with its `inputs`."""

    kind: Literal["render"]
    workflow: dict[str, JsonValue] | None = Field(
        None, description="A graph in ComfyUI's API format."
    )
    template: str | None = Field(
        None, max_length=64, description="The name or an alias of a template of `GET /templates`."
    )
    inputs: dict[str, JsonValue] | None = Field(
        None,
        description="Inputs of the template, by its JSON Schema. In a pipeline, "
        '`{"from": "steps.0.text"}` takes the output of an earlier step; a plain string does not.',
    )
    pool: PoolName | None = Field(
        None, description="The render pool; default: the job's pool, then the template's."
    )
    cache: bool = Field(
        True,
        description="If true, the result of an earlier render of the same graph may be returned.",
    )


class HttpStep(_Request):
    """A request to any other service behind the gateway."""

    kind: Literal["http"]
    request: HttpCall


StepRequest = Annotated[ChatStep | RenderStep | HttpStep, Field(discriminator="kind")]


class _Options(_Request):
    pool: PoolName | None = Field(None, description="The render pool of steps without a `pool`.")
    priority: int = Field(
        3,
        ge=1,
        le=5,
        description="1 runs first, 5 last. The limit `best_priority` is the best you may use.",
    )
    deadline: UtcDatetime | None = Field(
        None, description="With a time zone. The job fails when it has not finished by then."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)
    webhook: str | None = Field(
        None, max_length=2048, description="http(s) URL that receives a POST when the job ends."
    )


class ChatJob(ChatStep, _Options):
    """A job with one chat step."""


BatchValue = str | int | float | bool


_Strict = Annotated[
    bool,
    Field(
        strict=True,
        description="Refuse the job with 400 `invalid_graph` if ComfyUI finds an output of a graph invalid. "
        "If false, the valid outputs are rendered, and `node_errors` names the others.",
    ),
]


class Batch(_Request):
    """Variants of one render, which become children of the job; set exactly one of the members."""

    seeds: int | list[int] | None = Field(
        None,
        description="The number of renders, whose seeds count up from the given one, or a list of seeds. "
        "A workflow's seeds are its inputs `seed` and `noise_seed`, a template's its input `seed`.",
    )
    inputs: list[dict[str, JsonValue]] | None = Field(
        None, description="Inputs of the template that replace the job's, for each render."
    )
    sweep: dict[str, list[BatchValue]] | None = Field(
        None,
        description="One render for every combination of these values; the last key varies fastest. Keys: "
        "`inputs.<name>` of a template, `workflow.<node>.inputs.<name>` of a workflow.",
    )


class RenderJob(RenderStep, _Options):
    """A job with one render, or with the concurrent renders of a `batch`."""

    batch: Batch | None = Field(
        None, description=f"At most {MAX_BATCH_CHILDREN} children; each counts as an open job."
    )
    strict: _Strict = False


class HttpJob(HttpStep, _Options):
    """A job with one http step."""


class PipelineJob(_Options):
    """A job of several steps in order; a step may use earlier outputs, as in `${steps.0.text}`."""

    kind: Literal["pipeline"]
    steps: list[StepRequest] = Field(min_length=1, max_length=MAX_STEPS)
    strict: _Strict = False


JobRequest = Annotated[
    ChatJob | RenderJob | HttpJob | PipelineJob, Field(discriminator="kind", title="JobRequest")
]
JOB_REQUEST: TypeAdapter[ChatJob | RenderJob | HttpJob | PipelineJob] = TypeAdapter(JobRequest)


class ArtifactBody(BaseModel):
    """A stored file; `url` is relative to the gateway, `size` is in bytes."""

    id: str
    url: str
    name: str
    media_type: str
    size: int


class ProgressBody(BaseModel):
    """The progress of step `step` (from 0): `value` of `max` units or children are done."""

    value: float
    max: float
    step: int


class ErrorBody(BaseModel):
    """The error of a failed job."""

    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class InputErrorBody(BaseModel):
    """An error of ComfyUI's validation; `extra_info` may have `input_name`."""

    type: str
    message: str
    details: str
    extra_info: dict[str, Any]


class NodeErrorBody(BaseModel):
    """The first errors of an invalid node, in the form of ComfyUI's `node_errors`."""

    class_type: str
    errors: list[InputErrorBody]
    dependent_outputs: list[str] = Field(description="Output nodes that are not executed.")


class CancellerBody(BaseModel):
    """The user, key, service or operator that cancelled the job; an operator has no id."""

    kind: CancellerKind
    id: str | None


class SecondsBody(BaseModel):
    """Estimated seconds, which half of all cases exceed (`p50`) or a tenth exceeds (`p90`)."""

    p50: float
    p90: float


class EtaBody(BaseModel):
    """The times until a render will probably start and end."""

    starts_in: SecondsBody | None = Field(
        description="Seconds until the render starts; for a batch, its first waiting render. Null if "
        "the pool has not measured any render or has no ComfyUI that is up, and once one is chosen."
    )
    ends_in: SecondsBody | None = Field(
        description="Seconds until ComfyUI has executed the render; its files are stored afterwards. "
        "Null for jobs of several steps, and if the pool has not measured a similar render."
    )


class JobBody(BaseModel):
    """A job without the outputs of its steps."""

    id: str
    kind: str
    status: JobStatus
    steps: int = Field(description="The number of steps, or of a batch's children.")
    progress: ProgressBody
    artifacts: list[ArtifactBody]
    error: ErrorBody | None
    node_errors: dict[str, NodeErrorBody] = Field(
        description="The nodes that ComfyUI found invalid when the job was accepted, by id, in a pipeline "
        "by `steps.<index>.<id>`; the outputs that need them are not rendered. Empty if there are none, "
        "and if no ComfyUI of the pool was up. Texts are shortened, and only the first nodes are named."
    )
    cancelled_by: CancellerBody | None
    cancel_requested_by: CancellerBody | None = Field(
        description="Set once a cancellation is requested. If the job ends before it takes effect, "
        "`status` is not `cancelled`, and this stays until a retry."
    )
    attempts: int
    priority: int
    cost_usd: float = Field(
        description="The cost of all steps, including renders that failed or were cancelled."
    )
    cached: bool = Field(description="True if all results came from earlier renders.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queued_for: float | None = Field(
        description="Seconds since the job was queued or retried; null if it is not queued, in events, "
        "and for jobs of earlier versions."
    )
    position: int | None = Field(
        description="The place among the waiting renders of the pool, by the order in which they would "
        "begin now; 1 is next, and a batch has the place of its first render. It is at most some "
        "seconds old and may change, also to a later place. Null if the job is not queued, in events, "
        "if the pool does not respond, while the job is too far back for the pool to order it, and once "
        "a ComfyUI is chosen."
    )
    eta: EtaBody | None = Field(
        description="When the waiting or running render will probably start and end, from measured "
        "times. It is at most some seconds old, and renders that arrive later may change it. Null if "
        "the job has ended, in events, and where `position` is null for a queued job, except once a "
        "ComfyUI is chosen."
    )
    metadata: dict[str, str]


class OutputBody(BaseModel):
    """The output of a finished step."""

    step: int
    text: str | None
    body: Any
    artifacts: list[ArtifactBody]
    backend: str | None
    cost_usd: float
    cached: bool
    gpu_seconds: float | None = Field(
        description="For a render, the seconds for which it occupied its renderer, including loading "
        "models; null for other steps."
    )
    load_seconds: float | None = Field(
        description="The part of `gpu_seconds` in which nodes that load model files were executed; null "
        "for other steps."
    )


class ChildBody(BaseModel):
    """A child of a batch, which is one render."""

    index: int
    status: JobStatus
    inputs: dict[str, Any] = Field(
        description="The inputs that distinguish it from the other children."
    )
    progress: float = Field(description="From 0 to 1.")
    artifacts: list[ArtifactBody]
    error: ErrorBody | None
    cached: bool


class SubmittedStep(BaseModel):
    """The submitted request of a step; members for other kinds of steps are null."""

    kind: str
    template: str | None = None
    inputs: dict[str, Any] | None = Field(None, description="The inputs of the template.")
    graph: str | None = Field(None, description="The path that returns the graph of a render.")
    pool: str | None = None
    cache: bool | None = None
    protocol: ChatProtocol | None = None
    request: dict[str, Any] | None = Field(
        None,
        description="The request of a chat or http step. `[hidden]` stands for the query of the path, and "
        "for headers that may contain credentials.",
    )


class SubmittedJob(BaseModel):
    """The request as the client submitted it, without the fields that `JobBody` already contains."""

    steps: list[SubmittedStep] = Field(
        description="One for each step, or for a batch one for all children, whose `graph` is that of "
        "the first."
    )
    deadline: datetime | None
    webhook: str | None = Field(description="The scheme and host of the webhook's URL.")


class JobDetail(JobBody):
    """A job with the outputs of its finished steps, and the children of a batch."""

    outputs: list[OutputBody]
    children: list[ChildBody] | None
    submitted: SubmittedJob | None = Field(
        description="Null if it is larger than 1 MiB, or was deleted from the artifact store."
    )


class JobPage(BaseModel):
    """A page of jobs, newest first; `next_cursor` is null on the last page."""

    jobs: list[JobBody]
    next_cursor: str | None


class NewestJobs(JobPage):
    """The first page of the tenant's jobs, with the numbers of queued and running jobs."""

    queued: int
    running: int


class ArtifactDetail(ArtifactBody):
    """A stored file, with the time of storing and the job, if any, that produced it."""

    job: str | None
    created_at: datetime
    favourite: bool


class ArtifactPage(BaseModel):
    """A page of files, newest first; `next_cursor` is null on the last page."""

    artifacts: list[ArtifactDetail]
    next_cursor: str | None


class LinkRequest(_Request):
    """The body of ``POST /artifacts/{id}/link``, which may be missing."""

    expires_in: int = Field(
        3600, ge=1, le=86_400, strict=True, description="Seconds for which the link works."
    )


class LinkBody(BaseModel):
    """A link that returns the file without a key; `url` is relative to the gateway."""

    url: str
    expires_at: datetime


class ArchiveRequest(_Request):
    """The body of ``POST /artifacts/archive``: either `artifacts` or `job`."""

    artifacts: list[Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]] = Field(
        [],
        max_length=MAX_ARCHIVE_IDS,
        description="The ids of files, in the order of the archive.",
    )
    job: str | None = Field(
        None,
        max_length=36,
        pattern=r"^[^\x00]*$",
        description="The id of a job whose files are archived, all of them.",
    )
    name: str | None = Field(None, max_length=200, description="The name of the archive.")
    expires_in: int = Field(
        600, ge=1, le=3600, strict=True, description="Seconds for which the link works."
    )

    @model_validator(mode="after")
    def _require_files(self) -> ArchiveRequest:
        if bool(self.artifacts) == (self.job is not None):
            raise ValueError("name the files either by `artifacts` or by `job`")
        return self


class ArchiveBody(LinkBody):
    """A link to an archive, with the number of its files and its size in bytes."""

    files: int
    size: int


class TokenRequest(_Request):
    """The body of ``POST /jobs/{id}/token``, which may be missing."""

    expires_in: int = Field(
        300, ge=1, le=3600, strict=True, description="Seconds for which the token opens streams."
    )


class TokenBody(BaseModel):
    """A token for the query parameter `token` of a job's event streams and files."""

    token: str
    expires_at: datetime


class BulkBody(BaseModel):
    """The numbers of jobs that matched a filter, that were changed, and that were skipped."""

    matched: int
    done: int = Field(description="Jobs that were cancelled or deleted; 0 in a dry run.")
    skipped: int = Field(description="Jobs whose status did not allow it.")
    dry_run: bool
    next_cursor: str | None = Field(
        description="Not null if jobs are left: send the same request again with it as `cursor`."
    )


class WebhookSecret(BaseModel):
    """The Standard Webhooks secret that signs this owner's webhooks."""

    secret: str
