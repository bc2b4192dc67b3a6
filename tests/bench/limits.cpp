// Chat servers without a protocol, to compare with: whatever comes from one client goes to all. They neither take
// lines apart nor know names, so no chat server that sends in the same manner can be faster.
//
//   limits forward   one thread; sends each chunk on as it comes, a send() for each client: the least delay
//   limits gather    one thread; sends together what it has read from all who had something: the fewest calls
//   limits threads   a thread for each client, which itself sends to all others, under the lock: how it is often done
//
// Each prints "listening on port N" and greets who connects with a line. Who does not take what is sent is thrown out,
// but by `threads`, where everybody waits for them.

#include <csignal>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

#include "poller.hpp"

namespace {

using namespace bench;

std::array<char, 65536> buffer;

// Tells a client that from now on it gets what is said.
void greet(const Fd& client) { send(client.get(), "hello\n", 6, MSG_NOSIGNAL); }

Fd accept_from(const Fd& listener) {
    Fd client(accept(listener.get(), nullptr, nullptr));
    if (!client) throw_errno("accept");
    set_option(client.get(), IPPROTO_TCP, TCP_NODELAY, 1);
    return client;
}

// The event loop of `forward` and `gather`.
class Loop {
   public:
    Loop(Fd listener, bool gathers) : listener_(std::move(listener)), gathers_(gathers) {
        poller_.add(listener_.get());
    }

    [[noreturn]] void run() {
        while (true) {
            for (const int fd : poller_.wait(-1)) {
                if (fd == listener_.get()) {
                    clients_.push_back(accept_from(listener_));
                    poller_.add(clients_.back().get());
                    greet(clients_.back());
                } else {
                    receive(fd);
                }
            }
            send_to_all(gathered_);
            gathered_.clear();
        }
    }

   private:
    void receive(int fd) {
        const ssize_t count = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN) return;
        if (count <= 0) return remove(fd);
        const std::string_view chunk(buffer.data(), static_cast<std::size_t>(count));
        if (gathers_) {
            gathered_ += chunk;
        } else {
            send_to_all(chunk);
        }
    }

    void send_to_all(std::string_view bytes) {
        if (bytes.empty()) return;
        for (const Fd& client : clients_) {
            const ssize_t sent = send(client.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            if (std::cmp_not_equal(sent, bytes.size())) shutdown(client.get(), SHUT_RDWR);  // recv() will tell
        }
    }

    void remove(int fd) {
        poller_.remove(fd);
        std::erase_if(clients_, [fd](const Fd& client) { return client.get() == fd; });
    }

    Poller poller_;
    Fd listener_;
    std::vector<Fd> clients_;
    bool gathers_;
    std::string gathered_;
};

std::mutex mutex;
std::vector<int> everybody;  // guarded by mutex

void serve(const Fd& client) {
    std::array<char, 2048> bytes{};
    while (true) {
        const ssize_t count = recv(client.get(), bytes.data(), bytes.size(), 0);
        const std::lock_guard lock(mutex);
        if (count <= 0) {
            std::erase(everybody, client.get());
            return;
        }
        for (const int fd : everybody) send(fd, bytes.data(), static_cast<std::size_t>(count), MSG_NOSIGNAL);
    }
}

[[noreturn]] void run_threads(const Fd& listener) {
    while (true) {
        Fd client = accept_from(listener);
        const std::lock_guard lock(mutex);
        everybody.push_back(client.get());
        greet(client);
        std::thread([fd = std::move(client)] { serve(fd); }).detach();
    }
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view kind = argc == 2 ? argv[1] : "";
    if (kind != "forward" && kind != "gather" && kind != "threads") {
        std::cerr << "usage: limits forward|gather|threads\n";
        return 2;
    }
    try {
        std::signal(SIGPIPE, SIG_IGN);
        int port = 0;
        Fd listener = bind_loopback(port);
        if (listen(listener.get(), SOMAXCONN) != 0) throw_errno("listen");
        std::cout << "listening on port " << port << std::endl;
        if (kind == "threads") run_threads(listener);
        Loop(std::move(listener), kind == "gather").run();
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
