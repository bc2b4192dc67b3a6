#!/bin/sh
# Runs the server and shows, among the lines of its log, each thread's socket calls, at the time when they return.
#
#   sh tests/trace.sh SERVER OPTION...        e.g. ./server --port 12345; `make trace` calls it so

# show: reads what strace writes. strace knows a thread by the name that it began with; the prctl() by which the thread
# then names itself tells more.
show() {
    main=''
    while read -r id call; do
        [ "$main" ] || { main=$id; eval "name_$id=main"; }
        case $call in
            'prctl(PR_SET_NAME,'*) name=${call#*\"}; eval "name_$id=\${name%%\\\"*}" ;;
            *'<TCP'* | *'<UDP'*) eval "name=\${name_$id:-$id}"; printf '%-15s %s\n' "$name" "$call" ;;
        esac
    done | sed -u 's/<[TU][CD]P[^ ,)]*>//g'
}
if [ "$1" = --show ]; then show; exit; fi

command -v strace >/dev/null || { echo 'make trace needs strace, on Linux: apt-get install strace'; exit 1; }
trap '' INT  # Ctrl-C is for the server, whose last calls are shown too
strace -f -yy -s 100 -qq -e signal=none -e status=successful,failed -o "|sh '$0' --show" \
    -e trace=prctl,socket,bind,listen,accept,recvfrom,sendto,shutdown,close "$@"
