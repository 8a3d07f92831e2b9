# make install   the development environment, in .venv
# make demo      the demonstration, in demo_out/report.html
# make test      the quick tests; make test-slow: the others; PYTEST_ARGS="-k nash_mp" picks
# make lint      ruff, pyright and the import contract
# make docs      the documentation, in site/; make docs-serve: while you write, at http://127.0.0.1:8000
# make bench     the benchmarks
# make clean     removes what the above made, but .venv; make distclean: .venv too

# Which Python makes .venv; 3.11 or newer.
PYTHON ?= python3
# Which torch .venv gets when it is made: any pip arguments, such as TORCH='torch --index-url URL'.
TORCH ?= torch==2.13.0
PIP_ARGS ?=
PYTEST_ARGS ?=
# Processes that share the tests; 0 runs them in one, as a debugger asks for.
WORKERS ?= auto

bin := .venv/bin
installed := .venv/.installed
# constraints.txt as this .venv uses it: with its own torch.
constraints := .venv/constraints.txt

# pyright, bundled in its wheel, would otherwise ask PyPI whether there is a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# mkdocs-material would speak of its successor at every build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: install demo test test-slow lint docs docs-serve bench clean distclean

install: $(installed)

# Whatever torch the first step brought is pinned for the second, which would otherwise move it.
$(installed): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nlhf_zoo needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	grep -v '^torch==' constraints.txt > $(constraints)
	$(bin)/python -m pip install $(PIP_ARGS) -c $(constraints) $(TORCH)
	$(bin)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> $(constraints)
	PIP_BUILD_CONSTRAINT=$(constraints) $(bin)/python -m pip install $(PIP_ARGS) -c $(constraints) -e '.[dev]'
	touch $@

demo: $(installed)
	$(bin)/python -m nlhf_zoo.demo --out demo_out

test: $(installed)
	$(bin)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(installed)
	$(bin)/python -m pytest -m slow -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(installed)
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/pyright
	$(bin)/lint-imports

docs: $(installed)
	$(bin)/mkdocs build --strict

docs-serve: $(installed)
	$(bin)/mkdocs serve

bench: $(installed)
	$(bin)/python -m benchmarks

clean:
	rm -rf demo_out lightning_logs site build dist htmlcov .coverage
	rm -rf .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find nlhf_zoo plugins tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
