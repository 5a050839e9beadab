"""The plain reference does equal work: its operators, networks, updates and samples are ours up to rounding."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import benchmarks.__main__ as command
from benchmarks.arithmetic import matmul_flops
from benchmarks.document import PERFORMANCE, TABLES, render
from benchmarks.plain import PlainDenoiser, PlainTrainer, plain_measurement, plain_operator, plain_sample
from benchmarks.records import Record
from benchmarks.setting import BATCHES, MIXTURE, Setting
from benchmarks.suites import SUITES
from benchmarks.suites.breakdown import breakdown
from benchmarks.suites.memory import capacity, memory
from benchmarks.timing import interleaved
from invfusion import rng
from invfusion.models import Variant, build_denoiser, denoiser_config
from invfusion.models.attention import neighbourhood_mask
from invfusion.models.flops import attention_flops
from invfusion.operators.base import Measurement
from invfusion.operators.masks import MaskOperator
from invfusion.samplers import Heun
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper

CPU = torch.device("cpu")
SETTING = Setting("digits16", CPU)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCHES["cpu"], "digits16", (4, 4))


@pytest.mark.parametrize("kind", MIXTURE[:-1])
def test_operators(kind: str) -> None:
    operator = SETTING.measurement(kind, 4, index=1).operator
    plain = plain_operator(operator)
    x = rng.randn((6, *operator.image_shape), rng.generators(0, "x", range(4)))
    y = operator.H(x)
    torch.testing.assert_close(plain.H(x), y.flatten(2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.H_pinv(y.flatten(2)), operator.H_pinv(y), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "variant", "preset"),
    [
        *((kind, "invfusion", "digits16") for kind in (*MIXTURE, None)),
        ("matrix", "palette", "digits16"),
        (None, "unconditional", "digits16"),
        ("strided_motion_blur", "invfusion", "ffhq64"),
    ],
)
def test_networks(kind: str | None, variant: Variant, preset: str) -> None:
    setting = Setting(preset, CPU)
    denoiser = setting.denoiser(variant).eval()
    x, sigma = setting.images(2), torch.tensor([0.3, 5.0])
    measurement = None if kind is None else setting.measurement(kind, 2)
    with torch.no_grad():
        ours, u, _ = denoiser(x, sigma, measurement, return_logvar=True)
        plain, v, _ = PlainDenoiser(denoiser)(x, sigma, plain_measurement(measurement), return_logvar=True)
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(v, u)


@pytest.mark.parametrize("kind", MIXTURE)
def test_updates_and_averages(kind: str) -> None:
    task, denoisers = SETTING.task(kind), [SETTING.denoiser("invfusion") for _ in range(2)]
    stepper, trainer = Stepper(task, denoisers[0].train(), Processes(), CPU), PlainTrainer(task, denoisers[1], CPU)
    ema = EMA(denoisers[0], task.config.ema_half_life, task.config.ema_rampup)
    batches = SETTING.batches()
    for nimg in (0, 4):
        loss = stepper.step(nimg, batches)["loss"]
        ema.update(denoisers[0], nimg + 4, 4)
        assert trainer.step(nimg, batches) == pytest.approx(loss, rel=1e-4)
    initial = dict(SETTING.denoiser("invfusion").named_parameters())
    # As vectors: of a gradient that is nothing but rounding, Adam makes a step as long as of any other.
    for name, averaged in trainer.averaged.named_parameters():
        error, moved = (averaged - ema.weights[name]).norm(), (averaged - initial[name]).norm()
        assert error <= 0.05 * moved + 1e-6, name


def test_samples() -> None:
    denoiser = SETTING.denoiser("invfusion").eval()
    measurement, noise = SETTING.measurement("strided_motion_blur", 2), SETTING.images(2)
    sampler = Heun(n_steps=4)
    ours = sampler.sample(denoiser, measurement, noise, generators=rng.generators(0, "way", range(2))).x
    plain = plain_sample(PlainDenoiser(denoiser), measurement, noise, sampler)
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-3)


def test_flops_are_those_of_the_formula() -> None:
    """Counted by the library against the sum over the linear maps of a blind network; for one batch of 2 images."""
    setting = Setting("digits16", CPU)
    denoiser, config = setting.denoiser("palette").eval(), setting.config
    x, sigma, measurement = setting.images(2), torch.ones(2), setting.measurement("patch_inpainting", 2)
    expected = 0
    for index, (level, ways) in enumerate(zip(config.levels, (2, 1), strict=True)):
        d, tokens = level.width, (16 // config.patch_at(index)) ** 2
        layer = tokens * 13 * d * d + 2 * config.mapping_width * d
        expected += ways * level.depth * layer
    fine, coarse, n_fine, n_coarse = 72, 144, 64, 16
    expected += n_coarse * 2 * (4 * fine * coarse) + n_fine * fine * (6 * 4 + 3 * 4)
    width, hidden = config.mapping_width, config.mapping_hidden
    expected += 3 * width**2 // 2 + config.mapping_depth * 3 * width * hidden
    with torch.no_grad():
        counted = matmul_flops(lambda: denoiser(x, sigma, measurement)) / 2
    assert counted == pytest.approx(2 * expected, rel=0.001)


def test_attention_flops_count_windows_and_both_sets() -> None:
    """FFHQ64: 7x7 windows on grids of 32 and 16 tokens, 4 layers each, and 8 global layers on 8x8; two sets of keys."""
    expected = 4 * 2 * (4 * 32**2 * 49 * 384 + 4 * 16**2 * 49 * 768 + 8 * 64 * 64 * 1536)
    assert attention_flops(denoiser_config("ffhq64")) == expected
    assert attention_flops(denoiser_config("ffhq64", "palette")) == expected // 2


def test_flops_of_the_paper() -> None:
    """40.63 GMAC for the FFHQ64 InvFusion model on masks, attention and all (methods of the published code)."""
    neighbourhood_mask.cache_clear()
    with FakeTensorMode():
        denoiser = build_denoiser("ffhq64").eval()
        x, sigma = torch.empty(1, 3, 64, 64), torch.empty(1)
        measurement = Measurement(x, MaskOperator((3, 64, 64), torch.empty(1, 1, 64, 64)), torch.empty(1))
        with torch.no_grad():
            flops = matmul_flops(lambda: denoiser(x, sigma, measurement)) + attention_flops(denoiser.config)
    neighbourhood_mask.cache_clear()
    assert flops == pytest.approx(2 * 40.63e9, rel=0.01)


def test_tables_are_made_from_the_records() -> None:
    """Every table can be made from a CPU run alone, from both kinds of runs, and from nothing."""
    facts = {"device": "d", "cores": 2, "threads": 2, "load_average": 1, "torch": "2", "git_revision": "0" * 40,
             "matmul_gflops": {"float32": 1.6e6, "bfloat16": 6.4e6}, "seconds": 3}  # fmt: skip
    step = {"suite": "training", "preset": "ffhq64", "variant": "invfusion", "family": "mixture", "plain_ms": 30,
            "ours_ms": 10, "bf16_ms": 5, "images": 64, "gflop_per_image": 100, "ratio": 3.0}  # fmt: skip
    text = PERFORMANCE.read_text()
    assert sorted(re.findall("<!-- table ([a-z-]+) -->", text)) == sorted(TABLES)
    trained = {"suite": "train-ffhq64", "case": "blur", "images_per_s": 6400.0, "mfu": 0.4}
    sampled = {"suite": "sample-ffhq64", "case": "blur", "images_per_s_at_63_calls": 101.6, "mfu": None}
    failed = {"suite": "learning", "case": "", "failed": "no such kernel"}
    lease = {"machine": facts, "records": [trained, sampled, failed]}
    gpu = render(text, {"cuda": lease, "cuda_suites": {"suites": {"training": facts}, "records": [step]}})
    missing = "not measured | not measured"
    assert f"| training | ffhq64 | {missing} | 6400.0 (40.0%) | not measured | 3.00x | not measured |" in gpu
    assert f"| sampling | ffhq64 | {missing} | 101.6 | not measured |" in gpu
    assert "| learning | failed no such kernel |  |" in gpu
    assert "| cuda_suites: training | d | 2 |" in gpu
    empty = render(gpu, {})
    assert "6400.0" not in empty
    assert render(empty, {}) == empty
    assert "| not measured | not measured | not measured | not measured |" in empty


def test_a_run_of_some_suites_keeps_what_others_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(value: int) -> Callable[..., Iterator[Record]]:
        return lambda device, seconds: iter([{"suite": f"s{value % 10}", "value": value}])

    output = tmp_path / "results" / "cpu.json"
    for revision, values in (("first", (1, 2)), ("second", (12,))):
        monkeypatch.setattr(command, "machine", lambda device, revision=revision: {"git_revision": revision})
        suites = {f"s{value % 10}": found(value) for value in values}
        monkeypatch.setattr(command, "SUITES", suites)
        command.measure(list(suites), CPU, 0, False, output)
    kept = json.loads(output.read_text())
    assert kept["records"] == [{"suite": "s1", "value": 1}, {"suite": "s2", "value": 12}]
    assert {suite: facts["git_revision"] for suite, facts in kept["suites"].items()} == {"s1": "first", "s2": "second"}


def test_every_suite_has_its_records() -> None:
    """Those that the page's tables are made of."""
    found = json.loads((PERFORMANCE.parent.parent / "benchmarks/results/cpu.json").read_text())
    assert {r["suite"] for r in found["records"]} == found["suites"].keys() == SUITES.keys()


def test_a_file_of_one_machine_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "machine", lambda device: {"git_revision": "new"})
    monkeypatch.setattr(command, "SUITES", {"b": lambda device, seconds: iter([])})
    output = tmp_path / "cpu.json"
    output.write_text(json.dumps({"machine": {"git_revision": "old"}, "records": [{"suite": "a"}]}))
    command.measure(["b"], CPU, 0, False, output)
    assert json.loads(output.read_text()) == {"suites": {"a": {"git_revision": "old"}}, "records": [{"suite": "a"}]}


def test_the_smallest_suite_runs_and_interleaves() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0, CPU, at_least=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert times["a"].n == 2
    records = list(memory(CPU, 0, presets=("digits16",)))
    assert records[1]["kept_mib_per_image"] < 0.5 * records[0]["kept_mib_per_image"]


def test_the_parts_of_a_step() -> None:
    """The first record, digits16 on blur: parts lie within what contains them, and the shares make up a whole step."""
    record = next(breakdown(CPU, 0))
    assert (record["preset"], record["family"]) == ("digits16", "strided_motion_blur")
    assert 0 < record["maps_ms"] < record["forward_backward_ms"]
    assert 0 < record["forward_ms"] < record["forward_backward_ms"]
    table = render("<!-- table breakdown -->\n<!-- end -->", {"cpu": {"machine": {}, "records": [record]}})
    shares = [float(cell.strip(" %")) for cell in table.splitlines()[3].split("|")[5:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_the_largest_batch_follows_from_shapes() -> None:
    """Nothing as large is allocated: the paper's network alone has 375 M parameters of 20 bytes each."""
    record = next(capacity(CPU, 0))
    assert record["fixed_mib"] * 2**20 > 20 * 375e6
    whole = (record["fixed_mib"] + record["largest_batch"] * record["kept_mib_per_image"]) * 2**20
    assert whole == pytest.approx(80e9, rel=0.01)
    assert 50 < record["largest_batch"] < 500
