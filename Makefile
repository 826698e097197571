# Every developer action is a target here. All of them set up what they need first.
#   make demo    the main job: archives, service, explained scenes, a contact sheet
#   make test    all tests
#   make help    the rest

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Trained to be studied, not to be served: one cheats, the other's features lie elsewhere.
STUDY  := retinanet-signs-cheat ssd-signs
DEMO   := $(filter-out $(STUDY),$(patsubst model_store/weights/%.safetensors,%,$(wildcard model_store/weights/*.safetensors)))
MARS   := $(DEMO:%=model_store/%.mar)
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo serve models test test-detectron2 test-transformers lint types format proto train bench clean soak

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 20

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(STAMP) ## the environment, in .venv

demo: models ## explain held-out scenes over REST and gRPC, and write a contact sheet
	$(BIN)/python examples/demo.py --out out/demo

serve: models ## TorchServe and the gateway, until Ctrl-C
	$(BIN)/whybox serve --model-store model_store

models: $(MARS) ## archives of the demo models, in model_store/

model_store/%.mar: model_store/%.yaml model_store/weights/%.safetensors $(STAMP) \
		$(shell find handlers/whybox proto/whybox_proto -name '*.py' -not -path '*/scenes/*' -not -path '*/training/*' \
			-not -path '*/evaluation/*')
	$(BIN)/whybox models build $< --out model_store

test: $(STAMP) ## all tests
	tests/install_system_parts.sh
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-transformers: $(STAMP) ## the tests of the transformers family, or what they miss
	@$(BIN)/python -c "import transformers, scipy; print('transformers', transformers.__version__)" \
		|| { echo "not installed: pip install 'whybox[transformers]'; see docs/detectors/transformers.md" >&2; exit 1; }
	$(BIN)/python -m pytest tests/test_transformers*.py tests/test_attention.py tests/test_inversion_queries.py $(PYTEST_ARGS)

test-detectron2: $(STAMP) ## the tests of the detectron2 family, which is installed by hand
	@$(BIN)/python -c "import detectron2; print('detectron2', detectron2.__version__)" || \
		{ echo "detectron2 cannot be imported in $(VENV): see docs/detectors/detectron2.md" >&2; exit 1; }
	$(BIN)/python -m pytest tests/test_array_pickle.py tests/test_roi_taps.py tests/test_detectron2*.py $(PYTEST_ARGS)

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

format: $(STAMP) ## let ruff format and mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP) ## generate the stubs in proto/ anew
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto proto/whybox_proto/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=proto proto/whybox_proto/v1/explainer.proto

train: $(STAMP) ## train the demo detectors (hours on two cores; resumes)
	$(BIN)/python -m whybox.training --all --resume

bench: models ## all benchmarks; each prints ratios
	$(BIN)/python benchmarks/odam.py
	$(BIN)/python benchmarks/queries.py
	set -e; for name in $(DEMO); do $(BIN)/whybox calibrate model_store/$$name.yaml --no-write --pairs 0; done
	$(BIN)/python benchmarks/odsmoothgrad.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/nms.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/spread.py
	$(BIN)/python benchmarks/inversion_steps.py
	$(BIN)/python benchmarks/jobs.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/overheads.py
	$(BIN)/python benchmarks/overload.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/faults.py

soak: $(STAMP) ## 10,000 mixed requests, then thousands made up from the description
	$(BIN)/python benchmarks/soak.py
	WHYBOX_CONFORMANCE_EXAMPLES=500 $(BIN)/python -m pytest tests/test_conformance_openapi.py

clean: ## what was built, but for the environment
	rm -rf out model_store/*.mar .pytest_cache .mypy_cache .ruff_cache
