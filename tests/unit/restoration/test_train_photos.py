"""Training the network of `photos`, in miniature."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("webdataset", reason="dead leaves are a source of shards, which need it")

from invfusion.restoration import refinement, train_photos
from invfusion.restoration.train_photos import FAMILIES, Groups, Pictures, Plan, measured, train
from invfusion.rng import generator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIDE": 24, "SHAPE": (3, 24, 24), "GROUP": 4, "BATCH": 2, "WINDOW": 1}.items():
        monkeypatch.setattr(train_photos, name, value)
    monkeypatch.setattr(refinement, "WIDTHS", (8, 8, 8))


def found() -> Pictures:
    pixels = (torch.rand(2, 40, 50, 3, generator=generator(0, "pictures")) * 255).byte().numpy()
    return Pictures(list(pixels), torch.ones(2))


@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=[family.name for family in FAMILIES])
def test_every_family_measures(monkeypatch: pytest.MonkeyPatch, family: int) -> None:
    chosen = FAMILIES[family]._replace(share=1.0)
    others = [other._replace(share=0.0) for other in FAMILIES]
    monkeypatch.setattr(train_photos, "FAMILIES", [*others[:family], chosen, *others[family + 1 :]])
    group = Groups(found(), 0)[0]
    assert group.family == family
    assert torch.equal(group.pixels, Groups(found(), 0)[0].pixels)
    for batch in measured(group, CPU):
        assert batch.x.shape == batch.gaussian.shape == (2, 3, 24, 24)
        assert batch.gaussian.isfinite().all()


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(images=16, passes=2)
    whole = train(found(), tmp_path / "whole", plan, CPU)
    log = train_photos._log

    def stop(folder: Path, nimg: int, *arguments: Any) -> None:
        log(folder, nimg, *arguments)
        if nimg == 8:  # after the first of two windows
            raise KeyboardInterrupt

    monkeypatch.setattr(train_photos, "CHECKPOINT_S", 0)
    with monkeypatch.context() as patch:
        patch.setattr(train_photos, "_log", stop)
        with pytest.raises(KeyboardInterrupt):
            train(found(), tmp_path / "cut", plan, CPU)
    again = train(found(), tmp_path / "cut", plan, CPU)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
