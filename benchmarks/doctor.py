"""What would run on this machine, and why: attention backends by preset and level, compilation, precision."""

import importlib.util
from collections.abc import Iterator

import torch

from invfusion.models import PRESETS
from invfusion.models.acceleration import compiler, missing_compiler
from invfusion.models.attention import FLEX_MIN_TOKENS, available_backends, choose_backend, natten_is_compiled
from invfusion.models.natten_wheel import VERSION, natten_here


def diagnosis(device: torch.device) -> Iterator[str]:
    """Lines of text."""
    yield f"torch {torch.__version__} (CUDA {torch.version.cuda}) on {_name(device)}"
    yield f"attention backends: {', '.join(available_backends(device.type))}"
    yield f"  natten: {_natten(device)}"
    yield f"  flex: {_flex(device)}"
    for preset in PRESETS:
        yield from _levels(preset, device)
    yield f"compilation: {_compiler(device)}"
    yield f"float32 products: {torch.get_float32_matmul_precision()} (torch.set_float32_matmul_precision; high is TF32)"
    yield f"bfloat16: {_bfloat16(device)}"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def _levels(preset: str, device: torch.device) -> Iterator[str]:
    config = PRESETS[preset]
    for index, level in enumerate(config.levels):
        rows, columns = (n // config.patch_at(index) for n in config.image_shape[1:])
        name = f"{preset} level {index} ({rows}x{columns} tokens, {level.kernel})"
        if level.kernel == "global" or level.kernel >= max(rows, columns):
            yield f"{name}: sdpa, since every token sees all"
            continue
        backend = choose_backend("auto", device.type, rows * columns)
        yield f"{name}: {backend}{_why(backend, rows * columns, device)}"


def _why(backend: str, n_tokens: int, device: torch.device) -> str:
    if backend == "sdpa" and "flex" in available_backends(device.type):
        return f", since flex pays from {FLEX_MIN_TOKENS} tokens on, and here are {n_tokens}"
    return ", the only one that can run here" if backend == "sdpa" else ""


def _natten(device: torch.device) -> str:
    if not natten_is_compiled():
        installed = importlib.util.find_spec("natten") is not None
        state = f"installed without its CUDA kernels, or older than {VERSION}" if installed else "not installed"
        choice = natten_here()
        return f"{state}: " + (f"pip install {choice.arguments}" if choice.arguments else choice.why)
    return "with CUDA kernels" if device.type == "cuda" else "with CUDA kernels, but no GPU is used"


def _flex(device: torch.device) -> str:
    if device.type != "cuda":
        return "for GPUs only: it has no gradients on a CPU"
    return "can run" if "flex" in available_backends("cuda") else "needs triton, which is not installed"


def _compiler(device: torch.device) -> str:
    missing = missing_compiler(device.type)
    return f"available, with {compiler()}" if missing is None else f"not available: {missing}"


def _bfloat16(device: torch.device) -> str:
    if device.type == "cuda":
        return "in the matrix units" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated only"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "in the processor's own instructions" if fast else "emulated, slower than float32"
