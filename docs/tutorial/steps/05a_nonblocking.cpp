// Never waiting in send(): what a client's socket has no space for is kept, and tried again when something is said
// next. A client for which too much is kept is dropped.

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Lock = std::unique_lock<std::mutex>;

// Throws errno as "CALL: text".
[[noreturn]] void throw_errno(const std::string& call) {
    throw std::runtime_error(call + ": " + std::generic_category().message(errno));
}

// Owns a file descriptor; the only place that closes one.
class Fd {
   public:
    explicit Fd(int fd = -1) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd() {
        if (fd_ >= 0) ::close(fd_);
    }

    [[nodiscard]] int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

   private:
    int fd_;
};

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// Returns the addresses of a host, in the order in which to try them. Throws if there are none.
AddressList resolve(const std::string& host, const std::string& port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
    if (error != 0) throw std::runtime_error("getaddrinfo " + host + ": " + gai_strerror(error));
    return {found, freeaddrinfo};
}

constexpr std::size_t max_line = 4096;              // bytes of a line, without its end
constexpr std::size_t max_backlog = 1024UL * 1024;  // bytes that may wait for a client; with more it is dropped

// Cuts what comes into lines.
class LineBuffer {
   public:
    void add(std::string_view bytes) { bytes_ += bytes; }

    // Returns the next line without its end, or nothing until more bytes are added.
    std::optional<std::string> next() {
        const std::size_t end = bytes_.find('\n');
        if (end == std::string::npos) return std::nullopt;
        std::string line = bytes_.substr(0, end);
        bytes_.erase(0, end + 1);
        if (line.ends_with('\r')) line.pop_back();  // telnet ends its lines with "\r\n"
        return line;
    }

    // Whether the line that is coming in has grown too long: it must not eat up the memory.
    [[nodiscard]] bool too_long() const { return bytes_.size() > max_line && bytes_.find('\n') == std::string::npos; }

   private:
    std::string bytes_;  // received, and not yet taken as lines
};

struct Client {
    explicit Client(Fd fd) : socket(std::move(fd)) {}

    Fd socket;

    LineBuffer inbox;  // only its own thread
    std::string name;  // set before the client is a member, and never changed again

    // Guarded by chat.mutex.
    std::string unsent;    // lines for its socket
    bool dropped = false;  // it gets no more
};

struct Chat {
    std::mutex mutex;
};

Chat chat;

// Sends what the sockets have space for, and keeps the rest. Any thread, with chat.mutex held. Never blocks.
class Sender {
   public:
    void enter(const Lock& /*held*/, Client& client) { members_.push_back(&client); }

    void leave(const Lock& /*held*/, Client& client) {
        std::erase(members_, &client);
        std::erase(in_hand_, &client);
    }

    // Sends a line to all.
    void say(const Lock& /*held*/, std::string_view line) {
        for (Client* member : members_) add(*member, line);
        send_unsent();
    }

    // Sends a line to one client.
    void tell(const Lock& /*held*/, Client& client, std::string_view line) {
        add(client, line);
        send_unsent();
    }

   private:
    void send_unsent() {
        for (Client* client : in_hand_) send_to(*client);
        std::erase_if(in_hand_, [](const Client* client) { return client->unsent.empty(); });
    }

    void add(Client& client, std::string_view text) {
        if (client.dropped) return;
        if (client.unsent.empty()) in_hand_.push_back(&client);
        client.unsent += text;
    }

    // One call, which takes what the socket has space for.
    void send_to(Client& client) {
        const ssize_t count = send(client.socket.get(), client.unsent.data(), client.unsent.size(), MSG_DONTWAIT);
        const bool broken = count < 0 && errno != EAGAIN && errno != EINTR;
        if (count > 0) client.unsent.erase(0, static_cast<std::size_t>(count));
        if (broken || client.unsent.size() > max_backlog) drop(client);
    }

    static void drop(Client& client) {
        client.dropped = true;
        client.unsent.clear();
        close(client.socket.get());  // a bug! The next chapter is about it.
    }

    // Guarded by chat.mutex.
    std::vector<Client*> members_;  // everyone who is in
    std::vector<Client*> in_hand_;  // those for whom something is unsent
};

Sender sender;

// Sends a client a line, which is given without its end.
void post(const Lock& lock, Client& to, std::string_view line) { sender.tell(lock, to, std::string(line) + "\n"); }

// Says something in a client's name, to all: the speaker too.
void say(const Lock& lock, const Client& from, std::string_view text) {
    sender.say(lock, from.name + ": " + std::string(text) + "\n");
}

// Waits in recv() for more of what the client sends. False: nothing more will come.
bool receive(Client& client) {
    std::array<char, 2048> bytes{};
    const ssize_t count = recv(client.socket.get(), bytes.data(), bytes.size(), 0);
    if (count > 0) client.inbox.add({bytes.data(), static_cast<std::size_t>(count)});
    return count > 0 || (count < 0 && errno == EINTR);
}

// Returns the client's next line, or nothing at the end. Blocks until there is one.
std::optional<std::string> read_line(Client& client) {
    while (true) {
        if (std::optional<std::string> line = client.inbox.next()) return line;
        if (client.inbox.too_long() || !receive(client)) return std::nullopt;
    }
}

// Does what a line asks for.
void handle_line(const Client& user, std::string_view line) {
    const Lock lock(chat.mutex);
    say(lock, user, line);
}

// Asks for the name: the first line that comes. False: the client is gone.
bool log_in(Client& client) {
    post(Lock(chat.mutex), client, "Your name?");
    const std::optional<std::string> name = read_line(client);
    client.name = name.value_or("");
    return name.has_value();
}

// The thread of one client, which it owns.
void serve(Client* owned) {
    const std::unique_ptr<Client> client(owned);
    if (log_in(*client)) {
        sender.enter(Lock(chat.mutex), *client);
        post(Lock(chat.mutex), *client, "Welcome, " + client->name + ".");
        while (const std::optional<std::string> line = read_line(*client)) handle_line(*client, *line);
    }
    sender.leave(Lock(chat.mutex), *client);
}

// Returns a socket that listens there. Throws if it cannot.
Fd open_listener(const addrinfo& at) {
    Fd socket(::socket(at.ai_family, at.ai_socktype, at.ai_protocol));
    if (!socket) throw_errno("socket");
    const int on = 1;
    setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // or a restart has to wait for a minute
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

// Accepts clients and starts a thread for each, forever.
void run(const std::string& port) {
    const AddressList addresses = resolve("127.0.0.1", port);
    const Fd listener = open_listener(*addresses);
    std::cout << "listening on port " << port_of(listener) << std::endl;
    while (true) {
        auto client = std::make_unique<Client>(Fd(accept(listener.get(), nullptr, nullptr)));
        if (client->socket) std::thread(serve, client.release()).detach();
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // send() to a client that is gone then fails with EPIPE, and does not end us
    try {
        run(argc > 1 ? argv[1] : "12345");
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
