// A thread for each client: what one says, all get. One mutex guards the list of clients.

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

// Sends all of text. False: the connection is broken.
bool send_all(const Fd& socket, std::string_view text) {
    while (!text.empty()) {
        const ssize_t count = send(socket.get(), text.data(), text.size(), 0);
        if (count < 0 && errno != EINTR) return false;
        text.remove_prefix(count < 0 ? 0 : static_cast<std::size_t>(count));
    }
    return true;
}

constexpr std::size_t max_line = 4096;  // bytes of a line, without its end

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
    std::string name;  // set before the client is listed, and never changed again
};

struct Chat {
    std::mutex mutex;
    std::vector<Client*> connected;  // guarded by the mutex, as is the order in which lines are sent
};

Chat chat;

// Says something in a client's name, to all: the speaker too.
void say(const Lock& /*held*/, const Client& from, std::string_view text) {
    const std::string line = from.name + ": " + std::string(text) + "\n";
    for (const Client* client : chat.connected) send_all(client->socket, line);
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
    if (!send_all(client.socket, "Your name?\n")) return false;
    const std::optional<std::string> name = read_line(client);
    client.name = name.value_or("");
    return name.has_value();
}

// The thread of one client, which it owns.
void serve(Client* owned) {
    const std::unique_ptr<Client> client(owned);
    if (!log_in(*client)) return;
    {
        const Lock lock(chat.mutex);
        chat.connected.push_back(client.get());
        send_all(client->socket, "Welcome, " + client->name + ".\n");
    }
    while (const std::optional<std::string> line = read_line(*client)) handle_line(*client, *line);
    const Lock lock(chat.mutex);
    std::erase(chat.connected, client.get());
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
