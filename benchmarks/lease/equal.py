"""That a device computes what a CPU computes: operators, attention backends, the network with its gradients."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.lease.lab import Lab, relative
from benchmarks.plain import dense_attention
from benchmarks.records import Record, rounded
from benchmarks.setting import MIXTURE, Setting, family
from invfusion import rng
from invfusion.models import available_backends, build_denoiser
from invfusion.models.attention import attend, neighbourhood_mask, window_of
from invfusion.models.hdit import set_attention_backend
from invfusion.operators import Measurement

CPU = torch.device("cpu")


def operators(lab: Lab) -> Iterator[Record]:
    """H and H_pinv in float32 against the CPU in float32: relative errors."""
    for kind in MIXTURE[:-1]:
        at_home = family(kind).sample(4, (3, 64, 64), rng.generator(0, "benchmarks/operator"))
        away = at_home.with_tensors({name: t.to(lab.device) for name, t in at_home.tensors().items()})
        x = rng.randn((8, 3, 64, 64), rng.generators(0, "benchmarks/x", range(4)))
        y = at_home.H(x)
        yield {
            "case": kind,
            "H_error": rounded(relative(away.H(x.to(lab.device)), y)),
            "H_pinv_error": rounded(relative(away.H_pinv(y.to(lab.device)), at_home.H_pinv(y))),
        }


def attention(lab: Lab) -> Iterator[Record]:
    """Each backend in float32 and bfloat16 against dense products in float64 on the CPU, at the shapes of FFHQ64."""
    for side, heads, kernel in ((32, 6, 7), (16, 12, 7)):
        draws = rng.generator(0, "benchmarks/attention")
        q, k, v, g = (torch.randn(shape, generator=draws) for shape in _shapes(2, side, heads))
        want = _gradients(lambda q, k, v, n=kernel: _dense(q, k, v, n), q.double(), k.double(), v.double(), g.double())
        for backend in available_backends(lab.device.type):
            for dtype in (torch.float32, lab.low):
                inputs = [t.to(lab.device, dtype) for t in (q, k, v, g)]
                got = _gradients(lambda q, k, v, n=kernel, b=backend: attend(q, k, v, n, b), *inputs)
                errors = [rounded(relative(a, b)) for a, b in zip(got, want, strict=True)]
                yield {
                    "case": f"{backend} {str(dtype).removeprefix('torch.')}, {side * side} tokens",
                    "value_error": errors[0],
                    "gradient_error": max(errors[1:]),
                }


def _shapes(b: int, side: int, heads: int) -> list[tuple[int, ...]]:
    one, two = (b, side, side, heads, 64), (b, 2, side, side, heads, 64)
    return [one, two, two, one]


def _gradients(function: object, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    leaves = [(t / t.shape[-1] ** 0.25 if t is not v else t).detach().requires_grad_() for t in (q, k, v)]
    out = function(*leaves)  # type: ignore[operator]
    return [out, *torch.autograd.grad(out, leaves, g)]


def _dense(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    grid = (q.shape[1], q.shape[2])
    keys, values = ([part.flatten(1, 2).transpose(1, 2) for part in t.unbind(1)] for t in (k, v))
    mask = neighbourhood_mask(grid, window_of(grid, kernel), 1, q.device)
    return dense_attention(q.flatten(1, 2).transpose(1, 2), keys, values, mask).transpose(1, 2).reshape(q.shape)


def network(lab: Lab) -> Iterator[Record]:
    """FFHQ64's network, narrow, in float32: values and all gradients against the CPU, by backend and family."""
    config = Setting("ffhq64", CPU).config.model_copy(update={"dropout": 0.0})
    at_home = Setting("ffhq64", CPU).cpu_denoiser("invfusion").eval()
    away = build_denoiser(config).to(lab.device).eval()
    away.load_state_dict(at_home.state_dict())
    setting = Setting("ffhq64", CPU)
    for kind in MIXTURE[:2]:
        there = setting.measurement(kind, 2)
        want = _network_gradients(at_home, setting.images(2), there)
        here = there.to(lab.device)
        for backend in available_backends(lab.device.type):
            set_attention_backend(away, backend)
            got = _network_gradients(away, setting.images(2).to(lab.device), here)
            yield {
                "case": f"{kind}, {backend}",
                "value_error": rounded(relative(got[0], want[0])),
                "gradient_error": rounded(relative(got[1], want[1])),
            }


def _network_gradients(denoiser: torch.nn.Module, x: Tensor, measurement: Measurement) -> tuple[Tensor, Tensor]:
    denoiser.zero_grad()
    sigma = torch.full((len(x),), 0.7, device=x.device)
    out = denoiser(x + 0.7 * x.flip(0), sigma, measurement)
    torch.autograd.backward(out.square().sum())
    return out, torch.cat([p.grad.flatten().cpu() for p in denoiser.parameters() if p.grad is not None])
