# `make run` and `make test` do all the set-up that they need on a fresh Debian or
# Ubuntu machine with Rust and make.

.DEFAULT_GOAL := help
.PHONY: help setup packages run test bench lint

CARGO ?= cargo
GUISE := target/release/guise

help: ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

packages:
	@sh crates/testkit/packages.sh

setup: packages ## Install missing packages, fetch test kernels, build test guests
	@$(CARGO) run --quiet --release --package guise-testkit --bin assets

run: packages ## Boot a Debian kernel to a shell, or without a terminal run one command
	@$(CARGO) build --quiet --release --package guise
	@$(CARGO) run --quiet --release --package guise-testkit --bin assets -- first-boot
	@sh crates/testkit/first-boot.sh $(GUISE)

test: setup ## Run every test
	$(CARGO) test --release --workspace
	@sh crates/testkit/not-tested.sh

bench: setup ## Time a boot
	@$(CARGO) build --quiet --release --package guise
	@sh bench/boot.sh $(GUISE)

lint: ## Check the format and the lints, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
