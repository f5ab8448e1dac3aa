# Everything a developer types. Each target sets up what it needs; a second call does not do it again.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
# MONAI Label's environment: it needs numpy 1.26 and torchvision, which the other cannot have (docs/serving.md).
LABEL_VENV := .venv-label
LABEL_PYTHON := $(LABEL_VENV)/bin/python
LABEL_STAMP := $(LABEL_VENV)/.stamp
LABEL_APP := bundle/label_app
# `pip check` of later versions stops at the wheel tag of itk 5.4 (docs/decisions.md).
PIP_VERSION := 24.1.2

# The Python that makes the environment: python3.11, or else a python3 that is new enough; PY=... names another.
RECENT := 'import sys; sys.exit(sys.version_info < (3, 11))'
PY ?= $(shell for p in python3.11 python3; do $$p -c $(RECENT) 2>/dev/null && { echo $$p; break; }; done)

# Threads that wait give up their core at once. By default they spin, which costs others on the machine, and the
# threads that read slides beside them, more than it gains (docs/benchmarks.md).
export OMP_WAIT_POLICY ?= PASSIVE

# The folders to type-check, of those that hold Python.
TYPED = $(foreach d,scripts bundle,$(if $(shell find $(d) -name '*.py' 2>/dev/null),$(d)))

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow coverage lint format demo compare-demo bench bench-comparison reliability label-env test-label test-encoders clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with every dependency at its pinned version, and say which GPUs torch sees
	@$(PYTHON) -m scripts.core.devices

PYTEST = $(PYTHON) -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: $(STAMP) ## run the tests but the slowest; ARGS="-k grid" adds options of pytest
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: $(STAMP) ## run the slowest tests: killed runs, several ranks, whole comparisons
	$(PYTEST) -m slow $(ARGS)

# Apart from `test`: tracing every line makes the tests a fifth slower.
coverage: $(STAMP) ## run all tests, and list the lines that none of them reaches
	$(PYTEST) --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(STAMP) ## check style, formatting, types, and that imports run one way
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy $(TYPED)
	$(VENV)/bin/lint-imports

format: $(STAMP) ## format the code and mend what ruff can mend
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .

demo: $(STAMP) ## make synthetic slides, train on them, show the result
	$(PYTHON) -m scripts.demo.run $(ARGS)

compare-demo: $(STAMP) ## compare the methods on synthetic slides: about twenty minutes
	$(PYTHON) -m scripts.demo.compare $(ARGS)

bench-comparison: $(STAMP) ## measure how much of a training is reading, after `make compare-demo`
	$(PYTHON) -m tests.benchmarks.comparison $(ARGS)

bench: $(STAMP) ## measure extraction, memory, ranks and more; ARGS="memory ranks" for a part, ARGS=peers PEERS=FOLDER beside other tools
	$(PYTHON) -m tests.benchmarks $(ARGS) $(if $(PEERS),--peers="$(PEERS)")

reliability: $(STAMP) ## kill runs, fill disks, damage slides, count what comes of it; ARGS="kills" for a part
	$(PYTHON) -m tests.reliability $(ARGS)

label-env: $(LABEL_STAMP) ## make .venv-label with MONAI Label and all that the bundle imports: 8 GB
	@$(LABEL_PYTHON) -m scripts.core.devices

test-label: $(LABEL_STAMP) ## run the tests against a real MONAI Label server; ARGS adds options of pytest
	$(LABEL_PYTHON) -m pytest -c tests/label/pytest.ini tests/label $(ARGS)

# timm needs a torchvision that fits torch, as that environment has.
test-encoders: $(LABEL_STAMP) ## run the tests of encoders that timm builds, at their real sizes
	$(LABEL_PYTHON) -m pytest -c tests/label/pytest.ini tests/encoders/test_pathology.py tests/encoders/test_timm_models.py $(ARGS)

clean: ## remove build output and caches; data/, models/, output/, .venv and .venv-label stay
	rm -rf build dist *.egg-info htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./$(LABEL_VENV) -prune -o -path ./data -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# cuCIM comes last and apart: alone where there is no NVIDIA GPU, with CUDA where there is one.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PYTHON) || $(or $(PY),false) -c $(RECENT) 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; $(or $(PY),what python3.11 and python3 start) is not." \
			"Install it, or name it: make setup PY=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing the pinned dependencies into $(VENV): minutes the first time, seconds after that"
	test -x $(PYTHON) || $(PY) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet pip==$(PIP_VERSION)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt '.[dev]'
	@set -e; case "$$(uname -s) $$(uname -m)" in \
		"Linux x86_64" | "Linux aarch64") \
			if command -v nvidia-smi >/dev/null; then \
				echo "NVIDIA GPU found: installing cuCIM with CUDA"; \
				$(PYTHON) -m pip install --quiet --constraint constraints.txt '.[gpu]'; \
			else \
				echo "No NVIDIA GPU found: installing cuCIM alone"; \
				$(PYTHON) -m pip install --quiet --constraint constraints.txt --no-deps cucim-cu13; \
			fi ;; \
		*) echo "cuCIM exists for Linux only: slides are read with OpenSlide" ;; \
	esac
	@touch $@

$(LABEL_STAMP): $(LABEL_APP)/requirements.txt $(LABEL_APP)/constraints.txt
	@test -x $(LABEL_PYTHON) || $(or $(PY),false) -c $(RECENT) 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; $(or $(PY),what python3.11 and python3 start) is not." \
			"Install it, or name it: make label-env PY=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing MONAI Label into $(LABEL_VENV): 8 GB, three minutes the first time, seconds after that"
	test -x $(LABEL_PYTHON) || $(PY) -m venv $(LABEL_VENV)
	$(LABEL_PYTHON) -m pip install --quiet pip==$(PIP_VERSION)
	$(LABEL_PYTHON) -m pip install --quiet --constraint $(LABEL_APP)/constraints.txt \
		--requirement $(LABEL_APP)/requirements.txt
	@set -e; case "$$(uname -s) $$(uname -m)" in \
		"Linux x86_64" | "Linux aarch64") \
			if command -v nvidia-smi >/dev/null; then \
				echo "NVIDIA GPU found: installing cuCIM with CUDA"; \
				$(LABEL_PYTHON) -m pip install --quiet --constraint $(LABEL_APP)/constraints.txt cucim-cu13; \
			else \
				echo "No NVIDIA GPU found: installing cuCIM alone"; \
				$(LABEL_PYTHON) -m pip install --quiet --constraint $(LABEL_APP)/constraints.txt --no-deps cucim-cu13; \
			fi ;; \
		*) echo "cuCIM exists for Linux only: slides are read with OpenSlide" ;; \
	esac
	@touch $@
