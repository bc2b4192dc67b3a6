#!/bin/sh
# Runs test programs, four at a time since they wait more than they work, tells what failed, and adds them up:
# `make test` calls it so.
#
#   FILTER='Suite.*' V=1 sh tests/run.sh REPORT TEST...
#
# REPORT is what the names of the sanitizers' report files begin with. Each test's output is in TEST.log.
set -u

count() { grep -c "$1" "$test.log"; }

# Sets ok, bad and skip to the numbers of tests in TEST.log. A program that crashed, or that ended with 0 before its
# last test, counts as a failed test more.
count_tests() {
    test=$1
    ok=$(count '\[       OK \] .* ms)$') bad=$(count '\[  FAILED  \] .* ms)$') skip=$(count '\[  SKIPPED \] .* ms)$')
    status=$(cat "$test.status")
    if [ "$(count '^\[==========\] .* ran\.')" = 0 ] || { [ "$status" != 0 ] && [ "$bad" = 0 ]; }; then
        bad=$((bad + 1))
    fi
}

if [ "$1" = --one ]; then  # this script calls itself so
    start=$(date +%s)
    "./$2" ${FILTER:+"--gtest_filter=$FILTER"} >"$2.log" 2>&1
    echo $? >"$2.status"
    count_tests "$2"
    [ "${V:-}" = 1 ] && cat "$2.log"
    printf '  %-24s %s passed, %s failed, %s skipped (%s s)\n' "$(basename "$2")" "$ok" "$bad" "$skip" \
        $(($(date +%s) - start))
    exit 0
fi

# Prints the part of a log that is about failed tests, and about the one that ran when the program ended too early.
failures() {
    awk '/^\[ RUN      \]/ { part = "" }
         { part = part $0 "\n" }
         /^\[  FAILED  \] .* ms\)$/ { printf "%s", part }
         /\[  (     OK|FAILED |SKIPPED) \] .* ms\)$/ { part = "" }
         /^\[----------\] Global test environment tear-down/ { exit }
         END { if ($0 !~ /tear-down/) printf "%s", part }' "$1"
}

reports=$1
shift
passed=0 failed=0 skipped=0
rm -f "$reports".*
printf '%s\n' "$@" | xargs -P 4 -I TEST sh "$0" --one TEST

for each in "$@"; do
    count_tests "$each"
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

for each in "$@"; do
    awk '/: Skipped$/ { getline; print "skipped: " $0 }' "$each.log"
done | sort | uniq -c
if [ "$skipped" = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ "$failed" = 0 ] && [ "$passed" != 0 ]
