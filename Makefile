# Everything a contributor runs. `make` alone lists the targets; each one sets up what it needs.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# What it holds: the extras of the package, at the versions of this file.
EXTRAS      := demo,test,lint,docs
CONSTRAINTS := constraints.txt
# `make test PYTEST="-x -k plan"` narrows or widens the run.
PYTEST ?=

# torch is installed by its exact version, in a step of its own: a range would let pip take a newer
# build with several gigabytes of GPU libraries on machines that have no GPU. So is triton, without
# what it depends on: builds of torch for GPUs ask for a release of their own.
pinned = $(shell sed -n 's/^\($(1)==[^ ;]*\).*/\1/p' $(CONSTRAINTS))
TORCH  := $(call pinned,torch)
TRITON := $(call pinned,triton)

# The environment is ready when the stamp of this folder, these requirements and this version exists.
KEY   := $(shell { pwd; cat pyproject.toml $(CONSTRAINTS); \
           grep __version__ src/sample_attention/__init__.py 2>/dev/null; } | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help setup test test-versions test-gpu sanitize-gpu coverage lint types layers demo zoo bench-cpu \
        bench-cpu-busy bench-gpu bench-regression docs dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install the package with all that development needs

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "python3 could not create $(VENV) (on Debian: apt install python3-venv)"; exit 1; }
	@echo "== setup: $(TORCH)"
	@$(PY) -m pip install --quiet 'pip>=23' '$(TORCH)'
	@echo "== setup: sample-attention[$(EXTRAS)]"
	@grep -v '^triton==' $(CONSTRAINTS) > $(VENV)/constraints.txt
	@$(PY) -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[$(EXTRAS)]'
	@echo "== setup: $(TRITON)"
	@$(PY) -m pip install --quiet --no-deps '$(TRITON); platform_system == "Linux"'
	@rm -f $(VENV)/.ready-*
	@touch $@

INTERPRETED := tests/kernels/test_triton_interpreted.py tests/kernels/test_triton_select.py

test: setup ## all checks: style, types, layers, then every test and documentation block
	@$(MAKE) --no-print-directory lint types layers
	@echo "== kernels in the interpreter"
	@TRITON_INTERPRET=1 $(PY) -m pytest -n 2 $(INTERPRETED)
	@echo "== tests"
	@$(PY) -m pytest -m 'not gpu' $(PYTEST)

# `make test-versions VERSIONS=newest` runs one set.
VERSIONS ?= newest oldest

test-versions: ## the newest and oldest versions: adds to benchmarks/records/versions.jsonl
	@for set in $(VERSIONS); do \
	  $(MAKE) --no-print-directory setup VENV=.venv-$$set EXTRAS=demo,test \
	    CONSTRAINTS=constraints-$$set.txt && \
	  echo "== tests with the $$set versions" && \
	  .venv-$$set/bin/python benchmarks/versions.py $$set || exit 1; \
	done

test-gpu: setup ## the tests that need a GPU: adds to benchmarks/records/gpu_tests.jsonl
	@$(PY) -m pytest -m gpu --record benchmarks/records/gpu_tests.jsonl $(PYTEST)

sanitize-gpu: setup ## kernels under compute-sanitizer: reads, writes and races
	@for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PY) -m pytest tests/kernels/test_gpu_select.py -k equals_the_reference && \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PY) -m pytest tests/kernels/test_hopper.py -m gpu -k awkward || exit 1; \
	done

COVERAGE := $(PY) -m coverage run --append --source=src/sample_attention -m pytest

# Lines of Triton kernels count where the interpreter ran them, those of Gluon kernels where the
# emulator did: what compiled code does on a GPU is not in the figure.
coverage: setup ## the lines that tests run, on a CPU
	@$(PY) -m pip install --quiet 'coverage>=7.6'
	@rm -f .coverage
	@TRITON_INTERPRET=1 $(COVERAGE) $(INTERPRETED)
	@$(COVERAGE) -m 'not gpu' $(PYTEST)
	@$(PY) -m coverage report --skip-covered --sort=cover

lint: setup ## style and format
	@echo "== style"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup ## strict types
	@echo "== types"
	@$(PY) -m pyright

layers: setup ## import layers
	@echo "== layers"
	@$(VENV)/bin/lint-imports --no-cache --no-logo

demo: setup ## a real model on a real long prompt, dense and sparse: writes demo/report.*
	@$(VENV)/bin/sample-attention demo

# `make zoo ZOO="--append --only llama,qwen2"` runs some types.
ZOO ?=

zoo: setup ## every model type of transformers, tiny: writes benchmarks/records/architectures.jsonl
	@OMP_NUM_THREADS=1 $(PY) benchmarks/zoo.py $(ZOO)

CPU_RECORDS := benchmarks/records/cpu_attention.jsonl
BENCH_CPU   := $(VENV)/bin/sample-attention bench attention --device cpu --output $(CPU_RECORDS)
SMALL       := --input captured:smollm2-135m --layers
LARGER      := --input captured:qwen2.5-coder-0.5b --layers 3,9,15

bench-cpu: setup ## measure this machine: writes benchmarks/records/cpu_attention.jsonl
	@rm -f $(CPU_RECORDS)
	@echo "== short prompts, which the policy may run dense"
	@$(BENCH_CPU) $(SMALL) 20 --lengths 128,256,512,1024,2048,3072,4096,5120 --routed
	@$(BENCH_CPU) $(SMALL) 4,12,20,27 --lengths 6144 --routed
	@echo "== every preset"
	@$(BENCH_CPU) $(SMALL) 4,12,20,27 --lengths 8192 --preset default --preset pooled --preset paper \
	  --preset mlsys
	@$(BENCH_CPU) $(SMALL) 4,12,20,27 --lengths 8192 --coverage 0.93
	@echo "== longer prompts"
	@$(BENCH_CPU) $(LARGER) --lengths 16384,32768 --preset default --preset fast

bench-cpu-busy: setup ## the same beside other programs: writes benchmarks/records/cpu_busy.jsonl
	@$(PY) benchmarks/cpu_busy.py $(if $(COMPARE),--compare $(COMPARE))

GPU         ?= h100
GPU_RECORDS := benchmarks/records/$(GPU)
GPU_BENCH   := $(VENV)/bin/sample-attention bench
GPU_OUTPUT  := --device cuda --output $(GPU_RECORDS)
GPU_MODEL   := qwen2.5-coder-1.5b
CAPTURED    := $(GPU_BENCH) attention $(GPU_OUTPUT)_attention.jsonl --input captured:$(GPU_MODEL)
COVERAGES   := --coverage 0.95 --coverage 0.9
ONE_IN_32   := --preset pooled --config segment=4096 --config row_stride=32 --config pool=none
PROMPTS     := "--text prose --lengths 32768" "--text code --lengths 32768" \
               "--text code --lengths 131072 --yarn 4"

# Nothing is removed: of the same measurement the last record counts, and some are made elsewhere.
bench-gpu: setup ## measure an NVIDIA GPU, GPU=h100 or h200: adds to benchmarks/records/$(GPU)_*.jsonl
	@echo "== random lists at a density of 0.1"
	@for backend in triton hopper; do \
	  $(GPU_BENCH) attention $(GPU_OUTPUT)_attention.jsonl --lengths 8192,32768,131072 \
	    --backend $$backend || exit 1; \
	done
	@echo "== short prompts, which the policy may run dense"
	@$(CAPTURED) --layers 17 --lengths 1024,2048,4096,8192 --routed
	@echo "== real prompts"
	@for prompt in $(PROMPTS); do \
	  $(CAPTURED) --layers 3,10,17,24 $$prompt --preset default --preset pooled --preset paper \
	    $(COVERAGES) && \
	  $(CAPTURED) --layers 3,10,17,24 $$prompt --backend hopper $(COVERAGES) && \
	  $(CAPTURED) --layers 3,10,17,24 $$prompt $(ONE_IN_32) $(COVERAGES) --coverage 0.8 \
	    || exit 1; \
	done
	@echo "== kernels"
	@$(GPU_BENCH) kernels $(GPU_OUTPUT)_kernels.jsonl --preset default --preset pooled --preset paper
	@$(GPU_BENCH) kernels $(GPU_OUTPUT)_kernels.jsonl $(ONE_IN_32)
	@echo "== time to first token"
	@$(GPU_BENCH) ttft $(GPU_MODEL) $(GPU_OUTPUT)_ttft.jsonl --lengths 8192,16384,32768

# `make bench-regression AGAINST=HEAD~1` names the commit; without it, it is where this branch left main.
bench-regression: setup ## this tree beside another commit, AGAINST=COMMIT: prints a table
	@$(PY) benchmarks/regression.py $(if $(AGAINST),--against $(AGAINST))

docs: setup ## check the tables of the records, then build the documentation into site/
	@$(PY) benchmarks/pages/make.py --check
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

BUILD := build/tools/bin/python
TRIAL := build/trial/bin
TRY   := import torch; from sample_attention import attend, select; \
         q = torch.ones(1, 2, 300, 64); print(attend(q, q, q, select(q, q)).out.shape)

dist: ## build wheel and source archive into dist/, check them, and try the wheel by itself
	@rm -rf dist build
	@$(PYTHON) -m venv build/tools
	@$(BUILD) -m pip install --quiet 'build>=1.2' 'twine>=6.1'
	@$(BUILD) -m build
	@$(BUILD) -m twine check --strict dist/*
	@echo "== the wheel in an environment of its own"
	@$(PYTHON) -m venv build/trial
	@$(TRIAL)/python -m pip install --quiet '$(TORCH)' "$$(echo dist/*.whl)[cli]"
	@$(TRIAL)/python -I -c '$(TRY)'
	@$(TRIAL)/sample-attention doctor

clean: ## remove caches, builds and reports; .venv stays
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache demo/report*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
