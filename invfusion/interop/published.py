"""Networks that the published code (noamelata/InvFusion) wrote, read without running anything that is in their files.

Its training states are pickled mappings of `state`, `net`, `loss_fn`, `optimizer` and `ema`; networks that EDM's tools
wrote pickle the very source code of their classes. Both name classes and functions to be called while they are read.
Here such names stand for inert ones of our own, and every other name is refused.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invfusion.errors import CheckpointError
from invfusion.files import sha256_of
from invfusion.models import Denoiser, DenoiserConfig, Variant, denoiser_config, load_weights
from invfusion.models.checkpoint import differences
from invfusion.models.hdit import AxialRope
from invfusion.models.official import official_name
from invfusion.rng import generator

# Of the mapping in a file, in order of preference: the averaged weights are what sampling uses.
PREFERRED = ("ema", "net")
# Rotary frequencies are computed, not learned: another law of theirs is another network.
ROPE_TOLERANCE = 1e-4
SHOWN = 3


@dataclass(frozen=True)
class Published:
    """What a file holds: its tensors under the published names, and facts for the model's manifest."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def import_published(
    path: Path | str, preset: str | DenoiserConfig, variant: Variant
) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a published training state or network, with facts about where it came from.

    preset, variant: its architecture, which such files do not name. Weights become float32.
    Raises `CheckpointError` where the file is damaged, asks for anything but numbers, or holds another network.
    """
    path = Path(path)
    found = read_published(path)
    config = denoiser_config(preset, variant)
    with torch.device("meta"):
        denoiser = Denoiser(config)
    tensors = _renamed(found.tensors, denoiser, path)
    _check_values(tensors, denoiser, path)
    load_weights(denoiser, tensors, str(path))
    return denoiser.eval(), {"name": variant, "imported": dict(found.facts)}


def read_published(path: Path) -> Published:
    """Read a file. Raises `CheckpointError` where it is missing, damaged, hostile, or holds no network."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name a training state or a network of the published code")
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        digest = sha256_of(path)
        content = _read_zip(path) if is_zip else _read_pickle(path)
        name, tensors = _weights_of(content, path)
        images = _images_of(content)
    except CheckpointError:
        raise
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(_refusal(path, error)) from None
    # A pickle that is no network fails in any way that operations on inert objects can.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(f"{path}: not a file that the published code writes ({type(error).__name__})") from None
    facts = {
        "file": path.name,
        "sha256": digest,
        "format": "training state" if is_zip else "network",
        "weights": name,
        "source": "noamelata/InvFusion",
        **({} if images is None else {"images": images}),
    }
    return Published(tensors, facts)


# ---------------------------------------------------------------------------------------------------------------------
# Inert stand-ins.


class _Dtype:
    """For numpy.dtype."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        """The byte order; files of big-endian machines are not expected."""


def _number(dtype: object, data: object = b"") -> int | float | None:
    """For numpy's scalars."""
    code = dtype.code if isinstance(dtype, _Dtype) else ""
    if not (re.fullmatch(r"[fiu][248]|[iu]1|b1", code) and isinstance(data, bytes)):
        return None
    values = np.frombuffer(data, code)
    return values[0].item() if len(values) == 1 else None


class _Object:
    """For any object of the published code or of torch.nn; it keeps what it was to be made of."""

    def __init__(self, *arguments: object) -> None:
        self.state = arguments[0].get("state") if arguments and isinstance(arguments[0], dict) else None

    def __setstate__(self, state: object) -> None:
        if state is not None:
            self.state = state


_NUMPY: dict[str, Any] = {"numpy.dtype": _Dtype} | {
    f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")
}
# torch's own safe reader fills plain mappings alone; EasyDict is one with attributes.
_EASY_DICT: dict[str, Any] = {
    f"{module}.EasyDict": OrderedDict for module in ("dnnlib", "dnnlib.util", "torch_utils.misc")
}


def _read_zip(path: Path) -> object:
    """What torch.save wrote."""
    stand_ins: list[Any] = [(thing, name) for name, thing in (_NUMPY | _EASY_DICT).items()]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride).clone()


def _itself(value: object, *_: object) -> object:
    return value


class _Reader(pickle.Unpickler):
    """Reads what EDM's persistence wrote; finds inert things alone."""

    KNOWN: dict[str, Callable[..., Any]] = {  # noqa: RUF012
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": lambda text, encoding: text.encode("latin1") if encoding == "latin1" else b"",
        "builtins.set": lambda *_: set(),
        "torch_utils.persistence._reconstruct_persistent_obj": _Object,
        "torch.storage._load_from_bytes": _storage,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _itself,
        "torch._utils._rebuild_parameter_with_state": _itself,
        "torch.Size": tuple,
        **_NUMPY,
        **_EASY_DICT,
    }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.KNOWN:
            return self.KNOWN[full]
        if module.startswith("torch.nn.") or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return _Object
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full}")

    def persistent_load(self, pid: object) -> Any:  # noqa: ARG002
        raise pickle.UnpicklingError("it refers to another file")


def _read_pickle(path: Path) -> object:
    with path.open("rb") as file:
        return _Reader(file).load()


def _refusal(path: Path, error: Exception) -> str:
    asked = re.search(r"GLOBAL (?:blocked )?([\w.]+)", str(error))
    if asked is not None:
        return (
            f"{path}: refused, since reading it would call '{asked[1]}', which no network needs; nothing of it was "
            "run. Take the file from its authors"
        )
    first = (str(error) or type(error).__name__).splitlines()[0][:120]
    # Torch's own advice is to read it without this safety.
    first = "torch's safe reader does not know how it is written" if "weights_only" in str(error) else first
    return f"{path}: cannot be read to its end ({first}); it is damaged or truncated, or no file of the published code"


# ---------------------------------------------------------------------------------------------------------------------
# From its content to ours.


def _weights_of(content: object, path: Path) -> tuple[str, dict[str, Tensor]]:
    """The network to take, with its part's name."""
    if isinstance(content, Mapping):
        for name in PREFERRED:
            if content.get(name) is not None:
                return name, _tensors(content[name], path)
    return "the network", _tensors(content, path)


def _tensors(network: object, path: Path) -> dict[str, Tensor]:
    found = dict(_walked(network)) if isinstance(network, _Object) else network
    if not isinstance(found, Mapping) or not found or not all(map(_has_numbers, found.values())):
        raise CheckpointError(f"{path}: holds no network: neither averaged weights ('ema') nor others ('net')")
    return {str(name): tensor for name, tensor in found.items()}


def _has_numbers(thing: object) -> bool:
    """Whether it is a plain tensor, with its numbers."""
    return isinstance(thing, Tensor) and thing.layout == torch.strided and not (thing.is_meta or thing.is_quantized)


def _walked(module: _Object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module of which only the state is there."""
    state = module.state if isinstance(module.state, Mapping) else {}
    passing = state.get("_non_persistent_buffers_set") or ()
    for part in ("_parameters", "_buffers"):
        for name, tensor in (state.get(part) or {}).items():
            if tensor is not None and name not in passing:
                yield f"{prefix}{name}", tensor
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, _Object):
            yield from _walked(child, f"{prefix}{name}.")


def _images_of(content: object) -> int | None:
    """The images that the network was trained on."""
    state = content.get("state") if isinstance(content, Mapping) else None
    images = state.get("cur_nimg") if isinstance(state, Mapping) else None
    return images if isinstance(images, int) else None


def _renamed(tensors: Mapping[str, Tensor], denoiser: Denoiser, path: Path) -> dict[str, Tensor]:
    """The tensors under our names, in float32. Raises `CheckpointError` where they are another network's."""
    names = {official_name(key): key for key in denoiser.state_dict()}
    renamed = {names.get(name, f"(unknown) {name}"): t.float() for name, t in tensors.items()}
    own = {key: tuple(t.shape) for key, t in denoiser.state_dict().items()}
    given = {key: tuple(t.shape) for key, t in renamed.items()}
    if own == given:
        return renamed
    variant = _variant(tensors)
    if variant is not None and variant != denoiser.variant:
        raise CheckpointError(f"{path}: holds a network of the variant '{variant}', not '{denoiser.variant}'")
    raise CheckpointError(
        f"{path}: holds a network of another architecture ({differences(own, given)}); name the preset that it was "
        "trained with"
    )


def _variant(tensors: Mapping[str, Tensor]) -> Variant | None:
    if any(".deg_linear." in name for name in tensors):
        return "invfusion"
    into, out = tensors.get("unet.patch_in.proj.weight"), tensors.get("unet.patch_out.proj.weight")
    if into is None or out is None or into.ndim != 2 or out.ndim != 2:
        return None
    return "palette" if into.shape[1] == 2 * out.shape[0] else "unconditional"


def _check_values(tensors: Mapping[str, Tensor], denoiser: Denoiser, path: Path) -> None:
    wild = [name for name, t in tensors.items() if not bool(t.isfinite().all())]
    if wild:
        rest = f" and {len(wild) - SHOWN} more" if len(wild) > SHOWN else ""
        raise CheckpointError(
            f"{path}: {', '.join(wild[:SHOWN])}{rest} hold infinite or not-a-number values: the training had diverged"
        )
    for name, module in denoiser.named_modules():
        if isinstance(module, AxialRope):
            expected = AxialRope(*_sizes(module), module.trained_reach)
            expected.initialise(generator(0, "published"))
            key = f"{name}.frequencies"
            error = (tensors[key] / expected.frequencies - 1).abs().max()
            if error > ROPE_TOLERANCE:
                raise CheckpointError(
                    f"{path}: {key} differ by {float(error):.1%} from those of this architecture: the network tells "
                    "positions by another law, and its images would be wrong"
                )


def _sizes(rope: AxialRope) -> tuple[int, int]:
    """(heads, features of a head)."""
    n_heads, n = rope.frequencies.shape
    return n_heads, 8 * n
