"""Defines the measured use of a GPU by a render, and its price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

# The ledger's precision, so that the cost of a job equals the sum of its rows exactly.
_NANO_USD = Decimal(1).scaleb(-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderPrice:
    """The price of a pool's renders: by time on the GPU, by picture, or neither.

    Attributes:
        usd_per_gpu_hour: the price of an hour of the whole GPU.
        gpu_share: the share of the GPU that a render occupies.
        usd_per_picture: the price of each picture of a successful render, except previews.
    """

    usd_per_gpu_hour: Decimal | None = None
    gpu_share: Decimal = Decimal(1)
    usd_per_picture: Decimal | None = None

    @property
    def is_free(self) -> bool:
        usd_per_hour = (self.usd_per_gpu_hour or Decimal(0)) * self.gpu_share
        return not (usd_per_hour if self.usd_per_picture is None else self.usd_per_picture)

    def compute_cost(self, seconds: float, pictures: int) -> Decimal:
        """Return the cost of a render in US dollars, rounded to billionths.

        Args:
            seconds: how long the render occupied its renderer.
            pictures: the number of pictures that it stored, without previews.
        """
        cost = Decimal(0)
        if self.usd_per_gpu_hour is not None:
            cost = self.usd_per_gpu_hour * self.gpu_share * Decimal(seconds) / 3600
        if self.usd_per_picture is not None:
            cost = self.usd_per_picture * pictures
        return cost.quantize(_NANO_USD)


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderEstimate:
    """The estimated usage of a render: seconds on its renderer, and pictures."""

    seconds: float
    pictures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRender:
    """A successful render, from which the usage of other renders is estimated.

    Attributes:
        shape: the shape of its graph (`moyin.render.protocol.shape`).
        seconds: how long the render took, including model loading.
        load_seconds: the part of ``seconds`` in which nodes that load model files were executed.
        pictures: the number of stored pictures without previews.
    """

    shape: str
    seconds: float
    load_seconds: float = 0
    pictures: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderTariff:
    """The price of a pool's renders, and the usage of its recent renders.

    Attributes:
        price: the price; None if renders cost nothing.
        seconds: the estimated seconds on a renderer, for graphs without an entry in ``shapes``.
        shapes: the estimates by shape of the graph (`moyin.render.protocol.shape`).
    """

    price: RenderPrice | None = None
    seconds: float = 0
    shapes: Mapping[str, RenderEstimate] = field(default_factory=dict)

    def estimate_cost(self, shape: str, pictures: int) -> Decimal:
        """Return the probable cost of a render in US dollars.

        If renders cost anything, the result is more than 0, even for a graph that recently stored
        no picture. It may store one now, and budgets count only renders that have a reservation.

        Args:
            pictures: the expected number of pictures, used if ``shape`` has no estimate.
        """
        if self.price is None or self.price.is_free:
            return Decimal(0)
        estimate = self.shapes.get(shape) or RenderEstimate(seconds=self.seconds, pictures=pictures)
        return max(self.price.compute_cost(estimate.seconds, estimate.pictures), _NANO_USD)


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderAccount:
    """The tenant and the job that pay for a render, and the price when the render was requested."""

    owner: str
    job_id: str
    pool: str
    price: RenderPrice


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderRun:
    """One execution of a prompt by a renderer; a repeated prompt has several runs.

    Attributes:
        id: 32 hexadecimal digits, which ensure that the run is booked only once.
        account: None if the pool has no price.
        seconds: how long the run has taken, from handing the prompt to an idle ComfyUI until the
            prompt ended (until now if it still runs); includes model loading.
        load_seconds: the part of ``seconds`` in which nodes that load model files were executed.
        pictures: the number of stored pictures without previews; 0 if the run was not successful.
        error: the code of the error that ended the run, or None.
        is_ended: False while the prompt runs.
    """

    id: str
    prompt_id: str
    account: RenderAccount | None
    seconds: float
    pictures: int = 0
    error: str | None = None
    is_ended: bool = True
    load_seconds: float = 0

    @property
    def cost_usd(self) -> Decimal:
        if self.account is None:
            return Decimal(0)
        return self.account.price.compute_cost(self.seconds, self.pictures)
