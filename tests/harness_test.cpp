// The harness held against programs that every system has, and against connections to itself.
#include "harness.hpp"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <future>
#include <string>
#include <vector>

using namespace harness;

namespace {

Launch shell(const std::string& script) { return {.args = {"-c", script}}; }

// A connection with both ends in the test.
struct Pair {
    explicit Pair(const PeerOptions& options = {}) : client(listener.port(), options), server(listener.accept()) {}
    Listener listener;
    Peer client, server;
};

std::string failure_of(const std::function<void()>& act) {
    try {
        act();
    } catch (const Failure& failure) {
        return failure.what();
    }
    return "no failure";
}

// Run by the next test alone.
TEST(DISABLED_Skip, FromDeepWithin) {
    const Process running("/bin/cat");
    std::async(std::launch::async, [] { skip("there is no moon tonight"); }).get();
    FAIL() << "it went on";
}

TEST(Skip, EndsTheTestAndPrintsNoTranscript) {
    Process self(testing::internal::GetArgvs().at(0),
                 {.args = {"--gtest_also_run_disabled_tests", "--gtest_filter=DISABLED_Skip.*"}});
    EXPECT_EQ(self.wait_exit(), 0);
    for (const char* part : {"there is no moon tonight", "[  SKIPPED ] 1 test"}) self.wait_output(part);
    EXPECT_EQ(self.errors(), "");
}

TEST(Process, TalksThroughPipesUntilTheEndOfInput) {
    Process cat("/bin/cat");
    cat.write("hello\nport 4");
    EXPECT_EQ(cat.wait_output("hello"), "hello");
    cat.write("71 \n");
    EXPECT_EQ(cat.wait_output(re("^port ([0-9]+)\\s")), "471");
    EXPECT_TRUE(cat.running());
    cat.close_stdin();
    EXPECT_EQ(cat.wait_exit(), 0);
    EXPECT_EQ(cat.output(), "hello\nport 471 \n");
}

TEST(Process, KeepsStderrApartAndGivesTheStatus) {
    Process sh("/bin/sh", shell("echo out; echo err >&2; exit 3"));
    sh.wait_error("err");
    EXPECT_EQ(sh.wait_exit(), 3);
    EXPECT_EQ(sh.output(), "out\n");
    EXPECT_EQ(sh.errors(), "err\n");
}

TEST(Process, RunsWhereAndHowItIsTold) {
    TempDir dir;
    Launch launch = shell("pwd; echo \"[$FRUIT]\"; echo \"[${HOME-none}]\"; ulimit -n; cat; echo end");
    launch.env = {"FRUIT=apple", "FRUIT=pear", "HOME"};
    launch.directory = dir.path();
    launch.limits = {{RLIMIT_NOFILE, 20}};
    launch.stdin_null = true;
    Process sh("/bin/sh", launch);
    EXPECT_EQ(sh.wait_exit(), 0);
    std::string where = std::filesystem::canonical(dir.path());
    EXPECT_EQ(sh.output(), where + "\n[pear]\n[none]\n20\nend\n");
}

TEST(Process, MarkHidesWhatCameBefore) {
    Process cat("/bin/cat");
    cat.write("one\n");
    cat.wait_output("one");
    cat.mark();
    EXPECT_TRUE(contains(failure_of([&] { cat.wait_output("one", 0); }), "in vain for 'one'"));
    cat.write("one again\n");
    cat.wait_output("one again");
}

TEST(Process, PausedReadingFillsThePipe) {
    Process cat("/bin/cat");
    cat.pause_reading(true);
    std::string much(1 << 20, 'x');
    EXPECT_TRUE(contains(failure_of([&] { cat.write(much, 0.2); }), "did not take its input"));
    EXPECT_EQ(cat.output(), "");
    cat.pause_reading(false);
    cat.write("\nlast\n");
    cat.wait_output("last");
    cat.write(much);  // takes in the output while it waits
}

TEST(Process, DiesOfSignalsAsIfStartedFromATerminal) {
    std::signal(SIGINT, SIG_IGN);  // as it is in a test run in the background
    for (int number : {SIGINT, SIGPIPE, SIGKILL}) {
        Process cat("/bin/cat");
        cat.signal(number);
        EXPECT_EQ(cat.wait_exit(), -number);
        EXPECT_THROW(cat.signal(number), Failure);
    }
    std::signal(SIGINT, SIG_DFL);
}

TEST(Process, IsKilledAndReapedByItsDestructor) {
    pid_t pid = 0;
    {
        Process cat("/bin/cat");
        pid = cat.pid();
    }
    EXPECT_EQ(::kill(pid, 0), -1);
    EXPECT_EQ(errno, ESRCH);
}

TEST(Process, InheritsNothingOfTheTests) {
    Process first("/bin/cat");
    Pair pair;
    Pty terminal("/bin/cat");
    Process cat("/bin/cat");
    for (Process* each : {&first, &cat}) {
        each->write("up\n");
        each->wait_output("up");
    }
    if (descriptor_count(cat.pid()) < 0) GTEST_SKIP() << "no /proc here";
    EXPECT_EQ(descriptor_count(cat.pid()), descriptor_count(first.pid()));  // the test itself may have inherited some
    EXPECT_EQ(thread_count(cat.pid()), 1);
    EXPECT_GT(resident_bytes(cat.pid()), 100'000);
}

TEST(Process, FailureNamesTheLineAndHasTheTranscript) {
    Process cat("/bin/cat");
    cat.write("apple\n");
    cat.wait_output("apple");
    std::string line = std::to_string(__LINE__ + 1);
    std::string transcript = failure_of([&] { cat.wait_output("pear", 0); });
    for (const std::string& part : {"harness_test.cpp:" + line + ":", std::string("in vain for 'pear'"),
                                    std::string("> apple"), std::string("< apple")}) {
        EXPECT_TRUE(contains(transcript, part)) << part << " is not in\n" << transcript;
    }
    Process gone("/bin/sh", shell("echo sorry"));
    EXPECT_TRUE(contains(failure_of([&] { gone.wait_output("pear"); }), "it ended without 'pear'"));
    EXPECT_TRUE(contains(failure_of([] { Process absent("/does/not/exist"); }), "start /does/not/exist: "));
}

TEST(Pty, IsATerminalWithASize) {
    Launch launch = shell("trap 'stty size' WINCH; tty; stty size; echo up; while :; do read line; done");
    launch.terminal = Window{30, 100};
    Pty sh("/bin/sh", launch);
    sh.wait_screen_text("/dev/");
    sh.wait_screen_text("30 100");
    sh.wait_screen_text("up");
    sh.resize({40, 120});
    sh.type("\n");  // some shells run a trap only after `read`
    sh.wait_screen_text("40 120");
}

TEST(Pty, ShowsItsModesEvenAfterTheEnd) {
    Pty sh("/bin/sh", shell("stty -echo; echo secret?; read word; stty echo; echo got $word; exit 4"));
    sh.wait_screen_text("secret?");
    EXPECT_FALSE(sh.echoes());
    sh.type("xyz\n");
    sh.wait_screen_text("got xyz");
    EXPECT_EQ(sh.wait_exit(), 4);
    EXPECT_TRUE(sh.echoes());
    EXPECT_FALSE(contains(sh.output(), "\nxyz"));
}

TEST(Pty, CtrlCAndHangUpReachTheProgram) {
    Pty interrupted("/bin/cat");
    interrupted.type("a\n");
    interrupted.wait_screen_text(re("a\r\na"));  // the terminal's echo and the answer
    interrupted.type("\x03");
    EXPECT_EQ(interrupted.wait_exit(), -SIGINT);
    Pty left("/bin/cat");
    left.hang_up();
    EXPECT_EQ(left.wait_exit(), -SIGHUP);
}

TEST(Peer, TakesLinesApartHoweverTheyAreCut) {
    Pair pair;
    pair.server.send_raw("on");
    pair.server.send_raw("e\ntwo\r\n\nfour\nfi");
    EXPECT_EQ(pair.client.expect_next(), "one");
    EXPECT_EQ(pair.client.expect_next(starts("tw")), "two\r");
    EXPECT_EQ(pair.client.expect_next(), "");
    EXPECT_EQ(pair.client.expect(re("^f.*r$")), "four");
    EXPECT_TRUE(contains(failure_of([&] { pair.client.expect("fi", 0.05); }), "in vain for 'fi'"));
    pair.server.send_line("ve");
    EXPECT_EQ(pair.client.expect([](std::string_view line) { return line.size() == 4; }), "five");
    pair.server.send_line("six");
    EXPECT_TRUE(contains(failure_of([&] { pair.client.expect_next("seven"); }), "the next line is 'six'"));
}

TEST(Peer, AbsenceIsSeenAgainstAMarker) {
    Pair pair;
    pair.server.send_raw("a\nb\nmark\nc\nmark\n");
    EXPECT_EQ(pair.client.lines_until("mark"), (std::vector<std::string>{"a", "b"}));
    EXPECT_NO_THROW(pair.client.expect_none_until("b", "mark"));
    pair.server.send_raw("b\nmark\n");
    EXPECT_TRUE(contains(failure_of([&] { pair.client.expect_none_until("b", "mark"); }), "there came 'b'"));
    EXPECT_TRUE(contains(failure_of([&] { pair.client.lines_until_echo(0); }), "in vain"));
    std::string ask = pair.server.expect(starts("/echo "));
    pair.server.send_raw("x\nECHO" + ask.substr(5) + "\n");
    EXPECT_EQ(pair.client.lines_until(starts("ECHO mark ")), (std::vector<std::string>{"x"}));
}

TEST(Peer, TellsTheWaysAConnectionEndsApart) {
    Pair clean;
    clean.client.send_line("last");
    clean.client.half_close();
    EXPECT_EQ(clean.server.expect_eof(), std::vector<std::string>{"last"});
    clean.server.send_line("still open this way");
    clean.client.expect("this way");
    EXPECT_TRUE(contains(failure_of([&] { clean.client.expect_eof(0); }), "in vain for the end"));

    Pair half;
    half.client.send_raw("no end");
    half.client.close();
    EXPECT_TRUE(contains(failure_of([&] { half.server.expect_eof(); }), "in the middle of a line: no end"));

    Pair broken;
    broken.client.reset();
    EXPECT_NO_THROW(broken.server.expect_closed());
    EXPECT_TRUE(contains(failure_of([&] { broken.server.expect_eof(); }), "reset"));
    EXPECT_FALSE(broken.server.try_send("anybody?\n"));
}

TEST(Peer, FailsAtItsDeadlineThoughLinesKeepComing) {
    Pair pair;
    Process flood("/bin/sh", shell("while :; do echo x; done"));
    EXPECT_TRUE(contains(failure_of([&] { flood.wait_output("y", 0.2); }), "in vain for 'y'"));
    std::string many;
    for (int i = 0; i < 1000; ++i) many += "x\n";
    pair.server.try_send(many);
    EXPECT_TRUE(contains(failure_of([&] { pair.client.expect("y", 0); }), "among all that came"));
}

TEST(Peer, DeafOneFillsUpAndOneThatReadsDoesNot) {
    std::string much(16 << 20, 'x');
    Pair pair({.receive_buffer = 4096});
    EXPECT_FALSE(pair.server.try_send(much, 0.2));
    PeerOptions options;
    options.deaf = true;
    Pair deaf(options);
    deaf.server.send_line("hello");
    EXPECT_FALSE(deaf.client.try_send(much, 0.2));
    EXPECT_FALSE(contains(deaf.client.transcript().text(), "< hello"));
    Pair reader;
    reader.server.send_line("hello");
    EXPECT_FALSE(reader.client.try_send(much, 0.2));
    EXPECT_TRUE(contains(reader.client.transcript().text(), "< hello"));
}

TEST(Peer, LogsInAndReadsAWholeWho) {
    Pair pair;
    pair.server.send_raw("INFO Hello.\nNICK Name?\nPASS Password?\nWELCOME admin Hi.\nROOM public - - You are.\n");
    pair.server.send_raw("WHO public 3 bob eve\nWHO public 3 admin\nSAY bob WHO\n");
    EXPECT_EQ(pair.client.login("admin", "letmein"), (std::vector<std::string>{"bob", "eve", "admin"}));
    EXPECT_EQ(pair.client.expect_next(), "SAY bob WHO");
    EXPECT_EQ(pair.server.expect_next(), "admin");
    EXPECT_EQ(pair.server.expect_next(), "letmein");
}

TEST(Peer, MayComeFromAnotherAddress) {
    int port = Listener().port();
    EXPECT_TRUE(contains(failure_of([&] { Peer nobody(port); }), "connect to 127.0.0.1 " + std::to_string(port)));
    if (has_address("::1")) {
        Listener listener("::1");
        Peer client(listener.port(), {.host = "::1"});
        listener.accept().send_line("six");
        client.expect("six");
    }
    EXPECT_FALSE(has_address("192.0.2.1"));
    need_address("127.0.0.2");
    Pair pair({.from = "127.0.0.2"});
    EXPECT_EQ(pair.server.transcript().name, "accepted from 127.0.0.2");
}

// Makes CHATROOM_SERVER a script that says how it was started and, at SIGTERM, ends with the given status.
struct FakeServer {
    explicit FakeServer(const std::string& status) {
        write_file(dir.path() / "server",
                   "#!/bin/sh\ntrap 'kill $!; exit " + status + "' TERM\nsleep 100 &\n" +
                       "echo \"$@ [${CHAT_ADMIN_PASSWORD-none}]\"\necho listening on port 4711\nwait\n");
        std::filesystem::permissions(dir.path() / "server", std::filesystem::perms::owner_all);
        setenv("CHATROOM_SERVER", (dir.path() / "server").c_str(), 1);
    }
    ~FakeServer() { unsetenv("CHATROOM_SERVER"); }
    TempDir dir;
};

TEST(Server, IsStartedAskedAndEnded) {
    FakeServer fake("0");
    std::filesystem::path bans;
    pid_t pid = 0;
    {
        Server server({.rate = 7, .args = {"--title", "x"}});
        EXPECT_EQ(server.port(), 4711);
        bans = server.bans();
        EXPECT_EQ(server.wait_output(re("^.*\\]$")), "--port 0 --no-discovery --bind 127.0.0.1 --bans " +
                                                         bans.string() +
                                                         " --rate 7 --max-per-ip 0 --title x [letmein]");
        write_file(bans, "eve\n");
        EXPECT_EQ(read_file(bans), "eve\n");
        pid = server.pid();
    }
    EXPECT_EQ(::kill(pid, 0), -1);
    EXPECT_FALSE(std::filesystem::exists(bans));
    Server other({.admin_password = ""});
    EXPECT_TRUE(contains(other.output(), "[none]"));
}

TEST(Server, FailsTheTestWhenItEndsBadlyOrASanitizerReports) {
    FakeServer fake("1");
    EXPECT_NONFATAL_FAILURE(Server(), "ended with 1");
    EXPECT_NONFATAL_FAILURE(Process("/bin/sh", shell("echo ThreadSanitizer: data race >&2")).wait_exit(), "report");
}

TEST(Helpers, WaitAndPatience) {
    int looks = 0;
    EXPECT_TRUE(eventually([&] { return ++looks == 3; }));
    EXPECT_FALSE(eventually([] { return false; }, 0.01));
    unsetenv("CHATROOM_SLOW");
    int usual = Deadline(10).left_ms();
    setenv("CHATROOM_SLOW", "1", 1);
    int slow = Deadline(10).left_ms();
    unsetenv("CHATROOM_SLOW");
    EXPECT_NEAR(usual, 10000, 1000);
    EXPECT_NEAR(slow, 40000, 1000);
    std::filesystem::path gone;
    {
        TempDir dir;
        gone = dir.path();
        write_file(gone / "file", "x");
    }
    EXPECT_FALSE(std::filesystem::exists(gone));
}

}  // namespace
