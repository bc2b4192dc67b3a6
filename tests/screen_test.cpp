// The full-screen client on a terminal: what a person sees of the real program, with the real server and with servers
// that do as a test says, which may be hostile ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <clocale>
#include <csignal>
#include <cstdlib>
#include <future>
#include <regex>
#include <string>
#include <vector>

#include "harness.hpp"
#include "terminal.hpp"

using namespace harness;

namespace {

const char* const locale_set = std::setlocale(LC_CTYPE, "C.UTF-8");  // for the width of characters

const long max_memory = std::getenv("CHATROOM_SLOW") != nullptr ? 1L << 30 : 64L << 20;  // sanitizers need more

Launch on_port(int port, const Lines& more = {}, Window size = {}) {
    Launch launch{.args = {"127.0.0.1", std::to_string(port)}, .env = {"TZ=UTC0", "NO_COLOR"}, .terminal = size};
    launch.args.insert(launch.args.end(), more.begin(), more.end());
    return launch;
}

// A client who has logged in to a server.
struct User : OnScreen {
    explicit User(const Server& server, const std::string& name = "alice", Window size = {}, const Lines& more = {})
        : OnScreen(client_path(), on_port(server.port(), more, size)) {
        if (size.rows < 10) return;
        wait("Your name: ");
        type(name + "\r");
        wait("Welcome, " + name);
        if (name == "admin") return;
        wait("public");
    }
};

// A client whose server is the test.
struct ScriptedServer : OnScreen {
    explicit ScriptedServer(const Lines& more = {}, Window size = {})
        : ScriptedServer(std::make_unique<Listener>(), more, size) {}

    // Sends lines, and waits until the last of them has been shown.
    void tell(const std::string& lines) {
        const std::string end = lines.ends_with('\n') ? "" : "\n";
        server.send_raw(lines + end + "INFO told " + std::to_string(++told_) + "\n", 20);
        if (terminal.rows() >= 10) wait("told " + std::to_string(told_), 20);
    }

    // The next line from the client, which is answered as a server does: the one after it comes only then.
    void hear(const std::string& wanted) {
        std::string heard;
        while ((heard = server.expect_next()).empty() || heard == "/rooms") continue;  // which it sends by itself
        EXPECT_EQ(heard, wanted);
        const bool command = wanted.starts_with('/');
        if (command) tell("ERR No.");
        if (!command) server.send_line("SAY alice " + wanted);
        process.mark();  // or the terminal would be full some day
    }

    std::unique_ptr<Listener> listener;
    Peer server;

   private:
    ScriptedServer(std::unique_ptr<Listener> from, const Lines& more, Window size)
        : OnScreen(client_path(), on_port(from->port(), more, size)),
          listener(std::move(from)),
          server(listener->accept()) {
        server.send_raw("WELCOME alice Welcome, alice.\nROOM public - - You are in public.\nWHO public 2 alice bob\n");
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

std::string key(const std::string& name) {
    static const std::map<std::string, std::string> keys = {{"up", "\33[A"},
                                                            {"down", "\33[B"},
                                                            {"right", "\33[C"},
                                                            {"left", "\33[D"},
                                                            {"home", "\33[H"},
                                                            {"end", "\33[F"},
                                                            {"pgup", "\33[5~"},
                                                            {"pgdn", "\33[6~"},
                                                            {"del", "\33[3~"},
                                                            {"esc", "\33"},
                                                            {"f1", "\33OP"},
                                                            {"f2", "\33OQ"},
                                                            {"wheel up", "\33[<64;5;5M"},
                                                            {"wheel down", "\33[<65;5;5M"},
                                                            {"focus out", "\33[O"},
                                                            {"focus in", "\33[I"}};
    return keys.at(name);
}

// ---------------------------------------------------------------------------------------------------------------------
// The form

TEST(ScreenForm, OpensOnATerminalAlone) {
    Server server;
    User alice(server);
    EXPECT_TRUE(alice.terminal.alternate);
    EXPECT_FALSE(alice.process.echoes());

    OnScreen plain(client_path(), on_port(server.port(), {"--plain"}));
    plain.wait("Your name?");
    EXPECT_FALSE(plain.terminal.alternate);

    Launch dumb = on_port(server.port());
    dumb.env.emplace_back("TERM=dumb");
    OnScreen simple(client_path(), dumb);
    simple.wait("Your name?");
    EXPECT_FALSE(simple.terminal.alternate);
}

TEST(ScreenForm, ShowsTheNoticeOfWhoeverStartedIt) {  // `make run` tells the admin's password so
    Server server;
    Launch launch = on_port(server.port());
    launch.env.emplace_back("CHATROOM_NOTICE=When you leave, \33[2Jthe chat ends.");
    OnScreen alice(client_path(), launch);
    alice.wait("Your name: ");  // "admin" may be the first one to be typed
    alice.wait("When you leave, ");
    alice.wait("the chat ends.");
    EXPECT_FALSE(alice.terminal.shows("Welcome, alice"));
    alice.type("alice\r");
    alice.wait("Welcome, alice");
}

TEST(ScreenForm, LeavesAQuestionAtEscape) {
    TempDir dir;
    Server server({.args = {"--users", dir.path() / "users"}});
    OnScreen alice(client_path(), on_port(server.port()));
    alice.wait("Your name: ");
    alice.type(key("f1"));
    alice.wait("Keys");
    alice.type(key("esc"));  // the page, not the question
    alice.wait_gone("Keys");
    for (const std::string half : {"", "green t", "green tea\rgreen"}) {
        alice.wait("Your name: ");
        alice.type("alice\r");
        alice.wait("New password: ");
        alice.type(half);
        if (!half.empty()) alice.wait(": *****");
        alice.type(key("esc"));
    }
    alice.wait("Your name: ");
    alice.type("alice\r");
    alice.wait("New password: ");
    alice.type("tea\r");
    alice.wait("A password has at least 8 characters");
    EXPECT_EQ(count_in(alice.terminal.text(), "once more"), 1) << "above: it is not asked for twice";
    alice.type("green tea\rgreen tea\r");
    alice.wait("Welcome, alice");
    alice.type("/password\r");
    alice.wait("Password: ");
    alice.type(key("esc"));
    alice.wait("Your password is as it was.");
}

TEST(ScreenForm, HidesPasswordsAndAsksTwiceForNewOnes) {
    ScriptedServer client;
    client.type(key("f2") + "c" + "half a room");
    client.wait("The new room's name: half a room");
    client.server.expect("/rooms");
    client.server.send_raw("ROOMS 0 rooms\nROOM public - - You are in public.\nPASS The password?\n");
    client.wait("the server is asking something");  // the line that was begun keeps the keyboard
    client.type(key("esc"));
    client.wait("Password: ");
    client.type("secret");
    client.wait("******");
    EXPECT_FALSE(client.terminal.shows("secret"));
    client.type("\r");
    client.server.expect_next("secret");
    client.wait_gone("Password: ");
    client.type(key("esc"));
    client.wait_gone("Exit code");
    client.tell("NEWPASS A new one?");
    client.type("longer secret\rother secret\r");
    client.wait("not the same");
    client.type("longer secret\r");
    client.wait("Once more: ");
    client.type("longer secret\r");
    client.server.expect_next("longer secret");
    client.wait_gone("Once more: ");
    client.tell("INFO Your password is changed.");
    client.type(key("esc") + key("up") + "x\r");  // no password is in the history
    client.hear("x");
}

TEST(ScreenForm, GivesTheKeyboardToAQuestionAtOneEscape) {
    ScriptedServer client;
    client.type("draft" + key("f2"));
    client.wait("Exit code");
    client.server.send_line("PASS The password?");
    client.wait("Password: ");
    EXPECT_FALSE(client.terminal.shows("the server is asking something")) << "it has the keyboard";
    client.tell("ROOM public - - You are in public.");
    client.wait("alice> draft");
    EXPECT_TRUE(client.terminal.shows("the server is asking something"));
    client.type(key("esc"));
    client.wait("Password: ");
}

// ---------------------------------------------------------------------------------------------------------------------
// The chat

TEST(ScreenChat, ShowsWhereOneIsAndWithWhom) {
    Server server;
    User alice(server);
    Peer bob(server.port(), "bob");
    alice.wait("2 people");
    EXPECT_NE(alice.terminal.line(0).find("public  2 people"), std::string::npos);
    EXPECT_NE(alice.terminal.line(0).find("127.0.0.1 port " + std::to_string(server.port())), std::string::npos);
    alice.type("/create den 12345\r");
    alice.wait("den  code 12345  1 person");
    alice.wait("alice owner");
    bob.send_line("/join den 12345");
    Peer admin(server.port());
    admin.login("admin", server.password());
    admin.send_line("/join den");
    alice.wait("admin admin");
    alice.wait("3 people");
    const int margin = alice.terminal.column_of(3, "│");
    EXPECT_GT(margin, 40);
    alice.resize({24, 50});
    alice.wait("a narrow one", [](const Terminal& t) { return t.line(0).size() <= 50 && !t.shows("│"); });
}

TEST(ScreenChat, TellsItsLinesApartWithoutColours) {
    ScriptedServer client;
    client.tell(
        "SAY bob hi\nME bob waves\nMSG bob alice psst\nINFO a notice\nERR an error\nJOIN carol joined.\nECHO x");
    for (const char* look : {" bob: hi", " * bob waves", " bob -> alice: psst", " -- a notice", " !! an error",
                             " -- carol joined.", " == x"}) {
        EXPECT_TRUE(client.terminal.shows(look)) << look;
    }
    int row = client.terminal.find("bob: hi");
    EXPECT_TRUE(client.terminal.line(row)[2] == ':') << "the time";
}

TEST(ScreenChat, HasAStableColourForEachName) {
    ScriptedServer client({"--color", "always"});
    client.tell("SAY bob one\nSAY bart two\nSAY bob three");
    const auto color = [&](const std::string& text) {
        int row = client.terminal.find(text);
        return client.terminal.at(row, client.terminal.column_of(row, text)).style;
    };
    EXPECT_EQ(color("bob: one"), color("bob: three"));
    EXPECT_NE(color("bob: one"), color("bart: two"));
    EXPECT_NE(color("bob: one"), "");
}

TEST(ScreenChat, HonoursNoColor) {
    for (bool never : {false, true}) {
        Launch launch = on_port(1);
        Listener listener;
        launch.args = {"127.0.0.1", std::to_string(listener.port())};
        if (never) launch.args.insert(launch.args.end(), {"--color", "never"});
        launch.env = {never ? "NO_COLOR" : "NO_COLOR=1"};
        OnScreen screen(client_path(), launch);
        Peer server = listener.accept();
        server.send_line("WELCOME alice Welcome.\nSAY bob hi\nERR wrong\nMSG bob alice psst\nINFO end");
        screen.wait("-- end");
        EXPECT_FALSE(re("\33\\[[0-9;]*[349][0-7][;m]").find(screen.process.output()));
    }
}

TEST(ScreenChat, WrapsAtLinesAndMarksTheDay) {
    ScriptedServer client({}, {24, 50});
    client.tell(
        "PAST 2020-01-02T03:04:05Z SAY bob old\n"
        "SAY bob word1 a long line that has to be cut somewhere between two of its words");
    EXPECT_TRUE(client.terminal.shows("── Thursday, 2020-01-02 ───"));
    EXPECT_TRUE(client.terminal.shows("03:04 bob: old"));
    int row = client.terminal.find("bob: word1 a long");
    EXPECT_EQ(client.terminal.line(row + 1).substr(0, 8), "        ");
    std::string both = client.terminal.line(row).substr(6) + ' ' + client.terminal.line(row + 1).substr(8);
    EXPECT_NE((both + ' ').find("a long line that has to be cut somewhere between two of "), std::string::npos);
    EXPECT_NE(client.terminal.line(row - 1).find("── " + local_time(std::time(nullptr), "%A")), std::string::npos);
}

TEST(ScreenChat, ShowsTheTopicAndWhoseLineItIs) {
    ScriptedServer client;
    client.wait("alice>");
    client.tell("TOPIC public task 3, page 12");
    EXPECT_TRUE(client.terminal.line(0).find("task 3, page 12") != std::string::npos) << client.terminal.text();
    client.tell("ROOM den - - You are in den.\nWHO den 1 alice");
    EXPECT_TRUE(client.terminal.shows("── den ── You are in den."));
    EXPECT_EQ(client.terminal.line(0).substr(0, 24), " den  1 person  127.0.0.");
    EXPECT_TRUE(client.terminal.line(0).find("task 3") == std::string::npos) << client.terminal.text();
}

TEST(ScreenChat, IsWholeWhereTheLocaleIsNotInstalled) {
    Listener listener;
    Launch launch = on_port(listener.port());
    launch.env.emplace_back("LC_ALL=xx_XX.UTF-8");
    OnScreen client(client_path(), launch);
    Peer server = listener.accept();
    server.send_line(
        "WELCOME alice Welcome.\nROOM den - - You are in den.\nSAY bob gr\xC3\xBC\xC3\x9F"
        "e");
    client.wait(
        "bob: gr\xC3\xBC\xC3\x9F"
        "e");
}

TEST(ScreenChat, TellsItsKeysInSmallWindowsToo) {
    ScriptedServer client({}, {10, 40});
    client.tell("TOPIC public task 3, page 12");
    client.wait(" public  2 people  task 3, page");
    for (const char* text : {" F1   F2 ", "alice>"}) client.wait(text);
    client.type(key("f2"));
    for (const char* text : {"Enter Join", "c Create", "x Exit code", "Esc Back", "Arrows choose, Enter joins."})
        client.wait(text);
    client.type(key("f1"));
    client.wait(" Esc Back  PgDn and PgUp show the rest.");
    client.type(key("pgdn") + key("pgdn") + key("pgdn") + key("pgdn") + key("pgdn") + key("pgdn") + key("pgdn"));
    client.wait("Marks:");
    client.type(key("esc"));
    client.wait("alice>");
}

TEST(ScreenChat, IsInAsciiWhereTheLocaleIs) {
    Listener listener;
    Launch launch = on_port(listener.port());
    launch.env.emplace_back("LC_ALL=C");
    OnScreen client(client_path(), launch);
    Peer server = listener.accept();
    server.send_line(
        "WELCOME alice Welcome.\nROOM den - - You are in den.\nWHO den 1 alice\nSAY bob \xE6\xBC\xA2 e\u0301 x");
    client.wait("bob: ?? e x");
    EXPECT_TRUE(client.terminal.shows("-- den -- You are in den.")) << client.terminal.text();
    const std::string& output = client.process.output();
    EXPECT_TRUE(std::all_of(output.begin(), output.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; }));
}

// ---------------------------------------------------------------------------------------------------------------------
// The line

TEST(ScreenLine, SurvivesAnythingThatArrives) {
    ScriptedServer client;
    const std::string draft = "half a line: é 你好 👨‍👩‍👧 ";
    client.type(draft);
    client.wait("half a line");
    client.tell(numbered("SAY bob flood ", 1, 500));
    client.tell("ROOM den - - You are in den.\nWHO den 1 alice\nERR no\nPASS Password?");
    client.type(key("esc"));
    client.wait("Password: ");
    client.type("secret\r");
    client.server.expect("secret");
    client.tell("ROOM public - - You are in public.\nWELCOME alice Again.");
    client.server.expect_next("/rooms");
    client.tell("ROOMS 0 rooms");
    client.resize({10, 30});
    client.resize({24, 80});
    client.type(key("up") + "the end\r");
    client.hear(draft + "the end");
}

TEST(ScreenLine, IsEditedByKeys) {
    ScriptedServer client;
    const std::vector<std::pair<std::string, std::string>> edits = {
        {"bc\x01"
         "a\x05"
         "d",
         "abcd"},
        {"abd" + key("left") + "c", "abcd"},
        {"bcd" + key("home") + "a" + key("right") + key("end") + "e", "abcde"},
        {"axb\x02\x02\x06\x08", "ab"},
        {"abxc\x02\x02\x04", "abc"},
        {"abxc" + key("left") + key("left") + key("del"), "abc"},
        {"abx\x7F"
         "c",
         "abc"},
        {"one two three\x17"
         "four",
         "one two four"},
        {"one two\33b\33bzero \33f and", "zero one and two"},
        {"one two\33[1;5Dx", "one xtwo"},
        {"one two\33b\x0B", "one "},
        {"one two\33b\x15", "two"},
        {"one two three\x01\33d\x05\x19", " two threeone"},
        {"one two\x17\x01\x19 ", "two one "},
        {"a\x0C"
         "b",
         "ab"},
        {"a\33[99;99~\33[1;2A\33Oxb", "ab"},  // keys that it does not know
    };
    for (const auto& [keys, line] : edits) {
        client.type(keys + "\r");
        client.hear(line);
    }
    EXPECT_EQ(client.terminal.strange, Lines{});
}

TEST(ScreenLine, IsEditedByGraphemes) {
    ScriptedServer client;
    const Lines graphemes = {"漢",     "e\u0301", "👨‍👩‍👧", "🇩🇪", "👍🏽",
                             "❤️", "한",      "a\u0300\u0301\u0302"};
    for (const std::string& grapheme : graphemes) {
        const std::string left = key("left"), erase = "\x7F";
        for (const std::string& typed : {std::string("a"), grapheme, grapheme, std::string("b"), left, erase,
                                         std::string("c"), left, left, key("del")}) {
            client.type(typed);
        }
        client.type("<" + key("end") + ">\r");
        client.hear("a<cb>");
    }
}

// What comes at once is taken in pieces, which may end anywhere in it.
TEST(ScreenLine, IsWholeHoweverItIsCut) {
    const std::string england = "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F";
    ScriptedServer client;
    for (std::size_t before = 36; before < 64; before += 3) {
        const std::string line = std::string(before, 'x') + england + "👨‍👩‍👧";
        client.type(line + "\r");
        client.hear(line);
    }
}

TEST(ScreenLine, KeepsTheCursorWhereItBelongs) {
    ScriptedServer client;
    client.type("漢字e\u0301👨‍👩‍👧🇩🇪x");
    client.wait("the cursor behind all", [](const Terminal& t) { return t.row == 23 && t.column == 17; });
    for (int column : {9, 7, 5, 4, 2, 0}) {
        client.type(key("left"));
        client.wait("the cursor at " + std::to_string(column),
                    [=](const Terminal& t) { return t.column == 7 + column; });
    }
    client.type(key("end") + std::string(200, 'y') + "漢");
    client.wait("the cursor on the screen", [](const Terminal& t) {
        return t.row == 23 && t.column < 80 && t.column > 1 && t.at(23, t.column - 2).text == "漢";
    });
}

TEST(ScreenLine, HasAHistoryThatKeepsTheDraft) {
    ScriptedServer client;
    for (int i = 1; i <= 510; ++i) client.type("line " + std::to_string(i) + "\r");
    for (int i = 1; i <= 510; ++i) client.hear("line " + std::to_string(i));
    client.type("draft" + key("up"));
    client.wait("line 510");
    client.type(key("up") + key("down") + key("down") + "!\r");
    client.hear("draft!");
    std::string ups;
    for (int i = 0; i < 600; ++i) ups += key("up");
    client.type(ups + "\r");
    client.hear("line 12");  // the oldest of 500: the draft was the last
}

TEST(ScreenLine, IsCompletedByTab) {
    ScriptedServer client;
    client.tell("ROOM den 12345 alice You are in den.\nROOM public - - You are in public.");
    client.tell(
        "WHO public 4 alice bob barbara carol\nSAY bob hi\nSAY barbara hi\nROOMS 2 rooms\n"
        "LIST 1 public 4 server 2026-01-02T03:04:05Z NO CODE\nLIST 2 garden 1 bob 2026-01-02T03:04:05Z CODE");
    const std::vector<std::pair<std::string, std::string>> completed = {{"b\t", "barbara: "},
                                                                        {"b\t\t", "bob: "},
                                                                        {"hello B\t", "hello barbara "},
                                                                        {"/cr\tx", "/create x"},
                                                                        {"/msg c\tx", "/msg carol x"},
                                                                        {"/join g\t12345", "/join garden 12345"},
                                                                        {"/join d\t12345", "/join den 12345"},
                                                                        {"zzz\t", "zzz"},
                                                                        {"/WHO\t", "/who "}};
    for (const auto& [keys, line] : completed) {
        client.type(keys + "\r");
        client.hear(line);
    }
}

TEST(ScreenLine, IsCompletedByWhoeverHasSpoken) {
    ScriptedServer client;
    client.tell("PAST 2026-01-02T03:04:05Z SAY dora hi\nMSG erin alice psst");
    for (const auto& [keys, line] : std::vector<std::pair<std::string, std::string>>{
             {"do\t", "dora: "}, {"/msg e\tx", "/msg erin x"}, {"  /ms\te\tx", "  /msg erin x"}}) {
        client.type(keys + "\r");
        client.hear(line);
    }
}

TEST(ScreenLine, IsCompletedByTheServersRoomsAtTheFirstTab) {
    Server server({.args = {"--rooms", "red,green"}});
    User alice(server);
    alice.wait("You are in public.");
    alice.type("hello\r");
    alice.wait("alice: hello");  // behind the answer to /rooms, which was sent before
    alice.type("/join gr\t\r");
    alice.wait("You are in green.");
}

TEST(ScreenLine, IsCompletedByNewRoomsAtTheNextTab) {
    ScriptedServer client;
    client.type("/join d\t");
    EXPECT_NO_THROW(client.server.expect_next("/rooms"));
    client.server.send_line("ROOMS 1 rooms");
    client.server.send_line("LIST 2 den 1 bob 2026-01-01T00:00:00Z NO CODE");
    client.server.send_line("SAY bob hello");
    client.wait("bob: hello");
    client.type("\t12345\r");
    client.hear("/join den 12345");
}

TEST(ScreenLine, AsksBeforeSeveralPastedLinesAreSent) {
    ScriptedServer client;
    client.type("\33[200~one\tline\33[31m\33[201~\r");
    client.hear("one line\xEF\xBF\xBD[31m");
    client.type("draft \33[200~a\rb\nc\r\n\33[201~");
    client.wait("Send 3 lines?");
    client.type(key("esc"));
    client.wait_gone("Send 3 lines?");
    client.type("kept\r");
    client.hear("draft kept");
    client.type("\33[200~a\rb\r/c\33[201~");
    client.wait("Send 3 lines?");
    client.type("\r");
    for (const char* line : {"a", "b", "/c"}) client.hear(line);
}

TEST(ScreenLine, SendsNoPasteInAnotherRoomThanItWasFor) {
    ScriptedServer client;
    client.type("\33[200~a\rb\33[201~");
    client.wait("Send 2 lines?");
    client.tell("ROOM den - - You are in den.");
    client.type("y");
    client.wait("Nothing was sent: it was for public.");
    client.type("hello\r");
    client.hear("hello");
}

TEST(ScreenLine, SendsAPasteAtOneKeyAndStopsItAtAnother) {
    ScriptedServer client;
    client.type("\33[200~a\rb\33[201~");
    client.wait("Send 2 lines?");
    client.type("nc\r");
    client.hear("c");
    client.type("\33[200~a\rb\rc\33[201~");
    client.wait("Send 3 lines?");
    client.type("y");
    client.server.expect_next(re("^a$"));
    client.wait("Lines waiting: 3");
    client.type(key("esc"));
    client.wait_gone("Lines waiting: 3");
    client.server.send_line("SAY alice a");
    client.wait("alice: a");
    client.type("d\r");
    client.hear("d");
}

TEST(ScreenLine, IsBounded) {
    ScriptedServer client;
    client.type(std::string(5000, 'x'));
    client.wait("as long as a line may be");
    client.type("\r");
    client.server.expect_next([](std::string_view line) { return line.size() > 4000 && line.size() <= 4096; });
}

// What does not fit is told, though what comes after it may fit again.
TEST(ScreenLine, LosesNothingInSilence) {
    ScriptedServer client;
    client.type(std::string(4060, 'x'));
    client.wait("all", [](const Terminal& t) { return t.line(23).ends_with("x") && t.column > 1; });
    client.type(std::string(200, 'y'));
    client.wait("as long as a line may be");
    client.type(key("left"));
    client.tell("INFO the key was pressed");
    EXPECT_TRUE(client.terminal.shows("as long as a line may be"));
}

// ---------------------------------------------------------------------------------------------------------------------
// What was said before

TEST(ScreenScrollback, StaysWhereItIsAndCountsWhatComes) {
    ScriptedServer client;
    client.tell(numbered("SAY bob line ", 1, 100));
    client.type(key("pgup") + key("pgup"));
    client.wait("older lines", [](const Terminal& t) { return t.shows("bob: line 50") && !t.shows("bob: line 100"); });
    const std::string before = client.terminal.text().substr(0, 1200);
    client.server.send_raw(numbered("SAY bob more ", 1, 12));
    client.wait("12 new");
    EXPECT_EQ(client.terminal.text().substr(0, 1200), before);
    EXPECT_EQ(client.terminal.title, "(12) public - Chatroom");
    client.type(key("pgdn") + key("pgdn") + key("pgdn"));
    client.wait("bob: more 12");
    client.wait_gone("12 new");
    EXPECT_TRUE(client.terminal.shows("── new ───")) << client.terminal.text();
    EXPECT_EQ(client.terminal.find("── new ───") + 1, client.terminal.find("bob: more 1"));
    EXPECT_EQ(client.terminal.title, "public - Chatroom");
    client.type(key("wheel up"));
    client.wait_gone("more 12");
    client.type(key("wheel down"));
    client.wait("more 12");
    client.type("I have read it\r");
    client.wait_gone("── new ───");
}

TEST(ScreenScrollback, HasTenThousandLinesAndABeginning) {
    ScriptedServer client({}, {24, 80});
    client.tell(numbered("SAY bob line ", 1, 10050));
    std::string ups;
    for (int i = 0; i < 600; ++i) ups += key("pgup");
    client.type(ups);
    client.wait(
        "the oldest line",
        [](const Terminal& t) {
            return t.line(1).ends_with("bob: line 52") || t.line(1).find("bob: line 52 ") != std::string::npos;
        },
        20);
    client.type("x\r");
    client.wait("bob: line 10050");
}

TEST(ScreenScrollback, MarksWhereOneLeftOff) {
    ScriptedServer client;
    client.tell("SAY bob before");
    client.type(key("focus out") + "x");
    client.wait("with the x, so that the focus is out too", [](const Terminal& t) { return t.line(23) == "alice> x"; });
    client.tell("SAY bob one\nSAY bob two");
    EXPECT_EQ(client.terminal.find("── new ───") + 1, client.terminal.find("bob: one"));
    EXPECT_EQ(client.terminal.title, "(2) public - Chatroom");
    client.type(key("focus in"));
    client.wait("no count in the title", [](const Terminal& t) { return t.title == "public - Chatroom"; });
    EXPECT_TRUE(client.terminal.shows("── new ───"));
}

int bells_of(const std::string& when) {
    ScriptedServer client({"--bell", when});
    int bells = 0;
    for (const char* line : {"SAY bob nothing", "SAY bob malice and alices", "SAY alice I am alice",
                             "PAST 2026-01-02T03:04:05Z SAY bob alice", "SAY bob Hello, Alice!", "MSG bob alice psst",
                             "MSG alice bob psst", "INFO alice"}) {
        client.terminal.bells = 0;
        client.tell(line);
        bells = bells * 2 + client.terminal.bells;
        if (client.terminal.bells > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1050));  // one a second
    }
    return bells;
}

TEST(ScreenBell, RingsWhenItIsWanted) {
    EXPECT_EQ(bells_of("off"), 0b00000000);
    EXPECT_EQ(bells_of("private"), 0b00000100);
    EXPECT_EQ(bells_of("mention"), 0b00001100);
    EXPECT_EQ(bells_of("all"), 0b11001100);
}

// ---------------------------------------------------------------------------------------------------------------------
// The list of rooms

TEST(ScreenRooms, AreListedAndRefreshed) {
    Server server({.args = {"--rooms", "red,green"}});
    User alice(server);
    alice.type(key("f2"));
    alice.wait("green");
    const std::string today = local_time(std::time(nullptr), "%Y-%m-%d");
    EXPECT_TRUE(re("^ 1 +public +1 +NO CODE +server +" + today).find(alice.terminal.text())) << alice.terminal.text();
    Peer bob(server.port(), "bob");
    bob.send_line("/create garden 54321");
    alice.wait("garden", 10);  // by itself
    EXPECT_TRUE(re("^ 4 +garden +1 +CODE +bob +" + today).find(alice.terminal.text())) << alice.terminal.text();
    bob.send_line("/leave");
    bob.lines_until_echo();
    alice.type("r");
    alice.wait_gone("garden", 2);
}

TEST(ScreenRooms, AreAskedForByNoLineOfThePersons) {
    ScriptedServer client;
    client.type(key("f2"));
    client.server.expect_next("/rooms");
    client.server.reset();
    client.wait("trying again");
    client.type(key("esc"));
    client.wait_gone("c Create");
    client.type("\x04");
    EXPECT_EQ(client.process.wait_exit(), 0);
    EXPECT_FALSE(contains(client.process.output(), "of your lines")) << client.process.output();
    EXPECT_FALSE(contains(client.process.output(), "not sent")) << client.process.output();
}

TEST(ScreenRooms, AreNotWaitedFor) {
    ScriptedServer client;
    client.type(key("f2"));
    client.server.expect_next("/rooms");
    client.server.send_line("INFO public: 1");  // as the tutorial's servers answer
    client.type(key("esc"));
    client.wait("-- public: 1");
    client.type("hello\r");
    client.hear("hello");
}

TEST(ScreenRooms, AreJoinedByKeysAndByMouse) {
    Server server({.args = {"--rooms", "red,green"}});
    User alice(server);
    Peer bob(server.port(), "bob");
    bob.send_line("/create garden 54321");
    bob.expect("ROOM garden");
    alice.type(key("f2"));
    alice.wait("garden");
    alice.type(key("down") + key("down") + "\r");
    alice.wait("You are in green.");
    alice.click("F2 Rooms");
    alice.wait("Exit code");
    alice.click(" 2    red");
    alice.click(" 2    red");
    alice.wait("You are in red.");
    alice.type(key("f2"));
    alice.wait("garden");
    alice.type(key("home") + key("end"));
    alice.click("Enter Join");
    alice.wait("The code of garden: ");
    alice.type("11111\r");
    alice.wait("That is not the room's code");
    alice.type("\r");
    alice.wait("The code of garden: ");
    alice.type("54321\r");
    alice.wait("You are in garden.");
    alice.type("/rooms\r");
    alice.wait("Esc Back");
    alice.click("Esc Back");
    alice.wait("bob owner");
}

TEST(ScreenRooms, AreNotJoinedWithoutTheirCode) {
    Server server;
    Peer bob(server.port(), "bob");
    bob.send_line("/create garden 54321");
    bob.expect("ROOM garden");
    User alice(server);
    alice.type(key("f2"));
    alice.wait("garden");
    alice.type(key("end") + "\r");
    alice.wait("The code of garden: ");
    alice.type("\r");
    alice.wait_gone("The code of garden: ");
    alice.type(key("esc"));
    alice.wait_gone("Esc Back");
    alice.type("here\r");
    alice.wait("alice: here");
    EXPECT_FALSE(alice.terminal.shows("needs a code"));  // which would name a command
}

TEST(ScreenRooms, AreMade) {
    Server server;
    User alice(server);
    alice.type(key("f2"));
    alice.wait("c Create");
    alice.click("c Create");
    alice.wait("The new room's name: ");
    alice.type("den\r");
    alice.wait("Five digits, or no code: ");
    alice.type("12345\r");
    alice.wait("den  code 12345");
    alice.type(key("f2"));
    alice.wait("CODE     alice");
    alice.type("c");
    alice.wait("The new room's name: ");
    alice.type(key("esc"));
    alice.wait_gone("The new room's name: ");
    alice.type("i");
    alice.wait("Keys");
    alice.type(key("esc"));
    alice.wait("alice owner");
    alice.type(key("f1"));
    alice.wait("This is Chatroom");
    alice.type(key("pgdn") + key("pgdn"));
    alice.wait("Marks:");
}

TEST(ScreenRooms, LetTheExitCodeEndTheServer) {
    Server server;
    const std::string code = server.wait_output(re("exit code: ([0-9]{5})"));
    User alice(server);
    alice.type(key("f2"));
    alice.wait("x Exit code");
    alice.click("x Exit code");
    alice.wait("Exit code, to shut the server down: ");
    alice.type(code + "\r");
    EXPECT_EQ(server.wait_exit(), 0);
    alice.wait(" Esc Leave  The server shuts down.");
    alice.type(key("esc"));
    EXPECT_EQ(alice.process.wait_exit(), 1);
    alice.see();
    EXPECT_TRUE(alice.terminal.shows("The server shuts down.")) << alice.terminal.text();
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes, and what is sent to the terminal

TEST(ScreenSize, CanBeAnyAndChangesAtAnyMoment) {
    ScriptedServer client;
    client.tell(numbered("SAY bob a line of some length with 你好 and 👨‍👩‍👧 in it ", 1, 60));
    for (Window size : {Window{1, 1}, {2, 1}, {1, 2}, {3, 10}, {10, 40}, {6, 3}, {200, 500}, {24, 80}}) {
        client.type("draft 漢字");
        for (const std::string& keys :
             {key("f2"), key("f1"), key("esc"), key("pgup"), key("pgdn"), std::string("\x0C")}) {
            client.resize(size);
            client.type(keys);
        }
        client.type("\r");  // which also goes down to the latest lines, however far up the keys have gone
        const std::string end = "rows: " + std::to_string(size.rows);
        auto answered = std::async(std::launch::async, [&] {
            while (client.server.expect_next() == "/rooms") client.server.send_line("ROOMS 0 rooms");
            client.server.send_line("SAY alice draft\nINFO " + end);
        });
        if (size.rows >= 10) client.wait(end);  // and meanwhile reads what is painted
        answered.get();
    }
}

TEST(ScreenSize, LeavesNoStrayCharacter) {
    ScriptedServer client;
    client.tell(numbered("SAY bob a line of some length with 你好 and 👨‍👩‍👧 in it ", 1, 60));
    for (int i = 1; i <= 40; ++i)
        client.resize({static_cast<unsigned short>(1 + i % 24), static_cast<unsigned short>(1 + i * 7 % 90)});
    client.resize({24, 80});
    client.tell("SAY bob the last one");
    client.wait("its last row", [](const Terminal& t) { return t.line(23) == "alice>"; });
    const std::string shown = client.terminal.text();
    client.process.mark();
    client.type("\x0Cz");
    client.process.wait_output("\33[2J");
    client.wait("all anew", [](const Terminal& t) { return t.line(23) == "alice> z"; });
    EXPECT_EQ(client.terminal.text(), shown.substr(0, shown.size() - 1) + " z\n");
    EXPECT_EQ(client.terminal.strange, Lines{});
}

TEST(ScreenSize, RedrawsOnlyWhatChanged) {
    ScriptedServer client;
    client.tell(numbered("SAY bob line ", 1, 10));
    client.process.mark();
    const std::size_t before = client.process.output().size();
    client.type("x");
    client.wait("x in the last row", [](const Terminal& t) { return t.line(23) == "alice> x"; });
    const std::string sent = client.process.output().substr(before);
    EXPECT_EQ(sent.find("bob"), std::string::npos) << "more than the last row: " << sent;
    EXPECT_LT(sent.size(), 200U);
}

TEST(ScreenSpeed, SleepsWhenNothingHappens) {
    if (std::getenv("CHATROOM_SLOW") != nullptr) GTEST_SKIP() << "a sanitizer has threads of its own";
    ScriptedServer client;
    client.tell("INFO quiet");
    const auto switches = [&] {
        long all = 0;
        for (const auto& thread :
             std::filesystem::directory_iterator("/proc/" + std::to_string(client.process.pid()) + "/task")) {
            const std::string status = read_file(thread.path() / "status");
            all += std::stol(status.substr(status.find("voluntary_ctxt_switches:") + 24));
        }
        return all;
    };
    EXPECT_TRUE(eventually([&] {  // a busy machine lets it go to sleep a little later
        const long before = switches();
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
        return switches() - before <= 1;
    }));
}

// What the server of a test goes on sending while the test looks at the client.
class Flood {
   public:
    Flood(ScriptedServer& client, std::function<void(Peer&)> send) {
        sender_ = std::async(std::launch::async, [this, &client, send = std::move(send)] {
            while (!enough_) send(client.server);
        });
    }
    ~Flood() { enough_ = true; }

   private:
    std::atomic<bool> enough_ = false;
    std::future<void> sender_;
};

TEST(ScreenSpeed, ShowsAKeyAtOnceWhileFiveHundredLinesASecondCome) {
    ScriptedServer client;
    const Flood flood(client, [i = 0](Peer& server) mutable {
        server.send_line("SAY bob flood " + std::to_string(i++));
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    });
    const auto latest = [](const Terminal& t) {
        const std::string text = t.text(), before = "bob: flood ";
        const std::size_t at = text.rfind(before);
        return at == text.npos ? -1 : std::stoi(text.substr(at + before.size()));
    };
    std::vector<double> times;
    for (int i = 0; i < 50; ++i) {
        client.wait("with ten more lines", [&](const Terminal& t) { return latest(t) >= 10 * i; });
        const std::string draft = "alice> " + std::string(static_cast<std::size_t>(i) + 1, 'x');
        const auto start = harness::Clock::now();
        client.type("x");
        client.wait("a key", [&](const Terminal& t) { return t.line(23) == draft; });
        times.push_back(std::chrono::duration<double, std::milli>(harness::Clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    EXPECT_LT(times[5], 16) << "milliseconds; most keys may take longer on a busy machine";
    std::cout << "key to screen: median " << times[25] << " ms, worst " << times.back() << " ms\n";
}

// ---------------------------------------------------------------------------------------------------------------------
// The terminal is given back

TEST(ScreenEnd, GivesTheTerminalBackOnEveryWayOut) {
    Server server;
    for (const std::string way : {"quit", "Ctrl-D", "Ctrl-C", "TERM", "HUP", "QUIT", "SEGV", "ABRT", "kick"}) {
        Pty tester("/bin/cat");
        const termios before = tester.modes();
        User alice(server);
        EXPECT_TRUE(alice.terminal.alternate);
        if (way == "quit") alice.type("/quit\r");
        if (way == "Ctrl-D") alice.type("\x04");
        if (way == "Ctrl-C") alice.type("\x03");
        if (way == "TERM") alice.process.signal(SIGTERM);
        if (way == "HUP") alice.process.signal(SIGHUP);
        if (way == "QUIT") alice.process.signal(SIGQUIT);
        if (way == "SEGV") alice.process.signal(SIGSEGV);
        if (way == "ABRT") alice.process.signal(SIGABRT);
        if (way == "kick") {
            server.write("/kick alice\n");
            alice.wait(" Esc Leave  You were kicked by server.");
            alice.type("\x04");
        }
        const int status = alice.process.wait_exit();
        EXPECT_EQ(status == 0, way == "quit" || way == "Ctrl-D") << way;
        EXPECT_TRUE(is_given_back(alice, before)) << way;
        EXPECT_EQ(alice.terminal.shows("You were kicked by server."), way == "kick");
        server.wait_output(re("public -- alice (left|lost|was)"));  // only then her name is free
        server.mark();
    }
}

// What is asked then, a password say, is not answered with "/quit".
TEST(ScreenEnd, LeavesAtAQuestion) {
    for (const std::string question : {"NICK Your name?", "PASS The password?", "NEWPASS A new password?"}) {
        ScriptedServer client;
        client.tell(question);
        client.type("\x04");
        EXPECT_EQ(client.process.wait_exit(), 0) << question;
        EXPECT_TRUE(client.server.expect_closed().empty()) << question;
    }
}

TEST(ScreenEnd, StopsAndGoesOn) {
    Server server;
    Launch launch{.args = {"-i"}, .env = {"PS1=shell> ", "NO_COLOR"}};
    OnScreen shell("/bin/sh", launch);
    shell.wait("shell>");
    shell.type(client_path() + " 127.0.0.1 " + std::to_string(server.port()) + " --name alice\n");
    shell.wait("the chat", [](const Terminal& t) { return t.alternate && t.shows("Welcome, alice"); });
    shell.type("half a li");
    shell.wait("half a li");
    shell.type("\x1A");
    shell.wait("its prompt", [](const Terminal& t) { return t.shows("Stopped") && t.line(t.row) == "shell>"; });
    EXPECT_FALSE(shell.terminal.alternate);
    EXPECT_EQ(shell.terminal.modes, (std::set<int>{7, 25}));
    shell.type("echo $((6 * 7)) is the answer\n");
    shell.wait("42 is the answer");
    EXPECT_TRUE(shell.terminal.shows("echo $((6"));
    Peer bob(server.port(), "bob");
    bob.send_line("while you were gone");
    shell.type("fg\n");
    shell.wait("the chat again", [](const Terminal& t) { return t.alternate && t.shows("while you were gone"); });
    shell.type("ne\r");
    bob.expect("SAY alice half a line");
}

TEST(ScreenEnd, ComesBackWhenTheConnectionBreaks) {
    ScriptedServer client;
    client.tell("ROOM den 12345 alice You are in den.\nWHO den 1 alice\nPASS Password?");
    client.type("secret\r");
    client.server.expect("secret");
    client.tell("NEWPASS A new one?");
    client.type("longer secret\rlonger secret\r");
    client.server.expect("longer secret");
    client.tell("INFO Your password is changed.");
    client.type("half a ");
    client.wait("half a");
    client.server.reset();
    client.wait("trying again in 1 s");
    client.type("line\r");
    client.wait("Lines waiting: 1");
    {
        Peer again = client.listener->accept();  // the name is still taken: it does not ask the person
        again.send_line("NICK Your name?");
        again.expect_next(re("^alice$"));
        again.send_raw("ERR Somebody has it.\nNICK Your name?\n");
        again.expect_closed();
    }
    client.wait("trying again in 2 s");
    Peer again = client.listener->accept();
    again.send_line("NICK Your name?");
    again.expect_next(re("^alice$"));
    again.send_line("PASS Password?");
    again.expect_next(re("^longer secret$"));
    again.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.");
    again.expect_next(re("^/join den 12345$"));
    again.send_line("ROOM den 12345 alice You are in den.\nINFO back");
    client.wait("-- back");
    again.expect_next(re("^half a line$"));
    again.send_line("BYE IDLE You were silent for too long.");
    client.wait(" Esc Leave  You were silent for too long.");
    client.type(key("esc"));
    EXPECT_EQ(client.process.wait_exit(), 1);
    client.see();
    EXPECT_TRUE(client.terminal.shows("You were silent for too long."));
}

// For a second after the end Enter does nothing, since it may have been meant for the line that was being typed.
void wait_until_enter_counts() {
    const auto end = harness::Clock::now() + std::chrono::milliseconds(1100);
    eventually([&] { return harness::Clock::now() > end; });
}

TEST(ScreenEnd, StaysUntilOneLeavesOrJoinsAgain) {
    ScriptedServer client;
    client.tell("ROOM den 12345 alice You are in den.");
    client.type("a draft");
    client.server.send_line("BYE KICK You were kicked by bob.");
    client.wait(" Enter Join again   Esc Leave  You were kicked by bob.");
    client.type("\rmore\r");
    client.server.expect_eof();
    const std::future<void> enters = std::async(std::launch::async, [&] {
        wait_until_enter_counts();
        client.process.write("\r");
    });
    enters.wait();
    Peer again = client.listener->accept();
    again.send_line("NICK Your name?");
    again.expect_next(re("^alice$"));
    again.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.");
    again.expect_next(re("^/join den 12345$"));
    again.send_line("ROOM den 12345 alice You are in den.");
    client.wait("alice> a draft");
    EXPECT_EQ(count_in(client.terminal.text(), "Your name?"), 0);
    client.type("\r");
    again.expect_next(re("^a draft$"));
}

TEST(ScreenEnd, ShowsTheChatWhateverWasOpen) {
    ScriptedServer client;
    client.type(key("f2"));
    client.wait("c Create");
    client.server.reset();
    client.wait("trying again");
    Peer again = client.listener->accept();
    again.send_line("NICK Your name?");
    again.expect_next("alice");
    again.send_line("WELCOME alice Welcome.\nROOM public - - You are in public.\nINFO back");
    client.wait("-- back");
    EXPECT_FALSE(contains(client.terminal.line(client.terminal.rows() - 2), "trying again"));
    client.type(key("f2"));
    client.wait("c Create");
    again.send_line("BYE KICK You were kicked by bob.");
    client.wait("You were kicked by bob.");
    EXPECT_FALSE(client.terminal.shows("c Create"));
}

TEST(ScreenEnd, AsksForAnotherNameWhenSomebodyHasTaken) {
    Server server;
    User alice(server);
    server.write("/kick alice\n");
    alice.wait("Join again");
    Peer thief(server.port(), "alice");
    wait_until_enter_counts();
    alice.type("\r");
    alice.wait("Somebody here has the name alice already.");
    alice.wait("Your name: ");
    alice.type("alicia\r");
    alice.wait("Welcome, alicia");
    thief.expect("JOIN alicia");
}

TEST(ScreenEnd, OffersNoWayBackAfterABan) {
    for (const std::string word : {"BYE BAN", "BAN"}) {
        ScriptedServer client;
        client.server.send_line(word + " Alice is banned.");
        client.wait(" Esc Leave  Alice is banned.");
        EXPECT_FALSE(client.terminal.shows("Join again"));
        wait_until_enter_counts();
        client.type("\r");
        client.type(key("esc"));
        EXPECT_EQ(client.process.wait_exit(), 1);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Hostile servers

TEST(ScreenTrusts, NoServer) {
    ScriptedServer client;
    client.tell("SAY bob " + std::string(16000, 'x') + "\nSAY bob " + std::string(1 << 20, 'y') + "\nINFO long");
    std::string members = "WHO public 1000000";
    for (int i = 0; i < 100'000; ++i) members += (i % 1000 == 0 ? "\nWHO public 1000000 m" : " m") + std::to_string(i);
    client.tell(members);
    std::string rooms = "ROOMS 1000000 rooms";
    for (int i = 0; i < 100'000; ++i)
        rooms += "\nLIST " + std::to_string(i) + " room 1 bob 2026-01-02T03:04:05Z NO CODE";
    client.tell(rooms);
    rooms = "ROOMS 2000 rooms";
    for (int i = 0; i < 2000; ++i) rooms += "\nLIST 1 " + std::string(9000, 'x') + " 1 bob 2026-01-02T03:04:05Z CODE";
    client.tell(rooms);
    const std::string right_to_left{'\xE2', '\x80', '\xAE'};
    for (const std::string& evil : Lines{"\33[2J", "\33]2;x\a", "\r", "\b", "\x9B", "\xC2\x9B", right_to_left}) {
        for (const char* form : {"SAY % %", "ME %", "MSG % % %", "ROOM % % % x", "WHO % 1 %", "OWNER % x", "JOIN % %",
                                 "LIST 1 % 1 % % CODE", "INFO %", "PAST % SAY % %", "%"}) {
            client.tell(std::regex_replace(form, std::regex("%"), "a" + evil + "31m"));
        }
        client.server.send_line("NICK " + evil);
        client.type("\r");
    }
    std::string accents = "SAY bob e";
    for (int i = 0; i < 5000; ++i) accents += "\u0301";
    client.tell(accents);
    EXPECT_EQ(client.terminal.strange, Lines{});
    client.type("still here");
    client.wait("still here");
    EXPECT_LT(resident_bytes(client.process.pid()), max_memory);
}

TEST(ScreenTrusts, NoFloodToEnd) {
    ScriptedServer client;
    std::string lines;
    for (int i = 0; i < 1000; ++i) lines += "SAY bob \u0301 flood " + std::string(100, 'x') + "\n";
    const Flood flood(client, [&](Peer& server) { server.try_send(lines, 0.2); });
    client.wait("flood");
    for (int i = 1; i <= 5; ++i) {
        client.type("x");
        client.wait("a key", [=](const Terminal& t) {
            return t.line(23) == "alice> " + std::string(static_cast<std::size_t>(i), 'x');
        });
    }
    EXPECT_LT(resident_bytes(client.process.pid()), max_memory);
    client.type("\x03");
    EXPECT_EQ(client.process.wait_exit(), -SIGINT);
}

}  // namespace
