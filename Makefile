# `make run` and `make test` do all the set-up that they need on a fresh Debian or
# Ubuntu machine with Rust and make.

.DEFAULT_GOAL := help
.PHONY: help setup packages run boot test soak fuzz-api bench bench-container bench-image bench-run bench-cpu bench-io bench-disk bench-net lint

CARGO ?= cargo
GUISE := target/release/guise

help: ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 18

packages:
	@sh crates/testkit/packages.sh

setup: packages ## Install missing packages, fetch test kernels, build test guests
	@$(CARGO) run --quiet --release --package guise-testkit --bin assets

run: packages ## Fetch Debian and open a shell in it, or without a terminal run a command
	@[ -e $(GUISE) ] || echo "Building guise, which takes some minutes the first time"
	@$(CARGO) build --quiet --release --package guise
	@$(CARGO) run --quiet --release --package guise-testkit --bin assets -- first-run
	@sh crates/testkit/first-run.sh $(GUISE)

boot: packages ## Boot a Debian kernel to a shell, or without a terminal run one command
	@[ -e $(GUISE) ] || echo "Building guise, which takes some minutes the first time"
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
	GUISE_DISK_SEQUENCES=1000 $(CARGO) test --release --package guise-disk \
		--test model --test crash --test corrupt --test full --test imago
	GUISE_CYCLES=200 GUISE_KILLS=100 $(CARGO) test --release --package guise --test run -- survival::
	GUISE_TRANSFER_MIB=1024 $(CARGO) test --release --package guise-net --lib long::
	GUISE_TRANSFER_MIB=1024 $(CARGO) test --release --package guise --test end_to_end -- network::
	GUISE_FUZZ_SECONDS=600 $(CARGO) test --release --package guise-virtio --test hostile_drivers
	GUISE_CONTAINERS=1000 $(CARGO) test --release --package guise --test oci -- leaks::
	$(MAKE) fuzz-api EXAMPLES=200
	GUISE_DEVICE_SOAK=1 $(CARGO) test --release --package guise --test end_to_end -- upkeep:: devices:: control::

fuzz-api: packages ## Send the API what its description allows, and what it does not (EXAMPLES=n)
	@$(CARGO) build --quiet --release --package guise
	@sh crates/testkit/fuzz-api.sh $(GUISE) $(or $(EXAMPLES),50)

bench: setup ## Time a boot
	@$(CARGO) build --quiet --release --package guise
	@sh bench/boot.sh $(GUISE)

bench-container: ## Time containers beside crun, runc and bwrap, where they are installed
	@$(CARGO) build --quiet --release --package guise
	@bench/container/run.py $(GUISE) 100

bench-run: setup ## Time `guise run` beside podman, where that is installed
	@$(CARGO) build --quiet --release --package guise
	@GUISE_KERNEL=$$(realpath $${GUISE_ASSETS:-assets})/kernels/debian-12-cloud bench/run/run.py $(GUISE) 20

bench-image: ## Time pulling and unpacking beside umoci and podman, where they are installed
	@$(CARGO) build --quiet --release --package guise
	@bench/image/run.py $(GUISE) 3

bench-cpu: setup ## CPU seconds of workloads natively, under QEMU's emulation and here
	@$(CARGO) build --quiet --release --package guise
	@bench/cpu/run.py $(GUISE) $${GUISE_ASSETS:-assets}/kernels/debian-12-cloud/boot/vmlinuz-* \
		$${GUISE_ASSETS:-assets}/initramfs/shell.cpio $(or $(ROUNDS),3)

bench-io: setup ## Disks, network and shared directories of a guest beside QEMU's emulation
	@$(CARGO) build --quiet --release --package guise
	@bench/io/run.py $(GUISE) $${GUISE_ASSETS:-assets}/kernels/debian-12-cloud/boot/vmlinuz-* \
		$${GUISE_ASSETS:-assets}/initramfs/virtio-debian-12-cloud.cpio $(or $(SECONDS_EACH),5)

bench-disk: setup ## Time conversions of disk images beside qemu-img
	@$(CARGO) build --quiet --release --package guise
	@bench/disk/run.sh $(GUISE) $(or $(ROUNDS),3)
	@bench/disk/random.sh $(GUISE) $(or $(ROUNDS),7)

bench-net: ## Time the user-mode network and the switch beside a tap, slirp4netns and pasta
	@$(CARGO) bench --quiet --package guise-net --bench user_tcp
	@$(CARGO) bench --quiet --package guise-net --bench tap
	@$(CARGO) bench --quiet --package guise-net --bench switch
	@sh bench/net/others.sh

lint: ## Check the format and the lints, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
