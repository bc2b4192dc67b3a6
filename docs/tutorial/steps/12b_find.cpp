// Finding a server: asks everybody on the local network, and shows who answers within a second.
// Usage: 12b_find [PORT [ADDRESS]]. The address 255.255.255.255 is everybody; 127.255.255.255 everybody on this
// machine.

#include <random>

#include "common.hpp"

namespace {

using Clock = std::chrono::steady_clock;

void ask_everybody(const Fd& socket, const std::string& question, const addrinfo& everybody) {
    set_option(socket, SOL_SOCKET, SO_BROADCAST, 1);  // without it sendto() fails with EACCES: nobody shouts by mistake
    if (sendto(socket.get(), question.data(), question.size(), 0, everybody.ai_addr, everybody.ai_addrlen) < 0)
        throw_errno("sendto");
}

// Returns an answer as it is shown to a person, or an empty text if it is none to our question.
std::string read_answer(std::string_view answer, std::string_view nonce, const std::string& host) {
    if (answer.size() > question_bytes || take_word(answer) != answer_word || take_word(answer) != nonce) return "";
    const std::string port(take_word(answer)), people(take_word(answer));
    take_word(answer);
    if (!parse_number(port, 1, 65535) || !parse_number(people, 0, 1000000)) return "";
    return clean(answer) + " is at " + host + ", port " + port + ", with " + people + " in it";
}

// Returns the answer that has come, or an empty text if it is none. Anybody may send to us what they like.
std::string receive_answer(const Fd& socket, std::string_view nonce) {
    std::array<char, question_bytes + 1> bytes{};  // one more, to see that an answer is too long
    sockaddr_in from{};
    auto* address = reinterpret_cast<sockaddr*>(&from);
    socklen_t length = sizeof from;
    const ssize_t count = recvfrom(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT, address, &length);
    if (count <= 0) return "";
    return read_answer({bytes.data(), static_cast<std::size_t>(count)}, nonce, address_text(address, length));
}

void find_servers(const std::string& port, const std::string& everybody) {
    const AddressList to = resolve(everybody, port);
    const Fd socket(::socket(AF_INET, SOCK_DGRAM, 0));
    if (!socket) throw_errno("socket");
    const std::string nonce = std::to_string(std::random_device()());
    ask_everybody(socket, make_question(nonce), *to);
    const auto until = Clock::now() + std::chrono::seconds(1);
    for (auto left = until - Clock::now(); left.count() > 0; left = until - Clock::now()) {
        pollfd polled{socket.get(), POLLIN, 0};
        poll(&polled, 1, static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count()));
        const std::string answer = receive_answer(socket, nonce);
        if (!answer.empty()) std::cout << answer << std::endl;
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        find_servers(argc > 1 ? argv[1] : "12345", argc > 2 ? argv[2] : "255.255.255.255");
        return 0;
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
