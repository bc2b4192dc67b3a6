// Rooms and commands: everyone is in exactly one room, and a line that begins with "/" is looked up in a table.

#include <list>

#include "common.hpp"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

constexpr std::size_t max_backlog = 1024UL * 1024;  // bytes that may wait for a client; with more it is dropped
constexpr std::size_t pause_backlog = 64UL * 1024;  // the same: from here on its lines are not read
constexpr std::size_t max_said = 256UL * 1024;      // bytes that may wait for the sender
constexpr auto max_stall = 10s;                     // in which a client for which some wait takes none: it is dropped
constexpr auto close_limit = 2s;  // for a client to take its last lines, and as long to close its side
constexpr int burst = 30;         // lines that a client may send before the rate counts
constexpr auto retry = 10ms;      // after which a full socket is tried again

struct Options {
    long rate = 10;  // lines a second from one client, after the burst; 0 is no limit
};

Options options;

struct Room;

struct Client {
    explicit Client(Fd fd) : socket(std::move(fd)) {}

    Fd socket;

    // Only its own thread.
    LineBuffer inbox{max_line};
    std::string name;
    Clock::time_point next_allowed = Clock::now();  // when the lines that came so far are paid for: see throttle()

    // Only the sender's thread.
    std::string unsent;             // lines for its socket
    const char* problem = nullptr;  // why it gets no more at all, if so
    bool releasing = false;         // once `unsent` is empty, its own thread may close the socket
    Clock::time_point progress;     // when the socket last took something, or something began to wait

    std::atomic<std::size_t> backlog = 0;  // bytes of `unsent`: set by the sender, read by its own thread
    std::atomic<bool> closing = false;     // it has left the chat, and its thread is about to close the socket

    // Guarded by chat.mutex.
    std::string key;                  // the name, folded
    Room* room = nullptr;             // null before the login is complete, and while closing
    bool released = false;            // the sender is done with it
    std::condition_variable changed;  // its own thread waits here for all of these
    std::thread thread;
};

struct Room {
    int number;
    std::string name;
    std::string owner = {};             // empty: nobody, in public
    std::vector<Client*> members = {};  // in the order in which they came
};

struct Chat {
    std::mutex mutex;
    std::unordered_map<std::string, Client*> by_name;  // by key: everyone who is logged in
    std::list<Room> rooms = {{0, "public"}};           // the first is public
    int last_number = 0;                               // of a room
    std::thread last_ended;                            // the client's thread that ended last: see end_thread()
};

Chat chat;

Room& public_room() { return chat.rooms.front(); }

void run_command(const Lock& lock, Client& user, std::string_view line);

// A piece of work for the sender.
struct Mail {
    enum Action { say, tell, enter, leave, release };
    Action action;
    int room;        // say, enter, leave: the number of the room
    Client* client;  // all but say
    std::string text = {};
};

void drop(const Lock& lock, Client& client, std::string_view reason);

class Sender {
   public:
    // Queues a piece of mail. Any thread. Never blocks.
    void queue(const Lock& /*held*/, Mail mail) {
        mail_bytes_ += mail.text.size();
        mail_.push_back(std::move(mail));
        work_.notify_one();
    }

    // Waits while much mail waits for the sender: a flood slows those who flood. Any client's thread.
    void wait_for_space(Lock& lock) {
        space_.wait(lock, [&] { return mail_bytes_ <= max_said; });
    }

    // The sender's thread.
    void run() {
        while (true) {
            collect();
            for (const Mail& mail : collected_) deliver(mail);
            for (Client* client : in_hand_) send_to(*client);
            std::erase_if(in_hand_, [&](Client* client) { return is_done(*client); });
        }
    }

   private:
    // Takes the mail. Waits until there is some, or until it is time to try full sockets again.
    void collect() {
        Lock lock(chat.mutex);
        for (Client* client : news_) report(lock, *client);
        news_.clear();
        collected_.clear();
        const auto has_mail = [&] { return !mail_.empty(); };
        if (!in_hand_.empty()) {
            work_.wait_for(lock, retry, has_mail);
        } else {
            work_.wait(lock, has_mail);
        }
        collected_.swap(mail_);
        mail_bytes_ = 0;
        space_.notify_all();
    }

    // Tells the others, and the client's own thread, what has become of what was to be sent.
    static void report(const Lock& lock, Client& client) {
        if (client.problem != nullptr) drop(lock, client, client.problem);
        client.released = client.releasing && client.unsent.empty();
        client.changed.notify_all();
    }

    void deliver(const Mail& mail) {
        Client* client = mail.client;
        switch (mail.action) {
            case Mail::say:
                for (Client* member : rooms_[mail.room]) add(*member, mail.text);
                break;
            case Mail::tell: add(*client, mail.text); break;
            case Mail::enter: rooms_[mail.room].push_back(client); break;
            case Mail::leave:
                std::erase(rooms_[mail.room], client);
                if (rooms_[mail.room].empty()) rooms_.erase(mail.room);
                break;
            case Mail::release:
                client->releasing = true;
                take_in_hand(*client);
                break;
        }
    }

    void add(Client& client, std::string_view text) {
        if (client.problem != nullptr) return;
        if (client.unsent.empty()) client.progress = Clock::now();
        client.unsent += text;
        take_in_hand(client);
    }

    void take_in_hand(Client& client) {
        if (std::count(in_hand_.begin(), in_hand_.end(), &client) == 0) in_hand_.push_back(&client);
    }

    // One call, which takes what the socket has space for.
    static void send_to(Client& client) {
        if (client.unsent.empty()) return;
        const ssize_t count = send(client.socket.get(), client.unsent.data(), client.unsent.size(), MSG_DONTWAIT);
        if (count < 0 && errno != EAGAIN && errno != EINTR) client.problem = "lost the connection.";
        if (count <= 0) return;
        client.unsent.erase(0, static_cast<std::size_t>(count));
        client.progress = Clock::now();
    }

    // Whether nothing is left to be sent to a client; then it is no longer in hand.
    bool is_done(Client& client) {
        if (client.unsent.size() > max_backlog) client.problem = "could not keep up: 1 MiB waited.";
        if (!client.unsent.empty() && Clock::now() - client.progress > max_stall)
            client.problem = "took nothing of what was sent for 10 seconds.";
        if (client.problem != nullptr) client.unsent.clear();
        client.backlog = client.unsent.size();
        if (!client.unsent.empty()) return false;
        if (client.problem != nullptr || client.releasing) news_.push_back(&client);
        return true;
    }

    // Guarded by chat.mutex.
    std::vector<Mail> mail_;
    std::size_t mail_bytes_ = 0;
    std::condition_variable work_, space_;

    // Only the sender's thread.
    std::vector<Mail> collected_;                          // mail of this round
    std::unordered_map<int, std::vector<Client*>> rooms_;  // by number: who is in it
    std::vector<Client*> in_hand_;                         // those for whom something is unsent
    std::vector<Client*> news_;                            // clients to be told of in report()
};

Sender sender;

template <typename... Parts>
std::string concat(const Parts&... parts) {
    std::string text;
    ((text += parts), ...);
    return text;
}

// Sends a client a line, which is given without its end.
void post(const Lock& lock, Client& to, std::string_view line) {
    if (!to.closing) sender.queue(lock, {Mail::tell, 0, &to, concat(line, "\n")});
}

void error(const Lock& lock, Client& to, std::string_view text) { post(lock, to, concat("ERR ", text)); }

template <typename... Parts>
void info(const Lock& lock, Client& to, const Parts&... parts) {
    post(lock, to, concat("INFO ", parts...));
}

// Tells a room's members what happened to somebody.
void announce(const Lock& lock, const Room& room, std::string_view word, std::string_view name, std::string_view text) {
    sender.queue(lock, {Mail::say, room.number, nullptr, concat(word, " ", name, " ", text, "\n")});
}

// Says something in a client's name, in its room. word is SAY or ME.
void say(const Lock& lock, const Client& from, std::string_view word, std::string_view text) {
    sender.queue(lock, {Mail::say, from.room->number, nullptr, concat(word, " ", from.name, " ", text, "\n")});
}

void enter(const Lock& lock, Client& client, Room& room) {
    announce(lock, room, "JOIN", client.name, "joined.");
    room.members.push_back(&client);
    client.room = &room;
    sender.queue(lock, {Mail::enter, room.number, &client});
    post(lock, client,
         concat("ROOM ", room.name, " - ", room.owner.empty() ? "-" : room.owner, " You are in ", room.name, "."));
}

void end_room(const Lock& /*held*/, const Room& room) {
    chat.rooms.remove_if([&](const Room& other) { return &other == &room; });
}

// Takes a client out of its room. A room that a client made ends with its last member; if its owner leaves before that,
// the member who has been there longest owns it.
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

// Takes a client out of all that others can see. No line of it counts from here on.
void remove(const Lock& lock, Client& client, std::string_view reason) {
    if (client.closing.exchange(true)) return;
    if (client.room == nullptr) return;
    leave(lock, client, reason);
    chat.by_name.erase(client.key);
}

// Ends a client's time here by its own thread.
void quit(const Lock& lock, Client& client, std::string_view last_line, std::string_view reason) {
    post(lock, client, last_line);
    remove(lock, client, reason);
}

// The same by any other thread: under shutdown() the client's own thread returns from recv(), and closes the socket
// itself.
void disconnect(const Lock& lock, Client& client, std::string_view last_line, std::string_view reason) {
    quit(lock, client, last_line, reason);
    shutdown(client.socket.get(), SHUT_RD);
}

// The same for a client which cannot be sent anything any more, not even a last line. Any thread.
void drop(const Lock& lock, Client& client, std::string_view reason) {
    remove(lock, client, reason);
    shutdown(client.socket.get(), SHUT_RDWR);
}

// Waits in recv() for more of what the client sends. False: nothing more will come.
bool receive(Client& client) {
    std::array<char, 2048> bytes{};
    const ssize_t count = recv(client.socket.get(), bytes.data(), bytes.size(), 0);
    if (count > 0) client.inbox.add({bytes.data(), static_cast<std::size_t>(count)});
    return count > 0 || (count < 0 && errno == EINTR);
}

// Waits until the client may be heard: while it is ahead of its rate, and while it does not read what is sent to it.
void throttle(Client& client) {
    if (options.rate > 0) {
        const auto interval = Clock::duration(1s) / options.rate;
        client.next_allowed = std::max(client.next_allowed, Clock::now()) + interval;
        std::this_thread::sleep_until(client.next_allowed - burst * interval);
    }
    while (client.backlog > pause_backlog && !client.closing) std::this_thread::sleep_for(retry);
}

void tell_error(Client& to, std::string_view text) { error(Lock(chat.mutex), to, text); }

// Returns the client's next line, cleaned, or nothing at the end. Blocks until there is one.
std::optional<std::string> read_line(Client& client) {
    while (!client.closing) {
        std::optional<Line> line = client.inbox.next();
        if (!line && receive(client)) continue;
        if (!line) line = client.inbox.last();
        if (!line) break;
        throttle(client);
        if (!line->too_long) return clean(line->text);
        tell_error(client, "That line was longer than " + std::to_string(max_line) + " bytes, and was not sent.");
    }
    quit(Lock(chat.mutex), client, "BYE QUIT You ended the connection.", "left.");
    return std::nullopt;
}

// Does what a line asks for.
void handle_line(Client& user, std::string_view line) {
    if (trim(line).empty()) return;
    Lock lock(chat.mutex);
    sender.wait_for_space(lock);
    if (user.closing) return;
    if (line.starts_with('/')) return run_command(lock, user, line.substr(1));
    say(lock, user, "SAY", line);
}

// Takes a name for a client. Returns what is wrong with it, if anything.
std::string claim_name(const Lock& lock, Client& client, const std::string& name) {
    if (!valid_name(name)) return "A name has 3 to 12 letters and digits, a letter first.";
    if (!chat.by_name.emplace(fold(name), &client).second) return name + " is here already: take another name.";
    client.name = name;
    client.key = fold(name);
    post(lock, client, concat("WELCOME ", name, " Welcome, ", name, "."));
    enter(lock, client, public_room());
    return "";
}

// Asks for a name until it is one. False: the client is gone.
bool log_in(Client& client) {
    while (true) {
        post(Lock(chat.mutex), client, "NICK Your name?");
        const std::optional<std::string> name = read_line(client);
        const Lock lock(chat.mutex);
        if (!name || client.closing) return false;
        const std::string problem = claim_name(lock, client, std::string(trim(*name)));
        if (problem.empty()) return true;
        error(lock, client, problem);
    }
}

// Waits until the sender has sent the last lines, and ends the connection so that they arrive: close() while bytes are
// unread sends a reset, which may overtake them. So the peer is given some time to close its side first.
void end_connection(Client& client) {
    {
        Lock lock(chat.mutex);
        sender.queue(lock, {Mail::release, 0, &client});
        if (!client.changed.wait_for(lock, close_limit, [&] { return client.released; })) {
            shutdown(client.socket.get(), SHUT_RDWR);
            client.changed.wait(lock, [&] { return client.released; });
        }
    }
    shutdown(client.socket.get(), SHUT_WR);
    const timeval limit{close_limit.count(), 0};
    setsockopt(client.socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    std::array<char, 2048> ignored{};
    const auto deadline = Clock::now() + close_limit;
    while (recv(client.socket.get(), ignored.data(), ignored.size(), 0) > 0 && Clock::now() < deadline) continue;
}

// Every thread is joined: one that ends joins the one that ended before it.
void end_thread(Client& client) {
    Lock lock(chat.mutex);
    client.changed.wait(lock, [&] { return client.thread.joinable(); });  // it may not have been stored yet
    std::thread before = std::exchange(chat.last_ended, std::move(client.thread));
    lock.unlock();
    if (before.joinable()) before.join();
}

// The thread of one client, which it owns.
void serve(Client* owned) {
    const std::unique_ptr<Client> client(owned);
    if (log_in(*client)) {
        while (const std::optional<std::string> line = read_line(*client)) handle_line(*client, *line);
    }
    end_connection(*client);
    end_thread(*client);
}

// Returns a socket that listens there. Throws if it cannot.
Fd open_listener(const addrinfo& at) {
    Fd socket(::socket(at.ai_family, at.ai_socktype, at.ai_protocol));
    if (!socket) throw_errno("socket");
    set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);  // or a restart would have to wait for old connections
    if (bind(socket.get(), at.ai_addr, at.ai_addrlen) != 0) throw_errno("bind");
    if (listen(socket.get(), SOMAXCONN) != 0) throw_errno("listen");
    return socket;
}

// Returns the port that a socket is bound to.
int port_of(const Fd& socket) {
    sockaddr_in address{};
    socklen_t length = sizeof address;
    if (getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) throw_errno("getsockname");
    return ntohs(address.sin_port);
}

void start_thread(std::unique_ptr<Client> client) {
    std::thread thread(serve, client.get());
    Client* served = client.release();  // it is the thread's now, which waits in end_thread() for what follows
    const Lock lock(chat.mutex);
    served->thread = std::move(thread);
    served->changed.notify_all();
}

// Accepts clients and starts a thread for each, forever.
void run(const std::string& port) {
    const AddressList addresses = resolve("127.0.0.1", port);
    const Fd listener = open_listener(*addresses);
    std::cout << "listening on port " << port_of(listener) << std::endl;
    std::thread(&Sender::run, &sender).detach();
    while (true) {
        Fd socket(accept(listener.get(), nullptr, nullptr));
        if (socket) start_thread(std::make_unique<Client>(std::move(socket)));
    }
}

// ---------------------------------------------------------------------------------------------------------
// Commands

struct Request {
    const Lock& lock;
    Client& user;
    std::string_view text;  // what follows the command
};

Room* find_room(std::string_view name) {
    const auto found = std::find_if(chat.rooms.begin(), chat.rooms.end(),
                                    [&](const Room& room) { return same_name(room.name, name); });
    return found == chat.rooms.end() ? nullptr : &*found;
}

void command_create(const Request& r) {
    if (!valid_name(r.text))
        return error(r.lock, r.user, "A room's name has 3 to 12 letters and digits, a letter first.");
    if (find_room(r.text) != nullptr) return error(r.lock, r.user, "There is a room of that name: /join it.");
    chat.rooms.push_back({++chat.last_number, std::string(r.text), r.user.name});
    move(r.lock, r.user, chat.rooms.back(), "left the room.");
}

void command_join(const Request& r) {
    Room* room = find_room(r.text);
    if (room == nullptr) return error(r.lock, r.user, "There is no such room: /rooms lists them.");
    if (room != r.user.room) move(r.lock, r.user, *room, "left the room.");
}

void command_kick(const Request& r) {
    const auto found = chat.by_name.find(fold(r.text));
    if (r.user.room->owner != r.user.name) return error(r.lock, r.user, "Only the owner of a room can do that.");
    if (found == chat.by_name.end() || found->second->room != r.user.room)
        return error(r.lock, r.user, "There is nobody of that name in the room.");
    disconnect(r.lock, *found->second, "BYE KICK You were disconnected.", "was disconnected.");
}

void command_rooms(const Request& r) {
    for (const Room& room : chat.rooms) info(r.lock, r.user, room.name, ": ", std::to_string(room.members.size()));
}

void command_leave(const Request& r) {
    if (r.user.room != &public_room()) move(r.lock, r.user, public_room(), "left the room.");
}

void command_help(const Request& r);

struct Command {
    std::string_view name;
    void (*run)(const Request&);
    std::string_view help;
};

constexpr Command commands[] = {
    {"help", command_help, "lists the commands"},
    {"me", [](const Request& r) { say(r.lock, r.user, "ME", r.text); }, "TEXT: what you do"},
    {"rooms", command_rooms, "lists the rooms"},
    {"create", command_create, "NAME: makes a room, and enters it"},
    {"join", command_join, "ROOM: enters it"},
    {"leave", command_leave, "goes back to public"},
    {"kick", command_kick, "NAME: disconnects somebody from the room that you own"},
    {"quit", [](const Request& r) { quit(r.lock, r.user, "BYE QUIT Goodbye.", "left."); }, "ends the connection"},
};

void command_help(const Request& r) {
    for (const Command& command : commands) info(r.lock, r.user, "/", command.name, " ", command.help);
}

void run_command(const Lock& lock, Client& user, std::string_view line) {
    const std::string_view name = take_word(line);
    for (const Command& command : commands) {
        if (command.name == name) return command.run({lock, user, trim(line)});
    }
    error(lock, user, concat("There is no command /", name, ": /help lists them."));
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // send() to a client that is gone then fails with EPIPE, and does not end us
    if (argc > 2) options.rate = std::atol(argv[2]);
    try {
        run(argc > 1 ? argv[1] : "12345");
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
