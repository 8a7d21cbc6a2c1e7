# `make quickstart` and `make test` need nothing but Python >= 3.11 (the pinned versions do): each sets up
# .venv itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart test check docs notebooks gallery recipes bench clean

# Overrides go straight on the command line: make quickstart trainer.max_steps=20
OVERRIDES := $(filter-out PYTHON=% VENV=% NAMES=%,$(MAKEOVERRIDES))

quickstart: $(READY)
	$(BIN)/hf-llm-recipes run recipes/quickstart.yaml $(OVERRIDES)

test: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile $(ARGS)

# What CI runs beside the tests: style, import rules.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Every recipe for the CPU, one after the other, in full.
recipes: $(READY)
	for recipe in $(addprefix classify/,full freeze lora dora qlora-4bit qlora-8bit) \
		$(basename $(wildcard recipes/semi_supervised/*.yaml)) answer/extractive-lora \
		$(addprefix pretrain/,decoder-clm encoder-decoder-span-corruption encoder-mlm-nsp sentence-contrastive vision-masked-image) \
		$(addprefix chat/,sft-full sft-lora sft-lora-8bit sft-qlora-4bit continue-pretraining dpo grpo self-training distill); do \
		$(BIN)/hf-llm-recipes run $$recipe || exit 1; done

# The documentation site, into site/; see it with: python -m http.server -d site
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/mkdocs build --strict

# Runs the notebooks and keeps what they print and draw for the site.
notebooks: $(READY)
	$(BIN)/python docs/hooks/notebooks.py $(NAMES)

# A few short runs whose reports lie in docs/gallery/.
gallery: $(READY)
	$(BIN)/python docs/hooks/gallery.py

bench: $(READY)
	$(BIN)/python benchmarks/tuning.py

$(READY): constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("constraints.txt needs Python 3.11 or later, $(PYTHON) is " \
		+ sys.version.split()[0] + "\n  do: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
