# `make run` and `make test` do all the set-up that they need on a fresh Debian or
# Ubuntu machine with Rust and make.

.DEFAULT_GOAL := help
.PHONY: help setup packages run test soak bench bench-container bench-cpu bench-disk bench-net lint

CARGO ?= cargo
GUISE := target/release/guise

help: ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 18

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

soak: setup ## What takes too long for every test run: more cases, random guests, an hour's load (SECONDS_OF_LOAD=n)
	GUISE_SOAK_SECONDS=$(or $(SECONDS_OF_LOAD),3600) \
		$(CARGO) test --release --package guise --test end_to_end -- --nocapture soak::
	GUISE_RANDOM_SECONDS=60 GUISE_PROCESSOR_CASES=50000000 \
		$(CARGO) test --release --package guise-engine-soft --test processor --test random_guests
	GUISE_TRANSFER_MIB=1024 $(CARGO) test --release --package guise-net --lib long::

bench: setup ## Time a boot
	@$(CARGO) build --quiet --release --package guise
	@sh bench/boot.sh $(GUISE)

bench-container: ## Time containers beside crun, runc and bwrap, where they are installed
	@$(CARGO) build --quiet --release --package guise
	@bench/container/run.py $(GUISE) 100

bench-cpu: setup ## CPU seconds of workloads natively, under QEMU's emulation and here
	@$(CARGO) build --quiet --release --package guise
	@bench/cpu/run.py $(GUISE) $${GUISE_ASSETS:-assets}/kernels/debian-12-cloud/boot/vmlinuz-* \
		$${GUISE_ASSETS:-assets}/initramfs/shell.cpio $(or $(ROUNDS),3)

bench-disk: setup ## Time conversions of disk images beside qemu-img
	@$(CARGO) build --quiet --release --package guise
	@bench/disk/run.sh $(GUISE) 3

bench-net: ## Time the user-mode network and the switch beside slirp4netns and pasta
	@$(CARGO) bench --quiet --package guise-net --bench user_tcp
	@$(CARGO) bench --quiet --package guise-net --bench switch
	@sh bench/net/others.sh

lint: ## Check the format and the lints, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
