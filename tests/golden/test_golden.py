"""A refactoring that changes what models, training or sampling compute is caught here; see cases.py for the command."""

import json
from typing import Any

import cases
import pytest

STORED: dict[str, dict[str, Any]] = json.loads(cases.FILE.read_text())
# Relative to the values' own size. Other threads and vector units move the forward pass by 2e-6, a sample by 4e-5, and
# the update by 3e-3, since Adam's first step turns the sign of even the smallest gradient into a full step.
TOLERANCE = {"denoised": 1e-5, "logvar": 1e-5, "logged": 1e-5, "gradient": 5e-5, "images": 1e-4, "update": 1e-2}


@pytest.mark.parametrize(("preset", "variant"), list(cases.names()))
def test_numbers_are_as_stored(preset: str, variant: str) -> None:
    stored = STORED[f"{preset}/{variant}"]
    for part, values in cases.numbers(preset, variant).items():
        for name, found in values.items():
            limit = TOLERANCE[name] * max(map(abs, stored[part][name]))
            assert found == pytest.approx(stored[part][name], rel=0, abs=limit), f"{part}: {name}"
