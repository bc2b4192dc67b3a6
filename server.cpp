// server.cpp: the chat server. One thread for each client reads; one thread, the postman, sends.
//
// The way of a message from one keyboard to the other screens, and the functions to read to see it:
//
//   serve()           section 8   a client's own thread waits in recv() and cuts what comes into lines
//   act_on()          section 7   a line is a command, or something to say
//   say_in()          section 4   stamps it with the speaker's name, appends it to what waits for all in the room
//   Postman::run()    section 3   sends everything that waits for a client in one call
//
// One mutex, chat.mutex, guards the list of clients and the rooms. What is done under it touches memory only;
// functions that need it held take a `const Lock&` as the proof. The promises that comments cite by number
// are those of docs/design.md.

#if __has_include(<crypt.h>)
#include <crypt.h>
#endif
#include <getopt.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <atomic>
#include <chrono>
#include <clocale>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
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
    std::string bind_address;        // empty: every interface
    std::vector<std::string> rooms;  // made at start, to stay
    long idle = 240;                 // seconds until who says nothing is disconnected, warned at half; 0 is never
    long rate = 10;                  // lines a second from one client, after the burst; 0 is no limit
    long max_clients = 10000;        // connections, those that have not logged in included
    long max_per_ip = 64;            // of them from one address; 0 is no limit
    std::string admin_password_file;
    std::string admin_password;
    std::string title;      // what the server is called where clients look for one; empty: the host's name
    bool discovery = true;  // clients may look for it
    std::string exit_code;  // five digits, made at start: who knows it may shut the server down
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
constexpr std::chrono::seconds log_pause{1};  // between two lines of the same cause, of those that are turned away
constexpr std::size_t max_title = 128;        // bytes
constexpr std::size_t min_password = 8;       // characters
constexpr std::size_t max_password = 256;     // bytes: crypt(3) has a limit of its own not far above
constexpr int max_wrong_passwords = 3;        // on one connection
constexpr auto farewell_limit = 2s;           // for a client to take its last lines, and as long to close its side
constexpr auto shutdown_limit = 400ms;        // for all of them, when the server shuts down

// Opens what a closed terminal left closed, or a socket or a pipe of ours would become our standard output.
bool open_standard_descriptors() {
    int opened = 0;
    while (opened >= 0 && opened <= STDERR_FILENO) opened = open("/dev/null", O_RDWR);
    return opened >= 0 && close(opened) == 0;
}

const bool standard_descriptors_are_open = open_standard_descriptors();  // before anything else is opened
Wakeup stop_request;  // once set, it ends the server: main(), the clock and others poll it

// Waits until the stop is requested or the time is over; says which.
bool stop_within(std::chrono::milliseconds time) {
    pollfd stop{stop_request.fd(), POLLIN, 0};
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
        if (waiting_.empty()) changed_.notify_all();
        append(room, text);
    }

    // The log's thread: writes until stop(), and then what is left.
    void run() {
        Lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [&] { return !waiting_.empty() || stopping_; });
            if (waiting_.empty()) break;
            changed_.wait_for(lock, gathering_time, [&] { return stopping_; });
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
    static constexpr auto gathering_time = 20ms;               // for one write() to carry what is logged meanwhile

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

    // Only its own thread.
    LineBuffer inbox{max_line};
    Clock::time_point turn = Clock::now();  // when the lines that came so far are paid for: see wait_turn()

    // Guarded by chat.mutex.
    Clock::time_point since = Clock::now();  // when it connected; later by the time that hashing took
    bool hashing = false;                    // a password of its, which the login's deadline does not count
    std::string name;                        // empty until the login is complete
    std::string key;                         // the name, folded
    bool admin = false;                      // the admin, or the operator
    Room* room = nullptr;                    // null until the login is complete
    std::set<std::string> ignored;           // keys of those whose lines it does not want
    std::string correspondent;               // who sent it the last private message
    std::string outbox;                      // lines that the postman has not picked up
    std::size_t caught_up = 0;               // bytes of its room's outbox that are in its own, or from before it came
    std::size_t backlog = 0;                 // bytes that wait: in outbox, and unsent in sending
    bool with_postman = false;               // it has the client in hand: the socket must stay open
    std::atomic<bool> ending = false;        // no line counts from now on, none is queued, and its thread says goodbye;
                                             // may be read without the mutex
    bool abandoned = false;                  // what waits for it will not be sent
    std::string why = "left.";               // of its leaving, for the room
    Clock::time_point heard = since;         // when its last line came
    bool warned = false;                     // of its idleness
    std::condition_variable changed;         // its thread waits here; ending, backlog and with_postman notify

    // Only the postman, while with_postman.
    std::string sending;         // picked up from outbox
    std::size_t sent = 0;        // bytes of it that the socket took
    bool full = false;           // the socket takes no more
    bool broken = false;         // the connection is gone
    Clock::time_point progress;  // when it last took something, or sending began to wait
};

struct Said {
    std::string key;   // whose words they are
    std::string line;  // as it is shown to who joins
};

struct Room {
    int number;
    std::string name;
    std::string code;  // five digits, or empty
    std::string creator;
    std::time_t created;
    std::string owner = {};             // empty: nobody, in public and in the rooms that the server made
    std::vector<Client*> members = {};  // who has been here longest comes first
    std::string outbox = {};            // lines for all members, which some of them do not have in theirs yet
    std::deque<Said> history = {};
};

struct Chat {
    std::mutex mutex;
    std::vector<Client*> clients;                      // everyone who is connected
    std::unordered_map<std::string, Client*> by_name;  // by key: who is logged in, and the operator
    std::list<Room> rooms;                             // the first is public
    std::set<std::string> blocked;                     // keys of those whom only the admin and the operator hear
    std::condition_variable empty;                     // clients has become so

    std::unordered_map<std::thread::id, std::thread> threads;  // the clients'
    std::vector<std::thread::id> finished;                     // those that can be joined
};

Chat chat;
Client operator_client{Fd(), "the server's terminal"};  // the person there, by the name "server"

bool is_operator(const Client& client) { return &client == &operator_client; }

// Cuts off a client that is not worth waiting for. Under shutdown() its own thread leaves recv(), and the postman
// poll(); the socket stays open until that thread closes it.
void drop(const Lock& /*held*/, Client& client, std::string_view why) {
    if (!client.ending.exchange(true)) client.why = why;
    client.abandoned = true;
    client.changed.notify_all();
    shutdown(client.socket.get(), SHUT_RDWR);
}

// Gives those lines that a client wants to see, of what was said in its room.
std::string not_ignored(const Client& client, std::string_view lines) {
    std::string wanted;
    while (!lines.empty()) {
        const std::string_view line = lines.substr(0, lines.find('\n') + 1);
        lines.remove_prefix(line.size());
        std::string_view rest = line;
        const std::string_view word = take_word(rest);
        const bool words_of_one = word == "SAY" || word == "ME";
        if (!words_of_one || !client.ignored.contains(fold(take_word(rest)))) wanted += line;
    }
    return wanted;
}

// Takes what waits in the outboxes and sends it, one call for each client, and never blocks on any of them (promise 2).
// While it is busy with that, what others say gathers in the outboxes and goes out together.
class Postman {
   public:
    // Queues lines, with their ends, for a client. What cannot wait any longer drops the client. Any thread; never
    // blocks, nor do the next three.
    void queue(const Lock& lock, Client& client, std::string_view lines) {
        if (client.ending) return;
        client.backlog += lines.size();
        if (client.backlog > max_backlog) return drop(lock, client, "could not keep up: 1 MiB waited.");
        client.outbox += lines;
        if (!std::exchange(client.with_postman, true)) called_.push_back(&client);
        wake();
    }

    // Queues a line, with its end, for all who are in a room. The postman copies it to their outboxes, many lines at
    // once: to append each line a hundred times would be most of what it costs.
    void queue(const Lock& /*held*/, Room& room, std::string_view line) {
        if (room.outbox.empty()) rooms_.push_back(&room);
        room.outbox += line;
        ++said_;
        wake();
    }

    // Copies what a client's room has for it so far: before something is queued for it alone, before it leaves the
    // room, before it ignores others than now, and before its backlog is looked at.
    void catch_up(const Lock& lock, Client& client) {
        if (client.room == nullptr || client.caught_up == client.room->outbox.size()) return;
        const std::string_view lines = std::string_view(client.room->outbox).substr(client.caught_up);
        client.caught_up = client.room->outbox.size();
        queue(lock, client, client.ignored.empty() ? lines : not_ignored(client, lines));
    }

    // For a room that ends.
    void forget(const Lock& /*held*/, const Room& room) { std::erase(rooms_, &room); }

    // Waits until nothing is left that the sockets take, or the time is over. Not the postman's own thread.
    void drain(Lock& lock, Clock::duration limit) {
        idle_.wait_for(lock, limit, [&] { return asleep_; });
    }

    // Ends run(). After the clients are gone.
    void stop() {
        const Lock lock(chat.mutex);
        stopping_ = true;
        wakeup_.set();
    }

    // The postman's thread. After a round that brought more than one line, it rests for a third of the time that the
    // round took: so those who answer what they have just got are all in the next round, and not each in one of its
    // own. (A send() costs the same however many lines it carries.)
    void run() {
        while (pick_up()) {
            wait_for_sockets();
            round_ = Clock::now();
            for (Client* client : in_hand_) {
                if (!client->full) send_some(*client);
            }
            const auto rest = (Clock::now() - round_) / 3;
            if (several_talk_) std::this_thread::sleep_for(std::min<Clock::duration>(rest, max_rest));
        }
    }

   private:
    static constexpr auto max_rest = 20ms;  // for the process may have been stopped in the middle of a round

    void wake() {
        if (std::exchange(asleep_, false)) wakeup_.set();
    }

    // Takes in hand for whom there is something, lets go whom nothing waits for, and fetches the others' lines. False:
    // stop.
    bool pick_up() {
        const Lock lock(chat.mutex);
        for (Room* room : rooms_) {
            for (Client* member : room->members) {
                catch_up(lock, *member);
                member->caught_up = 0;
            }
            room->outbox.clear();
        }
        rooms_.clear();
        several_talk_ = std::exchange(said_, 0) > 1;
        in_hand_.insert(in_hand_.end(), called_.begin(), called_.end());
        called_.clear();
        std::erase_if(in_hand_, [&](Client* client) {
            refill(lock, *client);
            client->with_postman = !client->sending.empty();
            client->changed.notify_all();
            return !client->with_postman;
        });
        asleep_ = std::all_of(in_hand_.begin(), in_hand_.end(), [](const Client* client) { return client->full; });
        if (asleep_) idle_.notify_all();
        return !stopping_;
    }

    void refill(const Lock& lock, Client& client) const {
        if (client.full && round_ - client.progress > max_stall) {
            drop(lock, client, "took nothing of what was sent for 10 seconds.");
        }
        if (client.broken) drop(lock, client, "lost the connection.");
        if (client.abandoned) {
            client.outbox.clear();
            client.sent = client.sending.size();
        }
        if (client.sent == client.sending.size()) {
            client.full = false;
            client.sent = 0;
            client.sending.clear();
            client.sending.swap(client.outbox);
            client.progress = round_;
        }
        client.backlog = client.outbox.size() + client.sending.size() - client.sent;
    }

    // Sleeps if there is nothing to send, until called or a full socket drains. (A Wakeup that is set late costs
    // one round; one that is missed would cost a message, hence clear() comes before pick_up() looks.)
    void wait_for_sockets() {
        std::vector<pollfd> polled{{wakeup_.fd(), POLLIN, 0}};
        std::vector<Client*> waiting;
        for (Client* client : in_hand_) {
            if (!client->full) continue;
            polled.push_back({client->socket.get(), POLLOUT, 0});
            waiting.push_back(client);
        }
        const bool idle = waiting.size() == in_hand_.size();
        if (waiting.empty() && !idle) return;
        const int forever = -1;
        const int a_second = 1000;  // to notice when one has stalled for too long
        poll(polled.data(), polled.size(), !idle ? 0 : waiting.empty() ? forever : a_second);
        wakeup_.clear();
        const bool retry = Clock::now() >= retry_;  // poll() waits until much is free: a slow reader takes less
        if (retry) retry_ = Clock::now() + std::chrono::seconds(1);
        for (std::size_t i = 0; i < waiting.size(); ++i) waiting[i]->full = polled[i + 1].revents == 0 && !retry;
    }

    void send_some(Client& client) const {
        const std::string_view rest = std::string_view(client.sending).substr(client.sent);
        const ssize_t taken = send(client.socket.get(), rest.data(), rest.size(), MSG_DONTWAIT);
        if (taken >= 0) {
            client.sent += static_cast<std::size_t>(taken);
            client.progress = round_;
        } else if (errno == EAGAIN) {
            client.full = true;
        } else if (errno != EINTR) {
            client.broken = true;
        }
    }

    std::vector<Client*> called_;  // who is to be taken in hand; guarded by chat.mutex, as are the next four
    std::vector<Room*> rooms_;     // whose outboxes are not empty
    int said_ = 0;                 // lines that came into them since the last round
    bool asleep_ = false;          // nothing can be sent: see wake()
    bool stopping_ = false;
    std::condition_variable idle_;  // asleep_ has become true
    std::vector<Client*> in_hand_;  // only the postman, as are the next three
    bool several_talk_ = false;
    Clock::time_point round_;  // when the last round began: a clock read for each client would take a tenth of its time
    Clock::time_point retry_;  // when full sockets are tried again
    Wakeup wakeup_;
};

Postman postman;

// ---------------------------------------------------------------------------------------------------------
// 4. Rooms, and what is said in them
//
// To say something to a room is to append it to the room's outbox, under the mutex, from where all members get it: so
// everyone sees the same lines in the same order, the speaker included (promise 1). Any thread may call these; none
// blocks.

// Gives its parts as one text.
template <typename... Parts>
std::string concat(const Parts&... parts) {
    std::string text;
    ((text += parts), ...);
    return text;
}

// Logs what concerns the server as a whole.
template <typename... Parts>
void log_event(const Parts&... parts) {
    server_log.add("-", concat("-- ", parts...));
}

// What the operator's terminal shows of a line, which a client would get as it is.
void show_operator(std::string_view line) {
    const std::string_view word = take_word(line);
    if (word != "MSG") return log_event(line);
    const std::string_view from = take_word(line);
    const std::string_view to = take_word(line);
    server_log.add("-", concat(from, " -> ", to, ": ", line));
}

// Tells a client a line, which is given without its end.
void post(const Lock& lock, Client& to, std::string_view line) {
    if (is_operator(to)) return show_operator(line);
    postman.catch_up(lock, to);
    postman.queue(lock, to, concat(line, "\n"));
}

template <typename... Parts>
void info(const Lock& lock, Client& to, const Parts&... parts) {
    post(lock, to, concat("INFO ", parts...));
}

template <typename... Parts>
void error(const Lock& lock, Client& to, const Parts&... parts) {
    post(lock, to, concat("ERR ", parts...));
}

// Tells a room's members what happened, and the log.
void announce(const Lock& lock, Room& room, std::string_view word, std::string_view name, std::string_view text) {
    postman.queue(lock, room, concat(word, " ", name, " ", text, "\n"));
    server_log.add(room.name, concat("-- ", name, " ", text));
}

// Says something in a room in a client's name; word is SAY or ME.
void say_in(const Lock& lock, Room& room, const Client& from, std::string_view word, std::string_view text) {
    const std::string line = concat(word, " ", from.name, " ", text);
    postman.queue(lock, room, concat(line, "\n"));
    room.history.push_back({from.key, concat("PAST ", utc_time(std::time(nullptr)), " ", line)});
    if (room.history.size() > history_lines) room.history.pop_front();
}

// Tells who is in a room, in as many lines as it takes, and who owns it.
void post_members(const Lock& lock, Client& to, const Room& room) {
    const std::string start = concat("WHO ", room.name, " ", std::to_string(room.members.size()));
    std::string line = start;
    for (const Client* member : room.members) {
        (line += ' ') += member->name;
        if (line.size() < max_line && member != room.members.back()) continue;
        post(lock, to, std::exchange(line, start));
    }
    if (room.members.empty()) post(lock, to, line);
    if (!room.owner.empty()) post(lock, to, concat("OWNER ", room.owner, " owns ", room.name, "."));
}

void enter(const Lock& lock, Client& client, Room& room) {
    announce(lock, room, "JOIN", client.name, "joined.");
    room.members.push_back(&client);
    client.room = &room;
    client.caught_up = room.outbox.size();
    const auto or_else = [](const std::string& text, const char* none) { return text.empty() ? none : text; };
    post(lock, client,
         concat("ROOM ", room.name, " ", or_else(room.code, "-"), " ", or_else(room.owner, "-"), " You are in ",
                room.name, ". Its code: ", or_else(room.code, "NO CODE"), ". Its owner: ", or_else(room.owner, "none"),
                "."));
    post_members(lock, client, room);
    for (const Said& said : room.history) {
        if (!client.ignored.contains(said.key)) post(lock, client, said.line);
    }
}

void end_room(const Lock& lock, Room& room) {
    postman.forget(lock, room);
    server_log.add(room.name, "-- the room has ended.");
    chat.rooms.remove_if([&](const Room& other) { return &other == &room; });
}

// A room that was made by a client ends with its last member. If its owner leaves before that, the member who has
// been there longest owns it.
void leave(const Lock& lock, Client& client, std::string_view why) {
    postman.catch_up(lock, client);
    Room& room = *std::exchange(client.room, nullptr);
    std::erase(room.members, &client);
    if (why.empty()) return;  // the shutdown, which takes everybody
    announce(lock, room, "LEAVE", client.name, why);
    if (room.owner != client.name) return;
    if (room.members.empty()) return end_room(lock, room);
    room.owner = room.members.front()->name;
    announce(lock, room, "OWNER", room.owner, "owns the room now.");
}

void move(const Lock& lock, Client& client, Room& to, std::string_view why) {
    leave(lock, client, why);
    enter(lock, client, to);
}

// Ends a client's connection, by its own thread: last_line is the last that it is sent, `why` is for its room.
void farewell(const Lock& lock, Client& client, std::string_view last_line, std::string_view why) {
    post(lock, client, last_line);
    if (client.ending.exchange(true)) return;
    client.why = why;
    client.changed.notify_all();
}

// The same from any thread, for under shutdown() the client's own thread leaves recv() (promise 4). Who is ending has
// left it already, and hang_up() may need the socket as it is (until the server stops: then it waits for nothing).
void put_off(const Lock& lock, Client& client, std::string_view last_line, std::string_view why) {
    if (client.ending) return;
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
    // Lets a secret be tried from an address, and gives what is to be said of it: nothing if it was right, `wrong` if
    // it was not. Each try is counted before it is looked at, so that those made at the same moment all count; past the
    // limit none is looked at, right or wrong. Any thread. Blocks only as far as is_right does.
    template <typename IsRight>
    std::string_view judge(const std::string& address, std::string_view wrong, IsRight is_right) {
        if (!take(address)) return "Too many wrong tries from your address: wait a minute, then try again.";
        if (!is_right()) return wrong;
        give_back(address);
        return "";
    }

   private:
    bool take(const std::string& address) {
        const Lock lock(mutex_);
        std::erase_if(taken_, [](const auto& entry) { return Clock::now() - entry.second.back() > try_window; });
        std::deque<Clock::time_point>& times = taken_[address];
        while (!times.empty() && Clock::now() - times.front() > try_window) times.pop_front();
        if (times.size() >= max_wrong_tries) return false;
        times.push_back(Clock::now());
        return true;
    }

    void give_back(const std::string& address) {
        const Lock lock(mutex_);
        const auto entry = taken_.find(address);
        if (entry == taken_.end()) return;
        entry->second.pop_back();
        if (entry->second.empty()) taken_.erase(entry);
    }

    std::mutex mutex_;
    std::map<std::string, std::deque<Clock::time_point>> taken_;  // by address; no entry is empty
};

Tries tries;

std::string hash_method;  // for new passwords, as crypt(5) has it; set at start by choose_hash_method()

// Hashes a password with crypt(3); `setting` is a method with a salt, or a hash that was made before. Takes tens of
// milliseconds. One thread at a time, see hash_in_turn(): crypt() has one buffer. Throws if the system lacks the
// method.
std::string hash_password(const std::string& password, const std::string& setting) {
    const char* hash = crypt(password.c_str(), setting.c_str());
    if (hash == nullptr || std::string_view(hash).substr(0, 3) != setting.substr(0, 3)) {
        throw std::runtime_error("crypt: this system cannot hash with " + setting.substr(0, 3));
    }
    return hash;
}

std::string new_salt() { return random_text("./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 16); }

// Takes yescrypt, else SHA-512 with many rounds. Throws if crypt(3) knows neither.
void choose_hash_method() {
    try {
        hash_method = "$y$j9T$";
        hash_password("", hash_method + new_salt());
    } catch (const std::runtime_error&) {
        hash_method = "$6$rounds=200000$";
        hash_password("", hash_method + new_salt());
    }
}

// ---------------------------------------------------------------------------------------------------------
// 6. Files: bans and accounts
//
// Each is a file of lines that people may edit by hand while the server runs. So no copy is kept: each login reads the
// file. All of this blocks on the disk, and is called without chat.mutex.

// Gives the name or address that a line of the ban list is about, folded; empty for a comment.
std::string ban_in(std::string_view line) {
    const std::string who(trim(line.substr(0, line.find('#'))));
    const std::string address = normal_address(who);
    return address.empty() ? fold(who) : address;
}

// Gives the name that a line of the accounts' file, "alice:$y$...", is about, folded; empty if there is none.
std::string account_in(std::string_view line) {
    const std::string_view name = line.substr(0, line.find(':'));
    return valid_name(name) && name.size() < line.size() ? fold(name) : "";
}

// Gives the hash in such a line; empty if there is none that crypt(3) could have made, which locks the account.
std::string hash_in(const std::string& line) {
    const std::size_t start = line.find(":$");
    return start == std::string::npos ? "" : std::string(trim(line.substr(start + 1)));
}

class LineFile {
   public:
    // subject_in gives whom a line is about. mode: who may read the file.
    LineFile(std::string name, mode_t mode, std::string (*subject_in)(std::string_view))
        : path(std::move(name)), mode_(mode), subject_in_(subject_in) {}

    // Gives its lines; none if there is no file yet. Throws if it cannot be read.
    [[nodiscard]] std::vector<std::string> read() const {
        errno = 0;
        std::ifstream file(path);
        if (!file && errno == ENOENT) return {};
        std::vector<std::string> lines;
        for (std::string line; std::getline(file, line);) lines.push_back(line);
        if (!file.eof()) throw_errno("read " + path);
        return lines;
    }

    // Gives the line about somebody (as subject_in has it), if there is one. Throws as read().
    [[nodiscard]] std::optional<std::string> find(std::string_view who) const {
        for (const std::string& line : read()) {
            if (subject_in_(line) == who) return line;
        }
        return std::nullopt;
    }

    // Puts a line in the place of those about somebody, or takes them off if it is empty; but only if there is one now,
    // or is none, as `expected` says: else it gives false. On return the change is on the disk. Throws if it cannot be
    // made; then the old file stands. The lock is held while the disk works, but only those who change this file wait.
    bool change(std::string_view who, bool expected, const std::string& line) {
        const Lock lock(changing_);
        std::vector<std::string> lines = read();
        const auto about = [&](const std::string& other) { return subject_in_(other) == who; };
        if (expected != (std::erase_if(lines, about) > 0)) return false;
        if (!line.empty()) lines.push_back(line);
        std::string text;
        for (const std::string& each : lines) (text += each) += '\n';
        replace(text);
        return true;
    }

    std::string path;  // set before there are threads

   private:
    // Writes a new file, syncs it, and renames it: a crash at any moment leaves the old one or the new (promise 5).
    void replace(std::string_view text) const {
        const std::filesystem::path target =
            std::filesystem::weakly_canonical(std::filesystem::absolute(path));  // where links lead
        const std::string beside = target.string() + ".new";
        {
            const Fd file(open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode_));
            if (!file || fchmod(file.get(), mode_) != 0) throw_errno("open " + beside);
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

    mode_t mode_;
    std::string (*subject_in_)(std::string_view);
    std::mutex changing_;
};

LineFile bans_file("bans.txt", 0644, ban_in);
LineFile users_file("", 0600, account_in);  // no path: no accounts

bool keeps_accounts() { return !users_file.path.empty(); }

// Tells of the lines that are none, which stay as they are. Throws if a file cannot be read.
void check_files() {
    static_cast<void>(bans_file.read());
    if (!keeps_accounts()) return;
    choose_hash_method();
    std::size_t number = 0;
    for (const std::string& line : users_file.read()) {
        ++number;
        const bool good = !account_in(line).empty() && !hash_in(line).empty();
        if (good || trim(line).empty() || line.starts_with('#')) continue;
        log_event(users_file.path, ", line ", std::to_string(number), ": no account, not \"NAME:HASH\"; it is kept.");
    }
}

// ---------------------------------------------------------------------------------------------------------
// 7. Commands
//
// A function for each, called with the mutex held by the thread of who typed it: `rest` is what follows the command's
// word, trimmed. The table behind them says who may use which, and what /help tells.
//
// The rule: a room command acts on the room that one is in, and the public room is the server. The operator is
// always there.

using Words = std::string_view;

Room& public_room() { return chat.rooms.front(); }

bool in_public(const Client& user) { return user.room == &public_room(); }

// Gives who is logged in under a name, or tells the user that nobody is.
Client* find(const Lock& lock, Client& user, Words name) {
    const auto found = chat.by_name.find(fold(name));
    if (found != chat.by_name.end() && found->second->room != nullptr) return found->second;
    error(lock, user, "Nobody here is called ", name, ". /who tells who is in the room.");
    return nullptr;
}

// As find(), for what is done to others: not to oneself or the operator, and to the admin by the operator alone.
Client* find_target(const Lock& lock, Client& user, Words name) {
    Client* target = find(lock, user, name);
    if (target == nullptr) return nullptr;
    if (target == &user) {
        error(lock, user, "That is yourself.");
    } else if (is_operator(*target)) {
        error(lock, user, "That is the operator, at the server's own terminal.");
    } else if (target->admin && !is_operator(user)) {
        error(lock, user, "That is the admin.");
    } else {
        return target;
    }
    return nullptr;
}

void who(Lock& lock, Client& user, Words /*rest*/) {
    for (const Room& room : chat.rooms) {
        if (&room == user.room || is_operator(user)) post_members(lock, user, room);
    }
}

void time_of_day(Lock& lock, Client& user, Words /*rest*/) {
    info(lock, user, local_time(std::time(nullptr), "It is %A, %Y-%m-%d %H:%M:%S %Z."));
}

void quote(Lock& lock, Client& user, Words /*rest*/) {
    static constexpr Words quotes[] = {
        "\"Be liberal in what you accept, and conservative in what you send.\" - Jon Postel",
        "\"We believe in rough consensus and running code.\" - David Clark",
        "\"Simplicity is prerequisite for reliability.\" - Edsger W. Dijkstra",
        "\"Premature optimization is the root of all evil.\" - Donald E. Knuth",
        "\"Controlling complexity is the essence of computer programming.\" - Brian Kernighan",
        "\"When in doubt, use brute force.\" - Ken Thompson",
        "\"The best way to predict the future is to invent it.\" - Alan Kay",
    };
    const auto random = static_cast<std::size_t>(random_text("0123456", 1)[0] - '0');
    info(lock, user, quotes[random]);
}

void echo(Lock& lock, Client& user, Words rest) { post(lock, user, concat("ECHO ", rest)); }

// The operator speaks to everybody.
void speak(const Lock& lock, Client& user, Words word, Words text) {
    for (Room& room : chat.rooms) {
        if (&room == user.room || is_operator(user)) say_in(lock, room, user, word, text);
    }
    const Words where = is_operator(user) ? "-" : Words(user.room->name);
    server_log.add(where, word == "ME" ? concat("* ", user.name, " ", text) : concat(user.name, ": ", text));
}

void say(Lock& lock, Client& user, Words text) { speak(lock, user, "SAY", text); }
void me(Lock& lock, Client& user, Words rest) { speak(lock, user, "ME", rest); }

void private_message(const Lock& lock, Client& from, Client& to, Words text) {
    if (to.ignored.contains(from.key)) {
        return error(lock, from, to.name, " has chosen not to hear you (/ignore).");
    }
    const std::string line = concat("MSG ", from.name, " ", to.name, " ", text);
    post(lock, from, line);
    if (&to != &from) post(lock, to, line);
    to.correspondent = from.name;
    if (is_operator(from) || is_operator(to)) return;  // it is in the log; what others say in private is not
    log_event(from.name, " sent ", to.name, " a private message.");
}

void msg(Lock& lock, Client& user, Words rest) {
    if (Client* to = find(lock, user, take_word(rest))) private_message(lock, user, *to, trim(rest));
}

void reply(Lock& lock, Client& user, Words rest) {
    if (user.correspondent.empty()) return error(lock, user, "Nobody has sent you a private message yet.");
    if (Client* to = find(lock, user, user.correspondent)) private_message(lock, user, *to, rest);
}

void ignore(Lock& lock, Client& user, Words rest) {
    postman.catch_up(lock, user);
    if (user.ignored.erase(fold(rest)) > 0) return info(lock, user, "You hear ", rest, " again.");
    const Client* target = find(lock, user, rest);
    if (target == nullptr) return;
    if (target == &user || is_operator(*target)) return error(lock, user, "Not yourself, and not the server.");
    user.ignored.insert(target->key);
    info(lock, user, "You no longer hear ", target->name, ". The same command undoes it.");
}

void quit(Lock& lock, Client& user, Words /*rest*/) {
    farewell(lock, user, concat("BYE QUIT Goodbye, ", user.name, "."), "left.");
}

void rooms(Lock& lock, Client& user, Words /*rest*/) {
    post(lock, user,
         concat("ROOMS ", std::to_string(chat.rooms.size()),
                " rooms: number, name, members, creator, creation time, whether a code is needed"));
    for (const Room& room : chat.rooms) {
        post(lock, user,
             concat("LIST ", std::to_string(room.number), " ", room.name, " ", std::to_string(room.members.size()), " ",
                    room.creator, " ", utc_time(room.created), " ", room.code.empty() ? "NO CODE" : "CODE"));
    }
}

// Gives the room with a name or a number, or null.
Room* find_room(Words which) {
    for (Room& room : chat.rooms) {
        if (same_name(room.name, which) || std::to_string(room.number) == which) return &room;
    }
    return nullptr;
}

Room& make_room(Words name, Words code, Words creator) {
    static int number = 0;
    chat.rooms.push_back({++number, std::string(name), std::string(code), std::string(creator), std::time(nullptr)});
    return chat.rooms.back();
}

void create(Lock& lock, Client& user, Words rest) {
    const Words name = take_word(rest);
    const Words code = trim(rest);
    if (!valid_name(name)) return error(lock, user, "A room's name is 3 to 12 letters and digits, a letter first.");
    if (find_room(name) != nullptr) return error(lock, user, "There is a room ", name, " already: /join it.");
    if (!code.empty() && (code.size() != 5 || !std::all_of(code.begin(), code.end(), is_digit))) {
        return error(lock, user, "A code is exactly five digits.");
    }
    Room& room = make_room(name, code, user.name);
    room.owner = user.name;
    move(lock, user, room, "left for another room.");
}

void join(Lock& lock, Client& user, Words rest) {
    Room* room = find_room(take_word(rest));
    const Words code = trim(rest);
    if (room == nullptr) return error(lock, user, "There is no such room; /rooms lists them.");
    if (room == user.room) return error(lock, user, "You are in that room.");
    if (!room->code.empty() && !user.admin) {
        if (code.empty()) return error(lock, user, "It needs a code: /join ", room->name, " CODE");
        const auto problem =
            tries.judge(user.address, "That is not the room's code.", [&] { return same_secret(code, room->code); });
        if (!problem.empty()) return error(lock, user, problem);
    }
    move(lock, user, *room, "left for another room.");
}

void leave_room(Lock& lock, Client& user, Words /*rest*/) {
    if (in_public(user)) return error(lock, user, "You are in public; /quit leaves the chat.");
    move(lock, user, public_room(), "left the room.");
}

// Brings a client back to the public room, or tells the user why not.
void put_out(const Lock& lock, Client& user, Client& target, Words done) {
    const std::string by = concat(done, " by ", user.name, ".");
    info(lock, target, "You were ", by);
    move(lock, target, public_room(), concat("was ", by));
    info(lock, user, target.name, " was ", done, ".");
}

// Puts a client off the server; reason is KICK or BAN.
void put_off_by(const Lock& lock, Client& target, const Client& by, Words reason, Words done) {
    put_off(lock, target, concat("BYE ", reason, " You were ", done, " by ", by.name, "."),
            concat("was ", done, " by ", by.name, "."));
}

void fire(Lock& lock, Client& user, Words rest) {
    Client* target = find_target(lock, user, rest);
    if (target == nullptr) return;
    put_off_by(lock, *target, user, "KICK", "kicked");
    info(lock, user, target->name, " was put off the server.");
}

void kick(Lock& lock, Client& user, Words rest) {
    if (in_public(user)) return fire(lock, user, rest);
    Client* target = find_target(lock, user, rest);
    if (target == nullptr) return;
    if (target->room != user.room) return error(lock, user, target->name, " is not in this room.");
    put_out(lock, user, *target, "kicked");
}

void out(Lock& lock, Client& user, Words rest) {
    Client* target = find_target(lock, user, rest);
    if (target == nullptr) return;
    if (in_public(*target)) {
        return error(lock, user, target->name, " is in public; /fire puts off the server.");
    }
    put_out(lock, user, *target, "moved out");
}

// Brings everyone in a room back to public, and ends it if a client made it.
void empty_room(const Lock& lock, Room& room, const Client& by, Words done) {
    for (Client* member : std::exchange(room.members, {})) {
        info(lock, *member, "The room was ", done, " by ", by.name, ".");
        enter(lock, *member, public_room());
    }
    if (!room.owner.empty()) end_room(lock, room);
}

void shut_down(const Client& user) {
    log_event("shutdown by ", user.name, ".");
    stop_request.set();
}

void shut_down_by_code(Lock& lock, Client& user, Words code) {
    if (code.empty() && user.admin) return shut_down(user);
    if (code.empty()) return error(lock, user, "The form is: /shutdown CODE");
    const auto problem =
        tries.judge(user.address, "That is not the exit code.", [&] { return same_secret(code, options.exit_code); });
    if (!problem.empty()) return error(lock, user, problem);
    shut_down(user);
}

void close_room(Lock& lock, Client& user, Words /*rest*/) {
    if (in_public(user)) return shut_down(user);
    empty_room(lock, *user.room, user, "closed");
}

void reset(Lock& lock, Client& user, Words /*rest*/) {
    for (auto next = chat.rooms.begin(); next != chat.rooms.end();) {
        Room& room = *next++;  // which may end
        room.history.clear();
        if (&room != &public_room()) empty_room(lock, room, user, "reset");
    }
    chat.blocked.clear();
    log_event("reset by ", user.name, ".");
    info(lock, user, "Everyone is in public, nobody is blocked, and what was said is forgotten.");
}

bool can_be_shut_out(Words name) { return valid_name(name) && !same_name(name, "admin") && !same_name(name, "server"); }

void block(Lock& lock, Client& user, Words rest) {
    if (!can_be_shut_out(rest)) return error(lock, user, "That is no name that can be blocked.");
    if (!chat.blocked.insert(fold(rest)).second) return error(lock, user, rest, " is blocked already.");
    log_event(rest, " was blocked by ", user.name, ".");
    info(lock, user, "What ", rest, " says reaches only the admin and the operator. /unblock undoes it.");
}

void unblock(Lock& lock, Client& user, Words rest) {
    if (chat.blocked.erase(fold(rest)) == 0) return error(lock, user, rest, " is not blocked.");
    log_event(rest, " was unblocked by ", user.name, ".");
    info(lock, user, rest, " is heard again.");
}

// The line of somebody who is blocked goes to the operator and the admin alone.
void divert(const Lock& lock, Client& user, Words line) {
    server_log.add(user.room->name, concat("(blocked) ", user.name, ": ", line));
    const auto admin = chat.by_name.find("admin");
    if (admin != chat.by_name.end()) post(lock, *admin->second, concat("BLOCKED ", user.name, " ", line));
    error(lock, user, "You are blocked: only the admin and the operator have seen that.");
}

// Gives what may be banned as it is kept; empty, and the user is told, if it is neither a name nor an address.
std::string ban_target(const Lock& lock, Client& user, Words text) {
    std::string address = normal_address(std::string(text));
    if (!address.empty()) return address;
    if (can_be_shut_out(text)) return std::string(text);
    error(lock, user, "That is neither an address nor a name that can be banned.");
    return "";
}

// Changes a file with the mutex released, for that waits for the disk: see LineFile::change().
bool change_unlocked(Lock& lock, LineFile& file, Words who, bool expected, const std::string& line) {
    lock.unlock();
    const bool changed = file.change(fold(who), expected, line);
    lock.lock();
    return changed;
}

void ban(Lock& lock, Client& user, Words rest) {
    const std::string target = ban_target(lock, user, rest);
    if (target.empty()) return;
    const std::string line = concat(target, "  # by ", user.name, " at ", utc_time(std::time(nullptr)));
    if (!change_unlocked(lock, bans_file, target, false, line)) return error(lock, user, target, " is banned already.");
    for (Client* client : chat.clients) {
        const bool meant = same_name(client->name, target) || client->address == target;
        if (meant && !client->admin) put_off_by(lock, *client, user, "BAN", "banned");
    }
    log_event(target, " was banned by ", user.name, ".");
    info(lock, user, target, " is banned. /unban undoes it.");
}

void unban(Lock& lock, Client& user, Words rest) {
    const std::string target = ban_target(lock, user, rest);
    if (target.empty()) return;
    if (!change_unlocked(lock, bans_file, target, true, "")) return error(lock, user, target, " is not banned.");
    log_event(target, " was unbanned by ", user.name, ".");
    info(lock, user, target, " is no longer banned.");
}

void bans(Lock& lock, Client& user, Words /*rest*/) {
    lock.unlock();
    const std::vector<std::string> lines = bans_file.read();
    lock.lock();
    std::size_t count = 0;
    for (const std::string& line : lines) {
        if (ban_in(line).empty()) continue;
        info(lock, user, clean(line));
        ++count;
    }
    info(lock, user, "Bans: ", std::to_string(count), ".");
}

void unregister(Lock& lock, Client& user, Words rest) {
    if (!keeps_accounts()) return error(lock, user, "This server keeps no accounts.");
    if (!change_unlocked(lock, users_file, rest, true, "")) return error(lock, user, rest, " has no account.");
    log_event(rest, " was unregistered by ", user.name, ".");
    info(lock, user, rest, " has no account any more; the next login makes a new one.");
}

// These come later: one needs the table, the other asks as the login does.
void help(Lock& lock, Client& user, Words rest);
void change_password(Lock& lock, Client& user, Words rest);

enum class Right {
    everyone,
    client,   // not the operator, who has no connection and is always in public
    account,  // a client whose password this server keeps
    owner,    // of the room that one is in, or the admin
    admin     // or the operator
};

struct Command {
    Words name, arguments;  // those in brackets may be left out
    Right right;
    bool speaks;  // to others: not for who is blocked
    void (*run)(Lock&, Client&, Words);
    Words does, example;
};

constexpr Command commands[] = {
    {"help", "[COMMAND]", Right::everyone, false, help, "lists what you may use, or explains one", "/help msg"},
    {"who", "", Right::everyone, false, who, "tells who is in the room, and who owns it", "/who"},
    {"rooms", "", Right::everyone, false, rooms, "lists the rooms", "/rooms"},
    {"create", "NAME [CODE]", Right::client, false, create, "makes a room that you own", "/create den 12345"},
    {"join", "ROOM [CODE]", Right::client, false, join, "goes to a room, by name or number", "/join den 12345"},
    {"leave", "", Right::client, false, leave_room, "goes back to public", "/leave"},
    {"me", "TEXT", Right::everyone, true, me, "says what you do", "/me waves"},
    {"msg", "NAME TEXT", Right::everyone, true, msg, "sends TEXT to NAME alone", "/msg bob how are you?"},
    {"reply", "TEXT", Right::everyone, true, reply, "answers the last private message", "/reply fine"},
    {"ignore", "NAME", Right::client, false, ignore, "hides what NAME says, or shows it again", "/ignore bob"},
    {"time", "", Right::everyone, false, time_of_day, "tells the server's time", "/time"},
    {"quote", "", Right::everyone, false, quote, "gives a word of wisdom", "/quote"},
    {"echo", "TEXT", Right::everyone, false, echo, "sends TEXT back to you alone", "/echo hello"},
    {"quit", "", Right::client, false, quit, "leaves the chat", "/quit"},
    {"exit", "", Right::client, false, quit, "leaves the chat", "/exit"},
    {"password", "", Right::account, false, change_password, "changes your password", "/password"},
    {"shutdown", "[CODE]", Right::everyone, false, shut_down_by_code,
     "ends the server; who is not the admin needs the exit code", "/shutdown 12345"},
    {"kick", "NAME", Right::owner, false, kick, "puts NAME out of your room; in public, off the server", "/kick bob"},
    {"close", "", Right::owner, false, close_room, "closes your room; in public, ends the server", "/close"},
    {"fire", "NAME", Right::admin, false, fire, "puts NAME off the server", "/fire bob"},
    {"out", "NAME", Right::admin, false, out, "brings NAME back to public", "/out bob"},
    {"ban", "NAME-OR-ADDRESS", Right::admin, false, ban, "puts off the server for good", "/ban 192.168.1.7"},
    {"unban", "NAME-OR-ADDRESS", Right::admin, false, unban, "takes off the ban list", "/unban bob"},
    {"bans", "", Right::admin, false, bans, "shows the ban list", "/bans"},
    {"unregister", "NAME", Right::admin, false, unregister, "ends NAME's account", "/unregister bob"},
    {"block", "NAME", Right::admin, false, block, "lets only admin and operator hear NAME", "/block bob"},
    {"unblock", "NAME", Right::admin, false, unblock, "lets NAME be heard again", "/unblock bob"},
    {"reset", "", Right::admin, false, reset, "ends all rooms and blocks, forgets what was said", "/reset"},
};

bool may_use(const Client& user, const Command& command) {
    switch (command.right) {
        case Right::everyone: return true;
        case Right::client: return !is_operator(user);
        case Right::account: return keeps_accounts() && !user.admin;
        case Right::owner: return user.admin || (user.room->owner == user.name);
        case Right::admin: return user.admin;
    }
    return false;
}

Words whose_right(Right right) {
    switch (right) {
        case Right::owner: return "the room's owner";
        case Right::admin: return "the admin";
        case Right::account: return "somebody with an account";
        default: return "a client";
    }
}

const Command* find_command(Words name) {
    for (const Command& command : commands) {
        if (same_name(command.name, name)) return &command;
    }
    return nullptr;
}

std::string form_of(const Command& command) {
    return concat("/", command.name, command.arguments.empty() ? "" : " ", command.arguments);
}

void help(Lock& lock, Client& user, Words rest) {
    if (rest.starts_with('/')) rest.remove_prefix(1);
    if (!rest.empty()) {
        const Command* command = find_command(rest);
        if (command == nullptr) return error(lock, user, "There is no such command; /help lists them.");
        return info(lock, user, form_of(*command), " ", command->does, "; for example: ", command->example);
    }
    for (const Command& command : commands) {
        if (!may_use(user, command)) continue;
        std::string form = form_of(command);
        form.resize(std::max<std::size_t>(form.size(), 24), ' ');
        info(lock, user, form, " ", command.does);
    }
    info(lock, user, "What does not begin with / is said to the room.");
}

// Gives in how many places two words differ: letters too few, too many or wrong (the Levenshtein distance).
std::size_t distance(Words a, Words b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), 0U);
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = std::exchange(row[0], i + 1);
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
            diagonal = row[j + 1];
            row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
        }
    }
    return row.back();
}

// For a command that there is not: names the nearest that the user may use.
void suggest(const Lock& lock, Client& user, Words mistyped) {
    const Command* nearest = nullptr;
    std::size_t least = std::min<std::size_t>(3, mistyped.size());  // what is farther away was hardly meant
    for (const Command& command : commands) {
        const std::size_t away = mistyped.size() > 20 ? 20 : distance(fold(mistyped), command.name);
        if (away >= least || !may_use(user, command)) continue;
        least = away;
        nearest = &command;
    }
    const std::string hint = nearest == nullptr ? "/help lists them." : "did you mean " + form_of(*nearest) + "?";
    error(lock, user, "There is no command /", mistyped, "; ", hint);
}

// Does what a line of a logged-in client, or of the operator, asks for. Its own thread. Blocks, with the mutex
// released, where the ban list is concerned.
void act_on(Client& user, Words line) {
    Lock lock(chat.mutex);
    if (user.ending || trim(line).empty()) return;
    const bool says = !line.starts_with('/');
    Words rest = says ? line : line.substr(1);
    const Words name = says ? "" : take_word(rest);
    const Command* command = find_command(name);
    if (!says && command == nullptr) return suggest(lock, user, name);
    if ((says || command->speaks) && chat.blocked.contains(user.key)) return divert(lock, user, line);
    if (says) return say(lock, user, line);
    if (!may_use(user, *command)) {
        const Words whose = whose_right(command->right);
        return error(lock, user, "Only ", whose, " may use ", form_of(*command), "; /help lists what you may.");
    }
    const Words needed = command->arguments.substr(0, command->arguments.find('['));
    if (count_words(rest) < count_words(needed)) return error(lock, user, "The form is: ", form_of(*command));
    try {
        command->run(lock, user, trim(rest));
    } catch (const std::runtime_error& problem) {  // of the ban list's file, while the mutex was released
        if (!lock.owns_lock()) lock.lock();
        log_event(name, " failed: ", problem.what());
        error(lock, user, "That could not be done: ", problem.what());
    }
}

// ---------------------------------------------------------------------------------------------------------
// 8. A client's own thread
//
// The heart of the server: a plain loop around recv(). Whatever a client does slowly, or too much of, is waited for
// here, in its own thread, and so by nobody else (promise 2).

void tell(Client& to, Words line) { post(Lock(chat.mutex), to, line); }
void tell_error(Client& to, Words text) { error(Lock(chat.mutex), to, text); }

// Waits until the client may be heard again: while it is ahead of its rate, and while it does not read what waits
// for it. False: the connection is to end.
bool wait_turn(Client& client) {
    Lock lock(chat.mutex);
    if (options.rate > 0) {
        const auto interval = Clock::duration(1s) / options.rate;
        const auto now = Clock::now();
        client.turn = std::max(client.turn, now) + interval;
        const auto allowed = client.turn - burst * interval;
        if (allowed > now) client.changed.wait_until(lock, allowed, [&] { return client.ending.load(); });
    }
    postman.catch_up(lock, client);  // what it has said itself counts, too
    client.changed.wait(lock, [&] { return client.ending || client.backlog < pause_backlog; });
    client.heard = Clock::now();
    client.warned = false;
    return !client.ending;
}

// Gives the client's next line, cleaned, or nothing at the end. Blocks until there is one.
std::optional<std::string> read_line(Client& client) {
    bool open = true;
    while (true) {
        const std::optional<Line> line = open ? client.inbox.next() : client.inbox.last();
        if (line && !wait_turn(client)) return std::nullopt;
        if (line && !line->too_long) return clean(line->text);
        if (line) {
            tell_error(client, "That line was longer than " + std::to_string(max_line) + " bytes, and was not sent.");
            continue;
        }
        if (client.ending) return std::nullopt;  // by what its last line did
        if (!open) break;
        std::array<char, 2048> bytes{};
        const ssize_t count = recv(client.socket.get(), bytes.data(), bytes.size(), 0);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            drop(Lock(chat.mutex), client, "lost the connection.");
            return std::nullopt;
        }
        open = count > 0;
        client.inbox.add({bytes.data(), static_cast<std::size_t>(count)});
    }
    farewell(Lock(chat.mutex), client, "BYE QUIT You ended the connection.", "left.");
    return std::nullopt;
}

// Gives false, with which a login ends.
bool turn_away(Client& client, Words last_line, Words why) {
    farewell(Lock(chat.mutex), client, last_line, "was turned away: " + std::string(why));
    return false;
}

constexpr Words name_banned = "BAN That name is banned.";
constexpr Words wrong_password = "That is not the password.";  // whoever's

// Asks for a secret until judge(), which is Tries::judge() of it, has nothing to say. False: the connection is to end.
template <typename Judge>
bool prove(Client& client, Words question, Judge judge) {
    for (int wrong = 0; wrong < max_wrong_passwords; ++wrong) {
        tell(client, concat("PASS ", question));
        const std::optional<std::string> given = read_line(client);
        if (!given) return false;
        const Words problem = judge(*given);
        if (problem.empty()) return !client.ending;  // at the end of a connection nothing is looked at
        tell_error(client, problem);
    }
    const bool logged_in = !client.name.empty();  // this is /password
    return turn_away(client, concat(logged_in ? "BYE KICK" : "REFUSE", " Three wrong passwords."),
                     "three wrong passwords.");
}

bool prove_admin(Client& client) {
    return prove(client, "The admin's password?", [&](const std::string& given) {
        return tries.judge(client.address, wrong_password, [&] { return same_secret(given, options.admin_password); });
    });
}

// Does some hashing when it is this client's turn, outside chat.mutex: so however many log in, they take no more than
// one core from the chat. The login's deadline does not run meanwhile; at the end of the connection nothing is done.
template <typename Work>
auto hash_in_turn(Client& client, Work work) {
    static std::mutex turn;
    const auto began = Clock::now();
    const auto note = [&](bool hashing) {
        const Lock lock(chat.mutex);
        if (client.hashing && !hashing) client.since += Clock::now() - began;
        client.hashing = hashing;
        return client.ending.load();
    };
    note(true);
    const Lock in_turn(turn);
    auto result = note(true) ? decltype(work())() : work();
    note(false);
    return result;
}

// Asks for a new password and keeps it. False: it is not kept, and the client knows why.
bool choose_password(Client& client, Words name, bool has_account) {
    while (true) {
        tell(client, concat("NEWPASS A new password for ", name, "? It needs 8 characters or more."));
        const std::optional<std::string> given = read_line(client);
        if (!given) return false;
        if (count_characters(*given) < min_password || given->size() > max_password) {
            tell_error(client, "A password has at least 8 characters, and at most 256 bytes.");
            continue;
        }
        const std::string hash = hash_in_turn(client, [&] { return hash_password(*given, hash_method + new_salt()); });
        if (hash.empty()) return false;  // the connection has ended
        if (users_file.change(fold(name), has_account, concat(name, ":", hash))) return true;
        if (!has_account)
            return turn_away(client, "REFUSE Somebody has just registered that name.", "name registered.");
        tell_error(client, "Your account has just been ended.");
        return false;
    }
}

// Asks for the password of an account.
bool prove_account(Client& client, Words name, const std::string& account) {
    const std::string hash = hash_in(account);
    if (hash.empty()) return turn_away(client, "REFUSE This account is locked.", "its account is locked.");
    return prove(client, concat("The password of ", name, "?"), [&](const std::string& given) {
        return hash_in_turn(client, [&] {
            return tries.judge(client.address, wrong_password, [&] {
                return given.size() <= max_password && same_secret(hash_password(given, hash), hash);
            });
        });
    });
}

// /password: a conversation of its own; the client's thread reads the answers, with the mutex released.
void change_password(Lock& lock, Client& user, Words /*rest*/) {
    lock.unlock();
    const std::optional<std::string> account = users_file.find(user.key);
    const bool changed = account && prove_account(user, user.name, *account) && choose_password(user, user.name, true);
    lock.lock();
    if (changed) info(lock, user, "Your password is changed.");
    if (!account) error(lock, user, "Your account has been ended; the next login makes a new one.");
}

// Asks for the password that a name needs, if any, and for a new one where it has none yet.
bool prove_name(Client& client, Words name) {
    if (same_name(name, "admin")) return prove_admin(client);
    if (!keeps_accounts()) return true;
    if (bans_file.find(fold(name))) return turn_away(client, name_banned, "banned.");
    const std::optional<std::string> account = users_file.find(fold(name));
    return account ? prove_account(client, name, *account) : choose_password(client, name, false);
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
    tell(client, concat("INFO This is Chatroom ", version, "."));
    if (bans_file.find(client.address)) return turn_away(client, "BAN Your address is banned.", "banned.");
    do {
        tell(client, "NICK Your name? 3 to 12 letters and digits, a letter first; type it and press Enter.");
        const std::optional<std::string> line = read_line(client);
        if (!line) return false;
        const Words name = trim(*line);
        const std::string problem = name_problem(name);
        if (!problem.empty()) {
            tell_error(client, problem);
        } else if (!prove_name(client, name)) {
            return false;
        } else if (!take_name(client, name)) {
            tell_error(client, "Somebody else has just taken that name.");
        }
    } while (client.name.empty());
    if (bans_file.find(client.key)) return turn_away(client, name_banned, "banned.");
    const Lock lock(chat.mutex);
    if (client.ending) return false;
    const std::string hint = "Type a line to say it; /help lists the commands, /quit leaves.";
    post(lock, client, concat("WELCOME ", client.name, " Welcome, ", client.name, ". ", hint));
    log_event(client.name, " logged in from ", client.address, ".");
    enter(lock, client, public_room());
    return true;
}

// Takes the client out of everything that others can see, and sends what still waits for it, for a while.
void goodbye(Client& client) {
    Lock lock(chat.mutex);
    client.ending = true;
    if (client.room != nullptr) {
        leave(lock, client, client.why);
    } else if (!client.why.empty()) {
        log_event(client.address, " ", client.why);
    }
    if (!client.name.empty()) chat.by_name.erase(client.key);
    const auto let_go = [&] { return !client.with_postman; };
    if (!client.changed.wait_for(lock, farewell_limit, let_go)) {
        drop(lock, client, "");
        client.changed.wait(lock, let_go);
    }
}

// Ends the connection so that the last lines arrive: close() while bytes are unread sends a reset, which may
// overtake them. So the peer is given some time to close its side first.
void hang_up(const Client& client) {
    shutdown(client.socket.get(), SHUT_WR);
    std::array<pollfd, 2> polled{{{client.socket.get(), POLLIN, 0}, {stop_request.fd(), POLLIN, 0}}};
    const auto deadline = Clock::now() + farewell_limit;
    std::array<char, 2048> ignored{};
    do {
        poll(polled.data(), polled.size(), 2000);
    } while (recv(client.socket.get(), ignored.data(), ignored.size(), MSG_DONTWAIT) > 0 && Clock::now() < deadline);
}

// Takes the client off the list: from here on nobody else knows it.
void forget(Client& client) {
    Lock lock(chat.mutex);
    client.ending = true;
    client.changed.wait(lock, [&] { return !client.with_postman; });
    std::erase(chat.clients, &client);
    if (chat.clients.empty()) chat.empty.notify_all();
}

// The thread of one client, which it owns.
void serve(Client* known) {
    const std::unique_ptr<Client> client(known);
    try {
        if (log_in(*client)) {
            while (const std::optional<std::string> line = read_line(*client)) act_on(*client, *line);
        }
    } catch (const std::exception& problem) {  // no memory, or no ban list: it ends this client alone
        log_event(client->address, " failed: ", problem.what());
        turn_away(*client, "REFUSE The server has a problem; please tell who runs it.", "a problem.");
    }
    goodbye(*client);
    hang_up(*client);
    forget(*client);
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

void obey(const Line& line) {
    if (line.too_long) return tell_error(operator_client, "That line was too long.");
    act_on(operator_client, clean(line.text));
}

// The console's thread: does what the operator types, until there is no more of it. The server runs on without.
void run_console() {
    LineBuffer lines(max_line);
    std::array<pollfd, 2> polled{{{STDIN_FILENO, POLLIN, 0}, {stop_request.fd(), POLLIN, 0}}};
    while (true) {
        poll(polled.data(), polled.size(), -1);
        if (polled[1].revents != 0) return;
        std::array<char, 1024> bytes{};
        const ssize_t count = read(STDIN_FILENO, bytes.data(), bytes.size());
        if (count > 0) {
            lines.add({bytes.data(), static_cast<std::size_t>(count)});
            while (const std::optional<Line> line = lines.next()) obey(*line);
        } else if (count < 0 && errno == EIO && in_background()) {
            if (stop_within(1s)) return;
        } else if (count == 0 || (errno != EINTR && errno != EAGAIN)) {
            if (const std::optional<Line> line = lines.last()) obey(*line);
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
        if (client->room != nullptr || client->hashing || Clock::now() - client->since < login_limit) continue;
        put_off(lock, *client, "REFUSE The login took longer than 20 seconds.", "was turned away: too slow a login.");
    }
}

// Ends the connections of those who say nothing. Owners, whose rooms would pass on, and the admin may be silent.
void end_idle() {
    const Lock lock(chat.mutex);
    for (Client* client : chat.clients) {
        if (client->room == nullptr) continue;
        if (client->admin || client->room->owner == client->name) client->heard = Clock::now();
        const auto silent = Clock::now() - client->heard;
        if (silent >= std::chrono::seconds(options.idle)) {
            put_off(lock, *client, "BYE IDLE You have said nothing for too long.", "was timed out.");
        } else if (2 * silent >= std::chrono::seconds(options.idle) && !std::exchange(client->warned, true)) {
            info(lock, *client, "You have said nothing for a while. Say something, or you will be disconnected.");
        }
    }
}

// Gives back the memory of the queues of clients and rooms at rest, and to the system what free() has kept: while
// thousands log in, half a gigabyte waits for them. (The queues of those who are busy would only have to grow again.)
void return_memory() {
    {
        const Lock lock(chat.mutex);
        for (Client* client : chat.clients) {
            if (client->with_postman) continue;
            client->outbox.shrink_to_fit();
            client->sending.shrink_to_fit();
        }
        for (Room& room : chat.rooms) {
            if (room.outbox.empty()) room.outbox.shrink_to_fit();
        }
    }
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

// The clock's thread.
void run_clock() {
    for (int tick = 1; !stop_within(500ms); ++tick) {
        end_slow_logins();
        if (options.idle > 0) end_idle();
        join_finished();
        if (tick % 4 == 0) return_memory();
    }
}

// ---------------------------------------------------------------------------------------------------------
// 10. Listening and accepting

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
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);  // or a restart would have to wait for old connections
    if (at.ai_family == AF_INET6) set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, 1);  // IPv4 has its own socket
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
        std::vector<pollfd> polled{{stop_request.fd(), POLLIN, 0}};
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
        if (!socket && (errno == EMFILE || errno == ENFILE)) {
            reserve_ = Fd();
            socket = Fd(accept(listener, address, &length));
        }
        if (socket && !any_file()) {  // its thread could not read the ban list
            refuse(socket, "The server has no descriptor left: try again later.");
        } else if (socket) {
            fcntl(socket.get(), F_SETFL, 0);                  // some systems hand O_NONBLOCK on from the listener
            set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);  // the postman gathers lines; the kernel need not
            watch_for_vanishing(socket);
            admit(std::move(socket), address_text(address, length));
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            complain("accept: " + error_text(errno));
            stop_within(100ms);  // poll() would return at once again and again
        }
        socket = Fd();
        if (!reserve_) reserve_ = any_file();
    }

    static Fd any_file() { return Fd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

    void admit(Fd socket, const std::string& address) {
        auto client = std::make_unique<Client>(std::move(socket), address);
        const std::string problem = enlist(*client);
        if (!problem.empty()) return refuse(client->socket, problem);
        try {
            std::thread thread(serve, client.get());
            [[maybe_unused]] Client* served = client.release();  // it is the thread's now
            const Lock lock(chat.mutex);
            chat.threads.emplace(thread.get_id(), std::move(thread));
        } catch (const std::system_error&) {
            forget(*client);
            refuse(client->socket, "The server cannot start another thread: try again later.");
        }
    }

    // Puts the client on the list, or says why there is no place for it.
    static std::string enlist(Client& client) {
        const Lock lock(chat.mutex);
        if (std::cmp_greater_equal(chat.clients.size(), options.max_clients)) {
            return "The server is full: it takes " + std::to_string(options.max_clients) + " at once.";
        }
        const auto here = std::count_if(chat.clients.begin(), chat.clients.end(),
                                        [&](const Client* other) { return other->address == client.address; });
        if (options.max_per_ip > 0 && here >= options.max_per_ip) {
            return "There are " + std::to_string(here) + " connections from your address already; no more are taken.";
        }
        chat.clients.push_back(&client);
        return "";
    }

    // Nobody else knows the socket. Never blocks.
    void refuse(const Fd& socket, const std::string& why) {
        complain(why);
        const std::string line = concat("REFUSE ", why) + '\n';
        send(socket.get(), line.data(), line.size(), MSG_DONTWAIT);
        shutdown(socket.get(), SHUT_WR);
        std::array<char, 2048> unread{};  // or closing would send a reset: see hang_up()
        recv(socket.get(), unread.data(), unread.size(), MSG_DONTWAIT);
    }

    // Logs why somebody was turned away, each cause at most once a second.
    void complain(const std::string& cause) {
        const auto now = Clock::now();
        const auto [entry, first] = last_logged_.try_emplace(cause, now);
        if (!first && now - entry->second < log_pause) return;
        entry->second = now;
        log_event("somebody was turned away: ", cause);
    }

    Fd reserve_ = any_file();  // given up to accept the one for whom no descriptor is left, and tell them
    std::map<std::string, Clock::time_point> last_logged_;  // by cause, of which there are few
};

// ---------------------------------------------------------------------------------------------------------
// 11. Discovery
//
// Clients on the local network look for servers with a datagram to everybody: docs/protocol.md. Whatever happens here,
// the chat goes on.

// Gives an IPv4 UDP socket, bound. Throws if it cannot be had.
Fd open_datagram_socket(in_addr_t address, in_port_t port) {
    Fd socket(::socket(AF_INET, SOCK_DGRAM, 0));
    if (!socket) throw_errno("socket");
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);  // several servers on one machine all hear a broadcast
#ifdef SO_REUSEPORT
    set_option(socket, SOL_SOCKET, SO_REUSEPORT, 1);
#endif
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    at.sin_addr.s_addr = address;
    if (bind(socket.get(), reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) throw_errno("bind");
    return socket;
}

// Gives the answer to a datagram, or an empty text if it is no question.
std::string answer_to(std::string_view datagram, int port) {
    if (datagram.size() != question_bytes || take_word(datagram) != question_word) return "";
    const Words nonce = take_word(datagram);
    const auto good = [](char c) { return is_letter(c) || is_digit(c); };
    if (nonce.empty() || nonce.size() > 32 || !std::all_of(nonce.begin(), nonce.end(), good)) return "";
    const Lock lock(chat.mutex);
    const std::string people = std::to_string(chat.by_name.size() - 1);  // the operator is not counted
    return concat(answer_word, " ", nonce, " ", std::to_string(port), " ", people,
                  keeps_accounts() ? " password " : " open ", options.title);
}

// The discovery's thread: answers at most ten questions a second, from the address that the server is bound to.
void run_discovery(int port) {
    try {
        in_addr bound{INADDR_ANY};
        if (!options.bind_address.empty() && inet_pton(AF_INET, options.bind_address.c_str(), &bound) != 1) {
            throw std::runtime_error("it works with IPv4, and this server is bound to " + options.bind_address);
        }
        const Fd questions = open_datagram_socket(INADDR_ANY, discovery_port);
        const Fd answers = open_datagram_socket(bound.s_addr, 0);
        std::array<pollfd, 2> polled{{{questions.get(), POLLIN, 0}, {stop_request.fd(), POLLIN, 0}}};
        Clock::time_point next{};
        while (poll(polled.data(), polled.size(), -1) < 0 || polled[1].revents == 0) {
            std::array<char, question_bytes + 1> bytes{};  // one more, to see that a datagram is longer
            sockaddr_in from{};
            auto* address = reinterpret_cast<sockaddr*>(&from);
            socklen_t length = sizeof from;
            const ssize_t count = recvfrom(questions.get(), bytes.data(), bytes.size(), MSG_DONTWAIT, address, &length);
            if (count <= 0 || Clock::now() < next) continue;
            const std::string answer = answer_to({bytes.data(), static_cast<std::size_t>(count)}, port);
            if (answer.empty()) continue;
            next = Clock::now() + 100ms;
            sendto(answers.get(), answer.data(), answer.size(), MSG_DONTWAIT, address, length);
        }
    } catch (const std::exception& problem) {
        log_event("nobody will find this server by looking for it: ", problem.what());
    }
}

// ---------------------------------------------------------------------------------------------------------
// 12. Starting and stopping

std::string_view program;  // the name that it was started by

constexpr const char* usage = R"( [OPTION]...
  --port N          the port to listen on (12345); 0 takes any free one
  --bind ADDRESS    listen on this address alone, not on all
  --bans FILE       the ban list (bans.txt)
  --users FILE      every name needs a password, kept here; the first login chooses it
  --rooms A,B       rooms that are there from the start, and stay
  --idle SECONDS    until who says nothing is disconnected, warned at half (240); 0 is never
  --rate N          lines a second from one client, after a burst of 30 (10); 0 is no limit
  --max-clients N   connections at once (10000, or what the open-file limit allows)
  --max-per-ip N    connections from one address (64); 0 is no limit
  --admin-password-file FILE   its first line is the password of the user "admin"
  --title TEXT      what the server is called where clients look for one (the host's name)
  --no-discovery    do not answer clients that look for a server
  --help            show this
  --version         show the version
Without a file, the environment's CHAT_ADMIN_PASSWORD is the admin's password; without that, one is made and printed.
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

// Makes place for the clients' sockets, and lowers max_clients to as many as there is place for.
void prepare_descriptors() {
    constexpr rlim_t others = 64;  // descriptors that are not clients' sockets
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("getrlimit");
    const rlim_t wanted = static_cast<rlim_t>(options.max_clients) + others;
    limit.rlim_cur = std::max(limit.rlim_cur, std::min(limit.rlim_max, wanted));
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) throw_errno("setrlimit");
    const rlim_t place = limit.rlim_cur > 2 * others ? limit.rlim_cur - others : limit.rlim_cur / 2;
    options.max_clients = static_cast<long>(std::min(place, wanted - others));
}

// Gives the names in a list, "den,lab". Throws a UsageError at a wrong one.
std::vector<std::string> room_names(std::string list) {
    std::replace(list.begin(), list.end(), ',', ' ');
    std::vector<std::string> names;
    std::set<std::string> taken{"public"};
    for (Words rest = trim(list); !rest.empty(); rest = trim(rest)) {
        names.emplace_back(take_word(rest));
        if (!valid_name(names.back()))
            throw UsageError("--rooms: a name is 3 to 12 letters and digits, a letter first");
        if (!taken.insert(fold(names.back())).second) throw UsageError("--rooms: there is only one " + names.back());
    }
    return names;
}

struct Known {
    const char* name;
    int argument;  // required_argument or no_argument
    std::function<void()> set;
};

// Sets the options. Throws a UsageError at a wrong one; --help and --version answer and exit.
void read_options(int argc, char** argv) {
    std::string name, value;  // of the option at hand
    const auto number = [&](long low, long high) { return number_option(name, value, low, high); };
    const auto answer = [](const std::string& text) {
        std::cout << text;
        std::exit(0);
    };
    const Known known[] = {
        {"port", required_argument, [&] { options.port = std::to_string(number(0, 65535)); }},
        {"bind", required_argument, [&] { options.bind_address = value; }},
        {"bans", required_argument, [&] { bans_file.path = value; }},
        {"users", required_argument, [&] { users_file.path = value; }},
        {"rooms", required_argument, [&] { options.rooms = room_names(value); }},
        {"idle", required_argument, [&] { options.idle = number(0, 1000000); }},
        {"rate", required_argument, [&] { options.rate = number(0, 1000000); }},
        {"max-clients", required_argument, [&] { options.max_clients = number(1, 1000000); }},
        {"max-per-ip", required_argument, [&] { options.max_per_ip = number(0, 1000000); }},
        {"admin-password-file", required_argument, [&] { options.admin_password_file = value; }},
        {"title", required_argument, [&] { options.title = clean(value); }},
        {"no-discovery", no_argument, [&] { options.discovery = false; }},
        {"help", no_argument, [&] { answer(concat("usage: ", program, usage)); }},
        {"version", no_argument, [&] { answer(concat("chatroom-server ", version, "\n")); }},
    };
    std::vector<option> names;
    for (const Known& one : known) names.push_back({one.name, one.argument, nullptr, 0});
    names.push_back({});
    int which = 0;
    for (int found = 0; (found = getopt_long(argc, argv, "", names.data(), &which)) != -1;) {
        if (found != 0) throw UsageError("");  // getopt_long() has said what is wrong
        name = known[which].name;
        value = optarg == nullptr ? "" : optarg;
        known[which].set();
    }
    if (options.title.size() > max_title)
        throw UsageError("--title takes at most " + std::to_string(max_title) + " bytes");
    if (optind < argc) throw UsageError("there is no option '" + std::string(argv[optind]) + "'");
}

// Takes the admin's password from a file or the environment, where it is wiped out, or makes one. Says which.
std::string choose_admin_password() {
    std::string given;
    std::string where = "as set in CHAT_ADMIN_PASSWORD";
    if (char* variable = std::getenv("CHAT_ADMIN_PASSWORD")) {
        given = variable;
        std::fill_n(variable, given.size(), '*');  // others may see what a process was started with: see proc(5)
        unsetenv("CHAT_ADMIN_PASSWORD");
    }
    if (!options.admin_password_file.empty()) {
        where = "as set in " + options.admin_password_file;
        given.clear();
        std::ifstream file(options.admin_password_file);
        std::string line;
        if (std::getline(file, line)) given = trim(line);  // an editor may have ended the line with CR LF
        if (given.empty()) throw_errno("read " + options.admin_password_file, "its first line is the password");
    }
    options.admin_password = clean(given);  // as what is typed will be
    if (!options.admin_password.empty()) return where;
    return options.admin_password = random_text("abcdefghjkmnpqrstuvwxyz23456789", 12);
}

std::string host_name() {
    std::array<char, max_title> name{};
    gethostname(name.data(), name.size() - 1);
    return clean(name.data());
}

// Signals: Ctrl-C and SIGTERM shut down; a peer that is gone, or a terminal, is no reason to end.
void handle_signals() {
    struct sigaction action {};
    action.sa_handler = [](int) { stop_request.set(); };
    for (const int number : {SIGINT, SIGTERM}) sigaction(number, &action, nullptr);
    action.sa_handler = [](int) {};  // without SA_RESTART: it interrupts the log's write()
    sigaction(SIGUSR1, &action, nullptr);
    action.sa_handler = SIG_IGN;
    for (const int number : {SIGPIPE, SIGHUP, SIGTTIN, SIGTTOU}) sigaction(number, &action, nullptr);
}

// Tells everyone, waits until they have it, and joins their threads: within twice the shutdown_limit and a little. The
// threads stay in recv() until the postman is done, for they would all be in its way to the mutex.
void end_clients() {
    std::unordered_map<std::thread::id, std::thread> threads;
    {
        Lock lock(chat.mutex);
        for (Client* client : chat.clients) farewell(lock, *client, "BYE SHUTDOWN The server shuts down.", "");
        postman.drain(lock, shutdown_limit);
        for (Client* client : chat.clients) shutdown(client->socket.get(), SHUT_RD);
        chat.empty.wait_for(lock, shutdown_limit, [] { return chat.clients.empty(); });
        for (Client* client : chat.clients) drop(lock, *client, "");
        threads.swap(chat.threads);
    }
    for (auto& [id, thread] : threads) thread.join();
}

void run() {
    handle_signals();
    prepare_descriptors();
    check_files();
    const std::string password = choose_admin_password();
    if (options.title.empty()) options.title = host_name();
    options.exit_code = random_text("0123456789", 5);
    std::vector<Fd> listeners;
    const int port = open_listeners(listeners);
    std::cout << "listening on port " << port << "\nadmin password: " << password
              << "\nexit code: " << options.exit_code << std::endl;
    make_room("public", "", "server");
    for (const std::string& name : options.rooms) make_room(name, "", "server");
    operator_client.name = operator_client.key = "server";
    operator_client.admin = true;
    operator_client.room = &public_room();
    chat.by_name["server"] = &operator_client;

    std::thread log_thread(&Log::run, &server_log);
    std::thread postman_thread(&Postman::run, &postman);
    std::thread clock_thread(run_clock);
    std::thread console_thread(run_console);
    std::thread discovery_thread;
    if (options.discovery) discovery_thread = std::thread(run_discovery, port);
    Doorman().run(listeners);

    listeners.clear();
    console_thread.join();
    if (discovery_thread.joinable()) discovery_thread.join();
    clock_thread.join();
    end_clients();
    postman.stop();
    postman_thread.join();
    log_event("the server has shut down.");
    server_log.stop(log_thread);
}

}  // namespace

int main(int argc, char** argv) {
    program = argv[0];
    program.remove_prefix(program.rfind('/') + 1);
    std::setlocale(LC_CTYPE, "");  // for the width of characters: wrapped()
    try {
        read_options(argc, argv);
        run();
        return 0;
    } catch (const UsageError& error) {
        std::cerr << program << ": " << error.what() << (*error.what() == 0 ? "" : "; ")
                  << "--help shows the options\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << program << ": " << error.what() << '\n';
        return 1;
    }
}
