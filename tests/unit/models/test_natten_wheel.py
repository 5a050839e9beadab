"""Which wheel of NATTEN is asked for, with stand-ins for machines."""

import sys

import pytest
import torch

from invfusion.models import natten_wheel
from invfusion.models.natten_wheel import natten_for

LINUX = "Linux-x86_64"


@pytest.mark.parametrize(
    ("torch_version", "cuda", "tag", "machine", "wanted"),
    [
        ("2.13.0", "13.0", "cp311", LINUX, "natten==0.21.7+torch2130cu130"),
        ("2.13.1+cu132", "13.2", "cp314", "Linux-aarch64", "natten==0.21.7+torch2130cu132"),
        ("2.12.0+cu126", "12.6", "cp312", LINUX, "natten==0.21.7+torch2120cu126"),
    ],
)
def test_the_wheel_has_the_versions_of_torch_and_cuda(
    torch_version: str, cuda: str, tag: str, machine: str, wanted: str
) -> None:
    assert natten_for(torch_version, cuda, tag, machine).requirement == wanted


@pytest.mark.parametrize(
    ("torch_version", "cuda", "tag", "machine", "why"),
    [
        ("2.13.0+cpu", None, "cp311", LINUX, "without CUDA"),
        ("2.11.0+cu130", "13.0", "cp311", LINUX, "2.12, 2.13, not for 2.11.0"),
        ("2.14.0", "13.2", "cp311", LINUX, "not for 2.14.0"),
        ("2.13.0+cu128", "12.8", "cp311", LINUX, "built with 12.8"),
        ("2.13.0", "13.0", "cp313t", LINUX, "not for cp313t"),
        ("2.13.0", "13.0", "cp311", "Windows-AMD64", "not for Windows"),
    ],
)
def test_nothing_is_asked_for_that_does_not_exist(
    torch_version: str, cuda: str | None, tag: str, machine: str, why: str
) -> None:
    requirement, reason = natten_for(torch_version, cuda, tag, machine)
    assert requirement is None
    assert why in reason


def test_a_machine_without_a_gpu_installs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    natten_wheel.main()
    out, err = capsys.readouterr()
    assert out == ""
    assert "no GPU" in err


def test_a_machine_with_one_installs_its_wheel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(natten_wheel.platform, "system", lambda: "Linux")
    monkeypatch.setattr(natten_wheel.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(natten_wheel, "PYTHON", (f"cp{sys.version_info.major}{sys.version_info.minor}",))
    natten_wheel.main()
    assert capsys.readouterr().out == "natten==0.21.7+torch2130cu130 --find-links https://whl.natten.org\n"
