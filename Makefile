# Every target makes its environment by itself and never asks anything.
.DEFAULT_GOAL := help
.PHONY: book test golden elsewhere hostile fuzz bench calibrate notebooks clean help
VENV := .venv
PY := $(VENV)/bin/python
# Another interpreter: make PYTHON=/path/to/python3.12 book
PYTHON ?=
# Where torch comes from; empty: from where everything else comes
TORCH_INDEX ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PYTHONUNBUFFERED := 1

# Candidates are run, not only looked up: a name may exist and not work.
# 3.13 comes last because one library has no ready-made wheel for it.
define FIND_PYTHON
works() { "$$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$2))" >/dev/null 2>&1; }; \
found=""; for top in 12 13; do for p in $(or $(PYTHON),python3 python3.12 python3.11 python3.13 python); do \
if [ -z "$$found" ] && works "$$p" $$top; then found="$$p"; fi; done; done; \
if [ -z "$$found" ]; then echo "Python 3.11, 3.12 or 3.13 is needed; none of these is one: $(or $(PYTHON),python3 python3.12 python3.11 python3.13)" >&2; exit 1; fi
endef

book: $(VENV)/.ready
	@$(VENV)/bin/resonance book </dev/null

test: $(VENV)/.ready
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile </dev/null

# What a small training by the shipped recipe comes to, beside what it came to: make golden WRITE=yes keeps it
golden: $(VENV)/.ready
	@$(PY) tests/golden.py $(if $(WRITE),--write) </dev/null

# Lessons and numerical tests as other machines would run them; a choice of settings: make elsewhere ONLY=avx2,busy
elsewhere: $(VENV)/.ready
	@$(PY) tests/elsewhere.py $(if $(ONLY),--only $(ONLY)) </dev/null

# Every container, codec and damage that FFmpeg makes here, read; a choice: make hostile ONLY=mp4,aac,cut
hostile: $(VENV)/.ready
	@$(PY) tests/matrix.py $(if $(ONLY),--only $(ONLY)) </dev/null

# Readers of files, fed with bad ones by Atheris, which is not in the environment by itself: make fuzz TARGET=raw,tags SECONDS=600
fuzz: $(VENV)/.ready
	@$(PY) tests/fuzz.py $(if $(TARGET),--target $(TARGET)) $(if $(SECONDS),--seconds $(SECONDS)) </dev/null

bench: $(VENV)/.ready
	@$(PY) benchmarks/speed.py </dev/null
	@$(PY) benchmarks/concert.py </dev/null

# Fits what is shipped on validation songs: RESONANCE_CORPUS must name the open corpus. What was stopped goes on.
FITTED := runs/calibration
CALIBRATE := $(VENV)/bin/resonance calibrate --out $(FITTED)
calibrate: $(VENV)/.ready
	@$(CALIBRATE) codebook noises </dev/null
	@cp $(FITTED)/codebook.npz $(FITTED)/noises.npy $(FITTED)/fused.json resonance_nb/models/
	@$(CALIBRATE) landmark landmark-dense chromaprint mfcc chroma embedding fused small </dev/null
	@cp $(FITTED)/*.json resonance_nb/models/
	@$(CALIBRATE) listener </dev/null
	@cp $(FITTED)/listener.json resonance_nb/models/

notebooks: $(VENV)/.ready
	@$(PY) -m ruff format --quiet nbs figures tests benchmarks </dev/null
	@$(PY) -m nbconvert --clear-output --inplace --log-level=ERROR nbs/*.ipynb figures/*.ipynb </dev/null
	@$(VENV)/bin/nbdev_export </dev/null
	@$(VENV)/bin/nbdev_clean </dev/null
	@$(VENV)/bin/nbdev_clean --fname figures/accuracy.ipynb </dev/null

clean:
	@rm -rf _build .pytest_cache .hypothesis build
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@find . -name .ipynb_checkpoints -not -path './.venv/*' -prune -exec rm -rf {} +

help:
	@echo "make book       build the book: _build/html/index.html"
	@echo "make test       run every test"
	@echo "make golden     a small training by the shipped recipe, compared with what it came to before"
	@echo "make elsewhere  the lessons and numerical tests as other machines would run them (hours; a choice: ONLY=avx2,busy)"
	@echo "make hostile    every container, codec and damage that FFmpeg makes here, read (hours; a choice: ONLY=mp4,aac,cut)"
	@echo "make fuzz       readers of files, fed with bad ones by Atheris (pip install atheris; TARGET=raw,tags SECONDS=600)"
	@echo "make bench      print the speed figures of this machine"
	@echo "make notebooks  after editing nbs/: export the package, drop outputs, clean"
	@echo "make calibrate  fit the recognisers' confidences anew (needs the open corpus)"
	@echo "make clean      remove the built book and caches (keeps runs and the environment)"
	@echo "make help       print this list"
	@echo "The first of them makes the environment .venv, which takes some minutes."

$(VENV)/.ready: requirements.lock settings.ini setup.py
	@$(FIND_PYTHON); \
	if ! works $(PY) 13; then rm -rf $(VENV); echo "making the environment $(VENV) with $$($$found --version); this takes some minutes"; \
	"$$found" -m venv $(VENV) || { echo "this Python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; fi
# PyTorch's own page of CPU wheels can be named: make TORCH_INDEX=… book
	@if [ -n "$(TORCH_INDEX)" ]; then $(PY) -m pip install --quiet --progress-bar off --no-deps --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' requirements.lock)" </dev/null; \
	elif ! command -v nvidia-smi >/dev/null 2>&1 && $(PY) -m pip install --quiet --dry-run -c requirements.lock torch --report - </dev/null 2>/dev/null | grep -qi '"name": *"nvidia-'; then \
	echo "the torch that pip finds here brings CUDA libraries: 4 GB more, of no use without a card."; \
	echo "To do without them: stop this, and run make with TORCH_INDEX=ADDRESS, the address that pytorch.org gives for pip, Linux, CPU."; fi
	@$(PY) -m pip install --quiet --progress-bar off --no-deps -r requirements.lock </dev/null
# the one exception: builds of torch with CUDA name libraries that this list cannot, because others do not have them
	@$(PY) -m pip install --quiet --progress-bar off -c requirements.lock torch </dev/null
	@$(PY) -m pip install --quiet --progress-bar off --no-deps --no-build-isolation --use-pep517 -e . </dev/null
	@touch $@
