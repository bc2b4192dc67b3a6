// How the client gets to a server: it finds it on the local network, is told an address, or goes through a program.
// All of it happens in a network of the test's own, with nothing but a loopback: no question leaves this machine.
#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <clocale>
#include <csignal>
#include <string>
#include <vector>

#include "harness.hpp"
#include "terminal.hpp"

using namespace harness;

namespace {

const char* const locale_set = std::setlocale(LC_CTYPE, "C.UTF-8");

// Leaves the network of the machine for an empty one, of which the loopback is up. False: the system does not let us.
bool enter_network_of_our_own() {
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
    const Fd socket(::socket(AF_INET, SOCK_DGRAM, 0));
    ifreq request{};
    std::string("lo").copy(request.ifr_name, sizeof request.ifr_name);
    request.ifr_flags = IFF_UP;
    return ioctl(socket.get(), SIOCSIFFLAGS, &request) == 0;
}

const bool alone = enter_network_of_our_own();  // before there is any thread

#define NEED_NETWORK() \
    if (!alone) GTEST_SKIP() << "this system does not let us make a network namespace"

sockaddr_in address_of(const std::string& host, int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(port));
    inet_pton(AF_INET, host.c_str(), &address.sin_addr);
    return address;
}

// Answers the client's questions as the test says.
class Answerer {
   public:
    Answerer() : socket_(bound("0.0.0.0", discovery_port)) {}

    // Waits for a question, and returns its nonce.
    std::string nonce() {
        char bytes[512];
        pollfd polled{socket_.get(), POLLIN, 0};
        if (poll(&polled, 1, 5000) <= 0) throw Failure("no question came");
        socklen_t length = sizeof from_;
        ssize_t count = recvfrom(socket_.get(), bytes, sizeof bytes, 0, reinterpret_cast<sockaddr*>(&from_), &length);
        std::string_view question(bytes, static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
        EXPECT_EQ(question.size(), 256U);
        EXPECT_EQ(take_word(question), "CHATROOM?");
        std::string word(take_word(question));
        EXPECT_TRUE(!word.empty() && word.size() <= 32);
        return word;
    }

    void answer(const std::string& text, const std::string& from = "127.0.0.1") {
        const Descriptor sender = bound(from, 0);
        sendto(sender.get(), text.data(), text.size(), 0, reinterpret_cast<sockaddr*>(&from_), sizeof from_);
    }

   private:
    static Descriptor bound(const std::string& host, int port) {
        Descriptor socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
        sockaddr_in address = address_of(host, port);
        if (bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) throw Failure("bind");
        return socket;
    }

    Descriptor socket_;
    sockaddr_in from_{};
};

Launch with(const std::vector<std::string>& args) { return {.args = args, .env = {"TZ=UTC0"}}; }

// A server that answers questions.
struct Answering : private TempDir, Process {
    explicit Answering(const std::string& title)
        : Process(server_path(), {.args = {"--port", "0", "--title", title, "--bans", path() / "bans.txt"}}),
          port(std::stoi(wait_output(re("listening on port ([0-9]+)\\s")))) {}
    int port;
};

int count_lines(const std::string& text) { return static_cast<int>(std::count(text.begin(), text.end(), '\n')); }

// ---------------------------------------------------------------------------------------------------------------------
// On the local network

TEST(Find, ListsWhatAnswers) {
    NEED_NETWORK();
    Answerer others;
    Process client(client_path(), with({"--list"}));
    const std::string begin = "CHATROOM! " + others.nonce() + ' ';
    others.answer(begin + "4711 3 open Room 12");
    others.answer(begin + "4712 0 password The \xE2\x82\xAC lab", "127.0.0.2");
    EXPECT_EQ(client.wait_exit(), 0);
    client.wait_output(re("^  1  Room 12 +127\\.0\\.0\\.1:4711 +3 there$"));
    client.wait_output(re("^  2  The \xE2\x82\xAC lab +127\\.0\\.0\\.2:4712 +0 there, password needed$"));
}

TEST(Find, BelievesNoStranger) {
    NEED_NETWORK();
    Answerer others;
    Process client(client_path(), with({"--list"}));
    const std::string nonce = others.nonce(), begin = "CHATROOM! " + nonce + ' ';
    for (const std::string& wrong :
         {std::string("CHATROOM! x" + nonce + " 1 1 open forged"), "CHATROOM? " + nonce + " 1 1 open forged", begin,
          begin + "0 1 open forged", begin + "65536 1 open forged", begin + "1 -1 open forged",
          begin + "1 1 maybe forged", begin + "x 1 open forged", begin + "1 1 open " + std::string(400, 'x'),
          std::string("\0\xFF", 2)}) {
        others.answer(wrong);
    }
    others.answer(begin + "1000 1 open \33[2Jevil\r\n\x9B name");
    for (int i = 0; i < 3; ++i) others.answer(begin + "1000 1 open again");
    for (int i = 1; i <= 200; ++i) others.answer(begin + std::to_string(2000 + i) + " 1 open many");
    EXPECT_EQ(client.wait_exit(), 0);
    const std::string r = "\xEF\xBF\xBD";
    client.wait_output(r + "[2Jevil" + r + r + r + " name");
    EXPECT_EQ(count_lines(client.output()), 64) << client.output();
    for (const char* wrong : {"again", "forged"}) EXPECT_EQ(client.output().find(wrong), std::string::npos) << wrong;
    EXPECT_EQ(client.output().find('\33'), std::string::npos);
}

TEST(Find, TakesTheOnlyServerAtEnter) {
    NEED_NETWORK();
    Answering server("Room 12");
    Peer bob(server.port, "bob");
    OnScreen client(client_path(), with({}));
    client.wait("Its number, or another HOST:PORT [1]: ", 10);
    EXPECT_TRUE(client.terminal.shows("1  Room 12")) << client.terminal.text();
    EXPECT_TRUE(client.terminal.shows("127.0.0.1:" + std::to_string(server.port) + "  "));
    EXPECT_TRUE(client.terminal.shows("1 there"));
    client.type("\n");
    client.wait("Your name: ");
    client.type("alice\r");
    client.wait("Welcome, alice");
    client.type("/quit\r");
    EXPECT_EQ(client.process.wait_exit(), 0);
    bob.expect("LEAVE alice");
}

TEST(Find, TakesAChoiceOfSeveral) {
    NEED_NETWORK();
    Server server;
    Answerer others;
    OnScreen client(client_path(), with({}));
    const std::string begin = "CHATROOM! " + others.nonce() + ' ';
    others.answer(begin + "4711 3 open Room 12");
    others.answer(begin + std::to_string(server.port()) + " 3 open Room 13");
    client.wait("Its number, or another HOST:PORT: ", 10);
    client.type("\n3\n2\n");  // nothing is none of them, and there is no third
    client.wait("Your name: ");
}

TEST(Find, AsksWhenNobodyAnswers) {
    NEED_NETWORK();
    Server server;
    OnScreen client(client_path(), with({}));
    client.wait("Host [127.0.0.1]: ", 10);
    client.type("\n");
    client.wait("Port [12345]: ");
    client.type(std::to_string(server.port()) + "\n");
    client.wait("Your name: ");
    OnScreen given_up(client_path(), with({}));
    given_up.wait("Host [127.0.0.1]: ", 10);
    given_up.type("\x03");
    EXPECT_EQ(given_up.process.wait_exit(), -SIGINT);
    Process list(client_path(), with({"--list"}));
    EXPECT_EQ(list.wait_exit(), 1);
    list.wait_error("No server has answered.");
}

// A second host: a namespace that a shell makes, tied to ours by a virtual cable.
TEST(Find, ReachesAnotherHost) {
    NEED_NETWORK();
    TempDir dir;
    const std::string script =
        "cd \"$0\"; echo ready; read _; ip addr add 10.9.8.2/24 dev far && ip link set far up && "
        "exec \"$1\" --port 4711 --title 'Far away'";
    Process host("/usr/bin/unshare",
                 {.args = {"-n", "sh", "-c", script, dir.path(), std::filesystem::absolute(server_path())}});
    host.wait_output("ready");
    Process cable("/bin/sh",
                  {.args = {"-c", "ip link add near type veth peer name far netns " + std::to_string(host.pid()) +
                                      " && ip addr add 10.9.8.1/24 dev near && ip link set near up"}});
    if (cable.wait_exit() != 0) GTEST_SKIP() << "no virtual cable can be made: " << cable.errors();
    host.write("go\n");
    host.wait_output("listening on port");
    OnScreen client(client_path(), with({"--name", "alice"}));
    client.wait("HOST:PORT [1]: ", 10);
    EXPECT_TRUE(client.terminal.shows("Far away")) << client.terminal.text();
    EXPECT_TRUE(client.terminal.shows("10.9.8.2:4711"));
    client.type("\n");
    client.wait("Welcome, alice");
    host.wait_output("alice logged in from ");
    client.type("/quit\r");
    EXPECT_EQ(client.process.wait_exit(), 0);
    Process unplugged("/bin/sh", {.args = {"-c", "ip link del near"}});
    unplugged.wait_exit();
}

// ---------------------------------------------------------------------------------------------------------------------
// At an address

TEST(Address, IsUnderstoodInItsForms) {
    NEED_NETWORK();
    Server server;
    const std::string port = std::to_string(server.port());
    std::vector<std::vector<std::string>> forms = {{"127.0.0.1:" + port},
                                                   {"localhost:" + port},
                                                   {"[127.0.0.1]:" + port},
                                                   {"127.0.0.1", port},
                                                   {"localhost", port}};
    for (std::vector<std::string> form : forms) {
        form.insert(form.end(), {"--name", "alice"});
        Process client(client_path(), with(form));
        client.write("/quit\n");
        EXPECT_EQ(client.wait_exit(), 0) << form[0];
        server.wait_output("public -- alice left.");  // only then her name is free
        server.mark();
    }
    Process wrong(client_path(), with({"127.0.0.1:http"}));
    EXPECT_EQ(wrong.wait_exit(), 2);
    wrong.wait_error("a port is a number from 1 to 65535");
}

TEST(Address, OfIPv6) {
    NEED_NETWORK();
    need_address("::1");
    Server server({.args = {"--bind", "::1"}});
    Process client(client_path(), with({"[::1]:" + std::to_string(server.port()), "--name", "alice"}));
    client.write("/quit\n");
    EXPECT_EQ(client.wait_exit(), 0);
}

TEST(Address, ThatDoesNotAnswerIsGivenUpAfterFiveSeconds) {
    NEED_NETWORK();
    const Fd full(::socket(AF_INET, SOCK_STREAM, 0));  // its queue is full: whoever knocks hears nothing
    sockaddr_in address = address_of("127.0.0.1", 4713);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    ASSERT_EQ(bind(full.get(), generic, sizeof address), 0);
    ASSERT_EQ(listen(full.get(), 0), 0);
    std::vector<Fd> knocking;
    for (int i = 0; i < 4; ++i) {
        knocking.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        (void)connect(knocking.back().get(), generic, sizeof address);
    }
    const auto start = harness::Clock::now();
    Process client(client_path(), with({"127.0.0.1", "4713"}));
    EXPECT_EQ(client.wait_exit(10), 1);
    client.wait_error("connect to 127.0.0.1 port 4713: no answer within 5 seconds");
    EXPECT_GT(harness::Clock::now() - start, std::chrono::milliseconds(4900));
}

// ---------------------------------------------------------------------------------------------------------------------
// Through a program

bool is_there(const std::string& command) {
    return std::system(("command -v " + command + " >/dev/null").c_str()) == 0;
}

TEST(Via, AProgramReachesTheServer) {
    NEED_NETWORK();
    if (!is_there("socat")) GTEST_SKIP() << "socat is not installed";
    Server server;
    Peer bob(server.port(), "bob");
    Process client(client_path(), with({"--via", "socat - TCP:127.0.0.1:" + std::to_string(server.port())}));
    client.write("alice\nhello\n/quit\n");
    EXPECT_EQ(client.wait_exit(), 0);
    bob.expect(re("^SAY alice hello$"));
}

TEST(Via, TheFailureIsToldInTheProgramsOwnWords) {
    NEED_NETWORK();
    Process client(client_path(), with({"--via", "sh -c 'echo no route to the moon >&2; exit 3'"}));
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_output("-- no route to the moon\n");
    client.wait_output("-- The command ended with status 3.\n");
    client.wait_error("client: the connection was lost\n");
}

TEST(Via, TheProgramMayAskOnTheTerminal) {
    NEED_NETWORK();
    if (!is_there("socat")) GTEST_SKIP() << "socat is not installed";
    Server server;
    const std::string command =
        "sh -c 'printf \"Secret? \" >/dev/tty; read x </dev/tty; echo \"got $x\" >&2; exec socat - "
        "TCP:127.0.0.1:" +
        std::to_string(server.port()) + "'";
    OnScreen client(client_path(), with({"--via", command}));
    client.wait("Secret? ");
    EXPECT_FALSE(client.terminal.alternate);
    client.type("abc\n");
    client.wait("got abc");
    client.wait("Your name: ");
}

TEST(Via, TheProgramEndsWithTheClient) {
    NEED_NETWORK();
    for (const bool by_signal : {false, true}) {
        TempDir dir;
        const std::string script =
            "trap '' PIPE; echo $$ >pid; echo NICK Your name?; read name; echo BYE QUIT Goodbye.";
        write_file(dir.path() / "script", script + "; while :; do sleep 1; done");
        Launch launch = with({"--via", "sh ./script"});
        launch.directory = dir.path();
        Process client(std::filesystem::absolute(client_path()), launch);
        client.wait_output("-- Your name?");
        const pid_t helper = std::stoi(read_file(dir.path() / "pid"));
        EXPECT_EQ(kill(helper, 0), 0);
        by_signal ? client.signal(SIGTERM) : client.write("alice\n");
        EXPECT_EQ(client.wait_exit(), by_signal ? -SIGTERM : 0);
        EXPECT_TRUE(eventually([&] { return kill(helper, 0) != 0; })) << by_signal;
    }
}

TEST(Via, TlsCarriesTheChat) {
    NEED_NETWORK();
    if (!is_there("socat") || !is_there("openssl")) GTEST_SKIP() << "socat or openssl is not installed";
    TempDir dir;
    const std::string make =
        "cd \"$0\" && openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost && cat key.pem cert.pem >both.pem";
    ASSERT_EQ(Process("/bin/sh", {.args = {"-c", make, dir.path()}}).wait_exit(20), 0);
    Server server;
    Process tls("/usr/bin/env", {.args = {"socat", "-d", "-d",
                                          "OPENSSL-LISTEN:4714,bind=127.0.0.1,reuseaddr,fork,verify=0,cert=both.pem",
                                          "TCP:127.0.0.1:" + std::to_string(server.port())},
                                 .directory = dir.path()});
    tls.wait_error("listening on");
    Peer bob(server.port(), "bob");
    const std::string verified =
        "openssl s_client -quiet -verify_return_error -verify_hostname localhost -connect 127.0.0.1:4714 ";
    Process client(client_path(),
                   with({"--name", "alice", "--via", verified + "-CAfile " + (dir.path() / "cert.pem").string()}));
    client.write("in secret\n/quit\n");
    EXPECT_EQ(client.wait_exit(), 0);
    bob.expect(re("^SAY alice in secret$"));
    Process stranger(client_path(), with({"--name", "carol", "--via", verified}));
    EXPECT_EQ(stranger.wait_exit(), 1);
    stranger.wait_output("verify");
}

// ---------------------------------------------------------------------------------------------------------------------
// Again

TEST(ComingBack, HappensInThePlainFormOnATerminalToo) {
    NEED_NETWORK();
    Listener listener;
    Pty client(client_path(), with({"--plain", "127.0.0.1", std::to_string(listener.port())}));
    Peer server = listener.accept();
    server.send_raw("WELCOME alice Welcome.\nROOM den - - You are in den.\n");
    client.wait_output("You are in den.");
    server.reset();
    client.wait_output("!! The connection was lost; trying again in 1 s.");
    Peer again = listener.accept();
    again.send_line("NICK Your name?");
    again.expect_next(re("^alice$"));
    again.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.");
    again.expect_next(re("^/join den$"));
    for (const char* reason : {"SHUTDOWN The end."}) again.send_line(std::string("BYE ") + reason);
    EXPECT_EQ(client.wait_exit(), 1);
}

TEST(ComingBack, DoesNotHappenAfterADismissal) {
    NEED_NETWORK();
    for (const char* reason : {"KICK", "BAN", "SHUTDOWN", "IDLE"}) {
        Listener listener;
        Pty client(client_path(), with({"--plain", "127.0.0.1", std::to_string(listener.port())}));
        Peer server = listener.accept();
        server.send_line("WELCOME alice Welcome.");
        client.wait_output("Welcome.");
        server.send_line("BYE " + std::string(reason) + " That was it.");
        EXPECT_EQ(client.wait_exit(), 1) << reason;
        client.wait_output("-- That was it.");
    }
}

}  // namespace
