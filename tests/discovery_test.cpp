// Discovery, the server's side: what is answered to those who look for servers, and to all the rest that comes. Each
// test has a network of its own, since the port is always the same and real ones are not to be disturbed.
#include "network.hpp"
#include "proof.hpp"

#ifdef __linux__
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace harness;

namespace {

const std::string everybody = "127.255.255.255";

std::string question(const std::string& nonce) {
    std::string text = "CHATROOM? " + nonce + " ";
    text.resize(256, ' ');
    return text;
}

struct Datagram {
    std::string from, text;
};

// Asks, and hears what is answered.
class Seeker {
   public:
    Seeker() : socket_(::socket(AF_INET, SOCK_DGRAM, 0), "socket") {
        const int yes = 1;
        ::setsockopt(socket_.get(), SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes);
    }

    void send(const std::string& text, const std::string& to = everybody) const {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(12345);
        ::inet_pton(AF_INET, to.c_str(), &address.sin_addr);
        const auto* generic = reinterpret_cast<const sockaddr*>(&address);
        if (::sendto(socket_.get(), text.data(), text.size(), 0, generic, sizeof address) < 0) throw Failure("sendto");
    }

    // Returns what comes next, or nothing at the deadline.
    [[nodiscard]] std::optional<Datagram> receive(const Deadline& until) const {
        pollfd polled{socket_.get(), POLLIN, 0};
        if (::poll(&polled, 1, until.left_ms()) <= 0) return std::nullopt;
        std::array<char, 65536> bytes{};
        sockaddr_in from{};
        socklen_t length = sizeof from;
        const ssize_t count =
            ::recvfrom(socket_.get(), bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&from), &length);
        std::array<char, INET_ADDRSTRLEN> host{};
        ::inet_ntop(AF_INET, &from.sin_addr, host.data(), host.size());
        if (count < 0) throw Failure("recvfrom");
        return Datagram{host.data(), {bytes.data(), static_cast<std::size_t>(count)}};
    }

    // Asks again and again until an answer to this question comes, for of too many none is answered; and returns it.
    [[nodiscard]] Datagram ask(const std::string& nonce, const std::string& to = everybody,
                               const Deadline& until = {}) const {
        while (!until.passed()) {
            send(question(nonce), to);
            while (const std::optional<Datagram> answer = receive(0.15)) {
                if (answer->text.starts_with("CHATROOM! " + nonce + " ")) return *answer;
            }
        }
        throw Failure("no answer to the question " + nonce);
    }

   private:
    Descriptor socket_;
};

// A server that answers, and somebody who looks for it.
class Discovery : public testing::Test {
   protected:
    void SetUp() override {
        if (!Network::can_be_made()) GTEST_SKIP() << "this user cannot make networks here";
        network.emplace();
        network->raise_loopback();
        network->inside([&] { seeker.emplace(); });
    }

    void start(const Lines& more = {}) {
        Launch launch{.args = {"--port", "0", "--bans", dir_.path() / "bans.txt"}};
        launch.args.insert(launch.args.end(), more.begin(), more.end());
        network->inside([&] { server.emplace(server_path(), launch); });
        port = server->wait_output(re("listening on port (\\d+)\\s"));
        server->wait_output(re("^exit code: "));
    }

    void TearDown() override {
        if (!server) return;
        server->signal(SIGTERM);
        EXPECT_EQ(server->wait_exit(), 0);
    }

    // Connects to the server, under a name.
    [[nodiscard]] Peer peer(const char* name, const std::string& host = "127.0.0.1") const {
        return network->inside([&] {
            Peer peer(std::stoi(port), {.host = host});
            peer.login(name);
            return peer;
        });
    }

    [[nodiscard]] std::string users() const { return dir_.path() / "users.txt"; }

    std::optional<Network> network;
    std::optional<Process> server;
    std::optional<Seeker> seeker;
    std::string port;

   private:
    TempDir dir_;
};

TEST_F(Discovery, AnswersWithPortPeopleLoginAndTitle) {
    start({"--title", "The blue room"});
    EXPECT_EQ(seeker->ask("Abc123").text, "CHATROOM! Abc123 " + port + " 0 open The blue room");
    const Peer alice = peer("alice"), bob = peer("bob");
    const Datagram answer = seeker->ask("second");
    EXPECT_EQ(answer.text, "CHATROOM! second " + port + " 2 open The blue room");
    EXPECT_EQ(answer.from, "127.0.0.1");
}

TEST_F(Discovery, TellsThatNamesNeedPasswordsAndTheHostsName) {
    start({"--users", users()});
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    EXPECT_EQ(seeker->ask("Abc").text, "CHATROOM! Abc " + port + " 0 password " + host.data());
}

TEST_F(Discovery, AnswersFromTheAddressThatTheServerIsBoundTo) {
    start({"--bind", "127.0.0.2", "--title", "bound"});
    EXPECT_EQ(seeker->ask("Abc").from, "127.0.0.2");
    const Peer alice = peer("alice", "127.0.0.2");
}

TEST_F(Discovery, CanBeTurnedOff) {
    start({"--no-discovery"});
    const Peer alice = peer("alice");
    seeker->send(question("Abc"));
    EXPECT_FALSE(seeker->receive(0.5));
}

TEST_F(Discovery, AnswerIsNeverLongerThanItsQuestion) {
    start({"--title", std::string(128, 'x'), "--users", users()});  // longer ones are refused at the start
    const std::string nonce(32, 'n');
    const std::string answer = seeker->ask(nonce).text;
    EXPECT_LE(answer.size(), 256U);
    EXPECT_TRUE(answer.starts_with("CHATROOM! " + nonce + " " + port + " 0 password xxx")) << answer;
}

TEST_F(Discovery, TitleIsCleaned) {
    start({"--title", "a\33[31m\tb\nc\x80"});
    const std::string replaced = "\xEF\xBF\xBD";
    EXPECT_TRUE(seeker->ask("Abc").text.ends_with(" a" + replaced + "[31m b" + replaced + "c" + replaced));
}

// Each is sent right before a question: the first answer would be to it, if there was one.
TEST_F(Discovery, AnswersNothingToWhatIsNoQuestion) {
    start();
    Lines garbage = {"",
                     "CHATROOM?",
                     "CHATROOM? Abc",
                     "CHATROOM? Abc ",
                     question("Abc") + " ",
                     question("Abc").substr(1),
                     question(""),
                     question(std::string(33, 'n')),
                     question("a-b"),
                     question("a\nb"),
                     question("\xC3\xA4"),
                     question("Abc").substr(0, 255),
                     std::string(256, '\0'),
                     std::string(60000, 'x')};
    std::string lower = question("Abc"), answer = "CHATROOM! Abc 12345 0 open x";
    lower.replace(0, 8, "chatroom");
    answer.resize(256, ' ');  // or two servers would answer each other for ever
    garbage.insert(garbage.end(), {lower, answer});
    for (const std::string& text : garbage) {
        const Deadline until;
        std::optional<Datagram> first;
        while (!first && !until.passed()) {
            seeker->send(text);
            seeker->send(question("right"));
            first = seeker->receive(0.05);
        }
        ASSERT_TRUE(first);
        EXPECT_TRUE(first->text.starts_with("CHATROOM! right ")) << first->text;
    }
}

TEST_F(Discovery, AnswersAtMostTenQuestionsASecond) {
    start();
    const auto begin = Clock::now();
    const Deadline until(2);
    int answers = 0;
    for (int i = 0; !until.passed(); ++i) {
        seeker->send(question("n" + std::to_string(i)));
        if (seeker->receive(0.002)) ++answers;
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    EXPECT_LE(answers, 10 * seconds + 1);
    EXPECT_GE(answers, 2);
}

// Promise 2: nobody in the chat notices.
TEST_F(Discovery, IsNotHarmedByTenThousandDatagramsOfGarbage) {
    start({"--rate", "0"});
    Peer alice = peer("alice"), bob = peer("bob");
    EXPECT_NE(seeker->ask("begun").text, "");  // or its sockets may not be there yet
    const long descriptors = descriptor_count(server->pid()), threads = thread_count(server->pid());
    const long bytes = resident_bytes(server->pid());
    std::mt19937 random(4);  // NOLINT(bugprone-random-generator-seed): so that a failure comes again
    const Deadline until;
    for (int i = 0; i < 10000; ++i) {
        std::string text = i % 3 == 0 ? question("Abc") : std::string();
        text.resize(i % 3 == 2 ? random() % 2000 : 256);
        for (int j = 0; j < 3 && !text.empty(); ++j) text[random() % text.size()] = static_cast<char>(random());
        if (!text.empty()) text[0] = '-';  // or some would be questions still
        seeker->send(text);
        if (i % 100 != 0) continue;
        const std::string hello = "hello " + std::to_string(i);
        alice.send_line(hello);
        bob.expect("SAY alice " + hello, until);
    }
    EXPECT_TRUE(seeker->ask("still").text.starts_with("CHATROOM! still " + port + " 2 open "));
    EXPECT_EQ(descriptor_count(server->pid()), descriptors);
    EXPECT_LE(thread_count(server->pid()), threads);   // the console may just have been ending
    const long more = proof::is_sanitized() ? 64 : 4;  // MiB: a sanitizer keeps what was freed
    EXPECT_LT(resident_bytes(server->pid()), bytes + (more << 20));
    EXPECT_FALSE(re("CHATROOM").find(server->output())) << "it is in the log";
}

TEST_F(Discovery, IsAnsweredByAllServersOnAMachine) {
    start({"--title", "first"});
    const Launch launch{.args = {"--port", "0", "--title", "second", "--bans", users()}};
    const auto second = network->inside([&] { return std::make_unique<Process>(server_path(), launch); });
    std::set<std::string> titles;
    for (const Deadline until; titles.size() < 2 && !until.passed();) {
        seeker->send(question("Abc"));
        while (const std::optional<Datagram> answer = seeker->receive(0.15)) {
            titles.insert(answer->text.substr(answer->text.rfind(' ') + 1));
        }
    }
    EXPECT_EQ(titles, (std::set<std::string>{"first", "second"}));
    second->signal(SIGTERM);
    EXPECT_EQ(second->wait_exit(), 0);
}

}  // namespace
#endif
