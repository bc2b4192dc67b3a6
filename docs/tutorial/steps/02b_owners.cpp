// Errors and owners: the same for one client after the other. An error at start ends the program and says why; an error
// later ends the one client that it happened to. Each descriptor has one owner, which closes it.

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace {

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

// Talks to one client until it goes.
void serve(const Fd& client) {
    std::array<char, 1024> bytes{};
    while (true) {
        const ssize_t count = recv(client.get(), bytes.data(), bytes.size(), 0);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return;
        const std::string_view text(bytes.data(), static_cast<std::size_t>(count));
        if (!send_all(client, "You said: " + std::string(text))) return;
    }
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

// Serves one client after the other, forever.
void run(const std::string& port) {
    const AddressList addresses = resolve("127.0.0.1", port);
    const Fd listener = open_listener(*addresses);
    std::cout << "listening on port " << port_of(listener) << std::endl;
    while (true) {
        const Fd client(accept(listener.get(), nullptr, nullptr));
        if (client) serve(client);
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
