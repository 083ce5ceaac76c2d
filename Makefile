# Everything a developer runs. Prerequisites: Python >= 3.11 with venv, make, git; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For two cores: the tests of the operator wait for servers much of their time.
WORKERS ?= 3
# One thread a process: tests run side by side, and sums of floats then have one order. And whatever the environment
# says, what is compiled is kept: tests start hundreds of programs.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# tests/conftest.py says which tests go together, and in which order.
PARALLEL := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# Of the images; their tag is the version.
IMAGES ?= ghcr.io/modelchain
BUILDER ?= $(shell command -v docker || command -v buildah)
BUILD_ARGS ?=

# What shows the API server's and the training operator's part in a chain.
VERSION_TESTS := $(addprefix tests/operator/test_,end_to_end.py crd_on_server.py life.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo test tests test-all test-fast test-oldest test-newest control-plane cluster e2e gpu-kit images version release-check lint format crds chart reference goldens docs \
  timm-models open-clip-towers growth-figures constraints clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed  ## Make .venv with everything for development

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"ModelChain needs Python 3.11 or newer, this is {v.major}.{v.minor}: make setup PYTHON=python3.12")'
	@echo "Setting up $(VENV) (about 8 GB: torch from the package index carries CUDA)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt --compile-bytecode --editable '.[dev]'
	@touch $@

demo: setup  ## Train a chain of three models on real images on the CPU, in minutes, and report on it
	$(BIN)/python examples/prepare_digits.py --output examples/data/digits
	$(BIN)/modelchain run examples/digits.yaml
	$(BIN)/modelchain report examples/digits.yaml

test: setup control-plane  ## Run the tests
	@$(MAKE) --no-print-directory --jobs 2 lint tests TESTS='not long'

test-all: setup control-plane  ## Run all tests, those that take minutes as well
	@$(MAKE) --no-print-directory --jobs 2 lint tests

tests: setup
	$(PYTEST) $(PARALLEL) -m "$(TESTS)"

test-oldest: setup  ## Run the operator's main tests on the oldest Kubernetes and training operator, which it builds once
test-newest: setup  ## Run the operator's main tests on the newest Kubernetes, which it builds once
test-oldest test-newest:
	MODELCHAIN_TEST_VERSIONS=$(@:test-%=%) $(BIN)/python -m tests.control_plane.binaries etcd kube-apiserver kube-controller-manager training-operator
	MODELCHAIN_TEST_VERSIONS=$(@:test-%=%) $(PYTEST) $(VERSION_TESTS)

control-plane: setup  ## Build the Kubernetes control plane that tests run on (once, about 15 minutes)
	@$(BIN)/python -m tests.control_plane.binaries

cluster: control-plane  ## Leave a control plane and an S3 server running, to try the operator by hand
	@$(BIN)/python -m tests.control_plane

test-fast: setup  ## Run the tests that take no more than a few seconds each
	$(PYTEST) $(PARALLEL) -m 'not slow and not long' -q

e2e: setup  ## Install the chart on the cluster of KUBECONFIG and train a chain there; `make e2e` says what it needs
	@$(BIN)/python -m tests.e2e

gpu-kit: setup  ## Pack what a bare machine with a GPU needs to be measured, into .gpu-kit; docs/benchmarks.md
	$(BIN)/python benchmarks/gpu/pack.py --output .gpu-kit

images:  ## Build the images of operator and trainer with docker or buildah; docs/container-images.md
	@test -n "$(BUILDER)" || { echo "make images needs docker or buildah; name another with BUILDER=podman" >&2; exit 1; }
	@set -e; version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' modelchain/__init__.py); \
	for image in operator trainer; do \
	  $(BUILDER) build --target $$image --tag $(IMAGES)/modelchain-$$image:$$version $(BUILD_ARGS) \
	    --build-arg VERSION=$$version --build-arg REVISION=$$(git rev-parse HEAD) .; \
	done

version: setup  ## Write the version of modelchain/__init__.py wherever it is repeated
	$(BIN)/python -m tools.release version
	@$(MAKE) --no-print-directory crds

release-check: setup  ## Say what stands in the way of a release
	@$(BIN)/python -m tools.release check

lint: setup  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

format: setup  ## Lay the code out
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

crds: setup  ## Generate the CRD, in crds/ and in the chart, from the types in modelchain/
	$(BIN)/python -m modelchain.crd > crds/.generated && mv crds/.generated crds/modelchain.dev_modelchains.yaml
	$(BIN)/python -m modelchain.crd --chart > crds/.generated && mv crds/.generated charts/modelchain/templates/crd.yaml

goldens: setup  ## Write anew what tests pin of job manifests and of growth; read the difference before committing it
	$(BIN)/python -m tests.operator.jobs.golden
	$(BIN)/python -m tests.trainer.expansion.golden

chart: setup  ## Generate the chart's schema, README and dashboard, and what tests pin of it; read the difference before committing it
	$(BIN)/python -m charts.generate charts/modelchain
	$(BIN)/python -m charts.dashboard
	$(BIN)/python -m tests.monitoring.reference
	$(BIN)/python -m tests.chart.golden

reference: setup  ## Generate docs/reference/ from the types and the argument parsers
	$(BIN)/python docs/generate_reference.py

open-clip-towers: setup  ## Count anew what image towers of open_clip cost, into modelchain/open_clip_towers.json
	$(BIN)/python -m tools.open_clip_towers

timm-models: setup  ## Count anew what timm's models cost, into modelchain/timm_models.json
	$(BIN)/python tools/timm_models.py

growth-figures: setup  ## Measure anew how near growth is that is not exact, into modelchain/growth_figures.json
	$(BIN)/python -m tools.growth_figures

docs: setup  ## Serve the documentation at http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --strict

constraints: setup  ## Resolve all dependencies anew into constraints.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --no-header --no-emit-index-url --no-annotate --upgrade --output-file constraints.txt

clean:  ## Remove what `make demo` made (not .venv)
	rm -rf examples/data examples/runs
