// Kills the server at any moment (kill -9) while bans and accounts change from several sides at once. Promise 5: no
// change that was acknowledged is lost, and no file is torn. CHATROOM_KILLS says how often (40); CHATROOM_CRASH_SEED
// repeats a run, as far as the system's timing allows.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <future>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "proof.hpp"

using namespace harness;
using namespace proof;

namespace {

namespace fs = std::filesystem;

// What has been asked for and acknowledged of one subject: a ban, or an account.
struct Subject {
    bool there = false;    // as last acknowledged
    bool pending = false;  // a change was asked for, and not acknowledged: either state is right
};

using Subjects = std::map<std::string, Subject>;

// Bans and unbans its own subjects, one change after the other, until the server is gone. `ask_for` sends a command and
// waits until it is acknowledged; it throws when it is not.
template <typename Ask>
void change_bans(Subjects& subjects, std::mt19937& random, int& acknowledged, Ask ask_for) {
    try {
        while (true) {
            auto chosen = subjects.begin();
            std::advance(chosen, static_cast<long>(random() % subjects.size()));
            auto& [name, subject] = *chosen;
            subject.pending = true;
            ask_for(subject.there ? "/unban " + name : "/ban " + name,
                    name + (subject.there ? " is no longer banned" : " is banned"));
            subject.there = !subject.there;
            subject.pending = false;
            ++acknowledged;
        }
    } catch (const Failure&) {  // it has been killed
    }
}

// Registers one name after the other, from an address of its own each, until the server is gone.
void register_names(int port, Subjects& subjects, const std::string& prefix, int round, int& acknowledged) {
    try {
        for (int i = 0;; ++i) {
            const std::string name = prefix + std::to_string(round) + "x" + std::to_string(i);
            Peer peer(port, PeerOptions{.from = address_of(static_cast<int>(subjects.size()))});
            peer.send_raw(name + "\n");
            subjects[name].pending = true;
            peer.expect(starts("NEWPASS "));
            peer.send_line(tea);
            peer.expect(starts("WELCOME "));
            subjects[name] = {true, false};
            ++acknowledged;
        }
    } catch (const Failure&) {
    }
}

Subjects named(const std::string& prefix, int count) {
    Subjects subjects;
    for (int i = 0; i < count; ++i) subjects[prefix + std::to_string(i)];
    return subjects;
}

// Holds the file's lines against what was acknowledged, and takes over what the file has of what was not. Returns how
// many are lost; a line that is none by `form` counts as torn.
int lost_in(const fs::path& file, const std::vector<Subjects*>& all, const Pattern& form, int& torn) {
    std::map<std::string, int> there;
    for (const std::string& line : lines_of(fs::exists(file) ? read_file(file) : "")) {
        if (const auto name = form.find(line)) {
            ++there[*name];
        } else {
            ++torn;
            ADD_FAILURE() << file << " has a torn line: " << line;
        }
    }
    int lost = 0;
    for (Subjects* subjects : all) {
        for (auto& [name, subject] : *subjects) {
            const int count = there[name];
            const bool right = subject.pending ? count <= 1 : count == (subject.there ? 1 : 0);
            if (!right) {
                ++lost;
                ADD_FAILURE() << name << " is " << count << " times in " << file
                              << "; acknowledged: " << (subject.there ? "there" : "not there");
            }
            subject = {count > 0, false};
        }
    }
    return lost;
}

TEST(Kill, AtAnyMomentLosesNothingAcknowledgedAndTearsNoFile) {
    const auto seed = static_cast<unsigned>(from_environment("CHATROOM_CRASH_SEED", std::random_device()()));
    const long kills = from_environment("CHATROOM_KILLS", is_sanitized() ? 10 : 40);
    std::cout << "CHATROOM_CRASH_SEED=" << seed << std::endl;
    std::mt19937 random(seed);
    const Home home;
    Subjects by_admin = named("admins", 6), by_operator = named("operators", 6), mine, yours;
    const Pattern ban_line = re("^(\\w+)  # by \\w+ at \\S+Z$"), account_line = re("^(\\w+):\\$\\w+\\$\\S{40,}$");
    int acknowledged = 0, lost = 0, torn = 0;
    for (int round = 0; round < kills; ++round) {
        SCOPED_TRACE("kill " + std::to_string(round));
        Server server(home.options());
        for (const fs::path& file : {home.bans, home.users}) EXPECT_FALSE(fs::exists(file.string() + ".new"));
        if (!mine.empty() && mine.begin()->second.there) {  // an account of before still works
            leave(logged_in(server.port(), mine.begin()->first, tea, {.from = "127.0.0.1"}));
        }
        Peer admin = admin_of(server);
        int done[4] = {};
        std::mt19937 first(random()), second(random());
        std::vector<std::future<void>> sides;
        sides.push_back(std::async(std::launch::async, [&] {
            change_bans(by_admin, first, done[0], [&](const std::string& command, const std::string& answer) {
                admin.send_line(command);
                admin.expect(starts("INFO " + answer));
            });
        }));
        sides.push_back(std::async(std::launch::async, [&] {
            change_bans(by_operator, second, done[1], [&](const std::string& command, const std::string& answer) {
                server.mark();
                server.write(command + "\n");
                server.wait_output(answer);
            });
        }));
        sides.push_back(
            std::async(std::launch::async, [&] { register_names(server.port(), mine, "mine", round, done[2]); }));
        sides.push_back(
            std::async(std::launch::async, [&] { register_names(server.port(), yours, "yours", round, done[3]); }));
        // Any moment will do: that is what is tested.
        std::this_thread::sleep_for(std::chrono::microseconds(random() % (is_sanitized() ? 1'000'000 : 120'000)));
        ::kill(server.pid(), SIGKILL);  // not server.signal(): another thread reads what the server prints
        for (std::future<void>& side : sides) side.get();
        EXPECT_EQ(server.wait_exit(), -SIGKILL);
        for (const int count : done) acknowledged += count;
        lost += lost_in(home.bans, {&by_admin, &by_operator}, ban_line, torn);
        lost += lost_in(home.users, {&mine, &yours}, account_line, torn);
    }
    std::cout << kills << " kills, " << acknowledged << " changes acknowledged, " << lost << " lost, " << torn
              << " torn\n";
    EXPECT_GT(acknowledged, 2 * kills) << "there was hardly anything to lose";
}

}  // namespace
