"""Runs a real llama.cpp in a separate process, and the models app on a real HTTP server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from deployments.models.app import ModelsServices, new_app
from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from deployments.models.judge import JudgeService
from deployments.models.routing_config import ImagesConfig
from moyin.access.gatekeeper.identity import create_authenticator
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.observation import NoObserver
from moyin.client.gateway import GatewayClient
from moyin.domain.identity import ALL_SCOPES
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.images import ImageJobs
from moyin.settings import Settings
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.followups import FollowUpStore
from moyin.store.keys import KeyStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.quality import QualityStore
from moyin.store.sql import Database
from moyin.store.stored_responses import StoredResponses
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageLedger
from moyin.store.usage_reports import UsageReports
from moyin.testing.fakes import RecordingTelemetry
from moyin.text.judging.verdict import Outcome
from moyin.text.pictures import PictureFetcher
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.answer_cache import CachedResponses
from moyin.text.routing.feedback import FeedbackService
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.router import Router
from moyin.text.routing.shared_answers import SharedAnswers
from tests.waiting import eventually

LLAMA_KEY = "only-for-this-test"
# Signs the tokens with which services act for tenants.
SIGNING_KEY = b"0" * 32
_SERVER = f"""
import sys, xllamacpp
from actors.llama import find_packaged_gguf
params = xllamacpp.CommonParams()
params.model.path = str(find_packaged_gguf())
params.model_alias = {{"smollm2"}}
params.port, params.n_parallel, params.n_ctx = 0, 4, 4 * 2048
params.cpuparams.n_threads = 1
params.api_keys = [{LLAMA_KEY!r}]
params.use_jinja = True
params.sampling.temp = 0
if "vectors" in sys.argv:
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def llama() -> Iterator[str]:
    """Run a llama.cpp server with SmolLM2-135M, and yield its URL without ``/v1``."""
    yield from _run_llama()


@pytest.fixture
def llama_vectors() -> Iterator[str]:
    """Run a llama.cpp server for embeddings, and yield its URL without ``/v1``."""
    yield from _run_llama("vectors")


def _run_llama(*arguments: str) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "llama.cpp did not start"
        yield url
        process.stdin.close()
        process.wait(10)


@dataclass(kw_only=True)
class ModelsApp:
    """A running models app; ``url`` has no ``/v1``."""

    url: str
    api_key: str
    text_router: Router
    database: Database
    blobs: BlobStore
    ledger: UsageLedger
    telemetry: RecordingTelemetry
    learning: QualityLearner
    follow_ups: FollowUpDetector
    shared_answers: SharedAnswers | None
    judge: JudgeService | None = None
    judged: list[Outcome] = field(default_factory=list)


@asynccontextmanager
async def serving(
    folder: Path,
    *backends: dict[str, Any],
    rules: dict[str, Any] | None = None,
    cache: CachedResponses | None = None,
    redis_url: str | None = None,
    follow_ups_url: str | None = None,
    gateway_url: str = "http://127.0.0.1:9",
    temporal: tuple[str, str] | None = None,
    scopes: Iterable[str] = ALL_SCOPES,
    **aliases: Any,
) -> AsyncIterator[ModelsApp]:
    """Run the models app on a free port, with these back ends.

    Args:
        rules: further members of the configuration.
        redis_url: the Valkey in which limits are counted.
        follow_ups_url: the Valkey that replicas share for follow-ups; None for a single replica.
        gateway_url: the gateway that accepts jobs.
        temporal: address and namespace for the judge's jobs; needs ``redis_url``.
        scopes: the scopes of the key.
    """
    settings = Settings(data=folder)
    if temporal is not None:
        temporal_settings = {"temporal_address": temporal[0], "temporal_namespace": temporal[1]}
        settings = settings.model_copy(update={**temporal_settings, "redis_url": redis_url})
    database = Database(settings.sql_url)
    await database.ensure_schema()
    _, key = await KeyStore(database).create("ada", "test", scopes=scopes)
    ledger = UsageLedger(database)
    telemetry = RecordingTelemetry()
    builder = FleetBuilder(settings, {"LLAMA_KEY": LLAMA_KEY}, telemetry=telemetry)
    config = ModelsConfig.model_validate(
        {"backends": backends, "aliases": aliases, **(rules or {})}
    )
    pictures = PictureFetcher(AllowedNetworks("127.0.0.0/8"))
    built_fleet, estimator = builder.build(config), Estimator()
    estimator.set_abilities(built_fleet.catalog.abilities)
    quality_store = QualityStore(database)
    learning = QualityLearner(estimator, quality_store)
    shared_answers = (
        None if follow_ups_url is None else SharedAnswers(FollowUpStore(follow_ups_url), learning)
    )
    follow_ups = FollowUpDetector(
        learning, shared_answers=shared_answers, secret=settings.signing_key()
    )
    text_router = Router(
        built_fleet, ledger, pictures, telemetry, cache, estimator, learning, follow_ups
    )

    def follow_models() -> None:
        text_router.fleet = builder.build(config)
        estimator.set_abilities(text_router.fleet.catalog.abilities)

    gateway_client = GatewayClient(gateway_url, token_for=lambda identity: identity.owner)

    meter = None if redis_url is None else RequestMeter(redis_url)
    judge, judge_outcomes = None, list[Outcome]()
    if temporal is not None:
        judge = JudgeService(
            settings,
            text_router=text_router,
            estimator=estimator,
            signal_store=quality_store,
            count_outcome=judge_outcomes.append,
        )
        judge_config = config.routing.judge
        judge.set_rules(None if judge_config is None else judge_config.to_rules())

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await ledger.start()
        await learning.start()
        if judge is not None:
            await judge.start()
        yield
        if judge is not None:
            await judge.close()
        if meter is not None:
            await meter.close()
        await builder.close()
        await pictures.close()
        await gateway_client.close()
        await follow_ups.close()
        await learning.close()
        await ledger.close()
        await database.close()

    blobs = BlobStore(settings.blobs_url)
    models_services = ModelsServices(
        text_router=text_router,
        jobs=gateway_client,
        images=ImageJobs(gateway=gateway_client, signing_key=b"0" * 32),
        image_settings=ImagesConfig,
        ledger=ledger,
        reports=UsageReports(database),
        responses=StoredResponses(database),
        batches=TextBatchStore(database),
        batch_lines=BatchLineStore(database),
        native_batches=NativeBatchStore(database),
        batch_settings=lambda: config.batches,
        files=FileStore(database),
        blobs=blobs,
        signals=quality_store,
        learning=learning,
        feedback=FeedbackService(quality_store, learning, ledger),
        judge=judge,
        authenticator=create_authenticator(database, SIGNING_KEY),
        meter=meter,
        observer=NoObserver(),
        max_body_bytes=1_000_000,
        max_file_bytes=40_000_000,
        on_models_changed=follow_models,
        lifespan=lifespan,
    )
    server = uvicorn.Server(uvicorn.Config(new_app(models_services), port=0, log_level="warning"))
    server_task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield ModelsApp(
            url=f"http://127.0.0.1:{port}",
            api_key=key,
            text_router=text_router,
            database=database,
            blobs=blobs,
            ledger=ledger,
            telemetry=telemetry,
            learning=learning,
            follow_ups=follow_ups,
            shared_answers=shared_answers,
            judge=judge,
            judged=judge_outcomes,
        )
    finally:
        server.should_exit = True
        await server_task


async def wait_until_probed(models_app: ModelsApp) -> None:
    """Wait until every back end has been probed once, because a probe determines its kind."""
    runtimes = models_app.text_router.fleet.runtimes.values()
    await eventually(lambda: all(runtime.is_up is not None for runtime in runtimes))


def build_local_backend(llama: str) -> dict[str, Any]:
    """Return the configuration of llama.cpp's OpenAI API, without a price."""
    return {
        "name": "local",
        "type": "openai",
        "base_url": f"{llama}/v1",
        "api_key_env": "LLAMA_KEY",
        "models": [{"name": "smollm2", "context": 2048, "price": {"input": 0, "output": 0}}],
    }


def build_claude_backend(llama: str) -> dict[str, Any]:
    """Return the configuration of llama.cpp's Anthropic API, with the price of Haiku."""
    return {
        "name": "claude",
        "type": "anthropic",
        "base_url": llama,
        "api_key_env": "LLAMA_KEY",
        "models": [{"name": "claude-haiku-5-5", "context": 200_000, "tools": True}],
    }
