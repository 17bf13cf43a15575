# make run    a clean checkout to results: installs into .venv, then runs `qkvit quickstart`
# make help   everything else
#
# A machine needs Python 3.10 or newer and make. Arguments: make run ARGS="--force", make test ARGS="-k attention -n 2".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
INSTALLED_FROM := setup.py constraints.txt qkvit/version.py

# Set in many containers. Every command would compile what it imports of torch and transformers anew: 15 seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint format types wheel clean distclean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-18s%s\n", $$1, $$2 }'

run: $(VENV)/.installed-quickstart ## install what is needed, then run the quickstart (ARGS="--force" is passed on)
	$(BIN)/qkvit quickstart $(ARGS)

test: $(VENV)/.installed-dev ## run the tests (ARGS="-k attention -n 2" is passed on to pytest)
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/.installed-dev ## check style with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy knows a package by its folders. build_py lays the folders out as they install, under qkvit/.
types: $(VENV)/.installed-dev ## check types with mypy
	@rm -rf .cache/types
	@$(BIN)/python setup.py --quiet build_py --build-lib .cache/types
	cd .cache/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir ../mypy

# build/ of an earlier run would put files that no longer exist into the wheel.
wheel: $(VENV)/.installed-dev ## build the wheel into dist/
	@rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

clean: ## remove builds and caches
	rm -rf build dist *.egg-info .cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove the virtual environment too
	rm -rf $(VENV)

# A stamp takes the time at which its installation began, and appears only once that has succeeded.
# Python compiles what it imports, when it imports it: compiling all of torch and transformers takes longer.
define install
@rm -f $(VENV)/.installed-*
@touch $@.part
$(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[$(1)]"
@mv $@.part $@
endef

$(VENV)/.installed-quickstart: $(INSTALLED_FROM) | $(VENV)/.ready
	$(call install,quickstart)

$(VENV)/.installed-dev: $(INSTALLED_FROM) | $(VENV)/.ready
	$(call install,dev)
	@cp -p $@ $(VENV)/.installed-quickstart

$(VENV)/.ready:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || \
	  { echo "error: no '$(PYTHON)' here; install Python 3.10 or newer, or name one: make PYTHON=python3.11 ..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: QKViT needs Python 3.10 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); name another: make PYTHON=python3.11 ..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: '$(PYTHON)' cannot make virtual environments (no venv or ensurepip module); on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@# The pip that comes with Python takes half a minute longer to find out which versions go together.
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	@touch $@
