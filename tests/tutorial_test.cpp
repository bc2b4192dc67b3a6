// The tutorial's step programs, and the naive chat in Python, held against the table in docs/tutorial/README.md: each
// cell of it is a test. Where the table says "yes" the behaviour must be there; where it says "no" it must still fail.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <set>

#include "harness.hpp"
#include "terminal.hpp"

using namespace harness;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// The programs

// Returns the program of a step, such as "05a", whose name goes on behind that; or the one that is named as a path.
std::string step_path(const std::string& step) {
    if (contains(step, "/")) return step;
    const char* set = std::getenv("TUTORIAL_STEPS");
    const std::filesystem::path built = set != nullptr ? set : "build/docs/tutorial/steps";
    for (const auto& source : std::filesystem::directory_iterator("docs/tutorial/steps")) {  // older ones may be built
        const std::string name = source.path().stem().string();
        if (name.starts_with(step + "_")) return (built / name).string();
    }
    throw Failure("there is no program of step " + step);
}

// A step that runs: on a port picked by the system, and without a limit on the rate unless one is given.
class Step : private TempDir, public Process {
   public:
    explicit Step(const std::string& step, const std::string& rate = "0", const Launch& launch = {}, int port = 0)
        : Process(step == "Python" ? "/usr/bin/env" : step_path(step), with(step, rate, launch, port)),
          chapter_(number(step)) {
        port_ = std::stoi(wait_output(re("^listening on port ([0-9]+)\\s")));
    }

    int port() const { return port_; }
    bool echoes() const { return chapter_ <= 3; }     // it answers each one alone
    bool has_words() const { return chapter_ >= 7; }  // each line begins with a word
    bool may_reset() const { return chapter_ < 6; }
    bool has_accounts() const { return chapter_ >= 11; }
    std::filesystem::path directory() const { return path(); }

    // The line that all get when somebody says something.
    std::string said(const std::string& name, const std::string& text) const {
        if (echoes()) return "You said: " + text;
        return has_words() ? "SAY " + name + " " + text : name + ": " + text;
    }

    // Somebody who is in the chat.
    Peer join(const std::string& name, const PeerOptions& options = {}, Deadline until = {}) const {
        Peer peer(port_, options, until);
        if (echoes()) return peer;
        log_in(peer, name, until);
        return peer;
    }

    void answer_password(Peer& peer, Deadline until = {}) const {
        if (!has_accounts()) return;
        peer.expect(re("^(NEW)?PASS "), until);
        peer.send_line("a long password", until);
    }

    void log_in(Peer& peer, const std::string& name, Deadline until = {}) const {
        peer.expect("name?", until);
        peer.send_line(name, until);
        answer_password(peer, until);
        peer.expect(has_words() ? "WELCOME " + name : "Welcome, " + name, until);
    }

   private:
    static int number(const std::string& step) {
        return step == "Python" ? 4 : std::stoi(std::filesystem::path(step).filename().string());
    }

    Launch with(const std::string& step, const std::string& rate, Launch launch, int port) const {
        const Lines others = std::exchange(launch.args, {});
        if (step == "Python")
            launch.args = {"python3", std::filesystem::absolute("docs/tutorial/steps/naive_chat.py").string()};
        launch.args.push_back(std::to_string(port));
        if (step != "Python") launch.args.push_back(rate);
        launch.args.insert(launch.args.end(), others.begin(), others.end());
        launch.env.emplace_back("PYTHONUNBUFFERED=1");
        if (launch.directory.empty() && number(step) >= 11) launch.directory = path().string();
        return launch;
    }

    int chapter_;
    int port_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// The behaviours. Each one throws Failure, or breaks a promise that it expects, unless the step has it.

struct Case {
    std::string behaviour, step;
    bool expected = true;
    double seconds = 20;

    friend void PrintTo(const Case& c, std::ostream* out) { *out << c.behaviour << ", step " << c.step; }

    // Until when to wait for what may never come: a step that ought to do it has all the time that it needs.
    Deadline patience(const char* file = __builtin_FILE(), int line = __builtin_LINE()) const {
        return {expected ? seconds : 0.3, file, line};
    }
};

// A line that is this one, and no other.
Pattern exactly(const std::string& wanted) {
    return {"the line '" + wanted + "'", [wanted](std::string_view got) {
                return got == wanted ? std::optional<std::string>(wanted) : std::nullopt;
            }};
}

void expect_that(bool holds, const std::string& what) {
    if (!holds) throw Failure(what);
}

// Says something, and waits until the other one has it.
void talk(const Step& step, const Case& c, Peer& from, const std::string& name, const std::string& text, Peer& to) {
    from.send_line(text, c.patience());
    const std::string line = step.said(name, text);
    to.expect(exactly(line), c.patience());
}

void answers(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    talk(step, c, alice, "alice", "hello", alice);
}

sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<in_port_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

// A connection whose descriptor the test knows.
int connect_to(int port) {
    const int raw = ::socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in to = loopback(port);
    if (connect(raw, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) throw Failure("connect");
    return raw;
}

// A step that takes a piece for a message has something to say of the first piece already.
void takes_pieces(const Case& c) {
    const Step step(c.step);
    const int raw = connect_to(step.port());
    Peer alice(Descriptor(raw, "socket"), "alice");
    if (!step.echoes()) step.log_in(alice, "alice");
    alice.send_raw("hel");
    pollfd answer{raw, POLLIN, 0};
    if (!c.expected) expect_that(poll(&answer, 1, 20000) == 1, "it has something to say of the first piece");
    alice.send_raw("lo\n");
    const std::string whole = step.said("alice", "hello");
    alice.expect(exactly(whole), c.patience());
}

void answers_thirty(const Case& c) {
    const Step step(c.step, "10");
    Peer alice = step.join("alice");
    alice.send_raw(numbered("line ", 1, 30));
    for (int i = 1; i <= 30; ++i) {
        const std::string line = step.said("alice", "line " + std::to_string(i));
        alice.expect(exactly(line), c.patience());
    }
}

// The peer says much, reads nothing and is gone, all while the server does not run: so the server finds bytes to read,
// and a broken connection to answer on.
void reset_one(Step& step, const std::string& name) {
    Peer peer = step.join(name);
    step.signal(SIGSTOP);
    peer.send_raw(std::string(10000, 'x') + "\nhello\nhello\n");
    peer.reset();
    step.signal(SIGCONT);
}

void survives_reset(const Case& c) {
    Step step(c.step);
    reset_one(step, "mallory");
    Peer alice = step.join("alice", {}, c.patience());
    talk(step, c, alice, "alice", "hello", alice);
}

void closes_after_reset(const Case& c) {
    Step step(c.step);
    const long before = descriptor_count(step.pid());
    for (int i = 1; i <= 5; ++i) reset_one(step, "mallory" + std::to_string(i));
    {
        Peer alice = step.join("alice");
        talk(step, c, alice, "alice", "hello", alice);  // so it has seen the others
    }
    const auto more = [&] { return descriptor_count(step.pid()) - before; };
    EXPECT_TRUE(c.expected || eventually([&] { return more() == 5; }));
    expect_that(eventually([&] { return more() < 2; }, c.patience()), "they are still open");  // 12a opens one more
}

void talks_to_two(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    talk(step, c, alice, "alice", "hello", alice);
    Peer bob = step.join("bob");
    talk(step, c, bob, "bob", "hi", bob);
}

void goes_on_without(const Case& c) {
    const Step step(c.step);
    const int raw = connect_to(step.port());
    Peer alice(Descriptor(raw, "socket"), "alice");
    step.log_in(alice, "alice");
    Peer bob = step.join("bob");
    bob.half_close();
    pollfd more{raw, POLLIN, 0};
    if (!c.expected) expect_that(poll(&more, 1, 20000) == 1, "it has something to say of that");
    talk(step, c, alice, "alice", "hello", alice);
}

void waits_for_no_name(const Case& c) {
    const Step step(c.step);
    const Peer silent(step.port());
    Peer alice = step.join("alice", {}, c.patience());
}

const std::string long_text(4000, 'x');

// Alice talks, and bob listens; carol reads nothing at all of 8 MB, or until the others are told that she was
// dropped. Returns what bob is told of her.
Lines talk_much(const Case& c, Peer& alice, Peer& bob) {
    std::string lines;
    for (int i = 0; i < 50; ++i) lines += long_text + '\n';
    Lines told;
    for (int round = 0; round < 40 && told.empty(); ++round) {
        alice.send_raw(lines, c.patience());
        for (Peer* peer : {&alice, &bob}) {
            for (int i = 0; i < 50;) {
                const std::string line = peer->expect_next("", c.patience());
                if (contains(line, "xxx")) {
                    ++i;
                } else if (peer == &bob && contains(line, "carol") && !contains(line, "joined")) {
                    told.push_back(line);
                }
            }
        }
    }
    return told;
}

void ignores_the_deaf(const Case& c) {
    const Step step(c.step);
    const Peer carol = step.join("carol", {.receive_buffer = 4096, .deaf = true});
    Peer alice = step.join("alice"), bob = step.join("bob");
    talk_much(c, alice, bob);
}

// Returns how many bytes a connection takes whose other end reads nothing.
std::size_t capacity() {
    Listener listener;
    const Peer deaf(listener.port());
    Peer talker = listener.accept();
    std::size_t bytes = 0;
    while (talker.try_send(long_text, 0.3)) bytes += long_text.size();
    return bytes;
}

// Bob does not read while alice says half a megabyte more than his connection takes, and then is silent. What waits for
// him then is not so much that he would be dropped.
void lets_catch_up(const Case& c) {
    const std::size_t much = capacity() + 512UL * 1024;
    const Step step(c.step);
    Peer bob = step.join("bob"), alice = step.join("alice");
    const auto say_all = [&] {
        std::string lines;
        for (int i = 0; i < 20; ++i) lines += long_text + '\n';
        for (std::size_t said = 0; said < much; said += lines.size()) {
            alice.send_raw(lines);
            for (int i = 0; i < 20; ++i) alice.expect("xxx");
        }
        alice.send_line("yyy");
        alice.expect("yyy");
    };
    auto talking = std::async(std::launch::async, say_all);
    const bool all_said = talking.wait_for(std::chrono::seconds(c.expected ? 1 : 60)) == std::future_status::ready;
    EXPECT_TRUE(all_said || c.expected);  // step 4 reads no more of it until bob reads
    bob.expect("yyy", {c.expected ? c.seconds : 2});
    talking.get();
}

// Bob reads, only not at this moment: while alice pastes 16 MB as fast as she can.
void drops_nobody(const Case& c) {
    const Step step(c.step, "10");
    Peer bob = step.join("bob", {.receive_buffer = 4096}), carol = step.join("carol");
    Peer alice = step.join("alice", {.deaf = true});
    const std::string line = long_text + '\n';
    for (int i = 0; i < 4000 && alice.try_send(line, c.expected ? 0.3 : 5); ++i) continue;
    carol.send_line("are you there, bob?");
    const std::string question = step.said("carol", "are you there, bob?");
    const Deadline until(c.expected ? 60 : 1);
    const auto read = [&](Peer* peer) {
        try {
            peer->expect(question, until);
        } catch (const Failure& /*it is bob who matters*/) {
        }
    };
    const auto alice_reads = std::async(std::launch::async, read, &alice),  // or step 4 would wait for them for ever
        carol_reads = std::async(std::launch::async, read, &carol);
    bob.expect(question, until);
}

void ends_threads(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    const long before = thread_count(step.pid());
    Peer carol = step.join("carol", {.receive_buffer = 4096, .deaf = true});
    talk_much(c, alice, bob);
    expect_that(eventually([&] { return thread_count(step.pid()) <= before; }, c.patience()),
                "its thread has not ended");
}

void gives_back(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    { const Peer first = step.join("first"); }
    expect_that(eventually([&] { return thread_count(step.pid()) <= 4; }, c.patience()), "a thread has not ended");
    const long threads = thread_count(step.pid()), descriptors = descriptor_count(step.pid());
    for (int i = 0; i < 20; ++i) {
        Peer guest = step.join("guest" + std::to_string(i), {}, c.patience());
        if (i % 2 == 0) guest.reset();
    }
    expect_that(
        eventually([&] { return thread_count(step.pid()) <= threads && descriptor_count(step.pid()) <= descriptors; },
                   c.patience()),
        "there are more threads or descriptors than before");
    talk(step, c, alice, "alice", "hello", alice);
}

void sends_last_lines(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    alice.send_raw("hello\n/quit\nnobody reads this\nnor this\n", c.patience());
    alice.expect("oodbye", c.patience());
    expect_that(alice.expect_eof(c.patience()).empty(), "something came after the last line");
}

// The server reads 2048 bytes at once: when it comes to the /quit, most of this lies unread with it.
void resets_no_leaver(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    alice.send_raw("/quit\n" + numbered("nobody reads line ", 1, 5000), c.patience());
    alice.expect("oodbye", c.patience());
    alice.expect_eof(c.patience());
}

void tells_who_left(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    bob.half_close();
    alice.expect("bob left.", c.patience());
}

void starts_again(const Case& c) {
    int port = 0;
    std::unique_ptr<Peer> alice;
    {
        Step first(c.step);
        port = first.port();
        alice = std::make_unique<Peer>(first.join("alice"));
        talk(first, c, *alice, "alice", "hello", *alice);
        first.signal(SIGKILL);
        first.wait_exit();
    }
    alice->expect_closed();
    alice->close();
    const Step again(c.step, "0", {}, port);
    expect_that(again.port() == port,
                "it listens on port " + std::to_string(again.port()) + ", not on " + std::to_string(port));
}

void refuses_second(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    Peer second(step.port());
    second.expect("name?");
    second.send_line("Alice");
    step.answer_password(second);
    second.expect(starts("ERR "), c.patience());
}

// What mallory does must not move a cursor, and must not begin as a line of another one begins.
void forges_nothing(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    Peer mallory(step.port());
    mallory.expect("name?");
    mallory.send_line("alice: I say");
    mallory.send_line("mallory");
    mallory.send_line("hello\r\33[2K" + step.said("bob", "I owe alice ten euros"));
    mallory.send_line("the end");
    for (const std::string& line : alice.lines_until("the end", c.patience())) {
        expect_that(line.find_first_of("\r\33") == std::string::npos, "a control character came: " + line);
        expect_that(!line.starts_with("alice:"), "a forged line came: " + line);
    }
}

void keeps_rooms_apart(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    alice.send_line("/create den");
    alice.expect(starts("ROOM den"), c.patience());
    alice.send_line("a secret");
    alice.expect(step.said("alice", "a secret"), c.patience());
    bob.send_line("the end");
    bob.expect_none_until("a secret", step.said("bob", "the end"));
    bob.send_line("/join den");
    bob.expect(starts("ROOM den"), c.patience());
    talk(step, c, bob, "bob", "here I am", alice);
}

void keeps_mistyped_commands(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    alice.send_line("/jion den");
    alice.send_line("the end");
    bob.expect_none_until("/jion", step.said("alice", "the end"), c.patience());
    alice.expect(starts("ERR "), c.patience());
}

void lets_owners_kick(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    alice.send_line("/create den");
    alice.expect(starts("ROOM den"), c.patience());
    bob.send_line("/join den");
    bob.expect(starts("ROOM den"), c.patience());
    bob.send_line("/kick alice");
    bob.expect(starts("ERR "), c.patience());
    alice.send_line("/kick bob");
    bob.expect(starts("BYE KICK"), c.patience());
    bob.expect_eof(c.patience());
    alice.expect("LEAVE bob", c.patience());
}

void tells_when_full(const Case& c) {
    const Step step(c.step, "0", {.limits = {{RLIMIT_NOFILE, 20}}});
    const long before = descriptor_count(step.pid());
    std::vector<Peer> guests;
    for (int i = 0; i < 20; ++i) {
        guests.emplace_back(step.port());
        if (!c.expected && descriptor_count(step.pid()) >= 20) break;
    }
    guests.emplace_back(step.port());
    guests.back().expect(starts("REFUSE "), c.patience());
    guests.back().expect_closed();
    while (guests.size() > 1) guests.pop_back();
    eventually([&] { return descriptor_count(step.pid()) <= before + 3; });  // for a file, say
    step.log_in(guests.front(), "alice");
}

void ends_on_sigterm(const Case& c) {
    Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    for (int i = 1; i <= 20; ++i) talk(step, c, alice, "alice", "line " + std::to_string(i), alice);
    step.signal(SIGTERM);
    expect_that(step.wait_exit() == 0, "it did not end by itself");
    bob.expect(step.said("alice", "line 20"));
    for (Peer* peer : {&alice, &bob}) {
        peer->expect(starts("BYE SHUTDOWN"));
        peer->expect_eof();
    }
}

// After a burst of 30, name and password included, the server hears one line a second: the others lie unread with it.
void resets_nobody(const Case& c) {
    Step step(c.step, "1");
    Peer alice = step.join("alice");
    alice.send_raw(numbered("line ", 1, 2000));
    const std::string heard = step.said("alice", step.has_accounts() ? "line 28" : "line 29");
    alice.expect(exactly(heard), c.patience());
    step.signal(SIGTERM);
    const Lines last = alice.expect_eof();
    expect_that(!last.empty() && last.back().starts_with("BYE SHUTDOWN"), "it did not say that it ends");
}

void keeps_names(const Case& c) {
    const Step step(c.step);
    { const Peer alice = step.join("alice"); }
    Peer mallory(step.port());
    mallory.expect("name?");
    mallory.send_line("alice");
    mallory.expect(re("^(PASS) "), c.patience());
    mallory.send_line("a wrong password");
    mallory.expect(starts("ERR "));
}

// Whether it asks for the password that a name has, and not for a new one.
void expect_account(const Case& c, const Step& step, const std::string& name) {
    Peer peer(step.port());
    peer.expect("name?");
    peer.send_line(name);
    expect_that(peer.expect(re("^(NEW)?PASS "), c.patience()).starts_with("PASS"), name + " has no account");
}

void knows_accounts(const Case& c) {
    const TempDir place;
    const Launch here{.directory = place.path()};
    { const Peer alice = Step(c.step, "0", here).join("alice"); }
    expect_account(c, Step(c.step, "0", here), "alice");
}

void hides_passwords(const Case& c) {
    const Step step(c.step);
    const Peer alice = step.join("alice");
    const std::string file = read_file(step.directory() / "users.txt");
    if (!file.starts_with("alice:")) ADD_FAILURE() << "alice is not in the file: " << file;
    expect_that(!contains(file, "a long password"), "a password is in the file");
}

// The file may not grow beyond some bytes: the signal of that, SIGXFSZ, kills in the middle of a write.
void keeps_accounts(const Case& c) {
    const TempDir place;
    const auto file = place.path() / "users.txt";
    write_file(file, std::string(2000, '#') + '\n');
    const Launch here{.directory = place.path()}, killed{.directory = place.path(), .limits = {{RLIMIT_FSIZE, 1000}}};
    { const Peer alice = Step(c.step, "0", here).join("alice"); }
    {
        Step step(c.step, "0", killed);
        Peer mallory(step.port());
        mallory.expect("name?");
        mallory.send_line("mallory");
        mallory.expect(starts("NEWPASS "));
        mallory.send_line("a long password");
        expect_that(step.wait_exit() == -SIGXFSZ, "it was not killed");
    }
    expect_account(c, Step(c.step, "0", here), "alice");
}

// Asks with a datagram that is no question, and then with one that is. Returns the answer.
std::string ask_for_server(Step& step, const Case& c) {
    const int udp = std::stoi(step.wait_output(re("^answering on UDP port ([0-9]+)\\s"), c.patience()));
    const Descriptor socket(::socket(AF_INET, SOCK_DGRAM, 0), "socket");
    const sockaddr_in to = loopback(udp);
    const timeval limit{10, 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    std::string question = "CHATROOM? abc ";
    question.resize(256, ' ');
    for (const std::string& datagram : {std::string("what?"), question})
        sendto(socket.get(), datagram.data(), datagram.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
    std::array<char, 2048> bytes{};
    const ssize_t count = recv(socket.get(), bytes.data(), bytes.size(), 0);
    std::string answer(bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
    expect_that(answer.starts_with("CHATROOM! abc " + std::to_string(step.port()) + " 0 "),
                "the answer was: " + answer);
    return answer;
}

void answers_questions(const Case& c) {
    Step step(c.step);
    ask_for_server(step, c);
}

const std::map<std::string, void (*)(const Case&)> behaviours = {
    {"answers", answers},
    {"starts again at once on the same port", starts_again},
    {"survives a reset", survives_reset},
    {"closes the descriptor after a reset", closes_after_reset},
    {"takes a line that comes in pieces", takes_pieces},
    {"answers thirty lines at once", answers_thirty},
    {"talks to two at once", talks_to_two},
    {"goes on when somebody leaves", goes_on_without},
    {"waits for nobody's name", waits_for_no_name},
    {"gives threads and descriptors back", gives_back},
    {"is not stalled by a deaf reader", ignores_the_deaf},
    {"lets a slow reader catch up", lets_catch_up},
    {"drops nobody for another one's flood", drops_nobody},
    {"ends the thread of a client that it drops", ends_threads},
    {"sends the last lines before it closes", sends_last_lines},
    {"resets nobody who leaves", resets_no_leaver},
    {"tells the others who has left", tells_who_left},
    {"refuses a second alice", refuses_second},
    {"cannot be made to show a forged line", forges_nothing},
    {"keeps a room's lines in the room", keeps_rooms_apart},
    {"keeps a mistyped command from the others", keeps_mistyped_commands},
    {"lets the owner of a room disconnect somebody", lets_owners_kick},
    {"tells a client for whom no descriptor is left", tells_when_full},
    {"ends on SIGTERM, with everything delivered", ends_on_sigterm},
    {"resets nobody as it ends", resets_nobody},
    {"keeps a name for whoever registered it", keeps_names},
    {"knows its accounts when it starts again", knows_accounts},
    {"keeps no password that can be read", hides_passwords},
    {"keeps every account when it is killed as it writes", keeps_accounts},
    {"answers whoever looks for it", answers_questions},
};

// ---------------------------------------------------------------------------------------------------------------------
// The table

std::vector<std::string> cells_of(const std::string& row) {
    std::vector<std::string> cells;
    for (std::size_t at = 1; at < row.size();) {
        const std::size_t end = std::min(row.find('|', at), row.size());
        const std::size_t first = std::min(row.find_first_not_of(' ', at), end),
                          last = row.find_last_not_of(' ', end - 1);
        cells.push_back(first < end ? row.substr(first, last + 1 - first) : "");
        at = end + 1;
    }
    return cells;
}

// Returns the table of docs/tutorial/README.md, its heading first.
std::vector<std::vector<std::string>> table() {
    std::vector<std::vector<std::string>> rows;
    for (const std::string& line : lines_of(read_file("docs/tutorial/README.md"))) {
        if (!rows.empty() && !line.starts_with('|')) break;
        if (line.starts_with("| The program") || (!rows.empty() && !line.starts_with("|--")))
            rows.push_back(cells_of(line));
    }
    return rows;
}

std::vector<Case> cases() {
    std::vector<Case> all;
    const auto rows = table();
    for (std::size_t row = 1; row < rows.size(); ++row) {
        for (std::size_t column = 1; column < rows[row].size(); ++column) {
            const std::string &cell = rows[row][column], &step = rows[0].at(column);
            if (cell == "yes" || cell == "no") all.push_back({rows[row][0], step, cell == "yes"});
        }
    }
    return all;
}

TEST(Table, NamesEveryStepAndEveryBehaviour) {
    const auto rows = table();
    ASSERT_FALSE(rows.empty());
    std::set<std::string> named, in_table;
    for (const auto& row : rows) {
        if (&row == &rows.front()) continue;
        EXPECT_TRUE(behaviours.contains(row[0])) << row[0];
        named.insert(row[0]);
        for (std::size_t i = 1; i < row.size(); ++i)
            EXPECT_TRUE(row[i].empty() || row[i] == "yes" || row[i] == "no" || row[i] == "luck") << row[i];
    }
    EXPECT_EQ(named.size(), behaviours.size());
    for (const std::string& step : rows[0]) in_table.insert(step);
    for (const auto& entry : std::filesystem::directory_iterator("docs/tutorial/steps")) {
        const std::string name = entry.path().stem().string();
        const bool is_client = name.starts_with("10") || name == "12b_find";
        if (entry.path().extension() != ".cpp" || is_client) continue;
        EXPECT_TRUE(in_table.contains(name.substr(0, name.find('_')))) << name << " is not in the table";
    }
}

class Behaviour : public testing::TestWithParam<Case> {};

TEST_P(Behaviour, IsAsTheTableSays) {
    const Case& c = GetParam();
    const auto check = behaviours.find(c.behaviour);
    ASSERT_NE(check, behaviours.end());
    if (c.step == "Python" && Process("/usr/bin/env", {.args = {"python3", "--version"}}).wait_exit() != 0)
        GTEST_SKIP() << "there is no python3";
    if (c.expected) return check->second(c);
    try {
        check->second(c);
    } catch (const Failure& failure) {
        const std::string why = failure.what();
        std::cout << why.substr(0, why.find('\n')) << '\n';
        return;
    }
    FAIL() << "step " << c.step << " " << c.behaviour << ", and the table says that it does not";
}

std::string title(const testing::TestParamInfo<Case>& info) {
    std::string text = info.param.step + '_' + info.param.behaviour;
    for (char& each : text) each = std::isalnum(static_cast<unsigned char>(each)) != 0 ? each : '_';
    return text;
}

INSTANTIATE_TEST_SUITE_P(Steps, Behaviour, testing::ValuesIn(cases()), title);

// ---------------------------------------------------------------------------------------------------------------------
// The clients: steps 10a to 10c, and 12b, which looks for servers

// A client on a terminal, and the test as its server.
struct Conversation {
    explicit Conversation(const std::string& step)
        : client(step_path(step), {.args = {std::to_string(listener.port())}}), server(listener.accept()) {}

    // Returns the screen when it shows something, or at the deadline.
    std::string screen_with(const Pattern& text) {
        client.wait_output(text);
        Terminal terminal;
        terminal.feed(client.output());
        return terminal.text();
    }

    Listener listener;
    Pty client;
    Peer server;
};

class ClientSteps : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Steps, ClientSteps, testing::Values("10a", "10b", "10c"));

TEST_P(ClientSteps, ShowWhatComesAndSendWhatIsTyped) {
    Conversation talk(GetParam());
    talk.server.send_raw("NICK Your ");
    talk.server.send_raw("name?\nSAY bob h\33i\n");
    talk.client.wait_output("-- Your name?");
    talk.client.wait_output("bob: h\xEF\xBF\xBDi");
    talk.client.type("alice\n");
    talk.server.expect("alice");
}

TEST_P(ClientSteps, EndWithTheServer) {
    Conversation talk(GetParam());
    talk.client.type("half a li");
    talk.server.send_raw("BYE SHUTDOWN The server shuts down.\n");
    talk.client.wait_output("-- The server shuts down.");
    talk.server.close();
    EXPECT_EQ(talk.client.wait_exit(), 0);
    EXPECT_TRUE(talk.client.echoes());
}

TEST_P(ClientSteps, EndTheConnectionWithTheInput) {
    Conversation talk(GetParam());
    talk.server.send_raw("INFO hello\n");
    talk.client.wait_output("-- hello");
    talk.client.type("\4");
    talk.server.expect_eof();
    talk.server.close();
    EXPECT_EQ(talk.client.wait_exit(), 0);
}

TEST_P(ClientSteps, TalkToAServer) {
    const Step step("12a");
    Pty alice(step_path(GetParam()), {.args = {std::to_string(step.port())}});
    for (const auto& [question, answer] :
         {std::pair("Your name?", "alice"), {"A new password", "a long password"}, {"You are in", "hello"}}) {
        alice.wait_output(question);
        alice.type(std::string(answer) + "\n");
    }
    alice.wait_output("alice: hello");
}

// What the chapter is about: a line that is half typed when another one comes.
TEST(ClientStep, TearsATypedLine10a) {
    Conversation talk("10a");
    talk.client.type("I say hel");
    talk.client.wait_output("I say hel");
    talk.server.send_line("SAY bob hi");
    EXPECT_TRUE(contains(talk.screen_with("bob: hi"), "I say helbob: hi"));
}

class TypedLines : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Steps, TypedLines, testing::Values("10b", "10c"));

TEST_P(TypedLines, StayWhole) {
    Conversation talk(GetParam());
    talk.server.send_line("INFO hello");
    talk.client.wait_output("-- hello");  // it has the terminal now
    talk.client.type("I say hel");
    talk.client.wait_output("I say hel");
    talk.client.mark();
    talk.server.send_line("SAY bob hi");
    const std::string screen = talk.screen_with(re("bob: hi\\s+I say hel"));
    EXPECT_TRUE(screen.starts_with("-- hello\nbob: hi\nI say hel\n")) << screen;
    talk.client.type("lx\177o\n");
    talk.server.expect(exactly("I say hello"));
}

TEST(ClientStep, ShowsAPassword10b) {
    Conversation talk("10b");
    talk.server.send_line("PASS The password of alice?");
    talk.client.wait_output("-- The password of alice?");
    talk.client.type("a long password");
    talk.client.wait_output("a long password");
}

TEST(ClientStep, HidesAPassword10c) {
    Conversation talk("10c");
    talk.server.send_line("PASS The password of alice?");
    talk.client.wait_output("-- The password of alice?");
    talk.client.mark();
    talk.client.type("a long password");
    talk.client.wait_output("\33[K");  // it has drawn what is typed
    talk.server.send_line("INFO hello");
    EXPECT_FALSE(contains(talk.screen_with("-- hello"), "a long"));
    talk.client.type("\n");
    talk.server.expect("a long password");
}

// Whether the terminal shows what is typed once a signal has ended the client.
bool echoes_after(int number, const std::string& step) {
    Conversation talk(step);
    talk.server.send_line("INFO hello");
    talk.client.wait_output("-- hello");
    EXPECT_FALSE(talk.client.echoes());
    talk.client.signal(number);
    EXPECT_EQ(talk.client.wait_exit(), -number);
    return talk.client.echoes();
}

TEST(ClientStep, LeavesTheTerminalAsItIs10b) { EXPECT_FALSE(echoes_after(SIGTERM, "10b")); }

TEST(ClientStep, RestoresTheTerminal10c) {
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) EXPECT_TRUE(echoes_after(number, "10c")) << number;
}

// Returns what the server gets of a character of two bytes, and a backspace.
std::string erased_by(const std::string& step) {
    Conversation talk(step);
    talk.server.send_line("INFO hello");
    talk.client.wait_output("-- hello");
    talk.client.type("b\xC3\xA4\177r\n");
    return talk.server.expect("b");
}

TEST(ClientStep, ErasesHalfACharacter10b) { EXPECT_EQ(erased_by("10b"), "b\xC3r"); }
TEST(ClientStep, ErasesACharacter10c) { EXPECT_EQ(erased_by("10c"), "br"); }

TEST(ClientStep, FindsAServer12b) {
    Step step("12a");
    const std::string udp = step.wait_output(re("^answering on UDP port ([0-9]+)\\s"));
    Process found(step_path("12b"), {.args = {udp, "127.255.255.255"}});
    found.wait_output("is at 127.0.0.1, port " + std::to_string(step.port()) + ", with 0 in it");
    EXPECT_EQ(found.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The exercises. Each check throws Failure unless the program does what the exercise asks for.

void check_01(const Case& c) {
    const Step step(c.step);
    for (const char* text : {"first", "second", "third"}) {
        Peer alice = step.join("alice", {}, c.patience());
        talk(step, c, alice, "alice", text, alice);
    }
}

void check_02(const Case& c) {
    Process nowhere(c.step, {.args = {"0", "nowhere.invalid"}});
    nowhere.wait_error("getaddrinfo nowhere.invalid", c.patience());
    expect_that(nowhere.wait_exit(c.patience()) == 1, "the exit status is not 1");
    Process there(c.step, {.args = {"0", second_address}});
    const int port = std::stoi(there.wait_output(re("^listening on port ([0-9]+)\\s")));
    Peer alice(port, {.host = second_address}, c.patience());
    alice.send_line("hello");
    alice.expect("You said: hello", c.patience());
}

void check_03(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    alice.send_raw(std::string(3000, 'x'));
    alice.send_raw(std::string(6000, 'y') + "\nhello\n", c.patience());
    alice.expect_next("too long", c.patience());
    alice.expect_next("You said: hello", c.patience());
    talk(step, c, alice, "alice", "and again", alice);
}

void check_04(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    alice.send_line("/who");
    alice.expect(exactly("2 here: alice bob"), c.patience());
    alice.send_line("the end");
    bob.expect_none_until("/who", "alice: the end");
    bob.half_close();
    bob.expect_closed(c.patience());
    expect_that(eventually(
                    [&] {
                        alice.send_line("/who");
                        return alice.expect("here: alice") == "1 here: alice";
                    },
                    c.patience()),
                "bob has gone, and is still in the list");
}

void check_05(const Case& c) {
    const Step step(c.step);
    const Peer carol = step.join("carol", {.receive_buffer = 4096, .deaf = true});
    Peer alice = step.join("alice"), bob = step.join("bob");
    Lines lines = talk_much(c, alice, bob);
    const std::string notice = "-- carol was dropped.";
    if (lines.empty()) lines.push_back(bob.expect(notice, c.patience()));
    alice.send_line("the end");
    for (const std::string& line : bob.lines_until("alice: the end", c.patience())) lines.push_back(line);
    const auto told = std::count(lines.begin(), lines.end(), notice);
    expect_that(told == 1, "'" + notice + "' was told " + std::to_string(told) + " times");
}

void check_06(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob"), carol = step.join("carol");
    bob.send_line("/quit I have to go home");
    alice.expect("-- bob left: I have to go home", c.patience());
    carol.send_line("/quit");
    alice.expect(exactly("-- carol left."), c.patience());
}

void check_07(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    bob.send_line("/nick Alice");
    bob.expect(starts("ERR "), c.patience());
    bob.send_line("/nick no good");
    bob.expect(starts("ERR "), c.patience());
    bob.send_line("/nick robert");
    alice.expect("NAME bob robert", c.patience());
    talk(step, c, bob, "robert", "it is me", alice);
    Peer other = step.join("bob", {}, c.patience());
    bob.half_close();
    alice.expect("LEAVE robert", c.patience());
    const Peer again = step.join("robert", {}, c.patience());
}

void check_08(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice"), bob = step.join("bob");
    alice.send_line("/create den");
    alice.send_line("/topic the weather");
    alice.expect("TOPIC den the weather", c.patience());
    bob.send_line("/join den");
    bob.expect("ROOM den");
    bob.expect("TOPIC den the weather", c.patience());
    bob.send_line("/topic something else");
    bob.expect(starts("ERR "), c.patience());
    bob.send_line("/help");
    bob.expect("/topic", c.patience());
}

void check_09(const Case& c) {
    const Step step(c.step, "0", {.args = {"2"}});
    Peer alice = step.join("alice"), bob = step.join("bob");
    Peer carol(step.port());
    carol.expect_next(starts("REFUSE "), c.patience());
    carol.expect_closed(c.patience());
    bob.send_line("/quit");
    bob.expect_closed(c.patience());
    expect_that(
        eventually([&] { return contains(Peer(step.port()).expect_next("", c.patience()), "name?"); }, c.patience()),
        "bob has gone, and there is still no place");
    talk(step, c, alice, "alice", "hello", alice);
}

void check_10(const Case& c) {
    Conversation with(c.step);
    with.server.send_line("INFO hello");
    with.client.wait_output("-- hello");
    with.client.type("hello big  world\27");
    with.client.type("bang\n");
    with.server.expect(exactly("hello big  bang"), c.patience());
    with.client.type("one two three \27\27\27\27four\n");
    with.server.expect(exactly("four"), c.patience());
}

void check_11(const Case& c) {
    const Step step(c.step);
    Peer alice = step.join("alice");
    const Peer bob = step.join("bob");
    alice.send_line("/password short");
    alice.expect(starts("ERR "), c.patience());
    alice.send_line("/password quite another one");
    alice.expect(starts("INFO "), c.patience());
    alice.send_line("/quit");
    alice.expect_closed();
    Peer again(step.port());
    for (const auto& [question, answer] : {std::pair("NICK ", "alice"), {"PASS ", "a long password"}}) {
        again.expect(starts(question), c.patience());
        again.send_line(answer);
    }
    again.expect(starts("ERR "), c.patience());
    again.send_line("quite another one");
    again.expect("WELCOME alice", c.patience());
    const std::string file = read_file(step.directory() / "users.txt");
    expect_that(count_in(file, "alice:") == 1 && count_in(file, "bob:") == 1, "users.txt is wrong now:\n" + file);
    expect_that(!contains(file, "another"), "a password is in the file");
}

void check_12(const Case& c) {
    Step step(c.step, "0", {.args = {"Room 7 \33[2J" + std::string(300, 'x') + "\r"}});
    const std::string answer = ask_for_server(step, c);
    expect_that(contains(answer, " password Room 7 "), "the answer was: " + answer);
    expect_that(answer.size() <= 256, "the answer has " + std::to_string(answer.size()) + " bytes, the question 256");
    expect_that(answer.find_first_of("\33\r") == std::string::npos, "a control character is in the answer");
}

// What these three check is a changed server.cpp, with all its options.
class ServerInUse {
   public:
    explicit ServerInUse(const std::string& program) : before_(server_path()) {
        setenv("CHATROOM_SERVER", program.c_str(), 1);
    }
    ~ServerInUse() { setenv("CHATROOM_SERVER", before_.c_str(), 1); }

   private:
    std::string before_;
};

void check_13(const Case& c) {
    const ServerInUse program(c.step);
    const TempDir place;
    const std::string file = place.path() / "motd.txt", pipe = place.path() / "pipe";
    write_file(file, "Welcome to the lab.\n\33[2JToday: sockets\r\n" + numbered("more ", 1, 100000));
    const Server server({.args = {"--motd", file}});
    Peer alice(server.port(), "alice");
    const Lines lines = alice.lines_until_echo();
    const auto told = [&](const std::string& text) {
        return std::any_of(lines.begin(), lines.end(),
                           [&](const std::string& line) { return line.starts_with("INFO ") && contains(line, text); });
    };
    expect_that(told("Welcome to the lab.") && told("Today: sockets"), "the file's lines were not told");
    for (const std::string& line : lines)
        expect_that(line.find_first_of("\33\r") == std::string::npos, "a control character came: " + line);
    expect_that(lines.size() < 1000, std::to_string(lines.size()) + " lines were told: that is no greeting any more");
    // A file that is as slow as can be: a pipe into which nobody writes.
    expect_that(mkfifo(pipe.c_str(), 0600) == 0 && std::rename(pipe.c_str(), file.c_str()) == 0, "no pipe");
    Peer bob(server.port());
    bob.send_line("bob");
    bob.expect("WELCOME bob", c.patience());
    alice.lines_until_echo(c.patience());
    write_file(file, "It is late.\n");
    bob.expect("INFO It is late.", c.patience());
}

void check_14(const Case& c) {
    const ServerInUse program(c.step);
    const Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    std::set<std::string> shown;
    for (int i = 0; i < 40; ++i) {
        alice.send_line("/roll");
        shown.insert(bob.expect(re("^ME alice rolls ([1-6]) of 6$"), c.patience()));
    }
    expect_that(shown.size() > 1, "forty rolls have all shown " + *shown.begin());
    alice.send_line("/roll 20");
    bob.expect(re("^ME alice rolls ([1-9]|1[0-9]|20) of 20$"), c.patience());
    for (const char* wrong : {"/roll 0", "/roll -3", "/roll dice"}) {
        alice.send_line(wrong);
        alice.expect(starts("ERR "), c.patience());
    }
    admin.send_line("/block alice");
    admin.lines_until_echo();
    alice.send_line("/roll");
    admin.expect("BLOCKED alice", c.patience());
    bob.send_line("/echo the end");
    bob.expect_none_until("rolls", "ECHO the end");
}

void check_15(const Case& c) {
    const ServerInUse program(c.step);
    const TempDir place;
    const ServerOptions with{.args = {"--history", (place.path() / "history.txt").string()}};
    {
        const Server server(with);
        Peer alice(server.port(), "alice");
        alice.send_raw(numbered("line ", 1, 60));
        alice.expect("SAY alice line 60");
        Peer(server.port(), "bob").send_line("/me waves");
        alice.expect("ME bob waves");
    }
    const Server server(with);
    Peer carol(server.port(), "carol");
    carol.send_line("/echo the end");
    const Lines lines = carol.lines_until("ECHO the end", c.patience());
    Lines past;
    for (const std::string& line : lines) {
        if (line.starts_with("PAST ")) past.push_back(line);
    }
    expect_that(past.size() == 50, std::to_string(past.size()) + " lines of the past were shown, not 50");
    expect_that(past.front().ends_with("Z SAY alice line 12"), "the first one was: " + past.front());
    expect_that(past.back().ends_with("Z ME bob waves"), "the last one was: " + past.back());
    expect_that(read_file(place.path() / "history.txt").find('\33') == std::string::npos, "that is not clean");
}

struct Exercise {
    std::string number;
    void (*check)(const Case&);
    std::string starter;  // the step that it begins with; "/": server.cpp
};

const std::vector<Exercise> exercises = {
    {"01", check_01, "01"},  {"02", check_02, "02b"}, {"03", check_03, "03"},  {"04", check_04, "04"},
    {"05", check_05, "05c"}, {"06", check_06, "06b"}, {"07", check_07, "07"},  {"08", check_08, "08b"},
    {"09", check_09, "09c"}, {"10", check_10, "10c"}, {"11", check_11, "11d"}, {"12", check_12, "12a"},
    {"13", check_13, "/"},   {"14", check_14, "/"},   {"15", check_15, "/"},
};

TEST(Exercises, PassTheirCheckWhenTheyAreSolved) {
    std::size_t solved = 0;
    for (const auto& entry : std::filesystem::directory_iterator("tests/solutions")) solved += entry.exists() ? 1 : 0;
    EXPECT_EQ(solved, exercises.size());
    for (const Exercise& exercise : exercises) {
        SCOPED_TRACE("exercise " + exercise.number);
        exercise.check({"exercise " + exercise.number, "build/tests/solutions/" + exercise.number});
    }
}

TEST(Exercises, FailTheirCheckBefore) {
    for (const Exercise& exercise : exercises) {
        SCOPED_TRACE("exercise " + exercise.number);
        const std::string starter = exercise.starter == "/" ? server_path() : step_path(exercise.starter);
        try {
            exercise.check({"exercise", starter, false});
            ADD_FAILURE() << "the check does not see that it is not solved";
        } catch (const Failure& failure) {
            const std::string why = failure.what();
            std::cout << exercise.number << ": " << why.substr(0, why.find('\n')) << '\n';
        }
    }
}

// `make check-NN SRC=mine.cpp` runs this alone.
TEST(Exercises, DISABLED_Check) {
    const char *number = std::getenv("EXERCISE"), *program = std::getenv("PROGRAM");
    ASSERT_TRUE(number != nullptr && program != nullptr);
    for (const Exercise& exercise : exercises) {
        if (exercise.number != number) continue;
        try {
            exercise.check({"exercise", program, true, 5});
            std::cout << "Exercise " << number << " is solved.\n";
        } catch (const Failure& failure) {
            FAIL() << "Not yet. '>' is what was sent, '<' is what came:\n" << failure.what();
        }
        return;
    }
    FAIL() << "There is no exercise " << number << '.';
}

}  // namespace
