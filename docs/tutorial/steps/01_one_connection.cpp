// One connection: waits for one client, and tells it what each recv() brought, until the client goes.
// Not one error is looked at: that is the next step.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(argc > 1 ? std::atoi(argv[1]) : 12345));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address);
    listen(listener, 1);

    socklen_t length = sizeof address;
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    std::cout << "listening on port " << ntohs(address.sin_port) << std::endl;

    const int client = accept(listener, nullptr, nullptr);
    char bytes[1024];
    ssize_t count = 0;
    while ((count = recv(client, bytes, sizeof bytes, 0)) > 0) {
        const std::string answer = "You said: " + std::string(bytes, static_cast<std::size_t>(count));
        send(client, answer.data(), answer.size(), 0);
    }
    close(client);
    close(listener);
}
