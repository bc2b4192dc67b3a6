// The promises of docs/design.md, held against the real server over TCP. Each test cites the one that it is about.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "harness.hpp"

using namespace harness;

namespace {

using namespace std::chrono_literals;
using namespace std::string_literals;
using Seconds = std::chrono::duration<double>;
using Crowd = std::deque<Peer>;

const std::string replaced = "\uFFFD";

// ---------------------------------------------------------------------------------------------------------------------
// Helpers

double seconds_since(Clock::time_point begin) { return Seconds(Clock::now() - begin).count(); }

// Where a time is the promise: that something takes no longer when nothing else makes the machine busy, which a few
// tries find out. Four times as long when sanitizers slow the server down.
void expect_within(double seconds, const std::function<double()>& measure) {
    if (std::getenv("CHATROOM_SLOW") != nullptr) seconds *= 4;
    double best = measure();
    for (int tries = 1; tries < 5 && best >= seconds; ++tries) best = std::min(best, measure());
    EXPECT_LT(best, seconds);
}

// People who log in as name0, name1 and so on.
Crowd crowd(int port, int count, const std::string& name) {
    Crowd people;
    for (int i = 0; i < count; ++i) people.emplace_back(port, (name + std::to_string(i)).c_str());
    return people;
}

// The next lines that are said, as they come: "SAY alice hello".
Lines expect_said(Peer& listener, int count, Deadline until = {}) {
    Lines lines;
    for (int i = 0; i < count; ++i) lines.push_back(listener.expect(starts("SAY "), until));
    return lines;
}

// That these are numbered() lines of the speaker, all of them and in order.
void expect_numbered(const Lines& lines, const std::string& speaker, const std::string& text) {
    for (std::size_t i = 0; i < lines.size(); ++i) {
        ASSERT_EQ(lines[i], "SAY " + speaker + " " + text + " " + std::to_string(i));
    }
}

// That two people can talk: what a server that runs on is for. Their names are free afterwards.
void expect_chat(Peer& eve, Peer& fay) {
    eve.send_line("are you there?");
    fay.expect("SAY eve are you there?");
    fay.send_line("I am.");
    eve.expect("SAY fay I am.");
    for (Peer* peer : {&eve, &fay}) {
        peer->send_line("/quit");
        peer->expect_eof();
    }
}

void expect_chat(int port) {
    Peer eve(port, "eve"), fay(port, "fay");
    expect_chat(eve, fay);
}

// A connection that never reads, and for which much waits so that its socket is full: it asks for what it does not
// read until the server reads no more from it.
std::unique_ptr<Peer> stalled_peer(int port, const std::string& name) {
    auto peer = std::make_unique<Peer>(port, PeerOptions{.receive_buffer = 4096, .deaf = true});
    peer->login(name);
    const std::string request = "/echo " + std::string(4000, 'x') + "\n";
    const Deadline enough(20);
    while (peer->try_send(request, 0.3) && !enough.passed()) continue;
    EXPECT_FALSE(enough.passed()) << "the server reads on and on";
    return peer;
}

// Processor time that a process has used, in seconds.
double cpu_seconds(pid_t pid) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
    std::string field;
    file.ignore(10000, ')');
    for (int i = 0; i < 11; ++i) file >> field;  // those from "state" to "cmajflt"
    double user = 0, system = 0;
    file >> user >> system;
    return (user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

int count_lines_with(const std::string& text, const std::string& part) {
    std::istringstream stream(text);
    int count = 0;
    for (std::string line; std::getline(stream, line);) count += line.find(part) != line.npos;
    return count;
}

// ---------------------------------------------------------------------------------------------------------------------
// Promise 1: same order for all

// Promise 1: everyone sees the same lines in the same order, the speakers included.
TEST(SameOrder, ForTenTalkersAndTwentyListeners) {
    Server server;
    Crowd listeners = crowd(server.port(), 20, "listener");
    Crowd talkers = crowd(server.port(), 10, "talker");
    for (Peer& talker : talkers) talker.send_raw(numbered("line ", 0, 49));
    const Lines first = expect_said(listeners[0], 500);
    for (std::size_t i = 1; i < listeners.size(); ++i) EXPECT_EQ(expect_said(listeners[i], 500), first);
    for (Peer& talker : talkers) EXPECT_EQ(expect_said(talker, 500), first);
}

// Promise 1: each speaker's lines stay in the order in which they were sent.
TEST(SameOrder, HoldsForEachSpeaker) {
    Server server;
    Peer listener(server.port(), "listener");
    Crowd talkers = crowd(server.port(), 5, "talker");
    for (Peer& talker : talkers) talker.send_raw(numbered("line ", 0, 99));
    std::map<std::string, Lines> by_speaker;
    for (const std::string& line : expect_said(listener, 500)) by_speaker[line.substr(4, 7)].push_back(line);
    ASSERT_EQ(by_speaker.size(), 5U);
    for (const auto& [speaker, lines] : by_speaker) {
        EXPECT_EQ(lines.size(), 100U);
        expect_numbered(lines, speaker, "line");
    }
}

// Promise 1: what is shown to those who come later has that order too.
TEST(SameOrder, HoldsForNewcomers) {
    Server server;
    Crowd talkers = crowd(server.port(), 3, "talker");
    for (Peer& talker : talkers) talker.send_raw(numbered("line ", 0, 39));
    const Lines said = expect_said(talkers[0], 120);
    Peer late(server.port(), "late");
    Lines past;
    for (const std::string& line : late.lines_until_echo()) past.push_back(line.substr(line.find("SAY ")));
    EXPECT_EQ(past, Lines(said.end() - 50, said.end()));
}

// Promise 1: what is said to a room and what is sent to one alone keep their order, though they wait in two places.
TEST(SameOrder, HoldsForRoomAndPrivateLines) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    std::string sent;
    Lines wanted;
    for (int i = 0; i < 100; ++i) {
        sent += "to all\n/msg bob to you\n";
        wanted.insert(wanted.end(), {"SAY alice to all", "MSG alice bob to you"});
    }
    alice.send_raw(sent);
    EXPECT_EQ(alice.lines_until_echo(), wanted);
    EXPECT_EQ(bob.lines_until_echo(), wanted);
}

// Promise 1: a client that moves from room to room sees all that it says, and so do the others, and one that ignores
// somebody.
TEST(SameOrder, HoldsForThoseWhoMoveAndThoseWhoIgnore) {
    Server server({.args = {"--rooms", "den"}});
    Peer carol(server.port(), "carol"), alice(server.port(), "alice"), bob(server.port(), "bob");
    carol.expect("JOIN bob");
    carol.send_line("/ignore bob");
    carol.expect("INFO");
    std::string sent;
    Lines alices, others;
    for (int i = 0; i < 100; ++i) {
        sent += "/join den\nhere\n/leave\nback\n";
        alices.insert(alices.end(), {"SAY alice here", "SAY alice back"});
        others.insert(others.end(), {"LEAVE alice left for another room.", "JOIN alice joined.", "SAY alice back"});
    }
    alice.send_raw(sent + "the end\n");
    bob.send_raw(numbered("not for carol ", 0, 299));
    EXPECT_EQ(carol.lines_until("SAY alice the end"), others);
    Lines said = alice.lines_until("SAY alice the end");
    std::erase_if(said, [](const std::string& line) { return !line.starts_with("SAY alice"); });
    EXPECT_EQ(said, alices);
    Lines seen = bob.lines_until("SAY alice the end");
    std::erase_if(seen, [](const std::string& line) { return line.starts_with("SAY bob"); });
    EXPECT_EQ(seen, others);
    bob.send_line("/join den");
    EXPECT_EQ(carol.lines_until("LEAVE bob"), Lines{});
}

// ---------------------------------------------------------------------------------------------------------------------
// Promise 2: nobody waits for anybody

// Says whether a sanitizer takes memory of its own, and keeps what was freed for a while.
bool sanitized() { return std::getenv("CHATROOM_SLOW") != nullptr; }

// Promise 2: a client that does not read costs the others nothing, costs the server little memory, and is dropped at 1
// MiB.
TEST(NobodyWaits, ForAClientThatDoesNotRead) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    Peer stalled(server.port(), PeerOptions{.receive_buffer = 4096, .deaf = true});
    stalled.login("stalled");
    const long before = resident_bytes(server.pid());
    const std::string end = "LEAVE stalled could not keep up: 1 MiB waited.";  // the log may be too full for it
    bool dropped = false;
    for (int i = 0; i < 5000 && !dropped; ++i) {
        const std::string text = std::to_string(i) + std::string(4000, 'x');
        alice.send_line(text);
        for (const std::string& line : bob.lines_until("SAY alice " + text)) dropped |= line == end;
        alice.lines_until("SAY alice " + text);
        EXPECT_TRUE(server.running());  // which takes in the log
    }
    EXPECT_TRUE(dropped) << "20 MB were said, and it is still there";
    if (!sanitized()) {
        EXPECT_LT(resident_bytes(server.pid()) - before, 16L << 20);
    }
    stalled.expect_closed();
}

void expect_too_slow(const Lines& lines) {
    ASSERT_GE(lines.size(), 2U);
    EXPECT_EQ(lines.back(), "REFUSE That took too long: a minute for an answer, five for all.");
    EXPECT_EQ(lines[lines.size() - 2], "INFO You have 30 seconds left to answer.");
}

// Promise 2: an answer during the login has a minute however it is drawn out, and half of it is told; a client that
// takes nothing of what is sent for 10 seconds is dropped.
TEST(NobodyWaits, ForAClientThatIsTooSlow) {
    Server server;
    Peer alice(server.port(), "alice");
    const auto begin = Clock::now();
    Crowd slow;
    for (int i = 0; i < 4; ++i) slow.emplace_back(server.port());
    Peer &silent = slow[0], &drips = slow[1], &babbles = slow[2], &hesitates = slow[3];
    hesitates.send_line("admin");
    const auto stalled = stalled_peer(server.port(), "stalled");

    alice.expect("LEAVE stalled took nothing of what was sent for 10 seconds.", 20);
    EXPECT_GE(seconds_since(begin), 10);
    server.wait_output("stalled took nothing of what was sent for 10 seconds.");

    auto end = std::async([&] { return silent.expect_closed(70); });
    while (end.wait_for(500ms) != std::future_status::ready) {
        drips.try_send("x");
        babbles.try_send("no name\n");
    }
    EXPECT_GE(seconds_since(begin), 60);
    expect_too_slow(end.get());
    for (Peer* peer : {&drips, &hesitates}) expect_too_slow(peer->expect_closed());
    EXPECT_EQ(babbles.login("babbles"), (Lines{"alice", "babbles"})) << "each answer has its own minute";
    alice.expect("JOIN babbles");
    alice.send_line("still here");
    alice.expect_next("SAY alice still here");
}

// Promise 2: a flood is heard at its rate, whole and in order, and others are heard in between.
TEST(NobodyWaits, ForAClientThatFloods) {
    Server server({.rate = 10});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    const auto begin = Clock::now();
    alice.send_raw(numbered("flood ", 0, 59));
    bob.expect("SAY alice flood 0");
    for (int i = 0; i < 20; ++i) {
        bob.send_line("me too " + std::to_string(i));
        bob.expect("SAY bob me too " + std::to_string(i));
    }
    Lines heard = expect_said(alice, 80);
    EXPECT_GE(seconds_since(begin), 3) << "a burst of 30, and then ten a second";
    const auto last_of_bob = std::ranges::find(heard, "SAY bob me too 19");
    EXPECT_LT(last_of_bob, std::ranges::find(heard, "SAY alice flood 59")) << "bob waited for alice";
    std::erase_if(heard, [](const std::string& line) { return line.starts_with("SAY bob "); });
    expect_numbered(heard, "alice", "flood");
}

// Promise 2: nobody loses a line, or the connection, by pasting.
TEST(NobodyWaits, AndAPasteArrivesWhole) {
    Server server({.rate = 100});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    const auto begin = Clock::now();
    alice.send_raw(numbered("paste ", 0, 199));
    expect_numbered(expect_said(bob, 200), "alice", "paste");
    EXPECT_GE(seconds_since(begin), 1.7);
    expect_numbered(expect_said(alice, 200), "alice", "paste");
}

// Promise 2: a paused terminal or a full pipe at the server's output holds up nobody.
TEST(NobodyWaits, ForTheServersOutput) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    server.pause_reading(true);
    const std::string text(4000, 'x');
    for (int i = 0; i < 600; ++i) {  // more than the log keeps, and a pipe
        alice.send_line(text);
        bob.expect("SAY alice " + text);
        alice.expect("SAY alice " + text);
    }
    expect_chat(server.port());
    server.pause_reading(false);
    server.wait_output(" lines are missing.\n");
    const auto is_back = [&] {  // the queue may be full once more, and this line be missing too
        alice.send_line("the log is back");
        try {
            server.wait_output("public alice: the log is back", 1);
            return true;
        } catch (const Failure&) {
            return false;
        }
    };
    EXPECT_TRUE(eventually(is_back, 20));
}

// Promise 2: nor does an output whose reader is gone.
TEST(NobodyWaits, ForAnOutputThatIsGone) {
    Server server;
    server.close_stdout();
    expect_chat(server.port());
    expect_chat(server.port());
    EXPECT_TRUE(server.running());
}

// Promise 2: the chat goes on without an operator: with an input that ends at once, or later.
TEST(NobodyWaits, ForAnOperator) {
    Server server({.launch = {.stdin_null = true}});
    expect_chat(server.port());
    Server left_alone;
    left_alone.close_stdin();
    expect_chat(left_alone.port());
}

Lines server_arguments(const TempDir& dir) {
    return {"--port", "0", "--bind", "127.0.0.1", "--bans", dir.path() / "bans.txt"};
}

int port_of(Process& server) { return std::stoi(server.wait_output(re("listening on port ([0-9]+)\\s"))); }

// Promise 2: the same where the standard descriptors are closed; no client takes their place.
TEST(NobodyWaits, ForStandardDescriptors) {
    TempDir dir;
    Launch launch{.args = {"-c", "exec \"$0\" \"$@\" <&- 2>&-", server_path()}};
    for (const std::string& argument : server_arguments(dir)) launch.args.push_back(argument);
    Process server("/bin/sh", launch);
    const int port = port_of(server);
    expect_chat(port);
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Promise 3: one line is one line

// Promise 3: however the bytes are cut up.
TEST(OneLine, ByteByByte) {
    Server server;
    Peer bob(server.port(), "bob"), alice(server.port());
    for (const char byte : "alice\nhé 你\n/echo done\n"s) alice.send_raw(std::string(1, byte));
    bob.expect("JOIN alice");
    bob.expect_next("SAY alice hé 你");
    alice.expect("ECHO done");
}

TEST(OneLine, FiveHundredInOneSend) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.send_raw(numbered("line ", 0, 499));
    expect_numbered(expect_said(bob, 500), "alice", "line");
}

// Promise 3: a login and what follows it may come in one piece, before any question.
TEST(OneLine, TheWholeConversationInOneSend) {
    Server server;
    Peer bob(server.port(), "bob"), admin(server.port());
    admin.send_raw("ab\nadmin\nwrong\n" + server.password() + "\nhello\n/echo one\r\n/quit\nnever");
    bob.expect("SAY admin hello");
    const Lines lines = admin.expect_eof();
    EXPECT_EQ(std::ranges::count(lines, "ECHO one"), 1);
    EXPECT_EQ(lines.back(), "BYE QUIT Goodbye, admin.");
    bob.expect_none_until("never", "LEAVE admin left.");
}

TEST(OneLine, EndsWithOrWithoutACarriageReturn) {
    Server server;
    Peer bob(server.port(), "bob"), alice(server.port());
    alice.send_raw("alice\r\none\r\n\r\n\ntwo\n \t \nth\rree\r\r\n");
    bob.expect("JOIN alice");
    EXPECT_EQ(bob.expect_next(), "SAY alice one");
    EXPECT_EQ(bob.expect_next(), "SAY alice two");
    EXPECT_EQ(bob.expect_next(), "SAY alice th" + replaced + "ree" + replaced);
}

TEST(OneLine, WithoutAnEndCountsWhenTheConnectionEnds) {
    Server server;
    Peer bob(server.port(), "bob"), alice(server.port());
    alice.send_raw("alice\nfirst\nlast words");
    alice.half_close();
    bob.expect("SAY alice first");
    bob.expect_next("SAY alice last words");
    bob.expect_next("LEAVE alice left.");
    EXPECT_TRUE(alice.expect_eof().back().starts_with("BYE QUIT "));
}

// Promise 3: 4,096 bytes are a line, one more is none, and the next line counts again.
TEST(OneLine, HasALimit) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    const std::string most(4096, 'x');
    for (const std::string& end : {"\n"s, "\r\n"s}) {
        alice.send_raw(most + end + most + "x" + end + "next" + end);
        bob.expect("SAY alice " + most);
        bob.expect_next("SAY alice next");
        alice.expect(starts("ERR That line was longer than 4096 bytes"));
    }
    alice.send_raw(std::string(4096, '\x80') + "\n");  // what comes back longest
    std::string longest = "SAY alice ";
    for (int i = 0; i < 4096; ++i) longest += replaced;
    EXPECT_EQ(bob.expect_next(), longest);
}

// Promise 3: a line that never ends is told of once, and costs no memory; in a login too.
TEST(OneLine, ThatNeverEndsCostsNothing) {
    Server server;
    Peer bob(server.port(), "bob"), alice(server.port(), "alice"), nameless(server.port());
    const long before = resident_bytes(server.pid());
    const std::string endless(5 << 20, 'x');
    for (Peer* peer : {&alice, &nameless}) {
        peer->send_raw(endless, 30);
        peer->expect(starts("ERR That line was longer"));
        if (!sanitized()) {
            EXPECT_LT(resident_bytes(server.pid()) - before, 2L << 20);
        }
    }
    alice.send_line("\nnext");
    bob.expect_next("JOIN alice");
    bob.expect_next("SAY alice next");
    nameless.send_line("\ncarol");
    nameless.expect_none_until(starts("ERR"), "WELCOME carol");
    alice.expect_none_until(starts("ERR"), "JOIN carol");
}

// What must not reach a screen: terminal escapes, other line ends, what turns or hides text, what is not UTF-8.
const Lines& hostile() {
    static const Lines all = {
        "\x1B[2J",
        "\x1B]0;title\x07",
        "\0"s,
        "\x01",
        "\x07",
        "\x08",
        "\v",
        "\f",
        "\r",
        "\x1F",
        "\x7F",
        "\u0080",
        "\u0085",
        "\u009B",
        "\u009F",
        "\u00AD",
        "\u061C",
        "\u180E",
        "\u200B",
        "\u200E",
        "\u200F",
        "\u2028",
        "\u2029",
        "\u202A",
        "\u202E",
        "\u2060",
        "\u2066",
        "\u2069",
        "\uFEFF",
        "\uFFF9",
        "\uFFFB",
        "\U000E0041",
        "\x80",
        "\xC0\xAF",
        "\xE4\xBD",
        "\xC3",
        "\xED\xA0\x80",
        "\xFE",
        "\xF4\x90\x80\x80",
    };
    return all;
}

// The bytes that make each of them so: text without these, and of valid UTF-8, is harmless.
void expect_harmless(const std::string& text) {
    for (const std::string& bad : hostile()) {
        const bool escape = bad[0] == '\x1B';
        const bool part_of_others = bad == "\x80" || bad == "\xC3" || bad == "\xE4\xBD";
        if (part_of_others) continue;
        EXPECT_EQ(text.find(escape ? bad.substr(0, 1) : bad), text.npos) << testing::PrintToString(bad) << text;
    }
}

// Promise 3: none of that leaves the server, wherever it is typed: to no peer, to no log.
TEST(OneLine, NothingHostileReachesAnotherOrTheLog) {
    Server server;
    Peer bob(server.port(), "bob"), alice(server.port(), "alice");
    bob.expect("JOIN alice");
    for (const std::string& bad : hostile()) {
        const std::string text = "a" + bad + "b";
        for (const char* command : {"", "/me ", "/msg bob ", "/echo ", "/msg ", "/kick ", "/ignore ", "/help ", "/"}) {
            alice.send_line(command + text);
        }
        Peer stranger(server.port());
        stranger.send_raw(text + "\nadmin\n" + text + "\n" + text);
        stranger.half_close();
        stranger.expect_closed();
    }
    alice.send_line("caf\xE9");
    std::string all;
    for (const std::string& line : bob.lines_until("SAY alice caf" + replaced)) all += line + "\n";
    EXPECT_EQ(count_lines_with(all, "SAY alice a"), static_cast<int>(hostile().size()));
    for (const std::string& line : alice.lines_until_echo()) all += line + "\n";
    server.wait_output("alice: caf" + replaced);
    expect_harmless(all);
    expect_harmless(server.output());
}

// Promise 3: what passes, passes whole.
TEST(OneLine, WhatPeopleWriteIsNotChanged) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    for (const std::string text :
         {"é ñ 你好 안녕 שלום", "👨\u200D👩\u200D👧 ❤\uFE0F 🇳🇱", "\u0646\u0645\u06CC\u200C\u062E",
          "🏴\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", "  a  b  ", "SAY x"}) {
        alice.send_line(text);
        EXPECT_EQ(bob.expect(starts("SAY ")), "SAY alice " + text);
    }
    alice.send_line("a\tb\xFF\xF4\xFF\xFD\x06");
    EXPECT_EQ(bob.expect_next(), "SAY alice a b");
}

// Promise 3: every row that others see, the log included, is under the name of whoever typed it.
TEST(OneLine, NothingTypedLooksLikeAnothersLine) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    server.wait_output("bob joined.");
    server.mark();
    for (const std::string& end :
         Lines{"\n", "\r", "\r\r\n", "\u2028", "\u2029", "\u0085", "\v", "\f", "\0"s, "\x1B[1;1H"}) {
        for (const char* command : {"", "/me ", "/msg bob "}) {
            alice.send_line(command + "hi"s + end + "SAY admin obey" + end + "BYE KICK You were kicked");
        }
    }
    alice.send_line("the end");
    for (const std::string& line : bob.lines_until("SAY alice the end")) {
        EXPECT_TRUE(line.starts_with("SAY alice ") || line.starts_with("ME alice ") ||
                    line.starts_with("MSG alice bob "))
            << line;
    }
    server.wait_output("alice: the end");
    const Pattern ours = re("^[-0-9]{10} [:0-9]{8} (public (alice: |\\* alice )|- -- alice sent bob )");
    std::istringstream log(server.output().substr(server.output().find("bob joined.\n") + 12));
    for (std::string line; std::getline(log, line);) EXPECT_TRUE(ours.find(line)) << line;
    Peer late(server.port(), "late");
    for (const std::string& line : late.lines_until_echo()) {
        EXPECT_TRUE(re("^PAST [-0-9]{10}T[:0-9]{8}Z (SAY|ME) alice ").find(line)) << line;
    }
}

// Promise 3: a name to be banned cannot bring a line of its own, a comment or an escape into the file.
TEST(OneLine, NothingHostileReachesTheBanList) {
    Server server;
    Peer admin = admin_of(server);
    for (const std::string& bad : hostile()) {
        for (const std::string& name : {"eve" + bad + "mallory", "eve" + bad, bad + "eve", "10.0.0.1" + bad}) {
            admin.send_line("/ban " + name);
        }
    }
    for (const char* name : {"eve # not me", "eve\tx", "eve\nmallory", "#", "# eve", "1.2.3", "../x"}) {
        admin.send_line("/ban "s + name);
    }
    admin.send_line("/ban 0:0::0:1");
    admin.expect("INFO ::1 is banned.");
    std::istringstream file(read_file(server.bans()));
    for (std::string line; std::getline(file, line);) {
        const Pattern record = re("^(eve|10\\.0\\.0\\.1|::1)  # by admin at [-0-9]{10}T[:0-9]{8}Z$");
        EXPECT_TRUE(record.find(line)) << testing::PrintToString(line);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Promise 4: one owner

// The stages of a connection's life at which it may end.
const std::vector<std::function<void(Peer&, const std::string& name)>>& stages() {
    static const std::vector<std::function<void(Peer&, const std::string&)>> all = {
        [](Peer&, const std::string&) {},
        [](Peer& peer, const std::string&) { peer.send_raw("unfinis"); },
        [](Peer& peer, const std::string&) { peer.send_line("admin"); },
        [](Peer& peer, const std::string& name) { peer.send_raw(name + "\nhello\n/quit\n"); },
        [](Peer& peer, const std::string& name) { peer.login(name); },
        [](Peer& peer, const std::string& name) { peer.login(name), peer.send_raw("unfinis"); },
        [](Peer& peer, const std::string& name) { peer.login(name), peer.send_raw(numbered("/help ", 0, 19)); },
    };
    return all;
}

// Stacks of threads, those that nobody has joined included, in a process that gives them this size.
int stack_count(pid_t pid, unsigned long size) {
    std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) {
        const unsigned long from = std::stoul(line, nullptr, 16);
        const unsigned long to = std::stoul(line.substr(line.find('-') + 1), nullptr, 16);
        count += to - from <= size && to - from >= size - 16384;  // less a guard page
    }
    return count;
}

// Promise 4: threads are joined and descriptors closed, however and whenever a connection ends.
TEST(OneOwner, NothingIsLeftOfAHundredConnections) {
    const unsigned long stack = 3UL << 20;
    Server server({.launch = {.limits = {{RLIMIT_STACK, stack}}}});
    Peer alice(server.port(), "alice");
    if (thread_count(server.pid()) < 0) GTEST_SKIP() << "there is no /proc here";
    const long threads = thread_count(server.pid()), descriptors = descriptor_count(server.pid());
    Crowd half_closed;
    for (std::size_t i = 0; i < 105; ++i) {
        Peer peer(server.port());
        stages()[i % stages().size()](peer, "user" + std::to_string(i));
        if (i % 3 == 0) peer.reset();
        if (i % 3 == 1) peer.close();
        if (i % 3 == 2) {
            peer.half_close();
            half_closed.push_back(std::move(peer));
        }
        alice.send_line("still here");
        alice.expect("SAY alice still here");
    }
    for (Peer& peer : half_closed) peer.expect_closed();
    // One of the server's own, with nothing to do, may just have been ending.
    EXPECT_TRUE(eventually([&] { return thread_count(server.pid()) <= threads; }, 10)) << thread_count(server.pid());
    EXPECT_TRUE(eventually([&] { return descriptor_count(server.pid()) <= descriptors; }, 10))
        << descriptor_count(server.pid());
    EXPECT_TRUE(eventually([&] { return stack_count(server.pid(), stack) < 50; }));
    alice.send_line("/who");
    alice.expect("WHO public 1 alice");
}

// Promise 4: sending to a client that has just gone ends neither the server (SIGPIPE) nor another client.
TEST(OneOwner, SurvivesResetsWhileItSends) {
    Server server;
    Peer alice(server.port(), "alice");
    for (int round = 0; round < 10; ++round) {
        Crowd victims = crowd(server.port(), 10, "round" + std::to_string(round) + "x");
        alice.send_raw(numbered("line ", 0, 199));
        for (Peer& victim : victims) victim.reset();
        expect_numbered(expect_said(alice, 200), "alice", "line");
    }
    EXPECT_TRUE(server.running());
}

// ---------------------------------------------------------------------------------------------------------------------
// Promise 5: what was acknowledged is on disk

// Promise 5: a kill at any moment leaves a whole ban list with every ban that was acknowledged.
TEST(OnDisk, BansSurviveAKillAtAnyMoment) {
    TempDir dir;
    const std::string file = dir.path() / "bans.txt";
    std::string by_hand = "mallory\n";
    for (int i = 0; i < 10000; ++i) by_hand += "# a line that takes time to write\n";
    write_file(file, by_hand);
    std::mt19937 random(4);  // NOLINT(bugprone-random-generator-seed): so that a failure comes again
    Lines acknowledged = {"mallory"};
    const auto whole = [&](const std::string& text) { return text.starts_with(by_hand) && text.ends_with("\n"); };
    const auto note = [&](const std::string& line) {
        if (auto name = re("^INFO (\\w+) is banned\\.").find(line)) acknowledged.push_back(*name);
    };
    for (int round = 0; round < 15; ++round) {
        Server server({.args = {"--bans", file}});
        Peer admin = admin_of(server);
        for (int i = 0; i < 30; ++i) admin.send_line("/ban r" + std::to_string(round) + "ban" + std::to_string(i));
        for (auto left = random() % 10; left > 0; --left) note(admin.expect(starts("INFO")));
        const auto moment = Clock::now() + std::chrono::microseconds(random() % 20000);
        do EXPECT_TRUE(whole(read_file(file))) << "a crash now would leave this";
        while (Clock::now() < moment);
        server.signal(SIGKILL);
        EXPECT_EQ(server.wait_exit(), -SIGKILL);
        for (const std::string& line : admin.expect_closed()) note(line);

        const std::string text = read_file(file);
        ASSERT_TRUE(whole(text)) << text.size() << " bytes";
        const std::string bans = "\n" + text.substr(by_hand.size());
        for (std::size_t i = 1; i < acknowledged.size(); ++i) {
            EXPECT_NE(bans.find("\n" + acknowledged[i] + " "), bans.npos) << acknowledged[i];
        }
        std::istringstream records(bans.substr(1));
        for (std::string line; std::getline(records, line);) {
            EXPECT_TRUE(re("^r\\d+ban\\d+  # by admin at [-0-9]{10}T[:0-9]{8}Z$").find(line)) << line;
        }
    }
    EXPECT_GT(acknowledged.size(), 20U);
    Server server({.args = {"--bans", file}});
    for (const std::string& name : {acknowledged.front(), acknowledged.back()}) {
        Peer banned(server.port());
        banned.send_line(name);
        EXPECT_EQ(banned.expect_eof().back(), "BAN That name is banned.");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Promise 6: every refusal says why, and the server goes on

// Connects, and returns the line that decides: NICK, or a REFUSE that ends the connection.
std::string first_answer(Peer& peer) {
    std::string line = peer.expect(re("^(NICK|REFUSE) "));
    if (line.starts_with("REFUSE")) {
        EXPECT_EQ(peer.expect_closed(), Lines{});
    }
    return line;
}

// The server learns of the end of a connection a little later than the test that ends it.
std::unique_ptr<Peer> log_in_when_there_is_place(int port, const std::string& name) {
    std::unique_ptr<Peer> peer;
    EXPECT_TRUE(eventually([&] {
        peer = std::make_unique<Peer>(port);
        return first_answer(*peer).starts_with("NICK");
    }));
    peer->send_line(name);
    peer->expect("WELCOME " + name);
    return peer;
}

TEST(Refusals, NameTheLimitOfClients) {
    Server server({.args = {"--max-clients", "3"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), nameless(server.port());
    for (int i = 0; i < 3; ++i) {
        Peer late(server.port());
        EXPECT_EQ(first_answer(late), "REFUSE The server is full: it takes 3 at once.");
    }
    server.wait_output("somebody was rejected: The server is full: it takes 3 at once.");
    bob.send_line("/quit");
    bob.expect_eof();
    bob.close();
    const auto carol = log_in_when_there_is_place(server.port(), "carol");
    alice.send_line("welcome");
    carol->expect("SAY alice welcome");
}

TEST(Refusals, NameTheLimitOfConnectionsFromOneAddress) {
    Server server({.max_per_ip = 2});
    Peer alice(server.port(), "alice");
    auto nameless = std::make_unique<Peer>(server.port());
    nameless->expect("NICK");
    Peer third(server.port());
    EXPECT_EQ(first_answer(third), "REFUSE There are 2 connections from your address already; no more are taken.");
    if (has_address("127.0.0.2")) {
        Peer other(server.port(), PeerOptions{.from = "127.0.0.2"});
        other.login("other");
    }
    nameless->close();
    const auto bob = log_in_when_there_is_place(server.port(), "bob");
    alice.send_line("welcome");
    bob->expect("SAY alice welcome");
}

// A server that has run out of something takes people until then, refuses newcomers with words for a second and more
// at little cost in processor time and log, and takes people again when there is room.
void expect_refusals_and_recovery(Server& server, const std::string& reason) {
    const double cpu_before = cpu_seconds(server.pid());
    Peer alice(server.port(), "alice");
    Crowd people;
    do {
        ASSERT_LT(people.size(), 100U) << "nobody is refused";
        people.emplace_back(server.port());
    } while (first_answer(people.back()).starts_with("NICK"));
    people.pop_back();
    const auto begin = Clock::now();
    Lines answers;
    EXPECT_TRUE(eventually([&] {
        Peer newcomer(server.port());
        answers.push_back(first_answer(newcomer));
        return seconds_since(begin) > 1.5;
    }));
    for (const std::string& answer : answers) EXPECT_TRUE(answer.starts_with("REFUSE ")) << answer;
    EXPECT_GT(std::ranges::count(answers, reason), 0) << answers.back();
    EXPECT_LT(cpu_seconds(server.pid()) - cpu_before, seconds_since(begin) / 2);
    alice.send_line("still here");
    alice.expect("SAY alice still here");
    server.wait_output("alice: still here");
    EXPECT_LE(count_lines_with(server.output(), "was rejected"), 2 * (2 + seconds_since(begin))) << server.output();
    EXPECT_LE(count_lines_with(server.output(), ""), 16 + 2 * seconds_since(begin)) << server.output();
    people.clear();
    const auto eve = log_in_when_there_is_place(server.port(), "eve");
    const auto fay = log_in_when_there_is_place(server.port(), "fay");
    expect_chat(*eve, *fay);
}

TEST(Refusals, WhenThereAreNoDescriptors) {
#ifdef __linux__
    Server server;
    const rlimit few{static_cast<rlim_t>(descriptor_count(server.pid())) + 12, 20000};
    ASSERT_EQ(prlimit(server.pid(), RLIMIT_NOFILE, &few, nullptr), 0);
    expect_refusals_and_recovery(server, "REFUSE The server has no descriptor left: try again later.");
#else
    GTEST_SKIP() << "nothing here lowers the limit of a running server";
#endif
}

// From the start no more are let in than there are descriptors for.
TEST(Refusals, WhenTheLimitOnOpenFilesIsLow) {
    Server server({.args = {"--max-clients", "1000"}, .launch = {.limits = {{RLIMIT_NOFILE, 40}}}});
    expect_refusals_and_recovery(server, "REFUSE The server is full: it takes 20 at once.");
}

// Whoever has a place has a descriptor, too, also when a whole crowd leaves and another one comes at the same moment.
TEST(Refusals, OfACrowdAfterACrowdAreForPlacesAlone) {
    Server server({.launch = {.limits = {{RLIMIT_NOFILE, 256}}}});
    for (int round = 0; round < 30; ++round) {
        std::deque<Peer> peers;
        for (int i = 0; i < 190; ++i) {
            peers.emplace_back(server.port()).send_line("r" + std::to_string(round) + "x" + std::to_string(i));
        }
        for (Peer& peer : peers) {
            const std::string answer = peer.expect(re("^(?:WELCOME|REFUSE) .*"));
            const bool good = answer.starts_with("WELCOME ") || contains(answer, "it takes 192 at once");
            ASSERT_TRUE(good) << answer;
        }
    }
}

// Thread stacks are made so large, by the limit that gives their size, that few of them fit into the address space.
TEST(Refusals, WhenThereAreNoThreads) {
    if (sanitized()) GTEST_SKIP() << "sanitizers need the address space";
    Server server({.launch = {.limits = {{RLIMIT_STACK, 256UL << 20}, {RLIMIT_AS, 6UL << 30}}}});
    expect_refusals_and_recovery(server, "REFUSE The server cannot start another thread: try again later.");
}

// ---------------------------------------------------------------------------------------------------------------------
// Shutdown: all that was promised, and quickly

struct Ending {
    std::string name;
    std::function<void(Server&, Peer& admin)> request;
};

void PrintTo(const Ending& ending, std::ostream* out) { *out << ending.name; }

class Shutdown : public testing::TestWithParam<Ending> {};

// Returns how many seconds it took.
double shut_down(const Ending& ending) {
    Server server;
    Peer bob(server.port(), "bob"), nameless(server.port()), at_password(server.port());
    nameless.send_raw("unfinis");
    at_password.send_line("admin");
    at_password.expect("PASS");
    Peer admin = admin_of(server), alice(server.port(), "alice");
    const auto stalled = stalled_peer(server.port(), "stalled");
    server.pause_reading(true);
    const std::string text(1000, 'x');
    alice.send_raw(numbered(text + ' ', 0, 99));
    expect_said(alice, 100);
    Peer quitter(server.port(), "quitter");  // and does not close its side
    quitter.send_line("/quit");
    quitter.expect_eof();

    const auto begin = Clock::now();
    ending.request(server, admin);
    expect_numbered(expect_said(bob, 100), "alice", text);
    for (Peer* peer : {&alice, &bob, &admin, &nameless, &at_password}) {
        const Lines lines = peer->expect_eof();
        EXPECT_TRUE(!lines.empty() && lines.back() == "BYE SHUTDOWN The server shuts down.");
    }
    EXPECT_EQ(server.wait_exit(), 0);
    return seconds_since(begin);
}

// Promises 2, 4 and 6: everyone is told, has what was accepted before, and the server ends within a second, whoever
// does not read, has not logged in, or holds up its output.
TEST_P(Shutdown, TellsEveryoneAndEndsWithinASecond) {
    expect_within(1, [] { return shut_down(GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(By, Shutdown,
                         testing::Values(Ending{"CtrlC", [](Server& server, Peer&) { server.signal(SIGINT); }},
                                         Ending{"Sigterm", [](Server& server, Peer&) { server.signal(SIGTERM); }},
                                         Ending{"Admin", [](Server&, Peer& admin) { admin.send_line("/shutdown"); }},
                                         Ending{"Operator",
                                                [](Server& server, Peer&) { server.write("/shutdown\n"); }}),
                         [](const auto& ending) { return ending.param.name; });

double shut_down_under_load(int rate) {
    Server server({.rate = rate});
    Crowd talkers = crowd(server.port(), 3, "talker");
    std::vector<std::future<void>> floods;
    for (Peer& talker : talkers) {
        floods.push_back(std::async(std::launch::async, [&] {
            while (talker.try_send(std::string(65536, 'x'), 1)) continue;
        }));
    }
    Peer nameless(server.port());
    nameless.expect("NICK");
    const auto begin = Clock::now();
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
    const double seconds = seconds_since(begin);
    for (auto& flood : floods) flood.get();
    return seconds;
}

// Promise 2: nor do those who talk on and on hold it up.
TEST(ShutdownUnderLoad, IsNotHeldUpByThoseWhoKeepTalking) {
    for (const int rate : {0, 10}) {
        expect_within(1, [rate] { return shut_down_under_load(rate); });
    }
}

}  // namespace
