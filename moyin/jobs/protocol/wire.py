"""Shapes of the jobs API. Unknown members are refused, so that a typing error is not ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from moyin.domain.batch import MAX_CHILDREN
from moyin.domain.job import CancellerKind, ChatProtocol, JobStatus
from moyin.http.validation import UtcDatetime

MAX_STEPS = 20
PoolName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
# PostgreSQL has no character NUL: a row with one in it would break every search by labels.
MetadataKey = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00]*$")]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")]
HeaderValue = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,4096}$")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpCall(_Request):
    """A call of a route behind the door, with the job owner's rights."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: str = Field(
        min_length=1, max_length=8192, description="Starts with `/`; may have a query."
    )
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, max_length=50)
    body: JsonValue = Field(None, description="Sent as JSON; a string is sent as text.")


class ChatStep(_Request):
    """A text answer by whichever back end the router chooses."""

    kind: Literal["chat"]
    protocol: ChatProtocol = Field(
        ChatProtocol.OPENAI, description="Whose body `request` is, and whose the answer will be."
    )
    request: dict[str, JsonValue] = Field(
        description="The body of a chat completion, an Anthropic message, or an Ollama chat or "
        "generate, without `stream`."
    )


class RenderStep(_Request):
    """A ComfyUI graph: one of your own in `workflow`, or a `template` with its `inputs`."""

    kind: Literal["render"]
    workflow: dict[str, JsonValue] | None = Field(
        None, description="A graph in ComfyUI's API format."
    )
    template: str | None = Field(
        None, max_length=64, description="A name or an alias that `GET /templates` lists."
    )
    inputs: dict[str, JsonValue] | None = Field(
        None,
        description="Of the template, as its JSON Schema says. In a pipeline, "
        '`{"from": "steps.0.text"}` takes the output of an earlier step; a string never does.',
    )
    pool: PoolName | None = Field(
        None, description="The render pool; default: the job's, then the template's."
    )
    cache: bool = Field(
        True, description="Whether the result of an earlier render of the same graph will do."
    )


class HttpStep(_Request):
    """Any other service behind the door."""

    kind: Literal["http"]
    request: HttpCall


StepRequest = Annotated[ChatStep | RenderStep | HttpStep, Field(discriminator="kind")]


class _Options(_Request):
    pool: PoolName | None = Field(None, description="The render pool of steps that name none.")
    priority: int = Field(
        3,
        ge=1,
        le=5,
        description="1 goes first, 5 last. Who may use which is a limit (`best_priority`).",
    )
    deadline: UtcDatetime | None = Field(
        None, description="With a time zone. The job fails when it has not finished by then."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)
    webhook: str | None = Field(
        None, max_length=2048, description="http(s) URL that is told when the job ends."
    )


class ChatJob(ChatStep, _Options):
    """One chat step."""


BatchValue = str | int | float | bool


class Batch(_Request):
    """One of the three. A render that is made of each becomes a child of the one job."""

    seeds: int | list[int] | None = Field(
        None,
        description="So many renders with seeds that count up from the given one, or these seeds. "
        "A workflow's seeds are its inputs `seed` and `noise_seed`, a template's its input `seed`.",
    )
    inputs: list[dict[str, JsonValue]] | None = Field(
        None, description="Of a template: in each, inputs that replace the job's."
    )
    sweep: dict[str, list[BatchValue]] | None = Field(
        None,
        description="Every combination of these values, the last key changing fastest. Keys: "
        "`inputs.<name>` of a template, `workflow.<node>.inputs.<name>` of a workflow.",
    )


class RenderJob(RenderStep, _Options):
    """One render step, or with `batch` many that run side by side."""

    batch: Batch | None = Field(
        None, description=f"At most {MAX_CHILDREN} children; each counts as an open job."
    )


class HttpJob(HttpStep, _Options):
    """One http step."""


class PipelineJob(_Options):
    """Steps in order; later ones may refer to earlier outputs: `${steps.0.text}`."""

    kind: Literal["pipeline"]
    steps: list[StepRequest] = Field(min_length=1, max_length=MAX_STEPS)


JobRequest = Annotated[
    ChatJob | RenderJob | HttpJob | PipelineJob, Field(discriminator="kind", title="JobRequest")
]
JOB_REQUEST: TypeAdapter[ChatJob | RenderJob | HttpJob | PipelineJob] = TypeAdapter(JobRequest)


class ArtifactBody(BaseModel):
    """A stored file; `url` is relative to the door; `size` in bytes."""

    id: str
    url: str
    name: str
    media_type: str
    size: int


class ProgressBody(BaseModel):
    """`value` of `max` units of step number `step` (from 0); of a batch: `value` of `max` children."""

    value: float
    max: float
    step: int


class ErrorBody(BaseModel):
    """Why the job failed."""

    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class CancellerBody(BaseModel):
    """Who cancelled the job: a person, a key or a service of Moyin that acts for the tenant, by its
    public id, or the operator of the farm, who has none."""

    kind: CancellerKind
    id: str | None


class JobBody(BaseModel):
    """A job."""

    id: str
    kind: str
    status: JobStatus
    steps: int = Field(description="How many steps, or children, it has.")
    progress: ProgressBody
    artifacts: list[ArtifactBody]
    error: ErrorBody | None
    cancelled_by: CancellerBody | None
    attempts: int
    priority: int
    cost_usd: float
    cached: bool = Field(description="An earlier result was all that it took.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    metadata: dict[str, str]


class OutputBody(BaseModel):
    """What a finished step gave."""

    step: int
    text: str | None
    body: Any
    artifacts: list[ArtifactBody]
    backend: str | None
    cost_usd: float
    cached: bool


class ChildBody(BaseModel):
    """One render of a batch."""

    index: int
    status: JobStatus
    inputs: dict[str, Any] = Field(description="What sets it apart from the others.")
    progress: float = Field(description="From 0 to 1.")
    artifacts: list[ArtifactBody]
    error: ErrorBody | None
    cached: bool


class JobDetail(JobBody):
    """A job with the outputs of its finished steps, and the children of a batch."""

    outputs: list[OutputBody]
    children: list[ChildBody] | None


class JobPage(BaseModel):
    """Newest first; `next_cursor` is null on the last page."""

    jobs: list[JobBody]
    next_cursor: str | None


class WebhookSecret(BaseModel):
    """The Standard Webhooks secret that signs this owner's webhooks."""

    secret: str
