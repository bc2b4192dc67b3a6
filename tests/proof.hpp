// What the suites of the proof share: attack_test, faults_test, crash_test, shutdown_test and soak.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness.hpp"

namespace proof {

using harness::Lines;

inline long count_with(const Lines& lines, const std::string& part) {
    return std::count_if(lines.begin(), lines.end(),
                         [&](const std::string& line) { return harness::contains(line, part); });
}

inline long from_environment(const char* name, long otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::stol(value);
}

// Whether sanitizers slow the server down, and take memory and descriptors of their own.
inline bool is_sanitized() { return std::getenv("CHATROOM_SLOW") != nullptr; }

// To a server, each number is another machine: 127.0.1.1, 127.0.1.2 and so on. Where this machine has 127.0.0.1 alone
// (macOS), there is only that.
inline std::string address_of(int number) {
    static const bool has_others = harness::has_address("127.0.1.1");
    if (!has_others) return "127.0.0.1";
    return "127." + std::to_string(number / 62500) + '.' + std::to_string(1 + number / 250 % 250) + '.' +
           std::to_string(1 + number % 250);
}

inline bool has_many_addresses() { return address_of(0) != address_of(1); }

// Where bans and accounts are kept: a directory that outlives the servers on it.
struct Home {
    harness::ServerOptions options(const Lines& more = {}) const {
        harness::ServerOptions options{.args = {"--users", users, "--bans", bans}};
        options.args.insert(options.args.end(), more.begin(), more.end());
        return options;
    }

    harness::TempDir dir;
    std::filesystem::path users = dir.path() / "users.txt", bans = dir.path() / "bans.txt";
};

inline const std::string tea = "green tea", coffee = "black coffee";  // passwords

// Connects, sends a name, and reads on to the question for its password: PASS or NEWPASS.
inline harness::Peer at_question(int port, const std::string& name, const std::string& question,
                                 const harness::PeerOptions& options = {}) {
    harness::Peer peer(port, options);
    peer.expect(harness::starts("NICK "));
    peer.send_line(name);
    peer.expect(harness::starts(question + " "), 20);
    return peer;
}

inline harness::Peer registered(int port, const std::string& name, const std::string& password = tea,
                                const harness::PeerOptions& options = {}) {
    harness::Peer peer = at_question(port, name, "NEWPASS", options);
    peer.send_line(password);
    peer.expect(harness::starts("WELCOME " + name + " "), 20);
    peer.expect_who();
    return peer;
}

inline harness::Peer logged_in(int port, const std::string& name, const std::string& password,
                               const harness::PeerOptions& options = {}) {
    harness::Peer peer(port, options);
    peer.login(name, password, 20);
    return peer;
}

inline void leave(harness::Peer peer) {
    peer.send_line("/quit");
    peer.expect_closed();
}

// Sends a line, and returns the next that begins as its answer does.
inline std::string ask(harness::Peer& peer, const std::string& line, const std::string& answer) {
    peer.send_line(line);
    return peer.expect(harness::starts(answer), 10);
}

// That two people can talk: what a server that goes on is for.
inline void expect_chat(int port) {
    harness::Peer eve(port, "eve"), fay(port, "fay");
    eve.send_line("are you there?");
    fay.expect("SAY eve are you there?");
    leave(std::move(eve));
    leave(std::move(fay));
}

// Allows this process, and what it starts, so many descriptors. False: the system does not.
inline bool allow_descriptors(rlim_t wanted) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
    limit.rlim_cur = std::max(limit.rlim_cur, std::min(wanted, limit.rlim_max));
    return ::setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= wanted;
}

// Returns whether all threads of a process wait, as it says in /proc: of a server, each client's own in recv().
inline bool all_threads_wait(pid_t pid) {
    try {
        for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
            if (harness::re("\\) (.)").find(harness::read_file(task.path() / "stat")) != "S") return false;
        }
        return true;
    } catch (const std::exception&) {  // a thread has just ended
        return false;
    }
}

// Returns how many lines of the server's whole log have a text in them, once all that happened is in it.
inline long logged(harness::Server& server, const std::string& text) {
    server.mark();
    server.write("/echo all is logged\n");
    server.wait_output("all is logged\n");
    return count_with(harness::lines_of(server.output()), text);
}

}  // namespace proof
