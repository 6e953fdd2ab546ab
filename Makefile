# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
IMAGE ?= busybox
CMD ?=
# More options for nextest, such as TEST_OPTIONS="-E 'test(streams)'".
TEST_OPTIONS ?=
POUCH_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pouch-vm
export POUCH_CACHE
export PATH := $(PATH):$(POUCH_CACHE)/cargo/bin

TRIPLE := x86_64-unknown-linux-gnu
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/$(TRIPLE)/release
# The testbed lays this folder over its root.
TREE := $(or $(POUCH_INSTALL_DIR),target/install)
# The guest kernel's modules; empty for a guest root without any.
MODULES ?= $(TARGET)/kernel/modules
GUEST_ROOT := $(TARGET)/guest-root$(if $(MODULES),,-without-modules).erofs
PARTS := bin/pouch-vm bin/containerd-shim-pouch-vm-v2 libexec/pouch-vm/pouch-vmm share/pouch-vm/vmlinux \
	share/pouch-vm/guest-root.erofs lib/systemd/system/pouch-vm-metrics.service

# What the build needs; the testbed's script adds what the testbed needs.
PACKAGES := bc bison ca-certificates curl erofs-utils flex gcc kmod libc6-dev libelf-dev libseccomp-dev libssl-dev \
	linux-source-6.12 make openssl perl pkg-config python3 xz-utils
# The tests' client of containerd compiles the definition of CRI.
TEST_PACKAGES := protobuf-compiler

INSTALL_TREE := $(addprefix $(TREE)/usr/local/,$(PARTS))

.PHONY: all
all: install-tree ## Build everything (the default)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: prerequisites
prerequisites: ## Install the Debian packages that the build needs (as root, if any are missing)
	@tests/testbed/prerequisites --install $(PACKAGES)

# Cargo and the kernel's script know best whether anything is to be done; a file that they
# leave alone keeps its time, and then nothing that is made from it is made again.
.PHONY: FORCE
FORCE:

.PHONY: binaries
binaries: prerequisites
	@$(ALONE) cargo build --quiet --release --locked -p pouch-vmm -p pouch-agent -p pouch-shim

$(BIN)/pouch-vm $(BIN)/containerd-shim-pouch-vm-v2 $(BIN)/pouch-vmm $(BIN)/pouch-agent: binaries ;

$(TARGET)/kernel/vmlinux: $(wildcard kernel-config/*) | prerequisites
	@$(ALONE) kernel-config/build.sh --without-modules $(@D) && touch $@

# The kernel takes only the modules that were built with it.
$(TARGET)/kernel/modules: $(TARGET)/kernel/vmlinux
	@$(ALONE) kernel-config/build.sh $(@D) && touch $@

$(GUEST_ROOT): $(BIN)/pouch-agent rootfs/build.sh $(MODULES)
	@rootfs/build.sh $@ $< $(MODULES)

$(TREE)/usr/local/bin/pouch-vm: $(BIN)/pouch-vm
$(TREE)/usr/local/bin/containerd-shim-pouch-vm-v2: $(BIN)/containerd-shim-pouch-vm-v2
$(TREE)/usr/local/libexec/pouch-vm/pouch-vmm: $(BIN)/pouch-vmm
$(TREE)/usr/local/share/pouch-vm/vmlinux: $(TARGET)/kernel/vmlinux
$(TREE)/usr/local/share/pouch-vm/guest-root.erofs: $(GUEST_ROOT)
$(TREE)/usr/local/lib/systemd/system/pouch-vm-metrics.service: dist/pouch-vm-metrics.service

# Programs keep their executable bit, data has none.
$(INSTALL_TREE):
	@install -D -m $(if $(findstring /share/,$@)$(findstring /systemd/,$@),0644,0755) $< $@

.PHONY: install-tree
install-tree: $(INSTALL_TREE) ## Build everything and install it into target/install, for the testbed

# By rename, so that containers can be started meanwhile: no part is ever missing or half written.
.PHONY: install
install: install-tree ## Install into $(DESTDIR)$(PREFIX)
	@for part in $(PARTS); do \
	  mode=0755; [[ $$part != share/* && $$part != lib/* ]] || mode=0644; \
	  place="$(DESTDIR)$(PREFIX)/$$part"; \
	  install -D -m $$mode "$(TREE)/usr/local/$$part" "$$place.new"; \
	  [[ $$part != lib/* ]] || sed -i "s|/usr/local/|$(PREFIX)/|" "$$place.new"; \
	  mv -f "$$place.new" "$$place"; \
	done
	@echo "installed below $(DESTDIR)$(PREFIX)"

# Where the function for it cannot be built, make ends with its own 2 for a container that failed.
ifneq ($(filter run,$(MAKECMDGOALS)),)
$(shell mkdir -p target && cc -shared -fPIC -o target/exit-with.so tests/demo/exit-with.c >&2)
-load target/exit-with.so(exit_with_gmk_setup)
endif

.PHONY: run
run: container ## Run a container in its own VM and exit with its status: make run [IMAGE=busybox] [CMD='…']
	@status=$$(< target/run-status)$(exit-with $(file < target/run-status)); exit "$$status"

# What it needs is built side by side. If the kernel's modules have not been built yet, it runs without them: they take
# as long as the kernel itself.
.PHONY: container
container: prerequisites
	@mkdir -p target
	@$(MAKE) --no-print-directory --jobs=3 $(TARGET)/kernel/vmlinux binaries host-of-container
	@if [[ ! -d $(TARGET)/kernel/modules ]]; then export MODULES= POUCH_INSTALL_DIR=target/install-without-modules; fi; \
	$(MAKE) --no-print-directory install-tree; \
	status=0; CMD=$(call quoted,$(CMD)) tests/demo/run $(call quoted,$(IMAGE)) "$${POUCH_INSTALL_DIR:-$(TREE)}/usr/local" || \
	  status=$$?; \
	echo "$$status" > target/run-status

.PHONY: host-of-container
host-of-container:
	@tests/demo/run --prepare $(call quoted,$(IMAGE))

# A guest kernel without our patches, which a test of the profile `long` boots.
PLAIN_KERNEL := $(TREE)/usr/local/share/pouch-test/vmlinux-plain

$(PLAIN_KERNEL): tests/plain-kernel $(wildcard kernel-config/*) | prerequisites
	@$(ALONE) tests/plain-kernel $(TARGET)/plain-kernel
	@install -D -m 0644 $(TARGET)/plain-kernel/vmlinux $@

# The tests of the testbed wait for much, so the tests are built beside them. The summary of all tests comes last.
.PHONY: test
test: install-tree $(if $(findstring long,$(TEST_OPTIONS)),$(PLAIN_KERNEL)) nextest deny ## Check formatting, lint, and run all tests (integration tests run in the testbed)
	@cargo fmt --all --check
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-of-testbed tests
	@status=0; POUCH_TESTBED_INSTANCE=$${POUCH_TESTBED_INSTANCE:-test}-0 $(MAKE) --no-print-directory run CMD='exit 7' || \
	  status=$$?; [[ $$status == 7 ]] || { echo "make run ended with $$status, its container with 7" >&2; exit 1; }
	@CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(CURDIR)/tests/nextest-runner" \
	  cargo nextest run --workspace --locked $(TEST_OPTIONS)

.PHONY: test-of-testbed
test-of-testbed:
	@tests/testbed/test_testbed.py --failfast

.PHONY: tests
tests:
	@tests/testbed/prerequisites --install $(TEST_PACKAGES)
	@$(ALONE) cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
	@$(ALONE) cargo nextest run --workspace --locked --no-run --cargo-quiet

# A program for the testbed.
POD_BENCH := $(TREE)/usr/local/share/pouch-test/pod-bench

$(POD_BENCH): FORCE | prerequisites
	@tests/testbed/prerequisites --install $(TEST_PACKAGES)
	@$(ALONE) cargo build --quiet --locked -p pouch-tests --bin pod-bench
	@install -D -m 0755 $(TARGET)/$(TRIPLE)/debug/pod-bench $@

.PHONY: bench
bench: install-tree $(POD_BENCH) ## Compare start time, size and throughput with other runtimes; write target/bench.json and docs/performance.md
	@tests/bench/run "$(TREE)/usr/local"

# Where a tool of cargo is missing it is built, in the cache and not among the user's own programs.
.PHONY: nextest
nextest:
	@cargo nextest --version >/dev/null 2>&1 || $(call build-tool,cargo-nextest)

.PHONY: deny
deny: ## Check licences and sources of the dependencies (deny.toml); `cargo deny check advisories` needs GitHub
	@cargo deny --version >/dev/null 2>&1 || $(call build-tool,cargo-deny)
	@cargo deny --offline --log-level error check bans licenses sources

.PHONY: clean
clean: ## Remove build results, but not the cache in $(POUCH_CACHE)
	@rm -rf target/install* target/kernel target/guest-root*.erofs target/bench.json target/exit-with.so target/run-status
	@cargo clean --quiet

build-tool = { echo "$(1) is missing: building it in $(POUCH_CACHE)/cargo (once)" >&2; \
	  cargo install --quiet --locked --target-dir "$(POUCH_CACHE)/cargo/target" --root "$(POUCH_CACHE)/cargo" $(1); }

# A build that looks after its own jobs: with this make's, it would use none or complain.
ALONE = env -u MAKEFLAGS -u MFLAGS

# A word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
