# The targets for using the pipeline; each is a thin call of a module. `make help` lists them.
PROFILE ?= demo
RUN ?= $(PROFILE)
GPUS ?=
NODES ?= 1
ARGS ?=
KEY ?=
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Quoted for Hydra, which reads 1.10 as 1.1 and 2026_11_29 as 20261129, and not a=1/model; both may already be quoted.
run_override = 'run="$(subst ",,$(1))"'
model_override = 'evaluation.models=[$(if $(1),"$(subst ',,$(subst ",,$(1)))")]'
OVERRIDES = profile=$(PROFILE) $(call run_override,$(RUN)) launch.nodes=$(NODES) $(if $(GPUS),launch.processes=$(GPUS)) $(ARGS)
BENCHMARKS := data evaluation exports gpu heads init merging mining training waiting
STAGES := base benchmarks data init symmetric asymmetric joint merge heads export evaluate report

.DEFAULT_GOAL := help

# Also where a container's environment forbids it, modules are compiled once: without that imports take twice as long.
export PYTHONDONTWRITEBYTECODE :=

.NOTPARALLEL:  # a stage reads the artefacts of those given before it
.PHONY: help setup demo reproduce $(STAGES) check lock licences plan settings sweep calibrate publish bench test test-slow torture lint

help: ## Show this list
	@grep -hE '^[a-z-]+( [a-z-]+)*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'
	@echo "  make <stage>                One stage of: $(STAGES)"
	@echo "Variables: PROFILE=$(PROFILE) RUN=$(RUN) GPUS=<ranks> NODES=$(NODES) ARGS='<Hydra overrides>'"

setup: $(READY) ## Make .venv from requirements.lock
	@$(BIN)/python -m pipeline.core.machine

# $(READY) is a copy of the installed lock: changed contents reinstall, a changed date does not.
ifneq ($(shell cmp -s requirements.lock $(READY) || echo differs),)
.PHONY: $(READY)
endif

# torch brings its own (CPU or GPU) libraries; all other packages are exactly those of the lock.
$(READY):
	@echo "Installing the packages of requirements.lock into $(VENV), once ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make $(MAKECMDGOALS) PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	@cp requirements.lock $@

demo: reproduce ## The whole chain on a small model and a dictionary, in minutes on two CPU cores

reproduce: $(READY) ## The whole chain of PROFILE
	@$(BIN)/python -m pipeline.run $(OVERRIDES)

$(STAGES): $(READY)
	@$(BIN)/python -m pipeline.run stages=[$@] $(OVERRIDES)

check: $(READY) ## Check every source, disk and devices before a run; TRIAL=1: 20 training steps instead
	@$(BIN)/python -m pipeline.$(if $(filter-out 0,$(TRIAL)),trial,check) $(OVERRIDES)

lock: $(READY) ## Pin what PROFILE reads from the Hub to today's commits: configs/source/revisions.lock
	@$(BIN)/python -m pipeline.lock $(OVERRIDES)

licences: $(READY) ## Licences of all installed packages: runs/licences.csv
	@mkdir -p runs
	@$(BIN)/python -m piplicenses --format=csv --with-urls --output-file=runs/licences.csv
	@$(BIN)/python -m piplicenses --summary

settings: $(READY) ## Every setting with type, default, bounds and meaning: make settings KEY=data.mining
	@$(BIN)/python -m pipeline.settings $(foreach key,$(KEY),'$(key)') $(OVERRIDES)

plan: $(READY) ## The cost of training and scoring: batches, tokens, padding, FLOPs, memory, hours
	@$(BIN)/python -m pipeline.plan $(OVERRIDES)

sweep: $(READY) ## A sweep from configs/sweep: make sweep SWEEP=merge_weights
	@$(if $(SWEEP),,$(error which one? make sweep SWEEP=<one of: $(basename $(notdir $(wildcard configs/sweep/*.yaml)))>))
	@$(if $(filter-out 1,$(NODES)),$(error a sweep runs on one machine: leave NODES out))
	@$(BIN)/python -m pipeline.run --multirun sweep=$(SWEEP) profile=$(PROFILE) $(if $(GPUS),launch.processes=$(GPUS)) $(if $(filter-out file,$(origin RUN)),$(call run_override,$(RUN)-$${swept:})) $(ARGS)

ifeq ($(origin RUN),file)  # RUN is set neither here nor in the environment
calibrate: RUN = calibration
endif
calibrate: $(READY) ## Score a published model and compare with its published figures: make calibrate MODEL=<hub id or folder>
	@$(BIN)/python -m pipeline.run stages=[evaluate,calibrate] evaluation=calibration $(call model_override,$(MODEL)) $(OVERRIDES)

publish: $(READY) ## The merged model's folder for the Hub: make publish REPO=<id>; uploads with ARGS=evaluation.publish.dry_run=false
	@$(BIN)/python -m pipeline.run stages=[publish] $(OVERRIDES) $(if $(REPO),evaluation.publish.repo=$(REPO))

bench: $(READY) ## Speed compared with other libraries: make bench NAME=init
	@$(if $(filter $(BENCHMARKS),$(NAME)),,$(error which one? make bench NAME=<one of: $(BENCHMARKS)>))
	@$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

test: $(READY) ## The fast tests, with the whole chain on profile tiny
	@$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(READY) ## The slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

torture: $(READY) ## Kill every stage of profile tiny at random moments, then full disks and competing runs; 20 minutes
	@$(BIN)/python -m tests.reliability.torture $(ARGS)
	@$(BIN)/python -m pytest -m slow tests/reliability

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
