// Reaching a server from outside: through TLS, for real and as docs/internet.md tells it, and through any command
// (--via).
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "harness.hpp"

using namespace harness;

namespace {

// Returns the path of a program that the system has, or an empty text.
std::string program(const std::string& name) {
    for (const char* directory : {"/usr/bin/", "/bin/", "/usr/sbin/", "/usr/local/bin/", "/opt/homebrew/bin/"}) {
        if (::access((directory + name).c_str(), X_OK) == 0) return directory + name;
    }
    return "";
}

// Whether a process has ended, also where nobody has asked for its status yet.
bool gone(pid_t pid) {
    if (::kill(pid, 0) != 0) return true;
    const std::string stat = "/proc/" + std::to_string(pid) + "/stat";
    return std::filesystem::exists(stat) && contains(read_file(stat), ") Z ");
}

void replace(std::string& text, const std::string& part, const std::string& by) {
    const std::size_t at = text.find(part);
    if (at == std::string::npos) throw Failure("there is no '" + part + "' in: " + text);
    text.replace(at, part.size(), by);
}

// Returns the line of docs/internet.md that begins so, and has an option: what the page tells people to do is what is
// tried.
std::string quoted(const std::string& beginning, const std::string& option = "") {
    std::istringstream page(read_file("docs/internet.md"));
    for (std::string line; std::getline(page, line);) {
        if (line.starts_with(beginning) && contains(line, option)) return line;
    }
    throw Failure("docs/internet.md has no line that begins with " + beginning + " and has " + option);
}

// Returns the command in a --via with that option, to another HOST:PORT.
std::string quoted_via(const std::string& option, const std::string& host_port) {
    const std::string line = quoted("./client --via 'openssl s_client ", option), where = " chat.example.org:12346'";
    EXPECT_TRUE(line.ends_with(where)) << line;
    const std::size_t begin = line.find('\'') + 1;
    return line.substr(begin, line.size() - begin - where.size()) + " " + host_port;
}

std::string at_port(int port) { return "127.0.0.1:" + std::to_string(port); }

struct ViaClient : Process {
    ViaClient(const std::string& command, const Launch& launch = {}) : Process(client_path(), with(command, launch)) {}

    static Launch with(const std::string& command, Launch launch) {
        launch.args = {"--plain", "--name", "alice", "--via", command};
        launch.env.insert(launch.env.end(), {"TZ=UTC0", "LC_ALL=C.UTF-8"});
        return launch;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// TLS

// Runs a command in a directory.
void run(const std::string& command, const std::string& directory) {
    Process shell("/bin/sh", {.args = {"-c", command}, .directory = directory});
    ASSERT_EQ(shell.wait_exit(), 0) << command << "\n" << shell.errors();
}

// A program that listens at a port which the system gives, and says on its standard error which.
struct Relay : Process {
    Relay(const std::string& command, const std::string& directory, const std::string& port_pattern)
        : Process("/bin/sh", {.args = {"-c", "exec " + command}, .directory = directory}),
          port(std::stoi(wait_error(re(port_pattern)))) {}
    int port;
};

// Takes down what goes by, in the files `there` and `back`.
struct Recorder : Relay {
    Recorder(const std::string& directory, int to)
        : Relay("socat -d -d -r there -R back TCP-LISTEN:0,bind=127.0.0.1 TCP:" + at_port(to), directory,
                "listening on .*:(\\d+)$") {}
};

std::unique_ptr<Relay> start_socat(const std::string& directory, int server) {
    std::string command = quoted("socat OPENSSL-LISTEN:");
    replace(command, "socat OPENSSL-LISTEN:12346", "socat -d -d OPENSSL-LISTEN:0,bind=127.0.0.1");
    replace(command, "127.0.0.1:12345", at_port(server));
    return std::make_unique<Relay>(command, directory, "listening on .*:(\\d+)$");
}

std::unique_ptr<Relay> start_stunnel(const std::string& directory, int server) {
    const std::string page = read_file("docs/internet.md");
    std::string config = page.substr(page.find("foreground = yes\n"));
    config.resize(config.find("```"));
    replace(config, "accept = 12346", "accept = 127.0.0.1:0");
    replace(config, "127.0.0.1:12345", at_port(server));
    write_file(directory + "/chat.conf", "debug = info\n" + config);  // then it says which port it has
    return std::make_unique<Relay>(program("stunnel") + " chat.conf", directory, "bound to 127\\.0\\.0\\.1:(\\d+)$");
}

struct Front {
    std::string tool;
    std::unique_ptr<Relay> (*start)(const std::string& directory, int server);
};

void PrintTo(const Front& front, std::ostream* out) { *out << front.tool; }

class Tls : public testing::TestWithParam<Front> {
   protected:
    void SetUp() override {
        for (const std::string& tool : {std::string("openssl"), std::string("socat"), GetParam().tool}) {
            if (program(tool).empty()) GTEST_SKIP() << "there is no " << tool << " here";
        }
        run(quoted("openssl req "), directory);
        server = std::make_unique<Server>();
        front = GetParam().start(directory, server->port());
    }

    // A client that is given a certificate which is not the server's, and refuses.
    void expect_refusal(const std::string& command, const Launch& launch, const std::string& words) const {
        Recorder recorder(directory, front->port);
        std::string there = command;
        replace(there, at_port(front->port), at_port(recorder.port));
        ViaClient client(there, launch);
        EXPECT_EQ(client.wait_exit(), 1);
        client.wait_output(re("^\\d\\d:\\d\\d -- verify error:num=\\d+:" + words + "$"));
        client.wait_output(re("^\\d\\d:\\d\\d -- .*certificate verify failed"));
        client.wait_output("-- The command ended with status 1.");
        EXPECT_FALSE(contains(server->output(), "logged in"));
        recorder.wait_exit();
        EXPECT_FALSE(contains(read_file(path("there")), "alice"));
    }

    [[nodiscard]] std::string pinned() const { return quoted_via("-CAfile chat.crt", at_port(front->port)); }
    [[nodiscard]] std::string signed_by_authority() const {
        return quoted_via("-verify_hostname chat.example.org", at_port(front->port));
    }
    [[nodiscard]] std::string path(const std::string& name) const { return directory + "/" + name; }

    TempDir dir;
    const std::string directory = dir.path();
    std::unique_ptr<Server> server;
    std::unique_ptr<Relay> front;
};

TEST_P(Tls, CarriesAChatBothWaysThatNobodyCanRead) {
    Peer bob(server->port(), "bob");
    Recorder recorder(directory, front->port);
    std::string command = pinned();
    replace(command, at_port(front->port), at_port(recorder.port));
    ViaClient alice(command, {.directory = directory});
    bob.expect("JOIN alice", 10);
    alice.write("from alice\n");
    bob.expect("SAY alice from alice");
    bob.send_line("from bob");
    alice.wait_output(re("^\\d\\d:\\d\\d bob: from bob$"));
    for (int i = 0; i < 300; ++i) alice.write("Q and R are letters, line " + std::to_string(i) + "\n");
    bob.expect("line 299");
    alice.write("/quit\n");
    EXPECT_EQ(alice.wait_exit(), 0) << alice.output();
    alice.wait_output("-- Goodbye, alice.");
    EXPECT_FALSE(contains(alice.output(), "verify"));
    bob.expect("LEAVE alice left.");

    recorder.wait_exit();
    const std::string there = read_file(path("there")), back = read_file(path("back"));
    EXPECT_GT(there.size(), 300 * 30U);
    EXPECT_GT(back.size(), 300 * 30U);
    for (const char* word : {"alice", "from bob", "letters", "public"}) {  // three letters come up by chance
        EXPECT_FALSE(contains(there, word) || contains(back, word)) << word;
    }
}

TEST_P(Tls, RefusesAnotherCertificateOfTheSameName) {
    ASSERT_TRUE(std::filesystem::create_directory(path("other")));
    run(quoted("openssl req "), path("other"));
    expect_refusal(pinned(), {.directory = path("other")}, "self.signed certificate");
}

// As if the system trusted an authority that has signed the server's certificate.
TEST_P(Tls, TakesTheCertificateOfAnAuthorityForItsNameAlone) {
    run("openssl x509 -in chat.crt -noout -hash | xargs -I HASH cp chat.crt HASH.0", directory);
    const Launch trusting{.env = {"SSL_CERT_DIR=" + directory}};
    ViaClient alice(signed_by_authority(), trusting);
    alice.write("/quit\n");
    EXPECT_EQ(alice.wait_exit(), 0) << alice.output();
    alice.wait_output("-- Goodbye, alice.");
    server->wait_output("alice left.");

    std::string other = signed_by_authority();
    replace(other, "chat.example.org", "other.example.org");
    ViaClient deceived(other, trusting);
    EXPECT_EQ(deceived.wait_exit(), 1);
    deceived.wait_output("-- verify error:num=62:hostname mismatch");

    ASSERT_TRUE(std::filesystem::create_directory(path("other")));  // whoever has the file needs no authority's
    run(quoted("openssl req "), path("other"));
    ViaClient pinning(pinned(), {.env = trusting.env, .directory = path("other")});
    EXPECT_EQ(pinning.wait_exit(), 1);
    pinning.wait_output(re("-- verify error:num=\\d+:self.signed certificate"));
}

// What the recorder sees without it.
TEST(WithoutTls, AChatCanBeRead) {
    if (program("socat").empty()) GTEST_SKIP() << "there is no socat here";
    const TempDir dir;
    Server server;
    Recorder recorder(dir.path(), server.port());
    Process alice(client_path(), {.args = {"--plain", "--name", "alice", at_port(recorder.port)}});
    alice.write("from alice\n/quit\n");
    EXPECT_EQ(alice.wait_exit(), 0);
    recorder.wait_exit();
    EXPECT_TRUE(contains(read_file(dir.path() / "there"), "from alice"));
    EXPECT_TRUE(contains(read_file(dir.path() / "back"), "WELCOME alice"));
}

INSTANTIATE_TEST_SUITE_P(With, Tls, testing::Values(Front{"socat", start_socat}, Front{"stunnel", start_stunnel}),
                         [](const auto& front) { return front.param.tool; });

// ---------------------------------------------------------------------------------------------------------------------
// Any command

// A command in a file, which says in another what its process is.
class Command {
   public:
    explicit Command(const std::string& script) {
        write_file(dir_.path() / "command",
                   "echo $$ >" + pid_file() + ".new; mv " + pid_file() + ".new " + pid_file() + "\n" + script + "\n");
    }

    [[nodiscard]] std::string via() const { return "sh " + (dir_.path() / "command").string(); }

    // Its process; waits until it runs.
    [[nodiscard]] pid_t pid() const {
        EXPECT_TRUE(eventually([&] { return std::filesystem::exists(pid_file()); }));
        return std::stoi(read_file(pid_file()));
    }

   private:
    [[nodiscard]] std::string pid_file() const { return dir_.path() / "pid"; }
    TempDir dir_;
};

std::string socat_to(const Server& server) { return "exec socat - TCP:" + at_port(server.port()); }

class Via : public testing::Test {
   protected:
    void SetUp() override {
        if (program("socat").empty()) GTEST_SKIP() << "there is no socat here";
    }
};

TEST_F(Via, APlainProgramCarriesTheChat) {
    Server server;
    Peer bob(server.port(), "bob");
    ViaClient alice("socat - TCP:" + at_port(server.port()));
    bob.expect("JOIN alice");
    for (int i = 0; i < 1000; ++i) alice.write("line " + std::to_string(i) + "\n");
    bob.expect(re("^SAY alice line 999$"));
    bob.send_line("hello");
    alice.wait_output("bob: hello");
    alice.close_stdin();
    EXPECT_EQ(alice.wait_exit(), 0);
    EXPECT_EQ(alice.errors(), "");
}

// The page's ssh, without an ssh: what is called by that name checks how it is called.
TEST_F(Via, SshIsCalledAsThePageHasIt) {
    Server server;
    TempDir dir;
    const std::string wanted = "-W localhost:12345 teacher@chat.example.org", ssh = dir.path() / "ssh";
    write_file(ssh, "#!/bin/sh\n[ \"$*\" = '" + wanted + "' ] || exit 9\n" + socat_to(server) + "\n");
    std::filesystem::permissions(ssh, std::filesystem::perms(0755));
    const std::string line = quoted("./client --via 'ssh ");
    EXPECT_EQ(line, "./client --via 'ssh " + wanted + "'");
    ViaClient alice("ssh " + wanted, {.env = {"PATH=" + dir.path().string() + ":/usr/bin:/bin"}});
    alice.write("/quit\n");
    EXPECT_EQ(alice.wait_exit(), 0) << alice.output();
}

TEST_F(Via, ACommandThatFailsIsToldInItsOwnWords) {
    const std::vector<std::pair<std::string, std::string>> failures = {
        {"sh -c 'echo no way there >&2; exit 3'", "-- no way there\n.*-- The command ended with status 3\\."},
        {"no/such/program", "no/such/program: not found\n.*-- The command ended with status 127\\."},
        {"socat - TCP:127.0.0.1:1", "Connection refused\n.*-- The command ended with status 1\\."},
        {"printf 'a\\33[31mb\\n' >&2; false", "-- a\xEF\xBF\xBD\\[31mb$"}};
    for (const auto& [command, words] : failures) {
        ViaClient client(command);
        EXPECT_EQ(client.wait_exit(), 1) << command;
        EXPECT_NO_THROW(client.wait_output(re(words)));
        EXPECT_EQ(client.errors(), "client: the connection was lost\n");
    }
}

TEST_F(Via, TheCommandEndsWithTheClient) {
    for (const std::string way : {"/quit", "end of input", "SIGTERM", "SIGHUP", "the server's end"}) {
        Server server;
        const Command command("echo here I am >&2\n" + socat_to(server));
        ViaClient client(command.via());
        client.wait_output("-- Welcome, alice.");
        client.wait_output("-- here I am");
        const pid_t pid = command.pid();
        EXPECT_FALSE(gone(pid));
        if (way == "/quit") client.write("/quit\n");
        if (way == "end of input") client.close_stdin();
        if (way == "SIGTERM") client.signal(SIGTERM);
        if (way == "SIGHUP") client.signal(SIGHUP);
        if (way == "the server's end") server.signal(SIGTERM);
        client.wait_exit();
        EXPECT_TRUE(eventually([&] { return gone(pid); })) << way;
    }
}

// It waits for nothing that could end it by itself, nor does it heed a polite request.
TEST_F(Via, TheCommandIsEndedThoughItIsStubborn) {
    Listener server;
    const Command command("trap '' TERM HUP INT\nsocat - TCP:" + at_port(server.port()) + "\nexec sleep 1000");
    ViaClient client(command.via());
    Peer end = server.accept();
    end.send_line("WELCOME alice Welcome.");
    client.wait_output("Welcome.");
    const pid_t pid = command.pid();
    end.send_line("BYE KICK Out.");
    end.close();
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_output("Out.");
    EXPECT_TRUE(eventually([&] { return gone(pid); }));
}

TEST_F(Via, TheCommandIsAskedToEndBeforeItIsKilled) {
    const TempDir dir;
    const std::string file = dir.path() / "polite";
    Listener server;
    const Command command("trap 'echo >" + file + "; exit' TERM\nsocat - TCP:" + at_port(server.port()) +
                          "\nwhile :; do sleep 0.1; done");
    ViaClient client(command.via());
    Peer end = server.accept();
    end.send_line("BYE KICK Out.");
    end.close();
    EXPECT_EQ(client.wait_exit(), 1);
    EXPECT_TRUE(std::filesystem::exists(file));
}

TEST_F(Via, TheCommandEndsWithAClientThatStillWaits) {
    const Command command("exec sleep 1000");
    ViaClient client(command.via());
    const pid_t pid = command.pid();
    client.signal(SIGTERM);
    EXPECT_EQ(client.wait_exit(), -SIGTERM);
    EXPECT_TRUE(eventually([&] { return gone(pid); }));
}

TEST(ViaOption, NeedsACommand) {
    Process client(client_path(), {.args = {"--via", " "}});
    EXPECT_EQ(client.wait_exit(), 2);
    client.wait_error("--via takes a command");
}

TEST(ViaOption, ExcludesAHost) {
    Process client(client_path(), {.args = {"--via", "true", "127.0.0.1"}});
    EXPECT_EQ(client.wait_exit(), 2);
    client.wait_error("with --via it is the command that knows the host");
}

}  // namespace
