# Everything that a developer or a first visitor does. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -o pipefail -c
.PHONY: help setup build test kernels lint demo examples bench sanitize clean

python := .venv/bin/python
cmake := .venv/bin/cmake
jobs := $(shell nproc)
native_sources := $(shell git ls-files CMakeLists.txt pyproject.toml core torch_ext optimum/commands)

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: ## install missing Debian packages and the Python environment .venv
	@scripts/setup.sh

build: setup build/python.stamp ## build the core, its tests, the command, and the Python package in place
	@$(cmake) --preset dev > build/configure.log || (cat build/configure.log; false)
	@$(cmake) --build --preset dev -j $(jobs)

# An editable install: the Python files are those of the working tree, the library is compiled anew when its sources change.
build/python.stamp: $(native_sources)
	@mkdir -p build
	@echo "build: the Python package"
	@$(python) -m pip install --verbose --no-build-isolation --no-deps --editable . -Cbuild-dir=build/python 2>&1 \
	  | tee build/python.log | { grep --line-buffered -oE '\[[0-9]+/[0-9]+\] .*' || true; } \
	  || { tail -n 40 build/python.log; false; }
	@touch $@

test: build ## build and run all tests
	@scripts/test.sh

kernels: ## write the tables of which kernels run, tests/cli/kernels, anew
	@$(cmake) --preset dev > build/configure.log || (cat build/configure.log; false)
	@$(cmake) --build --preset dev -j $(jobs) --target quanto
	@$(cmake) -DQUANTO=build/dev/cli/quanto -DWRITE=ON -P tests/cli/kernels.cmake

lint: build ## formatting, static analysis and types
	@scripts/lint.sh

demo: setup build/python.stamp ## quantize a real language model and compare its versions
	@$(python) -m optimum.quanto.demo

examples := qat_digits image_classification calibration sentence_embeddings speech_recognition causal_lm \
  diffusion_transformer

examples: setup build/python.stamp ## run all examples (see examples/)
	@for example in $(examples); do echo "== $$example"; $(python) examples/$$example.py || exit 1; done

bench: build ## build and run the C++ benchmarks in a short form (bench/README.md has the long ones)
	@$(cmake) --preset release > build/configure.log || (cat build/configure.log; false)
	@$(cmake) --build --preset release -j $(jobs)
	build/release/bench/quantize_bench --benchmark_min_time=0.05
	build/release/bench/matmul_bench --seconds=0.1 --shape='4096x4096|576x1536' --m='1|8|512' --limit=2

sanitize: setup ## run the C++ tests under AddressSanitizer + UndefinedBehaviorSanitizer, then ThreadSanitizer
	@mkdir -p build
	@for preset in asan-ubsan tsan; do \
	  $(cmake) --preset $$preset > build/configure.log && $(cmake) --build --preset $$preset -j $(jobs) && \
	  .venv/bin/ctest --preset $$preset || exit 1; \
	done

clean: ## remove what was built
	rm -rf build dist
