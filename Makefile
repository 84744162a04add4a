# `make demo` and `make test` work on a fresh machine: they need only Python 3.11 or newer, with venv, and a package registry.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two test processes, each on one core: threads of torch would only get into each other's way on tiny models. Tests of one
# file stay together because they share what is slow to make.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help venv demo page test test-slow test-upstream docs style quality

help:
	@echo "make demo       build the demo corpus, pretrain a tiny ViCHA on it, evaluate, write outputs/demo/"
	@echo "make page       a page in the browser to try the demo's model on, after make demo"
	@echo "make test       the test suite"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-upstream  transformers' own tests of models, over every head (fetches its source archive)"
	@echo "make docs       the documentation as a site, in outputs/site/"
	@echo "make style      format the code and fix what can be fixed"
	@echo "make quality    check the code's format and style"

venv: $(INSTALLED)

# torch comes first and pinned because that is the CPU build here; with a GPU, see the README's pip lines.
$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -e ".[demo,dev]"
	touch $(INSTALLED)

demo: venv
	$(BIN)/python examples/demo.py

page: venv
	$(BIN)/vicha-hf demo-page outputs/demo/model --images outputs/demo_corpus/test.json

test: venv
	$(TEST) -m "not slow"

test-slow: venv
	$(TEST) -m slow

# transformers' own tests of models are in its source archive, not in what pip installs.
UPSTREAM := build/upstream
test-upstream: venv
	$(BIN)/pip install parameterized
	rm -rf $(UPSTREAM) && mkdir -p $(UPSTREAM)
	$(BIN)/pip download --no-deps --no-binary :all: --dest $(UPSTREAM) \
		transformers==$$($(BIN)/python -c "import transformers; print(transformers.__version__)")
	tar --extract --gzip --strip-components 1 --directory $(UPSTREAM) --file $(UPSTREAM)/transformers-*.tar.gz
	PYTHONPATH=$(UPSTREAM) $(TEST) --dist load --override-ini addopts= -rfs tests/upstream/model_mixin.py

# Strict: a dead link or a docstring that does not parse is an error. The theme's advertisement of its successor is left out.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

style: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
