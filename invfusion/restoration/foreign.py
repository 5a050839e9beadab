"""Networks of the user's own as denoisers: whatever they predict, and whatever schedule they were trained on."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from invfusion.errors import ConfigError, ShapeError
from invfusion.operators import Measurement

Prediction = Literal["x0", "eps", "v"]
# What schedulers of diffusers call the same.
_DIFFUSERS_NAMES: dict[str, Prediction] = {"sample": "x0", "epsilon": "eps", "v_prediction": "v"}


def as_denoiser(
    module: Callable[..., Any],
    prediction: Prediction | None = None,
    schedule: Any = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> "ForeignDenoiser":
    """A network as an unconditional denoiser, which every sampler that knows the operator itself can use.

    Args:
        module: called as `module(x_t, t)`; it returns a tensor like x_t, or an object with such a `sample`. Only the
            first C channels count, so that a network that also predicts variances (of 2 C channels) works as it is.
        prediction: what it predicts: the clean image "x0", the standard normal noise "eps", or "v". None: "x0", or what
            the scheduler says.
        schedule: None for a network of (x + sigma n, sigma) itself. Otherwise what a variance-preserving network was
            trained on: a scheduler of diffusers, or the cumulative products of alpha, (T,); then t is the position on
            that ladder whose noise-to-signal ratio is sigma, a fraction where it lies between two, (B,) float32.
        value_range: what black and white are to the network.

    Raises:
        ConfigError: the prediction is unknown, or the schedule is none.
    """
    alphas = None if schedule is None else _cumulative_alphas(schedule)
    if prediction is None:
        named = str(_scheduler_setting(schedule, "prediction_type") or "sample")
        prediction = _DIFFUSERS_NAMES.get(named)
        if prediction is None:
            raise ConfigError(f"the scheduler's prediction_type is '{named}'; say prediction= 'x0', 'eps' or 'v'")
    if prediction not in get_args(Prediction):
        raise ConfigError(f"prediction must be one of {', '.join(get_args(Prediction))}, got {prediction!r}")
    if not value_range[0] < value_range[1]:
        raise ConfigError(f"value_range is (black, white) with black < white, got {value_range}")
    return ForeignDenoiser(module, prediction, alphas, value_range)


def _scheduler_setting(schedule: Any, name: str) -> Any:
    config = getattr(schedule, "config", None)
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _cumulative_alphas(schedule: Any) -> Tensor:
    """Falling numbers in (0, 1), (T,) float64."""
    given = getattr(schedule, "alphas_cumprod", schedule)
    try:
        alphas = torch.as_tensor(given, dtype=torch.float64, device="cpu").flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(
            f"a schedule is a scheduler with `alphas_cumprod`, or these numbers, got a {type(schedule).__name__}"
        ) from None
    if len(alphas) < 2 or not bool(((alphas > 0) & (alphas < 1)).all() and (alphas.diff() < 0).all()):
        raise ConfigError("a schedule's cumulative alphas must fall from below 1 to above 0")
    return alphas


class ForeignDenoiser(nn.Module):
    """D(x, sigma) of a network made elsewhere; see `as_denoiser`. It is told nothing of measurements or classes."""

    n_classes = 0
    is_conditional = False

    def __init__(
        self,
        module: Callable[..., Any],
        prediction: Prediction,
        alphas: Tensor | None,
        value_range: tuple[float, float],
    ) -> None:
        super().__init__()
        self.module = module
        self.prediction = prediction
        self.log_levels = None if alphas is None else ((1 - alphas) / alphas).log() / 2
        low, high = value_range
        self.scale, self.shift = (high - low) / 2, (high + low) / 2

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,  # noqa: ARG002 - it knows nothing of measurements
        class_labels: Tensor | None = None,  # noqa: ARG002 - nor of classes
    ) -> Tensor:
        """x (B, C, H, W) at noise levels sigma (B,) or () -> the clean image (B, C, H, W), float32."""
        x = x.float() * self.scale + self.shift
        level = (sigma.float() * self.scale).reshape(-1).expand(len(x))
        s = level.view(-1, 1, 1, 1)
        # x_t = a x + a sigma n: as it is where the network takes that, or of unit variance.
        a = torch.ones_like(s) if self.log_levels is None else (1 + s.square()).rsqrt()
        x_t = a * x
        predicted = self.module(x_t, level if self.log_levels is None else self._times(level))
        predicted = getattr(predicted, "sample", predicted)
        predicted = predicted[0] if isinstance(predicted, tuple) else predicted
        if predicted.ndim != 4 or predicted[:, : x.shape[1]].shape != x.shape:
            raise ShapeError(f"the network turned {tuple(x.shape)} into {tuple(predicted.shape)}, not into such images")
        predicted = predicted[:, : x.shape[1]].float()
        return (self._clean(x, x_t, s, predicted) - self.shift) / self.scale

    def _clean(self, x: Tensor, x_t: Tensor, s: Tensor, predicted: Tensor) -> Tensor:
        if self.prediction == "x0":
            return predicted
        if self.prediction == "eps":
            return x - s * predicted
        # v = alpha n - sigma_t x0 with alpha^2 + sigma_t^2 = 1. Source: Salimans & Ho 2022, appendix D.
        alpha = (1 + s.square()).rsqrt()
        vp = alpha * x if self.log_levels is None else x_t
        return alpha * vp - alpha * s * predicted

    def _times(self, level: Tensor) -> Tensor:
        """Positions on the schedule, (B,) float32, interpolated in ln sigma and kept within its ends."""
        assert self.log_levels is not None
        ladder, wanted = self.log_levels, level.detach().double().cpu().log()
        upper = torch.searchsorted(ladder, wanted).clamp(1, len(ladder) - 1)
        low, high = ladder[upper - 1], ladder[upper]
        position = (upper - 1) + (wanted - low) / (high - low)
        return position.clamp(0, len(ladder) - 1).float().to(level.device)
