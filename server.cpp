// server.cpp: the chat server. One thread for each client reads; one thread, the postman, sends.
//
// The way of a message from one keyboard to the other screens, and the functions to read to see it:
//
//   serve()           section 8   a client's own thread waits in recv() and cuts what comes into lines
//   act_on()          section 7   a line is a command, or something to say
//   say()             section 4   stamps it with the speaker's name, appends it to the queues of all in the room
//   Postman::run()    section 3   sends everything that waits for a client in one call
//
// One mutex, chat.mutex, guards the list of clients and the rooms. What is done under it touches memory only;
// functions that need it held take a `const Lock&` as the proof. The promises that comments cite by number
// are those of docs/design.md.

#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <clocale>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common.hpp"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

// ---------------------------------------------------------------------------------------------------------
// 1. Options and limits
//
// Set by main() before any thread starts, and only read afterwards.

struct Options {
    std::string port = std::string(default_port);
    std::string bind_address;  // empty: every interface
    std::string bans_file = "bans.txt";
    long rate = 10;            // lines a second from one client, after the burst; 0 is no limit
    long max_clients = 10000;  // connections, those that have not logged in included
    long max_per_ip = 64;      // of them from one address; 0 is no limit
    std::string admin_password;
};

Options options;

constexpr int burst = 30;                           // lines that a client may send before the rate counts
constexpr auto login_limit = 20s;                   // for name and password, however slowly they come
constexpr std::size_t history_lines = 50;           // of a room, shown to who joins
constexpr std::size_t max_backlog = 1024UL * 1024;  // bytes that may wait for one client
constexpr auto max_stall = 10s;                     // without any byte taken by a client for which some wait
constexpr std::size_t pause_backlog = 64UL * 1024;  // from here on a client's lines are not read
constexpr std::size_t max_wrong_tries = 20;         // of a secret, from one address in try_window
constexpr auto try_window = 60s;
constexpr int max_wrong_passwords = 3;  // on one connection
constexpr auto farewell_limit = 2s;     // for a client to take its last lines, and as long to close its side
constexpr auto shutdown_limit = 500ms;  // for all of them, when the server shuts down

Wakeup* stop_request = nullptr;  // set once, it ends the server: main(), clock and console poll it

// Any thread, and signal handlers. Never blocks.
void request_stop() { stop_request->set(); }

// Waits until the stop is requested or the time is over; says which.
bool stop_within(std::chrono::milliseconds time) {
    pollfd stop{stop_request->fd(), POLLIN, 0};
    return poll(&stop, 1, static_cast<int>(time.count())) > 0;
}

// ---------------------------------------------------------------------------------------------------------
// 2. The log
//
// Standard output may be a terminal that somebody has paused, or a full pipe. So lines go into a bounded queue,
// and a thread of its own writes them: whoever logs never waits (promise 2).

class Log {
   public:
    // Logs what happened in a room; "-" is the server itself. Any thread. Never blocks.
    void add(std::string_view room, std::string_view text) {
        const Lock lock(mutex_);
        if (waiting_.size() > max_waiting) {
            ++lost_;
            return;
        }
        append(room, text);
        changed_.notify_all();
    }

    // The log's thread: writes until stop(), and then what is left.
    void run() {
        for (Lock lock(mutex_);;) {
            changed_.wait(lock, [&] { return !waiting_.empty() || stopping_; });
            if (waiting_.empty()) break;
            if (lost_ > 0) append("-", "-- here " + std::to_string(std::exchange(lost_, 0)) + " lines are missing.");
            const std::string text = std::exchange(waiting_, {});
            lock.unlock();
            write_all(wrapped(text, screen_width()));
            lock.lock();
        }
        done_ = true;
        changed_.notify_all();
    }

    // Ends the log's thread and joins it, though it may be stuck in a write to a paused terminal: then the signal,
    // whose handler does nothing, interrupts the call.
    void stop(std::thread& thread) {
        {
            Lock lock(mutex_);
            stopping_ = true;
            changed_.notify_all();
            changed_.wait_for(lock, 200ms, [&] { return done_; });
            for (give_up_ = true; !done_; changed_.wait_for(lock, 10ms)) {
                pthread_kill(thread.native_handle(), SIGUSR1);
            }
        }
        thread.join();
    }

   private:
    static constexpr std::size_t max_waiting = 1024UL * 1024;  // bytes

    void append(std::string_view room, std::string_view text) {
        const std::time_t now = std::time(nullptr);
        if (now != std::exchange(second_, now)) stamp_ = local_time(now, "%Y-%m-%d %H:%M:%S ");
        ((((waiting_ += stamp_) += room) += ' ') += text) += '\n';
    }

    // Gives up at a broken output, and at a blocked one once the server stops.
    void write_all(std::string_view text) const {
        while (!text.empty() && !give_up_) {
            const ssize_t written = write(STDOUT_FILENO, text.data(), text.size());
            if (written >= 0) {
                text.remove_prefix(static_cast<std::size_t>(written));
            } else if (errno == EAGAIN) {  // somebody else made our output non-blocking
                pollfd output{STDOUT_FILENO, POLLOUT, 0};
                poll(&output, 1, 100);
            } else if (errno != EINTR) {
                return;
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::string waiting_;     // lines to be written; guarded by mutex_, as are the next five
    std::size_t lost_ = 0;    // lines for which there was no space
    std::time_t second_ = 0;  // when the last line was added
    std::string stamp_;       // that time as text
    bool stopping_ = false;
    bool done_ = false;
    std::atomic<bool> give_up_ = false;
};

Log server_log;

// ---------------------------------------------------------------------------------------------------------
// 3. Clients, rooms, and the postman
//
// A client belongs to its own thread, which makes it known in chat.clients and takes it out again before it closes
// the socket (promise 4); so under chat.mutex every client in the list is alive.

struct Room;

struct Client {
    Client(Fd fd, std::string from) : socket(std::move(fd)), address(std::move(from)) {}

    // Never changed while others know the client.
    Fd socket;  // none: the operator
    std::string address;
    Clock::time_point since = Clock::now();

    // Only its own thread.
    LineBuffer inbox{max_line};
    Clock::time_point turn = Clock::now();  // when the lines that came so far are paid for: see wait_turn()

    // Guarded by chat.mutex.
    std::string name;                 // empty until the login is complete
    std::string key;                  // the name, folded
    bool admin = false;               // the admin, or the operator
    Room* room = nullptr;             // null until the login is complete
    std::set<std::string> ignored;    // keys of those whose lines it does not want
    std::string correspondent;        // who sent it the last private message
    std::string outbox;               // lines that the postman has not picked up
    std::size_t backlog = 0;          // bytes that wait: in outbox, and unsent in sending
    bool with_postman = false;        // it has the client in hand: the socket must stay open
    bool ending = false;              // no line counts from now on, none is queued, and its thread says goodbye
    bool abandoned = false;           // what waits for it will not be sent
    std::string why = "left.";        // of its leaving, for the room
    std::condition_variable changed;  // its thread waits here; ending, backlog and with_postman notify

    // Only the postman, while with_postman.
    std::string sending;              // picked up from outbox
    std::size_t sent = 0;             // bytes of it that the socket took
    bool blocked = false;             // the socket is full
    Clock::time_point blocked_since;  // and has been from then on
};

struct Said {
    std::string key;   // whose words they are
    std::string line;  // as it is shown to who joins
};

struct Room {
    std::string name;
    std::vector<Client*> members;  // who has been here longest comes first
    std::deque<Said> history;
};

struct Chat {
    std::mutex mutex;
    std::vector<Client*> clients;                      // everyone who is connected
    std::unordered_map<std::string, Client*> by_name;  // by key: who is logged in, and the operator
    Room public_room{"public", {}, {}};
    bool stopping = false;
    std::condition_variable empty;  // clients has become so

    std::unordered_map<std::thread::id, std::thread> threads;  // the clients'
    std::vector<std::thread::id> finished;                     // those that can be joined
};

Chat chat;
Client operator_client{Fd(), "the server's terminal"};  // the person there, by the name "server"

bool is_operator(const Client& client) { return &client == &operator_client; }

// Cuts off a client that is not worth waiting for. Under shutdown() its own thread leaves recv(), and the postman
// poll(); the socket stays open until that thread closes it.
void drop(const Lock& /*held*/, Client& client, std::string_view why) {
    if (!std::exchange(client.ending, true)) client.why = why;
    client.abandoned = true;
    client.changed.notify_all();
    shutdown(client.socket.get(), SHUT_RDWR);
}

// Takes what waits in the clients' outboxes and sends it, one call for each client, and never blocks on any of
// them (promise 2). While it is busy with that, what others say gathers in the outboxes and goes out together.
class Postman {
   public:
    // Tells the postman that there is something in a client's outbox. Any thread. Never blocks.
    void call(const Lock& /*held*/, Client& client) {
        if (!std::exchange(client.with_postman, true)) called_.push_back(&client);
        if (std::exchange(asleep_, false)) wakeup_.set();
    }

    // Ends run(). After the clients are gone.
    void stop() {
        const Lock lock(chat.mutex);
        stopping_ = true;
        wakeup_.set();
    }

    // The postman's thread.
    void run() {
        while (pick_up()) {
            wait_for_sockets();
            for (Client* client : in_hand_) {
                if (!client->blocked) send_some(*client);
            }
        }
    }

   private:
    // Takes in hand who called, lets go whom nothing waits for, and fetches the others' lines. False: stop.
    bool pick_up() {
        const Lock lock(chat.mutex);
        in_hand_.insert(in_hand_.end(), called_.begin(), called_.end());
        called_.clear();
        std::erase_if(in_hand_, [&](Client* client) {
            refill(lock, *client);
            if (!client->sending.empty()) return false;
            client->with_postman = false;
            client->changed.notify_all();
            return true;
        });
        asleep_ = std::ranges::all_of(in_hand_, &Client::blocked);
        return !stopping_;
    }

    static void refill(const Lock& lock, Client& client) {
        if (client.blocked && Clock::now() - client.blocked_since > max_stall) {
            drop(lock, client, "took nothing of what was sent for 10 seconds.");
        }
        if (client.abandoned) {
            client.outbox.clear();
            client.sent = client.sending.size();
        }
        if (client.sent == client.sending.size()) {
            client.blocked = false;
            client.sent = 0;
            client.sending.clear();
            if (client.sending.capacity() > 4096) client.sending = {};  // it would be kept for good
            client.sending.swap(client.outbox);
        }
        client.backlog = client.outbox.size() + client.sending.size() - client.sent;
    }

    // Sleeps if there is nothing to send, until called or a full socket drains. (A Wakeup that is set late costs
    // one round; one that is missed would cost a message, hence clear() comes before pick_up() looks.)
    void wait_for_sockets() {
        std::vector<pollfd> polled{{wakeup_.fd(), POLLIN, 0}};
        std::vector<Client*> full;
        for (Client* client : in_hand_) {
            if (!client->blocked) continue;
            polled.push_back({client->socket.get(), POLLOUT, 0});
            full.push_back(client);
        }
        const bool idle = full.size() == in_hand_.size();
        if (full.empty() && !idle) return;
        const int forever = -1;
        const int a_second = 1000;  // to notice when one has stalled for too long
        poll(polled.data(), polled.size(), !idle ? 0 : full.empty() ? forever : a_second);
        wakeup_.clear();
        for (std::size_t i = 0; i < full.size(); ++i) full[i]->blocked = polled[i + 1].revents == 0;
    }

    static void send_some(Client& client) {
        const std::string_view rest = std::string_view(client.sending).substr(client.sent);
        const ssize_t taken = send(client.socket.get(), rest.data(), rest.size(), MSG_DONTWAIT);
        if (taken >= 0) {
            client.sent += static_cast<std::size_t>(taken);
        } else if (errno == EAGAIN) {
            client.blocked = true;
            client.blocked_since = Clock::now();
        } else if (errno != EINTR) {
            client.sent = client.sending.size();  // the connection is gone, which its thread finds out as well
        }
    }

    std::vector<Client*> called_;  // guarded by chat.mutex, as are asleep_ and stopping_
    bool asleep_ = false;          // nothing can be sent: call() has to wake it
    bool stopping_ = false;
    std::vector<Client*> in_hand_;  // only the postman
    Wakeup wakeup_;
};

Postman postman;

// ---------------------------------------------------------------------------------------------------------
// 4. What is said, and to whom
//
// To say something to a room is to append it to its members' outboxes, in one go under the mutex: so everyone sees
// the same lines in the same order, the speaker included (promise 1). Any thread may call these; none blocks.

// Appends a line, without its end, to what waits for a client. What cannot wait any longer drops the client.
void post(const Lock& lock, Client& to, std::string_view line) {
    if (is_operator(to)) {
        const std::string_view word = take_word(line);
        const bool private_message = word == "MSG";
        std::string from(private_message ? take_word(line) : "--");
        if (private_message) from += " -> " + std::string(take_word(line)) + ':';
        server_log.add("-", from + ' ' + std::string(line));
        return;
    }
    if (to.ending) return;
    to.outbox += line;
    to.outbox += '\n';
    to.backlog += line.size() + 1;
    postman.call(lock, to);
    if (to.backlog > max_backlog) drop(lock, to, "could not keep up: 1 MiB waited.");
}

void tell(Client& to, std::string_view line) { post(Lock(chat.mutex), to, line); }

std::string words(std::initializer_list<std::string_view> parts) {
    std::string line;
    for (const std::string_view part : parts) (line += line.empty() ? "" : " ") += part;
    return line;
}

void announce(const Lock& lock, const Room& room, std::string_view line) {
    for (Client* member : room.members) post(lock, *member, line);
}

// Says something in a room in a client's name; word is SAY or ME.
void say_in(const Lock& lock, Room& room, const Client& from, std::string_view word, std::string_view text) {
    const std::string line = words({word, from.name, text});
    for (Client* member : room.members) {
        if (!member->ignored.contains(from.key)) post(lock, *member, line);
    }
    room.history.push_back({from.key, words({"PAST", utc_time(std::time(nullptr)), line})});
    if (room.history.size() > history_lines) room.history.pop_front();
    const std::string speaker = word == "ME" ? "* " + from.name + ' ' : from.name + ": ";
    server_log.add(room.name, speaker + std::string(text));
}

// Tells who is in a room, in as many lines as it takes.
void post_members(const Lock& lock, Client& to, const Room& room) {
    const std::string start = words({"WHO", room.name, std::to_string(room.members.size())});
    std::string line = start;
    for (const Client* member : room.members) {
        (line += ' ') += member->name;
        if (line.size() < max_line && member != room.members.back()) continue;
        post(lock, to, std::exchange(line, start));
    }
    if (room.members.empty()) post(lock, to, line);
}

void enter(const Lock& lock, Client& client, Room& room) {
    announce(lock, room, words({"JOIN", client.name, "joined."}));
    server_log.add(room.name, words({"--", client.name, "joined, from", client.address}));
    room.members.push_back(&client);
    client.room = &room;
    post(lock, client, words({"ROOM", room.name, "- - You are in", room.name + ": NO CODE, no owner."}));
    post_members(lock, client, room);
    for (const Said& said : room.history) {
        if (!client.ignored.contains(said.key)) post(lock, client, said.line);
    }
}

void leave(const Lock& lock, Client& client) {
    Room& room = *std::exchange(client.room, nullptr);
    std::erase(room.members, &client);
    if (chat.stopping) return;
    announce(lock, room, words({"LEAVE", client.name, client.why}));
    server_log.add(room.name, words({"--", client.name, client.why}));
}

// Ends a client's connection, by its own thread: last_line is the last that it is sent, `why` is for its room.
void farewell(const Lock& lock, Client& client, std::string_view last_line, std::string_view why) {
    post(lock, client, last_line);
    if (std::exchange(client.ending, true)) return;
    client.why = why;
    client.changed.notify_all();
}

// The same from any thread, for under shutdown() the client's own thread leaves recv() (promise 4).
void put_off(const Lock& lock, Client& client, std::string_view last_line, std::string_view why) {
    farewell(lock, client, last_line, why);
    shutdown(client.socket.get(), SHUT_RD);
}

// ---------------------------------------------------------------------------------------------------------
// 5. Secrets
//
// All secrets share one limit on wrong tries, counted by address, so that more connections or other secrets
// give nobody more guesses.

// Gives a text that nobody can guess, each character as likely as any other. Throws if the system has no entropy.
std::string random_text(std::string_view alphabet, std::size_t length) {
    std::string text;
    while (text.size() < length) {
        unsigned char byte = 0;
        if (getentropy(&byte, 1) != 0) throw_errno("getentropy");
        const std::size_t fair = 256 - 256 % alphabet.size();  // above it some would be likelier
        if (byte < fair) text += alphabet[byte % alphabet.size()];
    }
    return text;
}

// Compares in a time that tells nothing of how much is right. secret is not empty.
bool same_secret(std::string_view given, std::string_view secret) {
    unsigned difference = given.size() == secret.size() ? 0 : 1;
    for (std::size_t i = 0; i < given.size(); ++i) {
        difference |= static_cast<unsigned char>(given[i] ^ secret[i % secret.size()]);
    }
    return difference == 0;
}

class Tries {
   public:
    // Counts a try before the secret is looked at, so that tries at the same moment all count. False: too many
    // lately, and the try must not be looked at. Any thread. Never blocks.
    bool take(const std::string& address) {
        const Lock lock(mutex_);
        std::erase_if(taken_, [](const auto& entry) { return Clock::now() - entry.second.back() > try_window; });
        std::deque<Clock::time_point>& times = taken_[address];
        while (!times.empty() && Clock::now() - times.front() > try_window) times.pop_front();
        if (times.size() >= max_wrong_tries) return false;
        times.push_back(Clock::now());
        return true;
    }

    // The try was right, so it does not count.
    void give_back(const std::string& address) {
        const Lock lock(mutex_);
        const auto entry = taken_.find(address);
        if (entry == taken_.end()) return;
        entry->second.pop_back();
        if (entry->second.empty()) taken_.erase(entry);
    }

   private:
    std::mutex mutex_;
    std::map<std::string, std::deque<Clock::time_point>> taken_;  // by address; no entry is empty
};

Tries tries;

// ---------------------------------------------------------------------------------------------------------
// 6. Bans
//
// bans.txt is the list, and no copy is kept: each login reads it, so that an edit by hand counts from the next one
// on. These functions block on the disk, and are called with no lock held but the one of those who change the file.

std::mutex bans_mutex;

// Gives the file's text, nothing if there is no file yet. Throws what else is wrong with it.
std::string read_bans() {
    const Fd file(open(options.bans_file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file && errno == ENOENT) return "";
    if (!file) throw_errno("open " + options.bans_file);
    std::string text;
    std::array<char, 4096> bytes{};
    ssize_t count = 0;
    while ((count = read(file.get(), bytes.data(), bytes.size())) > 0) {
        text.append(bytes.data(), static_cast<std::size_t>(count));
    }
    if (count < 0) throw_errno("read " + options.bans_file);
    return text;
}

// Puts a text in the place of a file, so that a crash at any moment leaves the old one or the new one (promise 5):
// it is written beside it, synced, and renamed. Throws if it cannot be done; then the old file stands.
void replace_file(const std::string& path, std::string_view text) {
    const std::filesystem::path target = std::filesystem::weakly_canonical(path);  // behind a link: see rename(2)
    const std::string beside = target.string() + ".new";
    {
        const Fd file(open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
        if (!file) throw_errno("open " + beside);
        while (!text.empty()) {
            const ssize_t written = write(file.get(), text.data(), text.size());
            if (written < 0) throw_errno("write " + beside);
            text.remove_prefix(static_cast<std::size_t>(written));
        }
        if (fsync(file.get()) != 0) throw_errno("fsync " + beside);
    }
    if (rename(beside.c_str(), target.c_str()) != 0) throw_errno("rename " + beside);
    const Fd folder(open(target.parent_path().c_str(), O_RDONLY | O_CLOEXEC));
    if (!folder || fsync(folder.get()) != 0) throw_errno("fsync " + target.parent_path().string());
}

// Gives what one line of the file bans, folded: empty for a comment.
std::string banned_by(std::string_view line) {
    const std::string who(trim(line.substr(0, line.find('#'))));
    const std::string address = normal_address(who);
    return address.empty() ? fold(who) : address;
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

// who: a name or an address. Throws if the file cannot be read.
bool is_banned(std::string_view who) {
    return std::ranges::any_of(lines_of(read_bans()),
                               [&](const std::string& line) { return banned_by(line) == banned_by(who); });
}

// Puts a name or an address on the list, or takes it off; says whether that changed anything. On return it is on
// the disk. `who` has been checked, so it cannot hold a line's end or a comment. Throws if the file cannot be changed.
bool change_ban(const std::string& who, bool ban, std::string_view by) {
    const Lock lock(bans_mutex);
    std::vector<std::string> lines = lines_of(read_bans());
    const auto matches = [&](const std::string& line) { return banned_by(line) == banned_by(who); };
    if (ban == std::ranges::any_of(lines, matches)) return false;
    if (ban) {
        lines.push_back(words({who, " # by", by, "at", utc_time(std::time(nullptr))}));
    } else {
        std::erase_if(lines, matches);
    }
    std::string text;
    for (const std::string& line : lines) (text += line) += '\n';
    replace_file(options.bans_file, text);
    return true;
}

// ---------------------------------------------------------------------------------------------------------
// 7. Commands
//
// A function for each, run by the thread of who typed it: `rest` is what follows the command's word, trimmed. The
// table at the end of the section says who may use which, and what /help tells.

using Words = std::string_view;

void info(Client& user, std::string_view text) { tell(user, words({"INFO", text})); }
void error(Client& user, std::string_view text) { tell(user, words({"ERR", text})); }

// Gives who is logged in under a name, or tells the user that nobody is.
Client* find(const Lock& lock, Client& user, std::string_view name) {
    const auto found = chat.by_name.find(fold(name));
    if (found != chat.by_name.end()) return found->second;
    post(lock, user, words({"ERR Nobody here is called", name, "- /who tells who is here."}));
    return nullptr;
}

// As find(), for what is done to others: not to oneself, not to the operator, and to the admin by the operator alone.
Client* find_target(const Lock& lock, Client& user, std::string_view name) {
    Client* target = find(lock, user, name);
    if (target == nullptr) return nullptr;
    std::string_view problem;
    if (is_operator(*target)) problem = "That is the operator, at the server's own terminal.";
    if (target->admin && !is_operator(user)) problem = "That is the admin.";
    if (target == &user) problem = "That is yourself; /quit leaves.";
    if (problem.empty()) return target;
    post(lock, user, words({"ERR", problem}));
    return nullptr;
}

void who(Client& user, Words /*rest*/) {
    const Lock lock(chat.mutex);
    post_members(lock, user, *user.room);
}

void time_of_day(Client& user, Words /*rest*/) {
    info(user, local_time(std::time(nullptr), "It is %A, %Y-%m-%d %H:%M:%S %Z."));
}

void quote(Client& user, Words /*rest*/) {
    static constexpr std::array<std::string_view, 10> quotes = {
        "\"Be liberal in what you accept, and conservative in what you send.\" - Jon Postel",
        "\"The network is the computer.\" - John Gage",
        "\"We reject kings, presidents and voting. We believe in rough consensus and running code.\" - David Clark",
        "\"Simplicity is prerequisite for reliability.\" - Edsger W. Dijkstra",
        "\"There are only two hard things in computer science: cache invalidation and naming things.\" - Phil Karlton",
        "\"Premature optimization is the root of all evil.\" - Donald E. Knuth",
        "\"Controlling complexity is the essence of computer programming.\" - Brian Kernighan",
        "\"The most effective debugging tool is still careful thought.\" - Brian Kernighan",
        "\"When in doubt, use brute force.\" - Ken Thompson",
        "\"The best way to predict the future is to invent it.\" - Alan Kay",
    };
    const std::string digit = random_text("0123456789", 1);
    info(user, quotes.at(static_cast<std::size_t>(digit[0] - '0')));
}

void echo(Client& user, Words rest) { tell(user, words({"ECHO", rest})); }

// What is said without a command; the operator speaks to everybody.
void say(Client& user, Words text) {
    const Lock lock(chat.mutex);
    if (!user.ending) say_in(lock, *user.room, user, "SAY", text);
}

void me(Client& user, Words rest) {
    const Lock lock(chat.mutex);
    if (!user.ending) say_in(lock, *user.room, user, "ME", rest);
}

void private_message(const Lock& lock, Client& from, Client& to, std::string_view text) {
    if (to.ignored.contains(from.key)) {
        return post(lock, from, words({"ERR", to.name, "has chosen not to hear you (/ignore)."}));
    }
    const std::string line = words({"MSG", from.name, to.name, text});
    post(lock, from, line);
    if (&to != &from) post(lock, to, line);
    to.correspondent = from.name;
    if (!is_operator(from) && !is_operator(to)) {  // they have seen it; nobody else reads what is private
        server_log.add("-", words({"--", from.name, "sent", to.name, "a private message."}));
    }
}

void msg(Client& user, Words rest) {
    const Lock lock(chat.mutex);
    if (Client* to = find(lock, user, take_word(rest))) private_message(lock, user, *to, trim(rest));
}

void reply(Client& user, Words rest) {
    const Lock lock(chat.mutex);
    if (user.correspondent.empty()) return post(lock, user, "ERR Nobody has sent you a private message yet.");
    if (Client* to = find(lock, user, user.correspondent)) private_message(lock, user, *to, rest);
}

void ignore(Client& user, Words rest) {
    const Lock lock(chat.mutex);
    const std::string key = fold(rest);
    if (user.ignored.erase(key) > 0) return post(lock, user, words({"INFO You hear", rest, "again."}));
    const Client* target = find(lock, user, rest);
    if (target == nullptr) return;
    if (target == &user || is_operator(*target)) return post(lock, user, "ERR Not yourself, and not the server.");
    user.ignored.insert(key);
    post(lock, user, words({"INFO You no longer hear", target->name + ".", "The same command undoes it."}));
}

void quit(Client& user, Words /*rest*/) {
    if (is_operator(user)) return error(user, "/shutdown ends the server; to leave this terminal, close it.");
    farewell(Lock(chat.mutex), user, words({"BYE QUIT Goodbye,", user.name + "."}), "left.");
}

// Puts a client off the server; reason is KICK or BAN, done what happened in words: "kicked".
void put_off_by(const Lock& lock, Client& target, const Client& by, Words reason, Words done) {
    const std::string why = words({"was", done, "by", by.name + "."});
    put_off(lock, target, words({"BYE", reason, "You were", done, "by", by.name + "."}), why);
}

void fire(Client& user, Words rest) {
    const Lock lock(chat.mutex);
    Client* target = find_target(lock, user, rest);
    if (target == nullptr) return;
    put_off_by(lock, *target, user, "KICK", "kicked");
    post(lock, user, words({"INFO", target->name, "was put off the server."}));
}

// Gives what may be banned as it is kept; empty, and the user is told, if rest is neither name nor address.
std::string ban_target(Client& user, Words rest) {
    const std::string address = normal_address(std::string(rest));
    if (!address.empty() || valid_name(rest)) return address.empty() ? std::string(rest) : address;
    error(user, "That is neither a name nor an address. A name is 3 to 12 letters and digits.");
    return "";
}

void ban(Client& user, Words rest) {
    const std::string target = ban_target(user, rest);
    if (target.empty()) return;
    if (same_name(target, "admin") || same_name(target, "server")) {
        return error(user, "The admin and the server cannot be banned.");
    }
    if (!change_ban(target, true, user.name)) return error(user, target + " is banned already.");
    const Lock lock(chat.mutex);
    for (Client* client : chat.clients) {
        const bool meant = same_name(client->name, target) || client->address == target;
        if (meant && !client->admin) put_off_by(lock, *client, user, "BAN", "banned");
    }
    server_log.add("-", words({"--", target, "was banned by", user.name + "."}));
    post(lock, user, words({"INFO", target, "is banned. /unban undoes it."}));
}

void unban(Client& user, Words rest) {
    const std::string target = ban_target(user, rest);
    if (target.empty()) return;
    if (!change_ban(target, false, user.name)) return error(user, target + " is not banned; /bans tells who is.");
    server_log.add("-", words({"--", target, "was unbanned by", user.name + "."}));
    info(user, target + " is no longer banned.");
}

void bans(Client& user, Words /*rest*/) {
    std::size_t count = 0;
    for (const std::string& line : lines_of(read_bans())) {
        if (banned_by(line).empty()) continue;
        info(user, clean(line));
        ++count;
    }
    info(user, "Bans: " + std::to_string(count) + ".");
}

void shut_down(Client& user, Words /*rest*/) {
    server_log.add("-", words({"-- shutdown by", user.name + "."}));
    request_stop();
}

void help(Client& user, Words rest);

enum class Right { everyone, admin };

struct Command {
    std::string_view name, form;
    int arguments;  // how many words have to follow, at the least
    Right right;
    void (*run)(Client&, Words);
    std::string_view does;
};

constexpr Command commands[] = {
    {"help", "/help [COMMAND]", 0, Right::everyone, help, "lists what you may use, or explains one"},
    {"who", "/who", 0, Right::everyone, who, "tells who is in the room"},
    {"me", "/me TEXT", 1, Right::everyone, me, "says what you do: /me waves"},
    {"msg", "/msg NAME TEXT", 2, Right::everyone, msg, "sends TEXT to NAME alone"},
    {"reply", "/reply TEXT", 1, Right::everyone, reply, "answers the last private message"},
    {"ignore", "/ignore NAME", 1, Right::everyone, ignore, "hides what NAME says, or shows it again"},
    {"time", "/time", 0, Right::everyone, time_of_day, "tells the server's time"},
    {"quote", "/quote", 0, Right::everyone, quote, "gives a word of wisdom"},
    {"echo", "/echo TEXT", 1, Right::everyone, echo, "sends TEXT back to you alone"},
    {"quit", "/quit", 0, Right::everyone, quit, "leaves the chat"},
    {"exit", "/exit", 0, Right::everyone, quit, "the same as /quit"},
    {"kick", "/kick NAME", 1, Right::admin, fire, "puts NAME off the server"},
    {"fire", "/fire NAME", 1, Right::admin, fire, "puts NAME off the server"},
    {"ban", "/ban NAME-OR-ADDRESS", 1, Right::admin, ban, "puts a name or address off the server for good"},
    {"unban", "/unban NAME-OR-ADDRESS", 1, Right::admin, unban, "takes it off the ban list"},
    {"bans", "/bans", 0, Right::admin, bans, "shows the ban list"},
    {"shutdown", "/shutdown", 0, Right::admin, shut_down, "ends the server"},
};

bool may_use(const Client& user, const Command& command) { return command.right == Right::everyone || user.admin; }

const Command* find_command(Words name) {
    const auto* found = std::ranges::find(commands, fold(name), &Command::name);
    return found == std::end(commands) ? nullptr : found;
}

void help(Client& user, Words rest) {
    if (rest.starts_with('/')) rest.remove_prefix(1);
    for (const Command& command : commands) {
        if (!may_use(user, command) || (!rest.empty() && !same_name(rest, command.name))) continue;
        std::string form(command.form);
        form.resize(std::max<std::size_t>(form.size(), 24), ' ');
        info(user, words({form, command.does}));
        if (!rest.empty()) return;
    }
    if (!rest.empty()) return error(user, "There is no such command for you. /help lists those there are.");
    info(user, "Anything that does not begin with / is said to the room.");
}

// Does what a line of a logged-in client asks for. Its own thread; may block on the disk where bans are concerned.
void act_on(Client& user, Words line) {
    if (trim(line).empty()) return;
    if (!line.starts_with('/')) return say(user, line);
    line.remove_prefix(1);
    const Words name = take_word(line);
    const Command* command = find_command(name);
    if (command == nullptr || !may_use(user, *command)) {
        const Words problem = command == nullptr ? "There is no command" : "Only the admin may use";
        return error(user, words({problem, "/" + std::string(name) + ";", "/help lists what you may use."}));
    }
    if (count_words(line) < command->arguments) return error(user, words({"The form is:", command->form}));
    try {
        command->run(user, trim(line));
    } catch (const std::runtime_error& problem) {  // of the ban list's file
        server_log.add("-", words({"--", name, "failed:", problem.what()}));
        error(user, words({"That could not be done:", problem.what()}));
    }
}

// ---------------------------------------------------------------------------------------------------------
// 8. A client's own thread
//
// The heart of the server: a plain loop around recv(). Whatever a client does slowly, or too much of, is waited for
// here, in its own thread, and so by nobody else (promise 2).

// Waits until the client may be heard again: while it is ahead of its rate, and while it does not read what waits
// for it. False: the connection is to end.
bool wait_turn(Client& client) {
    Lock lock(chat.mutex);
    if (options.rate > 0) {
        const auto interval = Clock::duration(1s) / options.rate;
        const auto now = Clock::now();
        client.turn = std::max(client.turn, now) + interval;
        const auto allowed = client.turn - burst * interval;
        if (allowed > now) client.changed.wait_until(lock, allowed, [&] { return client.ending; });
    }
    client.changed.wait(lock, [&] { return client.ending || client.backlog < pause_backlog; });
    return !client.ending;
}

// The connection has no more to give: the peer has ended it, or broken it, or farewell() was said.
void note_end(Client& client, bool broken) {
    const Lock lock(chat.mutex);
    if (client.ending) return;
    if (broken) return drop(lock, client, "lost the connection.");
    farewell(lock, client, "BYE QUIT You ended the connection.", "left.");
}

// Gives the client's next line, cleaned, or nothing at the end. Blocks until there is one.
std::optional<std::string> read_line(Client& client) {
    bool open = true;
    while (true) {
        const std::optional<Line> line = open ? client.inbox.next() : client.inbox.last();
        if (line && !wait_turn(client)) return std::nullopt;
        if (line && line->too_long) {
            tell(client, words({"ERR That line was longer than", std::to_string(max_line), "bytes: not sent."}));
        } else if (line) {
            return clean(line->text);
        } else if (!open) {
            note_end(client, false);
            return std::nullopt;
        } else {
            std::array<char, 2048> bytes{};
            const ssize_t count = recv(client.socket.get(), bytes.data(), bytes.size(), 0);
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) {
                note_end(client, true);
                return std::nullopt;
            }
            open = count > 0;
            client.inbox.add({bytes.data(), static_cast<std::size_t>(count)});
        }
    }
}

// Gives false, with which a login ends.
bool turn_away(Client& client, Words last_line, Words why) {
    farewell(Lock(chat.mutex), client, last_line, "was turned away: " + std::string(why));
    return false;
}

bool prove_admin(Client& client) {
    for (int wrong = 0; wrong < max_wrong_passwords; ++wrong) {
        tell(client, "PASS The admin's password?");
        const std::optional<std::string> given = read_line(client);
        if (!given) return false;
        if (!tries.take(client.address)) {
            tell(client, "ERR Too many wrong tries from your address: wait a minute, then try again.");
        } else if (same_secret(*given, options.admin_password)) {
            tries.give_back(client.address);
            return true;
        } else {
            tell(client, "ERR That is not the password.");
        }
    }
    return turn_away(client, "REFUSE Three wrong passwords.", "three wrong passwords.");
}

// Gives what is wrong with a name that somebody wants to have, as a sentence; empty if nothing is.
std::string name_problem(Words name) {
    if (!valid_name(name)) return "A name is 3 to 12 letters and digits (A-Z, a-z, 0-9), a letter first.";
    if (same_name(name, "server")) return "The server itself has that name.";
    const Lock lock(chat.mutex);
    if (chat.by_name.contains(fold(name))) return "Somebody here has the name " + std::string(name) + " already.";
    return "";
}

// Gives the client the name if nobody has it. From then on a ban of that name finds the client.
bool take_name(Client& client, Words name) {
    const Lock lock(chat.mutex);
    if (!chat.by_name.try_emplace(fold(name), &client).second) return false;
    client.name = name;
    client.key = fold(name);
    client.admin = client.key == "admin";
    return true;
}

// Asks for the name, and for the password that it may need. False: the connection is to end.
bool log_in(Client& client) {
    tell(client, words({"INFO This is Chatroom", std::string(version) + "."}));
    if (is_banned(client.address)) return turn_away(client, "BAN Your address is banned.", "banned.");
    do {
        tell(client, "NICK Your name? 3 to 12 letters and digits, a letter first; type it and press Enter.");
        const std::optional<std::string> line = read_line(client);
        if (!line) return false;
        const Words name = trim(*line);
        const std::string problem = name_problem(name);
        if (!problem.empty()) {
            error(client, problem);
        } else if (same_name(name, "admin") && !prove_admin(client)) {
            return false;
        } else if (!take_name(client, name)) {
            error(client, "Somebody else has just taken that name.");
        }
    } while (client.name.empty());
    if (is_banned(client.name)) return turn_away(client, "BAN That name is banned.", "banned.");
    const Lock lock(chat.mutex);
    const std::string hint = "Type a line to say it; /help lists the commands, /quit leaves.";
    post(lock, client, words({"WELCOME", client.name, "Welcome,", client.name + ".", hint}));
    if (!client.ending) enter(lock, client, chat.public_room);
    return !client.ending;
}

// Takes the client out of everything that others can see, and sends what still waits for it, for a while.
void goodbye(Client& client) {
    Lock lock(chat.mutex);
    client.ending = true;
    if (client.room != nullptr) {
        leave(lock, client);
    } else if (!chat.stopping) {
        server_log.add("-", words({"--", client.address, client.why}));
    }
    if (!client.name.empty()) chat.by_name.erase(client.key);
    const auto let_go = [&] { return !client.with_postman; };
    if (!client.changed.wait_for(lock, farewell_limit, let_go)) {
        drop(lock, client, "");
        client.changed.wait(lock, let_go);
    }
    std::erase(chat.clients, &client);
    if (chat.clients.empty()) chat.empty.notify_all();
}

// Ends the connection so that the last lines arrive: close() while bytes are unread sends a reset, which may
// overtake them. So the peer is given some time to close its side first.
void hang_up(const Client& client) {
    shutdown(client.socket.get(), SHUT_WR);
    std::array<pollfd, 2> polled{{{client.socket.get(), POLLIN, 0}, {stop_request->fd(), POLLIN, 0}}};
    const auto deadline = Clock::now() + farewell_limit;
    std::array<char, 2048> ignored{};
    do {
        poll(polled.data(), polled.size(), 2000);
    } while (recv(client.socket.get(), ignored.data(), ignored.size(), MSG_DONTWAIT) > 0 && Clock::now() < deadline);
}

// The thread of one client, which it owns.
void serve(Client* known) {
    const std::unique_ptr<Client> client(known);
    try {
        if (log_in(*client)) {
            while (const std::optional<std::string> line = read_line(*client)) act_on(*client, *line);
        }
    } catch (const std::exception& problem) {  // no memory, or no ban list: it ends this client alone
        server_log.add("-", words({"--", client->address, "failed:", problem.what()}));
        turn_away(*client, "REFUSE The server has a problem; please tell who runs it.", "a problem.");
    }
    goodbye(*client);
    hang_up(*client);
    const Lock lock(chat.mutex);
    chat.finished.push_back(std::this_thread::get_id());
}

// ---------------------------------------------------------------------------------------------------------
// 9. The operator's terminal, and the clock

// Says whether the terminal is there, but another job is in its foreground: "./server &".
bool in_background() {
    const pid_t foreground = tcgetpgrp(STDIN_FILENO);
    return foreground != -1 && foreground != getpgrp();
}

void obey(LineBuffer& lines) {
    while (const std::optional<Line> line = lines.next()) {
        if (line->too_long) {
            error(operator_client, "That line was too long.");
        } else {
            act_on(operator_client, clean(line->text));
        }
    }
}

// The console's thread: does what the operator types, until there is no more of it. The server runs on without.
void run_console() {
    LineBuffer lines(max_line);
    std::array<pollfd, 2> polled{{{STDIN_FILENO, POLLIN, 0}, {stop_request->fd(), POLLIN, 0}}};
    while (true) {
        poll(polled.data(), polled.size(), -1);
        if (polled[1].revents != 0) return;
        std::array<char, 1024> bytes{};
        const ssize_t count = read(STDIN_FILENO, bytes.data(), bytes.size());
        if (count > 0) {
            lines.add({bytes.data(), static_cast<std::size_t>(count)});
            obey(lines);
        } else if (count < 0 && errno == EIO && in_background()) {
            if (stop_within(1s)) return;
        } else if (count == 0 || (errno != EINTR && errno != EAGAIN)) {
            return;
        }
    }
}

// Joins the clients' threads that have finished. (One may have done so before main() could enter it.)
void join_finished() {
    std::vector<std::thread> joinable;
    {
        const Lock lock(chat.mutex);
        std::erase_if(chat.finished, [&](std::thread::id id) {
            const auto found = chat.threads.find(id);
            if (found == chat.threads.end()) return false;
            joinable.push_back(std::move(found->second));
            chat.threads.erase(found);
            return true;
        });
    }
    for (std::thread& thread : joinable) thread.join();
}

void end_slow_logins() {
    const Lock lock(chat.mutex);
    for (Client* client : chat.clients) {
        if (client->room != nullptr || client->ending || Clock::now() - client->since < login_limit) continue;
        put_off(lock, *client, "REFUSE The login took longer than 20 seconds.", "was turned away: too slow a login.");
    }
}

// The clock's thread.
void run_clock() {
    while (!stop_within(1s)) {
        end_slow_logins();
        join_finished();
    }
}

// ---------------------------------------------------------------------------------------------------------
// 10. Listening and accepting

void set_option(int socket, int level, int option) {
    const int on = 1;
    setsockopt(socket, level, option, &on, sizeof on);
}

// Gives the port in an IPv4 or IPv6 address, in network byte order.
in_port_t& port_in(sockaddr* address) {
    return address->sa_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(address)->sin6_port
                                          : reinterpret_cast<sockaddr_in*>(address)->sin_port;
}

// Gives a socket that listens there, or none where this machine has no such address family. Throws what else.
Fd open_listener(const addrinfo& at) {
    Fd socket(::socket(at.ai_family, at.ai_socktype, at.ai_protocol));
    if (!socket && errno == EAFNOSUPPORT) return socket;
    if (!socket) throw_errno("socket");
    set_option(socket.get(), SOL_SOCKET, SO_REUSEADDR);  // or a restart would have to wait for old connections
    if (at.ai_family == AF_INET6) set_option(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY);  // IPv4 has its own socket
    if (bind(socket.get(), at.ai_addr, at.ai_addrlen) != 0) {
        if (errno == EADDRNOTAVAIL && options.bind_address.empty()) return Fd();
        throw_errno("bind", errno == EADDRINUSE ? "is another server running on port " + options.port + "?" : "");
    }
    if (listen(socket.get(), SOMAXCONN) != 0) throw_errno("listen");
    fcntl(socket.get(), F_SETFL, O_NONBLOCK);  // a connection may be gone again before accept() gets to it
    return socket;
}

// Listens on every address of options.bind_address, and gives the port. Where any free one will do, that of the first
// address is taken for all.
int open_listeners(std::vector<Fd>& listeners) {
    in_port_t port = 0;
    const AddressList addresses = resolve(options.bind_address, options.port);
    for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
        if (port != 0) port_in(at->ai_addr) = port;
        Fd listener = open_listener(*at);
        if (!listener) continue;
        sockaddr_storage bound{};
        auto* address = reinterpret_cast<sockaddr*>(&bound);
        socklen_t length = sizeof bound;
        if (getsockname(listener.get(), address, &length) != 0) throw_errno("getsockname");
        port = port_in(address);
        listeners.push_back(std::move(listener));
    }
    if (listeners.empty()) throw std::runtime_error("there is no address to listen on");
    return ntohs(port);
}

// Accepts clients, and turns away whom there is no place for: only in the main thread.
class Doorman {
   public:
    // Until the stop is requested.
    void run(const std::vector<Fd>& listeners) {
        std::vector<pollfd> polled{{stop_request->fd(), POLLIN, 0}};
        for (const Fd& listener : listeners) polled.push_back({listener.get(), POLLIN, 0});
        while (true) {
            poll(polled.data(), polled.size(), -1);
            if (polled[0].revents != 0) return;
            for (const pollfd& listener : polled) {
                if (listener.revents != 0) accept_from(listener.fd);
            }
        }
    }

   private:
    void accept_from(int listener) {
        sockaddr_storage from{};
        auto* address = reinterpret_cast<sockaddr*>(&from);
        socklen_t length = sizeof from;
        Fd socket(accept(listener, address, &length));
        if (socket) {
            fcntl(socket.get(), F_SETFL, 0);                     // some systems hand O_NONBLOCK on from the listener
            set_option(socket.get(), IPPROTO_TCP, TCP_NODELAY);  // the postman gathers lines; the kernel need not
            admit(std::move(socket), address_text(address, length));
        } else if (errno == EMFILE || errno == ENFILE) {
            refuse_without_descriptor(listener);
        } else if (errno == ENOBUFS || errno == ENOMEM) {
            complain("accept: " + error_text(errno));
            stop_within(100ms);  // poll() would return at once again and again
        }
    }

    void admit(Fd socket, const std::string& address) {
        auto client = std::make_unique<Client>(std::move(socket), address);
        const std::string problem = enlist(*client);
        if (!problem.empty()) return refuse(client->socket, problem);
        try {
            std::thread thread(serve, client.get());
            [[maybe_unused]] Client* served = client.release();  // it is the thread's now
            const Lock lock(chat.mutex);
            chat.threads.emplace(thread.get_id(), std::move(thread));
        } catch (const std::system_error& error) {
            client->why = "was turned away: " + std::string(error.what());
            goodbye(*client);
            refuse(client->socket, "The server cannot start another thread: try again later.");
        }
    }

    // Puts the client on the list, or says why there is no place for it.
    static std::string enlist(Client& client) {
        const Lock lock(chat.mutex);
        if (std::cmp_greater_equal(chat.clients.size(), options.max_clients)) {
            return "The server is full: it takes " + std::to_string(options.max_clients) + " at once.";
        }
        const auto here = std::ranges::count(chat.clients, client.address, &Client::address);
        if (options.max_per_ip > 0 && here >= options.max_per_ip) {
            return "There are " + std::to_string(here) + " connections from your address already; no more are taken.";
        }
        chat.clients.push_back(&client);
        return "";
    }

    // Nobody else knows the socket. Never blocks.
    void refuse(const Fd& socket, const std::string& why) {
        complain(why);
        const std::string line = words({"REFUSE", why}) + '\n';
        send(socket.get(), line.data(), line.size(), MSG_DONTWAIT);
        shutdown(socket.get(), SHUT_WR);
        std::array<char, 2048> unread{};  // or closing would send a reset: see hang_up()
        recv(socket.get(), unread.data(), unread.size(), MSG_DONTWAIT);
    }

    // One descriptor is kept for this: without it the newcomer would wait in the listener's queue, and poll() would
    // return at once, again and again.
    void refuse_without_descriptor(int listener) {
        reserve_ = Fd();
        if (const Fd socket(accept(listener, nullptr, nullptr)); socket) {
            refuse(socket, "The server has no descriptor left: try again later.");
        } else {
            stop_within(100ms);
        }
        reserve_ = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
    }

    // Logs why somebody was turned away, each cause at most once a second.
    void complain(const std::string& cause) {
        const auto now = Clock::now();
        const auto [entry, first] = last_logged_.try_emplace(cause, now);
        if (!first && now - entry->second < 1s) return;
        entry->second = now;
        server_log.add("-", "-- somebody was turned away: " + cause);
    }

    Fd reserve_{open("/dev/null", O_RDONLY | O_CLOEXEC)};
    std::map<std::string, Clock::time_point> last_logged_;  // by cause, of which there are few
};

// ---------------------------------------------------------------------------------------------------------
// 11. Starting and stopping

constexpr const char* usage = R"(usage: server [OPTION]...
  --port N          the port to listen on (12345); 0 takes any free one
  --bind ADDRESS    listen on this address alone, not on all
  --bans FILE       the ban list (bans.txt)
  --rate N          lines a second from one client, after a burst of 30 (10); 0 is no limit
  --max-clients N   connections at once (10000, or what the open-file limit allows)
  --max-per-ip N    connections from one address (64); 0 is no limit
  --help            show this
  --version         show the version
The environment's CHAT_ADMIN_PASSWORD is the password of the user "admin"; without it one is made and printed.
)";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Gives an option's number. Throws a UsageError if it is none from low to high.
long number_option(std::string_view name, std::string_view text, long low, long high) {
    if (const std::optional<long> number = parse_number(text, low, high)) return *number;
    throw UsageError("--" + std::string(name) + " takes a number from " + std::to_string(low) + " to " +
                     std::to_string(high) + ", not '" + std::string(text) + "'");
}

// Makes place for the clients' sockets, and sets max_clients to what there is place for if it was not set.
void prepare_descriptors(std::optional<long> max_clients) {
    constexpr rlim_t others = 64;  // descriptors that are not clients' sockets
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("getrlimit");
    const rlim_t wanted = static_cast<rlim_t>(max_clients.value_or(options.max_clients)) + others;
    limit.rlim_cur = std::max(limit.rlim_cur, std::min(limit.rlim_max, wanted));
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("setrlimit");
    const rlim_t place = limit.rlim_cur > 2 * others ? limit.rlim_cur - others : limit.rlim_cur / 2;
    options.max_clients = max_clients.value_or(static_cast<long>(std::min(place, wanted - others)));
}

// Sets the options. Throws a UsageError at a wrong one; --help and --version answer and exit.
void read_options(int argc, char** argv) {
    enum { port, bind_address, bans_file, rate, max_clients, max_per_ip, help_text, version_text };
    static const option known[] = {{"port", required_argument, nullptr, port},
                                   {"bind", required_argument, nullptr, bind_address},
                                   {"bans", required_argument, nullptr, bans_file},
                                   {"rate", required_argument, nullptr, rate},
                                   {"max-clients", required_argument, nullptr, max_clients},
                                   {"max-per-ip", required_argument, nullptr, max_per_ip},
                                   {"help", no_argument, nullptr, help_text},
                                   {"version", no_argument, nullptr, version_text},
                                   {}};
    std::optional<long> clients;
    int which = 0;
    for (int found = 0; (found = getopt_long(argc, argv, "", known, &which)) != -1;) {
        const std::string value = optarg == nullptr ? "" : optarg;
        const auto number = [&](long low, long high) { return number_option(known[which].name, value, low, high); };
        switch (found) {
            case port:
                options.port = std::to_string(number(0, 65535));
                break;
            case bind_address:
                options.bind_address = value;
                break;
            case bans_file:
                options.bans_file = value;
                break;
            case rate:
                options.rate = number(0, 1000000);
                break;
            case max_clients:
                clients = number(1, 1000000);
                break;
            case max_per_ip:
                options.max_per_ip = number(0, 1000000);
                break;
            case help_text:
                std::cout << usage;
                std::exit(0);
            case version_text:
                std::cout << "chatroom-server " << version << '\n';
                std::exit(0);
            default:
                throw UsageError("");  // getopt_long() has said what is wrong
        }
    }
    if (optind < argc) throw UsageError("there is no option '" + std::string(argv[optind]) + "'");
    prepare_descriptors(clients);
}

// Takes the admin's password from the environment, where others could read it, or makes one. Says which.
std::string choose_admin_password() {
    const char* given = std::getenv("CHAT_ADMIN_PASSWORD");
    options.admin_password = clean(given == nullptr ? "" : given);  // as what is typed will be
    unsetenv("CHAT_ADMIN_PASSWORD");
    if (!options.admin_password.empty()) return "as set in CHAT_ADMIN_PASSWORD";
    options.admin_password = random_text("abcdefghjkmnpqrstuvwxyz23456789", 12);
    return options.admin_password;
}

// Signals: Ctrl-C and SIGTERM shut down; a peer that is gone, or a terminal, is no reason to end.
void handle_signals() {
    struct sigaction action {};
    action.sa_handler = [](int) { request_stop(); };
    for (const int number : {SIGINT, SIGTERM}) sigaction(number, &action, nullptr);
    action.sa_handler = [](int) {};  // without SA_RESTART: it interrupts the log's write()
    sigaction(SIGUSR1, &action, nullptr);
    action.sa_handler = SIG_IGN;
    for (const int number : {SIGPIPE, SIGHUP, SIGTTIN, SIGTTOU}) sigaction(number, &action, nullptr);
}

// Opens what a closed terminal left closed, or a client's socket would become our standard output.
void open_standard_descriptors() {
    int opened = 0;
    do opened = open("/dev/null", O_RDWR);
    while (opened >= 0 && opened <= STDERR_FILENO);
    if (opened >= 0) close(opened);
}

// Tells everyone, waits until they have it, and joins their threads: within shutdown_limit and a little.
void end_clients() {
    std::unordered_map<std::thread::id, std::thread> threads;
    {
        Lock lock(chat.mutex);
        chat.stopping = true;
        for (Client* client : chat.clients) {
            put_off(lock, *client, "BYE SHUTDOWN The server shuts down.", "");
        }
        chat.empty.wait_for(lock, shutdown_limit, [] { return chat.clients.empty(); });
        for (Client* client : chat.clients) drop(lock, *client, "");
        threads.swap(chat.threads);
    }
    for (auto& [id, thread] : threads) thread.join();
}

void run() {
    handle_signals();
    Wakeup stop;
    stop_request = &stop;
    read_bans();  // to fail now if it cannot be read
    const std::string password = choose_admin_password();
    std::vector<Fd> listeners;
    const int port = open_listeners(listeners);
    std::cout << "listening on port " << port << "\nadmin password: " << password << std::endl;
    operator_client.name = operator_client.key = "server";
    operator_client.admin = true;
    operator_client.room = &chat.public_room;
    chat.by_name["server"] = &operator_client;

    std::thread log_thread(&Log::run, &server_log);
    std::thread postman_thread(&Postman::run, &postman);
    std::thread clock_thread(run_clock);
    std::thread console_thread(run_console);
    Doorman().run(listeners);

    listeners.clear();
    console_thread.join();
    clock_thread.join();
    end_clients();
    postman.stop();
    postman_thread.join();
    server_log.add("-", "-- the server has shut down.");
    server_log.stop(log_thread);
}

}  // namespace

int main(int argc, char** argv) {
    std::setlocale(LC_CTYPE, "");  // for the width of characters: wrapped()
    try {
        open_standard_descriptors();
        read_options(argc, argv);
        run();
        return 0;
    } catch (const UsageError& error) {
        std::cerr << "server: " << error.what() << (*error.what() == 0 ? "" : "; ") << "--help shows the options\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "server: " << error.what() << '\n';
        return 1;
    }
}
