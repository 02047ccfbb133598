# Thin: each target prints the commands it runs. Everything goes into .venv, which `.ci/venv` makes.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: run test check clean

run: $(VENV)/.installed-run
	$(RUN) -m pipeline run pipeline/configs/quick.toml

test: $(VENV)/.installed-dev
	$(RUN) -m pytest

check: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(RUN) -m pytest

$(VENV)/.installed-%: pyproject.toml .ci/venv
	PYTHON="$(PYTHON)" sh .ci/venv "$(VENV)"
	$(RUN) -m pip install --quiet --editable ".[$*]"
	$(RUN) -m pip install --quiet --editable ".[litert]"
	touch $@

clean:
	rm -rf $(VENV) runs
