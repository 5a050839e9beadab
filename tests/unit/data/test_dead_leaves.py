"""Dead leaves: seeded, endless, everywhere the same."""

import hashlib

import numpy as np

from invfusion.data.sources.dead_leaves import DeadLeaves


def test_image_i_depends_on_seed_and_number_alone() -> None:
    one, more = DeadLeaves(n_images=2, size=32), DeadLeaves(n_images=3, size=32)
    first, second = [list(config.open().images) for config in (one, more)]
    assert [image.key for image in second] == ["leaves0-00000000", "leaves0-00000001", "leaves0-00000002"]
    for a, b in zip(first, second, strict=False):
        assert np.array_equal(np.asarray(a.open()), np.asarray(b.open()))
    assert not np.array_equal(one.draw(0), one.draw(1))
    assert not np.array_equal(one.draw(0), DeadLeaves(size=32, seed=1).draw(0))
    assert one.draw(10**9).shape == (32, 32, 3)


def test_the_pixels_are_those_of_every_machine() -> None:
    digest = hashlib.sha256(DeadLeaves(size=16).draw(0).tobytes()).hexdigest()
    assert digest.startswith("83a9f015921d1ff8")


def test_power_falls_with_frequency_as_in_photographs() -> None:
    config = DeadLeaves(size=64)
    grey = np.stack([config.draw(i).mean(2) for i in range(8)])
    power = (np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    band = (f > 1.5 / 64) & (f < 0.3)
    slope = np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0]
    assert -3 < slope < -1
