"""Train the network of `photos`: python -m invfusion.restoration.train_photos PICTURES [PICTURES ...]

PICTURES: files, or folders of them. scikit-image's photographs (extra `pictures`) and dead leaves are added. The
shipped weights took six minutes of one GPU. The same command continues after an interruption.
"""

import argparse
import csv
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from invfusion.data.sources.dead_leaves import DeadLeaves
from invfusion.degradations.blurs import DefocusBlur, GaussianBlur
from invfusion.degradations.motion_kernel import motion_kernels
from invfusion.degradations.scribble import Scribble
from invfusion.operators import (
    Bayer,
    Blur,
    Downsampling,
    Grayscale,
    LinearOperator,
    MaskOperator,
    Measurement,
)
from invfusion.restoration.fit_photos import PICTURES
from invfusion.restoration.photos import load_photos
from invfusion.restoration.refinement import FILE, Refiner, read_refiner
from invfusion.restoration.tasks import rounding
from invfusion.rng import generator
from invfusion.training import checkpoint
from invfusion.training.ema import EMA

SIDE, BATCH = 96, 32
SHAPE = (3, SIDE, SIDE)
# Images that are measured together, by operators of one family: many Gaussian estimates cost little more than one.
GROUP = 8 * BATCH
# Groups among whose batches the order is drawn.
WINDOW = 12
LR, WARMUP_STEPS = 6e-4, 500
EMA_HALF_LIFE, EMA_RAMPUP = 30_000, 0.05
N_LEAVES, LEAVES_SIDE, LEAVES_SHARE = 192, 256, 0.25
CHECKPOINT_S = 120
# Errors below this mean square, -46 dB in the range of 2, weigh no more than it.
LEAST_ERROR = 1e-4
Pixels = NDArray[np.uint8]

log = logging.getLogger("invfusion")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures.


class Pictures(NamedTuple):
    """Pixels (H, W, 3) uint8, and how often each is drawn from."""

    pixels: list[Pixels]
    weights: Tensor


def pictures(paths: list[Path], n_leaves: int = N_LEAVES) -> Pictures:
    """Photographs, by the root of their size, and dead leaves.

    Photographs that are large are reduced, which also takes their camera's own losses away.
    """
    from skimage import data

    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    found = [_coloured(getattr(data, name)()) for name in PICTURES]
    for file in files:
        image = Image.open(file).convert("RGB")
        largest = max(image.size)
        found += [np.asarray(_reduced(image, side / largest)) for side in (2000, 1200, 700) if side < largest / 1.5]
        if largest < 1050:
            found += [np.asarray(image), np.asarray(_reduced(image, 0.6))]
    with ProcessPoolExecutor() as pool:
        leaves = list(pool.map(DeadLeaves(size=LEAVES_SIDE, min_radius=1.5).draw, range(n_leaves)))
    sizes = torch.tensor([float(p.shape[0] * p.shape[1]) ** 0.5 for p in found])
    shares = (1 - LEAVES_SHARE) * sizes / sizes.sum()
    return Pictures(found + leaves, torch.cat((shares, torch.full((n_leaves,), LEAVES_SHARE / max(1, n_leaves)))))


def _coloured(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _reduced(image: Image.Image, share: float) -> Image.Image:
    size = (round(image.width * share), round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS)


def crops(found: Pictures, draws: torch.Generator) -> Tensor:
    """(GROUP, 3, SIDE, SIDE) uint8, turned and mirrored."""
    chosen = torch.multinomial(found.weights, GROUP, replacement=True, generator=draws).tolist()
    u = torch.rand(GROUP, 5, generator=draws).tolist()
    return torch.from_numpy(np.stack([_crop(found.pixels[i], *row) for i, row in zip(chosen, u, strict=True)]))


def _crop(p: Pixels, top: float, left: float, turn: float, mirror: float, light: float) -> Pixels:
    row, column = int(top * (p.shape[0] - SIDE + 1)), int(left * (p.shape[1] - SIDE + 1))
    x = np.rot90(p[row : row + SIDE, column : column + SIDE], int(4 * turn))
    x = x[:, ::-1] if mirror < 0.5 else x
    # A quarter of them darker, and as many grey.
    if light < 0.25:
        x = (x * (0.3 + 2.8 * light)).astype(np.uint8)
    elif light > 0.75:
        x = np.repeat(x.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    return x.transpose(2, 0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Measurements.

Draw = Callable[[torch.Generator], LinearOperator]


def _uniform(low: float, high: float, draws: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=draws))


def _motion(draws: torch.Generator) -> LinearOperator:
    n = 2 * int(torch.randint(2, 11, (), generator=draws)) + 1
    kernels = motion_kernels(torch.rand(GROUP, generator=draws, dtype=torch.float64), n, n, draws)
    return Blur(SHAPE, kernels.float(), "valid")


def _lens(draws: torch.Generator) -> LinearOperator:
    if _uniform(0, 1, draws) < 0.75:
        return GaussianBlur(width=(0.4, 3.0), radius=8, boundary="valid").sample(GROUP, SHAPE, draws)
    return DefocusBlur(width=(0.8, 4.0), radius=5, boundary="valid").sample(GROUP, SHAPE, draws)


def _smaller(draws: torch.Generator) -> LinearOperator:
    factor = (2, 2, 3, 4, 4)[int(torch.randint(5, (), generator=draws))]
    filters = ("bicubic", "bicubic", "bicubic", "area", "lanczos")
    return Downsampling(SHAPE, factor, filters[int(torch.randint(5, (), generator=draws))], GROUP)  # type: ignore[arg-type]


def _pixels(draws: torch.Generator) -> LinearOperator:
    share = 0.1 + 0.8 * torch.rand(GROUP, 1, 1, 1, generator=draws)
    return MaskOperator(SHAPE, (torch.rand(GROUP, 1, SIDE, SIDE, generator=draws) < share).float())


def _strokes(draws: torch.Generator) -> LinearOperator:
    return Scribble(strokes=(1, 3), thickness=(0.03, 0.16), reach=0.6).sample(GROUP, SHAPE, draws)


def _box(draws: torch.Generator) -> LinearOperator:
    mask = torch.ones(GROUP, 1, SIDE, SIDE)
    for own, (height, width, top, left) in zip(mask, torch.randint(4, 20, (GROUP, 4), generator=draws), strict=True):
        own[:, 2 * top : 2 * top + height, 2 * left : 2 * left + width] = 0
    return MaskOperator(SHAPE, mask)


def _everything(draws: torch.Generator) -> LinearOperator:  # noqa: ARG001
    return MaskOperator(SHAPE, torch.ones(GROUP, 1, SIDE, SIDE))


def _sensor(draws: torch.Generator) -> LinearOperator:
    if _uniform(0, 1, draws) < 0.7:
        return Bayer(SHAPE, ("RGGB", "BGGR", "GRBG", "GBRG")[int(torch.randint(4, (), generator=draws))], GROUP)
    return Grayscale(SHAPE, batch_size=GROUP)


class Family(NamedTuple):
    """share: of all groups; quiet: of its own, without noise but rounding; levels: else, uniform in the logarithm."""

    name: str
    share: float
    draw: Draw
    quiet: float
    levels: tuple[float, float]


FAMILIES = [
    Family("noise", 0.15, _everything, 0.0, (0.01, 0.3)),
    Family("smaller", 0.26, _smaller, 0.75, (0.005, 0.1)),
    Family("strokes", 0.12, _strokes, 0.8, (0.005, 0.1)),
    Family("pixels", 0.12, _pixels, 0.75, (0.005, 0.1)),
    Family("box", 0.03, _box, 0.8, (0.005, 0.1)),
    Family("motion", 0.14, _motion, 0.1, (0.004, 0.06)),
    Family("lens", 0.13, _lens, 0.1, (0.004, 0.06)),
    Family("sensor", 0.05, _sensor, 0.6, (0.005, 0.1)),
]


class Drawn(NamedTuple):
    """One group: crops (GROUP, 3, SIDE, SIDE) uint8, H, sigma_y (GROUP,), and the seed of the noise."""

    family: int
    pixels: Tensor
    operator: LinearOperator
    sigma_y: Tensor
    noise_seed: int


class Groups(Dataset[Drawn]):
    """Group i depends on (seed, i) alone."""

    def __init__(self, found: Pictures, seed: int) -> None:
        self.found, self.seed = found, seed

    def __getitem__(self, number: int) -> Drawn:
        draws = generator(self.seed, "photos/group", number)
        pixels = crops(self.found, draws)
        chosen = int(torch.multinomial(torch.tensor([family.share for family in FAMILIES]), 1, generator=draws))
        family = FAMILIES[chosen]
        operator, (low, high) = family.draw(draws), family.levels
        sigma_y = low * (high / low) ** torch.rand(GROUP, generator=draws)
        # All or none: masks without noise keep the pixels that they see as they are.
        if _uniform(0, 1, draws) < family.quiet:
            sigma_y = torch.full_like(sigma_y, 0.0 if isinstance(operator, MaskOperator) else rounding(8))
        return Drawn(chosen, pixels, operator, sigma_y, int(torch.randint(2**62, (), generator=draws)))


class Batch(NamedTuple):
    """Images (BATCH, 3, SIDE, SIDE), their measurement, and its Gaussian estimate."""

    family: int
    x: Tensor
    measurement: Measurement
    gaussian: Tensor


@torch.no_grad()
def measured(group: Drawn, device: torch.device) -> list[Batch]:
    """The batches of one group."""
    x = group.pixels.to(device).float() / 127.5 - 1
    operator = group.operator.to(device)
    draws = torch.Generator(device).manual_seed(group.noise_seed)
    noise = torch.randn(GROUP, *operator.measurement_shape, generator=draws, device=device)
    measurement = Measurement.of(x, operator, group.sigma_y.to(device), noise)
    gaussian = load_photos().law_of(x.shape, measurement).gaussian_mean
    rows = [list(range(start, start + BATCH)) for start in range(0, GROUP, BATCH)]
    return [Batch(group.family, x[own], measurement.select(own), gaussian[own]) for own in rows]


class Plan(NamedTuple):
    """images: in all, taken in whole windows; passes: through each window, as making it takes longer than a pass.

    lr: the largest learning rate; start: weights to begin with, if any.
    """

    images: int
    passes: int = 1
    lr: float = LR
    seed: int = 0
    start: Path | None = None


def batches(plan: Plan, groups: Dataset[Drawn], windows: range, device: torch.device) -> Iterator[Batch]:
    """Of some windows, the batches of each, every pass in an order drawn from (seed, window, pass)."""
    n_workers = min(12, max(0, torch.get_num_threads() - 2)) if device.type == "cuda" else 0
    numbers = range(windows.start * WINDOW, windows.stop * WINDOW)
    drawn = iter(DataLoader(groups, batch_size=None, sampler=numbers, num_workers=n_workers))
    for number in windows:
        found = [batch for _ in range(WINDOW) for batch in measured(next(drawn), device)]
        for order in range(number * plan.passes, (number + 1) * plan.passes):
            for i in torch.randperm(len(found), generator=generator(plan.seed, "photos/order", order)).tolist():
                yield found[i]


# ---------------------------------------------------------------------------------------------------------------------
# Training.


def losses(estimate: Tensor, x: Tensor) -> Tensor:
    """ln(mean squared error + LEAST_ERROR) of images (B, C, H, W), (B,): a decibel counts the same in every task."""
    return ((estimate - x).square().mean((1, 2, 3)) + LEAST_ERROR).log()


def learning_rate(step: int, n_steps: int, largest: float) -> float:
    """Rising over the first steps, then half of a cosine."""
    return largest * min(1.0, (step + 1) / WARMUP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / n_steps))


def train(found: Pictures, folder: Path, plan: Plan, device: torch.device) -> Refiner:
    """The averaged network; goes on from the newest checkpoint in `folder`."""
    model = _first(plan).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), plan.lr, (0.9, 0.99), weight_decay=1e-4, fused=fused)
    ema = EMA(model, EMA_HALF_LIFE, EMA_RAMPUP)
    per_window = plan.passes * WINDOW * GROUP // BATCH
    n_windows = max(1, plan.images // (per_window * BATCH))
    window = _resumed(folder, model, ema, optimizer)
    started = saved = time.perf_counter()
    gains: list[tuple[int, Tensor]] = []
    for i, batch in enumerate(batches(plan, Groups(found, plan.seed), range(window, n_windows), device), 1):
        step = window * per_window + i
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1, n_windows * per_window, plan.lr)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            estimate = model(batch.gaussian, batch.measurement)
        loss = losses(estimate, batch.x)
        loss.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, step * BATCH, BATCH)
        gains.append((batch.family, (losses(batch.gaussian, batch.x) - loss.detach()).mean()))
        if step % per_window == 0:
            _log(folder, step * BATCH, gains, time.perf_counter() - started)
            gains.clear()
            if time.perf_counter() - saved > CHECKPOINT_S or step == n_windows * per_window:
                _save(folder, step // per_window, model, ema, optimizer)
                saved = time.perf_counter()
    model.load_state_dict(ema.weights)
    return model


def _first(plan: Plan) -> Refiner:
    """The network before any step."""
    if plan.start is not None:
        return read_refiner(plan.start)
    with torch.random.fork_rng():
        torch.set_rng_state(generator(plan.seed, "photos/weights").get_state())
        return Refiner()


def _log(folder: Path, nimg: int, gains: list[tuple[int, Tensor]], seconds: float) -> None:
    """A line: the decibels gained over the Gaussian, of all and of each family, and the seconds of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    new = not (folder / "log.csv").exists()
    values = torch.stack([gain for _, gain in gains]).cpu().numpy() * 10 / math.log(10)
    families = np.array([family for family, _ in gains])
    own = [values[families == k].mean().round(3) if (families == k).any() else "" for k in range(len(FAMILIES))]
    row = [nimg, values.mean().round(3), *own, round(seconds, 1)]
    with (folder / "log.csv").open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(["nimg", "gained_db", *(family.name for family in FAMILIES), "seconds"])
        writer.writerow(row)
    log.info("%d images: %.2f dB gained, %.0f s", nimg, values.mean(), seconds)


def _save(folder: Path, window: int, model: Refiner, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"ema/{name}": t for name, t in ema.weights.items()}
    tensors |= {f"optimizer/{name}": t for name, t in checkpoint.moments_of(optimizer).items()}
    checkpoint.save(folder, window, tensors, {"window": window, "fingerprint": "photos"})


def _resumed(folder: Path, model: Refiner, ema: EMA, optimizer: torch.optim.Optimizer) -> int:
    """The window to go on with."""
    resumed = checkpoint.load_newest(folder)
    if resumed is None:
        return 0
    tensors, state = resumed
    model.load_state_dict(checkpoint.under("model/", tensors))
    ema.load(checkpoint.under("ema/", tensors))
    checkpoint.restore_moments(optimizer, checkpoint.under("optimizer/", tensors))
    return int(state["window"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=340_992)
    parser.add_argument("--passes", type=int, default=1, help="through what was measured, before more is")
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--leaves", type=int, default=N_LEAVES, help="dead-leaves images")
    parser.add_argument("--state", type=Path, default=Path("state/photos"), help="for checkpoints and the log")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = pictures(options.pictures, options.leaves)
    plan = Plan(options.images, options.passes, options.lr, options.seed, options.start)
    model = train(found, options.state, plan, device)
    save_file({name: t.half().cpu().contiguous() for name, t in model.state_dict().items()}, options.out)


if __name__ == "__main__":
    main()
