"""How fast a device is, and how fast the paper's networks train and sample on it."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.lease.lab import GIB, Lab, batches, relative
from benchmarks.records import Record, machine_facts, rounded
from benchmarks.setting import MIXTURE, Model, family, synthetic_prior
from invfusion import rng
from invfusion.degradations import DegradationFamily
from invfusion.degradations.motion_blur import StridedMotionBlur
from invfusion.diffusion.losses import DiffusionLoss
from invfusion.models import CapturedDenoiser, Denoiser, available_backends, compile_layers, compile_network
from invfusion.models import lower_precision as stored_low
from invfusion.models.attention import attend
from invfusion.models.feature_degradation import FeatureDegradation
from invfusion.models.hdit import set_attention_backend
from invfusion.names import kind_of
from invfusion.noise import GaussianNoise
from invfusion.operators import Measurement
from invfusion.samplers import Heun
from invfusion.training.config import OptimisationConfig, Precision
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper
from invfusion.training.task import Task

# The paper's sampler, and one as like it as a lease allows; a network call costs the same in both.
CALLS = 63
SHORT = Heun(n_steps=4)
COMPILERS: dict[str, Callable[[Denoiser], None]] = {
    "eager": lambda _: None,
    "layers compiled": compile_layers,
    "whole compiled": compile_network,
}
# Of the memory that reckoning leaves free, the part that fragments and a library's workspaces leave to images.
ROOM = 0.93
# Blur of one stride: a compiled whole network has graphs of its own for each stride.
BLUR = StridedMotionBlur(strides=(4,))

log = logging.getLogger("benchmarks")


@dataclass(frozen=True)
class Shape:
    """Images of one network call, in training and in sampling, and of a step."""

    micro: int
    step: int
    sampling: int


def shape_of(lab: Lab, preset: str) -> Shape:
    if not lab.is_gpu:
        return Shape(2, 4, 2)
    return {"digits16": Shape(512, 1024, 1024), "ffhq256": Shape(64, 128, 64)}.get(preset, Shape(128, 512, 128))


def ceilings(lab: Lab) -> Iterator[Record]:
    """Copies within the device's memory, and matrix products of random numbers."""
    n = 8192 if lab.is_gpu else 512
    source = torch.randn(n * n * 4, device=lab.device)
    target = torch.empty_like(source)
    lab.peaks["copy"] = 2 * source.nbytes / lab.time(lambda: target.copy_(source), 0.3)
    yield {"case": "copy", "tb_per_s": rounded(lab.peaks["copy"] / 1e12)}
    before = torch.get_float32_matmul_precision()
    for name, dtype, precision in (
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device=lab.device, dtype=dtype) for _ in range(2))
        lab.peaks[name] = 2 * n**3 / lab.time(partial(torch.matmul, a, b), 0.3)
        yield {"case": f"matrix product {name}", "tflops": rounded(lab.peaks[name] / 1e12)}
    torch.set_float32_matmul_precision(before)


def attention(lab: Lab) -> Iterator[Record]:
    """Joint attention forward and backward in bfloat16 at FFHQ64's two finer levels."""
    b = shape_of(lab, "ffhq64").micro
    for side, heads in ((32, 6), (16, 12)):
        q = torch.randn(b, side, side, heads, 64, device=lab.device, dtype=lab.low) / 3
        k, v = (torch.randn(b, 2, side, side, heads, 64, device=lab.device, dtype=lab.low) / 3 for _ in "kv")
        leaves = [t.requires_grad_() for t in (q, k, v)]
        for backend in available_backends(lab.device.type):
            first = lab.first(partial(_pass, leaves, backend))
            yield {
                "case": f"{backend}, {side * side} tokens, {heads} heads, {b} images",
                "ms": rounded(1e3 * lab.time(partial(_pass, leaves, backend), 0.5)),
                "first_s": rounded(first),
            }


def _pass(leaves: list[Tensor], backend: str) -> None:
    q, k, v = leaves
    out = attend(q, k, v, 7, backend)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def training(
    lab: Lab, preset: str, how: str = "eager", precision: Precision = "bf16", degradation: DegradationFamily = BLUR,
    micro: int | None = None, backend: str = "auto", threads: int = 4, seconds: float = 6.0, tf32: bool = False,
    kernels: bool = False, model: Model = "invfusion",
) -> Iterator[Record]:  # fmt: skip
    """Whole steps: operators drawn ahead by threads, forward, backward, update, moving average.

    kernels: also say what the device was busy with.
    """
    shape = shape_of(lab, preset)
    micro = micro or shape.micro
    size = max(shape.step // micro, 1) * micro
    precise = f"{precision}{' with TF32' if tf32 else ''}"
    case = f"{_named(preset, model)}, {precise}, {how}, {kind_of(degradation)}, {backend}, {micro} a call"
    precision = precision if lab.is_gpu else "fp32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    denoiser = lab.denoiser(preset, model).train()
    set_attention_backend(denoiser, backend)
    COMPILERS[how](denoiser)
    task = _task(degradation, size, micro, precision)
    stepper = Stepper(task, denoiser, Processes(), lab.device, threads)
    ema, stream, numbers = EMA(denoiser, 1000, 1.0), batches(denoiser.image_shape, micro), count(0, size)

    def step() -> None:
        nimg = next(numbers)
        stepper.step(nimg, stream)
        ema.update(denoiser, nimg + size, size)

    try:
        first = lab.first(step)
        rate = size / lab.time(step, seconds, at_least=2)
        yield {
            "case": case,
            "images_per_s": rounded(rate),
            "mfu": lab.share_of_peak(preset, rate, 3, "tf32" if tf32 else precision),
            "peak_gib": lab.peak_gib(),
            "first_s": rounded(first),
        }
        if kernels and lab.is_gpu:
            yield from _kernels(lab, case, step, size // micro)
    finally:
        stepper.draws.close()
        torch.set_float32_matmul_precision("highest")


# Kernels by what they compute: the first word that a kernel's name holds decides.
KERNELS = {
    "attention": ("triton_tem", "fmha", "flash", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "sm90_xmma"),
    "Fourier transforms": ("fft",),
    "compiled, elementwise and sums": ("triton_",),
    "copies": ("memcpy", "memset", "copy_kernel", "catarray"),
    "eager sums": ("reduce_kernel",),
    "optimizer": ("multi_tensor",),
    "eager, elementwise": ("elementwise",),
}


def _kernels(lab: Lab, case: str, step: Callable[[], None], calls: int) -> Iterator[Record]:
    """Milliseconds of the device for each micro-batch of a step by kind of kernel, and those in which it idled."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds = lab.first(step)
    totals: dict[str, float] = {}
    longest: list[tuple[float, str]] = []
    for event in profiler.key_averages():
        ms = event.self_device_time_total / 1e3 / calls
        name = event.key.lower()
        kind = next((kind for kind, words in KERNELS.items() if any(word in name for word in words)), "other")
        totals[kind] = totals.get(kind, 0.0) + ms
        longest.append((ms, event.key))
    totals["none of them: the device idles"] = 1e3 * seconds / calls - sum(totals.values())
    yield {"case": f"{case}: kernels"} | {f"{kind}, ms": rounded(ms) for kind, ms in totals.items()}
    for ms, key in sorted(longest, reverse=True)[:25]:
        log.info("%8.3f ms %s", ms, key[:150])


def _task(degradation: DegradationFamily, size: int, micro: int, precision: Precision) -> Task:
    config = OptimisationConfig(batch_size=size, micro_batch_size=micro, precision=precision, warmup_images=0, lr=1e-6)
    return Task(DiffusionLoss(), degradation, GaussianNoise(), config, seed=0)


def sampling(
    lab: Lab, preset: str, how: str = "eager", n: int | None = None, model: Model = "invfusion"
) -> Iterator[Record]:
    """Heun with 7 calls on blurred images in stored bfloat16: as it is, and replayed as a CUDA graph."""
    n = n or shape_of(lab, preset).sampling
    denoiser = lab.denoiser(preset, model).eval().requires_grad_(False)
    stored_low(denoiser, lab.low)
    COMPILERS[how](denoiser)
    measurement = lab.measurement(preset, BLUR, n)
    noise = torch.randn(n, *denoiser.image_shape, device=lab.device)
    draws = rng.generators(0, "benchmarks/way", range(n))
    calls, reference = 2 * SHORT.n_steps - 1, None
    networks: dict[str, Any] = {how: denoiser}
    if lab.is_gpu:
        networks[f"{how}, CUDA graph"] = CapturedDenoiser(denoiser)
    for name, network in networks.items():
        call = partial(_sample, network, measurement, noise, draws)
        first, seconds = lab.first(call), lab.time(call, 1.0, at_least=2)
        rate = n * calls / seconds / CALLS
        reference = call() if reference is None else reference
        yield {
            "case": f"{_named(preset, model)}, bf16, {name}, {n} images",
            "images_per_s_at_63_calls": rounded(rate),
            "ms_per_call": rounded(1e3 * seconds / calls),
            "mfu": lab.share_of_peak(preset, rate, CALLS, "bf16"),
            "peak_gib": lab.peak_gib(),
            "first_s": rounded(first),
            "difference": rounded(relative(call(), reference)),
        }


def _named(preset: str, model: Model) -> str:
    return preset if model == "invfusion" else f"{preset}, {model}"


def largest(lab: Lab, preset: str) -> Iterator[Record]:
    """How many images one call of eager bfloat16 training holds: reckoned from the peaks of two sizes, then tried."""
    if not lab.is_gpu:
        return
    small, large = (shape_of(lab, preset).micro // part for part in (4, 2))
    peaks = {}
    for n in (small, large):
        lab.forget()
        _one_step(lab, preset, n)
        peaks[n] = torch.cuda.max_memory_allocated(lab.device)
    each = (peaks[large] - peaks[small]) / (large - small)
    free = torch.cuda.get_device_properties(lab.device).total_memory - (peaks[large] - large * each)
    n = int(free / each * ROOM) // 16 * 16
    lab.forget()
    record: Record = {"case": f"{preset}, bf16, eager, {n} a call", "gib_per_image": rounded(each / GIB)}
    try:
        _one_step(lab, preset, n)
        yield record | {"peak_gib": lab.peak_gib()}
    except torch.OutOfMemoryError:
        yield record | {"failed": "out of memory"}


def _one_step(lab: Lab, preset: str, n: int) -> None:
    denoiser = lab.denoiser(preset).train()
    stepper = Stepper(_task(BLUR, n, n, "bf16"), denoiser, Processes(), lab.device, 1)
    try:
        stepper.step(0, batches(denoiser.image_shape, n))
    finally:
        stepper.draws.close()


def _sample(network: Any, measurement: Measurement, noise: Tensor, draws: list[torch.Generator]) -> Tensor:
    with torch.no_grad():
        return SHORT.sample(network, measurement, noise, generators=draws).x


def parts(lab: Lab, preset: str) -> Iterator[Record]:
    """What one micro-batch of bfloat16 training consists of, each part alone, in milliseconds."""
    n = shape_of(lab, preset).micro
    denoiser = lab.denoiser(preset).train()
    measurement, x = lab.measurement(preset, BLUR, n), lab.setting(preset).images(n)
    sigma = torch.full((n,), 2.0, device=lab.device)

    def forward() -> Tensor:
        with torch.autocast(lab.device.type, lab.low, enabled=lab.is_gpu):
            loss: Tensor = denoiser(x, sigma, measurement).square().mean()
            return loss

    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-6, fused=True)
    ema = EMA(denoiser, 1000, 1.0)
    calls: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "forward and backward": lambda: torch.autograd.backward(forward()),
        "feature degradation, forward and backward": _layers_alone(denoiser, measurement, n),
        "H and H_pinv, forward and backward": maps_of(denoiser, measurement, n),
        "optimizer and moving average": lambda: (optimizer.step(), ema.update(denoiser, 10**6, n)),
        "noise drawn and moved": lambda: rng.upload(torch.randn(x.shape, generator=torch.Generator()), lab.device),
    }
    for name, call in calls.items():
        yield {"case": f"{preset}, {n} images: {name}", "ms": rounded(1e3 * lab.time(call, 0.5))}
    for kind in ("strided_motion_blur", "patch_inpainting", "matrix"):
        start = time.perf_counter()
        lab.operator(preset, family(kind), n, 1).prepare()
        lab.wait()
        yield {
            "case": f"{preset}, {n} images: {kind} drawn by one thread",
            "ms": rounded(1e3 * (time.perf_counter() - start)),
        }


def gaussian(lab: Lab, preset: str) -> Iterator[Record]:
    """What the Gaussian posterior around a network costs in a micro-batch of training, by family."""
    n = shape_of(lab, preset).micro
    prior = synthetic_prior(lab.setting(preset).config.image_shape[1], 512 if lab.is_gpu else 16, 1).to(lab.device)
    x, sigma = lab.setting(preset).images(n), torch.full((n,), 2.0, device=lab.device)
    for kind in MIXTURE[:-1]:
        measurement = lab.measurement(preset, family(kind), n)

        def estimate(measurement: Measurement = measurement) -> None:
            prior.posterior(measurement).denoise_with_variance(x, sigma)

        yield {
            "case": f"{preset}, {n} images: Gaussian posterior, {kind}",
            "ms": rounded(1e3 * lab.time(estimate, 0.5)),
        }


def _feature_layers(denoiser: Denoiser) -> list[tuple[FeatureDegradation, int]]:
    """Each feature degradation layer, with the side of its token grid."""
    found = [m for m in denoiser.modules() if isinstance(m, FeatureDegradation)]
    return [(layer, denoiser.config.image_shape[1] // layer.patch) for layer in found]


def _layers_alone(denoiser: Denoiser, measurement: Measurement, n: int) -> Callable[[], None]:
    def call() -> None:
        for layer, side in _feature_layers(denoiser):
            width = layer.stack_size * layer.channels * layer.patch**2
            x = torch.empty(n, side, side, width, device=measurement.y.device).normal_()
            out = layer(x.requires_grad_(), measurement)
            torch.autograd.grad(out, x, torch.ones_like(out))

    return call


def maps_of(denoiser: Denoiser, measurement: Measurement, n: int) -> Callable[[], None]:
    """The operators' maps alone, as many as a network call of training has, forward and backward."""

    def call() -> None:
        operator = measurement.operator
        for layer, _ in _feature_layers(denoiser):
            z = torch.randn(n, layer.stack_size, *operator.image_shape, device=measurement.y.device).requires_grad_()
            out = operator.back_project(operator.H(z))
            torch.autograd.grad(out, z, torch.ones_like(out))

    return call


def machine(lab: Lab) -> dict[str, Any]:
    """What ran the measurements."""
    facts: dict[str, Any] = machine_facts(lab.device)
    if lab.is_gpu:
        properties = torch.cuda.get_device_properties(lab.device)
        facts |= {
            "memory_gib": rounded(properties.total_memory / GIB),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return facts
