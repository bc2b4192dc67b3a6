// Waits for many sockets at once: what both the load generator and the event-loop servers of the benchmark stand on.
// poll() is told all sockets at each call, which takes longer than the work itself where there are 10,000; so it is
// epoll(7) where there is one.
#pragma once

#ifdef __linux__
#include <sys/epoll.h>
#else
#include <poll.h>
#endif
#include <netinet/tcp.h>

#include <vector>

#include "common.hpp"

namespace bench {

#ifdef __linux__
class Poller {
   public:
    void add(int fd) {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.fd = fd;
        if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) throw_errno("epoll_ctl");
    }
    void remove(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

    // Returns the sockets from which something can be read, or that have ended.
    const std::vector<int>& wait(int timeout_ms) {
        const int count = epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), timeout_ms);
        ready_.clear();
        for (int i = 0; i < count; ++i) ready_.push_back(events_[static_cast<std::size_t>(i)].data.fd);
        return ready_;
    }

   private:
    Fd epoll_{epoll_create1(EPOLL_CLOEXEC)};
    std::vector<epoll_event> events_ = std::vector<epoll_event>(1024);
    std::vector<int> ready_;
};
#else
class Poller {
   public:
    void add(int fd) { polled_.push_back({fd, POLLIN, 0}); }
    void remove(int fd) {
        std::erase_if(polled_, [fd](const pollfd& one) { return one.fd == fd; });
    }
    const std::vector<int>& wait(int timeout_ms) {
        poll(polled_.data(), static_cast<nfds_t>(polled_.size()), timeout_ms);
        ready_.clear();
        for (const pollfd& one : polled_) {
            if (one.revents != 0) ready_.push_back(one.fd);
        }
        return ready_;
    }

   private:
    std::vector<pollfd> polled_;
    std::vector<int> ready_;
};
#endif

inline void set_option(int fd, int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof value);
}

inline sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

// Returns a socket bound to a port of 127.0.0.1, any free one for 0, and puts that one's number there.
inline Fd bind_loopback(int& port) {
    Fd socket(::socket(AF_INET, SOCK_STREAM, 0));
    set_option(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    sockaddr_in address = loopback(port);
    socklen_t length = sizeof address;
    auto* plain = reinterpret_cast<sockaddr*>(&address);
    if (bind(socket.get(), plain, length) != 0) throw_errno("bind");
    if (getsockname(socket.get(), plain, &length) != 0) throw_errno("getsockname");
    port = ntohs(address.sin_port);
    return socket;
}

}  // namespace bench
