# Two commands do everything on a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV := .venv

.PHONY: demo test install clean

demo: install
	$(VENV)/bin/entropi demo

test: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(f"entropi needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; run make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(VENV)/tmp # pip's: /tmp is often too small, being RAM
	TMPDIR="$$PWD/$(VENV)/tmp" $(VENV)/bin/python -m pip install --no-compile --disable-pip-version-check --progress-bar off --quiet -e '.[tflite,sim,dev]'
	@rm -rf $(VENV)/tmp && touch $@

clean:
	rm -rf $(VENV) build *.egg-info
