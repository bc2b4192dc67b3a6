// Networks of a test's own, cut off from all others: for what must not be tried on a real one. Linux alone has them.
#pragma once

#ifdef __linux__
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <string>

#include "harness.hpp"

namespace harness {

// A network with nothing in it but its loopback interface, which is down. The system takes it away once nothing uses
// it any more: also when a test fails or is killed.
class Network {
   public:
    Network() {
        const Descriptor outside = current();
        if (::unshare(CLONE_NEWNET) != 0) throw Failure("unshare: no network of its own");
        network_ = current();
        enter(outside);
    }

    // Whether this test may make networks: else GTEST_SKIP.
    static bool can_be_made() {
        try {
            const Network trial;
            return true;
        } catch (const Failure&) {
            return false;
        }
    }

    // What the thread starts and connects in the function is in this network, and stays there.
    template <typename Function>
    auto inside(const Function& function) const {
        const Return back{current()};
        enter(network_);
        return function();
    }

    [[nodiscard]] bool shell(const std::string& commands) const {
        return inside([&] { return Process("/bin/sh", {.args = {"-c", commands}}).wait_exit() == 0; });
    }

    // Makes 127.0.0.1 work, and with it 127.255.255.255, everybody on it.
    void raise_loopback() const {
        inside([] {
            const Descriptor socket(::socket(AF_INET, SOCK_DGRAM, 0), "socket");
            ifreq request{};
            std::strcpy(request.ifr_name, "lo");
            request.ifr_flags = IFF_UP | IFF_RUNNING;
            if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) throw Failure("SIOCSIFFLAGS");
        });
    }

   private:
    struct Return {
        Descriptor outside;
        ~Return() { ::setns(outside.get(), CLONE_NEWNET); }
    };

    static Descriptor current() { return {::open("/proc/thread-self/ns/net", O_RDONLY), "open of a network"}; }
    static void enter(const Descriptor& network) {
        if (::setns(network.get(), CLONE_NEWNET) != 0) throw Failure("setns");
    }

    Descriptor network_;
};

}  // namespace harness
#endif
