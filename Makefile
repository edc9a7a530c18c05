# make demo               train everything on the toy world and draw samples
# make test               the tests and the notebooks
# make demo PYTHON=python3   use an environment that is already there, instead of .venv
# make demo THREADS=2     more than half the cores: faster on a quiet machine, slower on a busy one
.PHONY: demo test slow lint checkpoints notebooks assignments playground slides site clean

ifdef PYTHON
PY := $(PYTHON)
READY :=
else
PY := .venv/bin/python
READY := .venv/ready
endif
BASE := $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c "import sys; assert sys.version_info >= (3, 11)" 2>/dev/null && echo yes),$(p))))
# One process a core; the tests of a file, and the cells of a notebook, stay together.
EACH_CORE := -n auto --dist loadfile --max-worker-restart 0

demo: $(READY)
	$(PY) -m minidalle demo $(if $(THREADS),--threads $(THREADS))

test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(EACH_CORE) tests
	OMP_NUM_THREADS=1 $(PY) -m pytest $(EACH_CORE) -p no:cacheprovider -o addopts= --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=300 -q notebooks

slow: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -m slow

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Train the shipped checkpoints again: data/checkpoints/toy, the judge included.
checkpoints: $(READY)
	$(PY) data/checkpoints/build.py

notebooks: $(READY)
	OMP_NUM_THREADS=1 $(PY) notebooks/execute.py
	$(PY) -m ruff check -q notebooks

# Grade the reference, blank, mistaken and damaged notebooks with nbgrader, and all mutants.
assignments: $(READY)
	OMP_NUM_THREADS=1 $(PY) assignments/check_assignments.py

# One page that draws in a browser: docs/_build/playground.html. PRESET=mnist for other checkpoints.
playground: $(READY)
	$(PY) docs/playground/build.py $(if $(PRESET),--preset $(PRESET))

# One deck a lecture: docs/_build/slides/lecture-1.html. They need no network; arrow keys turn them.
slides: $(READY)
	$(PY) -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	$(PY) -m sphinx -q -W -b revealjs -c docs/slides docs/slides docs/_build/slides

# The tools of the site are not needed for anything else, so they are not in requirements.txt.
site: slides
	$(PY) -m sphinx -q -W -b html -c docs . docs/_build
	$(PY) docs/playground/build.py
	$(PY) docs/check_site.py
	@echo "wrote docs/_build/index.html"

.venv/ready: requirements.txt pyproject.toml
	@test -n "$(BASE)" || { echo "minidalle needs Python 3.11 or newer on the PATH"; exit 1; }
	$(BASE) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf .venv runs
