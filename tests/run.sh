#!/bin/sh
# Runs test programs one after the other, tells what failed, and adds them up: `make test` calls it so.
#
#   FILTER='Suite.*' V=1 sh tests/run.sh REPORT TEST...
#
# REPORT is what the names of the sanitizers' report files begin with. Each test's output is in TEST.log.
set -u
reports=$1
shift
passed=0 failed=0 skipped=0
rm -f "$reports".*

# Prints the part of a log that is about failed tests, and about the one that ran when the program ended too early.
failures() {
    awk '/^\[ RUN      \]/ { part = "" }
         { part = part $0 "\n" }
         /^\[  FAILED  \] .* ms\)$/ { printf "%s", part }
         /\[  (     OK|FAILED |SKIPPED) \] .* ms\)$/ { part = "" }
         /^\[----------\] Global test environment tear-down/ { exit }
         END { if ($0 !~ /tear-down/) printf "%s", part }' "$1"
}

for test in "$@"; do
    [ "${V:-}" = 1 ] || printf '  %-24s ' "$(basename "$test")"
    start=$(date +%s)
    "./$test" ${FILTER:+"--gtest_filter=$FILTER"} >"$test.log" 2>&1
    status=$?
    [ "${V:-}" = 1 ] && cat "$test.log"

    ok=$(grep -c '\[       OK \] .* ms)$' "$test.log")
    bad=$(grep -c '\[  FAILED  \] .* ms)$' "$test.log")
    skip=$(grep -c '\[  SKIPPED \] .* ms)$' "$test.log")
    ended=$(grep -c '^\[==========\] .* ran\.' "$test.log")
    # A program that crashed, or that ended with 0 before its last test, counts as a failed test more.
    if [ "$ended" = 0 ] || { [ "$status" != 0 ] && [ "$bad" = 0 ]; }; then bad=$((bad + 1)); fi
    [ "${V:-}" = 1 ] || echo "$ok passed, $bad failed, $skip skipped ($(($(date +%s) - start)) s)"
    if [ "$bad" != 0 ] && [ "${V:-}" != 1 ]; then
        failures "$test.log"
        echo "$test ended with status $status; its whole output is in $test.log."
    fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
done

for report in "$reports".*; do
    [ -f "$report" ] || continue
    failed=$((failed + 1))
    echo "A sanitizer's report, in $report:"
    cat "$report"
done

[ "$passed" != 0 ] || echo "No test passed${FILTER:+; FILTER is '$FILTER'}."
[ "$skipped" = 0 ] && others='' || others=", $skipped skipped"
echo "$passed passed, $failed failed$others"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
