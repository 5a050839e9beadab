"""Photographs against a plain loop over tiles: both restore the same picture."""

import pytest
import torch

from benchmarks import tile_loop
from benchmarks.document import render


@pytest.mark.parametrize("name", ["noise", "reduced x2"])
def test_the_loop_restores_what_the_library_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_loop, "TILE", 48)
    measurement = tile_loop.measured(name, (64, 96))
    ours, loop = tile_loop.whole(measurement, "mmse"), tile_loop.tile_by_tile(measurement, "mmse")
    assert not torch.equal(ours, loop)
    assert (ours - loop).square().mean().sqrt() < 0.05


def test_a_record_has_its_row() -> None:
    (record,) = tile_loop.measure(["noise"], [(32, 32)], ["mmse"])
    page = render("<!-- table tile-loop -->\n<!-- end -->", {"tile_loop": {"machine": {}, "records": [record]}})
    assert "| noise | mmse | 32x32 |" in page
