// Fifty clients that do whatever comes to their minds, on a server that keeps accounts: what each of them gets is by
// the protocol, and nothing is left of them. CHATROOM_STRESS_SECONDS says for how long (5), CHATROOM_STRESS_SEED
// repeats a run.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <future>
#include <iostream>
#include <locale>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "proof.hpp"

using namespace harness;

namespace {

constexpr int clients = 50;
std::atomic<long> logins = 0, registrations = 0;  // with a password, and with a new one

// ---------------------------------------------------------------------------------------------------------------------
// The protocol, as docs/protocol.md has it: read from there, so that it and the server say the same

std::vector<std::string> cells_of(const std::string& row) {
    std::vector<std::string> cells;
    std::istringstream stream(row.substr(1));
    for (std::string cell; std::getline(stream, cell, '|');) {
        const std::size_t begin = std::min(cell.find_first_not_of(" `"), cell.size());
        cells.push_back(cell.substr(begin, cell.find_last_not_of(" `") + 1 - begin));
    }
    return cells;
}

struct Protocol {
    std::map<std::string, std::vector<std::string>> fields;  // by word
    std::set<std::string> reasons;                           // of a BYE

    Protocol() {
        std::istringstream document(read_file("docs/protocol.md"));
        for (std::string row, heading; std::getline(document, row);) {
            if (!row.starts_with("| ")) continue;
            const std::vector<std::string> cells = cells_of(row);
            if (!row.starts_with("| `")) {
                heading = cells[0];
            } else if (heading == "word") {
                std::istringstream names(cells[1]);
                std::vector<std::string>& list = fields[cells[0]];
                for (std::string name; names >> name;) list.push_back(name);
            } else if (heading == "reason") {
                reasons.insert(cells[0]);
            }
        }
    }

    bool is_good(const std::string& field, const std::string& value) const {
        const auto is = [&](const char* expression) { return re(expression).find(value).has_value(); };
        const bool is_name = value.size() >= 3 && value.size() <= 12 &&
                             std::all_of(value.begin(), value.end(), [](unsigned char c) { return std::isalnum(c); });
        if (field == "CODE") return value == "-" || is("^[0-9]{5}$");
        if (field == "OWNER") return value == "-" || is_name;
        if (field == "REASON") return reasons.contains(value);
        if (field == "TIME" || field == "CREATED")
            return is("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$");
        const std::set<std::string> numbers{"TOTAL", "COUNT", "NUMBER", "MEMBERS"};
        if (numbers.contains(field)) return std::all_of(value.begin(), value.end(), ::isdigit) && !value.empty();
        const std::set<std::string> names{"NAME", "ROOM", "FROM", "TO", "CREATOR"};
        return names.contains(field) && is_name;
    }
};

// What a client knows from the lines that it got; each next one must go with it.
class Reader {
   public:
    explicit Reader(const Protocol& protocol) : protocol_(protocol) {}

    // Returns the line's word. Throws Failure if it is not by the protocol.
    std::string read(const std::string& line) {
        if (ended_) throw Failure("after the last line there came: " + line);
        std::istringstream stream(line);
        std::string word, value;
        stream >> word;
        const auto known = protocol_.fields.find(word);
        if (known == protocol_.fields.end()) throw Failure("the protocol has no such word: " + line);
        std::map<std::string, std::string> fields;
        for (const std::string& field : known->second) {
            const bool good = stream >> value && protocol_.is_good(field, value);
            if (!good) throw Failure(std::string("a wrong ").append(field).append(": ").append(line));
            fields[field] = value;
        }
        std::string text;
        std::getline(stream >> std::ws, text);
        if (text.empty() && word != "TOPIC") throw Failure("a line without its text: " + line);
        if (!follow(word, fields, text)) throw Failure("it does not go with what came before: " + line);
        return word;
    }

   private:
    using Fields = std::map<std::string, std::string>;

    bool follow(const std::string& word, const Fields& fields, const std::string& text) {
        const auto field = [&](const char* name) { return fields.at(name); };
        if (std::exchange(moved_, word == "ROOM") && word != "WHO") return false;
        if (word == "ROOM") {
            room_ = field("NAME");
            members_.clear();
        } else if (word == "WHO") {
            std::istringstream names(text);
            for (std::string name; names >> name;) members_.insert(name);
            return field("ROOM") == room_ && field("TOTAL") == std::to_string(members_.size());
        } else if (word == "JOIN") {
            return members_.insert(field("NAME")).second;
        } else if (word == "LEAVE") {
            return members_.erase(field("NAME")) == 1;
        } else if (word == "SAY" || word == "ME") {
            return field("NAME") == "server" || members_.contains(field("NAME"));
        } else if (word == "OWNER") {
            return members_.contains(field("NAME"));
        } else if (word == "TOPIC") {
            return field("ROOM") == room_;
        } else if (word == "LIST") {
            return text == "CODE" || text == "NO CODE";
        } else if (word == "BYE") {
            ended_ = true;
        }
        return true;
    }

    const Protocol& protocol_;
    std::string room_;
    std::set<std::string> members_;
    bool moved_ = false;  // the last line was ROOM
    bool ended_ = false;  // it was BYE
};

// ---------------------------------------------------------------------------------------------------------------------
// The clients

class Person {
   public:
    Person(const Server& server, const Protocol& protocol, unsigned seed, int number)
        : server_(server), protocol_(protocol), random_(seed + static_cast<unsigned>(number)), number_(number) {}

    // Connects again and again, until the time is over.
    void live(Clock::time_point until) {
        for (int connection = 0; Clock::now() < until; ++connection) {
            const std::string address = proof::address_of(number_ + clients * connection);  // its limits begin anew
            Peer peer(server_.port(), PeerOptions{.from = address}, 30);
            Reader reader(protocol_);
            if (!log_in(peer, reader)) continue;
            while (Clock::now() < until && pick(100) > 0) {
                std::string lines;
                for (int i = pick(4); i >= 0; --i) lines += something() + "\n";
                if (!peer.try_send(lines + "/echo done\n", 30)) break;  // dropped meanwhile
                if (read_to(peer, reader, {"ECHO"}) != "ECHO") break;
            }
            if (pick(2) == 0) peer.reset();
        }
    }

   private:
    int pick(int count) { return static_cast<int>(random_() % static_cast<unsigned>(count)); }

    [[nodiscard]] std::string password() const {
        return number_ == 0 ? server_.password() : "password " + std::to_string(number_);
    }

    static std::string name(int number) { return number == 0 ? "admin" : "user" + std::to_string(number); }

    std::string something() {
        const std::string person = name(pick(clients)), room = "room" + std::to_string(pick(8));
        const std::string code = pick(2) == 0 ? "" : " 1234" + std::to_string(pick(2));
        const std::vector<std::string> lines{"hello everybody",
                                             "hello again",
                                             "/me waves",
                                             "/msg " + person + " hello",
                                             "/reply hello",
                                             "/ignore " + person,
                                             "/create " + room + code,
                                             "/create " + room,
                                             "/join " + room + code,
                                             "/join " + room + code,
                                             "/join " + std::to_string(pick(100)),
                                             "/leave",
                                             "/kick " + person,
                                             "/kick " + person,
                                             pick(10) == 0 ? "/quit" : "/who",
                                             number_ == 0 ? "/out " + person : "/close",
                                             "/rooms",
                                             "/help",
                                             "/fire " + person,
                                             "/out " + person,
                                             "/block " + person,
                                             "/unblock " + person,
                                             pick(10) == 0 ? "/reset" : "/rooms",
                                             number_ == 0 ? "/time" : "/password\n" + password() + "\n" + password(),
                                             "/unregister " + person,
                                             pick(10) == 0 ? "/ban " + person : "/bans",
                                             "/unban " + person,
                                             pick(2) == 0 ? "/ban 10.1.0.0/16" : "/unban 10.1.0.0/16",
                                             pick(2) == 0 ? "/topic what is new" : "/topic",
                                             "/who all",
                                             "/who " + person,
                                             "// a line",
                                             ""};
        return lines[static_cast<std::size_t>(pick(static_cast<int>(lines.size())))];
    }

    // False while the server has not yet noticed the end of the connection that had the name before.
    bool log_in(Peer& peer, Reader& reader) {
        peer.send_line(name(number_), 30);
        const std::string question = read_to(peer, reader, {"WELCOME", "PASS", "NEWPASS", "ERR"});
        if (question != "PASS" && question != "NEWPASS") return question == "WELCOME";
        peer.send_line(password(), 30);
        const bool welcome = read_to(peer, reader, {"WELCOME", "ERR"}) == "WELCOME";
        if (welcome) ++(question == "PASS" ? logins : registrations);
        return welcome;
    }

    // Reads every line until one with such a word, or the end of the connection; returns the last line's word. A
    // question that is asked again since there were too many attempts is the last line too: it would take all others.
    static std::string read_to(Peer& peer, Reader& reader, const std::set<std::string>& words) {
        std::string word;
        bool limited = false;
        const auto is_last = [&](std::string_view line) {
            word = reader.read(std::string(line));
            const bool asked_again = std::exchange(limited, line.starts_with("ERR Too many")) && word == "NEWPASS";
            return asked_again || words.contains(word) || word == "BYE" || word == "REFUSE" || word == "BAN";
        };
        peer.expect(is_last, 30);
        return word;
    }

    const Server& server_;
    const Protocol& protocol_;
    std::mt19937 random_;
    int number_;
};

// Of the server, while there is one client: threads, descriptors, and the answer to /rooms.
std::vector<std::string> state_of(const Server& server, const std::string& name) {
    Peer peer(server.port(), PeerOptions{}, 30);
    peer.send_raw(name + "\nits password\n");  // a new one at first, the same afterwards
    peer.expect(starts("WELCOME "), 30);
    peer.lines_until_echo();
    peer.send_line("/rooms");
    std::vector<std::string> state{peer.expect_next(starts("ROOMS "))};
    peer.send_line("/who");
    state.push_back(peer.expect(starts("WHO ")));
    state.push_back(std::to_string(thread_count(server.pid())) + " threads");
    state.push_back(std::to_string(descriptor_count(server.pid())) + " descriptors");
    peer.send_line("/quit");
    peer.expect_eof();
    return state;
}

TEST(Stress, OfFiftyClientsLeavesNothingBehind) {  // promises 2 and 4, and the protocol
    const auto seed = static_cast<unsigned>(proof::from_environment("CHATROOM_STRESS_SEED", std::random_device()()));
    std::cout << "CHATROOM_STRESS_SEED=" << seed << std::endl;
    const Protocol protocol;
    ASSERT_GT(protocol.fields.size(), 15U) << "the table of words in docs/protocol.md was not found";
    const proof::Home home;
    Server server(home.options(), 20);
    const std::vector<std::string> before = state_of(server, "witness");
    // What std::regex asks the locale for is kept at the first time, without a lock: so that comes before the threads.
    for (int c = 0; c < 256; ++c) std::use_facet<std::ctype<char>>(std::locale()).narrow(static_cast<char>(c), '\0');
    const Clock::time_point until =
        Clock::now() + std::chrono::seconds(proof::from_environment("CHATROOM_STRESS_SECONDS", 5));
    std::vector<std::future<void>> lives(clients);
    for (int i = 0; i < clients; ++i) {
        lives.at(static_cast<std::size_t>(i)) =
            std::async(std::launch::async, [&, i] { Person(server, protocol, seed, i).live(until); });
    }
    for (std::future<void>& life : lives) EXPECT_NO_THROW(life.get());
    std::vector<std::string> after;
    eventually([&] { return (after = state_of(server, "witness")) == before; }, 20);
    EXPECT_EQ(after, before);
    std::cout << logins << " logins, " << registrations << " registrations\n";
    EXPECT_GT(registrations, 10);
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
}

}  // namespace
