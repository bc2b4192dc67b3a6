// The client on a terminal and in pipes: with the real server, and with servers that do as a test says, which may be
// hostile ones.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "terminal.hpp"

using namespace harness;

namespace {

const std::string replaced = "\xEF\xBF\xBD";  // U+FFFD

Launch to_port(int port, const Lines& more = {}) {
    Launch launch{.args = {"127.0.0.1", std::to_string(port)}, .env = {"TZ=UTC0", "LC_ALL=C.UTF-8"}};
    launch.args.insert(launch.args.end(), more.begin(), more.end());
    return launch;
}

struct Piped : Process {
    explicit Piped(int port, const Lines& more = {}) : Process(client_path(), to_port(port, more)) {}
};

struct OnTerminal : Pty {
    explicit OnTerminal(int port, const Lines& more = {"--plain"}) : Pty(client_path(), to_port(port, more)) {}
};

// A client whose server is the test.
struct ScriptedServer {
    explicit ScriptedServer(Launch launch = {}) {
        launch.args = {"--plain", "127.0.0.1", std::to_string(listener.port())};
        if (launch.env.empty()) launch.env = {"TZ=UTC0", "LC_ALL=C.UTF-8"};
        client.emplace(client_path(), launch);
        server.emplace(listener.accept());
    }
    Listener listener;
    std::optional<Process> client;
    std::optional<Peer> server;
};

// Answers the questions of a client on a terminal.
void log_in(Process& client, const std::string& name, const std::string& password = {}) {
    client.wait_output("-- Your name?");
    client.write(name + "\n");
    if (!password.empty()) {
        client.wait_output("-- The admin's password?");
        client.write(password + "\n");
    }
    client.wait_output("-- Welcome, " + name + ".");
    client.wait_output(" in public: ");
}

Lines rows_of(const std::string& text) {
    Lines rows(1);
    for (char c : text) {
        if (c == '\n') {
            rows.emplace_back();
        } else if (c != '\r') {
            rows.back() += c;
        }
    }
    if (rows.back().empty()) rows.pop_back();
    return rows;
}

// ---------------------------------------------------------------------------------------------------------------------
// Login

TEST(ClientLogin, InAPipeTakesTheNameFromTheFirstLine) {
    Server server;
    Peer bob(server.port(), "bob");
    Piped client(server.port());
    client.write("alice\nhello\n/quit\n");
    EXPECT_EQ(client.wait_exit(), 0);
    client.wait_output(re("^[0-9]{2}:[0-9]{2} alice: hello$"));
    client.wait_output(re("-- Goodbye, alice\\.\n$"));
    EXPECT_EQ(client.errors(), "");
    bob.expect("SAY alice hello");
    bob.expect("LEAVE alice left.");
}

TEST(ClientLogin, WithANameSaysAllThatComesInAPipe) {
    Server server;
    Peer bob(server.port(), "bob");
    Piped client(server.port(), {"--plain", "--name", "alice"});
    client.write("hello\nlast");  // a last line without its end is one
    client.close_stdin();
    EXPECT_EQ(client.wait_exit(), 0);
    bob.expect("JOIN alice");
    bob.expect_next(re("^SAY alice hello$"));
    bob.expect_next(re("^SAY alice last$"));
    bob.expect_next("LEAVE alice left.");
}

TEST(ClientLogin, AsksAgainForANameThatIsRefused) {
    Server server;
    Peer bob(server.port(), "bob");
    Piped piped(server.port());
    piped.write("bob\nal\nalice\nhello\n/quit\n");
    EXPECT_EQ(piped.wait_exit(), 0);
    piped.wait_output("!! Somebody here has the name bob already.");
    piped.wait_output("!! A name is 3 to 12");
    bob.expect(re("^SAY alice hello$"));

    OnTerminal typed(server.port(), {"--plain", "--name", "bob"});
    typed.wait_output("!! Somebody here has the name bob already.");
    log_in(typed, "carol");
}

TEST(ClientLogin, WithANameThatIsRefusedEndsInAPipe) {
    Server server;
    Peer bob(server.port(), "bob");
    std::string script = "printf 'alice\\nhello\\n' | \"$0\" --name Bob 127.0.0.1 " + std::to_string(server.port());
    Process client("/bin/sh", {.args = {"-c", script, client_path()}});
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_output("!! Somebody here has the name");
    client.wait_error("client: the server did not take the name\n");
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(ClientLogin, AsksForHostAndPort) {
    Server server;
    std::string port = std::to_string(server.port());
    Process piped(client_path());  // on a terminal it would look for servers first
    piped.write("\n " + port + "\nbobby\nhello\n");
    piped.wait_output("Host [127.0.0.1]: Port [12345]: ");
    piped.wait_output("bobby: hello");
    piped.close_stdin();
    EXPECT_EQ(piped.wait_exit(), 0);
}

TEST(ClientLogin, TakesThePasswordInAPipe) {
    Server server;
    Piped client(server.port());
    client.write("admin\n" + server.password() + "\n/bans\n");
    client.close_stdin();
    EXPECT_EQ(client.wait_exit(), 0);
    client.wait_output("-- Bans: 0.");
}

TEST(ClientLogin, ThatTheInputDoesNotCompleteEndsWithOne) {
    Server server;
    for (const char* input : {"", "al\n", "admin\n"}) {
        Piped client(server.port());
        client.write(input);
        client.close_stdin();
        EXPECT_EQ(client.wait_exit(), 1) << input;
        EXPECT_EQ(client.errors(), "client: the input ended before the login was complete\n");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The password on a terminal

// A client that has just been asked for the password.
struct AtPassword {
    AtPassword() {
        EXPECT_TRUE(client.echoes());
        client.wait_output("-- Your name?");
        client.type("admin\n");
        client.wait_output("-- The admin's password?");
        EXPECT_FALSE(client.echoes());
    }
    Server server;
    OnTerminal client{server.port()};
};

TEST(ClientPassword, IsNotShown) {
    AtPassword at;
    at.client.type(at.server.password() + "\n");
    at.client.wait_output("-- Welcome, admin.");
    EXPECT_TRUE(at.client.echoes());
    EXPECT_FALSE(contains(at.client.output(), at.server.password()));
    at.client.type("/who\n");
    at.client.wait_output("/who");
}

TEST(ClientPassword, IsNotShownWhenItIsAskedForAgain) {
    AtPassword at;
    for (const char* wrong : {"wrong1", "wrong2"}) {
        at.client.mark();
        at.client.type(std::string(wrong) + "\n");
        at.client.wait_output("-- The admin's password?");
        EXPECT_FALSE(at.client.echoes());
    }
    at.client.type("wrong3\n");
    EXPECT_EQ(at.client.wait_exit(), 1);
    at.client.wait_output("!! Three wrong passwords.");
    EXPECT_TRUE(at.client.echoes());
    EXPECT_FALSE(contains(at.client.output(), "wrong1") || contains(at.client.output(), "wrong3"));
}

TEST(ClientPassword, LeavesTheTerminalAsItWasAfterASignal) {
    for (int number : {SIGINT, SIGTERM, SIGQUIT, SIGHUP}) {
        AtPassword at;
        if (number == SIGINT) {
            at.client.type("\x03");
        } else {
            at.client.signal(number);
        }
        EXPECT_EQ(at.client.wait_exit(), -number);
        EXPECT_TRUE(at.client.echoes()) << number;
    }
}

TEST(ClientPassword, LeavesTheTerminalAsItWasAfterTheServersEnd) {
    AtPassword shut_down;
    shut_down.server.signal(SIGTERM);
    EXPECT_EQ(shut_down.server.wait_exit(), 0);
    EXPECT_EQ(shut_down.client.wait_exit(), 1);
    EXPECT_TRUE(shut_down.client.echoes());
    AtPassword killed;
    killed.server.signal(SIGKILL);
    EXPECT_EQ(killed.client.wait_exit(), 1);
    EXPECT_TRUE(killed.client.echoes());
    EXPECT_EQ(killed.server.wait_exit(), -SIGKILL);
}

TEST(ClientPassword, LeavesTheTerminalAsItWasAtTheEndOfInput) {
    AtPassword at;
    at.client.type("\x04");
    EXPECT_EQ(at.client.wait_exit(), 1);
    EXPECT_TRUE(at.client.echoes());
}

// ---------------------------------------------------------------------------------------------------------------------
// Chat

TEST(ClientChat, GoesBothWaysOnATerminal) {
    Server server;
    OnTerminal alice(server.port());
    log_in(alice, "alice");
    OnTerminal carol(server.port(), {"--plain", "--name", "carol"});
    alice.wait_output("-- carol joined.");
    alice.type("hello carol\n");
    carol.wait_output("alice: hello carol");
    carol.type("/msg alice psst\n");
    alice.wait_output("carol -> alice: psst");
    carol.wait_output("carol -> alice: psst");
    alice.type("\x04");  // Ctrl-D
    EXPECT_EQ(alice.wait_exit(), 0);
    alice.wait_output("-- Goodbye, alice.");
    carol.wait_output("-- alice left.");
}

TEST(ClientChat, LosesNoLineThatIsPasted) {
    Server server({.rate = 100});
    Peer bob(server.port(), "bob");
    Piped alice(server.port());
    std::string input = "alice\n";
    for (int i = 1; i <= 200; ++i) input += "line " + std::to_string(i) + "\n";
    alice.write(input);
    alice.close_stdin();
    bob.expect("JOIN alice");
    for (int i = 1; i <= 200; ++i) bob.expect_next(re("^SAY alice line " + std::to_string(i) + "$"));
    EXPECT_EQ(alice.wait_exit(), 0);
    alice.wait_output(re("^..:.. alice: line 200$"));
}

TEST(ClientChat, RefusesALineThatIsTooLongAndGoesOn) {
    Server server;
    Peer bob(server.port(), "bob");
    Piped alice(server.port(), {"--name", "alice"});
    std::string longest(4096, 'x');
    alice.write(longest + "y\n" + longest + "\n" + longest + longest + "y\nhello\n/quit\n");
    EXPECT_EQ(alice.wait_exit(), 0);
    std::string message = "client: that line has more than 4096 bytes and was not sent\n";
    EXPECT_EQ(alice.errors(), message + message);
    bob.expect("JOIN alice");
    EXPECT_EQ(bob.expect_next(), "SAY alice " + longest);
    EXPECT_EQ(bob.expect_next(), "SAY alice hello");
}

TEST(ClientChat, EndsAtCtrlC) {
    Server server;
    Peer bob(server.port(), "bob");
    OnTerminal alice(server.port());
    log_in(alice, "alice");
    alice.type("half a line\x03");
    EXPECT_EQ(alice.wait_exit(), -SIGINT);
    bob.expect(starts("LEAVE alice"));
    OnTerminal at_name(server.port());
    at_name.wait_output("-- Your name?");
    at_name.type("\x03");
    EXPECT_EQ(at_name.wait_exit(), -SIGINT);
}

TEST(ClientChat, EndsWithItsTerminal) {
    Server server;
    Peer bob(server.port(), "bob");
    OnTerminal alice(server.port());
    log_in(alice, "alice");
    alice.hang_up();
    EXPECT_EQ(alice.wait_exit(), -SIGHUP);
    bob.expect(starts("LEAVE alice"));
}

TEST(ClientChat, GoesOnAfterAStop) {
    Server server;
    OnTerminal alice(server.port());
    log_in(alice, "alice");
    alice.signal(SIGSTOP);
    alice.signal(SIGCONT);
    alice.type("/me waves\n\x04");
    EXPECT_EQ(alice.wait_exit(), 0);
    alice.wait_output("* alice waves");
}

TEST(ClientChat, EndsWhenNobodyReadsItsOutput) {
    ScriptedServer scripted;
    scripted.server->send_line("INFO hello");
    scripted.client->wait_output("hello");
    scripted.client->close_stdout();
    scripted.server->send_line("INFO into the void");
    EXPECT_EQ(scripted.client->wait_exit(), 1);
    EXPECT_FALSE(contains(scripted.client->errors(), "connection was lost")) << "it was not";
}

// ---------------------------------------------------------------------------------------------------------------------
// What is typed goes where it was meant to go (promise 7), in both forms

const std::vector<Lines> both_forms = {{"--plain"}, {}};

// A client on a terminal that has logged in to a server that is the test. Enter is "\r" in both forms.
struct Typist : OnScreen {
    explicit Typist(const Lines& form, const std::string& room = "public -")
        : Typist(std::make_unique<Listener>(), form, room) {}

    // Sends lines, and waits until they have been acted on.
    void tell(const std::string& lines) {
        server.send_raw(lines + "\nECHO told " + std::to_string(++told_) + "\n");
        wait("told " + std::to_string(told_));
    }

    // Types a line, which the server hears next, and answers.
    void say(const std::string& line) {
        type(line + "\r");
        hear(line);
    }
    void hear(const std::string& line) {
        std::string heard;
        while ((heard = server.expect_next()) == "/rooms") server.send_line("ROOMS 0 rooms");  // it asks by itself
        EXPECT_EQ(heard, line);
        server.send_line("SAY alice " + line);
    }

    // Breaks the connection. (It may have been broken before.)
    void lose() {
        server.reset();
        wait("trying again");
    }

    // Waits for the client to connect again, and asks it for its name.
    void take_back() {
        server = listener->accept();
        server.send_line("NICK Your name?");
        server.expect_next(re("^alice$"));
    }
    void welcome_back() {
        take_back();
        server.send_line("WELCOME alice Welcome back.\nROOM public - - You are in public.");
        wait("Welcome back.");
    }

    std::unique_ptr<Listener> listener;
    Peer server;

   private:
    Typist(std::unique_ptr<Listener> from, const Lines& form, const std::string& room)
        : OnScreen(client_path(), on_wide_screen(from->port(), form)),
          listener(std::move(from)),
          server(listener->accept()) {
        server.send_line("WELCOME alice Welcome, alice.\nROOM " + room + " - You are there now.");
        wait("You are there now.");
        if (!form.empty()) return;
        server.expect_next("/rooms");  // the list, for Tab
        tell("ROOMS 0 rooms");
    }
    static Launch on_wide_screen(int port, const Lines& form) {
        Launch launch = to_port(port, form);
        launch.terminal = Window{40, 200};
        return launch;
    }
    int told_ = 0;
};

TEST(ClientTyped, LineNeverBecomesAnAnswer) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.say("zero");
        alice.type("half a ");
        alice.wait("half a ");
        alice.tell("PASS The password?");
        alice.type("line\r");
        if (form.empty()) {  // what was begun keeps the keyboard: it is sent when the question has been answered
            alice.wait("Password: ");
        } else {
            alice.wait("That line was not sent");
        }
        alice.type("secret\r");
        alice.server.expect_next(re("^secret$"));
        EXPECT_FALSE(alice.terminal.shows("secret"));
    }
}

TEST(ClientTyped, AheadIsNoAnswerEither) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.type("one\rtwo\rthree\r");
        alice.server.expect_next(re("^one$"));
        alice.tell("PASS The password?");
        if (!form.empty()) {  // the kernel edits the line: it may have been begun before
            alice.type("secret\r");
            alice.wait("That line was not sent");
        }
        alice.type("secret\r");
        alice.server.expect_next(re("^secret$"));
        alice.tell("SAY alice one\nNEWPASS And a new one?");
        alice.type("new secret\r");
        alice.wait("once more");
        alice.type("new secret\r");
        alice.server.expect_next(re("^new secret$"));
        alice.server.send_line("INFO Your password is changed.");
        alice.hear("two");
        alice.hear("three");
    }
}

TEST(ClientTyped, AnswerNeverBecomesALine) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("PASS The password?");
        alice.type("secr");
        if (form.empty()) alice.wait("****");
        alice.lose();
        alice.welcome_back();
        alice.type("et\r");
        alice.wait("not sent");
        alice.say("hello");
        EXPECT_FALSE(alice.terminal.shows("secr"));
    }
}

TEST(ClientTyped, DraftForAnotherRoomWaitsForASecondEnter) {
    for (const Lines& form : both_forms) {
        Server server;
        Peer bob(server.port(), "bob"), carol(server.port(), "carol");
        bob.send_line("/create den 12345");
        bob.expect("ROOM den");
        Launch launch = to_port(server.port(), form);
        launch.args.insert(launch.args.end(), {"--name", "alice"});
        launch.terminal = Window{40, 200};
        OnScreen alice(client_path(), launch);
        alice.wait("Welcome, alice.");
        alice.type("/join den 12345\r");
        alice.wait("You are in den.");
        alice.type("for den alone");
        alice.wait("for den alone");
        bob.send_line("/kick alice");
        alice.wait("kicked by bob");
        carol.expect("LEAVE alice");
        carol.expect("JOIN alice");
        alice.type("\r");
        alice.wait(form.empty() ? "Enter says it in public" : "You are in public now");
        carol.send_line("it is quiet here");
        alice.wait("it is quiet here");
        alice.type("\r");
        carol.expect_next("SAY carol it is quiet here");
        carol.expect_next("SAY alice for den alone");
    }
}

TEST(ClientTyped, CommandThatMeansNoRoomIsSentFromAnyRoom) {
    for (const Lines& form : both_forms) {
        Typist alice(form, "den 12345");
        alice.type("/pass");
        alice.wait("/pass");
        alice.tell("ROOM public - - You are in public.");
        alice.type("word\r");
        alice.hear("/password");
        alice.tell("PASS The password?");
        alice.type("secret\r");
        alice.server.expect_next(re("^secret$"));
        EXPECT_FALSE(alice.terminal.shows("secret"));
    }
}

TEST(ClientTyped, LineIsForWhereOneStaysIfTheWayToAnotherRoomIsRefused) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        for (const std::string line : {"hello", "/me waves"}) {
            alice.type("/join den\r");
            alice.server.expect_next("/join den");
            alice.tell("ERR That is not the room's code.");
            alice.say(line);
        }
        alice.type("/join den\r");
        alice.server.expect_next("/join den");
        alice.tell("ROOM den - - You are in den.");
        alice.type("for den alone");
        alice.tell("ROOM public - - You are in public.");
        alice.type("\r");
        alice.wait(form.empty() ? "Enter says it in public" : "You are in public now");
    }
}

TEST(ClientTyped, LineBehindOnesOwnCloseIsForPublic) {
    for (const Lines& form : both_forms) {
        Typist alice(form, "den 12345");
        alice.type("/close\r");
        alice.server.expect_next("/close");
        alice.tell("INFO The room was closed by alice.\nROOM public - - You are in public.");
        alice.say("hello");
    }
}

TEST(ClientTyped, AheadOfWhatIsRefusedGoesNowhere) {
    for (const Lines& form : both_forms) {
        for (const std::string command : {"/password", "/join 3"}) {
            Typist alice(form);
            alice.type(command + "\r");
            alice.server.expect_next(command);
            alice.type("secret\rfor that room\r");
            alice.wait(form.empty() ? "Lines waiting: 3" : "for that room");
            alice.tell("ERR That cannot be done.");
            alice.wait("not sent");
            alice.say("hello");
        }
    }
}

TEST(ClientTyped, LinesWaitForTheWayBackIntoTheirRoom) {
    for (const Lines& form : both_forms) {
        Typist alice(form, "den 12345");
        alice.say("zero");
        alice.type("one\r");
        alice.server.expect_next(re("^one$"));  // it may have been heard, or not: nobody knows
        alice.lose();
        alice.type("two\rthree\r");
        alice.wait(form.empty() ? "Lines waiting" : "That line waits");
        alice.welcome_back();
        alice.server.expect_next(re("^/join den 12345$"));
        alice.server.send_line("ROOM den 12345 - You are in den again.");
        for (const char* line : {"one", "two", "three"}) alice.hear(line);
        alice.say("four");
    }
}

TEST(ClientTyped, LinesForARoomThatIsGoneAreToldAndSaidNowhere) {
    for (const Lines& form : both_forms) {
        Typist alice(form, "den 12345");
        alice.say("zero");
        alice.lose();
        alice.type("one\rtwo\r");
        alice.wait(form.empty() ? "Lines waiting: 2" : "That line waits");
        alice.welcome_back();
        alice.server.expect_next(re("^/join den 12345$"));
        alice.tell("SAY bob and nothing is sent before that is answered");
        alice.tell("ERR There is no room den.");
        alice.wait("You are in public now: 2 lines were not sent; the last one that was: zero");
        alice.type("three\r");
        if (!form.empty()) {  // the kernel edits the line: it may have been begun before
            alice.wait("You are in public now: Enter");
            alice.type("\r");
        }
        alice.hear("three");
    }
}

TEST(ClientTyped, CommandsOfTheRoomListWaitToo) {
    Typist alice({});
    alice.type("\33OQ");
    alice.server.expect_next(re("^/rooms$"));
    alice.server.send_line("ROOMS 0 rooms\nERR seen");
    alice.wait("seen");
    alice.lose();
    alice.type("cden\r12345\r");
    alice.wait("Lines waiting: 1");
    alice.welcome_back();
    alice.server.expect_next(re("^/create den 12345$"));
}

TEST(ClientTyped, AnotherMoveIsNoAnswerToJoin) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.type("/join den\r");
        alice.server.expect_next("/join den");
        alice.type("for den\r");
        alice.tell("ROOM public - - The room was closed.");
        alice.tell("ROOM den - - You are in den.");
        alice.hear("for den");
    }
}

TEST(ClientTyped, CommandIsNotAnsweredByTheListOfRooms) {
    Typist alice({});
    alice.type("\33OQ");
    alice.server.expect_next("/rooms");
    alice.type("\33");
    alice.wait_gone("c Create");
    alice.tell("WHO public 2 alice bob");  // part of what was told before
    alice.type("/kick bob\r");
    alice.server.send_line("ROOMS 0 rooms");
    alice.server.expect_next("/kick bob");
    alice.lose();
    alice.welcome_back();
    alice.server.expect_next("/kick bob");
}

TEST(ClientTyped, LinesAreWithdrawnAndTheWayBackIsNot) {
    for (const std::string lines : {"one\r", "one\rtwo\r"}) {
        Typist alice({}, "den 12345");
        alice.lose();
        alice.type(lines);
        alice.wait("Lines waiting");
        alice.type("\33");
        alice.wait("What waited is not sent.");
        EXPECT_FALSE(alice.terminal.shows("Lines waiting"));
        alice.welcome_back();
        alice.server.expect_next(re("^/join den 12345$"));
        alice.server.send_line("ROOM den 12345 - You are in den again.");
        alice.say("three");
    }
}

TEST(ClientTyped, LineNeverBecomesAnAnswerWhereOneIsMoved) {
    for (const Lines& form : both_forms) {
        Typist alice(form, "den 12345");
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("INFO You were kicked.\nROOM public - - You are in public.");
        alice.type("hello\r");
        alice.wait(form.empty() ? "Lines waiting: 2" : "hello");
        alice.tell("PASS The password?");
        alice.type("secret\r");
        alice.server.expect_next(re("^secret$"));
    }
}

TEST(ClientTyped, QuitNeverBecomesAnAnswer) {
    Typist alice({});
    alice.type("/password\r/leave\r/quit\r");
    alice.server.expect_next(re("^/password$"));
    EXPECT_EQ(alice.process.wait_exit(), 0);
    EXPECT_EQ(alice.server.expect_closed(), Lines{});
}

TEST(ClientTyped, PasswordIsAskedForWhereTheWayBackNeededNone) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("PASS The password?");
        alice.type("old secret\r");
        alice.server.expect_next(re("^old secret$"));
        alice.tell("WELCOME alice Welcome.");
        if (form.empty()) alice.server.expect_next("/rooms");
        alice.lose();
        alice.welcome_back();
        if (form.empty()) alice.server.expect_next("/rooms");
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("PASS The password?");
        alice.type("typed\r");
        alice.server.expect_next(re("^typed$"));
    }
}

TEST(ClientTyped, RoomsAreListedHoweverThatIsTyped) {
    Typist alice({"--plain"});
    for (const std::string answer : {"ROOMS 0 rooms", "INFO public: 1"}) {  // the tutorial's servers tell it so
        alice.type(" /Rooms\r");
        alice.server.expect_next(re("^ /Rooms$"));
        alice.server.send_line(answer);
        alice.say("hello");
    }
}

TEST(ClientTyped, PasteOutlivesTheServer) {
    for (const Lines& form : both_forms) {
        std::optional<Server> server(std::in_place, ServerOptions{.rate = 40});
        const std::string port = std::to_string(server->port());
        std::optional<Peer> bob(std::in_place, server->port(), "bob");
        Launch launch = to_port(server->port(), form);
        launch.args.insert(launch.args.end(), {"--name", "alice"});
        OnScreen alice(client_path(), launch);
        alice.wait("Welcome, alice.");
        const std::string lines = numbered("line ", 1, 200);
        alice.type(form.empty() ? "\33[200~" + lines + "\33[201~\r" : lines);
        for (int i = 1; i <= 50; ++i) {
            bob->expect("SAY alice line " + std::to_string(i));
            alice.process.mark();  // or the terminal would be full
        }
        server->signal(SIGKILL);
        EXPECT_EQ(server->wait_exit(), -SIGKILL);
        int said = 50;
        for (const std::string& line : bob->expect_closed()) {
            if (line == "SAY alice line " + std::to_string(said + 1)) ++said;
        }
        Server again({.args = {"--port", port}});
        Peer carol(again.port(), "carol");
        alice.wait("line 200");
        carol.expect("JOIN alice");
        const std::string first = carol.expect_next(starts("SAY alice line "));
        int next = std::stoi(first.substr(std::string("SAY alice line ").size()));
        EXPECT_LE(next, said + 1);
        EXPECT_GE(next, said);  // one may be said twice: only bob has seen that it was
        while (next < 200) carol.expect_next("SAY alice line " + std::to_string(++next));
        server.reset();
    }
}

TEST(ClientTyped, SecretThatWasCancelledIsGone) {
    Typist alice({});
    alice.type("\33OQ");
    alice.server.expect_next(re("^/rooms$"));
    alice.server.send_line("ROOMS 0 rooms\nERR seen");
    alice.wait("seen");
    alice.type("x");
    alice.wait("Exit code, to shut the server down: ");
    alice.type("54321");
    alice.wait("*****");
    alice.type("\33");
    alice.wait_gone("Exit code, to shut the server down: ");
    alice.type("\33");
    alice.wait_gone("c Create");
    alice.type("\33[200~one\rtwo\33[201~");
    alice.wait("Send 2 lines?");
    EXPECT_FALSE(alice.terminal.shows("54321"));
    alice.type("\r");
    alice.hear("one");
    alice.hear("two");
}

TEST(ClientTyped, PasswordIsKeptOnceItIsAccepted) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("PASS The password?");
        alice.type("old secret\r");
        alice.server.expect_next(re("^old secret$"));
        for (const std::string answer : {"ERR It is too simple.", "INFO Your password is changed."}) {
            const std::string typed = answer.starts_with("ERR") ? "too simple" : "new secret";
            alice.tell("NEWPASS A new one?");
            alice.type(typed + "\r");
            alice.wait("once more");
            alice.process.mark();
            alice.type(typed + "\r");
            alice.server.expect_next([&](std::string_view line) { return line == typed; });
            alice.tell(answer);
        }
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("PASS The password?");
        alice.type("typo\r");
        alice.server.expect_next(re("^typo$"));
        alice.lose();
        alice.take_back();
        alice.server.send_line("PASS For whom is this question?");
        alice.server.expect_next(re("^new secret$"));
        alice.tell("INFO That is the password.");
        EXPECT_FALSE(alice.terminal.shows("For whom is this question?"));
    }
}

TEST(ClientTyped, EmptyAnswerEndsTheQuestion) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.type("/password\r");
        alice.server.expect_next(re("^/password$"));
        alice.tell("PASS The password?");
        alice.type("\r");
        alice.server.expect_next(re("^$"));
        alice.tell("INFO Your password is as it was.");
        alice.say("hello");
    }
}

TEST(ClientTyped, ServerThatIsFullIsTriedAgain) {
    for (const Lines& form : both_forms) {
        Typist alice(form);
        alice.lose();
        {
            Peer full = alice.listener->accept();
            full.send_line("REFUSE The server is full.");
            full.expect_closed();
        }
        alice.welcome_back();
        alice.say("hello");
    }
}

TEST(ClientTyped, OnlyWhatTheProtocolAllowsGoesBackToTheServer) {
    const std::vector<std::pair<std::string, std::string>> rooms = {{"den 12345", "/join den 12345"},
                                                                    {"den 123456", "/join den"},
                                                                    {"den /kick", "/join den"},
                                                                    {"../den 12345", ""}};
    for (const auto& [room, join] : rooms) {
        Typist alice({"--plain"}, room);
        alice.lose();
        alice.welcome_back();
        if (!join.empty()) {
            alice.server.expect_next([&, wanted = join](std::string_view line) { return line == wanted; });
            alice.tell("ERR No.");
            alice.type("hello\r");
            alice.wait("You are in public now: Enter");
            alice.type("\r");
            alice.hear("hello");
        } else {
            alice.say("hello");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What the words of the protocol look like

TEST(ClientShows, EachWordInItsOwnWay) {
    ScriptedServer scripted;
    const std::vector<std::pair<std::string, std::string>> looks = {
        {"SAY bob hi  there", "bob: hi  there"},
        {"ME bob waves", "* bob waves"},
        {"MSG bob alice psst psst", "bob -> alice: psst psst"},
        {"JOIN bob joined.", "-- bob joined."},
        {"LEAVE bob was kicked by admin.", "-- bob was kicked by admin."},
        {"WELCOME alice Welcome, alice.", "-- Welcome, alice."},
        {"ROOM public - - You are in public.", "-- public -- You are in public."},
        {"WHO public 2 bob alice", "-- 2 in public: bob alice"},
        {"ROOMS 1 rooms: number, name", "-- 1 room"},
        {"ROOMS 12 rooms: number, name", "-- 12 rooms"},
        {"LIST 1 public 12 server 2026-01-02T03:04:05Z NO CODE",
         "-- 1: public, 12 people, no code, made by server on 2026-01-02 at 03:04"},
        {"LIST 7 den 1 bob 2026-01-02T03:04:05Z CODE",
         "-- 7: den, 1 person, with a code, made by bob on 2026-01-02 at 03:04"},
        {"ECHO SAY bob hi", "== SAY bob hi"},
        {"INFO SAY bob hi", "-- SAY bob hi"},
        {"ERR No.", "!! No."},
        {"NEWS of a later version", "-- NEWS of a later version"},
        {"say bob hi", "-- say bob hi"},
        {"SAY bob \xE4\xBD\xA0\xE5\xA5\xBD \xC3\xA9 \xF0\x9F\x98\x80",
         "bob: \xE4\xBD\xA0\xE5\xA5\xBD \xC3\xA9 \xF0\x9F\x98\x80"},
    };
    for (const auto& [line, look] : looks) {
        scripted.client->mark();
        scripted.server->send_line(line);
        scripted.client->wait_output("\n");
        std::string row = rows_of(scripted.client->output()).back();
        EXPECT_TRUE(std::regex_match(row.substr(0, 6), std::regex("[0-9]{2}:[0-9]{2} "))) << row;
        EXPECT_EQ(row.substr(6), look);
    }
}

TEST(ClientShows, ThePastWithItsTimeAndDateInTheUsersZone) {
    ScriptedServer scripted({.env = {"TZ=HERE-05:30"}});
    std::time_t now = std::time(nullptr) + 19800;  // five and a half hours to the east
    char today[32], zulu[32];
    std::strftime(today, sizeof today, "%H:%M", std::gmtime(&now));
    now -= 19800;
    std::strftime(zulu, sizeof zulu, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    scripted.server->send_line("PAST 2020-01-02T22:04:05Z SAY bob long ago");
    scripted.client->wait_output(re("^2020-01-03 03:34 bob: long ago$"));
    scripted.server->send_line("PAST 2020-02-03T04:05:06Z ME bob waves");
    scripted.client->wait_output(re("^2020-02-03 09:35 \\* bob waves$"));
    scripted.server->send_line(std::string("PAST ") + zulu + " SAY bob just now");
    scripted.client->wait_output(re("^" + std::string(today) + " bob: just now$"));
    scripted.server->send_line("LIST 1 public 1 server 2026-01-02T22:04:05Z NO CODE");
    scripted.client->wait_output("made by server on 2026-01-03 at 03:34\n");
}

// Shows a line on a terminal of 40 columns, and returns its rows.
Lines rows_on_narrow_terminal(const std::string& line, const std::string& locale) {
    ScriptedServer scripted({.env = {"TZ=UTC0", "LC_ALL=" + locale}, .terminal = Window{24, 40}});
    scripted.server->send_line(line);
    scripted.server->send_line("INFO end");
    scripted.client->wait_output("-- end");
    Lines rows = rows_of(scripted.client->output());
    rows.pop_back();
    return rows;
}

TEST(ClientShows, WhereALongLineGoesOnInTheNextRow) {  // promise 3
    std::string text;
    for (int i = 0; i < 40; ++i) text += "12:00 server: give me your password!           ";
    Lines rows = rows_on_narrow_terminal("SAY mallory " + text, "C.UTF-8");
    EXPECT_GT(rows.size(), 40U);
    std::string together;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        EXPECT_LE(rows[i].size(), 40U) << rows[i];
        EXPECT_EQ(rows[i].starts_with("        "), i > 0) << rows[i];
        together += rows[i].substr(i == 0 ? std::string("12:00 mallory: ").size() : 8) + ' ';
    }
    const auto words = [](std::istringstream in) {
        return Lines(std::istream_iterator<std::string>(in), std::istream_iterator<std::string>());
    };
    EXPECT_EQ(words(std::istringstream(together)), words(std::istringstream(text)));  // none is cut
}

// As many wide or foreign characters as there is place for, whatever the locale can tell about them.
TEST(ClientShows, WhereALongLineOfOtherLettersGoesOn) {  // promise 3
    const std::vector<std::pair<std::string, int>> letters = {
        {"\xC3\xA9", 1}, {"\xE4\xBD\xA0", 2}, {"\xF0\x9F\x98\x80", 2}};
    for (const char* locale : {"C.UTF-8", "C"}) {
        for (const auto& [letter, width] : letters) {
            std::string text;
            for (int i = 0; i < 100; ++i) text += letter;
            Lines rows = rows_on_narrow_terminal("SAY bob " + text, locale);
            for (std::size_t i = 0; i < rows.size(); ++i) {
                int there = count_in(rows[i], letter);
                int others = static_cast<int>(rows[i].size() - static_cast<std::size_t>(there) * letter.size());
                EXPECT_LE(others + there * width, 40) << locale << ": " << rows[i];
                EXPECT_EQ(rows[i].starts_with("        "), i > 0) << rows[i];
            }
        }
    }
}

// What a client on a terminal shows of its own line "hello", which the server answers with some lines.
std::string shown_after_hello(const std::string& answer) {
    Typist alice({"--plain"});
    alice.type("hello\r");
    alice.server.expect_next(re("^hello$"));
    alice.process.mark();
    alice.tell(answer);
    return alice.process.output();
}

TEST(ClientShows, ATypedLineOnce) {
    const std::string own = "SAY alice hello", shown = "alice: hello";
    EXPECT_FALSE(contains(shown_after_hello(own), shown));
    EXPECT_TRUE(contains(shown_after_hello(own + "\n" + own), shown));  // the second one was not typed
    EXPECT_TRUE(contains(shown_after_hello("SAY alice Hello"), "alice: Hello"));
    EXPECT_TRUE(contains(shown_after_hello("SAY bob hello"), "bob: hello"));
    EXPECT_TRUE(contains(shown_after_hello("PAST 2020-01-02T03:04:05Z " + own), shown));
    const std::string later = shown_after_hello("SAY bob first\n" + own);  // promise 1: the order that all see
    EXPECT_NE(later.find("bob: first"), std::string::npos);
    EXPECT_LT(later.find("bob: first"), later.find(shown));
}

TEST(ClientShows, ATypedLineThatHadToWait) {
    Typist alice({"--plain"});
    alice.type("one\rtwo\rthree\r");
    alice.process.wait_until_read();  // and so all but the third is known to have been taken
    alice.server.expect_next(re("^one$"));
    alice.server.send_line("SAY alice one");
    alice.server.expect_next(re("^two$"));
    alice.tell("SAY alice two");
    EXPECT_TRUE(alice.terminal.shows("alice: one"));
    EXPECT_TRUE(alice.terminal.shows("alice: two"));
}

// ---------------------------------------------------------------------------------------------------------------------
// How it ends

TEST(ClientEnds, WhatIsHalfTypedWhenItIsDisconnectedNeverReachesTheShell) {
    Listener listener;
    Launch launch{.args = {"-c", "\"$0\" --plain 127.0.0.1 $1; echo over; read rest; echo \"shell: [$rest]\"",
                           client_path(), std::to_string(listener.port())}};
    Pty shell("/bin/sh", launch);
    Peer server = listener.accept();
    server.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.");
    shell.wait_output("You are in public.");
    shell.type("rm -r half a line");
    shell.wait_output("half a line");
    server.send_line("BYE KICK You were disconnected.");
    shell.wait_output("You were disconnected.");
    shell.wait_output("over");
    shell.type("\n");
    shell.wait_output("shell: []");
}

TEST(ClientEnds, WhenTheConnectionIsRefused) {
    int port = Listener().port();  // nobody listens there any more
    Piped client(port);
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_error(re("^client: connect to 127\\.0\\.0\\.1 port " + std::to_string(port) +
                         ": ECONNREFUSED \\(.*\\): is a server running there\\?$"));
}

TEST(ClientEnds, WhenTheHostIsUnknown) {
    Process client(client_path(), {.args = {"no.such.host.invalid", "1"}});
    EXPECT_EQ(client.wait_exit(30), 1);
    client.wait_error(re("^client: getaddrinfo no\\.such\\.host\\.invalid: .+$"));
}

TEST(ClientEnds, WhenTheConnectionBreaks) {
    for (bool reset : {false, true}) {
        ScriptedServer scripted;
        scripted.server->send_line("WELCOME alice Hello.");
        scripted.client->wait_output("-- Hello.");
        reset ? scripted.server->reset() : scripted.server->close();
        EXPECT_EQ(scripted.client->wait_exit(), 1);
        EXPECT_EQ(scripted.client->errors(), "client: the connection was lost\n");
    }
}

TEST(ClientEnds, WhenItsUserIsDisconnectedAndSaysWhy) {
    Server server;
    for (auto [command, why] : {std::pair{"/kick alice\n", "-- You were kicked by server.\n"},
                                std::pair{"/ban alice\n", "-- You were banned by server.\n"}}) {
        Piped client(server.port(), {"--name", "alice"});
        client.wait_output("-- Welcome");
        server.write(command);
        EXPECT_EQ(client.wait_exit(), 1);
        client.wait_output(why);
    }
    Piped banned(server.port(), {"--name", "alice"});
    EXPECT_EQ(banned.wait_exit(), 1);
    banned.wait_output("!! That name is banned.\n");
}

TEST(ClientEnds, WhenThereIsNoPlace) {
    Server server({.args = {"--max-clients", "1"}});
    Peer bob(server.port(), "bob");
    Piped client(server.port());
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_output("!! The server is full");
}

TEST(ClientEnds, WhenTheServerShutsDown) {
    Server server;
    Piped in(server.port(), {"--name", "alice"}), at_name(server.port());
    in.wait_output("-- Welcome");
    at_name.wait_output("-- Your name?");
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
    for (Process* client : {&in, &at_name}) {
        EXPECT_EQ(client->wait_exit(), 1);
        client->wait_output("-- The server shuts down.\n");
        EXPECT_EQ(client->errors(), "");
    }
}

TEST(ClientOptions, HelpAndVersionAreAnswered) {
    Process help(client_path(), {.args = {"--help"}}), of_version(client_path(), {.args = {"--version"}});
    EXPECT_EQ(help.wait_exit(), 0);
    for (const char* option : {"[HOST [PORT]]", "--name", "--plain", "--help", "--version"}) help.wait_output(option);
    EXPECT_EQ(of_version.wait_exit(), 0);
    of_version.wait_output(re("^chatroom [0-9]+\\.[0-9]+$"));
    EXPECT_EQ(help.errors() + of_version.errors(), "");
}

TEST(ClientOptions, ThatAreWrongAreToldWithStatusTwo) {
    const std::vector<std::pair<Lines, std::string>> wrong = {
        {{"--nonsense"}, "--nonsense"},
        {{"-x"}, "x"},
        {{"--name"}, "name"},
        {{"--name", "al"}, "a name is 3 to 12 letters and digits"},
        {{"--name", ""}, "a name is 3 to 12 letters and digits"},
        {{"127.0.0.1", "0"}, "a port is a number from 1 to 65535"},
        {{"127.0.0.1", "65536"}, "a port is a number from 1 to 65535"},
        {{"127.0.0.1", "http"}, "a port is a number from 1 to 65535"},
        {{"127.0.0.1", "1", "more"}, "unexpected argument 'more'"},
        {{""}, "the host is missing"},
        {{":1"}, "the host is missing"},
        {{"127.0.0.1:1", "1"}, "there are two ports"},
        {{"127.0.0.1:12345", "1"}, "there are two ports"},
        {{"[::1]x1"}, "a port is a number from 1 to 65535"},
        {{"[::1]:1", "1"}, "there are two ports"},
        {{"--list", "extra"}, "--list takes no host"},
    };
    for (const auto& [args, message] : wrong) {
        Process client(client_path(), {.args = args});
        EXPECT_EQ(client.wait_exit(), 2) << message;
        EXPECT_EQ(client.output(), "") << message;
        EXPECT_NO_THROW(client.wait_error(message));
        EXPECT_NO_THROW(client.wait_error("--help shows the options\n"));
    }
}

// Runs the client in a shell, as "$0", with what stands behind it; it ends with 1, and says why.
void expect_told(const std::string& command, const Pattern& why) {
    Process shell("/bin/sh", {.args = {"-c", "\"$0\" " + command, client_path()}});
    EXPECT_EQ(shell.wait_exit(), 1) << command;
    EXPECT_NO_THROW(shell.wait_error(why)) << command;
}

TEST(ClientEnds, WhenItsInputOrOutputIsClosedOrFull) {
    Server server;
    const std::string alice = "--name alice 127.0.0.1 " + std::to_string(server.port());
    expect_told("--plain 127.0.0.1 " + std::to_string(server.port()) + " <&-", "the input ended before the login");
    expect_told(alice + " >&-", "write: ");
    if (access("/dev/full", W_OK) != 0) return;
    expect_told("--help >/dev/full", "write: ENOSPC");
    expect_told("--version >/dev/full", "write: ENOSPC");
    expect_told(alice + " >/dev/full", "write: ENOSPC");
}

TEST(ClientEnds, WhenTheServerSaysNothing) {
    Listener another_program;
    const auto start = harness::Clock::now();
    Piped client(another_program.port());
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_error("connected, but nothing was said within 5 seconds: is that a chat server?");
    EXPECT_GT(harness::Clock::now() - start, std::chrono::milliseconds(4900));
}

TEST(ClientOptions, APortThatIsTypedIsCheckedToo) {
    Process client(client_path());
    client.write("\nhttp\n");
    EXPECT_NE(client.wait_exit(), 0);
    client.wait_error("a port is a number from 1 to 65535");
}

// ---------------------------------------------------------------------------------------------------------------------
// Hostile servers

TEST(ClientTrusts, NoFieldToBeHarmless) {  // promise 3
    const Lines evils = {"\x1B[2J",
                         "\x1B]0;title\x07",
                         "\x08\x08",
                         "\r",
                         "\x7F",
                         "\x9B",
                         "\xC2\x9B",
                         std::string{'\xE2', '\x80', '\xAE'},
                         std::string{'\xE2', '\x81', '\xA6'},
                         "\xE2\x80\xA8",
                         "\xE2\x80\x8B",
                         "\xEF\xBB\xBF",
                         "\xF3\xA0\x81\x81",
                         std::string(1, '\0')};
    const Lines forms = {"%",
                         "% bob hi",
                         "SAY % hi",
                         "SAY bob %",
                         "ME % %",
                         "MSG % % %",
                         "JOIN % %",
                         "ERR %",
                         "WHO % % %",
                         "ROOM % % % %",
                         "PAST % SAY bob hi",
                         "PAST 2020-01-02T03:04:05Z % %",
                         "NICK %",
                         "WELCOME % %",
                         "BYE % %"};
    ScriptedServer scripted;
    for (const std::string& form : forms) {
        for (const std::string& evil : evils) {
            scripted.server->send_line(std::regex_replace(form, std::regex("%"), "a" + evil + "b"));
            if (form.starts_with("BYE")) break;
        }
    }
    EXPECT_EQ(scripted.client->wait_exit(), 1);
    for (std::string evil : evils) {
        if (evil == "\x9B") evil = "a\x9B";  // elsewhere it is a part of characters
        EXPECT_FALSE(contains(scripted.client->output(), evil)) << testing::PrintToString(evil);
    }
    Lines rows = rows_of(scripted.client->output());
    EXPECT_EQ(rows.size(), (forms.size() - 1) * evils.size() + 1);
    EXPECT_EQ(rows[evils.size() * 3].substr(6), "bob: a" + replaced + "[2Jb");
}

TEST(ClientTrusts, NoBytesToBeUtf8) {
    ScriptedServer scripted;
    scripted.server->send_line(
        "SAY bob a\xC0\x80\xFE"
        "b\xE4\xBD|\xED\xA0\x80|\xF5");
    std::string r = replaced;
    scripted.client->wait_output("bob: a" + r + r + r + "b" + r + r + "|" + r + r + r + "|" + r + "\n");
}

TEST(ClientTrusts, NoFieldToBeThere) {
    ScriptedServer scripted;
    for (const char* word : {"SAY", "ME", "MSG", "MSG bob", "JOIN", "LEAVE", "ROOM", "ROOM public", "WHO", "PAST",
                             "PAST x", "PAST 2020-01-02T03:04:05Z", "PAST PAST PAST", "ECHO", "INFO", "ERR", "", " "}) {
        scripted.server->send_line(word);
    }
    scripted.server->send_raw("WELCOME\nBYE");
    scripted.server->half_close();
    EXPECT_EQ(scripted.client->wait_exit(), 1);
    EXPECT_EQ(rows_of(scripted.client->output()).size(), 19U);
}

TEST(ClientTrusts, NoLineToEnd) {
    ScriptedServer scripted;
    const std::string part(1 << 20, 'x');
    scripted.server->send_raw("SAY bob ");
    for (int i = 0; i < 64; ++i) scripted.server->send_raw(part);
    scripted.server->send_line("\nINFO the next line");
    scripted.client->wait_output("-- the next line");
    EXPECT_TRUE(contains(scripted.client->output(), "!! The server sent a line that is too long."));
    EXPECT_LT(scripted.client->output().size(), 1000U);
    EXPECT_LT(resident_bytes(scripted.client->pid()), 32L << 20);
}

TEST(ClientTrusts, NoServerToStop) {
    ScriptedServer scripted;
    std::string lines;
    for (int i = 1; i <= 100'000; ++i) lines += "SAY bob line " + std::to_string(i) + "\n";
    auto sent = std::async(std::launch::async, [&] { scripted.server->send_raw(lines, 20); });
    scripted.client->wait_output("bob: line 100000\n", 20);
    sent.get();
    EXPECT_EQ(std::ranges::count(scripted.client->output(), '\n'), 100'000);
}

}  // namespace
