# `make repro` and `make test` set everything up first. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# DVC's stages say `python`: it must be the environment's.
export PATH := $(abspath $(BIN)):$(PATH)
# Else each of many processes compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# What is unpickled could run commands: MLflow does not, and DVC does it from a folder of this project alone.
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION ?= false
export DVC_SITE_CACHE_DIR ?= $(abspath .dvc/tmp/site)
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Spinning threads stall where another process wants a core.
export OMP_WAIT_POLICY ?= PASSIVE
export PREFECT_HOME ?= $(abspath .prefect)
# TRAIN=0: tables with the models at hand.
SWITCH := $(if $(PROFILE),--profile $(PROFILE)) $(if $(DISCARD),--discard-edits)
EXPERIMENT := $(SWITCH) $(if $(filter 0,$(TRAIN)),--no-train) $(if $(SEEDS),--seeds $(SEEDS))

# Modules are compiled as they are first imported, a tenth of those that are installed. setuptools is here already.
INSTALL := $(BIN)/python -m pip install -q --no-compile --no-build-isolation -c constraints.txt

.PHONY: help setup develop repro oracle table figure tune demo test check faults bench image up down dry-run clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(BIN)/.installed  ## make the environment in .venv: what runs need, and no more

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools wheel
	$(INSTALL) -e '.[pipeline]'
	@# Kernels of neighbourhood attention, where there is a GPU and a wheel that fits; else torch's own attention.
	@wheel=$$($(BIN)/python -c 'from invfusion.models.natten_wheel import main; main()') && { test -z "$$wheel" || $(INSTALL) --no-deps $$wheel; } \
		|| echo "NATTEN could not be installed; attention falls back to torch's own kernels"
	@touch $@

develop: $(BIN)/.developing  ## add to it what tests and checks need

$(BIN)/.developing: $(BIN)/.installed
	$(INSTALL) -e '.[pipeline,dev]'
	@# Without a GPU, NATTEN's source: it has no kernels, and gives a test the values to expect of them.
	@$(BIN)/python -c 'import natten' 2>/dev/null || $(INSTALL) --no-deps --no-cache-dir natten \
		|| echo "NATTEN could not be installed; a test of its values is skipped"
	@touch $@

repro: setup  ## run what is stale, end to end; PROFILE=ffhq64 switches the experiment (DISCARD=1: edits of params.yaml are lost)
	@$(BIN)/python -m flows.reproduce $(SWITCH)

oracle: setup  ## judge samplers and small models against exact posteriors (hours: the authors' step counts); see docs/oracle.md
	@$(BIN)/python -m flows.reproduce oracle

table: setup  ## make a table of the paper: make table T=3; all of them and the figures without T; SEEDS=3 tells the spread; PROFILE= as above
	@$(BIN)/python -m flows.table $(if $(T),--name table_$(shell printf %02d $(T))) $(EXPERIMENT)

figure: setup  ## make a figure of the paper: make figure F=4
	@test -n "$(F)" || { echo "Which figure? make figure F=4; there are: $(patsubst experiments/figure_%.yaml,%,$(wildcard experiments/figure_*.yaml))"; exit 2; }
	@$(BIN)/python -m flows.table --name figure_$(shell printf %02d $(F)) $(EXPERIMENT)

tune: setup  ## find step sizes on the validation split: make tune METHODS="DPS DAPS" T=9 (without T: of the evaluation); writes reports/tuned.yaml
	@$(BIN)/python -m components.evaluation.tune $(METHODS) $(if $(T),--table table_$(shell printf %02d $(T)))

demo: setup  ## open a page that restores pictures
	@$(BIN)/invfusion serve --open

test: develop  ## run the tests
	@$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

faults: develop  ## kill, cut and damage everything, often (about half an hour); writes docs/faults.md
	@INVFUSION_FAULTS=full $(BIN)/python -m pytest -q tests/faults

check: develop  ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Nothing is beside it, and threads that share a process are compared at their best.
bench: export OMP_WAIT_POLICY = ACTIVE
bench: setup  ## measure training, sampling and their parts; brings the tables of docs/performance.md up to date
	@$(BIN)/python -m benchmarks $(BENCH)

dry-run: setup  ## try a profile, and say what each stage takes: make dry-run PROFILE=ffhq64 GPU=a40 (without GPU: here; TABLES=1: each table)
	@$(BIN)/python -m components.training.dry_run $(if $(PROFILE),--profile $(PROFILE)) $(if $(GPU),--gpu $(GPU)) $(if $(TABLES),--tables)

image:  ## build the container image `invfusion`; DEVICE=cuda: for NVIDIA GPUs
	docker build -t $(if $(filter cuda,$(DEVICE)),invfusion:cuda,invfusion) --build-arg DEVICE=$(or $(DEVICE),cpu) .

up: setup  ## start Prefect, MLflow and this machine's worker in the background, and say where
	@$(BIN)/python -m flows.services up

down: setup  ## end exactly what `make up` started; running jobs write checkpoints first
	@$(BIN)/python -m flows.services down

clean:  ## remove the environment and what the tools cached
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
