// The full-screen client against all that may come to it: servers that mean harm or die at any moment, keys cut to
// pieces, pastes and answers of the terminal that do not end, signals in every state, and whatever a person may do.
//
//   CHATROOM_HOSTILE_ROUNDS=10    ten times as many random lines and actions
//   CHATROOM_HOSTILE_SEED=N       the same ones again; the seed is printed
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <clocale>
#include <csignal>
#include <functional>
#include <future>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "harness.hpp"
#include "proof.hpp"
#include "terminal.hpp"

using namespace harness;
using namespace proof;

namespace {

const char* const locale_set = std::setlocale(LC_CTYPE, "C.UTF-8");  // for the width of characters

const std::string f1 = "\33OP", f2 = "\33OQ", escape = "\33", up = "\33[A", page_up = "\33[5~", page_down = "\33[6~";
const std::string paste_begins = "\33[200~", paste_ends = "\33[201~";

long rounds() { return from_environment("CHATROOM_HOSTILE_ROUNDS", 1); }

std::mt19937 random_choices() {
    const auto seed = static_cast<unsigned>(from_environment("CHATROOM_HOSTILE_SEED", 1));
    std::cout << "CHATROOM_HOSTILE_SEED=" << seed << std::endl;
    return std::mt19937(seed);
}

Launch on_port(int port, const Lines& more = {}) {
    Launch launch{.args = {"127.0.0.1", std::to_string(port)},
                  .env = {"TZ=UTC0", "NO_COLOR"},
                  .limits = {{RLIMIT_CORE, 0}},
                  .terminal = Window{}};
    launch.args.insert(launch.args.end(), more.begin(), more.end());
    return launch;
}

// A client whose server is the test. Its first words are those of a server unless there are others.
struct Client : OnScreen {
    explicit Client(const std::string& first =
                        "WELCOME alice Welcome.\nROOM public - - You are in public.\n"
                        "WHO public 2 alice bob",
                    const Lines& more = {})
        : Client(std::make_unique<Listener>(), first, more) {}

    // Sends lines, and waits until the last of them has been shown.
    void tell(const std::string& lines) {
        const std::string end = "told " + std::to_string(++told_);
        server.send_raw(lines + "\nINFO " + end + "\n");
        wait(end);
    }

    // What is typed next is said, and heard.
    void expect_line(const std::string& line) {
        server.expect([&](std::string_view got) { return got == line; });
        server.send_line("SAY alice " + line);
    }

    void wait_line(const std::string& line) {
        wait("with this in the last row: " + line, [&](const Terminal& t) { return t.line(23) == "alice> " + line; });
    }

    std::unique_ptr<Listener> listener;
    Peer server;

   private:
    Client(std::unique_ptr<Listener> from, const std::string& first, const Lines& more)
        : OnScreen(client_path(), on_port(from->port(), more)), listener(std::move(from)), server(listener->accept()) {
        if (first.empty()) return;
        tell(first);
        if (first.find("ROOM ") == std::string::npos) return;
        server.expect_next("/rooms");  // the list, for Tab
        tell("ROOMS 0 rooms");
    }
    int told_ = 0;
};

bool is_given_back(OnScreen& screen, const termios& before) {
    screen.see();
    const termios after = screen.process.modes();
    const Terminal& terminal = screen.terminal;
    return before.c_lflag == after.c_lflag && before.c_iflag == after.c_iflag && before.c_oflag == after.c_oflag &&
           !terminal.alternate && terminal.modes == std::set<int>{7, 25} && terminal.titles_saved == 0;
}

termios fresh_modes() { return Pty("/bin/cat").modes(); }

// ---------------------------------------------------------------------------------------------------------------------
// Pastes

TEST(Paste, ThatIsTooLargeIsRefusedInWords) {
    Client client;
    client.type("draft");
    std::string text = paste_begins;
    for (int i = 0; i < 40'000; ++i) text += "/quit and more of it, line after line\r";
    client.process.type(text + paste_ends, 60);
    client.wait("too large");
    client.type("ed\r");
    client.expect_line("drafted");
}

TEST(Paste, ThatDoesNotEndCountsAsEnded) {
    Client client;
    client.type(paste_begins + "pasted");
    client.wait_line("pasted");
    client.type(" typed\r");
    client.expect_line("pasted typed");
}

TEST(Paste, MayHoldAnyCharacter) {
    Client client;
    client.type(paste_begins +
                "a\x03"
                "b\x1A"
                "c\x1C"
                "d\33[A\33[20e" +
                paste_ends + "\r");
    client.server.expect([](std::string_view line) {
        return line ==
               "a\xEF\xBF\xBD"
               "b\xEF\xBF\xBD"
               "c\xEF\xBF\xBD"
               "d\xEF\xBF\xBD[A\xEF\xBF\xBD[20e";
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Keys

// Wherever a key is cut in two, it is that key, if the other half comes soon: within 50 ms, so that a busy machine gets
// more than one try.
TEST(Keys, MayBeCutAtEveryByte) {
    const std::string keys =
        "b\x01"
        "a\33[Fc\33[D\33OC\33[1;5D\33[Fd\33[3~e\xE6\xBC\xA2\x7F\xC3\xA9\33[I\33[<64;5;5M\33[<65;5;5M" +
        paste_begins + "f\33[A\xE6\xBC\xA2g" + paste_ends +
        "\33]11;rgb:0000/0000/0000\a\33]11;rgb:0000/0000/0000\33\\\33P1$r0m\33\\\33[?62;c\33[24;80R\33[99;99~h\33[O";
    const std::string line =
        "abcde\xC3\xA9"
        "f\xEF\xBF\xBD[A\xE6\xBC\xA2gh";
    Client client;
    for (std::size_t cut = 1; cut < keys.size(); ++cut) {
        std::string got;
        for (int i = 0; i < 5 && got != line; ++i) {
            client.type(keys.substr(0, cut));
            client.process.wait_until_read();
            client.type(keys.substr(cut) + "\r");
            got = client.server.expect_next();
            client.server.send_line("SAY alice .");
            client.process.mark();  // or the terminal would be full some day
        }
        EXPECT_EQ(got, line) << "cut behind " << cut << " bytes";
    }
}

TEST(Keys, AreNotWhatATerminalAnswers) {
    Client client;
    for (const std::string answer : {"\33]11;rgb:1e1e/1e1e/1e1e\a", "\33]11;rgb:1e1e/1e1e/1e1e\33\\", "\33P>|foot\33\\",
                                     "\33P1+r524742=38\33\\", "\33_Gi=31;OK\33\\", "\33[?62;22c", "\33[24;80R"}) {
        client.type("a" + answer + "b\r");
        client.expect_line("ab");
    }
    client.type("a\33]11;rgb:1e1e/1e1e");  // that does not end
    client.wait_line("a");
    client.type("\rb\r");
    client.server.expect_next(re("^a$"));
    client.server.send_line("SAY alice a");
    client.server.expect_next(re("^b$"));
}

// Whoever types is not idle: an empty line says so, at most every thirty seconds.
TEST(Keys, AreLifeToTheServer) {
    Client client;
    const auto start = harness::Clock::now();
    auto typist = std::async(std::launch::async, [&] {
        for (int i = 0; i < 32; ++i) {
            client.process.type("x");
            std::this_thread::sleep_for(std::chrono::seconds(1));  // a person's pause
        }
    });
    EXPECT_EQ(client.server.expect_next("", 50), "");
    EXPECT_GT(harness::Clock::now() - start, std::chrono::seconds(29));
    typist.get();
}

TEST(Keys, InAQuestionLeaveTheChatLineAlone) {
    Client client;
    client.type("b");
    client.wait_line("b");
    client.type(f2 + "c");
    client.wait("The new room's name: ");
    client.type("\t\tx");
    client.wait("The new room's name: x");
    client.type(escape);
    client.wait_gone("The new room's name: ");
    client.type(escape);
    client.wait_line("b");
}

TEST(Keys, TabInAFullLineErasesNothing) {
    Client client;
    const std::string full = std::string(4090, 'x') + " a bo";
    client.type(full);
    client.wait("the end", [](const Terminal& t) { return t.line(23).ends_with("xxx a bo"); });
    client.type("\t\t\r");
    client.expect_line(full);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown

TEST(Shown, StaysAWindowOfLinesWhileTenThousandPass) {
    Client client;
    client.tell(numbered("SAY bob old ", 1, 200));
    client.type(page_up + page_up);
    client.wait_gone("bob: old 200");
    client.server.send_raw(numbered("SAY bob new ", 1, 10'300), 60);
    client.wait("10300 new", 60);
    int lines = 0;
    for (int row = 1; row < 22; ++row) lines += client.terminal.line(row).find("bob: ") != std::string::npos ? 1 : 0;
    EXPECT_EQ(lines, 21) << client.terminal.text();
}

TEST(Shown, IsNoCodeThatTheProtocolDoesNotKnow) {
    Client client;
    for (const std::string code :
         {"漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字", "1234", "123456", "abcde"}) {
        client.tell("ROOM den " + code + " - You are in den.\nWHO den 1 alice");
        EXPECT_EQ(client.terminal.line(0).find(code), std::string::npos);
        EXPECT_NE(client.terminal.line(0).find(" F1 Info   F2 Rooms"), std::string::npos) << client.terminal.line(0);
    }
}

TEST(Shown, IsTheTitleAgainAfterAStop) {
    Listener listener;
    OnScreen shell("/bin/sh", {.args = {"-i"}, .env = {"PS1=shell> ", "NO_COLOR"}});
    shell.wait("shell>");
    shell.type(client_path() + " 127.0.0.1 " + std::to_string(listener.port()) + "\n");
    Peer server = listener.accept();
    server.send_line("WELCOME alice Welcome.\nROOM den - - You are in den.");
    shell.wait("the title", [](const Terminal& t) { return t.title == "den - Chatroom"; });
    shell.type("\x1A");
    shell.wait("Stopped");
    shell.terminal.title = "sh";
    shell.type("fg\n");
    shell.wait("the title again", [](const Terminal& t) { return t.title == "den - Chatroom"; });
}

TEST(Leaving, DoesNotWaitForAPaste) {
    Server server({.rate = 5});
    OnScreen alice(client_path(), on_port(server.port(), {"--name", "alice"}));
    alice.wait("Welcome, alice");
    alice.type(paste_begins + numbered("line ", 1, 400) + paste_ends);
    alice.wait("Send 400 lines?");
    alice.type("\r");
    alice.wait("alice: line 30");
    alice.type("/quit\r");
    EXPECT_EQ(alice.process.wait_exit(10), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// --via

TEST(ViaACommand, ThatFloodsIsBounded) {
    const std::string flood = "sh -c 'exec 0<&- 1>&-; exec yes why >&2'";
    Launch launch{.args = {"--via", flood, "--plain"}, .limits = {{RLIMIT_AS, rlim_t{1} << 30}}};
    if (is_sanitized()) launch.limits.clear();
    Process client(client_path(), launch);
    EXPECT_EQ(client.wait_exit(20), 1);
    EXPECT_LT(client.output().size(), std::size_t{4} << 20);
}

TEST(ViaACommand, ThatIsEndedByASignalIsTold) {
    Process client(client_path(), {.args = {"--via", "sh -c 'kill -SEGV $$'", "--plain"}});
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_output(re("The command was ended by a signal: Segmentation fault"));
}

// What it says itself, as ssh does, is no word of the server's: until there is one, the terminal is the command's.
TEST(ViaACommand, HasTheTerminalUntilTheServerSpeaks) {
    TempDir dir;
    write_file(dir.path() / "s",
               "echo 'a warning' >&2; sleep 0.2; printf 'Password: ' >/dev/tty; read word </dev/tty; "
               "echo \"WELCOME alice Hello $word.\"; echo 'ROOM den - - You are in den.'; exec sleep 60");
    OnScreen client(std::filesystem::absolute(client_path()), {.args = {"--via", "sh s"}, .directory = dir.path()});
    client.wait("Password: ");
    EXPECT_FALSE(client.terminal.alternate);
    EXPECT_TRUE(client.terminal.shows("a warning"));
    client.type("secret\n");
    client.wait("Hello secret.");
    client.wait("a warning");
}

TEST(ViaACommand, ThatFailsIsToldInItsOwnWords) {
    OnScreen client(client_path(), {.args = {"--via", "sh -c 'echo no way there >&2; exit 3'"}});
    EXPECT_EQ(client.process.wait_exit(), 1);
    client.see();
    for (const char* words : {"no way there", "The command ended with status 3.", "the connection was lost"})
        EXPECT_TRUE(client.terminal.shows(words)) << client.terminal.text();
}

TEST(ViaACommand, IsCleanedBeforeItIsShown) {
    TempDir dir;
    write_file(dir.path() / "s", "echo 'WELCOME alice Welcome.'; echo 'ROOM den - - You are in den.'; exec sleep 60");
    OnScreen client(std::filesystem::absolute(client_path()),
                    {.args = {"--via", "sh s \33[31m\a\t\n"}, .directory = dir.path()});
    client.wait("You are in den.");
    EXPECT_NE(client.terminal.line(0).find("sh s \xEF\xBF\xBD[31m\xEF\xBF\xBD"), std::string::npos)
        << client.terminal.text();
    EXPECT_EQ(client.terminal.strange, Lines{});
    EXPECT_EQ(client.terminal.bells, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Signals

// Each state in which a signal may come, by the name that a failure shows.
std::vector<std::pair<std::string, std::function<std::unique_ptr<Client>()>>> states() {
    const auto with = [](const std::string& first, const std::string& keys, const std::string& shown) {
        return [=] {
            auto client = std::make_unique<Client>(first);
            client->type(keys);
            if (!shown.empty()) client->wait(shown);
            return client;
        };
    };
    const std::string in = "WELCOME alice Welcome.\nROOM public - - You are in public.\nWHO public 2 alice bob";
    return {{"before the greeting", with("", "", "")},
            {"at the name", with("NICK Your name?", "al", "Your name: al")},
            {"at a password", with("PASS The password?", "se", "Password: **")},
            {"in the chat", with(in, "half a", "half a")},
            {"in the rooms", with(in, f2, "Exit code")},
            {"in the help", with(in, f1, "Ctrl-G")},
            {"at a question of its own", with(in, f2 + "c", "The new room's name: ")},
            {"in a paste", with(in, paste_begins + "x", "")},
            {"on its way back", [=] {
                 auto client = std::make_unique<Client>(in);
                 client->server.reset();
                 client->wait("trying again");
                 return client;
             }}};
}

TEST(Signal, ThatEndsItGivesTheTerminalBackInEveryState) {
    const termios before = fresh_modes();
    std::vector<int> signals = {SIGHUP,  SIGINT,  SIGQUIT, SIGILL,    SIGTRAP, SIGABRT, SIGBUS,  SIGFPE,  SIGSEGV,
                                SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGTERM, SIGPROF, SIGXCPU, SIGXFSZ, SIGSYS};
#ifdef SIGRTMIN
    signals.insert(signals.end(), {SIGRTMIN, SIGRTMAX});
#endif
    for (const auto& [state, enter] : states()) {
        for (const int number : signals) {
            const auto client = enter();
            client->process.signal(number);
            EXPECT_EQ(client->process.wait_exit(), -number) << state;
            EXPECT_TRUE(is_given_back(*client, before)) << state << ", signal " << number;
        }
    }
}

TEST(Signal, ThatComesAgainWhileItEndsTheClientGivesTheTerminalBackToo) {
    const termios before = fresh_modes();
    for (int i = 0; i < 10; ++i) {
        Client client;
        client.type(std::string(20, '\x03'));
        EXPECT_EQ(client.process.wait_exit(), -SIGINT);
        EXPECT_TRUE(is_given_back(client, before));
    }
}

TEST(Signal, ThatDoesNotEndAProcessDoesNotEndTheClient) {
    Client client;
    for (const int number : {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGPIPE}) client.process.signal(number);
    client.type("still here\r");
    client.expect_line("still here");
}

// Has the client paint much on a terminal that takes nothing, until nothing moves.
void clog(Process& client, Peer& server) {
    client.pause_reading(true);
    for (int i = 0; i < 10'000; ++i) {
        std::string lines;
        for (int line = 0; line < 200; ++line)
            lines += "SAY bob " + std::string(200, static_cast<char>('a' + i % 26)) + "\n";
        if (!server.try_send(lines, 0.2)) return;
    }
    ADD_FAILURE() << "the client has taken everything";
}

// A terminal that takes nothing holds up nobody who wants the client to end.
TEST(Signal, EndsItWhenTheTerminalTakesNothing) {
    const termios before = fresh_modes();
    for (const int number : {SIGTERM, SIGHUP, SIGINT}) {
        Client client;
        clog(client.process, client.server);
        client.process.signal(number);
        EXPECT_EQ(client.process.wait_exit(10), -number);
        EXPECT_EQ(client.process.modes().c_lflag, before.c_lflag);
    }
}

TEST(Signal, ThatEndsItTakesWhatWasTypedAheadWithIt) {
    Listener listener;
    TempDir dir;
    const std::string pid = (dir.path() / "pid").string();
    OnScreen script("/bin/sh", {.args = {"-c", "sh -c 'echo $$ >" + pid + "; exec " + client_path() + " 127.0.0.1 " +
                                                   std::to_string(listener.port()) + "'; exec cat"}});
    Peer server = listener.accept();
    server.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.");
    script.wait("Welcome.");
    clog(script.process, server);
    script.type("x");
    script.process.wait_until_read();
    script.type("typed ahead\r");  // which it does not read: it could not show the x yet
    EXPECT_EQ(kill(std::stoi(read_file(pid)), SIGTERM), 0);
    script.process.pause_reading(false);
    script.wait("the end", [](const Terminal& t) { return !t.alternate; });
    script.type("the next line\n");
    script.wait("its echo and cat's", [](const Terminal& t) { return count_in(t.text(), "the next line") == 2; });
    EXPECT_FALSE(contains(script.process.output(), "typed ahead")) << script.terminal.text();
}

// A client that a shell has started, as alice.
struct InShell : OnScreen {
    explicit InShell(const Server& server) : OnScreen("/bin/sh", {.args = {"-i"}, .env = {"PS1=shell> ", "NO_COLOR"}}) {
        wait("shell>");
        const std::string pid = (dir.path() / "pid").string();
        type("sh -c 'echo $$ >" + pid + "; exec " + client_path() + " 127.0.0.1 " + std::to_string(server.port()) +
             " --name alice'\n");
        wait("Welcome, alice");
        client = std::stoi(read_file(pid));
    }

    void wait_prompt() {
        wait("its prompt", [](const Terminal& t) { return !t.alternate && t.line(t.row) == "shell>"; });
    }

    TempDir dir;
    pid_t client = -1;
};

TEST(Signal, EndsItInTheBackgroundWhereItLeavesTheScreenAlone) {
    Server server;
    InShell shell(server);
    shell.type("\x1A");
    shell.wait("its prompt", [](const Terminal& t) { return t.shows("Stopped") && t.line(t.row) == "shell>"; });
    shell.process.mark();
    shell.type("bg\n");
    shell.wait("its prompt again", [](const Terminal& t) { return t.shows("bg") && t.line(t.row) == "shell>"; });
    Peer bob(server.port(), "bob");
    bob.send_line("hello");
    bob.lines_until_echo();
    shell.type("echo $((6 * 7)) is the answer\n");
    shell.wait("42 is the answer");
    EXPECT_FALSE(shell.terminal.alternate);
    EXPECT_FALSE(shell.terminal.shows("bob: hello"));
    shell.type("fg\n");
    shell.wait("the chat again", [](const Terminal& t) { return t.alternate && t.shows("bob: hello"); });
    shell.type("\x1A");
    shell.wait_prompt();
    shell.type("bg\n");
    shell.wait_prompt();
    EXPECT_EQ(kill(shell.client, SIGTERM), 0);
    bob.expect("LEAVE alice");
}

TEST(Signal, StopsItAgainInTheBackgroundWhereItWouldHideAPassword) {
    Server server;
    OnScreen shell("/bin/sh", {.args = {"-i"}, .env = {"PS1=shell> "}});
    shell.wait("shell>");
    shell.type(client_path() + " --plain --name admin 127.0.0.1 " + std::to_string(server.port()) + "\n");
    shell.wait("password?");
    shell.type("\x1A");
    shell.wait("its prompt", [](const Terminal& t) { return t.shows("Stopped") && t.line(t.row) == "shell>"; });
    EXPECT_TRUE(shell.process.echoes());
    shell.type("bg\n");
    shell.wait("its prompt again", [](const Terminal& t) { return count_in(t.text(), "shell>") > 2; });
    shell.type("fg\n");
    EXPECT_TRUE(eventually([&] { return !shell.process.echoes(); }));
    shell.type(server.password() + "\n");
    shell.wait("Welcome, admin.");
    EXPECT_FALSE(shell.terminal.shows(server.password()));
    EXPECT_TRUE(shell.process.echoes());
}

// ---------------------------------------------------------------------------------------------------------------------
// Servers that die

// The server dies when it has said this much, and this much has been typed. What was begun as an answer stays one: on
// the way back it is not said.
TEST(ServerThatDies, InALoginEndsTheClientInWords) {
    const termios before = fresh_modes();
    for (const auto& [said, keys] :
         std::vector<std::pair<std::string, std::string>>{{"", ""},
                                                          {"NI", ""},
                                                          {"NICK Your name?", ""},
                                                          {"NICK Your name?", "al"},
                                                          {"NICK Your name?", "alice\r"},
                                                          {"PASS The password?", "sec"},
                                                          {"PASS The password?", "top secret\r"},
                                                          {"NEWPASS A new password?", "sec"},
                                                          {"NEWPASS A new password?", "top secret\r"},
                                                          {"NEWPASS A new password?", "top secret\rsec"},
                                                          {"NEWPASS A new password?", "top secret\rtop secret\r"},
                                                          {"NEWPASS A new password?", "top secret\rother\r"}}) {
        for (const bool by_reset : {false, true}) {
            Client client(said.size() < 3 ? "" : said);
            if (said.size() < 3) client.server.send_raw(said);
            client.type(keys);
            if (keys.ends_with('\r') && keys != "top secret\rother\r" && said != "NEWPASS A new password?") {
                client.server.expect_next();
            }
            by_reset ? client.server.reset() : client.server.close();
            if (said.size() > 2) {  // the screen stays: what is typed on is not for the shell
                client.wait("The connection was lost.");
                client.type("ret\r");
                client.wait("Esc Leave");
                client.type(escape);
            }
            EXPECT_EQ(client.process.wait_exit(), 1) << said << ", " << keys;
            client.see();
            const Terminal& shown = client.terminal;  // the reset may come before all else
            EXPECT_TRUE(shown.shows("he connection was lost") || shown.shows("ECONNRESET")) << shown.text();
            EXPECT_FALSE(shown.shows("ret"));
            EXPECT_TRUE(is_given_back(client, before)) << said << ", " << keys;
        }
    }
}

TEST(ServerThatDies, InAQuestionTakesTheAnswerWithIt) {
    for (const auto& [said, keys] :
         std::vector<std::pair<std::string, std::string>>{{"PASS The old password?", "se"},
                                                          {"NEWPASS A new password?", "se"},
                                                          {"NEWPASS A new password?", "secret\rse"}}) {
        Client client;
        client.type("/password\r");
        client.server.expect_next("/password");
        client.tell("PASS The old password?");
        if (said.starts_with("NEW")) {
            client.type("old\r");
            client.server.expect_next("old");
            client.tell(said);
        }
        client.type(keys);
        client.wait(": **");
        client.server.reset();
        client.wait("trying again in 1 s");
        Peer again = client.listener->accept();
        again.send_line("NICK Your name?");
        again.expect_next(re("^alice$"));
        again.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.\nINFO back");
        client.wait("-- back");
        again.expect_next("/rooms");
        again.send_line("ROOMS 0 rooms");
        client.type("cret\r");
        client.wait_gone(": **");
        client.type("hello\r");
        EXPECT_EQ(again.expect_next(), "hello") << said << ", " << keys;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Servers and people that do anything

template <typename T>
const T& any(std::mt19937& random, const std::vector<T>& all) {
    return all[random() % all.size()];
}

std::string text_of(std::mt19937& random) {
    static const Lines parts = {
        "a",  " ",      "word",   "alice",    "bob",   "漢字",   "e\u0301", "👨‍👩‍👧",
        "🇩🇪", "❤️", "\u0301", "-",        "12345", "\33[2J", "\x9B",    "\r",
        "\t", "\a",     "\x80",   "\xF0\x9F", "%",     "public", "\u202E",  "2026-01-02T03:04:05Z"};
    std::string text;
    const unsigned long count = random() % 50 == 0 ? 2000 : random() % 8;
    for (unsigned long i = 0; i < count; ++i) text += any(random, parts) + (random() % 3 == 0 ? " " : "");
    return text;
}

// Lines of a server that follows its protocol or does not. It does not end the chat, and asks nothing.
std::string line_of(std::mt19937& random) {
    static const Lines words = {"SAY",
                                "SAY bob",
                                "ME bob",
                                "MSG bob alice",
                                "BLOCKED bob",
                                "ECHO",
                                "ERR",
                                "JOIN carol",
                                "LEAVE bob",
                                "OWNER bob",
                                "WHO public 3 alice bob",
                                "WHO",
                                "ROOMS 2",
                                "LIST 1 public 2 server",
                                "LIST 2 den 1 bob 2026-01-02T03:04:05Z CODE",
                                "INFO",
                                "TOPIC",
                                "PAST 2026-01-02T03:04:05Z SAY bob",
                                "PAST",
                                "NEW",
                                ""};
    return any(random, words) + (random() % 8 == 0 ? "" : " ") + text_of(random) + "\n";
}

TEST(HostileServer, LeavesTheScreenAndTheDraftWhole) {
    std::mt19937 random = random_choices();
    Client client;
    client.type("a draft");
    for (int i = 0; i < 30 * rounds(); ++i) {
        std::string lines;
        for (int line = 0; line < 100; ++line) lines += line_of(random);
        client.tell(lines);
        ASSERT_EQ(client.terminal.strange, Lines{});
        ASSERT_EQ(client.terminal.line(23), "alice> a draft");
    }
    EXPECT_LT(resident_bytes(client.process.pid()), is_sanitized() ? 512L << 20 : 64L << 20);
}

// Does something at random; afterwards what has been painted bit by bit is what is painted when all is painted anew.
class AnyActions {
   public:
    explicit AnyActions(std::mt19937& random) : random_(random) {}

    void act() {
        const unsigned long kind = random_() % 8;
        if (kind == 0) {
            resize();
        } else if (kind < 4) {
            say();
        } else {
            type();
        }
    }

    // Has all painted anew, and then another title, so that the end of that is known.
    void compare() {
        client_.process.wait_until_read();
        client_.process.mark();
        client_.see();
        const std::size_t from = client_.process.output().size();
        client_.type("\x0C");
        const std::string anew = "\33[m\33[2J";
        client_.process.wait_output(anew);
        const std::string title = mark_title();
        client_.process.wait_output(title);
        const std::string_view painted = std::string_view(client_.process.output()).substr(from);
        Terminal before = client_.terminal;
        before.feed(painted.substr(0, painted.find(anew)));
        Terminal after = before;
        after.feed(
            painted.substr(painted.find(anew), painted.rfind("\33]2;", painted.find(title)) - painted.find(anew)));
        ASSERT_EQ(before.text(), after.text()) << history_;
        ASSERT_EQ(std::pair(before.row, before.column), std::pair(after.row, after.column)) << history_;
        ASSERT_EQ(after.strange, Lines{}) << history_;
        client_.see();
    }

   private:
    // Sends the client to a room, which its title names; returns the title.
    std::string mark_title() {
        const std::string room = "room" + std::to_string(++rooms_);
        client_.server.send_line("ROOM " + room + " - - x\nWHO " + room + " 3 alice bob carol");
        return room + " - Chatroom";
    }

    void resize() {
        const Window size{static_cast<unsigned short>(1 + random_() % 30),
                          static_cast<unsigned short>(1 + random_() % 100)};
        note("size " + std::to_string(size.rows) + "x" + std::to_string(size.columns));
        if (size.rows == window_.rows && size.columns == window_.columns) return;  // which no signal tells
        window_ = size;
        client_.resize(size);
        client_.process.wait_output("\33[2J");
    }

    void say() {
        std::string lines;
        for (unsigned long i = random_() % 5; i > 0; --i) lines += line_of(random_);
        note(lines);
        client_.server.send_raw(lines);
        client_.process.wait_output(mark_title());
    }

    void type() {
        static const Lines keys = {f1,
                                   f2,
                                   escape,
                                   up,
                                   "\33[B",
                                   "\33[C",
                                   "\33[D",
                                   "\33[H",
                                   "\33[F",
                                   page_up,
                                   page_down,
                                   "\33[3~",
                                   "\x7F",
                                   "\x01",
                                   "\x05",
                                   "\x0B",
                                   "\x15",
                                   "\x17",
                                   "\t",
                                   "\r",
                                   "\33b",
                                   "\33f",
                                   "\33[I",
                                   "\33[O",
                                   "\33[<64;5;5M",
                                   "\33[<65;5;5M",
                                   "\33[<0;3;5M",
                                   "\33[<0;3;5M",
                                   "\33[<0;70;1M",
                                   "\33[<0;5;2M",
                                   "a",
                                   "word ",
                                   "漢",
                                   "e\u0301",
                                   "👨‍👩‍👧",
                                   "/",
                                   "c",
                                   "x",
                                   "12345",
                                   "r",
                                   "i"};
        std::string typed;
        for (unsigned long i = random_() % 6; i > 0; --i) typed += any(random_, keys);
        const auto piece = [&] { return text_of(random_).substr(0, 500); };  // the terminal takes it at once
        if (random_() % 10 == 0) typed += paste_begins + piece() + "\n" + piece() + paste_ends;
        note(typed);
        client_.type(typed + "\33[99~");  // no key, but it ends what is not complete
    }

    void note(const std::string& what) {
        history_ += "[" + what + "]\n";
        if (history_.size() > 20'000) history_.erase(0, 10'000);
    }

    std::mt19937& random_;
    Client client_;
    Window window_;
    int rooms_ = 0;
    std::string history_;  // for the report
};

TEST(AnyAction, LeavesOnTheScreenWhatARedrawShows) {
    std::mt19937 random = random_choices();
    AnyActions actions(random);
    for (int i = 0; i < 300 * rounds(); ++i) {
        actions.act();
        ASSERT_NO_FATAL_FAILURE(actions.compare()) << i;
    }
}

}  // namespace
