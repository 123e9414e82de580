# report: measure and render   test: everything   lab: JupyterLab   envs, doctor, system: the machine   clean: results
PROFILE ?= quick
MODELS ?= nanodet-plus-m_320
DATA ?=
J ?= $(shell nproc)
PYTHON ?= python3
SNAKEMAKE ?=
TESTS ?=
export ALIGN_HOME ALIGN_CONDA
ALIGN := $(PYTHON) -m lib.environment

.PHONY: help report test lab envs doctor system clean
help:
	@echo 'make report [PROFILE=smallest|quick|course|full] [MODELS="nanodet-plus-m_320 ..."] [DATA=folder or COCO JSON] [J=cores]'
	@echo 'make test [TESTS=tests/test_x.py]   make lab   make envs   make doctor   make system   make clean'
	@echo 'ALIGN_HOME=folder: where environments and compiled kernels go instead of $$HOME/.cache/jittor'

report: envs
	@$(ALIGN) system --if-possible
	@$(ALIGN) run torch -m lib.pipeline report --profile '$(PROFILE)' --models '$(MODELS)' --data '$(DATA)' --cores $(J) -- $(SNAKEMAKE)

test: envs
	@$(ALIGN) system --if-possible
	@$(ALIGN) test $(TESTS)

lab: envs
	@$(ALIGN) run torch -m jupyterlab --ServerApp.root_dir=. $(LAB)

envs:
	@$(ALIGN) envs

doctor:
	@$(ALIGN) doctor

system:
	@$(ALIGN) system

clean:
	@if [ -d reports ]; then find reports -mindepth 1 -maxdepth 1 ! -name example -exec rm -rf {} +; fi
	@rm -rf .snakemake
