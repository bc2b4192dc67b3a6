#!/bin/sh
# Joins a room with the rooms of that name on other servers, through an MQTT broker. Run one for each server:
#
#   sh docs/bridge.sh HERE ROOM BROKER BROKER_PORT HOST PORT
#
# HERE is what the others call this server: letters and digits, different for each. docs/outgrow.md says more. What the
# bridge sees goes to standard error.
set -u
here=$1 room=$2 broker=$3 broker_port=$4 host=$5 port=$6
topic=chatroom/$room
name=mqtt$(printf %.8s "$room") # a second bridge for this room is thus refused by the server

dir=$(mktemp -d)
mkfifo "$dir/heard" "$dir/said"
mosquitto_sub -h "$broker" -p "$broker_port" -q 2 -R -v -t "$topic/+" -T "$topic/$here" >"$dir/heard" &
subscriber=$!
mosquitto_pub -h "$broker" -p "$broker_port" -q 2 -l -t "$topic/$here" <"$dir/said" &
publisher=$!
trap 'kill -KILL $subscriber $publisher 2>/dev/null; rm -r "$dir"' EXIT # now and then they ignore TERM
trap exit INT TERM

# What others heard is said here. Each line gets their name before it: none can begin with "/", and be a command.
{
    [ "$room" = public ] || echo "/join $room"
    echo '/echo ready'
    sed -un "s|^$topic/\([A-Za-z0-9]*\) |[\1] |p" <"$dir/heard"
} | "${CHATROOM_CLIENT:-./client}" --plain --name "$name" "$host" "$port" | sed -un '
    w /dev/stderr
    # Until "ready": what was said before. An error there, or another room later: we are where we should not be.
    1,/^[^ ]* == ready$/ { /^[^ ]* !! /q; d; }
    /^[^ ]* [^A-Za-z0-9*=][^:]* You are in /q
    # What people say or do is told, without the time; not what another bridge says, or it would go in circles.
    s/^[^ ]* //
    /^\(\* \)\{0,1\}mqtt/d
    /^\* /p
    /^[A-Za-z0-9]*: /p
' >"$dir/said" &
wait $publisher
