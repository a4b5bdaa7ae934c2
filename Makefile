# Penstock's commands in one place. Everything here can also be done with cmake --preset and ctest.

SHELL  := /bin/bash
LISTEN ?= 127.0.0.1:7000
ARGS   ?=
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
# make test TESTS='base\.' runs the tests whose names match.
TESTS  ?= .
# Messages for each producer of the stress tests, where they run at length.
MESSAGES ?= 2500000

# How long make fuzz runs each fuzzer.
FUZZ_SECONDS ?= 20

INSTALL := bash tools/install_packages.sh
SOURCES  = $(shell find $(wildcard include src tests examples bench fuzz) -type f \
             \( -name '*.h' -o -name '*.cpp' -o -name '*.c' \) 2>/dev/null)
CTEST   := ctest --output-on-failure --no-tests=error --no-label-summary -j$(JOBS) -R '$(TESTS)'

# ThreadSanitizer's memory layout breaks when the kernel randomises more than 28 bits of an address.
TSAN_RUN = $(shell [ "$$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)" -gt 28 ] \
             && setarch -R true 2>/dev/null && echo setarch -R)

.NOTPARALLEL:
.PHONY: help run test tsan soak fuzz clang lint format format-check bench bench-idle bench-promises \
        bench-fairness bench-storm bench-broadcast bench-slowloris bench-designs bench-timers coverage docs install-packages clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build and start an echo server (LISTEN=127.0.0.1:7000, ARGS=more options)
	@$(INSTALL) build
	@cmake --preset release -Wno-dev >/dev/null
	@cmake --build build/release --target penstock_app -j$(JOBS)
	@listen='$(LISTEN)'; host=$${listen%:*}; host=$${host#[}; host=$${host%]}; port=$${listen##*:}; \
	  [ "$$port" != 0 ] || port='PORT    (it is printed below)'; \
	  printf "\nTry it from another terminal:\n\n    printf 'hello\\\\n' | nc -N %s %s\n\nCtrl-C ends it.\n\n" \
	    "$${host:-127.0.0.1}" "$$port"
	@exec build/release/bin/penstock echo --listen '$(LISTEN)' $(ARGS)

test: ## build with AddressSanitizer and UBSan, run every test (TESTS=regular expression)
	@$(INSTALL) build test
	@cmake --preset asan -Wno-dev >/dev/null
	@cmake --build build/asan -j$(JOBS)
	@$(CTEST) --test-dir build/asan

tsan: ## build with ThreadSanitizer, run every test, then the stress tests at length
	@$(INSTALL) build test
	@cmake --preset tsan -Wno-dev >/dev/null
	@cmake --build build/tsan -j$(JOBS)
	@$(TSAN_RUN) $(CTEST) --test-dir build/tsan
	@PENSTOCK_STRESS_MESSAGES=$(MESSAGES) PENSTOCK_TEST_TASKS=$(MESSAGES) $(TSAN_RUN) $(CTEST) --test-dir build/tsan -R '^stress\.|four_producers'

soak: ## run the stress tests at length (MESSAGES=2500000 for each of four producers), every split of 24 bytes one by one, 10^8 checksums
	@$(INSTALL) build test
	@cmake --preset debug -Wno-dev >/dev/null
	@cmake --build build/debug -j$(JOBS) --target penstock_stress_test penstock_loop_test penstock_frame_test
	@PENSTOCK_TEST_SPLIT_BYTES=24 PENSTOCK_TEST_CRC_INPUTS=100000000 $(CTEST) --test-dir build/debug -R 'EverySplitGivesTheSame|IsThatOfATableForManyInputs'
	@PENSTOCK_STRESS_MESSAGES=$(MESSAGES) PENSTOCK_TEST_TASKS=$(MESSAGES) $(CTEST) --test-dir build/debug -R '^stress\.|four_producers'

fuzz: ## run each fuzzer for FUZZ_SECONDS=20, beginning with fuzz/corpus/; fails on a finding
	@$(INSTALL) build fuzz
	@cmake --preset fuzz -Wno-dev >/dev/null
	@cmake --build build/fuzz -j$(JOBS)
	@for program in build/fuzz/bin/fuzz/*_fuzz; do \
	  name=$${program##*/}; mkdir -p "build/fuzz/corpus/$$name" "build/fuzz/findings/$$name"; \
	  echo "$$name: $(FUZZ_SECONDS) s"; \
	  "$$program" -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -timeout=10 -print_final_stats=1 \
	    -artifact_prefix="build/fuzz/findings/$$name/" "build/fuzz/corpus/$$name" "fuzz/corpus/$$name" \
	    >"build/fuzz/$$name.log" 2>&1 \
	    || { tail -n 40 "build/fuzz/$$name.log"; \
	         echo "Once more: $$program build/fuzz/findings/$$name/FILE"; exit 1; }; \
	  grep -E 'exec_per_sec|number_of_executed' "build/fuzz/$$name.log"; \
	done

clang: ## build with clang-19, run every test
	@$(INSTALL) build test clang
	@cmake --preset clang -Wno-dev >/dev/null
	@cmake --build build/clang -j$(JOBS)
	@$(CTEST) --test-dir build/clang

lint: format-check ## check format and floors, run clang-tidy
	@$(INSTALL) build test clang lint
	@python3 tools/check_floors.py .
	@cmake --preset clang -Wno-dev >/dev/null
	@python3 tools/run_clang_tidy.py --build build/clang -j$(JOBS) $(ARGS)

format: ## reformat all sources
	@$(INSTALL) lint
	@clang-format-19 -i $(SOURCES)

format-check: ## fail if a source is not formatted
	@$(INSTALL) lint
	@clang-format-19 --dry-run -Werror $(SOURCES)

BENCH = @$(INSTALL) build bench && cmake --preset release -Wno-dev >/dev/null && \
          cmake --build build/release -j$(JOBS) && python3

bench: ## CPU per message against bare epoll, libevent, libuv, asio (ARGS=options of bench/run.py)
	$(BENCH) bench/run.py --out build/bench $(ARGS)

bench-idle: ## memory and wake-ups of 10,000 idle connections, the same servers (ARGS)
	$(BENCH) bench/idle.py --out build/bench $(ARGS)

bench-promises: ## clients that never read, half-closes, no descriptors, the same servers (ARGS)
	$(BENCH) bench/promises.py --out build/bench $(ARGS)

bench-fairness: ## a quiet connection beside others that flood, the same servers (ARGS)
	$(BENCH) bench/fairness.py --out build/bench $(ARGS)

bench-storm: ## a quiet connection beside 20,000 connects a second, the same servers (ARGS)
	$(BENCH) bench/fairness.py --storm 20000 --seconds 2 --out build/bench $(ARGS)

bench-broadcast: ## one message to 10,000 connections, a tenth of them stalled (ARGS)
	$(BENCH) bench/broadcast.py --out build/bench $(ARGS)

bench-slowloris: ## thousands of slow and silent clients beside 200 good ones (ARGS)
	$(BENCH) bench/slowloris.py --out build/bench $(ARGS)

bench-designs: ## sending from other threads, beside the two designs taught most (ARGS)
	$(BENCH) bench/designs.py --out build/bench --table docs/benchmarks/designs.md $(ARGS)

bench-timers: ## what 100,000 idle time-outs cost per message (ARGS)
	@$(INSTALL) build bench
	@cmake --preset release -Wno-dev >/dev/null
	@cmake --build build/release -j$(JOBS) --target penstock_bench_idle_timers
	@build/release/bin/bench/idle_timers $(ARGS) | tee docs/benchmarks/timers.md

coverage: ## run every test under gcov, print the lines that none reaches, write build/coverage/report/
	@$(INSTALL) build test coverage
	@cmake --preset coverage -Wno-dev >/dev/null
	@cmake --build build/coverage -j$(JOBS)
	@find build/coverage -name '*.gcda' -delete
	@$(CTEST) --test-dir build/coverage
	@mkdir -p build/coverage/report
	@gcovr --root . --filter src/ -j $(JOBS) --exclude-throw-branches --print-summary \
	  --html-details build/coverage/report/index.html --txt build/coverage/report/lines.txt \
	  $(addprefix build/coverage/CMakeFiles/,penstock.dir penstock_sim.dir penstock_app_parts.dir)
	@cat build/coverage/report/lines.txt

docs: ## write the API reference, build/docs/html/index.html; fails on what is undocumented
	@$(INSTALL) docs
	@rm -rf build/docs && mkdir -p build/docs
	@doxygen docs/Doxyfile
	@echo "Wrote build/docs/html/index.html"

install-packages: ## install the Debian packages that all of the above need
	@$(INSTALL) build test clang fuzz lint bench coverage docs

clean: ## remove build/
	rm -rf build
