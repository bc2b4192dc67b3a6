// Accounts: passwords that are chosen, given, changed and guessed; the file that keeps them; and where they never are.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "harness.hpp"

using namespace harness;

namespace {

namespace fs = std::filesystem;

const std::string tea = "green tea", coffee = "black coffee";
const std::string not_right = "ERR That is not the password.";
const std::string wait = "ERR Too many attempts: wait a minute, then try again.";
const std::string three_wrong = "REFUSE Three wrong passwords.";

long count_of(const Lines& lines, const std::string& prefix) {
    return std::count_if(lines.begin(), lines.end(), [&](const auto& line) { return line.starts_with(prefix); });
}

// Where the accounts are kept: a directory that outlives the servers on it.
struct Home {
    [[nodiscard]] ServerOptions options(const Lines& more = {}) const {
        ServerOptions options{.args = {"--users", users}};
        options.args.insert(options.args.end(), more.begin(), more.end());
        return options;
    }
    [[nodiscard]] Lines lines() const { return lines_of(read_file(users)); }

    TempDir dir;
    fs::path users = dir.path() / "users.txt";
};

// Connects, gives a name, and reads on to the question for its password, which begins so.
Peer at_question(const Server& server, const std::string& name, const std::string& question,
                 const PeerOptions& options = {}) {
    Peer peer(server.port(), options);
    peer.expect(starts("NICK "));
    peer.send_line(name);
    peer.expect_next(starts(question + " "));
    return peer;
}

// The same for as many names, which are numbered.
std::vector<Peer> at_questions(const Server& server, const std::string& prefix, int count,
                               const std::string& question) {
    std::vector<Peer> peers;
    peers.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) peers.push_back(at_question(server, prefix + std::to_string(i), question));
    return peers;
}

Peer registered(const Server& server, const std::string& name, const std::string& password = tea) {
    Peer peer = at_question(server, name, "NEWPASS");
    peer.send_line(password);
    peer.expect_next(starts("WELCOME " + name + " "));
    peer.expect_who();
    return peer;
}

Peer logged_in(const Server& server, const std::string& name, const std::string& password = tea) {
    Peer peer(server.port());
    peer.login(name, password);
    return peer;
}

// Tries to log in, and returns what the password is answered with.
std::string answer_to(const Server& server, const std::string& name, const std::string& password,
                      const PeerOptions& options = {}) {
    Peer peer = at_question(server, name, "PASS", options);
    peer.send_line(password);
    return peer.expect_next();
}

void leave(Peer peer) {
    peer.send_line("/quit");
    peer.expect_eof();
}

// ---------------------------------------------------------------------------------------------------------------------
// The limit on wrong tries. The minute of which the last test here waits for the end runs while all others do.

struct Exhausted {
    Exhausted() : server(home.options()) {
        leave(registered(server, "alice"));
        leave(registered(server, "bob"));
        Peer owner = logged_in(server, "admin", server.password()), dave = registered(server, "dave");
        for (const char* name : {"alice", "bob", "alice", "bob", "alice", "bob"}) {  // over all connections and names
            Peer thief = at_question(server, name, "PASS");
            thief.send_raw("guess 1\nguess 2\nguess 3\n");
            const Lines answers = thief.expect_eof();
            wrong += count_of(answers, not_right);
            EXPECT_EQ(answers.back(), three_wrong);
        }
        owner.send_line("/create den 12345");
        owner.expect(starts("OWNER "));
        dave.expect(starts("LEAVE admin "));
        expect_answers(dave, {{"/join den 54321", "ERR That is not the room's code."},
                              {"/shutdown 0", "ERR That is not the exit code."},
                              {"/join den 12345", wait}});
        wrong += 2;
        done = Clock::now();
    }

    Home home;
    Server server;
    long wrong = 0;
    Clock::time_point begin = Clock::now(), done;
};

std::optional<Exhausted> exhausted;

TEST(Tries, ThatAreWrongAreTwentyAMinuteForAllSecretsAndConnections) {
    exhausted.emplace();
    EXPECT_EQ(exhausted->wrong, 20);
    for (const std::string& password : {tea, coffee}) EXPECT_EQ(answer_to(exhausted->server, "alice", password), wait);
    leave(registered(exhausted->server, "carol"));  // nothing is guessed by that
    need_address(second_address);
    const std::string other = answer_to(exhausted->server, "alice", tea, {.from = second_address});
    EXPECT_TRUE(other.starts_with("WELCOME alice ")) << other;
}

TEST(Tries, ThatAreRightDoNotCount) {
    Home home;
    Server server(home.options());
    leave(registered(server, "alice"));
    for (int i = 0; i < 25; ++i) leave(logged_in(server, "alice"));
    EXPECT_EQ(answer_to(server, "alice", coffee), not_right);
}

// A thousand guesses, fifty connections at a time. No answer past the limit tells whether the guess was right, not even
// to the right one; and two others talk on while the guesses wait for theirs.
TEST(Tries, AThousandOverFiftyConnectionsAreNotLookedAtPastTheLimit) {
    need_address(second_address);
    Home home;
    Server server(home.options());
    leave(registered(server, "victim"));
    Peer alice = registered(server, "alice"), bob = registered(server, "bob");
    Lines answers;
    for (int round = 0; round < 7; ++round) {
        std::vector<Peer> thieves;
        thieves.reserve(50);
        for (int i = 0; i < 50; ++i) thieves.emplace_back(server.port(), PeerOptions{.from = second_address});
        const std::string third = round == 0 ? "guess 3" : tea;
        for (Peer& thief : thieves) thief.send_raw("victim\nguess 1\nguess 2\n" + third + "\n");
        for (int i = 0; i < 50; ++i) {
            const std::string hello = "hello " + std::to_string(i);
            alice.send_line(hello);
            bob.expect("SAY alice " + hello);
        }
        for (Peer& thief : thieves) {
            for (const std::string& line : thief.expect_eof(20)) answers.push_back(line);
        }
    }
    EXPECT_EQ(count_of(answers, not_right), 20);
    EXPECT_EQ(count_of(answers, wait), 7 * 50 * 3 - 20);
    EXPECT_EQ(count_of(answers, three_wrong), 7 * 50);
    leave(logged_in(server, "victim"));  // from an address that has not guessed
}

// ---------------------------------------------------------------------------------------------------------------------
// Registering and logging in

TEST(Account, IsMadeByTheFirstLoginAndNeedsItsPasswordEverAfter) {
    Home home;
    Server server(home.options());
    leave(registered(server, "alice"));
    for (const char* wrong : {"green te", "green tea ", "Green tea", " "}) {
        EXPECT_EQ(answer_to(server, "alice", wrong), not_right) << wrong;
    }
    Peer alice = at_question(server, "alice", "PASS");
    alice.send_raw("guess\nguess\n" + tea + "\n");  // at the third try
    alice.expect(starts("WELCOME alice "));
}

TEST(Account, IsNotOpenedByThreeWrongPasswords) {
    Home home;
    Server server(home.options());
    Peer bob = registered(server, "bob");
    leave(registered(server, "alice"));
    Peer thief = at_question(server, "alice", "PASS");
    thief.send_raw("guess 1\nguess 2\nguess 3\n" + tea + "\n");
    const Lines answers = thief.expect_eof();
    EXPECT_EQ(count_of(answers, not_right), 3);
    EXPECT_EQ(answers.back(), three_wrong);
    bob.expect("LEAVE alice left.");
    EXPECT_EQ(bob.lines_until_echo(), Lines{}) << "of a login that was not one";
}

TEST(Account, NeedsEightCharactersAndAtMost256Bytes) {
    Home home;
    Server server(home.options());
    const std::string seven = "\xC3\xA4\xC3\xB6\xC3\xBC\xC3\x9F\xC3\xA4\xC3\xB6\xC3\xBC", eight = seven + "8";
    Peer alice = at_question(server, "alice", "NEWPASS");
    for (const std::string& bad : {std::string(" "), std::string("7 chars"), seven, std::string(257, 'x')}) {
        alice.send_line(bad);
        EXPECT_NO_THROW(alice.expect_next(starts("ERR A password has at least 8 characters"))) << bad;
        alice.expect_next(starts("NEWPASS "));
    }
    alice.send_line(eight);
    alice.expect_next(starts("WELCOME alice "));
    leave(registered(server, "bob", std::string(256, 'x')));
    EXPECT_EQ(answer_to(server, "bob", std::string(255, 'x')), not_right);
    EXPECT_EQ(answer_to(server, "bob", std::string(257, 'x')), not_right);
    leave(logged_in(server, "bob", std::string(256, 'x')));
}

// A name that somebody else has leads to a question that one cannot answer.
TEST(Account, OfSomebodyElseIsLeftByAnEmptyAnswer) {
    Home home;
    Server server(home.options());
    leave(registered(server, "alice"));
    Peer bob = at_question(server, "alice", "PASS");
    expect_answer(bob, coffee, not_right);
    for (const char* question :
         {"PASS The admin's password? An empty line goes back.",
          "NEWPASS A new password for bob? 8 characters to 256 bytes. An empty line goes back."}) {
        bob.send_line("");
        bob.expect(starts("NICK "));
        expect_answer(bob, contains(question, "admin") ? "admin" : "bob", question);
    }
    bob.send_raw("\nalice\n\nbob\n" + tea + "\n");  // all of it without waiting for the questions
    bob.expect(starts("WELCOME bob "));
    EXPECT_EQ(home.lines().size(), 2U);
}

TEST(Account, IsTheSameWithoutRegardToCase) {
    Home home;
    Server server(home.options());
    leave(registered(server, "Alice"));
    EXPECT_EQ(answer_to(server, "ALICE", coffee), not_right);
    leave(logged_in(server, "aLICE"));
    EXPECT_EQ(home.lines().size(), 1U);
}

TEST(Account, OfOneNameIsHadByOneAlone) {
    Home home;
    Server server(home.options());
    for (int round = 0; round < 5; ++round) {
        const std::string name = "alice" + std::to_string(round);
        Peer one = at_question(server, name, "NEWPASS"), other = at_question(server, name, "NEWPASS");
        for (Peer* peer : {&one, &other}) peer->send_line(tea);
        Lines answers;
        for (Peer* peer : {&one, &other}) answers.push_back(peer->expect_next(re("^(?:WELCOME|REFUSE) .*")));
        EXPECT_EQ(count_of(answers, "WELCOME " + name + " "), 1);
        EXPECT_EQ(count_of(answers, "REFUSE Somebody has just registered that name."), 1);
    }
    EXPECT_EQ(home.lines().size(), 5U);
}

// The admin has the admin's password, whatever stands in the file.
TEST(Account, IsNotTheAdmins) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice");
    Peer admin = logged_in(server, "admin", server.password());
    EXPECT_FALSE(contains(read_file(home.users), "admin"));
    leave(std::move(admin));
    std::string line = home.lines().front();
    write_file(home.users, "admin" + line.substr(line.find(':')) + "\n");
    EXPECT_EQ(answer_to(server, "admin", tea), not_right);
    leave(logged_in(server, "ADMIN", server.password()));
}

TEST(Account, IsAskedForByNoServerWithoutUsers) {
    Server server;
    Peer alice(server.port(), "alice");
    Peer admin = logged_in(server, "admin", server.password());
    expect_answers(alice, {{"/password", "ERR Only somebody with an account may use /password"}});
    expect_answers(admin, {{"/unregister alice", "ERR This server keeps no accounts."}});
}

// ---------------------------------------------------------------------------------------------------------------------
// The file

TEST(AccountsFile, HoldsASaltedSlowHashForItsOwnerAlone) {
    Home home;
    write_file(home.users, "# by hand\n");
    fs::permissions(home.users, fs::perms(0644));
    Server server(home.options());
    for (const char* name : {"alice", "bob"}) leave(registered(server, name));
    EXPECT_EQ(fs::status(home.users).permissions(), fs::perms(0600));
    const Lines lines = home.lines();
    ASSERT_EQ(lines.size(), 3U);
    const auto hash = re("^\\w+:(\\$y\\$j9T\\$\\S+|\\$6\\$rounds=[1-9]\\d{5,}\\$\\S+)$");
    for (std::size_t i : {1U, 2U}) EXPECT_TRUE(hash.find(lines[i])) << lines[i];
    EXPECT_NE(hash.find(lines[1]), hash.find(lines[2])) << "the same password with the same salt";
    EXPECT_FALSE(contains(read_file(home.users), tea));
}

TEST(AccountsFile, OutlivesARestartAndAKill) {
    Home home;
    for (const int signal : {SIGTERM, SIGKILL}) {
        Server server(home.options());
        Peer alice = signal == SIGTERM ? registered(server, "alice") : logged_in(server, "alice");
        Peer other = registered(server, "other" + std::to_string(signal));
        server.signal(signal);
        server.wait_exit();
    }
    Server server(home.options());
    for (const int signal : {SIGTERM, SIGKILL}) leave(logged_in(server, "other" + std::to_string(signal)));
}

// Returns what an expression finds in each line.
std::set<std::string> names_in(const Lines& lines, const std::string& expression) {
    const Pattern pattern = re(expression);
    std::set<std::string> names;
    for (const std::string& line : lines) {
        if (const auto name = pattern.find(line)) names.insert(*name);
    }
    return names;
}

// Adds fifty accounts to the file by hand, and returns the commands that end them.
std::string add_accounts(const Home& home, const std::string& prefix) {
    std::string lines, commands;
    for (int i = 0; i < 50; ++i) {
        const std::string name = prefix + std::to_string(i);
        lines += name + ":$6$sixteencharsalt.$and.so.on.and.so.on.and.so.on\n";
        commands += "/unregister " + name + "\n";
    }
    write_file(home.users, read_file(home.users) + lines);
    return commands;
}

// Promise 5: a kill at any moment leaves a whole file, with every account that was made and none that was ended.
TEST(AccountsFile, SurvivesAKillAtAnyMoment) {
    Home home;
    std::string by_hand;
    for (int i = 0; i < 10000; ++i) by_hand += "# a line that takes time to write\n";
    write_file(home.users, by_hand);
    std::mt19937 random(4);  // NOLINT(bugprone-random-generator-seed): so that a failure comes again
    std::set<std::string> made, ended;
    for (int round = 0; round < 5; ++round) {
        const std::string prefix = "r" + std::to_string(round), commands = add_accounts(home, prefix + "old");
        Server server(home.options());
        std::vector<Peer> peers = at_questions(server, prefix + "user", 10, "NEWPASS");
        for (Peer& peer : peers) peer.send_line(tea);
        server.wait_output("logged in");
        server.write(commands);
        server.wait_output("was unregistered");
        const auto moment = Clock::now() + std::chrono::microseconds(random() % 100000);
        do EXPECT_TRUE(read_file(home.users).starts_with(by_hand)) << "a crash now would leave this";
        while (Clock::now() < moment);
        server.signal(SIGKILL);
        EXPECT_EQ(server.wait_exit(), -SIGKILL);
        for (Peer& peer : peers) made.merge(names_in(peer.expect_closed(), "^WELCOME (\\w+)"));
        ended.merge(names_in(lines_of(server.output()), "-- (\\w+) was unregistered"));

        const std::string text = read_file(home.users);
        ASSERT_TRUE(text.starts_with(by_hand) && text.ends_with("\n"));
        const Lines accounts = lines_of(text.substr(by_hand.size()));
        EXPECT_EQ(names_in(accounts, "^r\\d(?:user|old)\\d+:\\$\\S{40,}$").size(), accounts.size()) << text;
        for (const std::string& name : made) EXPECT_EQ(count_of(accounts, name + ":"), 1) << name;
        for (const std::string& name : ended) EXPECT_EQ(count_of(accounts, name + ":"), 0) << name;
    }
    EXPECT_GE(made.size(), 1U);
    EXPECT_GE(ended.size(), 1U);
}

TEST(AccountsFile, KeepsLinesThatAreNoAccountsAndTellsTheirNumbersAtTheStart) {
    Home home;
    const Lines by_hand = {"# a comment", "no account", "bob:plain text", "", "al ice:$6$x$y", "carol:", "zed"};
    std::string text;
    for (const std::string& line : by_hand) text += line + "\n";
    write_file(home.users, text.substr(0, text.size() - 1));  // the last line has no end
    Server server(home.options());
    for (const char* number : {"2", "3", "5", "6", "7"}) {
        server.wait_output(home.users.string() + ", line " + number + ": no account, not \"NAME:HASH\"; it is kept.");
    }
    EXPECT_FALSE(re("line [14]:").find(server.output()));
    EXPECT_FALSE(contains(server.output(), "plain text")) << "it could be somebody's password";
    leave(registered(server, "alice"));
    Lines lines = home.lines();
    lines.pop_back();
    EXPECT_EQ(lines, by_hand);
    server.write("/unregister alice\n");
    server.wait_output("alice has no account any more");
    EXPECT_EQ(home.lines(), by_hand);
}

// Whoever puts a mark before a hash keeps its owner out, and gives the name to nobody else.
TEST(AccountsFile, LocksAnAccountWhoseHashIsNone) {
    Home home;
    write_file(home.users, "alice:!$y$j9T$x$y\r\n");
    Server server(home.options());
    server.wait_output(", line 1: no account");
    Peer alice(server.port());
    alice.send_line("alice");
    alice.expect("REFUSE This account is locked.");
    alice.expect_eof();
    EXPECT_EQ(home.lines().size(), 1U);
}

// Made by `openssl passwd -6 -salt sixteencharsalt. 'green tea 6'`: hashes are the system's, not the server's.
TEST(AccountsFile, EditedByHandCountsFromTheNextLogin) {
    Home home;
    Server server(home.options());
    leave(registered(server, "alice"));
    write_file(home.users,
               "alice:$6$sixteencharsalt.$V6EjObsOu4G0LMfsTC/saStK1Yni1MV22niJWgibVI7r/"
               "7eSJoVI5oOiY5KuogwcnQa9ewi0npvDdlVIUhs2W0\n");
    EXPECT_EQ(answer_to(server, "alice", tea), not_right);
    leave(logged_in(server, "alice", "green tea 6"));
    write_file(home.users, "");
    leave(registered(server, "alice", coffee));
}

TEST(AccountsFile, ThatCannotBeReadAtTheStartEndsIt) {
    TempDir directory;
    Process server(server_path(), {.args = {"--port", "0", "--users", directory.path()}});
    EXPECT_EQ(server.wait_exit(), 1);
    server.wait_error("server: read " + directory.path().string() + ": EISDIR");
}

TEST(AccountsFile, ThatCannotBeWrittenAtTheStartEndsIt) {
    TempDir directory;
    const std::string file = directory.path() / "missing" / "users.txt";
    Process server(server_path(), {.args = {"--port", "0", "--users", file}});
    EXPECT_EQ(server.wait_exit(), 1);
    EXPECT_TRUE(server.errors().starts_with("server: open " + file + ".new: ENOENT (")) << server.errors();
}

TEST(AccountsFile, ThatCannotBeWrittenRegistersNobodyAndHarmsNobodyElse) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice");
    fs::remove_all(home.dir.path());
    Peer bob = at_question(server, "bob", "NEWPASS");
    bob.send_line(tea);
    EXPECT_EQ(bob.expect_eof(), Lines{"REFUSE The server has a problem; please tell whoever runs it."});
    server.wait_output(re("-- 127\\.0\\.0\\.1 failed: open .*: ENOENT"));
    expect_answers(alice, {{"hello", "SAY alice hello"}});
}

// ---------------------------------------------------------------------------------------------------------------------
// Changing and ending

TEST(PasswordCommand, ChangesItInTheMiddleOfTheChat) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice"), bob = registered(server, "bob");
    alice.expect_next(starts("JOIN bob"));
    expect_answer(alice, "/password", "PASS The password of alice?");
    bob.send_line("one");
    alice.expect_next("SAY bob one");
    expect_answer(alice, coffee, not_right);
    alice.expect_next(starts("PASS "));
    expect_answer(alice, tea, "NEWPASS A new password for alice?");
    bob.send_line("two");
    alice.expect_next("SAY bob two");
    expect_answer(alice, "short", "ERR A password has at least 8");
    alice.expect_next(starts("NEWPASS "));
    expect_answer(alice, "/quit the coffee", "INFO Your password is changed.");
    expect_answer(alice, "hello", "SAY alice hello");
    EXPECT_EQ(bob.lines_until("SAY alice hello"), (Lines{"SAY bob one", "SAY bob two"}));
    leave(std::move(alice));
    EXPECT_EQ(answer_to(server, "alice", tea), not_right);
    server.signal(SIGKILL);
    server.wait_exit();
    Server next(home.options());
    leave(logged_in(next, "alice", "/quit the coffee"));
    leave(logged_in(next, "bob"));
}

TEST(PasswordCommand, IsLeftByAnEmptyAnswer) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice");
    for (const bool at_the_second_question : {false, true}) {
        expect_answer(alice, "/password", "PASS The password of alice? An empty line goes back.");
        if (at_the_second_question) expect_answer(alice, tea, "NEWPASS ");
        expect_answer(alice, "", "INFO Your password is as it was.");
        expect_answer(alice, "hello", "SAY alice hello");
    }
    leave(std::move(alice));
    leave(logged_in(server, "alice"));
}

TEST(PasswordCommand, DisconnectsAfterThreeWrongPasswords) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice"), bob = registered(server, "bob");
    alice.send_raw("/password\na\nb\nc\n");
    EXPECT_EQ(alice.expect_eof().back(), "BYE KICK Three wrong passwords.");
    bob.expect(starts("LEAVE alice "));
    leave(logged_in(server, "alice"));
}

TEST(PasswordCommand, IsForUsersWithAnAccount) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice"), admin = logged_in(server, "admin", server.password());
    const std::string refused = "ERR Only somebody with an account may use /password";
    expect_answers(admin, {{"/password", refused}});
    server.write("/password\n");
    server.wait_output("-- " + refused.substr(4));
    alice.send_line("/help");
    EXPECT_EQ(count_of(alice.lines_until_echo(), "INFO /password "), 1);
    admin.send_line("/help");
    EXPECT_EQ(count_of(admin.lines_until_echo(), "INFO /password "), 0);
}

TEST(Unregister, FreesANameForTheNextLogin) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "Alice"), bob = registered(server, "bob");
    Peer admin = logged_in(server, "admin", server.password());
    expect_answers(admin, {{"/unregister", "ERR The form is: /unregister NAME"},
                           {"/unregister zed", "ERR zed has no account."},
                           {"/unregister admin", "ERR admin has no account."},
                           {"/unregister aLICE", "INFO aLICE has no account any more"}});
    for (Peer* peer : {&alice, &bob}) peer->lines_until_echo();
    expect_answers(bob, {{"/unregister alice", "ERR Only the admin may use /unregister NAME"}});
    expect_answers(alice, {{"still here", "SAY Alice still here"}});  // and has the name until she leaves
    leave(std::move(alice));
    leave(registered(server, "alice", coffee));
    server.write("/unregister bob\n");
    server.wait_output("bob has no account any more");
    EXPECT_EQ(home.lines().size(), 1U);
}

// ---------------------------------------------------------------------------------------------------------------------
// Secrets stay secret

TEST(Unregister, OfSomebodyHereLeavesNoPasswordToChange) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice");
    server.write("/unregister alice\n");
    server.wait_output("was unregistered by server.");
    alice.send_raw("/password\n" + tea + "\n" + tea + "2\n");
    alice.expect("ERR Your account was changed or ended meanwhile: the password was not changed.");
    EXPECT_EQ(alice.lines_until_echo(), Lines{"INFO Your password is as it was."});
    EXPECT_EQ(home.lines().size(), 0U);
}

TEST(Passwords, AreNowhereButInTheirHashes) {
    Home home;
    Server server(home.options());
    Peer bob = registered(server, "bob");
    Peer alice = registered(server, "alice", "Zanzibar 1");
    alice.send_raw("/password\nZanzibar 2\nZanzibar 1\nZanzi\nZanzibar 3\nhello\n/quit\n");
    alice.expect_eof();
    EXPECT_EQ(answer_to(server, "alice", "Zanzibar 4"), not_right);
    leave(logged_in(server, "alice", "Zanzibar 3"));
    std::string all;
    for (const std::string& line : bob.lines_until_echo()) all += line + "\n";
    Peer late = registered(server, "late");
    for (const std::string& line : late.lines_until_echo()) all += line + "\n";
    EXPECT_TRUE(contains(all, "SAY alice hello\nLEAVE alice") && contains(all, "PAST ")) << all;
    server.write("/echo all is logged\n");
    server.wait_output("all is logged\n");
    all += server.output() + server.errors() + read_file(home.users);
    const std::string process = "/proc/" + std::to_string(server.pid());
    if (fs::exists(process)) all += read_file(process + "/cmdline") + read_file(process + "/environ");
    EXPECT_FALSE(contains(all, "Zanzi"));
}

TEST(AdminPasswordFile, GivesItsFirstLineAndWinsOverTheEnvironment) {
    TempDir dir;
    const std::string file = dir.path() / "secret";
    write_file(file, "Zanzibar 77\nnot this\n");
    Server server({.args = {"--admin-password-file", file}});
    server.wait_output("admin password: as set in " + file + "\n");
    EXPECT_EQ(answer_to(server, "admin", server.password()), not_right);
    EXPECT_EQ(answer_to(server, "admin", "not this"), not_right);
    leave(logged_in(server, "admin", "Zanzibar 77"));
    const std::string process = "/proc/" + std::to_string(server.pid());
    std::string shown = server.output() + server.errors();
    if (fs::exists(process)) shown += read_file(process + "/cmdline") + read_file(process + "/environ");
    EXPECT_FALSE(contains(shown, "Zanzibar") || contains(shown, server.password()));
}

TEST(AdminPasswordFile, ThatHasNoneEndsTheServerAtTheStart) {
    TempDir dir;
    const std::string empty = dir.path() / "empty", missing = dir.path() / "missing";
    write_file(empty, "");
    for (const std::string& file : {empty, missing}) {
        Process server(server_path(), {.args = {"--port", "0", "--admin-password-file", file}});
        EXPECT_EQ(server.wait_exit(), 1);
        server.wait_error(re("^server: read " + file + ": .*its first line is the password"));
        EXPECT_EQ(server.output(), "");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Hundreds at once

// Begins as many logins, each of which has to be hashed. One account's hash serves all.
std::vector<Peer> begin_logins(const Home& home, const Server& server, int count) {
    const std::string line = home.lines().front();
    std::string text = line + "\n";
    for (int i = 0; i < count; ++i) text += "user" + std::to_string(i) + line.substr(line.find(':')) + "\n";
    write_file(home.users, text);
    std::vector<Peer> peers = at_questions(server, "user", count, "PASS");
    for (Peer& peer : peers) peer.send_line(tea);
    return peers;
}

// Promise 2: in what alice sees, her own hundred lines, each said when the one before has come back, are there before
// half of the logins that began earlier.
TEST(TwoHundredLogins, AreOvertakenByTheChat) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice");
    std::vector<Peer> peers = begin_logins(home, server, 200);
    Lines seen;
    for (int i = 0; i < 100; ++i) {
        const std::string line = "line " + std::to_string(i);
        alice.send_line(line);
        for (const std::string& other : alice.lines_until("SAY alice " + line)) seen.push_back(other);
    }
    EXPECT_LT(count_of(seen, "JOIN user"), 100);
    for (Peer& peer : peers) peer.expect(starts("WELCOME user"), 120);
}

TEST(TwoHundredLogins, DoNotHoldUpTheShutdown) {
    Home home;
    Server server(home.options());
    Peer alice = registered(server, "alice");
    std::vector<Peer> peers = begin_logins(home, server, 200);
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
    int waiting = 0;
    for (Peer& peer : peers) {
        const Lines lines = peer.expect_eof();
        EXPECT_EQ(lines.back(), "BYE SHUTDOWN The server shuts down.");
        waiting += count_of(lines, "WELCOME ") == 0 ? 1 : 0;
    }
    EXPECT_GT(waiting, 50) << "there was nothing that could hold it up";
}

// ---------------------------------------------------------------------------------------------------------------------
// The client

Launch to(const Server& server, const Lines& more = {}) {
    Launch launch{.args = {"--plain", "127.0.0.1", std::to_string(server.port())},
                  .env = {"TZ=UTC0", "LC_ALL=C.UTF-8"}};
    launch.args.insert(launch.args.begin(), more.begin(), more.end());
    return launch;
}

// Types a line when it is asked for: what was typed before does not show.
void answer(Pty& client, const std::string& question, const std::string& line) {
    client.wait_output(question);
    EXPECT_TRUE(eventually([&] { return !client.echoes(); })) << question;
    client.mark();
    client.type(line + "\n");
}

TEST(AccountClient, AsksForANewPasswordTwiceAndShowsNone) {
    Home home;
    Server server(home.options());
    Pty client(client_path(), to(server, {"--name", "alice"}));
    answer(client, "-- A new password for alice?", "Zanz");
    answer(client, "!! A password has at least 8 characters", "Zanzibar 1");  // before it is typed twice
    answer(client, "-- The same once more", "Zanzibar 2");
    answer(client, "!! That was not the same.", "Zanzibar 1");
    answer(client, "-- The same once more", "Zanzibar 1");
    client.wait_output("-- Welcome, alice.");
    EXPECT_TRUE(client.echoes());
    EXPECT_FALSE(contains(client.output(), "Zanz"));
    Peer(server.port()).expect("NICK");
    client.type("/quit\n");
    EXPECT_EQ(client.wait_exit(), 0);
    server.wait_output("-- alice left.");  // only then her name is free
    leave(logged_in(server, "alice", "Zanzibar 1"));
}

TEST(AccountClient, ChangesThePasswordWhileLinesComeIn) {
    Home home;
    Server server(home.options());
    Peer bob = registered(server, "bob");
    leave(registered(server, "alice", "Zanzibar 1"));
    Pty client(client_path(), to(server, {"--name", "alice"}));
    answer(client, "-- The password of alice?", "Zanzibar 1");
    client.wait_output("-- Welcome, alice.");
    client.mark();
    client.type("/password\n");
    client.wait_output("-- The password of alice?");
    client.type("Zanzi");
    bob.send_line("one");
    client.wait_output("bob: one");
    EXPECT_FALSE(client.echoes());
    client.type("bar 1\n");
    client.wait_output("-- A new password for alice?");
    bob.send_line("two");
    client.wait_output("bob: two");
    answer(client, "-- A new password for alice?", "Zanzibar 2");
    bob.send_line("three");
    client.wait_output("bob: three");
    answer(client, "-- The same once more", "Zanzibar 2");
    client.wait_output("-- Your password is changed.");
    EXPECT_FALSE(contains(client.output(), "Zanzi"));
    client.type("hello\n");
    bob.expect("SAY alice hello");
    client.type("/quit\n");
    bob.expect_next("LEAVE alice left.");  // only then her name is free
    EXPECT_EQ(client.wait_exit(), 0);
    leave(logged_in(server, "alice", "Zanzibar 2"));
}

TEST(AccountClient, TakesPasswordsInAPipe) {
    Home home;
    Server server(home.options());
    Peer bob = registered(server, "bob");
    const Lines scripts = {"Zanzibar 1\nhello\n/password\nZanzibar 1\nZanzibar 2\nbye\n/quit\n",
                           "Zanzibar 2\nback\n/quit\n"};
    Lines said;
    for (const std::string& script : scripts) {
        Process client(client_path(), to(server, {"--name", "alice"}));
        client.write(script);
        EXPECT_EQ(client.wait_exit(), 0);
        EXPECT_EQ(client.errors(), "");
        EXPECT_FALSE(contains(client.output(), "Zanzibar"));
        const Lines seen = bob.lines_until("LEAVE alice left.");  // only then her name is free
        said.insert(said.end(), seen.begin(), seen.end());
    }
    EXPECT_EQ(said, (Lines{"JOIN alice joined.", "SAY alice hello", "SAY alice bye", "JOIN alice joined.",
                           "SAY alice back"}));
}

TEST(AccountClient, EndsAfterThreeWrongPasswords) {
    Home home;
    Server server(home.options());
    leave(registered(server, "alice"));
    Process client(client_path(), to(server, {"--name", "alice"}));
    client.write("guess 1\nguess 2\nguess 3\nhello\n");
    EXPECT_EQ(client.wait_exit(), 1);
    client.wait_output("!! That is not the password.");
    client.wait_output("!! Three wrong passwords.");
}

// ---------------------------------------------------------------------------------------------------------------------

TEST(TheMinute, IsOverAndARightPasswordWorksAgain) {
    if (!exhausted) exhausted.emplace();  // the only test that is run
    const auto seconds_since = [](Clock::time_point then) {
        return std::chrono::duration<double>(Clock::now() - then).count();
    };
    ASSERT_TRUE(eventually([&] { return seconds_since(exhausted->begin) > 55; }, 65));
    const std::string early = answer_to(exhausted->server, "alice", tea);
    EXPECT_TRUE(early == wait || seconds_since(exhausted->begin) > 60) << early;
    ASSERT_TRUE(eventually([&] { return seconds_since(exhausted->done) > 60; }, 65));
    leave(logged_in(exhausted->server, "bob"));  // the early try may be alice still
    exhausted.reset();
}

}  // namespace
