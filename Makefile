# report: measure and render   handin, slides: what else is made of it   test: everything   lab: JupyterLab
# envs, locks, doctor, system: the machine   clean: results   example: the report kept in git
PROFILE ?= quick
MODELS ?= nanodet-plus-m_320
DATA ?=
WEIGHTS ?=
BACKBONE ?=
TABLE ?=
ALSO ?=
J ?= $(shell nproc)
# The first that runs: a name on PATH may be another Python's, or nobody's.
PYTHON ?= $(shell for one in python3 python3.11 python3.12 python3.13 python3.14; do \
    $$one -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null && echo $$one && break; done)
SNAKEMAKE ?=
TESTS ?=
SIDE ?= torch
SPOKEN := $(if $(filter zh%,$(or $(LC_ALL),$(LC_MESSAGES),$(LANG))),zh,en)
export ALIGN_HOME ALIGN_CONDA
unexport DATA WEIGHTS BACKBONE TABLE  # make would first take a `$` in them for a variable or a function of its own
# What a variable was typed as, in the shell's quotes: names of files may hold anything.
typed = '$(subst ','\'',$(value $1))'
ALIGN = $(or $(PYTHON),$(error no Python of 3.8 or later on PATH: install Python 3.11, with its venv module and its headers)) -m lib.machine

.PHONY: help report handin slides example exam test test-jt test-torch test-notebooks test-jt-notebooks test-cluster lab envs locks doctor system clean
help:
	@echo 'make report [PROFILE=smallest|quick|course|full] [MODELS="nanodet-plus-m_320 ..."] [DATA=folder or COCO JSON] [J=cores]'
	@echo 'make report PROFILE=course TABLE=class.csv   a report for each row, name,model,seed: reports/class/index.html links them'
	@echo 'make report ALSO=rosetta|operators: with a stage that the profile leaves out: the probes of both frameworks (30_migration),'
	@echo '                            every operator at drawn sizes and on poisoned inputs (53_operators)'
	@echo 'make report PROFILE=coco_subset|coco_subset_80 DATA=coco   1000 images of a COCO file, 800 + 200 by seed, 10 or 80 classes'
	@echo 'make report PROFILE=finetune_50 DATA=coco MODELS=rtdetr_r18vd [WEIGHTS=checkpoint] [BACKBONE=ImageNet weights]'
	@echo 'LANG=zh make report (slides, lab): in Chinese'
	@echo 'make handin [PROFILE=...]: the document to hand in   make slides: the lectures, reports/slides'
	@echo 'make exam [SIDE=torch|jt]: faults are planted in the models; does the alignment engine find them?'
	@echo 'make report SNAKEMAKE="--profile profiles/slurm": on a cluster; README says what it must share   make test-cluster'
	@echo 'make test [TESTS=tests/test_x.py]   make lab   make envs   make doctor   make system   make clean'
	@echo 'make lab [LAB="--no-browser --port=8899 ..."]: what JupyterLab is given: options of its own, a notebook to open'
	@echo 'make locks: after a change of environment-*.yml, the exact packages that `make envs` installs (needs the network)'
	@echo 'ALIGN_HOME=folder: where environments and compiled kernels go instead of $$HOME/.cache/jittor'

report: envs
	@$(ALIGN) system --if-possible
	@$(ALIGN) run torch -m lib.machine.pipeline --profile=$(call typed,PROFILE) --models=$(call typed,MODELS) \
	    --data=$(call typed,DATA) --weights=$(call typed,WEIGHTS) --backbone=$(call typed,BACKBONE) \
	    --table=$(call typed,TABLE) --also '$(ALSO)' --cores $(J) --language $(SPOKEN) -- $(SNAKEMAKE)

handin: envs
	@$(ALIGN) run torch -m lib handin reports/$(PROFILE) --language $(SPOKEN)

slides: envs
	@$(ALIGN) run torch -m lib slides

# The one report that is kept in git: the quick profile's, with the probes of both frameworks, which it leaves out.
example: ALSO = rosetta
example: PROFILE = quick
example: report
	@$(ALIGN) run torch -m lib.report.readme reports/quick reports/example

# Interrupted, it continues; complete, it starts anew.
exam: envs
	@$(ALIGN) run $(SIDE) -m lib exam

# Three at once, for each waits at times: for a browser, for a process to start.
test: envs
	@$(ALIGN) system --if-possible
	@echo '[test] both environments side by side; how far: tail -f envs/test-*.log'
	@$(MAKE) --no-print-directory --keep-going --jobs=3 --output-sync=target \
	    $(if $(TESTS),test-torch test-jt,test-jt-notebooks test-torch-a-o test-torch-p-z)

# Half of the cores each, for one of the three mostly waits, and who waits sleeps.
test-jt test-torch: test-%:
	@OMP_NUM_THREADS=$$(( ($$(nproc) + 1) / 2 )) OMP_WAIT_POLICY=PASSIVE $(ALIGN) run $* -m pytest -p no:cacheprovider $(TESTS) > envs/$(LOG).log 2>&1; \
	    code=$$?; printf '\n=== tests in the %s environment %s===\n' $* '$(TESTS:%=% )'; cat envs/$(LOG).log; exit $$code

LOG = $@
# Those whose names begin with one of these letters.
test-torch-%:
	@$(MAKE) --no-print-directory test-torch TESTS='tests/test_[$*]*.py' LOG=$@

# Every notebook, and the report that they make. Last, when fewer run: its kernels are sessions of their own, and between
# sessions Linux shares evenly, whatever is nice, so that tests beside them would get a sixth of the machine each.
test-notebooks:
	@$(ALIGN) run torch -m pytest -p no:cacheprovider tests/notebooks > envs/$@.log 2>&1; \
	    code=$$?; printf '\n=== every notebook ===\n'; cat envs/$@.log; exit $$code

test-jt-notebooks:
	@code=0; for one in test-jt test-notebooks; do $(MAKE) --no-print-directory $$one || code=$$?; done; exit $$code

# A SLURM cluster of one node, brought up on loopback, and trainings in several processes of which one is killed: minutes,
# so not part of `test`.
test-cluster: envs
	@$(ALIGN) run torch -m pytest -p no:cacheprovider tests/cluster
	@$(ALIGN) run jt -m pytest -p no:cacheprovider tests/cluster/test_killed_process.py

# Of the two languages of a notebook's texts the shell's is shown (custom.css); the user's own settings stay as they are.
lab: envs
	@$(ALIGN) system --if-possible
	@$(ALIGN) run torch -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	    --LabApp.custom_css=True --ServerApp.tornado_settings="{'static_custom_path': ['lib/show/texts/$(SPOKEN)']}" \
	    $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

envs:
	@$(ALIGN) envs

# After a change of environment-*.yml.
locks:
	@$(ALIGN) locks

doctor:
	@$(ALIGN) doctor

system:
	@$(ALIGN) system

clean:
	@if [ -d reports ]; then find reports -mindepth 1 -maxdepth 1 ! -name example -exec rm -rf {} +; fi
	@rm -rf .snakemake
