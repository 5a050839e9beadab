"""Single optimisations, each against what it replaced, with what was expected of it beforehand."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import Record, milliseconds, rounded
from benchmarks.setting import Setting
from benchmarks.timing import interleaved
from invfusion.diffusion.guidance import GuidedDenoiser
from invfusion.models import Denoiser, build_denoiser, recompute
from invfusion.models.activations import layers_of
from invfusion.operators import Measurement
from invfusion.training.ema import EMA

Call = Callable[[], Any]
BETA = 0.99


def changes(device: torch.device, seconds: float) -> Iterator[Record]:
    """On the default preset. before, after: milliseconds of the part that changed, or of the whole call around it."""
    setting = Setting("digits16", device)
    cases: dict[str, tuple[str, Callable[[Setting], tuple[Call, Call]]]] = {
        "Adam in one fused call, not a loop": ("5x: a dozen small kernels per parameter become one", _optimizer),
        "moving average in one call, not a loop": ("2x: half of a small tensor's update is overhead", _average),
        "H_pinv y once per measurement (call on a matrix)": ("1.05x: one of eleven operator applications", _shown),
        "guidance: one call of both passes": ("1.1x: the same arithmetic in half as many kernels", _guidance),
        "activations computed again (forward and backward)": ("0.75x: one forward pass more", _recomputed),
    }
    for name, (prediction, make) in cases.items():
        before, after = make(setting)
        times = interleaved({"before": before, "after": after}, 2 * seconds, device)
        yield {
            "suite": "changes",
            "change": name,
            "prediction": prediction,
            "before_ms": milliseconds(times["before"]),
            "after_ms": milliseconds(times["after"]),
            "ratio": rounded(times["before"].median / times["after"].median),
        }


def _with_gradients(setting: Setting) -> Denoiser:
    denoiser = setting.denoiser("invfusion")
    for parameter in denoiser.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    return denoiser


def _optimizer(setting: Setting) -> tuple[Call, Call]:
    loop = torch.optim.Adam(_with_gradients(setting).parameters(), foreach=False)
    fused = torch.optim.Adam(_with_gradients(setting).parameters(), fused=True)
    return loop.step, fused.step


def _average(setting: Setting) -> tuple[Call, Call]:
    denoiser = setting.denoiser("invfusion")
    averages = [p.detach().clone() for p in denoiser.parameters()]
    ema = EMA(denoiser, 1000, 1.0)

    @torch.no_grad()
    def loop() -> None:
        for average, parameter in zip(averages, denoiser.parameters(), strict=True):
            average.copy_(parameter.lerp(average, BETA))

    return loop, lambda: ema.update(denoiser, 10**6, 10)


def _shown(setting: Setting) -> tuple[Call, Call]:
    n = setting.sampling_batch
    denoiser, x = setting.denoiser("invfusion").eval(), setting.images(n)
    known, sigma = setting.measurement("matrix", n), torch.ones(n, device=setting.device)

    def again() -> None:
        _call(denoiser, x, sigma, Measurement(known.y, known.operator, known.sigma_y))

    return again, lambda: _call(denoiser, x, sigma, known)


def _guidance(setting: Setting) -> tuple[Call, Call]:
    n = 8
    denoiser = build_denoiser(setting.config, n_classes=10).to(setting.device).eval()
    x, sigma = setting.images(n), torch.ones(n, device=setting.device)
    seen = setting.measurement("strided_motion_blur", n)
    labels = torch.zeros(n, dtype=torch.long, device=setting.device)
    guided = GuidedDenoiser(denoiser, 2.0)

    def two_calls() -> None:
        for each in (labels, torch.full_like(labels, 10)):
            _call(denoiser, x, sigma, seen, each)

    return two_calls, lambda: _call(guided, x, sigma, seen, labels)


@torch.no_grad()
def _call(denoiser: Callable[..., Tensor], *arguments: Any) -> None:
    denoiser(*arguments)


def _recomputed(setting: Setting) -> tuple[Call, Call]:
    x, seen = setting.images(setting.batch_size), setting.measurement("strided_motion_blur", setting.batch_size)
    sigma = torch.ones(len(x), device=setting.device)

    def of(recomputes: bool) -> Call:
        denoiser = setting.denoiser("invfusion").train()
        recompute(denoiser, layers_of(denoiser.net) if recomputes else ())
        return lambda: torch.autograd.backward(denoiser(x, sigma, seen).square().mean())

    return of(False), of(True)
