"""Which build of NATTEN has CUDA kernels for the torch that is here: what `make setup` installs where a GPU is.

    python -c 'from invfusion.models.natten_wheel import main; main()'

prints the arguments for pip, or nothing, and why. The package index has NATTEN's source alone, from which pip makes a
package without kernels; its own index has wheels, each for one version of torch and of CUDA, as the releases list them.
"""

import platform
import re
import sys
from typing import NamedTuple

import torch

INDEX = "https://whl.natten.org"
# The first whose gradients are right.
VERSION = "0.21.7"
# What that release was built for: torch of any patch version, CUDA, Python, machine.
TORCH = ((2, 12), (2, 13))
CUDA = ("12.6", "13.0", "13.2")
PYTHON = ("cp310", "cp311", "cp312", "cp313", "cp314")
MACHINES = ("Linux-x86_64", "Linux-aarch64")


class Choice(NamedTuple):
    """requirement: for pip, with INDEX as find-links; None where no wheel fits. why: in a few words."""

    requirement: str | None
    why: str

    @property
    def arguments(self) -> str:
        """For pip; "" where no wheel fits."""
        return "" if self.requirement is None else f"{self.requirement} --find-links {INDEX}"


def is_right(version: str) -> bool:
    """Whether the gradients of a version of NATTEN ("0.21.7+torch2130cu130") are right."""
    return _numbers(version) >= _numbers(VERSION)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def natten_for(torch_version: str, cuda: str | None, python_tag: str, machine: str) -> Choice:
    """The wheel for a torch ("2.13.0+cu130") built with a CUDA ("13.0"), a Python ("cp312"), "Linux-x86_64"."""
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    if cuda is None:
        return Choice(None, f"torch {torch_version} is built without CUDA")
    if (major, minor) not in TORCH:
        return Choice(None, f"NATTEN {VERSION} has wheels for torch {_listed(TORCH)}, not for {torch_version}")
    if cuda not in CUDA:
        return Choice(None, f"NATTEN {VERSION} has wheels for CUDA {_listed(CUDA)}, torch is built with {cuda}")
    if python_tag not in PYTHON:
        return Choice(None, f"NATTEN {VERSION} has wheels for {_listed(PYTHON)}, not for {python_tag}")
    if machine not in MACHINES:
        return Choice(None, f"NATTEN {VERSION} has wheels for {_listed(MACHINES)}, not for {machine}")
    requirement = f"natten=={VERSION}+torch{major}{minor}0cu{cuda.replace('.', '')}"
    return Choice(requirement, f"it fits torch {torch_version}")


def natten_here() -> Choice:
    """The wheel for this machine; none without a GPU."""
    if not torch.cuda.is_available():
        return Choice(None, "no GPU is found, and NATTEN has kernels for GPUs alone")
    # "t" where Python is built without its global lock.
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}" + "t" * ("t" in sys.abiflags)
    return natten_for(torch.__version__, torch.version.cuda, tag, f"{platform.system()}-{platform.machine()}")


def _listed(known: tuple[object, ...]) -> str:
    return ", ".join(".".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in known)


def main() -> None:
    """Arguments for pip on the one stream, the reason on the other."""
    choice = natten_here()
    if choice.arguments:
        sys.stdout.write(f"{choice.arguments}\n")
    sys.stderr.write(f"NATTEN: {choice.requirement or 'not installed'}, {choice.why}\n")
