// Errors: the same for one client after the other. An error at start ends the program and says why; an error later ends
// the one client that it happened to.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace {

// Throws errno as "CALL: text".
[[noreturn]] void throw_errno(const std::string& call) {
    throw std::runtime_error(call + ": " + std::generic_category().message(errno));
}

// Sends all of text. False: the connection is broken.
bool send_all(int socket, std::string_view text) {
    while (!text.empty()) {
        const ssize_t count = send(socket, text.data(), text.size(), 0);
        if (count < 0 && errno != EINTR) return false;
        text.remove_prefix(count < 0 ? 0 : static_cast<std::size_t>(count));
    }
    return true;
}

// Talks to one client until it goes.
void serve(int client) {
    std::array<char, 1024> bytes{};
    while (true) {
        const ssize_t count = recv(client, bytes.data(), bytes.size(), 0);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        const std::string_view text(bytes.data(), static_cast<std::size_t>(count));
        if (!send_all(client, "You said: " + std::string(text))) return;
    }
    close(client);
}

// Returns a socket that listens on that port. Throws if it cannot.
int open_listener(int port) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0) throw_errno("socket");
    const int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // or a restart has to wait for a minute
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) throw_errno("bind");
    if (listen(listener, SOMAXCONN) != 0) throw_errno("listen");
    return listener;
}

// Returns the port that a socket is bound to.
int port_of(int socket) {
    sockaddr_in address{};
    socklen_t length = sizeof address;
    if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) throw_errno("getsockname");
    return ntohs(address.sin_port);
}

// Serves one client after the other, forever.
void run(int port) {
    const int listener = open_listener(port);
    std::cout << "listening on port " << port_of(listener) << std::endl;
    while (true) {
        const int client = accept(listener, nullptr, nullptr);
        if (client >= 0) serve(client);
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // send() to a client that is gone then fails with EPIPE, and does not end us
    try {
        run(argc > 1 ? std::atoi(argv[1]) : 12345);
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
