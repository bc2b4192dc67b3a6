// Everything at once on one server, for as long as is asked for: visitors who connect and go, abusers, regulars who
// chat, an admin who bans, and two people who only want to talk, and whose latency is measured.
//
//   soak SECONDS        `make soak` calls it so
//
// In 100 seconds or more there are 100,000 connections, of which 10,000 are abusive. What the server uses is printed as
// it goes. At the end it must use what it did at the start: as many threads and descriptors, and at most 10 MiB more.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <deque>
#include <future>
#include <iostream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "proof.hpp"

using namespace harness;
using namespace proof;

namespace {

using namespace std::string_view_literals;
using Seconds = std::chrono::duration<double>;

constexpr int connections_in_all = 100'000, max_pace = 1000;  // so many a second
constexpr int visitor_threads = 3, abuser_threads = 3, regulars = 12;
constexpr long memory_tolerance = 10L * 1024 * 1024;

std::atomic<bool> over = false;
std::atomic<long> connects = 0, abuses = 0, said = 0, bans = 0, troubles = 0;

struct Usage {
    long threads = 0, descriptors = 0, memory = 0;
};

Usage usage_of(const Server& server) {
    return {thread_count(server.pid()), descriptor_count(server.pid()), resident_bytes(server.pid())};
}

// The latencies of the pair since it was last asked, in milliseconds.
class Latencies {
   public:
    void add(double milliseconds) {
        const std::lock_guard lock(mutex_);
        values_.push_back(milliseconds);
    }

    std::vector<double> take() {
        const std::lock_guard lock(mutex_);
        std::vector<double> sorted = std::exchange(values_, {});
        std::sort(sorted.begin(), sorted.end());
        return sorted;
    }

   private:
    std::mutex mutex_;
    std::vector<double> values_;
};

Latencies latencies;

// Calls act(number) again and again, `pace` times a second, until all is over. What a server under load may do to one
// peer, such as to be slow, is counted and no more.
template <typename Act>
void keep_doing(double pace, Act act) {
    const Clock::time_point begin = Clock::now();
    for (long number = 0; !over; ++number) {
        std::this_thread::sleep_until(
            begin + std::chrono::duration_cast<Clock::duration>(Seconds(static_cast<double>(number) / pace)));
        try {
            act(number);
        } catch (const Failure& failure) {
            if (++troubles == 1) std::cerr << "the first trouble: " << failure.what() << std::endl;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Who is there

void visit(const Server& server, int thread, long number) {
    Peer peer(server.port(), PeerOptions{.from = address_of(static_cast<int>(number % 5000))}, 20);
    ++connects;
    const std::string name = "v" + std::to_string(thread) + "x" + std::to_string(number);
    switch (number % 6) {
        case 0: return;  // and nothing else
        case 1: return peer.reset();
        case 2: peer.expect(starts("NICK "), 20); return;
        case 3: return peer.send_line(name + "\n");
        case 4: peer.send_line("no name\n/quit\nserver"); return peer.half_close();
        default: peer.send_raw("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); peer.expect(starts("ERR "), 20);
    }
}

// Some abusers stay for a while, so that many are there at once.
void abuse(const Server& server, std::deque<Peer>& staying, long number) {
    const int kind = static_cast<int>(number % 8);
    const PeerOptions options{.from = address_of(10'000 + static_cast<int>(number % 3000)),
                              .receive_buffer = kind == 0 ? 4096 : 0,
                              .deaf = kind == 0};
    Peer peer(server.port(), options, 20);
    ++connects;
    ++abuses;
    std::string requests;
    for (int i = 0; i < 40; ++i) requests += "/echo " + std::string(4000, 'x') + "\n";
    switch (kind) {
        case 0:  // asks for much and reads nothing
            peer.try_send("regular" + std::to_string(number / 8 % regulars + 100) + "\n" + tea + "\n" + requests, 0.02);
            break;
        case 1: peer.try_send(std::string(100'000, '\xFF'), 0.02); break;          // a line without an end
        case 2: break;                                                             // never answers
        case 3: peer.try_send("admin\nguess 1\nguess 2\nguess 3\n", 0.02); break;  // guesses
        case 4: peer.try_send("regular1\n" + std::string(300, 'p') + "\n\n\n", 0.02); break;
        case 5: peer.try_send("\0\x1B[2J\r\n\xE2\x80\xAE\n/quit"sv, 0.02); break;
        case 6: peer.try_send(requests, 0.02); return peer.reset();  // and is gone when the answers come
        default: peer.try_send(std::string(5000, 'x') + "\n" + std::string(5000, '\n'), 0.02);
    }
    staying.push_back(std::move(peer));
    if (staying.size() > 20) staying.pop_front();
}

// Somebody with an account, who talks, goes from room to room, and now and then logs in again.
void live(const Server& server, int number) {
    std::mt19937 random(static_cast<unsigned>(number));
    const std::string name = "regular" + std::to_string(number);
    const PeerOptions from{.from = address_of(20'000 + number)};
    keep_doing(5, [&](long) {
        Peer peer(server.port(), from, 20);
        peer.login(name, tea, 20);
        for (int i = 0; i < 50 && !over; ++i) {
            const std::string room = "room" + std::to_string(random() % 4);
            const std::array<std::string, 8> lines{
                "hello everybody", "/me waves", "/create " + room, "/join " + room, "/msg " + name + " hello",
                "/leave",          "/who",      "/rooms"};
            peer.send_line(lines.at(random() % lines.size()), 20);
            peer.lines_until_echo(20);
            ++said;
            std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
        leave(std::move(peer));
    });
}

void administrate(const Server& server) {
    Peer admin = admin_of(server);
    keep_doing(10, [&](long number) {
        const std::string name = "bad" + std::to_string(number / 2 % 50);
        ask(admin, (number % 2 == 0 ? "/ban " : "/unban ") + name, "INFO " + name);
        ++bans;
    });
    leave(std::move(admin));
}

void talk(Peer& alice, Peer& bob) {
    keep_doing(5, [&](long number) {  // the rate allows ten
        const Clock::time_point begin = Clock::now();
        const std::string line = "line " + std::to_string(number);
        alice.send_line(line, 20);
        bob.expect("SAY alice " + line, 20);
        latencies.add(Seconds(Clock::now() - begin).count() * 1000);
        bob.send_line("yes", 20);
        alice.expect("SAY bob yes", 20);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// What is told

void print_row(double seconds, const Usage& now) {
    const std::vector<double> sorted = latencies.take();
    const auto at = [&](double part) {
        return sorted.empty() ? 0 : sorted[static_cast<std::size_t>(part * static_cast<double>(sorted.size() - 1))];
    };
    std::printf("%7.0f %9ld %8ld %6ld %6ld %8ld %6ld %8.1f   %7.2f %7.2f %7.2f\n", seconds, connects.load(),
                abuses.load(), said.load(), bans.load(), now.threads, now.descriptors,
                static_cast<double>(now.memory) / 1024 / 1024, at(0.5), at(0.99), at(1));
    std::fflush(stdout);
}

// True if what is used at the end is what was at the start.
bool compare(const Usage& start, const Usage& end) {
    const double mib = 1024 * 1024;
    std::printf("\n%16s %10s %10s\n", "", "start", "end");
    std::printf("%16s %10ld %10ld\n", "threads", start.threads, end.threads);
    std::printf("%16s %10ld %10ld\n", "descriptors", start.descriptors, end.descriptors);
    std::printf("%16s %10.1f %10.1f\n", "MiB", static_cast<double>(start.memory) / mib,
                static_cast<double>(end.memory) / mib);
    return start.threads == end.threads && start.descriptors == end.descriptors &&
           end.memory - start.memory <= memory_tolerance;
}

void run_all(Server& server, Peer& alice, Peer& bob, double seconds) {
    const Clock::time_point begin = Clock::now();
    const double pace = std::min<double>(max_pace, connections_in_all / seconds);
    std::vector<std::future<void>> lives;
    const auto begin_life = [&](auto life) { lives.push_back(std::async(std::launch::async, std::move(life))); };
    for (int thread = 0; thread < visitor_threads; ++thread) {
        begin_life([&, thread] {
            keep_doing(0.9 * pace / visitor_threads, [&](long number) { visit(server, thread, number); });
        });
    }
    for (int thread = 0; thread < abuser_threads; ++thread) {
        begin_life([&, thread] {
            std::deque<Peer> staying;
            keep_doing(0.1 * pace / abuser_threads,
                       [&](long number) { abuse(server, staying, abuser_threads * number + thread); });
        });
    }
    for (int i = 0; i < regulars; ++i) begin_life([&, i] { live(server, i); });
    begin_life([&] { administrate(server); });
    begin_life([&] { talk(alice, bob); });

    std::printf("%7s %9s %8s %6s %6s %8s %6s %8s   %s\n", "seconds", "connects", "abusive", "lines", "bans", "threads",
                "fds", "MiB", "latency: median, 99 %, max (ms)");
    const auto elapsed = [&] { return Seconds(Clock::now() - begin).count(); };
    for (double next = seconds / 20; elapsed() < seconds;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        server.mark();  // takes in what it prints
        if (elapsed() < next) continue;
        print_row(elapsed(), usage_of(server));
        next += std::max(1.0, seconds / 20);
    }
    over = true;
    for (std::future<void>& life : lives) life.get();
    print_row(elapsed(), usage_of(server));
}

}  // namespace

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::stod(argv[1]) : 60;
    if (!allow_descriptors(2000)) std::cerr << "few descriptors: some peers will have none\n";
    try {
        const Home home;
        Server server(home.options({"--rate", "10", "--max-per-ip", "64", "--rooms", "calm"}), 20);
        for (int i = 0; i < regulars; ++i) {
            for (const int number : {i, i + 100}) {
                leave(registered(server.port(), "regular" + std::to_string(number), tea,
                                 {.from = address_of(30'000 + number)}));
            }
        }
        Peer alice = registered(server.port(), "alice"), bob = registered(server.port(), "bob");
        for (Peer* peer : {&alice, &bob}) ask(*peer, "/join calm", "ROOM calm");
        eventually([&] { return false; }, 3);  // until the memory of the registrations has been given back
        const Usage start = usage_of(server);
        run_all(server, alice, bob, seconds);
        Usage end = usage_of(server);
        const auto is_as_before = [&] {
            server.mark();
            end = usage_of(server);
            return start.threads == end.threads && start.descriptors == end.descriptors &&
                   end.memory - start.memory <= memory_tolerance;
        };
        eventually(is_as_before, 60);
        const bool good = compare(start, end);
        server.signal(SIGTERM);
        const int status = server.wait_exit(10);
        std::printf("%ld troubles of peers; the server ended with %d\n%s\n", troubles.load(), status,
                    good && status == 0 ? "passed" : "FAILED");
        return good && status == 0 ? 0 : 1;
    } catch (const std::exception& problem) {
        std::cerr << problem.what() << "\nFAILED\n";
        return 1;
    }
}
