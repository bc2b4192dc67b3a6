// server.cpp: the chat server. A thread for each client reads; one thread, the sender, sends.
//
// Part A, the chat, is a whole chat server by itself, and reads from top to bottom in an evening. Part B, what people
// rely on, is for looking things up: log, files, logging in, commands, discovery, options.
//
// The way of a message from one keyboard to the other screens, as function names:
//    read_line()         section 5   a client's own thread waits in recv() and cuts what comes into lines
//    handle_line()       section 5   a line is a command, or something to say
//    say()               section 4   puts the speaker's name before it, and queues it for the room
//    Sender::collect()   section 3   the sender takes what was queued,
//    Sender::deliver()   section 3   adds it to the room's text, which is copied to what waits for each member,
//    Sender::send_to()   section 3   and gives it to each one's socket, in one call
//
// One mutex, chat.mutex, guards clients and rooms; what is done under it touches memory only. Most functions that need
// it held take a `const Lock&` as the proof. The promises that comments cite by number are those of docs/design.md.

#if __has_include(<crypt.h>)
#include <crypt.h>
#endif
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <climits>
#include <concepts>
#include <filesystem>
#include <fstream>
#include <list>
#include <random>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "common.hpp"

namespace {

// ==== Part A: the chat ===================================================================================

// ---- 1. Limits ----------------------------------------------------------------------------------------
// Options are set before any thread starts, and only read afterwards. docs/design.md says why each limit is what it is.

struct Options {
    std::string port = std::string(default_port);
    std::string bind_address;        // empty: every interface
    std::vector<std::string> rooms;  // made at start, to stay
    long idle = 240;                 // seconds of silence in a client's room, warned at half; 0 is never
    long idle_public = 0;            // the same in public and in the server's own rooms
    long rate = 10;                  // lines a second from one client, after the burst; 0 is no limit
    long max_clients = 10000;        // connections, those that are still logging in included
    long max_per_ip = 64;            // of them from one address; 0 is no limit
    std::string admin_password_file;
    std::string admin_password;
    std::string title;      // what discovery calls the server; empty: the host's name
    bool discovery = true;  // clients may look for the server
    std::string exit_code;  // five digits, made at start: whoever knows it may shut the server down
};

Options options;

constexpr int burst = 30;                             // lines from a client before its rate counts
constexpr auto answer_limit = 60s;                    // for each of its answers during the login
constexpr auto login_limit = 300s;                    // for all of them
constexpr std::size_t max_said = 256UL * 1024;        // bytes that may wait for the sender, to be passed on to rooms
constexpr std::size_t max_mail = 64UL * 1024 * 1024;  // that may wait for the sender at all
constexpr std::size_t pause_backlog = 64UL * 1024;    // that wait for a client: from here on its lines are not read
constexpr std::size_t max_backlog = 1024UL * 1024;    // the same: from here on it is dropped
constexpr auto max_stall = 10s;                       // in which its socket takes nothing: then it is dropped
constexpr std::size_t history_lines = 50;             // of a room, shown to whoever enters it
constexpr auto close_limit = 2s;        // for a client to take its last lines, and as long to close its side
constexpr auto shutdown_limit = 400ms;  // for all of them to take theirs, when the server shuts down
constexpr const char* bye_shutdown = "BYE SHUTDOWN The server shuts down.";

std::optional<Wakeup> stop_request;  // opened by run(); once set it ends the server: whoever waits in poll() watches it

// Waits until the server is to stop, or the time is over; returns whether it is to stop. Any thread.
bool wait_for_stop(std::chrono::milliseconds time) {
    pollfd stop{stop_request->fd(), POLLIN, 0};
    return poll(&stop, 1, static_cast<int>(time.count())) > 0;
}

// ---- 2. Clients and rooms -----------------------------------------------------------------------------
// A client belongs to its own thread, which takes it off chat.connected before it closes the socket (promise 4): while
// chat.mutex is held, all on that list are alive. Those of them who are logged in are in chat.by_name, and have a room.

struct Room;
struct Audience;

struct Client {
    Client(Fd fd, std::string from) : socket(std::move(fd)), address(std::move(from)) {}

    // Never changed while others know the client.
    Fd socket;  // none: the operator
    std::string address;
    long id = 0;  // no other client ever has the same; the operator's is 0

    // Only its own thread.
    LineBuffer inbox{max_line};
    Clock::time_point next_allowed = Clock::now();  // when the lines that came so far are paid for: see throttle()
    Clock::duration waited{};                       // in recv() for its next line
    Clock::duration waited_before{};                // for the lines before that

    // Only the sender's thread.
    Audience* audience = nullptr;   // of the room where it is
    std::size_t seen = 0;           // bytes of its text which are in `unsent` already, or were said before it came
    std::string unsent;             // lines for its socket
    const char* problem = nullptr;  // why it gets no more at all, if so
    bool in_hand = false;           // the sender has it on its list
    bool full = false;              // its socket takes no more at present
    bool releasing = false;         // once `unsent` is empty, its own thread may close the socket
    Clock::time_point progress;     // when the socket last took something, or something began to wait
    // Any thread.
    std::atomic<std::size_t> backlog = 0;  // bytes which wait for it alone: queued, and in `unsent`
    std::atomic<bool> closing = false;     // it ends, and nothing more is queued for it; set with chat.mutex held
    std::atomic<long> idle_limit = 0;      // seconds that it may be silent in its room; 0 is no limit
    std::atomic<bool> warned = false;      // that it has been silent there for long
    std::atomic<Clock::time_point> last_heard = Clock::now();  // when its last line came, an empty one included
    // Guarded by chat.mutex.
    std::string claimed_name;           // with which it tries to log in
    std::string name;                   // empty until it is logged in; its own thread may read it without the mutex
    std::string key;                    // the name, folded
    bool admin = false;                 // the admin, or the operator
    Room* room = nullptr;               // null before the login is complete, and while closing
    std::time_t since = 0;              // when it logged in
    std::optional<long> correspondent;  // the id of whoever sent it the last private message
    std::string asked_again;            // the command that it has to give once more, and
    Clock::time_point ask_limit;        // until when: see confirmed()
    bool released = false;              // the sender is done with it
    std::condition_variable changed;    // its own thread waits here for all of these
    std::thread thread;
};

struct Room {
    int number;
    std::string name;
    std::string code;  // five digits, or empty
    std::string creator;
    std::time_t created;
    std::string owner = {};             // empty: nobody, in public and in the rooms that the server made
    std::string topic = {};             // what it is about; may be empty
    std::vector<Client*> members = {};  // in the order in which they came
    std::deque<std::pair<std::string, std::string>> history = {};  // key of the speaker, line for whoever enters
};

struct Chat {
    std::mutex mutex;
    std::unordered_set<Client*> connected;                     // those who are still logging in included
    std::unordered_map<std::string, long> connections;         // by network_of() their address: how many
    std::unordered_map<std::string, Client*> by_name;          // by key: everyone who is logged in, and the operator
    std::list<Room> rooms;                                     // the first is public
    std::set<std::pair<std::string, const Client*>> ignorers;  // by key: a client that does not want to hear a person
    std::set<std::string> blocked;  // keys of those whom only the admin and the operator hear
    std::condition_variable empty;  // nobody is connected any more
    std::thread last_ended;         // the client's thread that ended last: see end_thread()
    long bans_changed = 0;          // how often, for those who are logging in: see admit()
};

Chat chat;
Client operator_client{Fd(), "the server's terminal"};  // the person there, by the name "server"

bool is_operator(const Client& client) { return &client == &operator_client; }
Room& public_room() { return chat.rooms.front(); }

bool ignores(const Lock& /*held*/, const Client& client, const std::string& key) {
    return chat.ignorers.contains({key, &client});
}

// The doors to what people rely on; what each function does is said where it stands.
void log_line(std::string_view room, std::string_view text);
void log_event(std::string_view text);
void log_rejection(std::string_view who, const std::string& cause);
void run_log();
void stop_log();
Clock::duration time_left(const Client& client);
void limit_receive(const Client& client, Clock::duration time);
void end_silence(Client& client);
std::string enlist(Client& client);
void delist(const Lock& lock, Client& client);
void turn_down(const Fd& socket, const std::string& reason);
bool log_in(Client& client);
void run_command(Lock& lock, Client& user, std::string_view line);
void divert(const Lock& lock, Client& user, std::string_view line);
void post_room(const Lock& lock, Client& to, const Room& room);
void show_operator(std::string_view line);
void run_console();
void run_discovery(int port);
std::string prepare();
int open_listeners(std::vector<Fd>& listeners);

// ---- 3. Sending ---------------------------------------------------------------------------------------
// Whatever is to be sent is queued as mail, under the mutex, in the order in which it was said. The sender takes all
// the mail at once and does the rest without the mutex. It keeps its own record of who is in which room, and learns of
// each change from the same queue: so a line reaches those who were in the room when it was said, in the same order for
// all (promise 1). It never blocks on a socket (promise 2). What is said while it is busy goes out together.

struct Mail {
    enum Action { say, tell, enter, leave, release };
    Action action;
    int room;        // say, enter, leave: the number of the room
    Client* client;  // all but say
    std::string text = {};
    std::vector<const Client*> ignorers = {};  // say: members who are not to get it
};

// The members of a room, as the sender has them, and what was said to all of them since the last round.
struct Audience {
    std::vector<Client*> members;
    std::string text;
};

void drop(const Lock& lock, Client& client, std::string_view reason);

class Sender {
   public:
    // Queues a piece of mail. Any thread. Never blocks.
    void queue(const Lock& /*held*/, Mail mail) {
        if (mail.action == Mail::say) said_bytes_ += mail.text.size(), ++said_lines_;
        if (mail.action == Mail::tell) mail.client->backlog += mail.text.size();
        mail_bytes_ += mail.text.size();
        if (!mail_.empty() && continues(mail_.back(), mail)) {
            mail_.back().text += mail.text;
        } else {
            mail_.push_back(std::move(mail));
        }
        wake();
    }

    // Waits while much mail waits for the sender. Whoever is about to say something calls this first, and queues it
    // before the lock is released: so the queue is bounded and a flood slows those who flood. Not the sender's thread.
    void wait_for_space(Lock& lock) {
        space_.wait(lock, [&] { return said_bytes_ <= max_said && mail_bytes_ <= max_mail; });
        space_.notify_one();  // the next one looks whether there is some left once we have queued ours
    }

    // Waits until nothing is left that the sockets would take, or the time is over. Not the sender's own thread.
    void wait_until_idle(Lock& lock, Clock::duration limit) {
        idle_.wait_for(lock, limit, [&] { return asleep_ && mail_.empty(); });
    }

    // Before run(). Throws if there is no descriptor left.
    void open() { wakeup_.emplace(); }

    // Ends run(). After the clients are gone.
    void stop() {
        const Lock lock(chat.mutex);
        stopping_ = true;
        wake();
    }

    // The sender's thread. After a round that brought more than one line it rests for a third of the round's time: then
    // those who answer share the next round, and a send() costs the same however many lines it carries.
    void run() {
        name_thread("sender");
        while (collect()) {
            round_ = Clock::now();
            for (const Mail& mail : collected_) deliver(mail);
            collected_.clear();
            deliver_room_texts();
            for (Client* client : in_hand_) {
                if (!client->full) send_to(*client);
            }
            std::erase_if(in_hand_, [&](Client* client) { return is_done(*client); });
            const auto rest = (Clock::now() - round_) / 3;
            if (several_talk_) std::this_thread::sleep_for(std::min<Clock::duration>(rest, 20ms));
        }
    }

   private:
    void wake() {
        work_.notify_one();
        if (std::exchange(polling_, false)) wakeup_->set();
    }

    // Whether a piece of mail may be appended to the one before it.
    static bool continues(const Mail& last, const Mail& next) {
        const bool has_text = next.action == Mail::say || next.action == Mail::tell;
        return has_text && last.action == next.action && last.room == next.room && last.client == next.client &&
               last.ignorers == next.ignorers;
    }

    // Takes the mail. Waits until there is some, or until a full socket takes more. False: stop.
    bool collect() {
        Lock lock(chat.mutex);
        for (Client* client : news_) {  // tells the others, and its own thread, what has become of what it was sent
            if (client->problem != nullptr) drop(lock, *client, client->problem);
            client->released = client->releasing && client->unsent.empty();
            client->changed.notify_all();
        }
        news_.clear();
        asleep_ = mail_.empty();
        if (asleep_) idle_.notify_all();
        if (in_hand_.empty()) {
            work_.wait(lock, [&] { return !mail_.empty() || stopping_; });
        } else {
            polling_ = asleep_;
            lock.unlock();
            wait_for_sockets();
            lock.lock();
        }
        polling_ = asleep_ = false;
        collected_.swap(mail_);
        several_talk_ = std::exchange(said_lines_, 0) > 1;
        said_bytes_ = mail_bytes_ = 0;
        space_.notify_one();
        return !stopping_;
    }

    void deliver(const Mail& mail) {
        Client* client = mail.client;
        switch (mail.action) {
            case Mail::say: return add_to_room(mail);
            case Mail::tell: catch_up(*client); return add(*client, mail.text);
            case Mail::enter: return enter(*client, rooms_[mail.room]);
            case Mail::leave: return leave(*client, mail.room);
            case Mail::release: client->releasing = true; return take_in_hand(*client);
        }
    }

    void add_to_room(const Mail& mail) {
        Audience& room = rooms_[mail.room];
        if (mail.ignorers.empty()) {
            if (room.text.empty()) spoken_in_.push_back(mail.room);
            room.text += mail.text;
            return;
        }
        for (Client* member : room.members) {
            catch_up(*member);
            if (std::count(mail.ignorers.begin(), mail.ignorers.end(), member) > 0) continue;
            member->backlog += mail.text.size();
            add(*member, mail.text);
        }
    }

    static void enter(Client& client, Audience& room) {
        room.members.push_back(&client);
        client.audience = &room;
        client.seen = room.text.size();
    }

    void leave(Client& client, int number) {
        catch_up(client);
        Audience& room = *std::exchange(client.audience, nullptr);
        std::erase(room.members, &client);
        if (room.members.empty() && room.text.empty()) rooms_.erase(number);
    }

    // Adds what was said to all in the client's room since it was added last, or since the client came.
    void catch_up(Client& client) {
        if (client.audience == nullptr || client.seen == client.audience->text.size()) return;
        const std::string_view text = std::string_view(client.audience->text).substr(client.seen);
        client.seen = client.audience->text.size();
        client.backlog += text.size();
        add(client, text);
    }

    void add(Client& client, std::string_view text) {
        if (client.problem != nullptr) return;
        if (client.unsent.empty()) client.progress = round_;
        client.unsent += text;
        take_in_hand(client);
    }

    void take_in_hand(Client& client) {
        if (!std::exchange(client.in_hand, true)) in_hand_.push_back(&client);
    }

    void deliver_room_texts() {
        for (const int number : spoken_in_) {
            Audience& room = rooms_[number];
            for (Client* member : room.members) {
                catch_up(*member);
                member->seen = 0;
            }
            room.text.clear();
            room.text.shrink_to_fit();
            if (room.members.empty()) rooms_.erase(number);
        }
        spoken_in_.clear();
    }

    // One call, which takes what the socket has space for.
    void send_to(Client& client) {
        if (client.unsent.empty()) return;
        const ssize_t count = send(client.socket.get(), client.unsent.data(), client.unsent.size(), MSG_DONTWAIT);
        if (count < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS) client.problem = "lost the connection.";
        const auto taken = static_cast<std::size_t>(std::max<ssize_t>(count, 0));
        client.full = taken < client.unsent.size();
        if (taken == 0) return;
        client.unsent.erase(0, taken);
        client.progress = round_;
        const std::size_t before = client.backlog.fetch_sub(taken);
        if (before >= pause_backlog && before - taken < pause_backlog) news_.push_back(&client);
    }

    // Whether nothing is left to be sent to a client; then it is no longer in hand.
    bool is_done(Client& client) {
        if (client.unsent.size() > max_backlog) client.problem = "could not keep up: 1 MiB waited.";
        if (!client.unsent.empty() && round_ - client.progress > max_stall)
            client.problem = "took nothing of what was sent for 10 seconds.";
        if (!client.unsent.empty() && client.problem == nullptr) return false;
        client.unsent.clear();
        if (client.unsent.capacity() > 1024) client.unsent.shrink_to_fit();  // there may be thousands at rest
        client.full = client.in_hand = false;
        if (client.problem != nullptr || client.releasing) news_.push_back(&client);
        return true;
    }

    // Waits, while there is no mail, until one of the full sockets drains; all that are in hand are full.
    void wait_for_sockets() {
        std::vector<pollfd> polled{{wakeup_->fd(), POLLIN, 0}};
        for (const Client* client : in_hand_) polled.push_back({client->socket.get(), POLLOUT, 0});
        poll(polled.data(), static_cast<nfds_t>(polled.size()), asleep_ ? 1000 : 0);  // a stall ends without an event
        wakeup_->clear();
        const bool retry = Clock::now() >= retry_;  // poll() waits until much is free: a slow reader takes less
        if (retry) retry_ = Clock::now() + std::chrono::seconds(1);
        std::size_t i = 0;
        for (Client* client : in_hand_) client->full = polled[++i].revents == 0 && !retry;
    }

    // Guarded by chat.mutex.
    std::vector<Mail> mail_;
    std::size_t said_bytes_ = 0;  // of it, for rooms
    std::size_t mail_bytes_ = 0;  // of it, in all
    int said_lines_ = 0;          // of it, for rooms
    bool asleep_ = false;         // there is nothing to do but to wait for mail, or for full sockets
    bool polling_ = false;        // it waits in poll(), not at work_
    bool stopping_ = false;
    std::condition_variable work_, space_, idle_;
    std::optional<Wakeup> wakeup_;

    // Only the sender's thread.
    std::vector<Mail> collected_;              // mail of this round
    std::unordered_map<int, Audience> rooms_;  // by number
    std::vector<int> spoken_in_;               // rooms with a text
    std::vector<Client*> in_hand_;             // clients to whom something is to be sent
    std::vector<Client*> news_;                // clients of whom collect() has something to tell
    bool several_talk_ = false;
    Clock::time_point round_;  // when this round began: a clock read for each client would take a tenth of the time
    Clock::time_point retry_;  // when full sockets are tried again
};

Sender sender;

// ---- 4. What is said in a room ------------------------------------------------------------------------
// To say something is to queue it once for the whole room, under the mutex: so everyone sees the same lines in the same
// order, the speaker included (promise 1). Any thread may call these; none blocks. docs/protocol.md has the lines.

std::string_view text_of(std::string_view text) { return text; }
std::string text_of(std::integral auto number) { return std::to_string(number); }

template <typename... Parts>
std::string concat(const Parts&... parts) {
    std::string text;
    ((text += text_of(parts)), ...);
    return text;
}

// Sends a client a line, which is given without its end.
void post(const Lock& lock, Client& to, std::string_view line) {
    if (is_operator(to)) return show_operator(line);
    if (!to.closing) sender.queue(lock, {Mail::tell, 0, &to, concat(line, "\n")});
}

template <typename... Parts>
void info(const Lock& lock, Client& to, const Parts&... parts) {
    post(lock, to, concat("INFO ", parts...));
}

template <typename... Parts>
void error(const Lock& lock, Client& to, const Parts&... parts) {
    post(lock, to, concat("ERR ", parts...));
}

// Tells a room, and the log, what happened to somebody.
void announce(const Lock& lock, const Room& room, std::string_view word, std::string_view name, std::string_view text) {
    sender.queue(lock, {Mail::say, room.number, nullptr, concat(word, " ", name, " ", text, "\n")});
    log_line(room.name, concat("-- ", name, " ", text));
}

// Says something in a client's name, in its room; the operator speaks in all rooms. word is SAY or ME.
void say(const Lock& lock, const Client& from, std::string_view word, std::string_view text) {
    const std::string line = concat(word, " ", from.name, " ", text);
    const std::string in_history = concat("PAST ", utc_time(std::time(nullptr)), " ", line);
    std::vector<const Client*> ignorers;
    auto next = chat.ignorers.lower_bound({from.key, nullptr});
    for (; next != chat.ignorers.end() && next->first == from.key; ++next) ignorers.push_back(next->second);
    for (Room& room : chat.rooms) {
        if (&room != from.room && !is_operator(from)) continue;
        sender.queue(lock, {Mail::say, room.number, nullptr, line + '\n', ignorers});
        room.history.emplace_back(from.key, in_history);
        if (room.history.size() > history_lines) room.history.pop_front();
    }
    log_line(is_operator(from) ? "-" : from.room->name,
             word == "ME" ? concat("* ", from.name, " ", text) : concat(from.name, ": ", text));
}

void enter(const Lock& lock, Client& client, Room& room) {
    announce(lock, room, "JOIN", client.name, "joined.");
    room.members.push_back(&client);
    client.room = &room;
    client.idle_limit = room.owner.empty() ? options.idle_public : options.idle;
    client.warned = false;
    sender.queue(lock, {Mail::enter, room.number, &client});
    post_room(lock, client, room);
    for (const auto& [key, line] : room.history)
        if (!ignores(lock, client, key)) post(lock, client, line);
}

void end_room(const Lock& /*held*/, const Room& room) {
    log_line(room.name, "-- the room has ended.");
    chat.rooms.remove_if([&](const Room& other) { return &other == &room; });
}

// Takes a client out of its room. One that a client made passes to the oldest member, and ends with the last.
void leave(const Lock& lock, Client& client, std::string_view reason) {
    Room& room = *std::exchange(client.room, nullptr);
    std::erase(room.members, &client);
    sender.queue(lock, {Mail::leave, room.number, &client});
    announce(lock, room, "LEAVE", client.name, reason);
    if (room.owner != client.name) return;
    if (room.members.empty()) return end_room(lock, room);
    room.owner = room.members.front()->name;
    announce(lock, room, "OWNER", room.owner, "owns the room now.");
}

void move(const Lock& lock, Client& client, Room& to, std::string_view reason) {
    leave(lock, client, reason);
    enter(lock, client, to);
}

// Takes a client out of all that others can see. No line of it counts from here on, and none is queued for it.
void remove(const Lock& lock, Client& client, std::string_view reason) {
    if (client.closing.exchange(true)) return;
    client.changed.notify_all();
    if (client.room == nullptr) {
        const std::string as = client.claimed_name.empty() ? "" : concat(" as ", client.claimed_name);
        return log_rejection(client.address + as, std::string(reason));
    }
    leave(lock, client, reason);
    chat.by_name.erase(client.key);
    std::erase_if(chat.ignorers, [&](const auto& ignored) { return ignored.second == &client; });
}

// Ends a client's time here by its own thread: last_line is the last that it is sent, the reason is for its room.
void quit(const Lock& lock, Client& client, std::string_view last_line, std::string_view reason) {
    post(lock, client, last_line);
    remove(lock, client, reason);
}

// The same by any other thread: under shutdown() the client's own thread returns from recv() (promise 4).
void disconnect(const Lock& lock, Client& client, std::string_view last_line, std::string_view reason) {
    quit(lock, client, last_line, reason);
    shutdown(client.socket.get(), SHUT_RD);
}

// The same for a client which cannot be sent anything any more, not even a last line. Any thread.
void drop(const Lock& lock, Client& client, std::string_view reason) {
    remove(lock, client, reason);
    shutdown(client.socket.get(), SHUT_RDWR);
}

// ---- 5. A client's own thread -------------------------------------------------------------------------
// The heart of the server: a plain loop around recv(). What a client does slowly holds up nobody else (promise 2).

void tell(Client& to, std::string_view line) { post(Lock(chat.mutex), to, line); }
void tell_error(Client& to, std::string_view text) { error(Lock(chat.mutex), to, text); }

// Waits while much waits for the client, whose own thread calls this.
void wait_until_taken(Lock& lock, Client& client) {
    client.changed.wait(lock, [&] { return client.closing || client.backlog < pause_backlog; });
}

// Waits until the client may be heard: while it is ahead of its rate, and while it does not read what is sent to it.
void throttle(Client& client) {
    const auto now = Clock::now();
    const Clock::duration interval = options.rate > 0 ? Clock::duration(1s) / options.rate : Clock::duration::zero();
    client.next_allowed = std::max(client.next_allowed, now) + interval;
    const auto allowed = client.next_allowed - burst * interval;
    if (allowed <= now && client.backlog < pause_backlog) return;
    Lock lock(chat.mutex);
    client.changed.wait_until(lock, allowed, [&] { return client.closing.load(); });
    wait_until_taken(lock, client);
}

// Waits in recv() for more of what the client sends. False: nothing more will come.
bool receive(Client& client) {
    end_silence(client);
    if (client.closing) return false;
    limit_receive(client, time_left(client));
    std::array<char, 2048> bytes{};
    const auto began = Clock::now();
    const ssize_t count = recv(client.socket.get(), bytes.data(), bytes.size(), 0);
    if (count < 0 && errno == EINTR) return true;  // the process was stopped: something may have come meanwhile
    if (count < 0 && errno != EAGAIN) drop(Lock(chat.mutex), client, "lost the connection.");
    if (count > 0) client.inbox.add({bytes.data(), static_cast<std::size_t>(count)});
    client.waited += Clock::now() - began;
    return count != 0;
}

// Returns the client's next line, cleaned, or nothing at the end. Blocks until there is one.
std::optional<std::string> read_line(Client& client) {
    while (!client.closing) {
        std::optional<Line> line = client.inbox.next();
        if (!line && receive(client)) continue;
        if (!line) line = client.inbox.last();
        if (!line) break;
        throttle(client);
        if (client.closing) break;
        client.last_heard = Clock::now();
        client.waited_before += std::exchange(client.waited, {});
        client.warned = false;
        if (!line->too_long) return clean(line->text);
        tell_error(client, concat("That line was longer than ", max_line, " bytes, and was not sent."));
    }
    quit(Lock(chat.mutex), client, "BYE QUIT You ended the connection.", "left.");
    return std::nullopt;
}

// Does what a line of a logged-in client, or of the operator, asks for.
void handle_line(Client& user, std::string_view line) {
    const std::string_view text = trim(line);
    if (text.empty()) return;
    Lock lock(chat.mutex);
    sender.wait_for_space(lock);
    if (user.closing) return;
    const bool escaped = text.starts_with("//");
    if (text.starts_with('/') && !escaped) return run_command(lock, user, text.substr(1));
    if (escaped) line = text.substr(1);
    if (chat.blocked.contains(user.key)) return divert(lock, user, line);
    say(lock, user, "SAY", line);
}

// Waits until the last lines are sent and the peer has closed its side: close() may send a reset, which overtakes them.
void end_connection(Client& client) {
    {
        Lock lock(chat.mutex);
        remove(lock, client, "had a problem.");  // unless that has been done already
        sender.queue(lock, {Mail::release, 0, &client});
        const auto is_released = [&] { return client.released; };
        if (!client.changed.wait_for(lock, close_limit, is_released)) shutdown(client.socket.get(), SHUT_RDWR);
        client.changed.wait(lock, is_released);
    }
    shutdown(client.socket.get(), SHUT_WR);
    limit_receive(client, close_limit);
    const auto deadline = Clock::now() + close_limit;
    std::array<char, 2048> ignored{};
    while (recv(client.socket.get(), ignored.data(), ignored.size(), 0) > 0 && Clock::now() < deadline) continue;
}

// Every thread is joined (promise 4): one that ends joins the one that ended before it, and end_clients() the last one.
void end_thread(Client& client) {
    Lock lock(chat.mutex);
    client.changed.wait(lock, [&] { return client.thread.joinable(); });  // the acceptor may not have stored it yet
    std::thread before = std::exchange(chat.last_ended, std::move(client.thread));
    lock.unlock();
    if (before.joinable()) before.join();
    delist(Lock(chat.mutex), client);  // its place is free when its descriptor is: at once
}

// The thread of one client, which it owns.
void serve(Client* owned) {
    const std::unique_ptr<Client> client(owned);
    name_thread(client->address.c_str());
    try {
        if (log_in(*client)) {
            name_thread(client->name.c_str());
            while (const std::optional<std::string> line = read_line(*client)) handle_line(*client, *line);
        }
    } catch (const std::exception& problem) {  // no memory, or no ban list: it ends this client alone
        log_event(concat(client->address, " failed: ", problem.what()));
        const char* last_line = "REFUSE The server has a problem; please tell whoever runs it.";
        if (wait_for_stop(0ms)) last_line = bye_shutdown;  // which is why a slow call was given up
        quit(Lock(chat.mutex), *client, last_line, "was rejected: a problem.");
    }
    end_connection(*client);
    end_thread(*client);
}

// ---- 6. Accepting -------------------------------------------------------------------------------------

// Returns a socket that listens there, or none where this machine has no such address family. Throws on other errors.
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

// Accepts clients, and rejects those for whom there is no place: only in the main thread.
class Acceptor {
   public:
    // When nobody has come for a while, the system gets back what free() has kept: half a gigabyte after many logins.
    void run(const std::vector<Fd>& listeners) {
        std::vector<pollfd> polled{{stop_request->fd(), POLLIN, 0}};
        for (const Fd& listener : listeners) polled.push_back({listener.get(), POLLIN, 0});
        while (true) {
            const int ready = poll(polled.data(), static_cast<nfds_t>(polled.size()), 2000);
#ifdef __GLIBC__
            if (ready == 0) malloc_trim(0);
#endif
            if (ready <= 0) continue;
            if (polled[0].revents != 0) return;
            for (const pollfd& listener : polled) {
                if (listener.revents != 0) accept_from(listener.fd);
            }
        }
    }

   private:
    void accept_from(int listener) {
        sockaddr_storage from{};
        sockaddr* const address = generic(from);
        socklen_t length = sizeof from;
        Fd socket(accept(listener, address, &length));
        if (!socket && (errno == EMFILE || errno == ENFILE)) {
            reserve_ = Fd();
            socket = Fd(accept(listener, address, &length));
        }
        if (socket && !any_file()) {  // its thread could not read the ban list
            turn_down(socket, "The server has no descriptor left: try again later.");
        } else if (socket) {
            fcntl(socket.get(), F_SETFL, 0);                  // some systems hand O_NONBLOCK on from the listener
            set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);  // the sender gathers lines; the kernel need not
            watch_for_vanishing(socket);
            start_thread(std::make_unique<Client>(std::move(socket), address_text(address, length)));
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_rejection("somebody", "was rejected: accept: " + error_text(errno));
            wait_for_stop(100ms);  // poll() would return at once again and again
        }
        socket = Fd();
        if (!reserve_) reserve_ = any_file();
    }

    static Fd any_file() { return Fd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

    static void start_thread(std::unique_ptr<Client> client) {
        const std::string problem = enlist(*client);
        if (!problem.empty()) return turn_down(client->socket, problem);
        Client& known = *client;
        try {
            std::thread thread(serve, &known);
            static_cast<void>(client.release());  // it is the thread's, which waits in end_thread() for what follows
            const Lock lock(chat.mutex);
            known.thread = std::move(thread);
            known.changed.notify_all();
        } catch (const std::system_error&) {
            delist(Lock(chat.mutex), known);
            turn_down(known.socket, "The server cannot start another thread: try again later.");
        }
    }

    Fd reserve_ = any_file();  // given up to accept the client for whom no descriptor is left, and to tell it
};

// ---- 7. Starting and stopping -------------------------------------------------------------------------

// Tells everyone, waits until they have it, and joins their threads, within twice the shutdown_limit. Until the sender
// is done these stay in recv(), or all would be in its way to the mutex.
void end_clients() {
    Lock lock(chat.mutex);
    for (Client* client : chat.connected) {
        post(lock, *client, bye_shutdown);
        client->closing = true;
        client->changed.notify_all();
    }
    chat.by_name.clear();  // a command that still waits for a file is to find nobody who is gone
    sender.wait_until_idle(lock, shutdown_limit);
    for (const Client* client : chat.connected) shutdown(client->socket.get(), SHUT_RD);
    chat.empty.wait_for(lock, shutdown_limit, [] { return chat.connected.empty(); });
    for (const Client* client : chat.connected) shutdown(client->socket.get(), SHUT_RDWR);
    chat.empty.wait(lock, [] { return chat.connected.empty(); });
    lock.unlock();
    if (chat.last_ended.joinable()) chat.last_ended.join();
}

// A thread of the server itself, which is stopped and joined on every way out.
struct Worker {
    std::function<void()> stop;
    std::thread thread;
    ~Worker() {
        stop();
        thread.join();
    }
};

// Runs the server until it is to stop. Throws what keeps it from starting.
void run() {
    stop_request.emplace();
    sender.open();
    const std::string password = prepare();
    std::vector<Fd> listeners;
    const int port = open_listeners(listeners);
    const Worker log{stop_log, std::thread(run_log)};
    const Worker sending{[] { sender.stop(); }, std::thread(&Sender::run, &sender)};
    {
        const auto stop = [] { stop_request->set(); };
        const Worker console{stop, std::thread(run_console)};
        const Worker discovery{stop, std::thread(run_discovery, port)};
        std::cout << "listening on port " << port << "\nadmin password: " << password
                  << "\nexit code: " << options.exit_code << std::endl;
        Acceptor().run(listeners);
    }
    listeners.clear();
    end_clients();
    log_event("the server has shut down.");
}

// ==== Part B: what people rely on ========================================================================

// ---- 8. The log ---------------------------------------------------------------------------------------
// Standard output may block: so a thread of its own writes what others, which never wait (promise 2), have queued.

struct LogQueue {
    std::mutex mutex;
    std::condition_variable changed;
    std::atomic<bool> give_up = false;  // write no more
    // Guarded by the mutex.
    std::string waiting;                                  // lines to be written
    std::size_t lost = 0;                                 // lines for which there was no space
    std::map<std::string, Clock::time_point> rejections;  // by cause: when one was logged last
    std::optional<pthread_t> thread;
    bool stopping = false, done = false;
};

LogQueue log_queue;

std::string timestamp() { return local_time(std::time(nullptr), "%Y-%m-%d %H:%M:%S "); }

// Logs what happened in a room; "-" is the server itself.
void log_line(std::string_view room, std::string_view text) {
    const Lock lock(log_queue.mutex);
    if (log_queue.waiting.size() > 1024UL * 1024) return static_cast<void>(++log_queue.lost);
    if (log_queue.waiting.empty()) log_queue.changed.notify_all();
    log_queue.waiting += concat(timestamp(), room, " ", text, "\n");
}

void log_event(std::string_view text) { log_line("-", concat("-- ", text)); }

// Logs what is the same for many, at most once a second for each cause.
void log_rejection(std::string_view who, const std::string& cause) {
    Lock lock(log_queue.mutex);
    Clock::time_point& last = log_queue.rejections[cause];
    if (Clock::now() - last < std::chrono::seconds(1)) return;
    last = Clock::now();
    lock.unlock();
    log_event(concat(who, " ", cause));
}

// Stops at a broken output, and at a blocked one once the server stops.
void write_log(std::string_view text) {
    while (!text.empty() && !log_queue.give_up) {
        pollfd output{STDOUT_FILENO, POLLOUT, 0};  // which another program may have made non-blocking
        poll(&output, 1, 100);
        const ssize_t written = write(STDOUT_FILENO, text.data(), text.size());
        if (written < 0 && errno != EAGAIN && errno != EINTR) return;
        text.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(written, 0)));
    }
}

// The log's thread: writes until stop_log(), and then what is left.
void run_log() {
    name_thread("log");
    Lock lock(log_queue.mutex);
    log_queue.thread = pthread_self();
    while (true) {
        log_queue.changed.wait(lock, [] { return !log_queue.waiting.empty() || log_queue.stopping; });
        if (log_queue.waiting.empty()) break;
        log_queue.changed.wait_for(lock, 20ms, [] { return log_queue.stopping; });  // more may come for this write()
        std::string text = std::exchange(log_queue.waiting, {});
        const std::size_t lost = std::exchange(log_queue.lost, 0);
        if (lost > 0) text += concat(timestamp(), "- -- here ", lost, " lines are missing.\n");
        lock.unlock();
        write_log(wrapped(text, screen_width()));
        lock.lock();
    }
    log_queue.done = true;
    log_queue.changed.notify_all();
}

// Ends run_log(). It may be stuck in a write to a paused terminal: the signal, whose handler is empty, interrupts that.
void stop_log() {
    Lock lock(log_queue.mutex);
    log_queue.stopping = true;
    log_queue.changed.notify_all();
    log_queue.changed.wait_for(lock, 200ms, [] { return log_queue.done; });
    for (log_queue.give_up = true; !log_queue.done; log_queue.changed.wait_for(lock, 10ms)) {
        if (log_queue.thread) pthread_kill(*log_queue.thread, SIGUSR1);
    }
}

// ---- 9. A client's time -------------------------------------------------------------------------------
// Each client's own thread keeps its deadlines. Only time in recv() counts: not that of a hash, or of a slow file.

// Returns how long the client may still be silent until it is warned, at half of its time, or after that until the end.
Clock::duration time_left(const Client& client) {
    const long unlimited = options.idle_public > 0 ? options.idle_public : 3600;  // then look again: it may be moved
    Clock::duration limit = std::chrono::seconds(client.idle_limit > 0 ? client.idle_limit.load() : unlimited);
    if (client.name.empty()) limit = std::min<Clock::duration>(answer_limit, login_limit - client.waited_before);
    return (client.warned ? limit : limit / 2) - client.waited;
}

// Warns the client, which from then on has half of its time, however late that is: the process may have been stopped.
void warn(const Lock& lock, Client& client) {
    client.waited += time_left(client);
    client.warned = true;
    const auto left = std::chrono::ceil<std::chrono::seconds>(client.waited).count();
    if (client.room == nullptr) return info(lock, client, "You have ", left, " seconds left to answer.");
    info(lock, client, "You have said nothing for a while. Say something, or you will be ",
         client.room->owner.empty() ? "disconnected." : "moved to public.");
}

// Before recv(), when no line is there: warns a client whose time is over, and then rejects, moves or disconnects it,
// but not the admin, nor an owner, whose room would pass on.
void end_silence(Client& client) {
    if (time_left(client) > Clock::duration::zero()) return;
    const Lock lock(chat.mutex);
    const Room* room = client.room;  // none: it is still logging in, or closing
    const bool exempt = room != nullptr && (client.idle_limit == 0 || client.admin || room->owner == client.name);
    if (!exempt && !client.warned) return warn(lock, client);
    client.waited = {};
    if (exempt) return;
    constexpr const char* too_slow = "REFUSE That took too long: a minute for an answer, five for all.";
    constexpr const char* too_silent = "BYE IDLE You have said nothing for too long.";
    if (room == nullptr) return quit(lock, client, too_slow, "was rejected: too slow a login.");
    if (room->owner.empty()) return quit(lock, client, too_silent, "was timed out.");
    info(lock, client, "You have said nothing for too long: you are moved to public.");
    move(lock, client, public_room(), "was silent for too long.");
}

// Before recv(): makes it return EAGAIN when the time is over (SO_RCVTIMEO in socket(7)).
void limit_receive(const Client& client, Clock::duration time) {
    const auto left = std::max(std::chrono::ceil<std::chrono::milliseconds>(time), 1ms).count();
    const timeval value{static_cast<time_t>(left / 1000), static_cast<suseconds_t>(left % 1000 * 1000)};
    setsockopt(client.socket.get(), SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value);
}

// ---- 10. Places: how many clients there may be --------------------------------------------------------

// Puts the client on the list, or says why there is no place for it.
std::string enlist(Client& client) {
    const Lock lock(chat.mutex);
    if (std::cmp_greater_equal(chat.connected.size(), options.max_clients))
        return concat("The server is full: it takes ", options.max_clients, " at once.");
    long& here = chat.connections[network_of(client.address)];
    if (options.max_per_ip > 0 && here >= options.max_per_ip)
        return concat("There are ", here, " connections from your address already; no more are taken.");
    ++here;
    chat.connected.insert(&client);
    static long last_id = 0;
    client.id = ++last_id;
    return "";
}

// Takes the client off the list: from here on nobody else knows it.
void delist(const Lock& /*held*/, Client& client) {
    chat.connected.erase(&client);
    const auto from = chat.connections.find(network_of(client.address));
    if (--from->second == 0) chat.connections.erase(from);
    if (chat.connected.empty()) chat.empty.notify_all();
}

// Rejects a client that has no thread, nor a place on the list. Nobody else knows the socket. Never blocks.
void turn_down(const Fd& socket, const std::string& reason) {
    log_rejection("somebody", "was rejected: " + reason);
    const std::string line = concat("REFUSE ", reason, "\n");
    send(socket.get(), line.data(), line.size(), MSG_DONTWAIT);
    shutdown(socket.get(), SHUT_WR);
    std::array<char, 2048> unread{};  // or closing would send a reset: see end_connection()
    recv(socket.get(), unread.data(), unread.size(), MSG_DONTWAIT);
}

// ---- 11. Files: bans and accounts ---------------------------------------------------------------------
// Each login reads through both: people may edit them while the server runs, and several servers may share them. All of
// this blocks on the disk, and is called without chat.mutex.

// Returns the name, address or network that a line of the ban list is about, folded; empty for a comment.
std::string ban_in(std::string_view line) {
    const std::string who(trim(line.substr(0, line.find('#'))));
    const std::string address = normal_address(who);
    return address.empty() ? fold(who) : address;
}

// Returns whether what a line is about is a name (folded) or an address, or a network that the address is in.
bool is_about(const std::string& subject, const std::string& name_or_address) {
    const std::size_t slash = subject.find('/');
    if (slash == std::string::npos) return subject == name_or_address;
    return subject == normal_address(name_or_address + subject.substr(slash));
}

// Returns the name that a line of the accounts' file, "alice:$y$...", is about, folded; empty if there is none.
std::string account_in(std::string_view line) {
    const std::string_view name = line.substr(0, line.find(':'));
    return valid_name(name) && name.size() < line.size() ? fold(name) : "";
}

// Returns the hash in such a line; empty if crypt(3) cannot have made it, which locks the account.
std::string hash_in(std::string_view line) {
    const std::size_t start = line.find(":$");
    return start == std::string::npos ? "" : std::string(trim(line.substr(start + 1)));
}

struct LineFile {
    std::string path;                             // set before there are threads
    mode_t mode;                                  // who may read it
    std::string (*subject_in)(std::string_view);  // returns whom a line is about
    std::mutex changing = {};                     // held while the file is replaced

    // Calls see(line, number) for each line; a missing file has none. Throws if it cannot be read, or at a stop.
    template <typename See>
    void for_each_line(See see) const {
        const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (!file && errno == ENOENT) return;
        std::string text;                // read, and not yet a whole line
        std::array<char, 2048> bytes{};  // on the stack of each client's thread, which keeps what it has touched
        std::size_t number = 0;
        for (ssize_t count = -1; count != 0;) {
            count = file ? read(file.get(), bytes.data(), bytes.size()) : -1;
            if (count < 0 && errno != EINTR) throw_errno("read " + path);
            text.append(bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
            for (std::size_t end = 0; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1))
                see(std::string_view(text).substr(0, end), ++number);
            if (wait_for_stop(0ms)) throw std::runtime_error("the server shuts down");
        }
        if (!text.empty()) see(text, ++number);
    }

    // Returns the first line about a name (folded) or an address, if there is one. Throws as for_each_line().
    [[nodiscard]] std::optional<std::string> find(const std::string& name_or_address) const {
        std::optional<std::string> found;
        for_each_line([&](std::string_view line, std::size_t /*number*/) {
            if (!found && is_about(subject_in(line), name_or_address)) found = line;
        });
        return found;
    }

    // Puts a line in the place of the one about just that (as subject_in has it), or removes it if `line` is empty. On
    // return this is on the disk. False: accept() does not take the present line, or none. Throws if it cannot be done.
    template <typename Accept>
    bool change(std::string_view who, Accept accept, const std::string& line) {
        const Lock lock(changing);
        const Fd locked = lock_file();
        std::optional<std::string> present;
        std::string text;
        for_each_line([&](std::string_view other, std::size_t /*number*/) {
            const bool found = subject_in(other) == who;
            if (found && !present) present = other;
            if (!found) (text += other) += '\n';
        });
        if (!accept(present)) return false;
        if (!line.empty()) (text += line) += '\n';
        replace(text);
        return true;
    }

    // Throws if the file cannot be changed; removes what a crash has left behind.
    void check_writable() const {
        const Fd locked = std::filesystem::exists(path) ? lock_file() : Fd();
        const std::string beside = target() + ".new";
        const Fd file = create(beside);
        unlink(beside.c_str());
    }

   private:
    [[nodiscard]] std::string target() const {  // where links lead
        return std::filesystem::weakly_canonical(std::filesystem::absolute(path));
    }

    // Locks the file against other servers, while what is returned is open: flock(2). Throws after five seconds.
    [[nodiscard]] Fd lock_file() const {
        const std::string name = target();
        for (int tries = 0; tries < 500; ++tries, wait_for_stop(10ms)) {  // at a stop the rest take no time
            Fd file(open(name.c_str(), O_RDONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, mode));
            if (!file) throw_errno("open " + name);
            if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) continue;
            struct stat locked = {}, there = {};
            const bool known = fstat(file.get(), &locked) == 0 && stat(name.c_str(), &there) == 0;
            if (known && there.st_ino == locked.st_ino) return file;  // else another server has just replaced it
        }
        throw std::runtime_error(name + " is locked by another program");
    }

    // Whatever is there, left by a crash or as a trap, is neither written to nor followed.
    [[nodiscard]] Fd create(const std::string& name) const {
        unlink(name.c_str());
        Fd file(open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
        if (!file || fchmod(file.get(), mode) != 0) throw_errno("open " + name);
        return file;
    }

    // The new file is synced before it is renamed: a crash at any moment leaves the old one or the new (promise 5).
    // Once it is renamed it is in force, and no exception may say otherwise.
    void replace(std::string_view text) const {
        const std::string name = target(), beside = name + ".new";
        const Fd file = create(beside);
        while (!text.empty()) {
            const ssize_t written = write(file.get(), text.data(), text.size());
            if (written < 0 && errno != EINTR) throw_errno("write " + beside);
            text.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(written, 0)));
        }
        if (fsync(file.get()) != 0) throw_errno("fsync " + beside);
        if (rename(beside.c_str(), name.c_str()) != 0) throw_errno("rename " + beside);
        const Fd folder(open(std::filesystem::path(name).parent_path().c_str(), O_RDONLY | O_CLOEXEC));
        if (folder && fsync(folder.get()) == 0) return;
        log_event(concat("warning: ", name, " is changed, but its folder could not be synced: ", error_text(errno)));
    }
};

LineFile bans_file{"bans.txt", 0644, ban_in};
LineFile users_file{"", 0600, account_in};  // no path: no accounts

bool keeps_accounts() { return !users_file.path.empty(); }
bool is_banned(const std::string& name_or_address) { return bans_file.find(name_or_address).has_value(); }

constexpr std::string_view wrong_ban = ": no name, address or network; it bans nobody.";

bool is_wrong_ban(std::string_view line) {
    const std::string entry = ban_in(line);
    return !entry.empty() && !valid_name(entry) && normal_address(entry).empty();
}

// ---- 12. Logging in: names, passwords and codes -------------------------------------------------------
// All secrets share one limit on wrong attempts, counted by network address, so that more connections or other
// secrets give nobody more guesses. Each code has a second one, over all addresses, since five digits are few.

constexpr std::size_t max_attempts = 20;  // wrong ones at secrets; the same goes for new passwords, which cost time
constexpr auto attempt_window = 60s;      // in which they count
constexpr int max_wrong_passwords = 3;    // in a row: then the connection ends
constexpr std::string_view too_many_attempts = "Too many attempts: wait a minute, then try again.";
constexpr std::string_view wrong_password = "That is not the password.";
constexpr std::string_view address_banned = "BAN Your address is banned.";
constexpr std::string_view name_banned = "BAN That name is banned.";

// Returns a text that nobody can guess, each character as likely as any other.
std::string random_text(std::string_view alphabet, std::size_t length) {
    std::random_device random;  // the system's own source
    std::uniform_int_distribution<std::size_t> index(0, alphabet.size() - 1);
    std::string text;
    while (text.size() < length) text += alphabet[index(random)];
    return text;
}

// Compares in a time that tells nothing of how much is right. secret is not empty.
bool same_secret(std::string_view given, std::string_view secret) {
    unsigned difference = given.size() == secret.size() ? 0 : 1;
    for (std::size_t i = 0; i < given.size(); ++i)
        difference |= static_cast<unsigned char>(given[i] ^ secret[i % secret.size()]);
    return difference == 0;
}

class AttemptLimiter {
   public:
    // Counts an attempt for each of the keys, unless there were too many for one: then returns false. Any thread.
    bool take(const std::vector<std::string>& keys) {
        const Lock lock(mutex_);
        const auto now = Clock::now();
        std::erase_if(attempts_, [&](const auto& attempt) { return now - attempt.second > attempt_window; });
        const auto used_up = [&](const std::string& key) { return attempts_.count(key) >= max_attempts; };
        if (std::any_of(keys.begin(), keys.end(), used_up)) return false;
        for (const std::string& key : keys) attempts_.emplace(key, now);
        return true;
    }

    // Takes back the count of an attempt that was right.
    void give_back(const std::vector<std::string>& keys) {
        const Lock lock(mutex_);
        for (const std::string& key : keys) {
            const auto [first, last] = attempts_.equal_range(key);
            if (first != last) attempts_.erase(std::prev(last));
        }
    }

   private:
    std::mutex mutex_;
    std::multimap<std::string, Clock::time_point> attempts_;  // by key: when
};

AttemptLimiter guesses, new_passwords;

// Lets a client try a secret: returns nothing if it is right, else what to tell the client. code is what a code opens,
// and empty for a password. Attempts are counted before they are looked at, so that those made at one moment all count.
template <typename IsRight>
std::string_view check_secret(const Client& client, const std::string& code, std::string_view wrong, IsRight is_right) {
    std::vector<std::string> keys{network_of(client.address)};
    if (!code.empty()) keys.push_back(code);
    if (!guesses.take(keys)) return too_many_attempts;
    if (!is_right()) return wrong;
    guesses.give_back(keys);
    return "";
}

std::string hash_method;  // for new passwords, as crypt(5) has it; set at start by choose_hash_method()
std::mutex hashing;  // one thread at a time: crypt() has one buffer, and however many log in, the chat keeps a core

// Hashes a password; `setting` is a method with a salt, or an earlier hash. Throws if crypt(3) cannot, or at a stop.
std::string hash_password(const Lock& /*held*/, const std::string& password, const std::string& setting) {
    if (wait_for_stop(0ms)) throw std::runtime_error("the server shuts down");
    const char* hash = crypt(password.c_str(), setting.c_str());
    if (hash == nullptr || std::string_view(hash).substr(0, 3) != setting.substr(0, 3))
        throw std::runtime_error("crypt: this system cannot hash with " + setting.substr(0, 3));
    return hash;
}

std::string new_salt() { return random_text("./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 16); }

// Takes yescrypt, else SHA-512 with many rounds. Throws if crypt(3) knows neither.
void choose_hash_method() {
    const char* hash = crypt("", "$y$j9T$abcd");
    const bool has_yescrypt = hash != nullptr && std::string_view(hash).starts_with("$y$");
    hash_method = has_yescrypt ? "$y$j9T$" : "$6$rounds=200000$";
    hash_password(Lock(hashing), "", hash_method + new_salt());
}

// Checks the password of an account, and stores the account's line as the file has it at this moment. One attempt is
// looked at after the other: so a class that logs in at once does not meet the limit on wrong ones.
std::string_view check_password(const Client& client, std::string_view name, const std::string& given,
                                std::optional<std::string>& account) {
    const Lock lock(hashing);
    return check_secret(client, "", wrong_password, [&] {
        if (client.closing || given.size() > max_password) return false;
        account = users_file.find(fold(name));
        const std::string hash = account ? hash_in(*account) : "";
        return !hash.empty() && same_secret(hash_password(lock, given, hash), hash);
    });
}

// Ends a login that cannot succeed; returns false, with which the functions of the login end.
bool reject(Client& client, std::string_view last_line, std::string_view reason) {
    quit(Lock(chat.mutex), client, last_line, concat("was rejected: ", reason));
    return false;
}

// Asks for a password until check() finds no problem with it, or until so many were wrong, which ends the connection.
// False: there is none (an empty answer goes back), or the connection is to end.
template <typename Check>
bool ask_password(Client& client, std::string_view question, Check check, int tries = max_wrong_passwords) {
    for (int wrong = 0; wrong < tries; ++wrong) {
        tell(client, concat(question, " An empty line goes back."));
        const std::optional<std::string> given = read_line(client);
        if (!given || given->empty()) return false;
        const std::string_view problem = check(*given);
        if (problem.empty()) return !client.closing;
        tell_error(client, problem);
    }
    if (client.name.empty()) return reject(client, "REFUSE Three wrong passwords.", "three wrong passwords.");
    quit(Lock(chat.mutex), client, "BYE KICK Three wrong passwords.", "was disconnected: three wrong passwords.");
    return false;
}

// Asks for a new password and stores it, if the account is still as given. False: it is not, and the client knows why.
bool choose_password(Client& client, std::string_view name, const std::optional<std::string>& account) {
    std::string hash;
    const auto check = [&](const std::string& given) -> std::string_view {
        const std::string_view problem = password_problem(given);
        if (!problem.empty()) return problem;
        if (!new_passwords.take({network_of(client.address)})) return too_many_attempts;
        hash = hash_password(Lock(hashing), given, hash_method + new_salt());
        return "";
    };
    const std::string question = concat("NEWPASS A new password for ", name, "? 8 characters to 256 bytes.");
    if (!ask_password(client, question, check, INT_MAX)) return false;
    const auto is_unchanged = [&](const std::optional<std::string>& present) { return present == account; };
    if (users_file.change(fold(name), is_unchanged, concat(name, ":", hash))) return true;
    if (!account) return reject(client, "REFUSE Somebody has just registered that name.", "name registered.");
    tell_error(client, "Your account was changed or ended meanwhile: the password was not changed.");
    return false;
}

// /password: a conversation of its own; the client's thread reads the answers, with the mutex released. It goes on even
// if the account has ended, since answers that were sent ahead must not become lines of the chat (promise 7).
void change_password(Lock& lock, Client& user, std::string_view /*rest*/) {
    lock.unlock();
    std::optional<std::string> account;
    const auto check = [&](const std::string& given) -> std::string_view {
        try {
            const std::string_view problem = check_password(user, user.name, given, account);
            if (users_file.find(user.key)) return problem;
        } catch (const std::runtime_error&) {  // it cannot be checked, and counts as ended
            account.reset();
        }
        return "";
    };
    const bool asked = ask_password(user, concat("PASS The password of ", user.name, "?"), check);
    const bool changed = asked && choose_password(user, user.name, account.value_or(""));
    lock.lock();
    info(lock, user, "Your password is ", changed ? "changed." : "as it was.");
}

// Asks for the password that a name needs, if any, or for a new one. That goes before the question whether the name can
// be had: a password that was sent ahead must not become a name (promise 7). False: it asks for another name, or ends.
bool authenticate(Client& client, std::string_view name) {
    if (same_name(name, "admin")) {
        return ask_password(client, "PASS The admin's password?", [&](const std::string& given) {
            return check_secret(client, "", wrong_password, [&] { return same_secret(given, options.admin_password); });
        });
    }
    if (!keeps_accounts()) return true;
    if (is_banned(fold(name))) return reject(client, name_banned, "banned.");
    std::optional<std::string> account = users_file.find(fold(name));
    if (!account) return choose_password(client, name, account);
    if (hash_in(*account).empty()) return reject(client, "REFUSE This account is locked.", "its account is locked.");
    return ask_password(client, concat("PASS The password of ", name, "?"),
                        [&](const std::string& given) { return check_password(client, name, given, account); });
}

// Lets a client in under a name. False: it is banned, and rejected; or somebody has the name, and it may try another.
bool admit(Client& client, std::string_view name) {
    Lock lock(chat.mutex);
    for (long seen = -1; seen != chat.bans_changed;) {  // a ban disconnects only those who are in already
        seen = chat.bans_changed;
        lock.unlock();
        if (is_banned(client.address)) return reject(client, address_banned, "banned.");
        if (is_banned(fold(name))) return reject(client, name_banned, "banned.");
        lock.lock();
        sender.wait_for_space(lock);
    }
    if (client.closing) return false;
    if (!chat.by_name.try_emplace(fold(name), &client).second) {
        error(lock, client, "Somebody here has the name ", name, " already.");
        return false;
    }
    client.name = name;
    client.key = fold(name);
    client.admin = client.key == "admin";
    client.since = std::time(nullptr);
    const std::string hint = "Type a line to say it; /help lists the commands, /quit leaves.";
    post(lock, client, concat("WELCOME ", name, " Welcome, ", name, ". ", hint));
    log_event(concat(name, " logged in from ", client.address, "."));
    enter(lock, client, public_room());
    return true;
}

// Asks for the name, and for the password that it may need. False: the connection is to end.
bool log_in(Client& client) {
    tell(client, concat("INFO This is Chatroom ", version, "."));
    if (is_banned(client.address)) return reject(client, address_banned, "banned.");
    while (!client.closing) {
        tell(client, "NICK Your name? 3 to 12 letters and digits, a letter first; type it and press Enter.");
        const std::optional<std::string> line = read_line(client);
        if (!line) break;
        const std::string_view name = trim(*line);
        Lock lock(chat.mutex);
        client.claimed_name = valid_name(name) ? name : "";
        lock.unlock();
        if (!valid_name(name)) {
            tell_error(client, "A name is 3 to 12 letters and digits (A-Z, a-z, 0-9), a letter first.");
        } else if (same_name(name, "server")) {
            tell_error(client, "The server itself has that name.");
        } else if (authenticate(client, name) && admit(client, name)) {
            return true;
        }
    }
    return false;
}

// ---- 13. Commands -------------------------------------------------------------------------------------
// A function for each, called with the mutex held by the thread of whoever typed it: `rest` is what follows the
// command's word, trimmed. The table behind them says who may use which, and what /help says.
// The rule: a room command acts on the room that one is in, and the public room is the server; there the operator is.

bool in_public(const Client& user) { return user.room == &public_room(); }

using Refusal = std::invalid_argument;  // why a command is not carried out: run_command() tells the user

// Returns the client that is logged in under a name. Throws a Refusal if nobody is.
Client& find(const Lock& /*held*/, std::string_view name) {
    const auto found = chat.by_name.find(fold(name));
    if (found == chat.by_name.end()) throw Refusal(concat("Nobody here is called ", name, "."));
    return *found->second;
}

// As find(), for what is done to others: not to oneself or the operator, and to the admin by the operator alone.
Client& find_target(const Lock& lock, const Client& user, std::string_view name) {
    Client& target = find(lock, name);
    if (&target == &user) throw Refusal("That is yourself.");
    if (is_operator(target)) throw Refusal("That is the operator, at the server's own terminal.");
    if (target.admin && !is_operator(user)) throw Refusal("That is the admin.");
    return target;
}

// Posts the names in a room in as many lines as it takes, each of which begins so; those who are blocked get the mark.
void post_names(const Lock& lock, Client& to, const Room& room, const std::string& start, std::string_view mark) {
    std::string line = start;
    for (const Client* member : room.members) {
        (line += ' ') += member->name;
        if (chat.blocked.contains(member->key)) line += mark;
        if (line.size() >= max_line) post(lock, to, std::exchange(line, start));
    }
    if (line != start || room.members.empty()) post(lock, to, line);
}

// Tells a client who is in a room, who owns it, and what it is about.
void post_members(const Lock& lock, Client& to, const Room& room) {
    post_names(lock, to, room, concat("WHO ", room.name, " ", room.members.size()), "");
    if (!room.owner.empty()) post(lock, to, concat("OWNER ", room.owner, " owns ", room.name, "."));
    if (!room.topic.empty()) post(lock, to, concat("TOPIC ", room.name, " ", room.topic));
}

// Tells a client that has just come into a room all about it.
void post_room(const Lock& lock, Client& to, const Room& room) {
    std::string text = concat("You are in ", room.name, ".");
    if (!room.code.empty()) text += concat(" Its code: ", room.code, ".");
    if (!room.owner.empty()) text += concat(" Its owner: ", room.owner, ".");
    const auto field = [](const std::string& value) { return value.empty() ? "-" : value; };
    post(lock, to, concat("ROOM ", room.name, " ", field(room.code), " ", field(room.owner), " ", text));
    post_members(lock, to, room);
}

// Tells where somebody is, and for how long; the admin also from where.
void post_person(const Lock& lock, Client& to, const Client& person) {
    if (is_operator(person)) return info(lock, to, "server is the operator, at the server's own terminal.");
    const auto silence = std::chrono::floor<std::chrono::seconds>(Clock::now() - person.last_heard.load()).count();
    const char* mark = to.admin && chat.blocked.contains(person.key) ? "* (blocked)" : "";
    info(lock, to, person.name, mark, " is in ", person.room->name, to.admin ? concat(", from ", person.address) : "",
         local_time(person.since, ", connected since %Y-%m-%d %H:%M:%S %Z, silent for "), silence, " s.");
}

void who(Lock& lock, Client& user, std::string_view whom) {
    if (!whom.empty() && !same_name(whom, "all")) return post_person(lock, user, find(lock, whom));
    for (const Room& room : chat.rooms) {
        const std::string start = concat("INFO ", room.name, " (", room.members.size(), "):");
        if (!whom.empty()) post_names(lock, user, room, start, user.admin ? "*" : "");
        if (whom.empty() && (&room == user.room || is_operator(user))) post_members(lock, user, room);
    }
}

void time_of_day(Lock& lock, Client& user, std::string_view /*rest*/) {
    info(lock, user, local_time(std::time(nullptr), "It is %A, %Y-%m-%d %H:%M:%S %Z."));
}

void quote(Lock& lock, Client& user, std::string_view /*rest*/) {
    static constexpr std::string_view quotes[] = {
        "\"Be liberal in what you accept, and conservative in what you send.\" - Jon Postel",
        "\"We believe in rough consensus and running code.\" - David Clark",
        "\"Simplicity is prerequisite for reliability.\" - Edsger W. Dijkstra",
        "\"Premature optimization is the root of all evil.\" - Donald E. Knuth",
        "\"The best way to predict the future is to invent it.\" - Alan Kay",
    };
    info(lock, user, quotes[std::random_device()() % std::size(quotes)]);
}

void echo(Lock& lock, Client& user, std::string_view rest) { post(lock, user, concat("ECHO ", rest)); }
void me(Lock& lock, Client& user, std::string_view rest) { say(lock, user, "ME", rest); }

void private_message(const Lock& lock, Client& from, Client& to, std::string_view text) {
    if (ignores(lock, to, from.key)) return error(lock, from, to.name, " has chosen not to hear you (/ignore).");
    const std::string line = concat("MSG ", from.name, " ", to.name, " ", text);
    post(lock, from, line);
    if (&to != &from) post(lock, to, line);
    to.correspondent = from.id;
    if (is_operator(from) || is_operator(to)) return;  // it is in the log; what others say in private is not
    log_event(concat(from.name, " sent ", to.name, " a private message."));
}

void msg(Lock& lock, Client& user, std::string_view rest) {
    Client& to = find(lock, take_word(rest));
    private_message(lock, user, to, trim(rest));
}

void reply(Lock& lock, Client& user, std::string_view rest) {
    if (!user.correspondent) return error(lock, user, "Nobody has sent you a private message yet.");
    for (const auto& [key, client] : chat.by_name) {
        if (client->id == user.correspondent) return private_message(lock, user, *client, rest);
    }
    error(lock, user, "Whoever sent you the last private message has left.");
}

void ignore(Lock& lock, Client& user, std::string_view rest) {
    if (chat.ignorers.erase({fold(rest), &user}) > 0) return info(lock, user, "You hear ", rest, " again.");
    const Client& target = find(lock, rest);
    if (&target == &user || is_operator(target)) return error(lock, user, "Not yourself, and not the server.");
    if (target.admin) return error(lock, user, "The admin cannot be ignored.");
    chat.ignorers.emplace(target.key, &user);
    info(lock, user, "You no longer hear ", target.name, ". The same command undoes it.");
}

void quit_chat(Lock& lock, Client& user, std::string_view /*rest*/) {
    quit(lock, user, concat("BYE QUIT Goodbye, ", user.name, "."), "left.");
}

void rooms(Lock& lock, Client& user, std::string_view /*rest*/) {
    const std::string fields = " rooms: number, name, members, creator, creation time, whether a code is needed";
    post(lock, user, concat("ROOMS ", chat.rooms.size(), fields));
    for (const Room& room : chat.rooms) {
        post(lock, user,
             concat("LIST ", room.number, " ", room.name, " ", room.members.size(), " ", room.creator, " ",
                    utc_time(room.created), room.code.empty() ? " NO CODE" : " CODE"));
    }
}

// Returns the room with a name or a number, or null.
Room* find_room(std::string_view which) {
    for (Room& room : chat.rooms) {
        if (same_name(room.name, which) || std::to_string(room.number) == which) return &room;
    }
    return nullptr;
}

Room& make_room(std::string_view name, std::string_view code, std::string_view creator) {
    static int number = 0;
    chat.rooms.push_back({++number, std::string(name), std::string(code), std::string(creator), std::time(nullptr)});
    return chat.rooms.back();
}

void create(Lock& lock, Client& user, std::string_view rest) {
    const std::string_view name = take_word(rest), code = trim(rest);
    if (!valid_name(name)) return error(lock, user, "A room's name is 3 to 12 letters and digits, a letter first.");
    if (find_room(name) != nullptr) return error(lock, user, "There is a room ", name, " already.");
    const bool five_digits = code.size() == 5 && std::all_of(code.begin(), code.end(), is_digit);
    if (!code.empty() && !five_digits) return error(lock, user, "A code is exactly five digits.");
    Room& room = make_room(name, code, user.name);
    room.owner = user.name;
    move(lock, user, room, "left for another room.");
}

void join(Lock& lock, Client& user, std::string_view rest) {
    const std::string_view which = take_word(rest), code = trim(rest);
    Room* room = find_room(which);
    if (room == nullptr) return error(lock, user, "There is no room ", which, ".");
    if (room == user.room) return error(lock, user, "You are in that room.");
    if (!room->code.empty() && !user.admin) {
        if (code.empty()) return error(lock, user, "It needs a code: /join ", room->name, " CODE");
        const auto problem = check_secret(user, concat("room ", room->number), "That is not the room's code.",
                                          [&] { return same_secret(code, room->code); });
        if (!problem.empty()) return error(lock, user, problem);
    }
    move(lock, user, *room, "left for another room.");
}

void leave_room(Lock& lock, Client& user, std::string_view /*rest*/) {
    if (in_public(user)) return error(lock, user, "You are in public; /quit leaves the chat.");
    move(lock, user, public_room(), "left the room.");
}

void move_to_public(const Lock& lock, Client& user, Client& target, std::string_view done) {
    const std::string by = concat(done, " by ", user.name, ".");
    info(lock, target, "You were ", by);
    move(lock, target, public_room(), concat("was ", by));
    info(lock, user, target.name, " was ", done, ".");
}

void fire(Lock& lock, Client& user, std::string_view rest) {
    Client& target = find_target(lock, user, rest);
    info(lock, user, target.name, " was disconnected.");
    const std::string done = concat("kicked by ", user.name, ".");
    disconnect(lock, target, "BYE KICK You were " + done, "was " + done);
}

void kick(Lock& lock, Client& user, std::string_view rest) {
    if (in_public(user)) return fire(lock, user, rest);
    Client& target = find_target(lock, user, rest);
    if (target.room != user.room) return error(lock, user, target.name, " is not in this room.");
    move_to_public(lock, user, target, "kicked");
}

void out(Lock& lock, Client& user, std::string_view rest) {
    Client& target = find_target(lock, user, rest);
    if (in_public(target)) return error(lock, user, target.name, " is in public; /fire disconnects.");
    move_to_public(lock, user, target, "moved out");
}

// Brings everyone in a room back to public, and ends it if a client made it.
void empty_room(const Lock& lock, Room& room, const Client& by, std::string_view done) {
    for (Client* member : std::exchange(room.members, {})) {
        info(lock, *member, "The room was ", done, " by ", by.name, ".");
        sender.queue(lock, {Mail::leave, room.number, member});
        enter(lock, *member, public_room());
    }
    if (!room.owner.empty()) end_room(lock, room);
}

// Returns whether the user types a command for the second time within ten seconds; else warns, and asks for that.
bool confirmed(const Lock& lock, Client& user, std::string_view command, std::string_view warning) {
    if (user.asked_again == command && Clock::now() < user.ask_limit) return true;
    user.asked_again = command;
    user.ask_limit = Clock::now() + std::chrono::seconds(10);
    info(lock, user, warning, " To do it, type the same again within ten seconds.");
    return false;
}

void shut_down(Lock& lock, Client& user, std::string_view code) {
    if (code.empty() && !user.admin) return error(lock, user, "The form is: /shutdown CODE");
    const auto is_right = [&] { return same_secret(code, options.exit_code); };
    std::string_view problem;
    if (!code.empty()) problem = check_secret(user, "the server's end", "That is not the exit code.", is_right);
    if (!problem.empty()) return error(lock, user, problem);
    log_event(concat("shutdown by ", user.name, "."));
    stop_request->set();
}

void close_room(Lock& lock, Client& user, std::string_view /*rest*/) {
    if (!in_public(user)) return empty_room(lock, *user.room, user, "closed");
    const std::string_view warning = "That shuts the server down, for everyone in all rooms.";
    if (confirmed(lock, user, "close", warning)) shut_down(lock, user, "");
}

void set_topic(Lock& lock, Client& user, std::string_view text) {
    Room& room = *user.room;
    room.topic = text;
    sender.queue(lock, {Mail::say, room.number, nullptr, concat("TOPIC ", room.name, " ", text, "\n")});
    log_line(room.name, concat("-- ", user.name, " sets the topic: ", text));
}

void reset(Lock& lock, Client& user, std::string_view /*rest*/) {
    for (auto next = chat.rooms.begin(); next != chat.rooms.end();) {
        Room& room = *next++;  // which may end
        room.history.clear();
        if (&room != &public_room()) empty_room(lock, room, user, "reset");
    }
    chat.blocked.clear();
    log_event(concat("reset by ", user.name, "."));
    info(lock, user, "Everyone is in public, nobody is blocked, and what was said is forgotten.");
}

bool can_be_shut_out(std::string_view name) {
    return valid_name(name) && !same_name(name, "admin") && !same_name(name, "server");
}

void block(Lock& lock, Client& user, std::string_view rest) {
    if (!can_be_shut_out(rest)) return error(lock, user, "That is no name that can be blocked.");
    if (!chat.blocked.insert(fold(rest)).second) return error(lock, user, rest, " is blocked already.");
    log_event(concat(rest, " was blocked by ", user.name, "."));
    info(lock, user, "What ", rest, " says reaches only the admin and the operator. /unblock undoes it.");
}

void unblock(Lock& lock, Client& user, std::string_view rest) {
    if (chat.blocked.erase(fold(rest)) == 0) return error(lock, user, rest, " is not blocked.");
    log_event(concat(rest, " was unblocked by ", user.name, "."));
    info(lock, user, rest, " is heard again.");
}

// The line of a client that is blocked goes to the operator and the admin alone.
void divert(const Lock& lock, Client& user, std::string_view line) {
    log_line(user.room->name, concat("(blocked) ", user.name, ": ", line));
    const auto admin = chat.by_name.find("admin");
    if (admin != chat.by_name.end()) post(lock, *admin->second, concat("BLOCKED ", user.name, " ", line));
    error(lock, user, "You are blocked: only the admin and the operator have seen that.");
}

// Returns what may be banned as it is kept. Throws a Refusal if it is no name, address or network.
std::string ban_target(std::string_view text) {
    std::string target = can_be_shut_out(text) ? std::string(text) : normal_address(std::string(text));
    if (target.empty()) throw Refusal("That is neither a name that can be banned, nor an address or a network.");
    return target;
}

// Adds a line about somebody to a file, or removes it if `line` is empty, with the mutex released. False: it is so.
bool change_unlocked(Lock& lock, LineFile& file, std::string_view who, const std::string& line) {
    lock.unlock();
    const auto accept = [&](const std::optional<std::string>& present) { return present.has_value() == line.empty(); };
    const bool changed = file.change(fold(who), accept, line);
    lock.lock();
    return changed;
}

void ban(Lock& lock, Client& user, std::string_view rest) {
    const std::string target = ban_target(rest);
    const std::string warning = concat("You come from ", user.address, " yourself, and could not log in again.");
    if (is_about(target, user.address) && !confirmed(lock, user, "ban " + target, warning)) return;
    const std::string line = concat(target, "  # by ", user.name, " at ", utc_time(std::time(nullptr)));
    const bool added = change_unlocked(lock, bans_file, target, line);
    ++chat.bans_changed;
    const std::string done = concat("banned by ", user.name, ".");
    if (added) log_event(concat(target, " was ", done));
    if (added) info(lock, user, target, " is banned. /unban undoes it.");
    if (!added) error(lock, user, target, " is banned already.");
    for (auto next = chat.by_name.begin(); next != chat.by_name.end();) {
        Client& client = *next++->second;  // which may be taken out
        const bool named = client.key == fold(target);
        if (client.admin || (!named && !is_about(target, client.address))) continue;
        const std::string advice = concat(": /ban ", client.address, " bans that too.");
        const bool shared = client.address == user.address;
        if (named) info(lock, user, client.name, " came from ", client.address, shared ? ", as you do." : advice);
        disconnect(lock, client, "BYE BAN You were " + done, "was " + done);
    }
}

void unban(Lock& lock, Client& user, std::string_view rest) {
    const std::string target = ban_target(rest);
    if (!change_unlocked(lock, bans_file, target, "")) return error(lock, user, target, " is not banned.");
    log_event(concat(target, " was unbanned by ", user.name, "."));
    info(lock, user, target, " is no longer banned.");
}

// However long the list is, it goes out only as fast as the client takes it.
void bans(Lock& lock, Client& user, std::string_view /*rest*/) {
    lock.unlock();
    std::size_t count = 0, wrong = 0;
    bans_file.for_each_line([&](std::string_view line, std::size_t number) {
        if (ban_in(line).empty()) return;
        const bool is_wrong = is_wrong_ban(line);
        ++(is_wrong ? wrong : count);
        Lock held(chat.mutex);
        info(held, user,
             is_wrong ? concat(bans_file.path, ", line ", number, wrong_ban) : clean(line.substr(0, max_line)));
        wait_until_taken(held, user);
    });
    lock.lock();
    info(lock, user, "Bans: ", count, wrong == 0 ? "." : concat(". Lines that ban nobody: ", wrong, "."));
}

void unregister(Lock& lock, Client& user, std::string_view rest) {
    if (!keeps_accounts()) return error(lock, user, "This server keeps no accounts.");
    if (!change_unlocked(lock, users_file, rest, "")) return error(lock, user, rest, " has no account.");
    log_event(concat(rest, " was unregistered by ", user.name, "."));
    info(lock, user, rest, " has no account any more; the next login makes a new one.");
}

void help(Lock& lock, Client& user, std::string_view rest);  // comes later, as it needs the table

// Who may use a command. The operator is an admin, but no client: without a connection, and always in public.
struct Right {
    std::string_view whose;
    bool (*holds)(const Client&);
};

constexpr Right everyone{"everyone", [](const auto&) { return true; }};
constexpr Right clients{"a client", [](const auto& user) { return !is_operator(user); }};
constexpr Right accounts{"somebody with an account", [](const auto& user) { return keeps_accounts() && !user.admin; }};
constexpr Right owner{"the room's owner", [](const auto& user) { return user.admin || user.room->owner == user.name; }};
constexpr Right admin{"the admin", [](const auto& user) { return user.admin; }};

struct Command {
    std::string_view name, arguments;  // those in brackets may be left out
    Right right;
    void (*run)(Lock&, Client&, std::string_view);
    std::string_view does, example;
    bool speaks = false;  // to others: not for a client that is blocked
};

constexpr Command commands[] = {
    {"help", "[COMMAND]", everyone, help, "lists what you are allowed to use, or explains one", "/help msg"},
    {"who", "[NAME]", everyone, who, "lists who is in the room; with all, in every room; or where NAME is", "/who bob"},
    {"rooms", "", everyone, rooms, "lists the rooms", "/rooms"},
    {"create", "NAME [CODE]", clients, create, "makes a room that you own", "/create den 12345"},
    {"join", "ROOM [CODE]", clients, join, "goes to a room, by name or number", "/join den 12345"},
    {"leave", "", clients, leave_room, "goes back to public", "/leave"},
    {"me", "TEXT", everyone, me, "says what you do", "/me waves", true},
    {"msg", "NAME TEXT", everyone, msg, "sends TEXT to NAME alone", "/msg bob how are you?", true},
    {"reply", "TEXT", everyone, reply, "answers the last private message", "/reply fine", true},
    {"ignore", "NAME", clients, ignore, "hides what NAME says, or shows it again", "/ignore bob"},
    {"time", "", everyone, time_of_day, "tells the server's time", "/time"},
    {"quote", "", everyone, quote, "says something wise", "/quote"},
    {"echo", "TEXT", everyone, echo, "sends TEXT back to you alone", "/echo hello"},
    {"quit", "", clients, quit_chat, "leaves the chat", "/quit"},
    {"exit", "", clients, quit_chat, "leaves the chat", "/exit"},
    {"password", "", accounts, change_password, "changes your password", "/password"},
    {"shutdown", "[CODE]", everyone, shut_down, "shuts the server down; all but the admin need the exit code",
     "/shutdown 12345"},
    {"kick", "NAME", owner, kick, "moves NAME out of your room; in public, disconnects NAME", "/kick bob"},
    {"close", "", owner, close_room, "closes your room; in public, shuts the server down", "/close"},
    {"topic", "[TEXT]", owner, set_topic, "says what the room is about; without TEXT, no more", "/topic page 12", true},
    {"fire", "NAME", admin, fire, "disconnects NAME", "/fire bob"},
    {"out", "NAME", admin, out, "brings NAME back to public", "/out bob"},
    {"ban", "NAME-OR-ADDRESS", admin, ban, "disconnects for good", "/ban 192.168.1.7"},
    {"unban", "NAME-OR-ADDRESS", admin, unban, "removes from the ban list", "/unban bob"},
    {"bans", "", admin, bans, "shows the ban list", "/bans"},
    {"unregister", "NAME", admin, unregister, "ends NAME's account", "/unregister bob"},
    {"block", "NAME", admin, block, "lets only admin and operator hear NAME", "/block bob"},
    {"unblock", "NAME", admin, unblock, "lets NAME be heard again", "/unblock bob"},
    {"reset", "", admin, reset, "ends all rooms and blocks, forgets what was said", "/reset"},
};

const Command* find_command(std::string_view name) {
    for (const Command& command : commands) {
        if (same_name(command.name, name)) return &command;
    }
    return nullptr;
}

std::string form_of(const Command& command) {
    return concat("/", command.name, command.arguments.empty() ? "" : " ", command.arguments);
}

void help(Lock& lock, Client& user, std::string_view rest) {
    if (rest.starts_with('/')) rest.remove_prefix(1);
    if (!rest.empty()) {
        const Command* command = find_command(rest);
        if (command == nullptr) return error(lock, user, "There is no such command; /help lists them.");
        return info(lock, user, form_of(*command), " ", command->does, "; for example: ", command->example);
    }
    for (const Command& command : commands) {
        if (!command.right.holds(user)) continue;
        std::string form = form_of(command);
        form.resize(std::max<std::size_t>(form.size(), 24), ' ');
        info(lock, user, form, " ", command.does);
    }
    info(lock, user, "What does not begin with / is said to the room; //text says /text.");
}

// Returns how many letters are between what two words have in common at their beginnings, and at their ends.
std::size_t distance(std::string_view a, std::string_view b) {
    for (; !a.empty() && !b.empty() && a.front() == b.front(); b.remove_prefix(1)) a.remove_prefix(1);
    for (; !a.empty() && !b.empty() && a.back() == b.back(); b.remove_suffix(1)) a.remove_suffix(1);
    return std::max(a.size(), b.size());
}

// For a command that there is not: names the nearest that the user may use.
void suggest(const Lock& lock, Client& user, std::string_view mistyped) {
    std::string hint = "/help lists them.";
    std::size_t least = std::min<std::size_t>(3, mistyped.size());  // what is farther away was hardly meant
    for (const Command& command : commands) {
        const std::size_t away = distance(fold(mistyped), command.name);
        if (away >= least || !command.right.holds(user)) continue;
        least = away;
        hint = concat("did you mean ", form_of(command), "?");
    }
    error(lock, user, "There is no command /", mistyped, "; ", hint);
}

// Does what a command asks for; line is what follows the '/'. Files may block it, with the mutex released.
void run_command(Lock& lock, Client& user, std::string_view line) {
    std::string_view rest = line;
    const std::string_view name = take_word(rest);
    const Command* command = find_command(name);
    if (command == nullptr) return suggest(lock, user, name);
    if (command->speaks && chat.blocked.contains(user.key)) return divert(lock, user, concat("/", line));
    if (!command->right.holds(user)) {
        if (command->run == kick && in_public(user)) return error(lock, user, "Only the admin can disconnect people.");
        const bool ownerless = command->right.holds == owner.holds && user.room->owner.empty();
        return error(lock, user, "Only ", (ownerless ? admin : command->right).whose, " may use ", form_of(*command),
                     "; /help lists what you are allowed to use.");
    }
    const std::string_view needed = command->arguments.substr(0, command->arguments.find('['));
    const bool too_much = command->arguments.empty() && !trim(rest).empty();
    const bool too_little = count_words(rest) < count_words(needed);
    if (too_much || too_little) return error(lock, user, "The form is: ", form_of(*command));
    try {
        command->run(lock, user, trim(rest));
    } catch (const Refusal& refusal) {
        error(lock, user, refusal.what());
    } catch (const std::runtime_error& problem) {  // of a file, while the mutex was released
        if (!lock.owns_lock()) lock.lock();
        log_event(concat(name, " failed: ", problem.what()));
        error(lock, user, "That could not be done: ", problem.what());
    }
}

// ---- 14. The operator's terminal ----------------------------------------------------------------------

// What the operator's terminal shows of a line, which a client would get as it is.
void show_operator(std::string_view line) {
    if (take_word(line) != "MSG") return log_event(line);
    const std::string_view from = take_word(line), to = take_word(line);
    log_line("-", concat(from, " -> ", to, ": ", line));
}

// The console's thread: does what the operator types, until there is no more of it. The server runs on without.
void run_console() {
    name_thread("console");
    LineBuffer lines(max_line);
    for (bool ended = false; !ended && wait_for(STDIN_FILENO, POLLIN, *stop_request);) {
        std::array<char, 1024> bytes{};
        const ssize_t count = read(STDIN_FILENO, bytes.data(), bytes.size());
        const bool in_background = count < 0 && errno == EIO && isatty(STDIN_FILENO) == 1;  // ./server &
        if (in_background && wait_for_stop(1s)) return;
        ended = count == 0 || (count < 0 && !in_background && errno != EINTR && errno != EAGAIN);
        if (count > 0) lines.add({bytes.data(), static_cast<std::size_t>(count)});
        while (const std::optional<Line> line = ended ? lines.last() : lines.next()) {
            if (line->too_long) tell_error(operator_client, "That line was too long.");
            handle_line(operator_client, clean(line->text));
        }
    }
}

// ---- 15. Discovery ------------------------------------------------------------------------------------
// Clients on the local network look for servers with a datagram to everybody. Whatever happens here, the chat goes on.

// Returns an IPv4 UDP socket, bound. Throws if it cannot be had.
Fd open_datagram_socket(in_addr_t address, in_port_t port) {
    Fd socket(::socket(AF_INET, SOCK_DGRAM, 0));
    if (!socket) throw_errno("socket");
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);  // several servers on one machine all hear a broadcast
    set_option(socket, SOL_SOCKET, SO_REUSEPORT, 1);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    at.sin_addr.s_addr = address;
    if (bind(socket.get(), generic(at), sizeof at) != 0) throw_errno("bind");
    return socket;
}

// Returns the answer to a datagram, or an empty text if it is no question.
std::string answer_to(std::string_view datagram, int port) {
    if (datagram.size() != question_bytes || take_word(datagram) != question_word) return "";
    const std::string_view nonce = take_word(datagram);
    const auto good = [](char c) { return is_letter(c) || is_digit(c); };
    if (nonce.empty() || nonce.size() > 32 || !std::all_of(nonce.begin(), nonce.end(), good)) return "";
    const Lock lock(chat.mutex);
    const std::size_t people = chat.by_name.size() - 1;  // the operator is not counted
    const char* login = keeps_accounts() ? "password" : "open";
    return concat(answer_word, " ", nonce, " ", port, " ", people, " ", login, " ", options.title);
}

// The discovery thread: answers at most ten questions a second, from the address that the server is bound to.
void run_discovery(int port) {
    if (!options.discovery) return;
    name_thread("discovery");
    try {
        in_addr bound{INADDR_ANY};
        if (!options.bind_address.empty() && inet_pton(AF_INET, options.bind_address.c_str(), &bound) != 1)
            throw std::runtime_error("it works with IPv4, and this server is bound to " + options.bind_address);
        const Fd questions = open_datagram_socket(INADDR_ANY, discovery_port);
        const Fd answers = open_datagram_socket(bound.s_addr, 0);
        Clock::time_point next{};
        while (wait_for(questions.get(), POLLIN, *stop_request)) {
            sockaddr_in from{};
            const std::string datagram = receive_datagram(questions, from);
            if (Clock::now() < next) continue;
            const std::string answer = answer_to(datagram, port);
            if (answer.empty()) continue;
            next = Clock::now() + 100ms;
            sendto(answers.get(), answer.data(), answer.size(), MSG_DONTWAIT, generic(from), sizeof from);
        }
    } catch (const std::exception& problem) {
        log_event(concat("nobody will find this server by looking for it: ", problem.what()));
    }
}

// ---- 16. Options, and what is prepared before the start -----------------------------------------------

constexpr std::size_t max_title = 128;  // bytes

constexpr const char* usage = R"( [OPTION]...
  --port N          the port to listen on (12345); 0 takes any free one
  --bind ADDRESS    listen on this address alone, not on all
  --bans FILE       the ban list (bans.txt)
  --users FILE      every name needs a password, kept here; the first login chooses it
  --rooms A,B       rooms that are there from the start, and stay
  --idle SECONDS    until whoever is silent in a room that a client made is moved to public (240); 0 is never
  --idle-public SECONDS   until whoever is silent in public, or the server's rooms, is disconnected (0)
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

// Returns the number that an option is given. Throws a UsageError if it is none from low to high.
long number_option(std::string_view option, long low, long high) {
    if (const std::optional<long> number = parse_number(optarg, low, high)) return *number;
    throw UsageError(concat(option, " takes a number from ", low, " to ", high, ", not '", optarg, "'"));
}

// Raises the limit on open files for the clients' sockets, and lowers max_clients to what it allows.
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

// Returns the names in a list, "den,lab". Throws a UsageError at a wrong one.
std::vector<std::string> room_names(std::string list) {
    std::replace(list.begin(), list.end(), ',', ' ');
    std::vector<std::string> names;
    std::set<std::string> taken{"public"};
    for (std::string_view rest = trim(list); !rest.empty(); rest = trim(rest)) {
        const std::string& name = names.emplace_back(take_word(rest));
        if (!valid_name(name)) throw UsageError("--rooms: a name is 3 to 12 letters and digits, a letter first");
        if (!taken.insert(fold(name)).second) throw UsageError("--rooms: there is only one " + name);
    }
    return names;
}

// Sets the options. Throws a UsageError at a wrong one.
void read_options(int argc, char** argv) {
    const std::vector<KnownOption> known = {
        {"port", required_argument, [] { options.port = std::to_string(number_option("--port", 0, 65535)); }},
        {"bind", required_argument, [] { options.bind_address = optarg; }},
        {"bans", required_argument, [] { bans_file.path = optarg; }},
        {"users", required_argument, [] { users_file.path = optarg; }},
        {"rooms", required_argument, [] { options.rooms = room_names(optarg); }},
        {"idle", required_argument, [] { options.idle = number_option("--idle", 0, 1000000); }},
        {"idle-public", required_argument, [] { options.idle_public = number_option("--idle-public", 0, 1000000); }},
        {"rate", required_argument, [] { options.rate = number_option("--rate", 0, 1000000); }},
        {"max-clients", required_argument, [] { options.max_clients = number_option("--max-clients", 1, 1000000); }},
        {"max-per-ip", required_argument, [] { options.max_per_ip = number_option("--max-per-ip", 0, 1000000); }},
        {"admin-password-file", required_argument, [] { options.admin_password_file = optarg; }},
        {"title", required_argument, [] { options.title = clean(optarg); }},
        {"no-discovery", no_argument, [] { options.discovery = false; }},
    };
    read_command_line(argc, argv, "chatroom-server", usage, known);
    if (options.title.size() > max_title) throw UsageError(concat("--title takes at most ", max_title, " bytes"));
    if (optind < argc) throw UsageError("unexpected argument '" + std::string(argv[optind]) + "'");
}

// Takes the admin's password from a file or the environment, or makes one; returns that, or where it is set.
std::string choose_admin_password() {
    const std::string& path = options.admin_password_file;
    std::string given;
    if (char* variable = std::getenv("CHAT_ADMIN_PASSWORD")) {
        given = variable;
        std::fill_n(variable, given.size(), '*');  // others may see what a process was started with: see proc(5)
        unsetenv("CHAT_ADMIN_PASSWORD");
    }
    if (!path.empty()) {
        std::string line;
        std::getline(std::ifstream(path), line);
        given = trim(line);  // an editor may have ended the line with CR LF
        if (given.empty()) throw_errno("read " + path, "its first line is the password");
    }
    options.admin_password = clean(given);  // as what is typed will be
    if (options.admin_password.empty())
        return options.admin_password = random_text("abcdefghjkmnpqrstuvwxyz23456789", 12);
    return "as set in " + (path.empty() ? "CHAT_ADMIN_PASSWORD" : path);
}

// Tells of lines that mean nothing. Throws if a file cannot be read, or that of the accounts cannot be changed.
void check_files() {
    try {
        bans_file.check_writable();
    } catch (const std::runtime_error& problem) {
        log_event(concat("warning: ", bans_file.path, " cannot be changed: ", problem.what()));
    }
    bans_file.for_each_line([&](std::string_view line, std::size_t number) {
        if (is_wrong_ban(line)) log_event(concat(bans_file.path, ", line ", number, wrong_ban));
    });
    if (!keeps_accounts()) return;
    choose_hash_method();
    users_file.for_each_line([&](std::string_view line, std::size_t number) {
        const bool good = !account_in(line).empty() && !hash_in(line).empty();
        if (good || trim(line).empty() || line.starts_with('#')) return;
        log_event(concat(users_file.path, ", line ", number, ": no account, not \"NAME:HASH\"; it is kept."));
    });
    users_file.check_writable();
}

void make_first_rooms() {
    const Lock lock(chat.mutex);
    make_room("public", "", "server");
    for (const std::string& name : options.rooms) make_room(name, "", "server");
    operator_client.name = operator_client.key = "server";
    operator_client.admin = true;
    operator_client.room = &public_room();
    chat.by_name["server"] = &operator_client;
}

// Ctrl-C, SIGTERM and a closed terminal end it, but for what was ignored (nohup). No lost peer, nor a full file, does.
void handle_signals() {
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction before {};
        sigaction(number, nullptr, &before);
        if (before.sa_handler != SIG_IGN) catch_signal(number, [](int) { stop_request->set(); });
    }
    catch_signal(SIGUSR1, [](int) {});  // without SA_RESTART: it interrupts the log's write()
    for (const int number : {SIGPIPE, SIGXFSZ, SIGTTIN, SIGTTOU}) catch_signal(number, SIG_IGN);
}

// Returns the port in an IPv4 or IPv6 address, in network byte order.
in_port_t& port_in(sockaddr* address) {
    return address->sa_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(address)->sin6_port
                                          : reinterpret_cast<sockaddr_in*>(address)->sin_port;
}

// Listens on every address of options.bind_address, and returns the port: if any will do, all get that of the first.
int open_listeners(std::vector<Fd>& listeners) {
    in_port_t port = 0;
    const AddressList addresses = resolve(options.bind_address, options.port);
    for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
        if (port != 0) port_in(at->ai_addr) = port;
        Fd listener = open_listener(*at);
        if (!listener) continue;
        socklen_t length = at->ai_addrlen;
        if (getsockname(listener.get(), at->ai_addr, &length) != 0) throw_errno("getsockname");
        port = port_in(at->ai_addr);
        listeners.push_back(std::move(listener));
    }
    if (listeners.empty()) throw std::runtime_error("there is no address to listen on");
    return ntohs(port);
}

// Does all that can fail before the server listens, and returns the admin's password, or where it was set. Throws.
std::string prepare() {
    handle_signals();
    prepare_descriptors();
    check_files();
    if (options.title.empty()) {
        std::array<char, max_title> host{};
        gethostname(host.data(), host.size() - 1);
        options.title = clean(host.data());
    }
    options.exit_code = random_text("0123456789", 5);
    make_first_rooms();
    return choose_admin_password();
}

}  // namespace

int main(int argc, char** argv) {
    return run_program(argv[0], [&] {
        read_options(argc, argv);
        run();
        return 0;
    });
}
