# `make run` and `make test` need nothing but a supported Python; `make` lists what else there is.
# Lines that start with ##, and what follows ## after a target, are the help text.

## ARGS="limit=4 seed=1"  overrides for the job
## TESTS="-k cache"       arguments for pytest
## JOBS=4                 processes that run tests at once (as many as cores, at most 4)
## PYTHON=python3.12      the interpreter that makes the environment (python3)
## VENV=DIR               the environment to make and use (.venv); empty: the current environment
## SYSTEM_TORCH=1         keep the torch that is installed (2.11 or newer)
## CONSTRAINTS=FILE       the pinned versions (constraints/newest.txt)
## PIP_FLAGS=             show all that pip says
## PAIR= TASKS="qa coding" LIMIT=8 SIZE=full   of tables and figures: whose, on what, on how many prompts
## DECODE=sample          of tables and figures: how ours decodes (greedy)
## PLAN=1                 of tables and figures: say which runs are stored and how long the others take
ARGS ?=
TESTS ?=
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
PYTHON ?= python3
VENV ?= .venv
SYSTEM_TORCH ?=
CONSTRAINTS ?= constraints/newest.txt
PIP_FLAGS ?= -qq
PAIR ?=
TASKS ?=
LIMIT ?=
SIZE ?=
DECODE ?=
PLAN ?=

ENV_PYTHON = $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
PYTHON_ASKED = $(filter-out file,$(origin PYTHON))
KEEP_TORCH = $(filter-out 0 no false,$(SYSTEM_TORCH))
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
OFFLINE = HF_HUB_OFFLINE=1 WANDB_MODE=offline

COMMA = ,
EMPTY =
ASKED = $(if $(PAIR),pair=$(PAIR)) $(if $(TASKS),'tasks=[$(subst $(EMPTY) $(EMPTY),$(COMMA),$(strip $(TASKS)))]') \
  $(if $(LIMIT),limit=$(LIMIT)) $(if $(SIZE),size=$(SIZE)) $(if $(DECODE),decode=$(DECODE)) $(if $(PLAN),--plan) $(ARGS)
PUBLISH = $(ENV_PYTHON) -m experiments.publish
BOTH = $(and $(filter tables,$(MAKECMDGOALS)),$(filter figures,$(MAKECMDGOALS)))# one process reads what they share once

.PHONY: tables figures claims pictures help run test bench laws lint format pair install clean environment environment-dev
.DEFAULT_GOAL := help

help: ## list the targets and the variables
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@echo 'Variables:'
	@sed -n 's/^## /  /p' Makefile

run: environment ## measure the default methods on the reference pair (installs first if needed)
	@$(ENV_PYTHON) -m experiments.run $(ARGS)

test: environment-dev ## run the tests (installs first if needed)
	@$(ONE_THREAD) $(OFFLINE) $(ENV_PYTHON) -m pytest -n $(JOBS) $(TESTS)

bench: environment ## measure what the harness costs, beside the decoding of transformers
	@$(ENV_PYTHON) -m experiments.bench $(ARGS)

laws: environment ## compare the laws of lossy rules with the target's, in closed form
	@$(ENV_PYTHON) -m experiments.law_error $(ARGS)

table-viasd-%: environment ## a table of VIA-SD, 1 to 9, the paper's values beside ours
	@$(PUBLISH) table=viasd_$* $(ASKED)

figure-viasd-%: environment ## a figure of VIA-SD, 4 to 9
	@$(PUBLISH) -m 'table=glob(viasd_figure_$**)' $(ASKED)

table-adasd table-vsd: environment
	@$(PUBLISH) table=$(subst table-,,$@) $(ASKED)

tables: environment ## all tables, those of AdaSD (table-adasd) and VSD (table-vsd) included
	@$(PUBLISH) -m 'table=glob(*$(if $(BOTH),,$(COMMA)exclude=*figure*))' $(ASKED)

figures: environment ## all figures
	@$(if $(BOTH),:,$(PUBLISH) -m 'table=glob(*figure*)' $(ASKED))

claims: environment ## the papers' claims and contradictions beside what was measured: results/CLAIMS.md
	@$(ENV_PYTHON) -m experiments.claims

pictures: environment ## the tables and pictures that README and docs show, from what is stored
	@$(ENV_PYTHON) -m experiments.pictures

lint: environment-dev ## check style, layers and types
	@$(ENV_PYTHON) -m ruff check .
	@$(ENV_PYTHON) -m ruff format --check .
	@$(ENV_PYTHON) -m mypy

format: environment-dev ## rewrite the sources in the project's style
	@$(ENV_PYTHON) -m ruff check --fix-only .
	@$(ENV_PYTHON) -m ruff format .

pair: environment ## train the reference pair
	@$(ENV_PYTHON) scripts/train_reference_pair.py $(ARGS)

install: environment-dev ## make the environment and install, nothing else

clean: ## remove caches (neither results nor the environment)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	@find viasd baselines experiments scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Makes and fills the environment, unless its stamp says that exactly this was installed before. The stamp lies in the
# environment, so that it goes when the environment goes, and holds contents rather than times, so that a checkout that
# only touches files installs nothing. What `test` installs is enough for `run`.
define INSTALL
extra=$$1
fail() { echo "$$*" >&2; exit 1; }

version() {
  "$$1" -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo 'no Python that runs'
}
check() {
  "$$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
    fail "viasd needs Python 3.11, 3.12 or 3.13, but '$$1' is $$(version "$$1"). $$2"
}

python='$(ENV_PYTHON)'
if [ -z '$(VENV)' ] || [ ! -x "$$python" ] || [ -n '$(PYTHON_ASKED)' ]; then
  check '$(PYTHON)' 'Choose another one, as in: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12'
fi
if [ -z '$(VENV)' ] || [ ! -x "$$python" ]; then
  python='$(PYTHON)'
else
  check "$$python" 'Remove $(VENV), or name another environment with VENV=DIR'
  has=$$(version "$$python")
  wanted=$$(version $(if $(PYTHON_ASKED),'$(PYTHON)',"$$python"))
  [ "$${has%.*}" = "$${wanted%.*}" ] ||
    fail "$(VENV) has $$has, but PYTHON=$(PYTHON) is $$wanted. Remove $(VENV), or name another environment with VENV=DIR"
fi
[ -f '$(CONSTRAINTS)' ] || fail "CONSTRAINTS='$(CONSTRAINTS)': no such file (there are: $(wildcard constraints/*.txt))"

home='$(VENV)'
[ -n "$$home" ] || home=$$("$$python" -c 'import sys; print(sys.prefix)')
stamp="$$home/.viasd-installed"
[ ! -d "$$home" ] || [ -w "$$home" ] || stamp=./.viasd-installed
key="$$(cat pyproject.toml '$(CONSTRAINTS)' | cksum) $(CONSTRAINTS) keep_torch=$(KEEP_TORCH) $(CURDIR) $$home $$(version "$$python")"
case "$$(cat "$$stamp" 2>/dev/null)" in
  "$$key dev" | "$$key $$extra") exit 0 ;;
esac

if [ -n '$(VENV)' ] && ! '$(ENV_PYTHON)' -m pip --version >/dev/null 2>&1; then
  "$$python" -c 'import ensurepip, venv' 2>/dev/null || fail "'$$python' cannot make an environment, as it has no" \
    "ensurepip or no venv. Install them (Debian, Ubuntu: apt install python3-venv), choose another PYTHON=," \
    "or use the current environment with VENV="
  echo "Making an environment in $(VENV) with $$("$$python" --version)"
  "$$python" -m venv $(if $(KEEP_TORCH),--system-site-packages) '$(VENV)'
fi
python='$(ENV_PYTHON)'
"$$python" -m pip --version >/dev/null 2>&1 || fail "'$$python' has no pip. Install it (python3 -m ensurepip;" \
  "Debian, Ubuntu: apt install python3-pip), or leave VENV= out to get an environment of its own"

have=$$("$$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null) || have=
pinned=$$(sed -n 's/^torch *== *\([0-9a-z.]*\).*/\1/p' '$(CONSTRAINTS)')
constraints=$$(mktemp)
trap 'rm -f "$$constraints"' EXIT
if [ -n '$(KEEP_TORCH)' ]; then
  [ -n "$$have" ] || fail "SYSTEM_TORCH=1 keeps an installed torch, but '$$python' finds none." \
    "$(if $(VENV),An environment made without SYSTEM_TORCH=1 does not see it: remove $(VENV). To use the active environment and its torch: VENV=)"
  echo "torch: $$have is installed and kept"
  sed '/^torch *[=<>~!]/d' '$(CONSTRAINTS)' > "$$constraints"
  echo "torch==$$have" >> "$$constraints" # a torch that is too old then ends the installation instead of being replaced
else
  cat '$(CONSTRAINTS)' > "$$constraints"
  if [ -n "$$have" ] && [ "$${have%%+*}" = "$$pinned" ]; then
    echo "torch: $$have is installed already"
  else
    echo "torch: $${pinned:-the newest} will be installed$${have:+ in place of $$have}, the build your package index has for" \
      "this platform (on Linux usually with CUDA, several GB; SYSTEM_TORCH=1 keeps an installed one)"
  fi
fi
echo "Installing viasd with the versions of $(CONSTRAINTS) (once, some minutes)"
rm -f "$$stamp"
"$$python" -m pip install --disable-pip-version-check $(PIP_FLAGS) -c "$$constraints" -e ".$${extra:+[$$extra]}" ||
  fail "The installation failed. To see all that pip says: make install PIP_FLAGS="
echo "$$key $$extra" > "$$stamp"
endef

environment environment-dev: export INSTALL_SCRIPT = $(INSTALL)
environment environment-dev:
	@sh -ec "$$INSTALL_SCRIPT" install $(if $(filter %-dev,$@),dev)
