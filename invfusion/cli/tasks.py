"""The options that say how a picture was measured, shared by `restore` and `degrade`."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from invfusion.errors import ConfigError, InvFusionError, OperatorError
from invfusion.operators import LinearOperator, operator_from_spec, spec_from_json
from invfusion.restoration import tasks
from invfusion.restoration.pictures import load_kernel, load_mask, read_file

BOUNDARIES = ("valid", "reflect", "replicate", "circular", "constant")
FILTERS = ("bicubic", "area", "lanczos", "nearest")


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """--mask, --blur, --scale, --operator and what goes with them."""
    what = parser.add_argument_group("what happened to the picture (one of these; none of them: noise alone)")
    only = what.add_mutually_exclusive_group()
    only.add_argument("--mask", metavar="M.png", help="missing pixels are white in this picture")
    only.add_argument(
        "--blur", metavar="KERNEL", help="blur kernel: a picture (made to sum to one), .npy, .txt or .csv"
    )
    only.add_argument("--scale", metavar="N", type=int, help="the picture was reduced by this whole factor")
    only.add_argument("--operator", metavar="O", help="a spec (op.json), or an operator of yours (my_ops.py:MyOp)")
    what.add_argument("--boundary", choices=BOUNDARIES, default="valid", help="what the blur saw beyond the image")
    what.add_argument("--filter", choices=FILTERS, default="bicubic", help="of the reduction")
    what.add_argument(
        "--image-size",
        metavar="HxW",
        help="of the images that --operator acts on (default: the picture's); CxHxW where their channels are other too",
    )


def files_of(options: argparse.Namespace) -> list[Path]:
    """The files that the options name."""
    operator = None if options.operator is None else options.operator.rpartition(":")[0] or options.operator
    return [Path(name) for name in (options.mask, options.blur, operator) if name is not None]


def check_targets(inputs: list[Path], outputs: list[Path]) -> None:
    """Raise `ConfigError` where an output would take the place of an input or of another output."""
    taken = {file.resolve() for file in inputs}
    for output in outputs:
        if output.resolve() in taken:
            raise ConfigError(
                f"{output} would take the place of an input or of another output; choose another --output"
            )
        taken.add(output.resolve())


def task_from(options: argparse.Namespace) -> tasks.Task:
    """The task that the options state. Raises `InvFusionError`."""
    if options.mask is not None:
        return tasks.inpainting(load_mask(options.mask), options.mask)
    if options.blur is not None:
        return tasks.deblurring(load_kernel(options.blur), options.boundary, options.blur)
    if options.scale is not None:
        if options.scale < 1:
            raise ConfigError(f"--scale is a whole factor of at least 1, got {options.scale}")
        return tasks.enlarging(options.scale, options.filter)
    if options.operator is not None:
        size = image_size(options.image_size)
        return tasks.by_operator(lambda shape: load_operator(options.operator, shape, size), options.operator)
    return tasks.denoising()


def image_size(text: str | None) -> tuple[int, ...] | None:
    """HxW or CxHxW as numbers. Raises `ConfigError`."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"--image-size is rows x columns, such as 480x640, or channels before them, such as 3x480x640; got '{text}'"
        )
    return tuple(map(int, parts))


def load_operator(source: str, shape: tuple[int, ...], size: tuple[int, ...] | None = None) -> LinearOperator:
    """The operator of a spec or of a Python file, for images of the shape (C, H, W); size, (H, W) or (C, H, W), goes
    before it.

    A class or function of a file is called with the image shape alone. Raises `OperatorError`, `ConfigError`.
    """
    path, colon, name = source.rpartition(":")
    if not colon or not path.endswith(".py"):
        return operator_from_spec(spec_from_json(read_file(source).decode(errors="replace")))
    found = getattr(load_module(Path(path)), name, None)
    if found is None:
        raise ConfigError(f"{path} defines no '{name}'")
    made = found if isinstance(found, LinearOperator) else _made(found, _image_shape(shape, size), source)
    if not isinstance(made, LinearOperator):
        raise OperatorError(f"{source} is a {type(made).__name__}, not a LinearOperator or what makes one")
    return made


def _image_shape(shape: tuple[int, ...], size: tuple[int, ...] | None) -> tuple[int, ...]:
    if size is not None and len(size) == 3:
        return size
    if len(shape) != 3:
        raise ConfigError(
            f"a measurement of the shape {shape} does not tell the shape of the images: say --image-size CxHxW, such "
            "as 3x480x640"
        )
    return shape if size is None else (shape[0], *size)


def _made(found: Any, shape: tuple[int, ...], source: str) -> Any:
    try:
        return found(shape)
    except InvFusionError:
        raise
    except TypeError as error:
        raise OperatorError(f"{source} must be callable with the image shape (C, H, W) alone: {error}") from error
    except Exception as error:
        raise OperatorError(f"{source} fails for images {shape}: {type(error).__name__}: {error}") from error


def _is_free(path: Path) -> bool:
    """Whether a file's name can be its module's."""
    loaded = sys.modules.get(path.stem)
    is_itself = loaded is None or Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve()
    return is_itself and path.stem not in sys.stdlib_module_names


def load_module(path: Path) -> ModuleType:
    """A Python file as a module. Raises `ConfigError` where it is missing or fails.

    A name that is another's already, such as `operator`, is not taken from it.
    """
    name = path.stem if _is_free(path) else f"own_operators_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return module
