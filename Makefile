# All commands of the project. Each target installs what it needs.
PYTHON ?= python3
export PYTHONPATH := layers/imagegen
export SAM_CLI_TELEMETRY := 0
export UV_SYSTEM_CERTS := 1

# The functions' Python, for `sam build`, which needs the real folder instead of a pyenv shim.
PYTHON313_BIN := $(shell python3.13 -c 'import sys; print(sys.prefix + "/bin")' 2>/dev/null \
	|| ls -d $$(dirname $$(command -v python3.13 2>/dev/null) 2>/dev/null)/../versions/3.13*/bin 2>/dev/null | tail -n 1)
ENV = dev
STREAMING ?= on
MODELS := layers/imagegen/imagegen/bootstrap/models_toml.py
BUILT_TEMPLATE := .aws-sam/build/template.yaml
LOCK = .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-strip-extras --python-version 3.11

# $(call environment,FOLDER,PYTHON,LOCK): a virtual environment with exactly the packages of the lock file.
define environment
	@$(2) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@echo "setting up $(1) ..."
	@$(2) -m venv --clear $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@$(1)/bin/uv pip sync --quiet --require-hashes --python $(1) $(3) || { \
		echo "uv failed; trying pip, which takes minutes"; \
		$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(3); }
	@touch $@
endef

.DELETE_ON_ERROR:
.PHONY: models run test coverage soak check lint format types template build preflight deploy verify verify-upstream retry key keys revoke reference bench lock clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

run: export STREAMING := $(STREAMING)
run: .venv/ready $(MODELS) $(if $(BUILT),build) ## serve the stack on this machine; PORT, UPSTREAM_BASE_URL, UPSTREAM_API_KEY, STAGE; BUILT=1 runs the result of `make build`; STREAMING, GATEWAY_IDLE_SECONDS, GATEWAY_THROTTLE=1, AWS_DELAYS, LAMBDA_CONCURRENCY: see local/README.md
	@exec .venv/bin/python -m local $(if $(BUILT),--built)

# The default order of pytest-xdist, most tests first, would run the longest files last.
SELECTED = not soak and not thorough
test: .venv/ready $(MODELS) $(if $(PYTHON313_BIN),build) ## run the tests, in under four minutes; `make check` also runs the thorough ones
	.venv/bin/pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder -m "$(SELECTED)"

coverage: .venv/ready $(MODELS) $(if $(PYTHON313_BIN),build) ## run all tests and report uncovered lines
	.venv/bin/pytest --numprocesses=auto --dist=loadfile --cov --cov-report=term -m "not soak"

soak: .venv/ready $(MODELS) $(if $(PYTHON313_BIN),build) ## run the long-running tests
	.venv/bin/pytest -m soak

check: SELECTED = not soak
check: lint types template .venv-clients/ready .venv-ministack/ready test ## run everything that CI runs

lint: .venv/ready
	@.venv/bin/python -m tools.models_file --check
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

format: .venv/ready ## format the code and fix lint errors
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

types: .venv/ready
	.venv/bin/mypy

template: .venv-sam/ready .venv-checkov/ready
	AWS_DEFAULT_REGION=us-east-1 .venv-sam/bin/sam validate --lint
	.venv-checkov/bin/checkov --file template.yaml --framework cloudformation --compact --quiet --skip-download

build: $(BUILT_TEMPLATE) .venv-3.13/ready ## build the deployment into .aws-sam/build; needs python3.13; STREAMING=off buffers answers
	@$(PYTHON) -m tools.streaming "$(STREAMING)" $(BUILT_TEMPLATE)

$(BUILT_TEMPLATE): template.yaml samconfig.toml .venv-sam/ready $(MODELS) $(shell find functions layers -type f -not -path '*/__pycache__/*')
	@test -n "$(PYTHON313_BIN)" || { echo "python3.13 is needed to build"; exit 1; }
	PATH="$(PYTHON313_BIN):$$PATH" .venv-sam/bin/sam build
	@touch $@

preflight: .venv/ready .venv-sam/ready ## list missing prerequisites of a deployment, each with the fix: ENV=dev, staging or prod
	@.venv/bin/python -m tools.preflight "$(ENV)" --sam=.venv-sam/bin/sam --python="$(PYTHON313_BIN)"

deploy: preflight build ## check prerequisites, build and deploy: ENV=dev, staging or prod
	.venv-sam/bin/sam deploy --config-env "$(ENV)" $(if $(CI),--no-confirm-changeset)

verify: .venv/ready ## test a deployed stack: BASE_URL, KEY, OTHER_KEY, STACK; it makes a few images of MODEL and SIZE
	@test -n "$(filter http://%/v1 https://%/v1,$(BASE_URL:/=))" -a -n "$(KEY)" || { \
		echo "make verify needs BASE_URL=https://…/v1 and KEY=ig_…" >&2; exit 1; }
	@BASE_URL="$(BASE_URL)" KEY="$(KEY)" OTHER_KEY="$(OTHER_KEY)" STACK="$(STACK)" MODEL="$(MODEL)" SIZE="$(SIZE)" \
		.venv/bin/python -m pytest --no-header --tb=short -m deployed tests/e2e

verify-upstream: .venv/ready $(MODELS) ## make an image with each protocol of an UPSTREAM of models.toml, or with MODEL; its key as for `make run`; asks before it spends, unless YES=1
	@.venv/bin/python -m tools.verify_upstream --upstream="$(UPSTREAM)" --model="$(MODEL)" $(if $(filter 1,$(YES)),--yes)

retry: .venv/ready ## start a new attempt at a failed generation: STACK, ID; upstream calls without an answer may be charged again
	@.venv/bin/python -m tools.retry --stack="$(STACK)" --id="$(ID)"

key: .venv/ready ## create a caller's key and show it once: STACK, CLIENT, IMAGES_PER_DAY, USD_PER_DAY; REPLACE=1 replaces the caller's key
	@.venv/bin/python -m tools.keys key --stack="$(STACK)" --client="$(CLIENT)" \
		$(if $(IMAGES_PER_DAY),--images-per-day="$(IMAGES_PER_DAY)") \
		$(if $(USD_PER_DAY),--usd-per-day="$(USD_PER_DAY)") $(if $(filter 1,$(REPLACE)),--replace)

keys: .venv/ready ## list the callers with the date of the key and the quota: STACK
	@.venv/bin/python -m tools.keys list --stack="$(STACK)"

revoke: .venv/ready ## revoke a caller's key within five minutes: STACK, CLIENT
	@.venv/bin/python -m tools.keys revoke --stack="$(STACK)" --client="$(CLIENT)"

models: $(MODELS) ## compile models.toml; the other targets do it where they need it

$(MODELS): models.toml tools/models_file.py | .venv/ready
	@.venv/bin/python -m tools.models_file
	@touch $@

reference: .venv/ready ## write the tables of docs/api.md and docs/models.md and the schema of events from the table of request fields
	@.venv/bin/python -m tools.reference

bench: .venv/ready build ## measure speed and memory, as ratios to a baseline in the same run
	.venv/bin/python -m tests.bench

lock: .venv/ready ## write the lock files from pyproject.toml
	$(LOCK) pyproject.toml -o layers/imagegen/requirements.txt
	$(LOCK) --group authorizer -o functions/authorizer/requirements.txt
	$(LOCK) --group worker -o functions/worker/requirements.txt
	$(LOCK) pyproject.toml --group dev -o requirements-dev.txt
	$(LOCK) --group uv -o requirements-uv.txt
	$(LOCK) --group sam -o requirements-sam.txt
	$(LOCK) --group checkov -o requirements-checkov.txt
	$(LOCK) --group clients -o requirements-clients.txt
	$(LOCK) --group ministack -o requirements-ministack.txt
	$(LOCK) --group runtime -o requirements-runtime.txt

clean: ## remove everything that the other targets created
	rm -rf .aws-sam .local .venv .venv-checkov .venv-clients .venv-ministack .venv-sam .venv-3.13 .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/ready: requirements-uv.txt requirements-dev.txt
	$(call environment,.venv,$(PYTHON),requirements-dev.txt)

.venv-sam/ready: requirements-uv.txt requirements-sam.txt
	$(call environment,.venv-sam,$(PYTHON),requirements-sam.txt)

.venv-checkov/ready: requirements-uv.txt requirements-checkov.txt
	$(call environment,.venv-checkov,$(PYTHON),requirements-checkov.txt)

# Go's standard library takes half a minute to compile, so a test cannot do it.
.venv-clients/ready: requirements-uv.txt requirements-clients.txt tests/clients/client.go
	$(call environment,.venv-clients,$(PYTHON),requirements-clients.txt)
	@GOCACHE="$(CURDIR)/.venv-clients/cache" GOTOOLCHAIN=local CGO_ENABLED=0 \
		.venv-clients/bin/go build -o .venv-clients/bin/go-client tests/clients/client.go
	@rm -r .venv-clients/cache

.venv-ministack/ready: requirements-uv.txt requirements-ministack.txt
	$(call environment,.venv-ministack,$(PYTHON),requirements-ministack.txt)

.venv-3.13/ready: requirements-uv.txt requirements-runtime.txt
	$(call environment,.venv-3.13,$(PYTHON313_BIN)/python3.13,requirements-runtime.txt)
