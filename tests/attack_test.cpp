// What attackers tried against a server, and what must come of it: each test is one attack that once succeeded. The
// limits are those that a server has by default, unless the test says so.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <deque>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "network.hpp"
#include "proof.hpp"

#ifdef __linux__
#include <sys/syscall.h>
#endif

using namespace harness;
using namespace proof;

namespace {

namespace fs = std::filesystem;

std::vector<Peer> peers_from(const Server& server, int count, int first_address) {
    std::vector<Peer> peers;
    peers.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) {
        peers.emplace_back(server.port(), PeerOptions{.from = address_of(first_address + i)}, 20);
    }
    return peers;
}

std::string exit_code_of(Server& server) { return server.wait_output(re("exit code: ([0-9]{5})")); }

// The most memory that a process has ever had, in bytes; 0 where the system does not tell.
long peak_bytes(pid_t pid) {
    std::ifstream status("/proc/" + std::to_string(pid) + "/status");
    for (std::string word; status >> word;) {
        long kib = 0;
        if (word == "VmHWM:" && status >> kib) return kib * 1024;
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// Accounts: hashing

// Promise 2. Four people log in while four others register, again and again: crypt(3) has one buffer for all.
TEST(Accounts, AreHashedRightWhileOthersRegister) {
    const Home home;
    Server server(home.options());
    leave(registered(server.port(), "alice"));
    const std::string hash = read_file(home.users).substr(5);
    std::string accounts;
    for (int i = 0; i < 4; ++i) accounts += "user" + std::to_string(i) + hash;
    write_file(home.users, accounts);
    for (int round = 0; round < 6; ++round) {
        std::vector<Peer> old_ones = peers_from(server, 4, 0), new_ones = peers_from(server, 4, 10 + 4 * round);
        for (int i = 0; i < 4; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const std::string number = std::to_string(i);
            new_ones[at].send_raw("new" + std::to_string(round) + number + "\n" + coffee + number + "\n/quit\n");
            old_ones[at].send_raw("user" + number + "\n" + tea + "\n/quit\n");
        }
        for (std::vector<Peer>* peers : {&old_ones, &new_ones}) {
            for (Peer& peer : *peers) EXPECT_NO_THROW(peer.expect(starts("WELCOME "), 20));
            for (Peer& peer : *peers) peer.expect_closed();
        }
    }
    for (const char* name : {"new00", "new31", "new53"}) {  // what was stored is right, too
        leave(logged_in(server.port(), name, coffee + name[4]));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// One address against everybody

// Returns how many lines somebody gets until so many speakers have said that they are done.
long read_flood(Peer& peer, std::size_t speakers) {
    std::set<std::string> done;
    long count = 0;
    for (; done.size() < speakers; ++count) {
        const std::string line = peer.expect(starts("SAY "), 60);
        if (contains(line, "I am done")) done.insert(line);
    }
    return count;
}

// How many of them end with such a count; the first that does not is told.
std::size_t how_many_give(std::vector<std::future<long>>& counts, long wanted) {
    std::size_t right = 0;
    std::string trouble;
    for (std::future<long>& count : counts) {
        try {
            right += count.get() == wanted ? 1U : 0U;
        } catch (const Failure& failure) {
            if (trouble.empty()) trouble = failure.what();
        }
    }
    if (!trouble.empty()) std::cerr << trouble << std::endl;
    return right;
}

// People who ignore each other.
std::vector<Peer> strangers(const Server& server, std::size_t count) {
    std::vector<Peer> peers;
    peers.reserve(count);
    for (std::size_t i = 0; i < count; ++i) peers.emplace_back(server.port(), ("bad" + std::to_string(i)).c_str());
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t other = 0; other < count; ++other) {
            if (other != i) peers[i].send_line("/ignore bad" + std::to_string(other));
        }
        peers[i].lines_until_echo();
    }
    return peers;
}

// Promise 2. Sixteen connections that ignore each other each send what the rate allows at once, in lines of bytes of
// which each becomes three: more than a client's queue may hold, while everybody reads all the time.
TEST(Flood, OfBadBytesThrowsNobodyOut) {
    constexpr std::size_t attackers = 16, listeners = 84;
    constexpr int lines = 14;
    Server server({.rate = 10});
    std::vector<Peer> bad = strangers(server, attackers), good;
    good.reserve(listeners);
    for (std::size_t i = 0; i < listeners; ++i) good.emplace_back(server.port(), ("good" + std::to_string(i)).c_str());
    std::string flood;
    for (int i = 0; i < lines; ++i) flood += std::string(4095, '\xFF') + "\n";
    std::vector<std::future<long>> received, attacks;
    for (Peer& peer : good) {
        received.push_back(std::async(std::launch::async, [&] { return read_flood(peer, attackers); }));
    }
    for (Peer& peer : bad) {
        attacks.push_back(std::async(std::launch::async, [&] {
            peer.try_send(flood + "I am done\n", 60);
            return read_flood(peer, 1);  // it hears itself alone
        }));
    }
    EXPECT_EQ(how_many_give(received, static_cast<long>(attackers) * (lines + 1)), listeners);
    EXPECT_EQ(how_many_give(attacks, lines + 1), attackers);
}

// ---------------------------------------------------------------------------------------------------------------------
// Guessing from many addresses

// Tries wrong codes with a command from so many addresses, 15 from each, and returns how many were looked at.
long guess_from_everywhere(const Server& server, const std::string& command, int addresses) {
    std::string guesses;
    for (int i = 0; i < 15; ++i) guesses += command + " 1x" + std::to_string(100 + i) + "\n";
    long looked_at = 0;
    for (int i = 0; i < addresses; ++i) {
        Peer peer(server.port(), PeerOptions{.from = address_of(i)});
        peer.login("guess" + std::to_string(i));
        peer.send_raw(guesses);
        for (const std::string& line : peer.lines_until_echo()) {
            if (line.starts_with("ERR ") && !contains(line, "wait")) ++looked_at;
        }
        leave(std::move(peer));
    }
    return looked_at;
}

TEST(ExitCode, IsNotGuessedFromManyAddresses) {
    if (!has_many_addresses()) GTEST_SKIP() << "this machine has no second address";
    Server server;
    const std::string code = exit_code_of(server);
    EXPECT_LE(guess_from_everywhere(server, "/shutdown", 40), 300);
    Peer knowing(server.port(), PeerOptions{.from = address_of(1000)});
    knowing.login("knowing");
    EXPECT_TRUE(contains(ask(knowing, "/shutdown " + code, "ERR"), "wait")) << "a guess past the limit was looked at";
    leave(std::move(knowing));
}

TEST(RoomCode, IsNotGuessedFromManyAddressesAndEachRoomHasALimitOfItsOwn) {
    if (!has_many_addresses()) GTEST_SKIP() << "this machine has no second address";
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    ask(alice, "/create den 12345", "ROOM den");
    ask(bob, "/create lab 54321", "ROOM lab");
    EXPECT_LE(guess_from_everywhere(server, "/join den", 40), 300);
    Peer knowing(server.port(), PeerOptions{.from = address_of(1000)});
    knowing.login("knowing");
    EXPECT_TRUE(contains(ask(knowing, "/join den 12345", "ERR"), "wait")) << "a guess past the limit was looked at";
    ask(knowing, "/join lab 54321", "ROOM lab");
}

#ifdef __linux__
// An IPv6 host has a whole /64 of addresses: they count as one.
TEST(Ipv6, AddressesOfOneNetworkCountAsOne) {
    if (!Network::can_be_made()) GTEST_SKIP() << "no network of its own";
    const Network network;
    network.raise_loopback();
    if (!network.shell(
            "for n in 1 2; do for i in 1 2 3 4 5 6; do ip addr add fd00:$n::$i/64 dev lo nodad; done; done")) {
        GTEST_SKIP() << "no IPv6";
    }
    network.inside([] {
        Server server({.max_per_ip = 4, .args = {"--bind", "fd00:1::1"}});
        const std::string code = exit_code_of(server);
        const auto from = [](int net, int host) {
            return PeerOptions{.host = "fd00:1::1",
                               .from = "fd00:" + std::to_string(net) + "::" + std::to_string(host)};
        };
        std::vector<Peer> peers;
        for (int i = 1; i <= 4; ++i) {
            peers.emplace_back(server.port(), from(1, i));
            peers.back().login("alice" + std::to_string(i));
        }
        Peer fifth(server.port(), from(1, 5));
        EXPECT_TRUE(fifth.expect_next().starts_with("REFUSE ")) << "a fifth connection from one network";
        Peer other(server.port(), from(2, 1));
        other.login("bob");
        for (Peer& peer : peers) peer.send_raw("/shutdown 0\n/shutdown 0\n/shutdown 0\n/shutdown 0\n/shutdown 0\n");
        for (Peer& peer : peers) peer.lines_until_echo();
        EXPECT_TRUE(contains(ask(peers[0], "/shutdown 0", "ERR"), "wait")) << "more than 20 tries from one network";
    });
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Two servers on one file

// Returns the names that were acknowledged as done, of many that are asked for on each of the connections at once.
std::set<std::string> acknowledged(const std::vector<Peer*>& peers, const std::string& command, int each) {
    std::vector<std::future<std::set<std::string>>> parts;
    for (std::size_t p = 0; p < peers.size(); ++p) {
        parts.push_back(std::async(std::launch::async, [&, p] {
            std::set<std::string> done;
            for (int i = 0; i < each; ++i) {
                const std::string name = "name" + std::to_string(p) + "x" + std::to_string(i);
                peers[p]->send_line(command + " " + name);
                if (peers[p]->expect(re("^(INFO|ERR) ")).starts_with("INFO")) done.insert(name);
            }
            return done;
        }));
    }
    std::set<std::string> all;
    for (auto& part : parts) all.merge(part.get());
    return all;
}

// Promise 5.
TEST(TwoServers, OnOneBanListLoseNoBan) {
    const Home home;
    Server one({.args = {"--bans", home.bans}}), other({.args = {"--bans", home.bans}});
    Peer admin_of_one = admin_of(one), admin_of_other = admin_of(other);
    const std::set<std::string> banned = acknowledged({&admin_of_one, &admin_of_other}, "/ban", 40);
    EXPECT_EQ(banned.size(), 80U);
    const std::string list = read_file(home.bans);
    for (const std::string& name : banned) EXPECT_TRUE(contains(list, name + " ")) << name << " is lost";
}

// Promise 5.
TEST(TwoServers, OnOneFileOfAccountsLoseNoAccount) {
    const Home home;
    Server one(home.options()), other(home.options());
    std::vector<Peer> peers;
    for (int i = 0; i < 16; ++i) {
        const Server& server = i % 2 == 0 ? one : other;
        peers.push_back(at_question(server.port(), "alice" + std::to_string(i), "NEWPASS", {.from = address_of(i)}));
    }
    for (Peer& peer : peers) peer.send_line(tea);
    for (Peer& peer : peers) peer.expect(starts("WELCOME "), 20);
    const std::string accounts = read_file(home.users);
    for (int i = 0; i < 16; ++i) {
        const std::string name = "alice" + std::to_string(i) + ":";
        EXPECT_TRUE(contains(accounts, name)) << name << " is lost";
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Secrets that are sent ahead of the question (promise 7)

// What a witness has seen, and what the log has.
std::string shown_of(Server& server, Peer& witness) {
    std::string shown;
    for (const std::string& line : witness.lines_until_echo()) shown += line + "\n";
    server.write("/echo that was all\n");
    server.wait_output("that was all\n");
    return shown + server.output();
}

TEST(SentAhead, TheAdminsPasswordIsNoNameWhileTheAdminIsHere) {
    Server server;
    Peer witness(server.port(), "witness"), admin = admin_of(server);
    for (const char* given : {"letmein", "Zanzibar"}) {  // the right one, and a wrong one
        Peer peer(server.port());
        peer.send_raw("admin\n" + std::string(given) + "\n");
        peer.half_close();
        peer.expect_closed();
        EXPECT_FALSE(contains(shown_of(server, witness), given)) << given;
    }
    Peer again(server.port());
    again.send_raw("admin\nletmein\n");
    again.expect(starts("PASS "));
    again.expect(starts("ERR "));  // the name is taken
    again.expect(starts("NICK "));
    again.send_line("carol");
    again.expect(starts("WELCOME carol "));
}

TEST(SentAhead, APasswordIsNoNameWhileItsOwnerIsHere) {
    const Home home;
    Server server(home.options());
    Peer witness = registered(server.port(), "witness"), alice = registered(server.port(), "alice", "Zanzibar");
    for (const char* given : {"Zanzibar", "Zanziwrong"}) {
        Peer peer(server.port());
        peer.send_raw("alice\n" + std::string(given) + "\nhello everybody\n");
        peer.half_close();
        peer.expect_closed();
        EXPECT_FALSE(contains(shown_of(server, witness), "Zanzi")) << given;
        EXPECT_FALSE(contains(read_file(home.users), "Zanzi")) << given;
    }
}

TEST(SentAhead, PasswordsAreNotSaidAfterTheAccountHasEnded) {
    const Home home;
    Server server(home.options());
    Peer witness = registered(server.port(), "witness"), alice = registered(server.port(), "alice", "Zanzibar1");
    server.write("/unregister alice\n");
    server.wait_output("was unregistered by server");
    alice.send_raw("/password\nZanzibar1\nZanzibar2\nhello everybody\n");
    std::string shown;
    for (const std::string& line : witness.lines_until(re("^(SAY alice hello everybody|LEAVE alice)"))) shown += line;
    EXPECT_FALSE(contains(shown + shown_of(server, witness), "Zanzi"));
}

// The file has a hash that this system cannot make, or cannot be read at all.
TEST(SentAhead, PasswordsAreNotSaidWhenTheyCannotBeChecked) {
    for (const bool readable : {true, false}) {
        const Home home;
        Server server(home.options());
        Peer witness = registered(server.port(), "witness"), alice = registered(server.port(), "alice", "Zanzibar1");
        const std::string before = "alice:$9$none\n";
        write_file(home.users, before);
        if (!readable) fs::remove(home.users), fs::create_directory(home.users);
        alice.send_raw("/password\nZanzibar1\nZanzibar2\nhello everybody\n");
        std::string shown;
        for (const std::string& line : witness.lines_until("SAY alice hello everybody")) shown += line;
        EXPECT_FALSE(contains(shown + shown_of(server, witness), "Zanzi")) << readable;
        alice.expect(starts("ERR "));
        EXPECT_TRUE(!readable || read_file(home.users) == before);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What counts is the file at the moment of the answer

TEST(OldPassword, DoesNotWorkAfterTheChangeForWhoeverWasAskedBefore) {
    const Home home;
    Server server(home.options());
    leave(registered(server.port(), "alice", tea));
    Peer late = at_question(server.port(), "alice", "PASS");
    Peer owner = logged_in(server.port(), "alice", tea);
    owner.send_raw("/password\n" + tea + "\n" + coffee + "\n");
    owner.expect("INFO Your password is changed.", 20);
    leave(std::move(owner));
    late.send_line(tea);
    EXPECT_TRUE(late.expect_next(Pattern(""), 20).starts_with("ERR ")) << "the old password still works";
    late.send_line(coffee);
    late.expect(starts("WELCOME alice "), 20);
}

TEST(OldPassword, DoesNotWorkAfterTheAccountHasEnded) {
    const Home home;
    Server server(home.options());
    leave(registered(server.port(), "alice", tea));
    Peer late = at_question(server.port(), "alice", "PASS");
    server.write("/unregister alice\n");
    server.wait_output("was unregistered by server");
    late.send_line(tea);
    EXPECT_FALSE(late.expect_next(Pattern(""), 20).starts_with("WELCOME ")) << "the password of an ended account";
}

TEST(Lock, PutIntoTheFileByHandIsNotOverwritten) {
    const Home home;
    Server server(home.options());
    Peer alice = registered(server.port(), "alice", tea);
    alice.send_raw("/password\n" + tea + "\n");
    alice.expect(starts("NEWPASS "), 20);
    write_file(home.users, "alice:locked\n");
    alice.send_line(coffee);
    alice.lines_until(re("^(INFO|ERR|BYE) "), 20);
    EXPECT_EQ(read_file(home.users), "alice:locked\n");
}

// ---------------------------------------------------------------------------------------------------------------------
// What is planted beside the files

TEST(PlantedLink, HasNoOtherFileOverwritten) {
    const Home home;
    const fs::path victim = home.dir.path() / "victim";
    write_file(victim, "precious\n");
    Server server({.args = {"--bans", home.bans}});
    fs::create_symlink(victim, home.bans.string() + ".new");
    Peer admin = admin_of(server);
    admin.send_line("/ban bob");
    const std::string answer = admin.expect(re("^(INFO|ERR) "));
    EXPECT_EQ(read_file(victim), "precious\n");
    EXPECT_EQ(answer.starts_with("INFO bob is banned"),
              fs::exists(home.bans) && contains(read_file(home.bans), "bob "));
}

TEST(PlantedFifo, HoldsUpNeitherABanNorTheShutdown) {
    const Home home;
    Server server({.args = {"--bans", home.bans}});
    ASSERT_EQ(::mkfifo((home.bans.string() + ".new").c_str(), 0600), 0);
    Peer admin = admin_of(server);
    admin.send_line("/ban bob");
    EXPECT_NO_THROW(admin.expect(re("^(INFO|ERR) ")));
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
}

// Another program has locked the file. Each of two bans waits for that: when one has given up, the other begins.
TEST(LockedFile, DoesNotHoldUpTheShutdown) {
    const Home home;
    write_file(home.bans, "mallory\n");
    Server server({.args = {"--bans", home.bans}});
    const Descriptor locked(::open(home.bans.c_str(), O_RDONLY), "open");
    ASSERT_EQ(::flock(locked.get(), LOCK_EX), 0);
    Peer admin = admin_of(server);
    admin.send_line("/ban bob");
    server.write("/ban carol\n");
    server.wait_output("-- ban failed: " + home.bans.string() + " is locked by another program");
    const Clock::time_point begin = Clock::now();
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(3));
    EXPECT_EQ(read_file(home.bans), "mallory\n");
}

TEST(Crash, WhatItLeavesBesideTheFilesIsRemovedAtTheStart) {
    const Home home;
    for (const fs::path& file : {home.bans, home.users}) write_file(file.string() + ".new", "half a li");
    Server server(home.options());
    leave(registered(server.port(), "alice"));
    for (const fs::path& file : {home.bans, home.users}) EXPECT_FALSE(fs::exists(file.string() + ".new"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Costs

// The admin reads all the time; what is answered is 30 times what a queue holds at most, or a part of it.
TEST(Bans, OfManyLinesDoNotDropTheAdmin) {
    const Home home;
    std::string list;
    for (int i = 0; i < 30'000; ++i) {
        list += "10." + std::to_string(i / 10'000) + '.' + std::to_string(i / 100 % 100) + '.' +
                std::to_string(i % 100) + "  # by admin at 2026-01-01T00:00:00Z, because of this and that\n";
    }
    write_file(home.bans, list);
    Server server({.args = {"--bans", home.bans}});
    Peer admin = admin_of(server);
    admin.send_line("/bans");
    EXPECT_TRUE(contains(admin.expect(re("^INFO .*30000"), 20), "30000"));
    EXPECT_NO_THROW(admin.lines_until_echo(20));
}

// Sixty-four connections of one address, each at the question for a password that it need not know.
TEST(Memory, DoesNotGrowWithTheAccountsForEachLogin) {
    const Home home;
    std::string accounts;
    for (int i = 0; i < 100'000; ++i) {
        accounts += "user" + std::to_string(i) + ":$y$j9T$" + std::string(22, 'a') + "$" + std::string(43, 'b') + "\n";
    }
    write_file(home.users, accounts);
    Server server(home.options(), 20);
    if (peak_bytes(server.pid()) == 0 || is_sanitized()) GTEST_SKIP() << "it is not known how much memory it has had";
    leave(at_question(server.port(), "user0", "PASS"));
    const long before = peak_bytes(server.pid());
    std::deque<Peer> peers;
    for (int i = 0; i < 64; ++i) peers.emplace_back(server.port(), PeerOptions{});
    for (int i = 0; i < 64; ++i) peers[static_cast<std::size_t>(i)].send_line("user" + std::to_string(99'000 + i));
    for (Peer& peer : peers) peer.expect(starts("PASS "), 60);
    const long mib = (peak_bytes(server.pid()) - before) / 1024 / 1024;
    EXPECT_LT(mib, 100) << "MiB more for 64 logins";
}

// The same with a ban list, which every connection is held against.
TEST(Memory, DoesNotGrowWithTheBansForEachConnection) {
    const Home home;
    std::string list;
    for (int i = 0; i < 300'000; ++i) list += "user" + std::to_string(i) + "\n";
    write_file(home.bans, list);
    Server server({.args = {"--bans", home.bans}}, 20);
    if (peak_bytes(server.pid()) == 0 || is_sanitized()) GTEST_SKIP() << "it is not known how much memory it has had";
    leave(Peer(server.port(), "alice", 20));
    const long before = peak_bytes(server.pid());
    std::deque<Peer> peers;
    for (int i = 0; i < 60; ++i) peers.emplace_back(server.port(), PeerOptions{});
    for (Peer& peer : peers) peer.expect(starts("NICK "), 60);
    const long mib = (peak_bytes(server.pid()) - before) / 1024 / 1024;
    EXPECT_LT(mib, 100) << "MiB more for 60 connections";
}

// A room that was closed is forgotten by the sender too: 20,000 of them leave nothing.
TEST(Memory, DoesNotGrowWithTheRoomsThatWereClosed) {
    if (is_sanitized()) GTEST_SKIP() << "a sanitizer keeps what was freed";
    Server server({.args = {"--rate", "0"}});
    Peer alice(server.port(), "alice");
    const auto make_and_close = [&](int rooms) {
        for (int i = 0; i < rooms; ++i) {
            alice.send_line("/create den");
            alice.expect(starts("ROOM den "));
            alice.send_line("/close");
            alice.expect(starts("ROOM public "));
        }
    };
    make_and_close(2'000);
    const long before = resident_bytes(server.pid());
    make_and_close(20'000);
    EXPECT_LT(resident_bytes(server.pid()) - before, 1L << 20);
}

// Sixty registrations from one address: some are told to wait, and somebody else logs in before the others are done.
TEST(Registrations, FromOneAddressAreLimited) {
    if (!has_many_addresses()) GTEST_SKIP() << "this machine has no second address";
    const Home home;
    Server server(home.options());
    leave(registered(server.port(), "alice"));
    std::deque<Peer> peers;
    for (int i = 0; i < 60; ++i) peers.emplace_back(server.port(), PeerOptions{.from = address_of(1)});
    for (int i = 0; i < 60; ++i) {
        peers[static_cast<std::size_t>(i)].send_raw("many" + std::to_string(i) + "\n" + tea + "\n");
    }
    leave(logged_in(server.port(), "alice", tea));
    int told_to_wait = 0, taken = 0;
    for (Peer& peer : peers) {
        const std::string answer = peer.expect(re("^(?:WELCOME .*|.*wait.*)"), 60);
        (answer.starts_with("WELCOME ") ? taken : told_to_wait) += 1;
    }
    EXPECT_GT(taken, 0);
    EXPECT_GT(told_to_wait, 0) << "one address may register as many names as it likes";
}

// A banned address that connects on and on fills no disk: each cause is logged once a second at most.
TEST(Rejections, AreLoggedAtMostOnceASecond) {
    if (!has_many_addresses()) GTEST_SKIP() << "this machine has no second address";
    const Home home;
    write_file(home.bans, address_of(1) + "\n");
    Server server({.args = {"--bans", home.bans}});
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < 200; ++i) {
        Peer peer(server.port(), PeerOptions{.from = address_of(1)});
        EXPECT_TRUE(peer.expect_closed().back().starts_with("BAN "));
    }
    const long lines = logged(server, "banned");
    EXPECT_GE(lines, 1);
    EXPECT_LE(lines, 2 + std::chrono::ceil<std::chrono::seconds>(Clock::now() - begin).count());
}

// ---------------------------------------------------------------------------------------------------------------------
// Smaller ones

// The system ends a program that writes beyond its limit on the size of files, unless it takes care.
TEST(FileSizeLimit, OfTheBanListIsToldAndNoMore) {
    const Home home;
    write_file(home.bans, "# " + std::string(8000, '-') + "\n");
    Server server({.args = {"--bans", home.bans}, .launch = {.limits = {{RLIMIT_FSIZE, 4096}}}});
    Peer admin = admin_of(server);
    EXPECT_NO_THROW(ask(admin, "/ban bob", "ERR "));
    expect_chat(server.port());
    EXPECT_FALSE(contains(read_file(home.bans), "bob"));
}

// A program of the system's shell, which does as `script` says: "$0" is the server, "$@" its arguments.
struct Shell : Process {
    Shell(const std::string& script, const Lines& args, const Launch& launch = {})
        : Process("/bin/sh", with(launch, script, args)) {}

   private:
    static Launch with(Launch launch, const std::string& script, const Lines& args) {
        launch.args = {"-c", script, server_path(), "--port", "0", "--bind", "127.0.0.1", "--no-discovery"};
        launch.args.insert(launch.args.end(), args.begin(), args.end());
        return launch;
    }
};

TEST(FileSizeLimit, OfTheLogEndsNoServer) {
    const Home home;
    const std::string log = home.dir.path() / "log";
    Shell server("exec \"$0\" \"$@\" >'" + log + "'", {"--rate", "0", "--bans", home.bans},
                 {.limits = {{RLIMIT_FSIZE, 4096}}});
    std::optional<std::string> port;
    ASSERT_TRUE(eventually([&] {
        port = fs::exists(log) ? re("listening on port ([0-9]+)\\s").find(read_file(log)) : std::nullopt;
        return port.has_value();
    }));
    Peer alice(std::stoi(*port), "alice");
    alice.send_raw(std::string(2000, 'x') + "\n" + std::string(2000, 'y') + "\n" + std::string(2000, 'z') + "\n");
    alice.expect("SAY alice z");
    ASSERT_TRUE(eventually([&] { return fs::file_size(log) == 4096 || !server.running(); }));
    EXPECT_NO_THROW(expect_chat(std::stoi(*port)));
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
}

// Whatever descriptors there are too few for, the server says so, or does without.
TEST(Start, WithFewDescriptorsSucceedsOrIsTold) {
    if (is_sanitized()) GTEST_SKIP() << "a sanitizer needs descriptors of its own";
    const Home home;
    for (rlim_t descriptors = 3; descriptors <= 24; ++descriptors) {
        SCOPED_TRACE(std::to_string(descriptors) + " descriptors");
        Process server(server_path(), {.args = {"--port", "0", "--bind", "127.0.0.1", "--no-discovery", "--bans",
                                                home.bans, "--users", home.users},
                                       .limits = {{RLIMIT_NOFILE, descriptors}}});
        bool listens = true;
        try {
            server.wait_output("exit code: ");
        } catch (const Failure&) {
            listens = false;
        }
        if (listens && server.running()) server.signal(SIGTERM);
        const int status = server.wait_exit();
        if (status == 0 || contains(server.errors(), "error while loading")) continue;  // of a library, before main()
        EXPECT_EQ(status, 1) << server.errors();
        EXPECT_TRUE(contains(server.errors(), "EMFILE")) << server.errors();
    }
}

#ifdef __linux__
// The system delivers a signal to any thread that takes it, and each must do.
TEST(Sigterm, EndsTheServerWhicheverThreadGetsIt) {
    std::size_t threads = 1;
    for (std::size_t thread = 0; thread < threads; ++thread) {
        Server server;
        server.wait_output("exit code: ");
        std::vector<pid_t> ids;
        const std::string tasks = "/proc/" + std::to_string(server.pid()) + "/task";
        ASSERT_TRUE(eventually([&] {  // all are started, and wait
            ids.clear();
            for (const auto& task : fs::directory_iterator(tasks)) ids.push_back(std::stoi(task.path().filename()));
            return ids.size() >= 4 && ids.size() >= threads && all_threads_wait(server.pid());
        }));
        // One with nothing to do has ended; a sanitizer's own blocks all signals: none is delivered to it.
        std::erase_if(ids, [&](pid_t id) {
            std::ifstream file(tasks + "/" + std::to_string(id) + "/status");
            const std::string status(std::istreambuf_iterator<char>(file), {});
            const auto blocked = re("SigBlk:\\s+([0-9a-f]+)").find(status);
            return !blocked || (std::stoull(*blocked, nullptr, 16) >> (SIGTERM - 1) & 1U) != 0;
        });
        std::sort(ids.begin(), ids.end());
        threads = ids.size();
        if (thread >= threads) break;
        ASSERT_EQ(::syscall(SYS_tgkill, server.pid(), ids[thread], SIGTERM), 0);
        try {
            EXPECT_EQ(server.wait_exit(3), 0);
        } catch (const Failure&) {
            ADD_FAILURE() << "thread " << thread << " of " << threads << " lost the signal";
            server.signal(SIGKILL);
        }
    }
}
#endif

// The admin's login lasts while the ban list is read, and somebody who is blocked goes on talking.
TEST(AdminsLogin, BeginsWithWelcome) {
    const Home home;
    std::string list;
    for (int i = 0; i < 200'000; ++i) list += "user" + std::to_string(i) + "\n";
    write_file(home.bans, list);
    Server server({.args = {"--bans", home.bans}}, 20);
    Peer bob(server.port(), "bob", 20);
    server.write("/block bob\n");
    server.wait_output("bob was blocked by server");
    for (int round = 0; round < 5; ++round) {
        std::atomic<bool> welcomed = false;
        auto spam = std::async(std::launch::async, [&] {
            while (!welcomed) ask(bob, "spam\nspam\nspam\nspam\n/echo said", "ECHO said");
        });
        Peer admin(server.port());
        admin.send_raw("admin\n" + server.password() + "\n");
        Lines before;
        EXPECT_NO_THROW(before = admin.lines_until(starts("WELCOME admin "), 20));
        welcomed = true;
        spam.get();
        EXPECT_EQ(count_with(before, "BLOCKED"), 0);
        leave(std::move(admin));
    }
}

TEST(Reply, DoesNotGoToWhoeverHasTakenTheNameSince) {
    Server server;
    Peer bob(server.port(), "bob"), alice(server.port(), "alice");
    alice.send_line("/msg bob my secret is 4711");
    bob.expect("MSG alice bob my secret");
    leave(std::move(alice));
    bob.expect(starts("LEAVE alice "));
    Peer other(server.port(), "alice");
    bob.expect(starts("JOIN alice "));
    bob.send_line("/reply I keep it");
    bob.expect(starts("ERR "));
    EXPECT_EQ(count_with(other.lines_until_echo(), "I keep it"), 0);
}

// A laptop that sleeps: nobody is moved or disconnected without the warning, and the time to act on it.
TEST(Idle, WarnsAfterTheServerWasStopped) {
    Server server({.args = {"--idle", "4"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    ask(alice, "/create den", "ROOM den");
    ask(bob, "/join den", "ROOM den");
    bob.lines_until_echo();
    server.signal(SIGSTOP);
    std::this_thread::sleep_for(std::chrono::milliseconds(4300));  // the time itself is what is tested
    server.signal(SIGCONT);
    EXPECT_NO_THROW(bob.expect_next(starts("INFO ")));
    EXPECT_NO_THROW(bob.send_line("hello"));
    EXPECT_NO_THROW(bob.expect_next("SAY bob hello")) << "there was no time to act on the warning";
}

// Whoever has been warned, and says something while the server is stopped, is heard.
TEST(Idle, EndsNobodyWhoSpokeWhileTheServerWasStopped) {
    Server server({.args = {"--idle-public", "4"}});
    Peer alice(server.port(), "alice");
    alice.expect(starts("INFO You have said nothing for a while."));
    server.signal(SIGSTOP);
    alice.send_line("hello");
    std::this_thread::sleep_for(std::chrono::milliseconds(2300));  // the time itself is what is tested
    server.signal(SIGCONT);
    EXPECT_NO_THROW(alice.expect_next("SAY alice hello"));
}

TEST(Log, NamesWhomItRejected) {
    const Home home;
    write_file(home.bans, "mallory\n");
    Server server(home.options());
    leave(registered(server.port(), "alice"));
    server.mark();
    Peer mallory(server.port());
    mallory.send_raw("mallory\n" + tea + "\n");
    mallory.expect(starts("BAN "));
    EXPECT_NO_THROW(server.wait_output(re("rejected.*mallory|mallory.*rejected")));
    server.mark();
    Peer thief(server.port());
    thief.send_raw("alice\nguess 1\nguess 2\nguess 3\n");
    thief.expect(starts("REFUSE "), 20);
    EXPECT_NO_THROW(server.wait_output(re("rejected.*alice|alice.*rejected")));
    EXPECT_FALSE(contains(server.output(), "guess"));
}

TEST(Sighup, EndsTheServer) {
    Server server;
    Peer alice(server.port(), "alice");
    server.signal(SIGHUP);
    EXPECT_EQ(server.wait_exit(), 0);
    EXPECT_TRUE(alice.expect_closed().back().starts_with("BYE SHUTDOWN "));
}

// As nohup(1) does.
TEST(Sighup, IsIgnoredWhereItWasAtTheStart) {
    const Home home;
    Shell server("trap '' HUP; exec \"$0\" \"$@\"", {"--bans", home.bans});
    const int port = std::stoi(server.wait_output(re("listening on port ([0-9]+)\\s")));
    server.signal(SIGHUP);
    expect_chat(port);
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The page that says what is defended

// Each test that docs/security.md names is in one of the suites.
TEST(SecurityPage, NamesTestsThatExist) {
    std::string suites;
    for (const auto& file : fs::directory_iterator("tests")) {
        if (file.path().string().ends_with("_test.cpp")) suites += read_file(file.path());
    }
    const std::string page = read_file("docs/security.md");
    const std::regex name("`([A-Z]\\w*)\\.([A-Z]\\w*)`");
    int count = 0;
    for (std::sregex_iterator found(page.begin(), page.end(), name), end; found != end; ++found, ++count) {
        const std::string test = (*found)[1].str() + ", " + (*found)[2].str() + ") {";
        EXPECT_TRUE(contains(suites, "(" + test)) << (*found)[0];
    }
    EXPECT_GT(count, 50) << "these are not all";
}

}  // namespace
