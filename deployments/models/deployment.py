"""Contains `Models`, the Serve deployment behind ``/v1``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from deployments.hot import HotConfig
from deployments.logs import configure_logs
from deployments.models.app import ModelsParts, QualityParts, new_app
from deployments.models.config import ModelsConfig
from deployments.models.fleet import FleetBuilder
from deployments.models.judge import JudgeMetrics, JudgeService
from deployments.models.learning import LearningMetrics
from deployments.models.routes.images import ImageRules
from deployments.models.telemetry import CallTelemetry
from deployments.observer import ServeObserver
from moyin.access.gatekeeper import Gatekeeper, new_authenticator, service_token_factory
from moyin.access.gatekeeper.limits import new_meter
from moyin.client.gateway import GatewayClient
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.grpc.bridge import MoyinCalls, NoBridge
from moyin.jobs.images import Images
from moyin.settings import Settings
from moyin.store.followups import FollowUpStore
from moyin.store.quality import QualityStore
from moyin.store.responses import ResponseStore
from moyin.store.sql import Database
from moyin.store.stored_responses import StoredResponses
from moyin.store.usage import UsageLedger
from moyin.system.processes import freeze_startup_objects
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

__all__ = ["Models"]


class Models(MoyinCalls):
    """Creates the app's services inside a replica.

    Calls by gRPC get an error that names the app to call instead.
    """

    grpc_bridge = NoBridge()

    def __init__(self) -> None:
        settings = Settings()
        configure_logs(settings.log_level)
        database = Database(settings.sql_url)
        ledger = UsageLedger(database)
        meter = new_meter(settings)
        telemetry = CallTelemetry()
        responses = ResponseStore(settings.redis_url)
        self._fleet_builder = FleetBuilder(settings, telemetry=telemetry)
        pictures = PictureFetcher(AllowedNetworks(settings.picture_networks))
        signing_key = settings.signing_key()
        jobs = GatewayClient(
            settings.door,
            token_for=service_token_factory(signing_key, "models"),
            silence_seconds=60,
            total_seconds=30,
        )
        self._base_url = settings.public_url.rstrip("/")
        self._image_rules = ImageRules(base_url=self._base_url)
        self._estimator = Estimator()
        store = QualityStore(database)
        learning = self._learning = QualityLearner(self._estimator, store)
        follow_ups = FollowUpDetector(
            learning,
            shared_answers=SharedAnswers(FollowUpStore(settings.redis_url), learning),
            secret=signing_key,
        )
        self._text_router = Router(
            Fleet(catalog=Catalog(deployments=()), runtimes={}),
            ledger,
            pictures,
            telemetry,
            responses,
            self._estimator,
            learning,
            follow_ups,
        )

        judge_metrics = JudgeMetrics()
        self._judge = JudgeService(
            settings,
            text_router=self._text_router,
            estimator=self._estimator,
            signals=store,
            count=judge_metrics.note,
        )

        learning_metrics = LearningMetrics(learning.background)

        def work() -> None:
            telemetry.work()
            judge_metrics.work()
            learning_metrics.work()

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            await database.ready()
            await ledger.start()
            await learning.start()
            await self._judge.start()
            freeze_startup_objects()
            yield
            # The judge closes first, because its calls use the other services.
            await self._judge.close()
            await self._fleet_builder.close()
            await responses.close()
            await pictures.close()
            await jobs.close()
            await follow_ups.close()
            await learning.close()
            await ledger.close()
            await meter.close()
            await database.close()

        self._parts = ModelsParts(
            text_router=self._text_router,
            jobs=jobs,
            images=Images(gateway=jobs, signing_key=signing_key),
            image_rules=lambda: self._image_rules,
            ledger=ledger,
            responses=StoredResponses(database),
            quality=QualityParts(
                store=store,
                learning=learning,
                feedback=FeedbackService(store, learning, ledger),
                judge=self._judge,
            ),
            authenticator=new_authenticator(database, signing_key),
            meter=meter,
            observer=ServeObserver(settings.log_level, also=work),
            max_body_bytes=settings.max_body_bytes,
            lifespan=lifespan,
        )
        self._config = HotConfig(ModelsConfig, self._apply)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply new back ends, aliases and prices; requests in progress are not affected."""
        routing = user_config.get("routing")
        name = routing.get("embedder") if isinstance(routing, dict) else None
        if name in SUPPORTED_EMBEDDERS:
            with suppress(EmbedderNotInstalled):  # the validation below reports it
                # Loading takes half a second, too long for the event loop; the embedder is cached.
                await asyncio.to_thread(load_embedder, name)
        self._config.load(user_config)

    def _apply(self, config: ModelsConfig) -> None:
        fleet = self._text_router.fleet = self._fleet_builder.build(config)
        self._estimator.set_abilities(fleet.catalog.abilities)
        self._learning.set_sharing(config.routing.share_levels)
        judge = config.routing.judge
        self._judge.apply(None if judge is None else judge.rules())
        self._image_rules = ImageRules(
            timeout=config.images.timeout_s,
            link_seconds=config.images.link_seconds,
            base_url=self._base_url,
        )

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._parts).without_request_id()
