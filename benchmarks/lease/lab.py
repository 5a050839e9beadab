"""What every measurement of a lease shares: the device, networks made once, times of training steps."""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.setting import Model, Setting
from invfusion import rng
from invfusion.data import Batch
from invfusion.degradations import DegradationFamily
from invfusion.models import Denoiser
from invfusion.models.flops import forward_flops
from invfusion.operators import LinearOperator, Measurement

GIB = 2**30


@dataclass
class Lab:
    """peaks: FLOPs per second of matrix products by precision, and "copy", bytes per second, once measured."""

    device: torch.device
    peaks: dict[str, float] = field(default_factory=dict)
    _networks: dict[tuple[str, Model], "Future[Denoiser]"] = field(default_factory=dict)
    _builder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def setting(self, preset: str) -> Setting:
        """The preset on the device; the default one in its place on a CPU."""
        return Setting(preset if self.is_gpu else "digits16", self.device)

    @property
    def low(self) -> torch.dtype:
        """What networks run in: bfloat16, which some CPUs compute a hundred times slower than float32."""
        return torch.bfloat16 if self.is_gpu else torch.float32

    def begin(self, *networks: tuple[str, Model]) -> None:
        """Make the weights of presets' models meanwhile, since that takes a CPU seconds."""
        for preset, model in networks:
            if (preset, model) not in self._networks:
                on_cpu = self.setting(preset)
                self._networks[preset, model] = self._builder.submit(on_cpu.cpu_denoiser, model)

    def denoiser(self, preset: str, model: Model = "invfusion") -> Denoiser:
        """A fresh copy of the preset's network on the device, eager."""
        self.begin((preset, model))
        return copy.deepcopy(self._networks[preset, model].result()).to(self.device)

    def close(self) -> None:
        self._builder.shutdown(cancel_futures=True)

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Free what earlier measurements left, so that each peak of memory is its own."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated(self.device) / GIB, 2) if self.is_gpu else None

    def time(self, call: Callable[[], Any], seconds: float = 1.0, at_least: int = 3) -> float:
        """Median seconds of one call, the device waited for each time, after one to warm up."""
        call()
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while len(taken) < at_least or (time.perf_counter() < end and len(taken) < 500):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def first(self, call: Callable[[], Any]) -> float:
        """Seconds of the first call, compilation in it."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def share_of_peak(self, preset: str, images_per_second: float, passes: int, precision: str) -> float | None:
        """MFU: FLOPs that the network needs over those of the matrix products that were measured here."""
        if precision not in self.peaks:
            return None
        return round(images_per_second * passes * forward_flops(self.setting(preset).config) / self.peaks[precision], 4)

    def measurement(self, preset: str, family: DegradationFamily, n: int) -> Measurement:
        operator = self.operator(preset, family, n)
        return Measurement.of(self.setting(preset).images(n), operator.prepare())

    def operator(self, preset: str, family: DegradationFamily, n: int, index: int = 0) -> LinearOperator:
        draws = rng.generator(0, "benchmarks/operator", index)
        return family.sample(n, self.setting(preset).config.image_shape, draws).to(self.device)


def batches(shape: tuple[int, ...], n: int) -> Iterator[Batch]:
    """Micro-batches of noise that cost nothing."""
    images = torch.randint(256, (n, *shape), generator=rng.generator(0, "benchmarks/images")).to(torch.uint8)
    while True:
        yield Batch(images, [str(i) for i in range(n)], torch.zeros(n, dtype=torch.long))


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| in float64 on the CPU; not-a-number stays one."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))
