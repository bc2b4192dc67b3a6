# Chatroom: `make` builds ./server and ./client; `make help` lists what else there is.
#
#   make CXX=clang++ CXXFLAGS="-O0 -stdlib=libc++"    other tools and flags: all that they concern is built anew
#   make V=1                                          shows each command in full

PREFIX ?= /usr/local
PORT   ?= 12345
BINDIR := $(DESTDIR)$(PREFIX)/bin
MANDIR := $(DESTDIR)$(PREFIX)/share/man/man1

# Objects go under B, the two programs under OUT. `make sanitize` calls this file again with others of its own.
B   := build
OUT :=
SERVER := $(OUT)server
CLIENT := $(OUT)client
# The suites that take longest come first: four run at a time, and then none of them is left to the end.
LONGEST := $(patsubst %,tests/%_test.cpp,tutorial crash promises rooms screen hostile accounts docs stress client)
SUITES  := $(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/*_test.cpp))
TESTS   := $(SUITES:%.cpp=$(B)/%)
ifdef SANITIZE
# Only the programs under test need the sanitizers; of the tests that is the one of common.hpp itself. The tutorial's
# tests and the documents' are about other programs.
OTHERS := $(filter-out %/common_test %/tutorial_test %/docs_test,$(SUITES:%.cpp=build/%))
TESTS  := $(B)/tests/common_test
endif
ifdef ONLY
CHOSEN := $(addprefix %/,$(addsuffix _test,$(ONLY)))
TESTS  := $(filter $(CHOSEN),$(TESTS))
OTHERS := $(filter $(CHOSEN),$(OTHERS))
$(if $(TESTS)$(OTHERS)$(filter bench,$(MAKECMDGOALS)),,$(error There is no tests/$(ONLY)_test.cpp))
endif
HELPER := $(patsubst %.cpp,$(B)/%.o,$(wildcard tests/harness.cpp))

# CXXFLAGS, CPPFLAGS and LDFLAGS are for callers of make: they come after ours, except for what the sources need.
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion
ifdef SANITIZE
# (g++ takes more for uninitialized then than is: hence the last of these.)
CHECKED  := -O1 -fno-omit-frame-pointer -fsanitize=$(SANITIZE) -fsanitize-undefined-trap-on-error -Wno-uninitialized
endif
FLAGS    := -O2 -g $(WARNINGS) $(CXXFLAGS) $(CHECKED) -std=c++20 -pthread
# crypt(3), for the server's accounts, is in a library of its own, but on some systems in the C library. It is looked
# for when the server is linked; CRYPT= on the command line spares that.
CRYPT     = $(shell echo 'int main() {}' | $(CXX) -x c++ - -lcrypt -o /dev/null 2>/dev/null && echo -lcrypt)
COMPILE  := $(CXX) $(FLAGS) -I. $(CPPFLAGS)
LINK     := $(CXX) $(FLAGS) $(LDFLAGS)

# GoogleTest, for the tests alone. Its headers count as the system's, so that they give no warnings.
GTEST_CFLAGS = $(patsubst -I%,-isystem %,$(shell pkg-config --cflags gtest 2>/dev/null))
GTEST_LIBS   = $(shell pkg-config --libs gtest_main 2>/dev/null || echo -lgtest_main -lgtest)

ifneq ($(V),1)
Q := @
endif

all: $(SERVER) $(CLIENT)  ## build ./server and ./client (this is what plain `make` does)

# ---- Building ----

$(SERVER) $(CLIENT): $(OUT)%: $(B)/%.o
	@echo "  link     $@"
	$(Q)$(LINK) $^ $(if $(findstring server,$@),$(CRYPT)) -o $@

$(B)/%.o: %.cpp $(B)/flags
	@echo "  compile  $<"
	@mkdir -p $(@D)
	$(Q)$(COMPILE) $(UNOPTIMISED) -MMD -MP -c $< -o $@

# Tests wait more than they work, and compile in half the time without optimisation; the harness searches megabytes.
$(HELPER): UNOPTIMISED :=
$(B)/tests/%.o $(B)/docs/%.o: UNOPTIMISED := -O0
$(B)/tests/%.o: tests/%.cpp $(B)/flags $(B)/gtest.log
	@echo "  compile  $<"
	@mkdir -p $(@D)
	$(Q)$(COMPILE) $(UNOPTIMISED) $(GTEST_CFLAGS) -MMD -MP -c $< -o $@

$(TESTS) $(B)/tests/picture $(B)/tests/soak: %: %.o $(HELPER)
	@echo "  link     $@"
	$(Q)$(LINK) $^ $(GTEST_LIBS) -o $@

# Holds the flags in use; it is written, and thus newer than the objects, only when they are not those of last time.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(subst ','\'',$(COMPILE) / $(LINK))' >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Links an empty test, since GoogleTest can be missing, or built for another C++ library.
$(B)/gtest.log: $(B)/flags
	@printf '#include <gtest/gtest.h>\nTEST(GoogleTest, IsHere) {}\n' >$(B)/gtest.cpp
	@$(COMPILE) $(GTEST_CFLAGS) $(B)/gtest.cpp $(LDFLAGS) $(GTEST_LIBS) -o $(B)/gtest >$@.new 2>&1 && mv $@.new $@ || { \
		echo "The tests need GoogleTest: apt-get install libgtest-dev, or brew install googletest pkg-config."; \
		echo "If it is there, $@.new says why $(CXX) cannot use it."; exit 1; }

-include $(wildcard $(B)/*.d $(B)/tests/*.d $(B)/tests/bench/*.d $(B)/docs/tutorial/steps/*.d)
.SECONDARY:

# ---- Running ----

# The server tries the port: when it is taken, a server is taken to be there, and is joined and left running. Ctrl-Z
# stops the client alone, not the chat.
run: all  ## join the chat on this machine; starts a server for it if none is there (PORT=12345)
	@log=build/server.log.$$$$; (umask 077; : >$$log); \
	(trap '' TSTP; exec ./server --port $(PORT)) </dev/null >$$log 2>&1 & server=$$!; \
	trap '{ kill $$server && wait $$server; } 2>/dev/null; rm -f $$log' EXIT; trap 'exit 0' HUP INT TERM; \
	until grep -q 'listening on port' $$log || ! kill -0 $$server 2>/dev/null; do sleep 0.1; done; \
	if kill -0 $$server 2>/dev/null; then \
		mv $$log build/server.log; \
		notice="You run the server on port $(PORT) (its log: build/server.log): when you leave, the chat ends"; \
		export CHATROOM_NOTICE="$$notice for everybody. $$(grep '^admin password: ' build/server.log)"; \
		echo "$$CHATROOM_NOTICE"; \
	elif grep -q EADDRINUSE $$log; then echo "Joining the server that is on port $(PORT)."; \
	else cat $$log; exit 1; fi; \
	./client 127.0.0.1 $(PORT) || :

demo: all  ## let four clients talk through a server, without a terminal, and show what each saw
	@sh tests/demo.sh ./$(SERVER) ./$(CLIENT)

trace: all  ## run the server and show the socket calls of each thread; needs strace (PORT=12345, 0: any free one)
	@sh tests/trace.sh ./$(SERVER) --port $(PORT)

picture: all $(B)/tests/picture  ## draw the pictures in docs/images anew, from what the client shows
	@mkdir -p docs/images
	@$(TEST_ENV) $(B)/tests/picture docs/images

# ---- Testing ----

# A sanitizer's report goes to a file, whichever process it is about; tests/run.sh fails if it finds one. Undefined
# behaviour is a trap, told as "ILL" or "TRAP" with its line: its own messages would miss that file with g++.
REPORT    := $(CURDIR)/$(B)/report
SAN_FLAGS := log_path='$(REPORT)':second_deadlock_stack=1:handle_sigill=1:handle_sigtrap=1
TEST_ENV  := CHATROOM_SERVER="$(CURDIR)/$(SERVER)" CHATROOM_CLIENT="$(CURDIR)/$(CLIENT)"
ifdef SANITIZE
TEST_ENV  += ASAN_OPTIONS="$(SAN_FLAGS):verify_asan_link_order=0" TSAN_OPTIONS="$(SAN_FLAGS)" CHATROOM_SLOW=1
endif

test: all $(TESTS)  ## build and run the tests (ONLY=rooms: of one file, FILTER='Suite.*': some, V=1: shows each)
	@$(TEST_ENV) FILTER='$(FILTER)' V=$(V) sh tests/run.sh "$(REPORT)" $(TESTS) $(OTHERS)

# The tutorial's step programs, which its test runs.
STEPS := $(patsubst %.cpp,build/%,$(wildcard docs/tutorial/steps/*.cpp))
$(STEPS): %: %.o
	@echo "  link     $@"
	$(Q)$(LINK) $^ $(CRYPT) -o $@

steps: $(STEPS)  ## build the step programs of docs/tutorial

# The exercises' solutions are changes to steps, each of which the first line of a patch names; or to server.cpp, as
# commands for sed, which find their places also when it has changed elsewhere.
PATCHES   := $(patsubst %.patch,build/%,$(wildcard tests/solutions/*.patch))
EDITS     := $(patsubst %.sed,build/%,$(wildcard tests/solutions/*.sed))
SOLUTIONS := $(PATCHES) $(EDITS)
$(PATCHES:%=%.cpp): build/%.cpp: %.patch tests/apply.awk $(wildcard docs/tutorial/steps/*.cpp)
	@mkdir -p $(@D)
	@awk -f tests/apply.awk $< "$$(sed -n '1s/^--- //p' $<)" >$@ || { rm $@; exit 1; }
$(EDITS:%=%.cpp): build/%.cpp: %.sed server.cpp
	@mkdir -p $(@D)
	@sed -f $< server.cpp >$@
$(SOLUTIONS): %: %.cpp common.hpp build/flags
	@echo "  compile  $<"
	$(Q)$(LINK) -O0 -I. $< $(CRYPT) -o $@
test: $(if $(filter build/tests/tutorial_test build/tests/docs_test,$(TESTS)),$(STEPS)) \
	$(if $(filter build/tests/tutorial_test,$(TESTS)),$(SOLUTIONS))

check-%: build/tests/tutorial_test  ## check your solution of an exercise: make check-06 SRC=mine.cpp
	@$(if $(SRC),,echo 'Which file? make $@ SRC=mine.cpp' && exit 1)
	@mkdir -p build/check
	$(Q)$(LINK) -I. "$(SRC)" $(CRYPT) -o build/check/$*
	@EXERCISE=$* PROGRAM=$(CURDIR)/build/check/$* build/tests/tutorial_test --gtest_brief=1 \
		--gtest_also_run_disabled_tests --gtest_filter=Exercises.DISABLED_Check >build/check/$*.log 2>&1; \
		status=$$?; grep -v '^\[\|^Running main\|: Failure$$\|^Failed$$' build/check/$*.log; exit $$status

sanitize: $(TESTS)  ## run the tests with the address, undefined behaviour and thread sanitizers
	@$(MAKE) --no-print-directory SANITIZE=address,undefined B=build/asan OUT=build/asan/ test
	@$(MAKE) --no-print-directory SANITIZE=thread B=build/tsan OUT=build/tsan/ test

# What faults_test preloads into the server, to fail its system calls.
$(B)/tests/faults_test: | $(B)/tests/libfaults.so
$(B)/tests/libfaults.so: tests/faults.cpp tests/faults.hpp $(B)/flags
	@echo "  compile  $<"
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -fPIC -shared $< $(LDFLAGS) -o $@

soak: all $(B)/tests/soak $(B)/tests/hostile_test  ## everything at once on one server, then a client (MINUTES=10)
	@$(TEST_ENV) $(B)/tests/soak $(or $(SECONDS),$(shell expr 60 '*' $(or $(MINUTES),10)))
	$(if $(SECONDS),,@$(TEST_ENV) CHATROOM_HOSTILE_ROUNDS=$(or $(MINUTES),10) $(B)/tests/hostile_test --gtest_brief=1)

# libFuzzer comes with clang, whatever compiles the rest. What it finds out is kept in build/fuzz/*.corpus.
FUZZ := $(patsubst tests/fuzz/%.cpp,%,$(wildcard tests/fuzz/*.cpp))
$(B)/fuzz/%: tests/fuzz/%.cpp tests/fuzz/fuzz.hpp common.hpp server.cpp client.cpp
	@echo "  compile  $<"
	@mkdir -p $@.corpus
	$(Q)clang++ -O1 -g $(WARNINGS) -std=c++20 -pthread -I. -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=undefined $< $(CRYPT) -o $@

fuzz: $(FUZZ:%=$(B)/fuzz/%)  ## feed every parser, and a whole server, with what libFuzzer makes up (SECONDS=120)
	@for each in $(FUZZ); do \
		echo "  fuzz     $$each"; \
		$(B)/fuzz/$$each -max_total_time=$$(expr $(or $(SECONDS),120) / $(words $(FUZZ))) -len_control=0 -max_len=500 \
			-timeout=60 -rss_limit_mb=3000 -detect_leaks=0 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=$(B)/fuzz/$$each- \
			$(B)/fuzz/$$each.corpus tests/fuzz/seeds/$$each 2>$(B)/fuzz/$$each.log \
			|| { tail -60 $(B)/fuzz/$$each.log; grep -a '^this does not hold\|^SUMMARY' $(B)/fuzz/$$each.log; \
			echo "make fuzz: $$each has failed"; exit 1; }; \
		grep -E 'number_of_executed_units' $(B)/fuzz/$$each.log; \
	done

# ---- Measuring ----

BENCH := $(patsubst %,$(B)/tests/bench/%.o,bench load report servers)

$(B)/tests/bench/%.o: tests/bench/%.cpp $(B)/flags
	@echo "  compile  $<"
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -MMD -MP -c $< -o $@

$(B)/tests/bench/bench: $(BENCH)
$(B)/tests/bench/limits: $(B)/tests/bench/limits.o
$(B)/tests/bench/bench $(B)/tests/bench/limits:
	@echo "  link     $@"
	$(Q)$(LINK) $^ -o $@

# The figure that is in the documentation is that of a whole run.
bench: $(SERVER) $(B)/tests/bench/bench $(B)/tests/bench/limits  ## compare with other servers: 12 minutes (QUICK=1: three)
	@mkdir -p docs/images
	@$(B)/tests/bench/bench ./$(SERVER) $(B)/tests/bench/limits $(B)/tests/bench $(if $(QUICK),quick) $(WORKLOAD)
	$(if $(QUICK)$(WORKLOAD),,@cp $(B)/tests/bench/performance.svg docs/images/)
	@echo "The same as JSON: $(B)/tests/bench/results.jsonl; the picture: $(B)/tests/bench/performance.svg"

# ---- Checking ----

SOURCES := $(wildcard *.cpp tests/*.cpp tests/bench/*.cpp)
HEADERS := $(wildcard *.hpp tests/*.hpp tests/bench/*.hpp)

# Left to others: lifetimes to the address sanitizer, since cppcheck takes views of living strings for dangling ones;
# crypt(), of which the server has one call at a time; and "text"s + 'c', which it takes for arithmetic.
UNCHECKED := invalidLifetime danglingLifetime danglingTemporaryLifetime cryptCalled strPlusChar
lint: $(SOURCES:%=$(B)/lint/%)  ## check the sources with clang-tidy, cppcheck and clang-format
	@echo "  cppcheck"
	$(Q)cppcheck --quiet --std=c++20 --language=c++ --library=posix,googletest --inline-suppr --error-exitcode=1 \
		--enable=warning,performance,portability $(addprefix --suppress=,$(UNCHECKED)) -I. $(SOURCES)
	@echo "  clang-format"
	$(Q)clang-format --dry-run -Werror $(SOURCES) $(HEADERS) docs/tutorial/steps/*.cpp

$(B)/lint/%: % $(HEADERS) .clang-tidy | lint-tools
	@echo "  clang-tidy $<"
	@mkdir -p $(@D)
	$(Q)clang-tidy --quiet $< -- $(FLAGS) -I. $(CPPFLAGS) >$@.log 2>&1 || { grep -v 'generated.$$' $@.log; exit 1; }
	@touch $@

lint-tools:
	@for tool in clang-tidy cppcheck clang-format; do \
		command -v $$tool >/dev/null || { echo "lint needs $$tool: apt-get install $$tool"; exit 1; }; done

# ---- Installing ----

install: all  ## install chatroom-server, chatroom and their man pages (PREFIX=/usr/local, DESTDIR=)
	install -d "$(BINDIR)" "$(MANDIR)"
	install -m 755 server "$(BINDIR)/chatroom-server"
	install -m 755 client "$(BINDIR)/chatroom"
	install -m 644 docs/man/chatroom.1 docs/man/chatroom-server.1 "$(MANDIR)"

uninstall:  ## remove what install put there
	rm -f "$(BINDIR)/chatroom-server" "$(BINDIR)/chatroom" "$(MANDIR)/chatroom.1" "$(MANDIR)/chatroom-server.1"

clean:  ## remove all that was built
	@rm -rf build server client

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*  ## /\1 /p' $(firstword $(MAKEFILE_LIST)) | \
		while read -r target does; do printf '  make %-10s %s\n' "$$target" "$$does"; done

FORCE:
.PHONY: all run demo trace picture test steps sanitize soak fuzz bench lint lint-tools install uninstall clean help FORCE
