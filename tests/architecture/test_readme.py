"""What the README tells people to type exists, and its Python runs."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch

import invfusion.models
from invfusion.data.sources import SOURCES
from invfusion.models import build_denoiser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("source", sorted(set(re.findall(r"--source (\w+)", README))))
def test_every_source_is_one(source: str) -> None:
    assert source in SOURCES


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))))
def test_every_make_target_is_one(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z_.]+)", README))))
def test_every_module_is_one(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)", README))))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_python_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, library = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    asked = {}

    class Champion:
        def predict(self, request: dict[str, object], params: dict[str, object]) -> None:
            asked.update(request, **params)

    # The module itself: `mlflow.pyfunc` is a stand-in that loads it later.
    monkeypatch.setattr(importlib.import_module("mlflow.pyfunc"), "load_model", lambda _: Champion())
    monkeypatch.setattr(invfusion.models, "load_denoiser", lambda _: build_denoiser("digits16").eval())
    names: dict[str, torch.Tensor] = {}
    exec(library.replace("x = ...", "x = torch.zeros(4, 3, 16, 16)"), names)
    assert names["sample"].shape == names["mmse"].shape == (4, 3, 16, 16)
    exec(registry, names)
    assert asked.keys() == {"y", "operator", "method"}
