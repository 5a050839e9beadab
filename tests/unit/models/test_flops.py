"""Counted against the numbers of the paper's networks."""

import pytest

from invfusion.models import Variant, denoiser_config
from invfusion.models.flops import attention_flops, forward_flops


@pytest.mark.parametrize(
    ("preset", "variant", "gmacs"),
    [("ffhq64", "invfusion", 40.63), ("ffhq64", "palette", 32.97), ("ffhq256", "invfusion", 46.80),
     ("ffhq256", "palette", 38.41)],
)  # fmt: skip
def test_forward_passes_of_the_paper(preset: str, variant: Variant, gmacs: float) -> None:
    assert forward_flops(denoiser_config(preset, variant)) / 2e9 == pytest.approx(gmacs, rel=1e-3)


def test_attention_counts_windows_and_both_sets() -> None:
    joint, blind = (attention_flops(denoiser_config("ffhq64", variant)) for variant in ("invfusion", "palette"))
    assert joint == 2 * blind
