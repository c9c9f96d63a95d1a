# Each target makes its own set-up: a virtual environment in .venv with the versions of environment.yml.
#   make PYTHON=/path/to/python3.11 test     another Python (where there is a .venv already: make clean first)
#   make JUPYTER_FLAGS="--no-browser" lab    flags for JupyterLab
#   make BENCH_FLAGS="--help" bench          flags for the benchmark
#   make PATHS_FLAGS="--help" paths          flags for the code paths
#   make PUBLISH_FLAGS="--push origin" published   push it to the branch `published`
#   make BOOK_FLAGS="--as-stored" book       the site from the stored outputs, without executing

PYTHON ?= python3
JUPYTER_FLAGS ?=
BENCH_FLAGS ?=
BOOK_FLAGS ?=
PUBLISH_FLAGS ?=
PATHS_FLAGS ?=
PY := .venv/bin/python
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help lab test test-package test-notebooks paths bench book published figure slides kaggle class clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z]*\):.*## /make \1: /p' Makefile

# Not the file as an argument: the address that is printed where no browser opens would not lead to it.
lab: $(READY)  ## open JupyterLab at the first notebook
	$(PY) -m jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(JUPYTER_FLAGS)

test: $(READY)  ## run every test and every cell of every notebook, and compare what they print and draw
	@echo "testing the package and the notebooks side by side; each prints when it is done, in some 10 minutes"
	@$(MAKE) --no-print-directory --jobs=2 test-package test-notebooks

# `make test` runs two halves side by side, about equally long.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q
test-package: $(READY)
	$(PYTEST) tests
test-notebooks: $(READY)
	$(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

paths: $(READY)  ## run the notebooks under the code paths of other processors (some 40 minutes); nothing may differ
	$(PY) notebooks/tools/paths.py $(PATHS_FLAGS)

bench: $(READY)  ## time one step of each variant on this machine, beside torch.optim
	$(PY) -m course.benchmark $(BENCH_FLAGS)

book: $(READY)  ## execute the series and build a site that reads without network, in build/book
	$(PY) notebooks/tools/book.py $(BOOK_FLAGS)

published: $(READY)  ## build all that readers take from the web, in build/published
	$(PY) notebooks/tools/publish.py $(PUBLISH_FLAGS)

figure: $(READY)  ## write the figure of the two windows as a page for the projector, build/figure.html
	$(PY) notebooks/tools/figure.py

slides: $(READY)  ## make a reveal.js deck per chapter that projects without network, in build/slides
	$(PY) notebooks/tools/slides.py

kaggle: $(READY)  ## write one self-contained notebook per chapter for Kaggle and Colab, in build/kaggle
	$(PY) notebooks/tools/kaggle.py

class: $(READY)  ## write the files to hand out in class, and the lecturer's, in build/class
	$(PY) notebooks/tools/class_kit.py

clean:  ## delete what the targets made, the environment too
	rm -rf .venv build .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again when environment.yml is newer. The .pth file makes adamlib and course importable from this folder, as an
# editable install would, without building anything.
$(READY): environment.yml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "This needs Python 3.10 or newer as $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3.11 test"; \
		exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv"; \
		exit 1; }
	@sed -n '/- pip:/,$$ { s/ *#.*//; s/^ *- \(.*==.*\)/\1/p; }' environment.yml > .venv/requirements.txt
	@echo "installing the packages of environment.yml into .venv: some minutes, and 2 GB, or 6 to 8 with torch's CUDA build"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt || { \
		echo "pip could not install them (its reason is above). Is the network there? Then run the same command again."; \
		exit 1; }
	@printf "%s\n" "$(CURDIR)" "$(CURDIR)/notebooks" > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/adam-notebooks.pth"
	@touch $@
