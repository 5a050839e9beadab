"""The published design, written plainly: what every figure of the harness is a ratio to.

Eager and in float32; attention as dense products with the softmax written out, one product per set of keys; blur by
full complex transforms on a grid of twice the image's sides; pseudo-inverses by a float64 SVD; operators built for each
batch on the main thread; H_pinv y computed anew at every network call; optimizer and moving average as loops over the
parameters. It takes the weights of a `Denoiser` and gives its outputs, losses and updates up to rounding, so that both
do equal work. Where the published blur pads an image with zeros, this one tiles it: the values are then those of the
circular blur, at the cost of the published transforms. What the published code computes and never uses is left out.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from invfusion import codec
from invfusion.data import Batch
from invfusion.diffusion.losses import Condition, Network
from invfusion.diffusion.precond import precondition
from invfusion.models import Denoiser
from invfusion.models.attention import neighbourhood_mask, window_of
from invfusion.models.feature_degradation import FeatureDegradation
from invfusion.models.hdit import JointAttention, Layer, Level, SelfAttention, axial_positions
from invfusion.models.layers import EPSILON, GEGLU, AdaRMSNorm, TokenSplit, depth_to_space, space_to_depth
from invfusion.operators import LinearOperator, Measurement
from invfusion.operators.convolution import StridedConvolution
from invfusion.operators.masks import MaskOperator
from invfusion.operators.matrix import MatrixOperator
from invfusion.rng import generator
from invfusion.samplers import Heun
from invfusion.training.augment import augment
from invfusion.training.schedule import learning_rate
from invfusion.training.task import Task, draw_class_labels, draw_measurement

Map = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Operators: H maps (B, K, C, H, W) to (B, K, o), and H_pinv maps back.


@dataclass(frozen=True)
class PlainOperator:
    """A pair of maps of image stacks; measurements are flat."""

    H: Map
    H_pinv: Map


@dataclass(frozen=True)
class PlainMeasurement:
    """y (B, o) with the operator that made it."""

    y: Tensor
    operator: PlainOperator


def plain_measurement(measurement: Measurement | None) -> PlainMeasurement | None:
    """The same measurement with the same operator, whose derived quantities are computed here."""
    if measurement is None:
        return None
    return PlainMeasurement(measurement.y.flatten(1), plain_operator(measurement.operator))


def plain_operator(operator: LinearOperator) -> PlainOperator:
    """The plain form of an operator of any kind."""
    if isinstance(operator, StridedConvolution):
        return _plain_blur(operator)
    if isinstance(operator, MatrixOperator):
        return _plain_matrix(operator)
    shape = operator.image_shape
    if isinstance(operator, MaskOperator):
        mask = operator.mask[:, None]
        return PlainOperator(lambda x: (x * mask).flatten(2), lambda y: y.view(*y.shape[:2], *shape) * mask)
    # Nothing is measured: zeros in both directions.
    return PlainOperator(lambda x: x.new_zeros(*x.shape[:2], 3), lambda y: y.new_zeros(*y.shape[:2], *shape))


def _plain_matrix(operator: MatrixOperator) -> PlainOperator:
    inverse, shape = torch.linalg.pinv(operator.matrix.double()).float(), operator.image_shape
    return PlainOperator(
        lambda x: torch.einsum("bmd,bkd->bkm", operator.matrix, x.flatten(2)),
        lambda y: torch.einsum("bdm,bkm->bkd", inverse, y).view(*y.shape[:2], *shape),
    )


def _plain_blur(operator: StridedConvolution) -> PlainOperator:
    (_, h, w), s = operator.image_shape, operator.stride
    spectrum = _doubled_spectrum(operator.kernel)
    energy = _aliases(spectrum, s).abs().square().mean(dim=(-4, -2))
    # A tiled image has power at even frequencies alone.
    largest = energy[:, ::2, ::2].amax(dim=(1, 2), keepdim=True)
    kept = energy >= operator.cutoff**2 * largest
    inverse_energy = torch.where(kept, 1 / energy.where(kept, 1), 0)[:, None, None]
    spectrum, kept_everywhere = spectrum[:, None, None], kept.repeat(1, s, s)[:, None, None]

    def H(x: Tensor) -> Tensor:
        z = torch.fft.fft2(x.repeat(1, 1, 1, 2, 2)) * spectrum * kept_everywhere
        y: Tensor = torch.fft.ifft2(_aliases(z, s).mean(dim=(-4, -2))).real
        return y[..., : h // s, : w // s].flatten(2)

    def H_pinv(y: Tensor) -> Tensor:
        tiled = y.view(*y.shape[:2], *operator.measurement_shape).repeat(1, 1, 1, 2, 2)
        z = torch.fft.fft2(tiled) * inverse_energy
        x: Tensor = torch.fft.ifft2(z.repeat(1, 1, 1, s, s) * spectrum.conj()).real
        return x[..., :h, :w].contiguous()

    return PlainOperator(H, H_pinv)


def _doubled_spectrum(kernel: Tensor) -> Tensor:
    """(B, 2H, 2W) complex: the transform of the kernel (B, H, W), centred at (H//2, W//2), on the doubled grid."""
    h, w = kernel.shape[1:]
    padded = nn.functional.pad(kernel, (0, w, 0, h))
    spectrum: Tensor = torch.fft.fft2(padded.roll((-(h // 2), -(w // 2)), dims=(1, 2)))
    return spectrum


def _aliases(spectrum: Tensor, s: int) -> Tensor:
    """(..., s * m, s * n) -> (..., s, m, s, n)."""
    *leading, height, width = spectrum.shape
    return spectrum.view(*leading, s, height // s, s, width // s)


# ---------------------------------------------------------------------------------------------------------------------
# The network.


class PlainDenoiser(nn.Module):
    """A `Denoiser` with plain arithmetic: the same parameters, the same outputs."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: PlainMeasurement | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        return_logvar: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """As `Denoiser.forward`."""
        factors = precondition(sigma.reshape(-1), self.denoiser.config.sigma_data)
        scaled = factors.in_ * x
        if self.denoiser.is_conditional:
            hint = torch.zeros_like(x) if measurement is None else _shown(measurement)
            scaled = torch.cat((scaled, hint), dim=1)
        raw = self._network(scaled, self._conditioning(factors.noise, class_labels, augment_labels), measurement)
        denoised = factors.skip * x + factors.out * raw
        return (denoised, self.denoiser.log_variance(factors.noise), factors.weight) if return_logvar else denoised

    def _conditioning(self, noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        cond: Tensor = self.denoiser.net.conditioning(noise, class_labels, augment_labels)
        return cond

    def _network(self, x: Tensor, cond: Tensor, measurement: PlainMeasurement | None) -> Tensor:
        net = self.denoiser.net
        x = net.patch_in(space_to_depth(x.permute(0, 2, 3, 1).contiguous(), net.patch_size))
        skips = []
        for level, merge in zip(net.down, net.merges, strict=True):
            x = _level(level, x, cond, measurement)
            skips.append(x)
            x = merge(x)
        x = _level(net.middle, x, cond, measurement)
        for level, split, skip in reversed(list(zip(net.up, net.splits, skips, strict=True))):
            assert isinstance(split, TokenSplit)
            up = depth_to_space(split.proj(x), 2)
            x = _level(level, skip + split.factor * (up - skip), cond, measurement)
        x = net.patch_out(_rms_norm(x, net.out_norm.scale))
        return depth_to_space(x, net.patch_size).permute(0, 3, 1, 2)


def _shown(measurement: PlainMeasurement) -> Tensor:
    return measurement.operator.H_pinv(measurement.y[:, None])[:, 0]


def _level(level: Level | nn.Module, x: Tensor, cond: Tensor, measurement: PlainMeasurement | None) -> Tensor:
    for layer in level.children():
        assert isinstance(layer, Layer)
        x = _attention(layer.attention, x, cond, measurement)
        x = x + _feed_forward(layer.feed_forward.body, _ada_norm(layer.feed_forward.norm, x, cond))
    return x


def _rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x * (scale * torch.rsqrt(torch.mean(x**2, dim=-1, keepdim=True) + EPSILON))


def _ada_norm(norm: AdaRMSNorm, x: Tensor, cond: Tensor) -> Tensor:
    return _rms_norm(x, 1 + norm.linear(cond)[:, None, None, :])


def _feed_forward(body: GEGLU, x: Tensor) -> Tensor:
    value, gate = body.up(x).chunk(2, dim=-1)
    out: Tensor = body.down(body.dropout(value * nn.functional.gelu(gate)))
    return out


def _attention(block: SelfAttention, x: Tensor, cond: Tensor, measurement: PlainMeasurement | None) -> Tensor:
    """A self-attention or InvFusion block with its residual connection."""
    e, grid = block.head_dim, (x.shape[1], x.shape[2])
    xn = _ada_norm(block.norm, x, cond)
    q, k, v = rearrange(block.qkv(xn), "b h w (t n e) -> t b n (h w) e", t=3, e=e)
    keys, values = [k], [v]
    if isinstance(block, JointAttention):
        degraded = torch.zeros_like(x) if measurement is None else _degraded(block.degradation, x, measurement)
        yn = _ada_norm(block.degradation_norm, degraded, cond)
        keys.append(_heads(block.degradation_key(torch.cat((xn, yn), dim=-1)), e))
        values.append(_heads(block.degradation_value(yn), e))
    theta = _angles(block, grid)
    q, *keys = (_rotate(_cosine(t, block.scale), theta) for t in (q, *keys))
    out = dense_attention(q, keys, values, _mask(block, grid, x.device))
    update: Tensor = block.out(block.dropout(rearrange(out, "b n (h w) e -> b h w (n e)", h=grid[0])))
    return x + update


def _heads(x: Tensor, e: int) -> Tensor:
    split: Tensor = rearrange(x, "b h w (n e) -> b n (h w) e", e=e)
    return split


def _cosine(x: Tensor, scale: Tensor) -> Tensor:
    return x * (scale.sqrt()[:, None, None] * torch.rsqrt(torch.sum(x**2, dim=-1, keepdim=True) + EPSILON))


def _angles(block: SelfAttention, grid: tuple[int, int]) -> Tensor:
    """(heads, tokens, e / 4), computed anew in each layer."""
    frequencies = block.rope.frequencies
    rows, columns = axial_positions(grid, block.rope.trained_reach, frequencies.device)
    by_row = rows[:, None].expand(grid).flatten()[:, None, None] * frequencies
    by_column = columns[None, :].expand(grid).flatten()[:, None, None] * frequencies
    return torch.cat((by_row, by_column), dim=-1).transpose(0, 1)


def _rotate(x: Tensor, theta: Tensor) -> Tensor:
    n = theta.shape[-1]
    a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    cos, sin = theta.cos(), theta.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def _mask(block: SelfAttention, grid: tuple[int, int], device: torch.device) -> Tensor | None:
    if block.kernel >= max(grid):
        return None
    return neighbourhood_mask(grid, window_of(grid, block.kernel), 1, device)


def dense_attention(q: Tensor, keys: list[Tensor], values: list[Tensor], mask: Tensor | None) -> Tensor:
    """One product per set of keys, one softmax over all of them, one product per set of values."""
    logits = [q @ k.transpose(-2, -1) for k in keys]
    if mask is not None:
        logits = [part.masked_fill(~mask, -torch.inf) for part in logits]
    weights = torch.softmax(torch.cat(logits, dim=-1), dim=-1).chunk(len(keys), dim=-1)
    return torch.stack([w @ v for w, v in zip(weights, values, strict=True)]).sum(0)


def _degraded(layer: FeatureDegradation, x: Tensor, measurement: PlainMeasurement) -> Tensor:
    """The feature degradation layer; the learned map acts at each measurement position."""
    sizes = {"p": layer.patch, "q": layer.patch, "k": layer.stack_size, "c": layer.channels}
    images = rearrange(x, "b h w (p q k c) -> b k c (h p) (w q)", **sizes)
    z = measurement.operator.H(images)
    y = measurement.y if measurement.y.shape[1] else z.new_zeros(len(z), z.shape[2])
    both = torch.cat((y[:, None], z), dim=1).transpose(1, 2)
    mixed = nn.functional.gelu(layer.mix(both)).transpose(1, 2)
    back = measurement.operator.H_pinv(mixed.contiguous())
    tokens: Tensor = rearrange(back, "b k c (h p) (w q) -> b h w (p q k c)", p=layer.patch, q=layer.patch)
    return tokens


# ---------------------------------------------------------------------------------------------------------------------
# Training and sampling.


class PlainTrainer:
    """What `Stepper` and `EMA` do together, plainly."""

    def __init__(self, task: Task, denoiser: Denoiser, device: torch.device) -> None:
        self.task, self.denoiser, self.device = task, denoiser.to(device).train(), device
        denoiser.log_variance.requires_grad_(task.loss.trains_log_variance)
        self.network = PlainDenoiser(denoiser)
        self.averaged = copy.deepcopy(denoiser).requires_grad_(False)
        self.parameters = [p for p in denoiser.parameters() if p.requires_grad]
        config = task.config
        # The published epsilon is for sums over an image's numbers, and losses here are means.
        eps = 1e-8 / torch.Size(denoiser.image_shape).numel()
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, betas=config.betas, eps=eps, foreach=False)

    def step(self, nimg: int, batches: Iterator[Batch]) -> float:
        """Train on the global batch that begins at image count `nimg`; returns its averaged loss."""
        config = self.task.config
        losses = [
            self._accumulate(next(batches), start)
            for start in range(nimg, nimg + config.batch_size, config.micro_batch_size)
        ]
        self._update(nimg)
        self._average(nimg + config.batch_size)
        return sum(losses)

    def _accumulate(self, batch: Batch, start: int) -> float:
        task = self.task
        images = batch.images.to(self.device)
        draws = generator(task.seed, "train/augment", start)
        x, augment_labels = augment(codec.decode(images), task.config.augment_probability, draws)
        labels = draw_class_labels(task, batch, self.denoiser.n_classes, start)
        measurement = plain_measurement(draw_measurement(task, x, start))
        condition = Condition(measurement, None if labels is None else labels.to(self.device), augment_labels)  # type: ignore[arg-type]
        network: Network = self.network
        output = task.loss(network, x, condition, generator(task.seed, "train/noise", start))
        loss = output.per_sample.sum() / task.config.batch_size
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _update(self, nimg: int) -> None:
        config = self.task.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(nimg, config.lr, config.warmup_images, config.decay_start_images)
        for parameter in self.parameters:
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=0, neginf=0, out=parameter.grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _average(self, nimg: int) -> None:
        config = self.task.config
        beta = 0.5 ** (config.batch_size / min(config.ema_half_life, config.ema_rampup * nimg))
        for average, parameter in zip(self.averaged.parameters(), self.denoiser.parameters(), strict=True):
            average.copy_(parameter.lerp(average, beta))


@torch.no_grad()
def plain_sample(network: PlainDenoiser, measurement: Measurement | None, noise: Tensor, config: Heun) -> Tensor:
    """Deterministic Heun sampling from standard normal noise (B, C, H, W); the operator is built once per batch."""
    plain = plain_measurement(measurement)
    sigmas = config.levels()
    x = sigmas[0] * noise

    def slope(x: Tensor, sigma: float) -> Tensor:
        levels = torch.full((len(x),), sigma, device=x.device)
        return (x - network(x, levels, plain)) / sigma  # type: ignore[no-any-return]

    for sigma, after in pairwise(sigmas):
        d = slope(x, sigma)
        ahead = x + (after - sigma) * d
        x = ahead if after == 0 else x + (after - sigma) * (d + slope(ahead, after)) / 2
    return x
