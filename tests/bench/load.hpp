// The load: a crowd of clients in one process and one thread, which logs in to a server, talks, and checks that every
// line reaches everybody, once and in order.
//
// A line that is said carries its talker's number and its own, "|3|127|...", so any server may put before it and
// behind it what it likes.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "poller.hpp"
#include "servers.hpp"

namespace bench {

using Clock = std::chrono::steady_clock;
using Outcome = std::map<std::string, double>;  // what was measured, by its name

struct Plan {
    int clients = 100;
    int talkers = 10;
    int in_flight = 1;   // lines that a talker has on the way at once: a line is until everyone has it
    double rate = 0;     // or, if not 0: so many lines a second from all talkers in turn, whatever is on the way
    int deaf = 0;        // so many of the clients never read
    bool flood = false;  // one more talks as fast as its socket takes it
    bool quick = true;   // Nagle's algorithm and delayed acknowledgements are off: some servers pause 40 ms for these
};

class Crowd {
   public:
    Crowd(Protocol protocol, int port, const Plan& plan);

    // Brings everybody in. Returns the seconds until all are, and all have been told of all who came after them.
    // Throws std::runtime_error if that takes too long.
    double log_in();

    // Talks for so long. cpu gives the seconds that the server has used.
    Outcome talk(double seconds, const std::function<double()>& cpu);

    Outcome read_out();  // lets the deaf read, and tells how many of them the server had dropped
    void flood(bool on) { flooding_ = on; }

    // Reads what has come, and waits so long for it.
    void pass(int timeout_ms);

   private:
    static constexpr std::size_t window = 1024;  // lines of one talker that are kept in mind

    struct Line {
        Clock::time_point said;
        int missing = 0;  // deliveries of it
    };
    struct Talker {
        std::uint32_t said = 0;  // lines
        int in_flight = 0;
        std::array<Line, window> lines;  // the latest ones, by their number
    };
    struct Client {
        Fd socket;
        std::string name;
        bool in = false;
        bool queued = false;              // it is in unsent_
        std::string partial;              // received, and not yet a line
        std::string outbox;               // not yet sent
        std::vector<std::uint32_t> next;  // the number of the line to come, by talker
    };

    void connect_one();
    void queue(Client& client, std::string_view text);
    static bool flush(Client& client);
    void receive(Client& client);
    void on_line(Client& client, std::string_view line, Clock::time_point now);
    void on_control(Client& client, std::string_view line);
    void on_delivery(Client& client, std::string_view payload, Clock::time_point now);
    void say(std::size_t number);
    void say_what_is_due();
    void end(Client& client);
    bool all_notices_came() const;
    int lost() const;
    Outcome summary(double seconds, double cpu);

    Protocol protocol_;
    int port_;
    Plan plan_;
    Poller poller_;
    std::vector<std::unique_ptr<Client>> clients_;  // first those who talk, last those who are deaf
    std::vector<Client*> by_fd_;
    std::vector<Client*> unsent_;
    std::vector<Talker> talkers_;
    std::vector<char> buffer_ = std::vector<char>(1 << 20);
    int in_ = 0;
    long notices_ = 0;  // of others who came
    int ended_ = 0;     // by the server
    bool flooding_ = false;
    Clock::time_point due_;        // of the next line, where there is a rate
    std::size_t next_talker_ = 0;  // and who says it

    // Since the measurement began.
    long deliveries_ = 0, doubled_ = 0, disordered_ = 0;
    std::vector<std::uint32_t> latencies_;      // of deliveries, in nanoseconds
    std::vector<std::uint32_t> all_latencies_;  // of lines, until the last had it
    Clock::time_point heard_;                   // when the last delivery came
    Clock::duration silence_{};                 // the longest time between two
};

}  // namespace bench
