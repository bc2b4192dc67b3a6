#!/bin/sh
# A demonstration, and a test: real clients talk through a real server, and what each of them saw is shown.
# It ends with 0 only if everything arrived. No terminal is needed.
#
#   sh tests/demo.sh SERVER CLIENT        e.g. ./server ./client; `make demo` calls it so
set -u
server=$1 client=$2
dir=$(mktemp -d) || exit 1
pids='' alice='' bob='' carol=''
trap 'kill $pids 2>/dev/null; wait; rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM PIPE

# within_10_seconds COMMAND...: repeats the command until it succeeds, or ends the demonstration.
within_10_seconds() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -le 200 ] || { echo "MISSING after 10 seconds: $*"; tail -n 50 "$dir"/*.log; exit 1; }
        sleep 0.05
    done
}

saw() { grep -q -- "$2\$" "$dir/$1.log"; }
until_saw() { within_10_seconds saw "$@"; }

# join NAME: starts a client, whose keyboard is a pipe and whose screen is a file.
join() {
    mkfifo "$dir/$1.keys"
    "$client" 127.0.0.1 "$port" --name "$1" --plain <"$dir/$1.keys" >"$dir/$1.log" 2>&1 &
    pids="$pids $!"
    eval "$1=\$!"
}

# ends PID: waits for a process to end, and gives its exit status.
gone() { ! kill -0 "$1" 2>/dev/null; }
ends() { within_10_seconds gone "$1"; wait "$1"; }

# ---- A server, and four who come to chat ----

CHAT_ADMIN_PASSWORD=demo-password "$server" --port 0 --bind 127.0.0.1 --bans "$dir/bans.txt" \
    </dev/null >"$dir/server.log" 2>&1 &
chat=$! pids=$!
until_saw server 'listening on port [0-9]*'
port=$(sed -n 's/.*listening on port \([0-9]*\).*/\1/p' "$dir/server.log" | head -n 1)
echo "A server is listening on port $port."

join alice && exec 3>"$dir/alice.keys" && until_saw alice 'You are in public.*'
join bob && exec 4>"$dir/bob.keys" && until_saw alice '-- bob joined\.'
join carol && exec 5>"$dir/carol.keys" && until_saw alice '-- carol joined\.'
join admin && exec 6>"$dir/admin.keys" && echo demo-password >&6 && until_saw alice '-- admin joined\.'

# ---- What they type; each waits until those before have been heard ----

echo 'Good morning!' >&3
until_saw bob 'alice: Good morning!'
echo 'Bonjour à tous, 你好 🎉' >&4
until_saw carol 'bob: Bonjour à tous, 你好 🎉'
echo '/me waves' >&5
until_saw alice '\* carol waves'
echo '/msg bob our secret' >&3
until_saw bob 'alice -> bob: our secret'
echo '/reply I tell nobody' >&4
until_saw alice 'bob -> alice: I tell nobody'
echo '/kick bob' >&6
until_saw carol '-- bob was kicked by admin.'
ends "$bob"
bob_status=$?
echo 'We are three now.' >&5
until_saw alice 'carol: We are three now.'
until_saw admin 'carol: We are three now.'
echo '/quit' >&3
ends "$alice"
alice_status=$?
echo '/shutdown' >&6
ends "$carol"
carol_status=$?
ends "$chat"
server_status=$?

# ---- What each of them saw, and whether that is all that they should have ----

for name in alice bob carol admin; do
    printf '\n==== What %s saw:\n' "$name"
    cat "$dir/$name.log"
done
echo
failed=0
wrong() { echo "WRONG: $*"; failed=1; }
expect() { saw "$@" || wrong "$1 did not see '$2'."; }

for name in alice bob carol admin; do
    expect $name 'alice: Good morning!'
    expect $name 'bob: Bonjour à tous, 你好 🎉'
    expect $name '\* carol waves'
done
for name in alice bob; do
    expect $name 'alice -> bob: our secret'
    expect $name 'bob -> alice: I tell nobody'
done
grep -q 'secret\|I tell nobody' "$dir/carol.log" "$dir/admin.log" && wrong "Others saw the private messages."
grep -q 'three' "$dir/bob.log" && wrong "bob heard what was said after he was kicked."
expect bob 'You were kicked by admin\.'
[ $alice_status = 0 ] || wrong "alice quit, and her client ended with $alice_status."
[ $bob_status = 1 ] || wrong "bob was kicked, and his client ended with $bob_status."
[ $carol_status = 1 ] || wrong "The server shut down, and carol's client ended with $carol_status."
[ $server_status = 0 ] || wrong "The server ended with $server_status."
[ $failed = 0 ] && echo "Everything arrived, and nothing where it did not belong."
exit $failed
