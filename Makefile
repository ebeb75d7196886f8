# Every target sets up what it needs: `make run` works on a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-stamp
ARGS   ?=
SECONDS ?= 60

.PHONY: setup run test bench fuzz lint crds lock clean

setup: $(STAMP)

# torch first and alone, with pip: that is what finds a CPU build where one is configured. Then the
# full lock, in which nothing is left to resolve.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(STAMP)

run: setup
	$(BIN)/midwatch run $(if $(ARGS),$(ARGS),--demo)

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 15

# Seeded nights that nobody has tried yet; a failing seed is printed with the command to replay it.
fuzz: setup
	$(BIN)/python -m midwatch.tests.sim.replay --seconds $(SECONDS)

bench: setup
	$(BIN)/python -m tests.bench $(ARGS)

lint: setup build/typing/midwatch
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The custom resource definitions, from the models; a test holds the files to them.
crds: setup
	$(BIN)/python -m midwatch.operator.k8s.crd

# mypy finds the package by its name through this link, since the repository root is the package.
build/typing/midwatch:
	mkdir -p build/typing && ln -sfn ../.. build/typing/midwatch

lock:
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
		--no-emit-package torch --no-header --no-annotate -o requirements.lock

clean:
	rm -rf build $(VENV)
