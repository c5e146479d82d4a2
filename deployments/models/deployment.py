"""Contains `Models`, the Serve deployment that serves ``/v1``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from deployments.logs import configure_logs
from deployments.models.app import ModelsServices, new_app
from deployments.models.backend_checks import check_backends
from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from deployments.models.judge import JudgeService
from deployments.models.routes.backends import describe_backends
from deployments.models.routes.models import list_models
from deployments.models.routes.usage import report_month
from deployments.models.routing_config import BatchesConfig, ImagesConfig
from deployments.models.telemetry import (
    BatchMetrics,
    CallTelemetry,
    JudgeMetrics,
    LearningMetrics,
)
from deployments.observer import RequestObserver
from deployments.replicas import ReloadableConfig
from moyin.access.gatekeeper.identity import create_authenticator, create_service_token_factory
from moyin.access.gatekeeper.limits import create_meter
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.client.gateway import GatewayClient
from moyin.domain.cluster import BackendSummary, ModelsSummary
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.grpc.bridge import MoyinCalls, RefusingBridge
from moyin.jobs.grpc.health import HealthMonitor
from moyin.jobs.images import ImageJobs
from moyin.settings import Settings
from moyin.store.batch_lines import BatchLineStore
from moyin.store.blobs import BlobStore
from moyin.store.files import FileStore
from moyin.store.followups import FollowUpStore
from moyin.store.native_batches import NativeBatchStore
from moyin.store.quality import QualityStore
from moyin.store.response_cache import ResponseCache
from moyin.store.sql import Database
from moyin.store.stored_responses import StoredResponses
from moyin.store.text_batches import TextBatchStore
from moyin.store.usage import UsageLedger
from moyin.store.usage_reports import UsageReports
from moyin.system.processes import freeze_startup_objects
from moyin.system.ranks import Rank, take_rank
from moyin.text.pictures import PictureFetcher
from moyin.text.quality.embedder import SUPPORTED_EMBEDDERS, EmbedderNotInstalled, load_embedder
from moyin.text.quality.estimator import Estimator
from moyin.text.routing.catalog import Catalog
from moyin.text.routing.feedback import FeedbackService
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.router import Router
from moyin.text.routing.shared_answers import SharedAnswers


class Models(MoyinCalls):
    """Creates the services of a replica and serves the app with them.

    A gRPC call gets an error that names the app to call instead.
    """

    grpc_bridge = RefusingBridge()
    grpc_health = HealthMonitor(grpc_bridge.is_ready)

    def __init__(self) -> None:
        settings = Settings()
        take_rank(Rank.REPLICA)
        configure_logs(settings.log_level)
        database = Database(settings.sql_url)
        ledger = UsageLedger(database)
        meter = create_meter(settings)
        telemetry = CallTelemetry()
        response_cache = ResponseCache(settings.redis_url)
        self._fleet_builder = FleetBuilder(settings, telemetry=telemetry)
        picture_fetcher = PictureFetcher(AllowedNetworks(settings.picture_networks))
        signing_key = settings.signing_key()
        jobs = GatewayClient(
            settings.door,
            token_for=create_service_token_factory(signing_key, "models"),
            silence_seconds=60,
            total_seconds=30,
        )
        self._image_settings = ImagesConfig()
        self._batch_settings = BatchesConfig()
        batches = self._batches = TextBatchStore(database)
        self._estimator = Estimator()
        quality_store = QualityStore(database)
        learning = self._learning = QualityLearner(self._estimator, quality_store)
        follow_ups = FollowUpDetector(
            learning,
            shared_answers=SharedAnswers(FollowUpStore(settings.redis_url), learning),
            secret=signing_key,
        )
        self._text_router = Router(
            Fleet(catalog=Catalog(deployments=()), runtimes={}),
            ledger,
            picture_fetcher,
            telemetry,
            response_cache,
            self._estimator,
            learning,
            follow_ups,
        )

        judge_metrics = JudgeMetrics()
        self._judge = JudgeService(
            settings,
            text_router=self._text_router,
            estimator=self._estimator,
            signal_store=quality_store,
            count_outcome=judge_metrics.record_outcome,
        )

        learning_metrics = LearningMetrics(learning.background)
        batch_metrics = BatchMetrics()

        def export_metrics() -> None:
            telemetry.export()
            judge_metrics.export()
            learning_metrics.export()
            batch_metrics.export()

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            await database.ensure_schema()
            await ledger.start()
            await learning.start()
            await self._judge.start()
            freeze_startup_objects()
            yield
            # The judge is closed first, because its calls use the other services.
            await self._judge.close()
            await self._fleet_builder.close()
            await response_cache.close()
            await picture_fetcher.close()
            await jobs.close()
            await follow_ups.close()
            await learning.close()
            await ledger.close()
            await meter.close()
            await database.close()

        self._services = ModelsServices(
            text_router=self._text_router,
            jobs=jobs,
            images=ImageJobs(gateway=jobs, signing_key=signing_key),
            image_settings=lambda: self._image_settings,
            public_url=settings.public_url.rstrip("/"),
            ledger=ledger,
            reports=UsageReports(database),
            responses=StoredResponses(database),
            batches=batches,
            batch_lines=BatchLineStore(database),
            native_batches=NativeBatchStore(database),
            files=FileStore(database, max_bytes=settings.max_upload_mib * 2**20),
            blobs=BlobStore(settings.blobs_url),
            batch_settings=lambda: self._batch_settings,
            record_batch_line=batch_metrics.record_line,
            signals=quality_store,
            learning=learning,
            feedback=FeedbackService(quality_store, learning, ledger),
            judge=self._judge,
            authenticator=create_authenticator(database, signing_key),
            meter=meter,
            observer=RequestObserver(settings.log_level, export_metrics=export_metrics),
            max_body_bytes=settings.max_body_bytes,
            max_in_progress=settings.max_requests_in_progress,
            max_file_bytes=settings.max_file_bytes,
            lifespan=lifespan,
            on_models_changed=self._build_fleet,
            recent_calls=telemetry.recent,
        )
        self._models_config = ModelsConfig()
        self._config = ReloadableConfig(ModelsConfig, self._apply_config)

    async def read_summary(self) -> ModelsSummary:
        """Return the availability of the back ends, and whether the configuration was rejected."""
        runtimes = self._text_router.fleet.runtimes.values()
        return ModelsSummary(
            backends=tuple(
                BackendSummary(
                    name=runtime.name, is_up=runtime.is_up, breaker=runtime.breaker.state.value
                )
                for runtime in runtimes
            ),
            is_config_rejected=self._config.is_rejected,
        )

    async def read_backends(self, tenant: str | None) -> str:
        """Return the JSON of ``GET /v1/backends`` for a tenant's administrators.

        If ``tenant`` is None, it is the JSON for operators.
        """
        fleet, recent_calls = self._text_router.fleet, self._services.recent_calls
        return describe_backends(fleet, recent_calls, tenant).model_dump_json(ensure_ascii=True)

    async def read_models(self, owner: str, prices: bool) -> str:
        """Return the JSON of ``GET /v1/models`` for a tenant.

        If ``prices`` is True, which only operators may request, the JSON includes prices.
        """
        return json.dumps(list_models(self._text_router.fleet, owner, prices=prices))

    async def read_usage(self, tenant: str | None) -> str:
        """Return a tenant's usage of this month by day as JSON; None means all tenants together."""
        return await report_month(self._services.reports, self._text_router.fleet, tenant)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a new ``user_config`` to later requests, but not to requests in progress."""
        routing = user_config.get("routing")
        embedder_name = routing.get("embedder") if isinstance(routing, dict) else None
        if embedder_name in SUPPORTED_EMBEDDERS:
            # `load` has already reported a missing embedder.
            with suppress(EmbedderNotInstalled):
                # Loading takes half a second, too long for the event loop. The result is cached.
                await asyncio.to_thread(load_embedder, embedder_name)
        self._config.load(user_config)
        # The replica receives requests once this method returns, so it must know its models.
        runtimes = self._text_router.fleet.runtimes.values()
        if await check_backends(
            runtime for runtime in runtimes if runtime.refresh_models and runtime.is_up is None
        ):
            self._build_fleet()

    def _apply_config(self, config: ModelsConfig) -> None:
        self._models_config = config
        self._build_fleet()
        self._learning.set_sharing(config.routing.share_levels)
        judge = config.routing.judge
        self._judge.set_rules(None if judge is None else judge.to_rules())
        self._image_settings = config.images
        self._batch_settings = config.batches
        self._batches.max_open = config.batches.open

    def _build_fleet(self) -> None:
        """Build the fleet from the current configuration and the servers' current models."""
        fleet = self._text_router.fleet = self._fleet_builder.build(self._models_config)
        self._estimator.set_abilities(fleet.catalog.abilities)

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._services).disable_request_id()
