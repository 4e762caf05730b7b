# Everything is installed into .venv from requirements.lock; nothing outside this folder changes.
PYTHON ?= python3
PROFILE ?= demo
BIN := .venv/bin

.PHONY: book pdf test lab references readme bench-data bench-train bench-scale lock format clean

book: .venv/installed
	$(BIN)/cellaug run --profile $(PROFILE)
	$(BIN)/cellaug book --profile $(PROFILE)

# The whole book as build/$(PROFILE)/cellaug.pdf, printed by Chromium.
pdf: .venv/tested
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/install_browser.sh
	$(BIN)/cellaug run --profile $(PROFILE)
	$(BIN)/cellaug book --profile $(PROFILE) --one-page
	$(BIN)/python tests/make_pdf.py build/$(PROFILE)

# Style, then all tests in three processes, with their coverage: one waits where two compute.
test: .venv/tested
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/install_browser.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --ignore tests/reference

lab: .venv/installed
	$(BIN)/cellaug lab

# The reference notebooks that nbval compares with: the chapters under the smoke profile.
references: .venv/tested
	$(BIN)/cellaug run --profile smoke
	$(BIN)/python tests/make_references.py

# The answers, the cells and the screenshot in the README, from the recorded results and a built book.
readme: .venv/tested
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/install_browser.sh
	PROFILE=$(PROFILE) $(BIN)/python tests/make_readme.py

# Readers side by side, on the real cells under CELLAUG_DATA.
bench-data: .venv/tested
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'grain>=0.2.12' psutil
	$(BIN)/python tests/bench_data.py

# The training step beside PyTorch's and beside matrix products, on noise.
bench-train: .venv/tested
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'torch>=2.6' psutil
	PYTHONPATH="$(CURDIR)/notebooks" $(BIN)/python tests/bench_train.py

# What several devices cost, and what a training step computes and exchanges, on noise.
bench-scale: .venv/tested
	$(BIN)/python -m pip install --quiet --constraint requirements.lock psutil
	PYTHONPATH="$(CURDIR)/notebooks" $(BIN)/python tests/bench_scale.py

lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy fewest --extra test \
	    --no-header --no-annotate pyproject.toml -o requirements.lock

format: .venv/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build

# What readers need; the lock names the version of every package.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: name another one with make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --no-build-isolation --editable .
	touch $@

# What the tests need besides.
.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --no-build-isolation --editable '.[test]'
	touch $@
