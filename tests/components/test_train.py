"""The training step of the pipeline, from staged data to a published model."""

import contextlib
import csv
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import PROJECT, RecordingRun, make_params, read_json, workplace

from components import children
from components.params import load_params
from components.training import train as component
from components.training.train import LOGS, MODELS, STAGED, STATE, pick_device, train
from invfusion.data import StagedDataset
from invfusion.degradations import FAMILIES, Mixture
from invfusion.errors import CheckpointError, ConfigError, DataError, InvFusionError, NonFiniteError
from invfusion.gaussian import GaussianPrior
from invfusion.models import Denoiser, build_denoiser, load_denoiser, save_denoiser
from invfusion.models.activations import GIB, TRAINING_BYTES
from invfusion.training.lock import exclusive


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[RecordingRun]]:
    with workplace(tmp_path) as runs:
        yield runs


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_log(name: str) -> list[dict[str, str]]:
    with (LOGS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("variant", ["unconditional", "palette", "invfusion", "invfusion_g", "indi"])
def test_it_publishes_a_model_with_its_facts(runs: list[RecordingRun], variant: Any) -> None:
    assert train(make_params(), variant) == MODELS / variant
    architecture = {"indi": "unconditional", "invfusion_g": "invfusion"}.get(variant, variant)
    model = load_denoiser(MODELS / variant)
    assert model.config.variant == architecture
    assert (model.prior is not None) == (variant == "invfusion_g")
    facts = read_json(MODELS / variant / "manifest.json")
    assert facts["nimg"] == 48
    assert (facts["degradation"] is None) == (variant == "unconditional")
    assert facts["loss"]["kind"] == ("indi" if variant == "indi" else "diffusion")
    assert {"git_revision", "packages", "data_digest", "fingerprint", "noise", "seed"} <= facts.keys()
    assert [int(row["nimg"]) for row in read_log(variant)] == [16, 32, 48]


def test_models_are_trained_on_the_published_codes_operators(runs: list[RecordingRun]) -> None:
    members = tuple(FAMILIES[kind](law="official") for kind in ("strided_motion_blur", "patch_inpainting"))
    params = make_params().model_copy(update={"degradation": Mixture(members=members)})
    train(params, "invfusion")
    facts = read_json(MODELS / "invfusion" / "manifest.json")
    assert facts["nimg"] == 48
    assert [member["law"] for member in facts["degradation"]["members"]] == ["official"] * 2
    assert all(math.isfinite(float(row["loss"])) for row in read_log("invfusion"))


def test_a_prior_of_other_images_is_refused(runs: list[RecordingRun]) -> None:
    GaussianPrior.fit(torch.rand(9, 3, 8, 8), data="others").save(STAGED / "prior.safetensors")
    with pytest.raises(ConfigError, match="fitted to other images"):
        train(make_params(), "invfusion_g")


def test_the_tracker_hears_of_losses_and_sees_grids(runs: list[RecordingRun]) -> None:
    train(make_params(), "invfusion")
    (run,) = runs
    assert [nimg for nimg, _ in run.metrics] == [16, 32, 48]
    assert {"loss", "lr", "grad_norm", "images_per_second", "weighted_mse"} <= run.metrics[0][1].keys()
    ((name, nimg, picture),) = run.images
    assert (name, nimg) == ("samples", 48)
    assert picture.shape == (3 * 8 * 4, 8 * 8 * 4, 3)
    assert run.status == "FINISHED"


def test_a_second_call_changes_nothing(runs: list[RecordingRun]) -> None:
    train(make_params(), "palette")
    before = content(MODELS / "palette")
    train(make_params(), "palette")
    assert content(MODELS / "palette") == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_a_checkpoint_and_it_continues(
    runs: list[RecordingRun], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RecordingRun, "log_metrics", interrupt)
        with pytest.raises(SystemExit) as stopped:
            train(make_params(checkpoint_images=1000), "palette")
    assert stopped.value.code == code
    assert runs[0].status == "ENDED EARLY"
    assert (STATE / "palette" / "checkpoint-000000000024").is_dir()
    assert not MODELS.exists()
    train(make_params(), "palette")
    interrupted, rows = content(MODELS / "palette"), read_log("palette")
    shutil.rmtree(STATE)
    train(make_params(), "palette")
    assert content(MODELS / "palette") == interrupted
    assert read_log("palette") == rows


def test_signal_handlers_are_put_back(runs: list[RecordingRun]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(make_params(images=8), "palette")
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_parameters_start_afresh(runs: list[RecordingRun]) -> None:
    train(make_params(), "palette")
    first = content(MODELS / "palette")
    train(make_params(lr=1e-4), "palette")
    assert content(MODELS / "palette") != first
    train(make_params(), "palette")
    assert content(MODELS / "palette") == first


def test_a_budget_for_activations_changes_no_weight(runs: list[RecordingRun], caplog: pytest.LogCaptureFixture) -> None:
    params = make_params()
    limited = params.model_copy(update={"runtime": params.runtime.model_copy(update={"activation_budget": 1e-4})})
    before = content(train(params, "invfusion"))["model.safetensors"]
    shutil.rmtree(MODELS)
    shutil.rmtree(STATE)
    with caplog.at_level(logging.INFO):
        train(limited, "invfusion")
    assert "computed again in the backward pass" in caplog.text
    assert content(MODELS / "invfusion")["model.safetensors"] == before


def test_a_gpu_keeps_what_is_free_there_beside_weights_and_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 80 * GIB))
    denoiser, runtime = build_denoiser("digits16"), make_params().runtime
    weights = TRAINING_BYTES * sum(p.numel() for p in denoiser.parameters())
    assert runtime.activation_budget == "auto"
    budget = component._activation_budget(denoiser, runtime, torch.device("cuda"))
    assert budget == pytest.approx(0.9 * 10 * GIB - weights)
    assert component._activation_budget(denoiser, runtime, torch.device("cpu")) == math.inf
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert component._activation_budget(denoiser, runtime, torch.device("cuda")) < budget, "buckets of gradients"


def test_other_code_starts_afresh(runs: list[RecordingRun], monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_params(images=16), "palette")
    monkeypatch.setattr(component, "code_digest", lambda *_: "changed")
    train(make_params(images=16), "palette")
    assert [len(run.metrics) for run in runs] == [1, 1]


def test_another_processor_s_fresh_weights_make_the_same_model(runs: list[RecordingRun]) -> None:
    params, dataset = make_params(), StagedDataset(STAGED, "train")

    def fingerprint(name: str, network: Denoiser) -> Any:
        return component.facts_of(params, name, network, dataset)["fingerprint"]

    def nudged(network: Denoiser) -> Denoiser:
        with torch.no_grad():
            next(network.net.parameters()).add_(1e-6)
        return network

    fresh = component.network(params, "invfusion_g")
    assert fingerprint("invfusion_g", nudged(component.network(params, "invfusion_g"))) == fingerprint(
        "invfusion_g", fresh
    )
    train(params, "invfusion")
    before = {name: fingerprint(name, component.network(params, name)) for name in ("mmse", "nppc")}
    assert fingerprint("nppc", nudged(component.network(params, "nppc"))) == before["nppc"], "its directions are fresh"
    start = load_denoiser(MODELS / "invfusion")
    save_denoiser(nudged(start), MODELS / "invfusion", read_json(MODELS / "invfusion" / "manifest.json"))
    for name, known in before.items():
        assert fingerprint(name, component.network(params, name)) != known, "what it starts from is part of it"
    assert fresh.prior is not None
    other = GaussianPrior.from_tensors({**fresh.prior.tensors(), "mean": fresh.prior.mean + 1e-6}, fresh.prior.data)
    changed = component.network(params, "invfusion_g", prior=other)
    assert fingerprint("invfusion_g", changed) != fingerprint("invfusion_g", fresh)


def test_how_often_something_is_logged_defines_nothing(runs: list[RecordingRun]) -> None:
    train(make_params(), "palette")
    first = content(MODELS / "palette")
    train(make_params(log_images=8, checkpoint_images=8, sample_grid_images=1000), "palette")
    assert content(MODELS / "palette") == first
    assert len(runs[1].metrics) == 0, "nothing was left to train"


def test_a_second_trainer_is_refused(runs: list[RecordingRun]) -> None:
    with exclusive(STATE / "palette"), pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
        train(make_params(), "palette")


def test_training_without_data(runs: list[RecordingRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "STAGED", Path("nowhere"))
    with pytest.raises(DataError, match="stage step"):
        train(make_params(), "palette")


def test_a_learning_rate_that_is_too_high_is_reported(runs: list[RecordingRun]) -> None:
    with pytest.raises(NonFiniteError, match=r"after \d+ images .*train-\d\d.*learning rate"):
        train(make_params(lr=1e30), "palette")
    assert runs[0].status == "ENDED EARLY"


def test_the_validation_images_may_be_missing(runs: list[RecordingRun]) -> None:
    path = component.STAGED / "manifest.json"
    manifest = read_json(path)
    del manifest["shards"]["val"]
    path.write_text(json.dumps(manifest))
    train(make_params(), "palette")
    assert len(runs[0].images) == 1


class TestDevice:
    def test_auto_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert pick_device("auto") == torch.device("cpu")

    def test_each_process_has_its_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 3)


class TestLaunch:
    @pytest.fixture
    def child(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Instead of torchrun, a process that does what `code` says."""
        commands: list[list[str]] = []
        popen = subprocess.Popen

        def start(command: list[str], **options: Any) -> Any:
            if "torch.distributed.run" not in command:
                return popen(command, **options)
            commands.append(command)
            return popen([sys.executable, "-c", self.code], **options)

        monkeypatch.setattr(children.subprocess, "Popen", start)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        return commands

    code = ""

    def params(self) -> Any:
        params = make_params()
        return params.model_copy(update={"runtime": params.runtime.model_copy(update={"processes": 2})})

    def test_the_processes_get_these_very_parameters(self, runs: list[RecordingRun], child: list[list[str]]) -> None:
        params = self.params()
        assert train(params, "palette") == MODELS / "palette"
        ((*_, settings),) = child
        assert "--nproc-per-node=2" in child[0]
        assert load_params(settings) == params

    def test_a_failure_is_reported(
        self, runs: list[RecordingRun], child: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TestLaunch, "code", "raise SystemExit(3)")
        with pytest.raises(InvFusionError, match=r"components\.training\.train stopped with exit code 3"):
            train(self.params(), "palette")

    @pytest.mark.parametrize("when", ["as it starts", "while it runs"])
    def test_signals_are_passed_on_once(self, when: str) -> None:
        stop, received = component._Stop(), list[int]()
        if when == "as it starts":
            stop.ask(signal.SIGTERM)
        stop.pass_to(received.append)
        if when == "while it runs":
            stop.ask(signal.SIGTERM)
        assert received == [signal.SIGTERM]

    def test_a_signal_before_the_child_is_there_reaches_it(
        self, runs: list[RecordingRun], child: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = children.child

        @contextlib.contextmanager
        def late(*arguments: Any, **options: Any) -> Iterator[Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            with started(*arguments, **options) as process:
                yield process

        monkeypatch.setattr(component, "child", late)
        monkeypatch.setattr(TestLaunch, "code", "import time; time.sleep(30)")
        with pytest.raises(SystemExit) as stopped:
            train(self.params(), "palette")
        assert stopped.value.code == 143

    def test_signals_are_passed_on(
        self, runs: list[RecordingRun], child: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits = (
            "import os, signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (open('received', 'w').close(), sys.exit(1)))\n"
            "os.kill(os.getppid(), signal.SIGTERM)\n"
            "time.sleep(30)\n"
        )
        monkeypatch.setattr(TestLaunch, "code", waits)
        with pytest.raises(SystemExit) as stopped:
            train(self.params(), "palette")
        assert stopped.value.code == 143
        assert Path("received").exists()


def test_the_command_line_reports_errors_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "components.training.train", "--model", "palette", "--params", "missing.yaml"]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("error: missing.yaml: no such file")
    assert "Traceback" not in ended.stderr
