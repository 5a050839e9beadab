"""The example in docs/oracle.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_priors import draws_of, mixture

from invfusion.samplers import Heun

pytest.importorskip("sklearn")
PAGE = Path(__file__).parents[3] / "docs/oracle.md"


def test_a_user_s_sampler_goes_through_the_oracle(capsys: pytest.CaptureFixture[str]) -> None:
    def my_sampler(denoiser: Any, measurement: Any, noise: Any, generators: Any) -> Any:
        return Heun(n_steps=48).sample(denoiser, measurement, noise, generators=generators).x

    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    code = found[1].replace("n_samples=512", "n_samples=256")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {"images": draws_of(mixture((1, 8, 8)), 200).float(), "my_sampler": my_sampler}
    exec(compile(code, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "sliced_wasserstein" in said
    assert names["oracle"].judge(names["draw"]).scores["sliced_wasserstein"].ratio < 1.3
