// The shutdown with a thousand clients: 200 that are stalled, 400 that listen and 400 that flood. Everyone who reads
// has every line that was accepted before, in the same order, and then BYE. CHATROOM_CROWD sets how many clients
// (1000).
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <deque>
#include <future>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "harness.hpp"
#include "proof.hpp"

using namespace harness;
using namespace proof;

namespace {

// Peers that are in the room by now, and see the same from the line "SAY marker ready" on.
std::deque<Peer> crowd(int port, long count, const std::string& name, const PeerOptions& options = {}) {
    std::deque<Peer> peers;
    for (long i = 0; i < count; ++i) peers.emplace_back(port, options, 20);
    for (long i = 0; i < count; ++i) peers[static_cast<std::size_t>(i)].send_line(name + std::to_string(i));
    for (Peer& peer : peers) peer.expect(starts("WELCOME "), 60);
    return peers;
}

// Promises 1 and 6. `lines` is what came up to the end of a connection; checked is all but the JOINs of later clients.
void expect_same_end(const Lines& lines, const Lines& first, const std::string& who) {
    ASSERT_FALSE(lines.empty()) << who;
    EXPECT_TRUE(lines.back().starts_with("BYE SHUTDOWN ")) << who << " ended with " << lines.back();
    EXPECT_EQ(lines.size(), first.size()) << who;
    EXPECT_TRUE(lines == first) << who << " has other lines, or in another order";
}

// Peers for whom much waits, since they asked for what they do not read.
std::deque<Peer> stalled_crowd(int port, long count) {
    std::deque<Peer> peers = crowd(port, count, "stuck", {.receive_buffer = 4096, .deaf = true});
    std::string requests;
    for (int i = 0; i < 25; ++i) requests += "/echo " + std::string(4000, 'x') + "\n";
    for (Peer& peer : peers) peer.try_send(requests, 0.05);
    return peers;
}

TEST(Shutdown, OfAThousandClientsLosesNoLineThatWasAccepted) {
    const long all = from_environment("CHATROOM_CROWD", is_sanitized() ? 200 : 1000), stalled = all / 5,
               others = (all - stalled) / 2;
    if (!allow_descriptors(static_cast<rlim_t>(all) + 100)) GTEST_SKIP() << "not so many descriptors for this process";
    Server server({.args = {"--max-clients", std::to_string(all + 10), "--rate", "10"}}, 20);
    std::deque<Peer> listeners = crowd(server.port(), others, "quiet"), talkers = crowd(server.port(), others, "loud");
    std::deque<Peer> stuck = stalled_crowd(server.port(), stalled);
    Peer marker(server.port(), "marker", 20);
    marker.send_line("ready");
    const Pattern ready("SAY marker ready");
    for (std::deque<Peer>* peers : {&listeners, &talkers}) {
        for (Peer& peer : *peers) peer.expect(ready, 60);
    }
    marker.expect(ready);
    auto flood = std::async(std::launch::async, [&] {  // goes on while the server shuts down
        for (int round = 0; round < 6; ++round) {
            for (Peer& talker : talkers) talker.try_send("hello " + std::to_string(round) + "\n");
        }
    });
    const long seen = others / 4;
    for (long i = 0; i < seen; ++i) marker.expect(starts("SAY loud"), 60);  // the flood has begun
    server.signal(SIGTERM);
    const Clock::time_point begin = Clock::now();
    const Lines first = marker.expect_closed(30);
    flood.get();
    long said = seen;
    for (const std::string& line : first) said += line.starts_with("SAY loud") ? 1 : 0;
    // What the marker had read before has to be put before its end, for the comparison: so the others skip as many.
    const auto rest_of = [&](Peer& peer) {
        for (long i = 0; i < seen; ++i) peer.expect(starts("SAY loud"), 60);
        return peer.expect_closed(60);
    };
    EXPECT_EQ(server.wait_exit(30), 0);
    const std::chrono::duration<double> time = Clock::now() - begin;
    for (std::size_t i = 0; i < listeners.size(); ++i) {
        expect_same_end(rest_of(listeners[i]), first, "quiet" + std::to_string(i));
        expect_same_end(rest_of(talkers[i]), first, "loud" + std::to_string(i));
        if (HasFailure()) return;  // one is enough to read
    }
    std::cout << all << " clients, " << said
              << " lines accepted, all of them with everyone who reads; the server ended "
              << "in " << time.count() << " s" << std::endl;
}

// The ban list is so long that all of them are still being held against it when the signal comes.
TEST(Shutdown, IsToldToThoseWhoAreLoggingInToo) {
    const Home home;
    write_file(home.bans, numbered("nobody", 1, 1000000));
    Server server(home.options(), 30);
    std::deque<Peer> peers;
    for (int i = 0; i < 20; ++i) peers.emplace_back(server.port(), PeerOptions{}, 20);
    for (Peer& peer : peers) peer.expect(starts("INFO This is Chatroom"), 20);
    server.signal(SIGTERM);
    for (Peer& peer : peers) {
        const Lines lines = peer.expect_closed(20);
        ASSERT_FALSE(lines.empty());
        EXPECT_EQ(lines.back(), "BYE SHUTDOWN The server shuts down.");
    }
    EXPECT_EQ(server.wait_exit(20), 0);
}

}  // namespace
