# Thin: each target prints the commands it runs. Everything goes into .venv, which `.ci/venv` makes.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# One process for each core, of one thread each: most tests wait for a converter or a small network.
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

.PHONY: run test check clean

run: $(VENV)/.installed-run
	$(RUN) -m pipeline run pipeline/configs/quick.toml

test: $(VENV)/.installed-dev
	$(TEST)

check: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(TEST)

$(VENV)/.installed-%: pyproject.toml .ci/venv
	PYTHON="$(PYTHON)" sh .ci/venv "$(VENV)"
	$(RUN) -m pip install --quiet --editable ".[$*]"
	$(RUN) -m pip install --quiet --editable ".[litert]"
	touch $@

clean:
	rm -rf $(VENV) runs
