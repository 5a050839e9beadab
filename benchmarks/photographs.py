"""The shipped model `photos` against the trivial and the best of scikit-image, on whole photographs of a folder.

    python -m benchmarks.photographs FOLDER --pictures 10 --out table.json

Every method sees the same measurement, rounded to 8 bits as in a file. Strengths of the other methods are tuned on each
picture itself, with the clean picture at hand, in their favour. PSNR in dB of 8-bit pixels, mean over pictures;
seconds are the processor's.
"""

import argparse
import json
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import restoration
from torch import Tensor

from invfusion.restoration import load_image, load_model, tasks
from invfusion.restoration.pictures import Picture, encoded, read_picture
from invfusion.restoration.requests import gaussian_kernel
from invfusion.rng import generator

Pixels = NDArray[np.float64]
Method = Callable[[Pixels], Pixels]
WIENER_BALANCES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BLUR_SIGMA = 1.6
TV_WEIGHTS = (3e-4, 1e-3, 3e-3)


def motion_kernel(n: int = 9) -> Tensor:
    """A slanted line of motion, (n, n)."""
    kernel = torch.zeros(n, n)
    for step in range(20 * n):
        t = step / (20 * n - 1)
        kernel[round(t * (n - 1)), round((0.2 + 0.6 * t) * (n - 1))] += 1
    return kernel / kernel.sum()


def scribble(shape: torch.Size) -> Tensor:
    """Thick curves over a picture, (1, 1, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    waves = (rows - shape[0] * (0.5 + 0.4 * torch.sin(columns / 37.0 + k)) for k in range(3))
    return torch.stack([wave.abs() < 4 for wave in waves]).any(0).float()[None, None]


def half(shape: torch.Size) -> Tensor:
    """Every pixel is missing with a chance of a half, (1, 1, H, W)."""
    return (torch.rand(1, 1, *shape, generator=generator(0, "benchmark/half")) < 0.5).float()


def bicubic(factor: int) -> Method:
    """Pillow's enlargement."""

    def enlarge(y: Pixels) -> Pixels:
        image = Image.fromarray(np.rint(255 * y).astype(np.uint8))
        size = (image.width * factor, image.height * factor)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC)) / 255

    return enlarge


def deconvolvers(kernel: Tensor, truth: Pixels) -> dict[str, Method]:
    """Wiener, Richardson-Lucy and total variation on the picture continued by reflection, each at its best strength."""
    psf = kernel.double().numpy()
    margin = 2 * max(psf.shape)

    def framed(y: Pixels, run: Callable[[Pixels], Pixels]) -> Pixels:
        padded = np.pad(y, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
        channels = [run(padded[..., c]) for c in range(y.shape[2])]
        return np.stack(channels, axis=2)[margin:-margin, margin:-margin]

    def best(y: Pixels, runs: list[Callable[[Pixels], Pixels]]) -> Pixels:
        return max((framed(y, run) for run in runs), key=lambda x: psnr(x, truth))

    return {
        "Wiener": lambda y: best(
            y, [partial(restoration.wiener, psf=psf, balance=b, clip=False) for b in WIENER_BALANCES]
        ),
        "Richardson-Lucy": lambda y: best(y, [partial(_richardson_lucy, psf, n) for n in (5, 10, 20, 40)]),
        "TV": lambda y: best(y, [partial(tv_deconvolved, psf, weight) for weight in TV_WEIGHTS]),
    }


def _richardson_lucy(psf: Pixels, n: int, y: Pixels) -> Pixels:
    restored: Pixels = restoration.richardson_lucy(y.clip(0, 1), psf, num_iter=n)
    return restored


def tv_deconvolved(psf: Pixels, weight: float, y: Pixels, n_steps: int = 25) -> Pixels:
    """The minimum of |k * x - y|^2 / 2 + weight |grad x|, isotropic, for one channel (H, W) in [0, 1].

    Source: the alternating directions of Wang, Yang, Yin & Zhang 2008; scikit-image has no such deconvolution.
    """
    rho = 20 * weight
    transfer = np.fft.rfft2(_centred(psf, y.shape))
    slopes = [np.fft.rfft2(_centred(np.array(d, float), y.shape)) for d in ([[-1.0], [1.0]], [[-1.0, 1.0]])]
    system = abs(transfer) ** 2 + rho * sum(abs(d) ** 2 for d in slopes)
    data, x = transfer.conj() * np.fft.rfft2(y), y
    edges = [np.zeros_like(y) for _ in slopes]
    duals = [np.zeros_like(y) for _ in slopes]
    for _ in range(n_steps):
        back = sum(d.conj() * np.fft.rfft2(e - u) for d, e, u in zip(slopes, edges, duals, strict=True))
        z = (data + rho * back) / system
        x = np.fft.irfft2(z, s=y.shape)
        moved = [np.fft.irfft2(d * z, s=y.shape) + u for d, u in zip(slopes, duals, strict=True)]
        size = np.maximum(np.hypot(*moved), 1e-12)
        edges = [m * np.maximum(1 - weight / rho / size, 0) for m in moved]
        duals = [m - e for m, e in zip(moved, edges, strict=True)]
    return x


def _centred(kernel: Pixels, shape: tuple[int, ...]) -> Pixels:
    """A kernel on a grid of this shape, its centre at the first pixel."""
    grid = np.zeros(shape)
    grid[: kernel.shape[0], : kernel.shape[1]] = kernel
    rolled: Pixels = np.roll(grid, [-(n // 2) for n in kernel.shape], axis=(0, 1))
    return rolled


def denoisers(sigma: float, truth: Pixels) -> dict[str, Method]:
    """Total variation, wavelets and non-local means; sigma in [0, 1] units."""

    def tv(y: Pixels) -> Pixels:
        tried = (restoration.denoise_tv_chambolle(y, w, channel_axis=-1) for w in (0.03, 0.06, 0.1))
        return max(tried, key=lambda x: psnr(x, truth))

    return {
        "TV": tv,
        "wavelets": lambda y: restoration.denoise_wavelet(
            y, sigma, channel_axis=-1, convert2ycbcr=True, rescale_sigma=True
        ),
        "NLM": lambda y: restoration.denoise_nl_means(y, 5, 6, 0.8 * sigma, sigma=sigma, channel_axis=-1),
    }


def cases(image: Tensor, truth: Pixels) -> Iterator[tuple[str, tasks.Task, float, dict[str, Method]]]:
    """Name, task, sigma_y and the other methods; the first of these is the trivial one."""
    nothing: dict[str, Method] = {"nothing": lambda y: y}
    yield "x2 bicubic", tasks.enlarging(2, "bicubic"), 0.0, {"bicubic": bicubic(2)}
    yield "x4 bicubic", tasks.enlarging(4, "bicubic"), 0.0, {"bicubic": bicubic(4)}
    for name, mask in (("scribble", scribble(image.shape[-2:])), ("half of the pixels", half(image.shape[-2:]))):
        holes = mask[0, 0].numpy().astype(bool)
        biharmonic = partial(restoration.inpaint_biharmonic, mask=holes, channel_axis=-1)
        yield name, tasks.inpainting(mask), 0.0, {**nothing, "biharmonic": biharmonic}
    for name, kernel in (("motion blur", motion_kernel()), ("Gaussian blur", gaussian_kernel(BLUR_SIGMA))):
        frame = tasks.deblurring(kernel, "valid").framed(torch.from_numpy(truth).permute(2, 0, 1)[None])
        inner = frame[0].permute(1, 2, 0).numpy()
        yield name, tasks.deblurring(kernel, "valid"), 0.01, {**nothing, **deconvolvers(kernel, inner)}
    yield "noise", tasks.denoising(), 0.1, {**nothing, **denoisers(0.05, truth)}


def psnr(x: Pixels, truth: Pixels) -> float:
    """dB, after rounding to 8 bits."""
    return float(-10 * np.log10(np.mean((np.rint(255 * x.clip(0, 1)) / 255 - truth) ** 2)))


def as_pixels(image: Tensor) -> Pixels:
    """(1, C, H, W) in [-1, 1] to (H, W, C) in [0, 1]."""
    pixels: Pixels = ((image[0].double() + 1) / 2).permute(1, 2, 0).numpy()
    return pixels


def restored(measured: Picture, task: tasks.Task, request: tasks.Request) -> Pixels:
    """By the library."""
    return as_pixels(tasks.restore_picture(measured, task, request).mean.image)


def judge(image: Tensor, wanted: Collection[str] = ()) -> Iterator[tuple[str, str, float, float]]:
    """Case, method, PSNR and seconds, on one picture whose sides are multiples of 4; wanted: methods, or () for all."""
    model = load_model("photos")
    truth = as_pixels(image)
    for name, task, sigma_y, others in cases(image, truth):
        degraded = tasks.degrade_picture(Picture(image), task, sigma_y, seed=0)
        measured = read_picture(encoded(degraded), "the measurement")
        target = as_pixels(task.framed(image)) if name.endswith("blur") else truth
        request = tasks.Request(model=model, sigma_y=sigma_y, method="mmse", progress=False)
        methods: dict[str, Callable[[], Pixels]] = {
            "photos": partial(restored, measured, task, request),
            **{other: partial(method, as_pixels(measured.image)) for other, method in others.items()},
        }
        for method_name, restore in methods.items():
            if not wanted or method_name in wanted:
                started = time.process_time()
                result = restore()
                yield name, method_name, psnr(result, target), time.process_time() - started


def main() -> None:
    """Print a line per picture, and write the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=10, help="so many, evenly spaced")
    parser.add_argument("--methods", nargs="*", default=[], help="these alone, such as photos biharmonic TV")
    parser.add_argument("--out", type=Path, default=Path("reports/photographs.json"))
    options = parser.parse_args()
    files = sorted(p for p in options.folder.iterdir() if p.suffix in (".jpg", ".png"))
    chosen = [files[i] for i in torch.linspace(0, len(files) - 1, options.pictures).round().long().tolist()]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for n, path in enumerate(chosen, 1):
        image = load_image(path)
        image = image[..., : image.shape[-2] // 4 * 4, : image.shape[-1] // 4 * 4]
        for case, method, value, seconds in judge(image, options.methods):
            found.setdefault(case, {}).setdefault(method, []).append((value, seconds))
            print(f"{path.name}  {case:14} {method:16} {value:6.2f} dB {seconds:6.1f} s", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(summary(found, n), indent=1) + "\n")


def summary(found: dict[str, dict[str, list[tuple[float, float]]]], n: int) -> dict[str, Any]:
    """Means over pictures."""
    means = {
        case: {method: [round(float(m), 2) for m in np.mean(values, axis=0)] for method, values in methods.items()}
        for case, methods in found.items()
    }
    return {"n_pictures": n, "columns": ["psnr", "seconds"], "cases": means}


if __name__ == "__main__":
    main()
