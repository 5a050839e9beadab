"""The denoiser: a preconditioning around the raw network."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
from torch import Generator, Tensor

from invfusion import rng
from invfusion.errors import ConfigError, ShapeError
from invfusion.gaussian import GaussianPrior
from invfusion.models.config import DenoiserConfig, Variant
from invfusion.models.hdit import HDiT
from invfusion.models.layers import Initialised, Linear
from invfusion.models.preconditioning import Gaussian, Surroundings, preconditioning_for
from invfusion.operators.base import LinearOperator, Measurement

LOGVAR_FEATURES = 128
Output = Tensor | tuple[Tensor, ...]


class LogVariance(Initialised):
    """ln sigma / 4 (B,) -> log-variance of the loss at that noise level (B,), float32. Source: EDM2, section 2."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.empty(LOGVAR_FEATURES))
        self.register_buffer("phases", torch.empty(LOGVAR_FEATURES))
        self.head = Linear(LOGVAR_FEATURES, 1, bias=True)

    def initialise(self, generator: Generator) -> None:
        self.frequencies.normal_(std=2 * math.pi, generator=generator)
        self.phases.uniform_(0, 2 * math.pi, generator=generator)

    def forward(self, noise: Tensor) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            features = math.sqrt(2) * torch.cos(noise[:, None] * self.frequencies + self.phases)
            logvar: Tensor = self.head(features)
            return logvar.squeeze(1)


class Denoiser(Initialised):
    """D(x, sigma, y, H, class): the estimate of the clean image, float32 under any autocast of the caller.

    config: the whole architecture; seed: of the initial weights (nothing is drawn on the meta device); prior: of the
    training images, for preconditioning "gaussian" alone. Images may have any height and width, but for that prior's:
    within, they are reflected at their lower and right edges to whole tokens.
    The unconditional variant ignores measurements; a model without classes ignores class labels.
    Raises `ConfigError` where the prior does not fit the config, and `ShapeError` where images, labels or the operator
    do not fit the model.
    """

    def __init__(self, config: DenoiserConfig, seed: int = 0, prior: GaussianPrior | None = None) -> None:
        super().__init__()
        self.config = config
        # Below float32, the trunk runs under autocast; see `lower_precision`.
        self.trunk_dtype = torch.float32
        self.net = HDiT(config)
        self.log_variance = LogVariance()
        self.preconditioning = preconditioning_for(config, prior)
        if not self.log_variance.phases.is_meta:
            self.initialise(rng.generator(seed, "denoiser/weights"))

    def initialise(self, generator: Generator) -> None:
        """Draw all weights anew; then D is exactly what its preconditioning says before anything is learned."""
        for module in self.modules():
            if isinstance(module, Initialised) and module is not self:
                module.initialise(generator)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the model is trained on."""
        return self.config.image_shape

    @property
    def prior(self) -> GaussianPrior | None:
        """The Gaussian prior of preconditioning "gaussian"."""
        return self.preconditioning.prior if isinstance(self.preconditioning, Gaussian) else None

    @property
    def n_classes(self) -> int:
        return self.config.n_classes

    @property
    def variant(self) -> Variant:
        return self.config.variant

    @property
    def is_conditional(self) -> bool:
        """Whether measurements make a difference."""
        return self.config.variant != "unconditional"

    @overload
    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        return_logvar: bool = False,
        return_components: bool = False,
    ) -> Output: ...

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        return_logvar: bool = False,
        return_components: bool = False,
    ) -> Output:
        """x (B, C, H, W), sigma (B,) or (), class_labels (B,), augment_labels (B, 9) -> (B, C, H, W).

        With `return_logvar`, also the log-variance (B,) of the weighted squared error and the weight, (B,); with
        `return_components`, also the raw directions (B, K, C, H, W) of an NPPC model. `sigma` may be 0-dimensional: one
        noise level for the whole batch.
        """
        sigma = sigma.reshape(-1)
        if not self.is_conditional:
            measurement = None
        self._check(x, sigma, measurement, class_labels)
        x = x.float()
        around = self.preconditioning(x, sigma, measurement)
        raw = self._raw(around, measurement, class_labels, augment_labels)
        channels = self.config.channels
        denoised = torch.addcmul(around.estimate, around.scale, _open(around, raw[:, :channels]))
        if return_logvar:
            return denoised, self.log_variance(around.noise).expand(len(x)), around.weight.expand(len(x))
        if return_components:
            directions = raw[:, channels:].reshape(-1, self.config.n_components, *x.shape[1:])
            if around.directions is None:
                return denoised, directions
            learned = around.scale[:, None] * _open(around, directions)
            return denoised, around.directions(self.config.n_components) + learned
        return denoised

    def components(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """An NPPC model's mean (B, C, H, W) and its raw, not yet orthogonal directions (B, K, C, H, W)."""
        if self.config.n_components == 0:
            raise ConfigError("this model has no principal components; load a model distilled with 'nppc'")
        mean, directions = self(x, sigma, measurement, class_labels, return_components=True)
        return mean, directions

    def _trunk_precision(self, device_type: str) -> AbstractContextManager[object]:
        """An autocast of the caller's stays as it is where the trunk's own weights are in float32."""
        if self.trunk_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type, self.trunk_dtype)

    def _raw(
        self,
        around: Surroundings,
        measurement: Measurement | None,
        class_labels: Tensor | None,
        augment_labels: Tensor | None,
    ) -> Tensor:
        """What the network makes of it, (B, out_channels, H, W) float32."""
        seen = None if measurement is None or measurement.y.numel() == 0 else measurement
        if seen is not None and self.config.knows_noise_level:
            # A compiled network finds it, and cannot look it up.
            _ = seen.is_noisy
        with self._trunk_precision(around.images.device.type):
            images = padded(around.images, self.config.coarsest_patch)
            raw: Tensor = self.net(images, around.noise, seen, class_labels, augment_labels).float()
        return raw[..., : around.images.shape[-2], : around.images.shape[-1]]

    def _check(self, x: Tensor, sigma: Tensor, measurement: Measurement | None, class_labels: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise ShapeError(
                f"this model takes images (B, {self.config.channels}, H, W) of any size, got {tuple(x.shape)}"
            )
        b = len(x)
        if len(sigma) not in (1, b):
            raise ShapeError(f"sigma must be a scalar or hold one noise level for each of {b} images, got {len(sigma)}")
        if class_labels is not None and class_labels.shape != (b,):
            raise ShapeError(f"class_labels must have the shape ({b},), got {tuple(class_labels.shape)}")
        if measurement is not None:
            check_operator_fits(measurement.operator, x)


def check_operator_fits(operator: LinearOperator, x: Tensor) -> None:
    """Raise `ShapeError` unless the operator acts on images like x, (B, C, H, W)."""
    if operator.image_shape != tuple(x.shape[1:]):
        raise ShapeError(
            f"operator '{operator.kind}' acts on images {operator.image_shape}, but the model was given "
            f"{tuple(x.shape[1:])}; make the operator for that image_shape"
        )
    if operator.batch_size != len(x):
        raise ShapeError(f"operator '{operator.kind}' holds {operator.batch_size} samples for {len(x)} images")


def padded(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W), reflected at the lower and right edges until height and width are multiples; itself if they are.

    An axis too short to be reflected repeats its last pixel for the rest.
    """
    for axis in (2, 3):
        n = x.shape[axis]
        missing = -n % multiple
        if missing:
            beyond = torch.arange(n, n + missing, device=x.device)
            x = torch.cat((x, x.index_select(axis, (2 * (n - 1) - beyond).clamp(0, n - 1))), dim=axis)
    return x


def _open(around: Surroundings, images: Tensor) -> Tensor:
    return images if around.leave_open is None else around.leave_open(images)


def with_components(denoiser: Denoiser, n_components: int, seed: int = 0) -> Denoiser:
    """A copy of a denoiser with K more output images, the directions of an NPPC model, which start slightly off zero.

    Source: paper section 5. The image that the copy estimates is unchanged.
    """
    grown = Denoiser(denoiser.config.model_copy(update={"n_components": n_components}), seed, denoiser.prior)
    head, old_head = grown.net.patch_out, denoiser.net.patch_out
    with torch.no_grad():
        head.by_channel()[:, : denoiser.config.channels] = old_head.by_channel()[:, : denoiser.config.channels].cpu()
    own = {name: t for name, t in denoiser.state_dict().items() if not name.startswith("net.patch_out.")}
    grown.load_state_dict(own, strict=False)
    return grown.to(old_head.weight.device)
