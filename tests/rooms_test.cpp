// Rooms with owners and codes, moderation, the idle time-out, the exit code, and help: over TCP and at the server's
// terminal. Of each command: its right use, its use without the right, and wrong words.
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "harness.hpp"
#include "network.hpp"

using namespace harness;

namespace {

const std::string in_public = "ROOM public - - You are in public.";

Peer from_second_address(const Server& server, const std::string& name) {
    Peer peer(server.port(), {.from = second_address});
    peer.login(name);
    return peer;
}

// Lets each read what came until now.
void settle(std::initializer_list<Peer*> peers) {
    for (Peer* peer : peers) peer->lines_until_echo();
}

// Sends a line and returns all that comes before the answer to an /echo after it.
Lines answers_to(Peer& peer, const std::string& line) {
    settle({&peer});
    peer.send_line(line);
    return peer.lines_until_echo();
}

// Goes to a room, or makes it, and reads what one is told there.
void go(Peer& peer, const std::string& command) {
    peer.send_line(command);
    peer.expect(starts("ROOM "));
    settle({&peer});
}

// Returns all of the server's log so far, without its first lines, in which the secrets are.
std::string log_of(Server& server) {
    static int number = 0;
    const std::string mark = "the log until " + std::to_string(++number);
    server.write("/echo " + mark + "\n");
    server.wait_output("-- " + mark + "\n");
    const std::string& all = server.output();
    return all.substr(all.find('\n', all.find("exit code: ")));
}

std::string exit_code_of(Server& server) { return server.wait_output(re("^exit code: ([0-9]{5})$")); }

bool any_contains(const Lines& lines, const std::string& part) {
    return std::any_of(lines.begin(), lines.end(), [&](const auto& line) { return contains(line, part); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Rooms

TEST(Rooms, AreListedWithAllButTheirCodes) {
    Server server({.args = {"--rooms", "lab,Hall2"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    const std::string before = utc_now();
    go(alice, "/create den 12345");
    const std::string after = utc_now();
    settle({&bob});
    bob.send_line("/rooms");
    bob.expect_next(starts("ROOMS 4 "));
    const std::string time = " ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z) ";
    bob.expect_next(re("^LIST 1 public 1 server" + time + "NO CODE$"));
    bob.expect_next(re("^LIST 2 lab 0 server" + time + "NO CODE$"));
    bob.expect_next(re("^LIST 3 Hall2 0 server" + time + "NO CODE$"));
    const std::string created = bob.expect_next(
        [&](std::string_view line) { return re("^LIST 4 den 1 alice" + time + "CODE$").find(line).has_value(); });
    EXPECT_LE(before, created.substr(19, 20));
    EXPECT_LE(created.substr(19, 20), after);
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(Rooms, TellNewcomersAllAboutThem) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    settle({&alice});
    EXPECT_EQ(answers_to(alice, "/create Den 12345"),
              (Lines{"ROOM Den 12345 alice You are in Den. Its code: 12345. Its owner: alice.", "WHO Den 1 alice",
                     "OWNER alice owns Den."}));
    alice.send_line("first");
    alice.send_line("/me waves");
    settle({&alice});
    const Lines told = answers_to(bob, "/join den 12345");
    ASSERT_EQ(told.size(), 5U);
    EXPECT_EQ(Lines(told.begin(), told.begin() + 3),
              (Lines{"ROOM Den 12345 alice You are in Den. Its code: 12345. Its owner: alice.", "WHO Den 2 alice bob",
                     "OWNER alice owns Den."}));
    EXPECT_TRUE(re("^PAST [0-9-]{10}T[0-9:]{8}Z SAY alice first$").find(told[3])) << told[3];
    EXPECT_TRUE(re("^PAST [0-9-]{10}T[0-9:]{8}Z ME alice waves$").find(told[4])) << told[4];
    EXPECT_EQ(answers_to(bob, "/who"), (Lines{"WHO Den 2 alice bob", "OWNER alice owns Den."}));
    EXPECT_EQ(answers_to(bob, "/leave"), (Lines{in_public, "WHO public 1 bob"}));
}

TEST(Rooms, KeepTheirTalkTheirMembersAndTheirPastToThemselves) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den");
    settle({&bob});
    alice.send_line("in the den");
    alice.expect_next("SAY alice in the den");
    bob.send_line("in public");
    bob.expect_next("SAY bob in public");
    EXPECT_EQ(answers_to(alice, "/who"), (Lines{"WHO den 1 alice", "OWNER alice owns den."}));
    EXPECT_EQ(answers_to(bob, "/who"), Lines{"WHO public 1 bob"});
    Peer carol(server.port());
    carol.login("carol");
    carol.expect_next(re("^PAST \\S+ SAY bob in public$"));
    const Lines told = answers_to(carol, "/join den");
    EXPECT_TRUE(any_contains(told, "SAY alice in the den"));
    EXPECT_FALSE(any_contains(told, "in public"));
    const std::string log = log_of(server);
    EXPECT_TRUE(contains(log, " den alice: in the den\n")) << log;
    EXPECT_TRUE(contains(log, " public bob: in public\n")) << log;
}

TEST(Rooms, AreJoinedByNameOrNumberAndCode) {
    Server server({.args = {"--rooms", "lab"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den 01234");
    settle({&bob});
    for (const char* command : {"/join den 01234", "/join lab", "/join DEN  01234", "/join 1", "/join 3 01234",
                                "/join 2", "/join public", "/join lab 99999"}) {
        bob.send_line(command);
        const bool is_den = contains(command, "01234");
        const bool is_public = contains(command, "public") || contains(command, " 1");
        EXPECT_NO_THROW(bob.expect_next(starts(is_den      ? "ROOM den 01234 alice "
                                               : is_public ? "ROOM public - - "
                                                           : "ROOM lab - - ")))
            << command;
        settle({&bob});
    }
}

TEST(Rooms, TellTheirMembersWhoComesAndGoesAndWhy) {
    Server server({.args = {"--rooms", "lab"}});
    Peer owner(server.port(), "owner"), admin = admin_of(server);
    go(owner, "/create den");
    const auto come_and_go = [&](const std::string& why, const auto& go_away) {
        Peer bob(server.port(), "bob");
        go(bob, "/join den");
        owner.expect_next(re("^JOIN bob joined\\.$"));
        go_away(bob);
        EXPECT_EQ(owner.expect(starts("LEAVE ")), "LEAVE bob " + why);
        settle({&owner});
        bob.close();
        EXPECT_TRUE(eventually([&] { return !any_contains(answers_to(admin, "/msg bob gone?"), "MSG"); }));
    };
    const auto saying = [](const std::string& line) { return [=](Peer& bob) { bob.send_line(line); }; };
    come_and_go("left the room.", saying("/leave"));
    come_and_go("left for another room.", saying("/join lab"));
    come_and_go("left for another room.", saying("/create attic"));
    come_and_go("left.", saying("/quit"));
    come_and_go("left.", [](Peer& bob) { bob.half_close(); });
    come_and_go("lost the connection.", [](Peer& bob) { bob.reset(); });
    come_and_go("was kicked by owner.", [&](Peer&) { owner.send_line("/kick bob"); });
    come_and_go("was moved out by admin.", [&](Peer&) { admin.send_line("/out bob"); });
    come_and_go("was kicked by admin.", [&](Peer&) { admin.send_line("/fire bob"); });
    come_and_go("was banned by admin.", [&](Peer&) { admin.send_line("/ban bob"); });
}

TEST(Rooms, PassToTheMemberWhoHasBeenThereLongest) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol");
    go(alice, "/create den");
    go(bob, "/join den");
    go(carol, "/join den");
    EXPECT_EQ(answers_to(bob, "/kick carol"),
              Lines{"ERR Only the room's owner may use /kick NAME; /help lists what you are allowed to use."});
    alice.send_line("/leave");
    for (Peer* peer : {&bob, &carol}) {
        peer->expect("LEAVE alice left the room.");
        peer->expect_next("OWNER bob owns the room now.");
    }
    EXPECT_EQ(answers_to(alice, "/join den").at(0).substr(0, 16), "ROOM den - bob Y") << "alice is not the owner";
    settle({&carol});
    bob.reset();
    for (Peer* peer : {&alice, &carol}) {
        peer->expect_next("LEAVE bob lost the connection.");
        peer->expect_next("OWNER carol owns the room now.");
    }
    Peer admin = admin_of(server);
    go(admin, "/join den");
    settle({&alice, &carol});
    EXPECT_EQ(answers_to(admin, "/kick carol"),
              (Lines{"LEAVE carol was kicked by admin.", "OWNER alice owns the room now.", "INFO carol was kicked."}));
    alice.expect("OWNER alice owns the room now.");
    EXPECT_EQ(answers_to(alice, "/kick carol"), Lines{"ERR carol is not in this room."})
        << "alice has an owner's right";
}

TEST(Rooms, EndWithTheirLastMemberIfAClientMadeThem) {
    Server server({.args = {"--rooms", "lab"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den 12345");
    settle({&bob});
    alice.send_line("to be forgotten");
    alice.send_line("/leave");
    bob.expect("JOIN alice joined.");
    expect_answers(bob,
                   {{"/join den 12345", "ERR There is no room den."}, {"/join 3 12345", "ERR There is no room 3."}});
    EXPECT_FALSE(any_contains(answers_to(bob, "/create den"), "forgotten")) << "it is another room of that name";

    go(alice, "/join lab");
    EXPECT_EQ(answers_to(alice, "/who"), Lines{"WHO lab 1 alice"}) << "the server's rooms have no owner";
    alice.send_line("to be kept");
    go(alice, "/leave");
    EXPECT_TRUE(any_contains(answers_to(bob, "/rooms"), " lab 0 server "));
    EXPECT_TRUE(any_contains(answers_to(bob, "/join lab"), "SAY alice to be kept"));
}

TEST(Rooms, AreMadeWithAGoodNameAndCodeAlone) {
    Server server({.args = {"--rooms", "lab"}});
    Peer alice(server.port(), "alice");
    Answers answers{{"/create", "ERR The form is: /create NAME [CODE]"},
                    {"/create lab", "ERR There is a room lab already"},
                    {"/create PUBLIC", "ERR There is a room PUBLIC already"}};
    for (const char* name : {"ab", "abcdefghijklm", "1den", "2", "den-1", "d\xC3\xA9n", "de\x01n", "/den"}) {
        answers.emplace_back("/create " + std::string(name), "ERR A room's name is 3 to 12 letters and digits");
    }
    for (const char* code : {"1234", "123456", "1234a", "-1234", "12345 6", "1 2345", "\xEF\xBC\x91\xEF\xBC\x92"}) {
        answers.emplace_back("/create den " + std::string(code), "ERR A code is exactly five digits.");
    }
    expect_answers(alice, answers);
    EXPECT_TRUE(any_contains(answers_to(alice, "/rooms"), "ROOMS 2 "));
}

TEST(Rooms, AreJoinedAndLeftInTheRightWordsAlone) {
    Server server({.args = {"--rooms", "lab"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den 12345");
    expect_answers(bob, {{"/join", "ERR The form is: /join ROOM [CODE]"},
                         {"/join nowhere", "ERR There is no room nowhere."},
                         {"/join 99", "ERR There is no room 99."},
                         {"/join -1", "ERR There is no room -1."},
                         {"/join public", "ERR You are in that room."},
                         {"/join den", "ERR It needs a code: /join den CODE"},
                         {"/join 3", "ERR It needs a code: /join den CODE"},
                         {"/join den 1234", "ERR That is not the room's code."},
                         {"/join den 12345 6", "ERR That is not the room's code."},
                         {"/leave", "ERR You are in public; /quit leaves the chat."}});
    EXPECT_EQ(answers_to(alice, "/who"), (Lines{"WHO den 1 alice", "OWNER alice owns den."}));
    server.mark();
    server.write("/join lab\n/create den2\n/leave\n");
    for (const char* form : {"/join ROOM [CODE]", "/create NAME [CODE]", "/leave"}) {
        server.wait_output(std::string("-- Only a client may use ") + form);
    }
}

TEST(Rooms, MadeAtTheStartNeedGoodNames) {
    for (const char* names : {"public", "ab", "lab,LAB", "lab,a-b"}) {
        Process server(server_path(), {.args = {"--port", "0", "--rooms", names}});
        EXPECT_EQ(server.wait_exit(), 2) << names;
        server.wait_error("--rooms: ");
    }
}

TEST(Topic, IsToldToMembersAndToWhoeverEnters) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol");
    go(alice, "/create den");
    go(bob, "/join den");
    settle({&alice, &carol});
    alice.send_line("/topic  task 3, page 12 ");
    for (Peer* peer : {&alice, &bob}) peer->expect_next(re("^TOPIC den task 3, page 12$"));
    EXPECT_EQ(answers_to(carol, "/join den").at(3), "TOPIC den task 3, page 12");
    EXPECT_EQ(answers_to(bob, "/who").back(), "TOPIC den task 3, page 12");
    settle({&alice, &bob});
    alice.send_line("/topic");
    for (Peer* peer : {&alice, &bob, &carol}) peer->expect_next(re("^TOPIC den $"));
    EXPECT_FALSE(any_contains(answers_to(bob, "/who"), "TOPIC"));
    EXPECT_TRUE(contains(log_of(server), "den -- alice sets the topic: task 3, page 12\n"));
}

TEST(Topic, IsTheOwnersAndInPublicTheAdminsAndTheOperators) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    settle({&alice, &bob});
    expect_answers(bob, {{"/topic mine", "ERR Only the admin may use /topic [TEXT];"}});
    admin.send_line("/topic by the admin");
    for (Peer* peer : {&alice, &bob}) peer->expect_next("TOPIC public by the admin");
    server.write("/topic by the operator\n");
    for (Peer* peer : {&alice, &bob}) peer->expect_next("TOPIC public by the operator");
    go(alice, "/create den");
    go(bob, "/join den");
    expect_answers(bob, {{"/topic mine", "ERR Only the room's owner may use /topic [TEXT];"}});
    settle({&alice});
    admin.send_line("/block alice");
    admin.expect("INFO What alice says");
    expect_answers(alice, {{"/topic rude", "ERR You are blocked"}});
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

// ---------------------------------------------------------------------------------------------------------------------
// Who is where

TEST(Who, OfAllListsEveryRoomAndMarksTheBlockedForTheAdmin) {
    Server server({.args = {"--rooms", "lab"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(alice, "/create den 12345");
    expect_answers(admin, {{"/block bob", "INFO What bob says"}});
    EXPECT_EQ(answers_to(alice, "/who all"),
              (Lines{"INFO public (2): bob admin", "INFO lab (0):", "INFO den (1): alice"}));
    EXPECT_EQ(answers_to(admin, "/who ALL").front(), "INFO public (2): bob* admin");
    EXPECT_EQ(answers_to(admin, "/who"), Lines{"WHO public 2 bob admin"}) << "names alone, for programs";
    server.write("/who all\n");
    server.wait_output("-- public (2): bob* admin\n");
}

TEST(Who, OfANameTellsWhereAndForHowLongAndTheAdminFromWhere) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(bob, "/create den");
    settle({&alice});
    const std::string since = "connected since [0-9-]{10} [0-9:]{8} [^ ]+, silent for [0-9] s\\.$";
    alice.send_line("/who BOB");
    alice.expect_next(re("^INFO bob is in den, " + since));
    expect_answers(admin, {{"/block bob", "INFO What bob says"}});
    admin.send_line("/who bob");
    admin.expect_next(re("^INFO bob\\* \\(blocked\\) is in den, from 127\\.0\\.0\\.1, " + since));
    expect_answers(alice, {{"/who nobody", "ERR Nobody here is called nobody."},
                           {"/who server", "INFO server is the operator, at the server's own terminal."}});
    server.write("/who alice\n");
    server.wait_output(re("-- alice is in public, from 127.0.0.1, " + since));
    const auto silent_for_a_second = [&] {  // what was not a line does not count
        bob.send_raw("x");
        alice.send_line("/who bob");
        return !contains(alice.expect(starts("INFO bob is in den")), "silent for 0 s");
    };
    EXPECT_TRUE(eventually(silent_for_a_second));
    bob.send_line("");
    bob.lines_until_echo();
    alice.send_line("/who bob");
    alice.expect_next(re("silent for 0 s\\.$"));
}

TEST(Codes, AreSeenByMembersAlone) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    settle({&bob});
    go(alice, "/create den 13579");
    alice.send_line("/kick bob");
    bob.send_line("/join den");
    bob.send_line("/join den 00000");
    alice.send_line("/who");
    settle({&alice});
    for (const char* command : {"/rooms", "/who", "/msg alice what is it?", "/help join"}) {
        EXPECT_FALSE(any_contains(answers_to(bob, command), "13579")) << command;
        EXPECT_FALSE(any_contains(answers_to(admin, command), "13579")) << command;
    }
    EXPECT_TRUE(any_contains(answers_to(bob, "/join den 13579"), "ROOM den 13579 alice "));
    alice.send_line("/kick bob");
    alice.expect("INFO bob was kicked.");
    server.write("/rooms\n/who\n");
    EXPECT_FALSE(any_contains(admin.lines_until_echo(), "13579"));
    EXPECT_FALSE(contains(log_of(server), "13579"));
}

TEST(Close, ByTheOwnerBringsEverybodyToPublic) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol");
    const std::string refused = "ERR Only the admin may use /close; /help lists what you are allowed to use.";
    expect_answers(carol, {{"/close", refused}});
    go(alice, "/create den");
    go(bob, "/join den");
    expect_answers(bob, {{"/close", "ERR Only the room's owner may use /close;"}});
    settle({&alice, &carol});
    alice.send_line("/close");
    for (Peer* peer : {&alice, &bob}) {
        peer->expect_next("INFO The room was closed by alice.");
        peer->expect_next(in_public);
        peer->expect_next(starts("WHO public "));
    }
    EXPECT_EQ(carol.lines_until_echo(), (Lines{"JOIN alice joined.", "JOIN bob joined."}));
    EXPECT_TRUE(any_contains(answers_to(bob, "/rooms"), "ROOMS 1 "));
    expect_answers(alice, {{"/close", refused}});
}

TEST(Close, ByTheAdminFollowsTheRule) {
    Server server({.args = {"--rooms", "lab"}});
    Peer admin = admin_of(server), alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den 12345");
    go(admin, "/join den");
    settle({&alice});
    admin.send_line("/close");
    alice.expect_next("INFO The room was closed by admin.");
    alice.expect_next(in_public);
    EXPECT_TRUE(any_contains(answers_to(alice, "/rooms"), "ROOMS 2 "));
    go(alice, "/join lab");
    go(admin, "/join lab");
    admin.send_line("/close");
    alice.expect("INFO The room was closed by admin.");
    EXPECT_TRUE(any_contains(answers_to(alice, "/rooms"), " lab 0 server ")) << "the server's rooms stay";
    settle({&admin, &bob});
    admin.send_line("/close");
    admin.expect_next(
        "INFO That shuts the server down, for everyone in all rooms. To do it, type the same again within");
    settle({&alice, &bob});
    admin.send_line("/close");
    for (Peer* peer : {&alice, &bob, &admin})
        EXPECT_EQ(peer->expect_eof().back(), "BYE SHUTDOWN The server shuts down.");
    EXPECT_EQ(server.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Moderation

TEST(Kick, ByTheOwnerPutsOutOfTheRoom) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol");
    go(alice, "/create den 12345");
    go(bob, "/join den 12345");
    settle({&alice, &carol});
    EXPECT_EQ(answers_to(alice, "/kick BOB"), (Lines{"LEAVE bob was kicked by alice.", "INFO bob was kicked."}));
    EXPECT_EQ(bob.lines_until_echo(), (Lines{"INFO You were kicked by alice.", in_public, "WHO public 2 carol bob"}));
    EXPECT_EQ(carol.lines_until_echo(), Lines{"JOIN bob joined."});
    go(bob, "/join den 12345");
}

TEST(Kick, OfWhomItIsNotForHasItsAnswer) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(alice, "/create den");
    go(admin, "/join den");
    expect_answers(alice, {{"/kick", "ERR The form is: /kick NAME"},
                           {"/kick alice", "ERR That is yourself."},
                           {"/kick nobody", "ERR Nobody here is called nobody."},
                           {"/kick bob", "ERR bob is not in this room."},
                           {"/kick bob now", "ERR Nobody here is called bob now."},
                           {"/kick admin", "ERR That is the admin."},
                           {"/kick server", "ERR That is the operator, at the server's own terminal."}});
    expect_answers(bob, {{"/kick alice", "ERR Only the admin can disconnect people."}});
    go(admin, "/leave");
    for (const std::string command : {"/kick", "/fire", "/out"}) {
        expect_answers(admin, {{command, "ERR The form is: " + command + " NAME"},
                               {command + " admin", "ERR That is yourself."},
                               {command + " nobody", "ERR Nobody here is called nobody."},
                               {command + " server", "ERR That is the operator, at the server's own terminal."}});
    }
    expect_answers(admin, {{"/out bob", "ERR bob is in public; /fire disconnects."}});
    EXPECT_EQ(answers_to(bob, "/who"), Lines{"WHO public 2 bob admin"});
}

TEST(Kick, ByTheAdminFollowsTheRule) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(alice, "/create den");
    go(bob, "/join den");
    go(admin, "/join den");
    settle({&alice, &bob});
    admin.send_line("/kick alice");
    alice.expect_next("INFO You were kicked by admin.");
    alice.expect_next(in_public);
    go(admin, "/leave");
    admin.send_line("/kick bob");  // bob is in another room, but in public this is the server
    EXPECT_EQ(bob.expect_eof().back(), "BYE KICK You were kicked by admin.");
    admin.send_line("/kick alice");
    EXPECT_EQ(alice.expect_eof().back(), "BYE KICK You were kicked by admin.");
    Peer(server.port(), "alice").lines_until_echo();
}

TEST(Admin, EntersEveryRoomFiresAndMovesOut) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(alice, "/create den 12345");
    go(bob, "/join den 12345");
    EXPECT_TRUE(any_contains(answers_to(admin, "/join den"), "ROOM den 12345 alice "));
    settle({&alice, &bob});
    EXPECT_EQ(answers_to(admin, "/out bob"), (Lines{"LEAVE bob was moved out by admin.", "INFO bob was moved out."}));
    EXPECT_EQ(bob.lines_until_echo(), (Lines{"INFO You were moved out by admin.", in_public, "WHO public 1 bob"}));
    admin.send_line("/fire alice");  // in a room, too, off the server
    EXPECT_EQ(alice.expect_eof().back(), "BYE KICK You were kicked by admin.");
    EXPECT_EQ(answers_to(admin, "/who"), (Lines{"WHO den 1 admin", "OWNER admin owns den."}));
}

TEST(Rights, AreRefusedToThoseWithoutThem) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den");
    const auto refused = [](const char* whose, const std::string& form) {
        return std::string("ERR Only ") + whose + " may use " + form + "; /help lists what you are allowed to use.";
    };
    Answers answers{{"/shutdown", "ERR The form is: /shutdown CODE"}, {"/reset", refused("the admin", "/reset")}};
    for (const std::string command : {"/fire", "/out", "/block", "/unblock"}) {
        answers.emplace_back(command + " bob", refused("the admin", command + " NAME"));
        answers.emplace_back(command, refused("the admin", command + " NAME"));
    }
    expect_answers(alice, answers);  // an owner
    answers.emplace_back("/close", refused("the admin", "/close"));
    answers.emplace_back("/kick alice", "ERR Only the admin can disconnect people.");
    expect_answers(bob, answers);  // in public, which nobody owns
    answers.pop_back();
    answers.back().second = refused("the room's owner", "/close");
    answers.emplace_back("/kick alice", refused("the room's owner", "/kick NAME"));
    go(bob, "/join den");
    expect_answers(bob, answers);  // a member
}

// ---------------------------------------------------------------------------------------------------------------------
// The operator

TEST(Operator, SpeaksWithOneAndWithEverybody) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den");
    settle({&bob});
    expect_answers(alice, {{"/msg SERVER help me", "MSG alice server help me"}});
    server.wait_output("alice -> server: help me\n");
    server.write("/msg alice coming\n");
    alice.expect_next("MSG server alice coming");
    server.wait_output("server -> alice: coming\n");
    expect_answers(alice, {{"/reply thank you", "MSG alice server thank you"}});
    server.write("/reply welcome\n");
    alice.expect_next("MSG server alice welcome");
    server.write("the break is over\n");
    for (Peer* peer : {&alice, &bob}) EXPECT_EQ(peer->expect_next(), "SAY server the break is over");
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(Operator, MayDoAllThatTheAdminMay) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(alice, "/create den 12345");
    go(bob, "/join den 12345");
    settle({&alice, &admin});
    const auto type = [&](const std::string& line, const std::string& answer) {
        server.mark();
        server.write(line + "\n");
        EXPECT_NO_THROW(server.wait_output(answer)) << line;
    };
    type("/rooms", "-- 2 den 2 alice ");
    type("/who", "-- den 2 alice bob\n");
    type("/out bob", "-- bob was moved out.");
    bob.expect_next("INFO You were moved out by server.");
    alice.expect_next("LEAVE bob was moved out by server.");
    type("/block bob", "-- What bob says reaches only the admin and the operator.");
    expect_answers(bob, {{"psst", "ERR You are blocked"}});
    type("/unblock bob", "-- bob is heard again.");
    type("/kick server", "-- That is yourself.");
    type("/kick bob", "-- bob was disconnected.");
    EXPECT_EQ(bob.expect_eof().back(), "BYE KICK You were kicked by server.");
    type("/fire admin", "-- admin was disconnected.");
    EXPECT_EQ(admin.expect_eof().back(), "BYE KICK You were kicked by server.");
    type("/reset", "-- Everyone is in public");
    alice.expect_next("INFO The room was reset by server.");
    type("/close", "That shuts the server down, for everyone in all rooms. To do it, type the same again");
    type("/close", "the server has shut down.");
    EXPECT_EQ(server.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Block

TEST(Block, LetsOnlyTheAdminAndTheOperatorHear) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    go(admin, "/create office");  // wherever the admin is
    expect_answers(bob, {{"/msg alice hello", "MSG bob alice hello"}});
    settle({&alice, &bob});
    expect_answers(admin, {{"/block ALICE", "INFO What ALICE says reaches only the admin and the operator."}});
    for (const char* line :
         {"psst", "/me hides", "/msg bob psst", "/msg admin why?", "/msg server why?", "/reply psst"}) {
        expect_answers(alice, {{line, "ERR You are blocked: only the admin and the operator have seen that."}});
        EXPECT_EQ(admin.lines_until_echo(), Lines{std::string("BLOCKED alice ") + line});
        server.wait_output(std::string(" public (blocked) alice: ") + line + "\n");
    }
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
    expect_answers(alice, {{"/who", "WHO public 2 alice bob"}, {"/echo heard?", "ECHO heard?"}});
    go(alice, "/create den");
    go(bob, "/join den");
    settle({&alice});
    expect_answers(alice, {{"psst", "ERR You are blocked"}});
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
    EXPECT_FALSE(any_contains(answers_to(bob, "/leave"), "PAST")) << "nor is it kept for who comes later";
    expect_answers(admin, {{"/unblock alice", "INFO alice is heard again."}});
}

TEST(Block, HoldsThroughReconnectsUntilLiftedOrReset) {
    Server server;
    Peer admin = admin_of(server);
    const Answers blocked{{"hello", "ERR You are blocked"}}, heard{{"hello", "SAY Alice hello"}};
    for (const char* lift : {"/unblock alice", "/reset"}) {
        settle({&admin});
        admin.send_line("/block alice");  // she may be absent
        admin.expect("INFO What alice says");
        for (int i = 0; i < 2; ++i) {
            Peer alice(server.port(), "Alice");
            expect_answers(alice, blocked);
            alice.send_line("/quit");
            alice.expect_eof();
        }
        admin.send_line(lift);
        admin.expect(starts("INFO "));
        Peer alice(server.port(), "Alice");
        settle({&alice});
        expect_answers(alice, heard);
        alice.send_line("/quit");
        alice.expect_eof();
    }
}

TEST(Block, IsForNamesAndOnce) {
    Server server;
    Peer admin = admin_of(server);
    expect_answers(admin, {{"/block", "ERR The form is: /block NAME"},
                           {"/unblock", "ERR The form is: /unblock NAME"},
                           {"/block admin", "ERR That is no name that can be blocked."},
                           {"/block Server", "ERR That is no name that can be blocked."},
                           {"/block a-b", "ERR That is no name that can be blocked."},
                           {"/block alice bob", "ERR That is no name that can be blocked."},
                           {"/unblock alice", "ERR alice is not blocked."},
                           {"/block alice", "INFO What alice says"},
                           {"/block ALICE", "ERR ALICE is blocked already."},
                           {"/unblock Alice", "INFO Alice is heard again."},
                           {"/unblock alice", "ERR alice is not blocked."}});
}

// ---------------------------------------------------------------------------------------------------------------------
// Who is silent, and who has vanished

const Pattern move_warning = starts("INFO You have said nothing for a while. Say something, or you will be moved to");
const Pattern end_warning =
    starts("INFO You have said nothing for a while. Say something, or you will be disconnected");

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

TEST(Idle, MovesTheSilentOutOfAClientsRoomButTheOwnerAndTheAdmin) {
    Server server({.args = {"--idle", "2"}});
    Peer admin = admin_of(server), owner(server.port(), "owner"), listener(server.port(), "listener");
    Peer talker(server.port(), "talker"), silent(server.port(), "silent");
    go(owner, "/create den");
    for (Peer* peer : {&admin, &talker}) go(*peer, "/join den");
    settle({&admin, &owner, &talker});
    const Clock::time_point start = Clock::now();
    go(silent, "/join den");
    for (const std::string& sign_of_life : {std::string(), std::string("/time"), std::string(5000, 'x')}) {
        talker.expect(move_warning);
        talker.send_line(sign_of_life);
    }
    silent.expect_next(move_warning);
    EXPECT_GE(seconds_since(start), 1);
    silent.expect_next("INFO You have said nothing for too long: you are moved to public.");
    silent.expect_next(starts("ROOM public "));
    EXPECT_GE(seconds_since(start), 2);
    admin.expect("LEAVE silent was silent for too long.");
    listener.expect("JOIN silent joined.");
    talker.send_line("I am here");
    admin.expect("SAY talker I am here");
    EXPECT_GE(seconds_since(start), 3);
    for (Peer* peer : {&admin, &owner, &listener}) {
        EXPECT_FALSE(any_contains(peer->lines_until_echo(), "You have said nothing"));
    }
    talker.expect("SAY talker I am here");
    talker.expect_next(move_warning);
    talker.expect_next(starts("INFO You have said nothing for too long"));
    EXPECT_FALSE(any_contains(silent.lines_until_echo(), "You have said nothing")) << "in public";
}

TEST(Idle, DisconnectsInPublicAndTheServersRoomsOnlyWhereTheServerWantsTheSeatsBack) {
    Server server({.args = {"--idle-public", "2", "--idle", "0", "--rooms", "lab"}});
    Peer admin = admin_of(server), owner(server.port(), "owner"), guest(server.port(), "guest");
    go(owner, "/create den");
    go(guest, "/join den");
    settle({&owner, &admin});
    const Clock::time_point start = Clock::now();
    Peer silent(server.port(), "silent"), worker(server.port(), "worker");
    go(worker, "/join lab");
    for (Peer* peer : {&silent, &worker}) {
        peer->expect(end_warning);
        EXPECT_GE(seconds_since(start), 1);
        EXPECT_EQ(peer->expect_eof(), Lines{"BYE IDLE You have said nothing for too long."});
        EXPECT_GE(seconds_since(start), 2);
    }
    admin.expect("LEAVE silent was timed out.");
    for (Peer* peer : {&admin, &owner, &guest}) {
        EXPECT_FALSE(any_contains(peer->lines_until_echo(), "You have said nothing"));
    }
    admin.send_line("/reset");  // so that others move them to where silence counts
    for (Peer* peer : {&owner, &guest}) EXPECT_NO_THROW(peer->expect(end_warning));
}

// Whoever has been warned of being moved to public, and comes there earlier, is warned once more.
TEST(Idle, WarnsAgainInAnotherRoom) {
    Server server({.args = {"--idle", "4", "--idle-public", "6"}});
    Peer owner(server.port(), "owner"), silent(server.port(), "silent");
    go(owner, "/create den");
    go(silent, "/join den");
    silent.expect(move_warning);
    owner.send_line("/kick silent");
    const Clock::time_point start = Clock::now();
    silent.expect(starts("ROOM public "));
    EXPECT_NO_THROW(silent.expect(end_warning));
    EXPECT_EQ(silent.expect_eof(), Lines{"BYE IDLE You have said nothing for too long."});
    EXPECT_GE(seconds_since(start), 3);
}

#ifdef __linux__
// A cable is pulled, and neither end is told: once while nothing is on its way, which TCP's keep-alive finds out, and
// once while a line is.
TEST(Vanished, PeersFreeTheirNamesWithinEightySecondsAlsoWithoutAnIdleLimit) {
    if (!Network::can_be_made()) GTEST_SKIP() << "this user cannot make networks here";
    const Network here, away;
    const auto server = here.inside([] {
        return std::make_unique<Server>(ServerOptions{.args = {"--bind", "0.0.0.0", "--idle", "0"}});
    });
    const bool wired = away.shell("ip link add cable type veth peer name cable netns " + std::to_string(server->pid()) +
                                  " && ip address add 10.0.0.2/24 dev cable && ip link set cable up") &&
                       here.shell("ip link set lo up && ip address add 10.0.0.1/24 dev cable && ip link set cable up");
    if (!wired) GTEST_SKIP() << "no cable (veth) can be made here";
    const auto connect = [&](const Network& from, const char* name, const char* to) {
        return from.inside([&] {
            Peer peer(server->port(), {.host = to});
            peer.login(name);
            return peer;
        });
    };
    Peer quiet = connect(away, "quiet", "10.0.0.1"), busy = connect(away, "busy", "10.0.0.1");
    Peer witness = connect(here, "witness", "127.0.0.1");
    go(quiet, "/create alone");
    settle({&busy, &witness});
    const auto all_arrived = [&] {  // by the length of each connection's queue
        const std::string sockets = read_file("/proc/" + std::to_string(server->pid()) + "/net/tcp");
        return contains(sockets, " 01 00000000:") && !re(" 01 (?!00000000:)").find(sockets);
    };
    ASSERT_TRUE(eventually(all_arrived));
    ASSERT_TRUE(away.shell("ip link set cable down"));
    const Clock::time_point cut = Clock::now();
    witness.send_line("hello");
    const Deadline until(80);
    server->wait_output("busy lost the connection.", until);
    server->wait_output("quiet lost the connection.", until);
    EXPECT_LT(Clock::now() - cut, std::chrono::seconds(80));
    witness.expect("LEAVE busy lost the connection.");
    for (const char* name : {"quiet", "busy"}) EXPECT_NO_THROW(connect(here, name, "127.0.0.1"));
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// The exit code, and the one limit on wrong tries of a secret

TEST(ExitCode, IsRandomAndPrintedOnceAlone) {
    std::set<std::string> codes;
    for (int i = 0; i < 3; ++i) {
        Server server;
        const std::string code = exit_code_of(server);
        codes.insert(code);
        Peer alice(server.port(), "alice");
        for (const char* command : {"/help", "/help shutdown", "/shutdown", "/shutdown 0", "/rooms"}) {
            EXPECT_FALSE(any_contains(answers_to(alice, command), code)) << command;
        }
        alice.send_line("/shutdown " + code);
        EXPECT_FALSE(any_contains(alice.expect_eof(), code));
        EXPECT_EQ(server.wait_exit(), 0);
        const std::string& output = server.output();
        const std::size_t end = output.find("exit code: ") + 16;
        EXPECT_EQ(output.find(code, end), std::string::npos) << "it is in the log";
    }
    EXPECT_GT(codes.size(), 1U);
}

TEST(ExitCode, EndsTheServerForAnybodyAnywhere) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    go(alice, "/create den");
    const std::string code = exit_code_of(server);
    expect_answers(alice, {{"/shutdown", "ERR The form is: /shutdown CODE"},
                           {"/shutdown " + code + "0", "ERR That is not the exit code."},
                           {"/shutdown " + code.substr(1), "ERR That is not the exit code."},
                           {"/shutdown " + code + " " + code, "ERR That is not the exit code."},
                           {"/shutdown please", "ERR That is not the exit code."}});
    alice.send_line("/shutdown " + code);
    for (Peer* peer : {&alice, &bob}) EXPECT_EQ(peer->expect_eof().back(), "BYE SHUTDOWN The server shuts down.");
    EXPECT_EQ(server.wait_exit(), 0);
    EXPECT_TRUE(contains(server.output(), "-- shutdown by alice.\n"));
}

TEST(Secrets, ShareOneLimitOnWrongTries) {
    need_address(second_address);
    Server server;
    const std::string code = exit_code_of(server), wait = "ERR Too many attempts: wait a minute";
    Peer owner = from_second_address(server, "owner");
    go(owner, "/create den 12345");
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), thief(server.port());
    for (int i = 0; i < 30; ++i) {  // right ones count nothing
        go(alice, "/join den 12345");
        go(alice, "/leave");
    }
    thief.send_raw("admin\na\nb\nc\n");
    EXPECT_EQ(thief.expect_eof().back(), "REFUSE Three wrong passwords.");
    for (int i = 0; i < 9; ++i) expect_answers(alice, {{"/join den 54321", "ERR That is not the room's code."}});
    for (int i = 0; i < 8; ++i) expect_answers(bob, {{"/shutdown 0", "ERR That is not the exit code."}});
    expect_answers(alice, {{"/join den 54321", wait}, {"/join den 12345", wait}, {"/shutdown " + code, wait}});
    Peer late(server.port(), "late"), admin(server.port());
    expect_answers(late, {{"/shutdown 0", wait}, {"/join den 12345", wait}});
    admin.send_raw("admin\n" + server.password() + "\n");
    admin.expect(starts(wait));
    Peer other = from_second_address(server, "other");
    go(other, "/join den 12345");
    other.send_line("/shutdown " + code);
    EXPECT_EQ(server.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Reset

TEST(Reset, EndsRoomsAndBlocksAndForgetsWhatWasSaid) {
    Server server({.args = {"--rooms", "lab"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol"),
        admin = admin_of(server);
    for (Peer* peer : {&alice, &bob}) go(*peer, peer == &alice ? "/create den 12345" : "/join lab");
    for (Peer* peer : {&alice, &bob, &carol}) peer->send_line("to be forgotten");
    settle({&alice, &bob, &carol});
    expect_answers(admin, {{"/block alice", "INFO What alice says"}});
    expect_answers(alice, {{"psst", "ERR You are blocked"}});
    settle({&admin});
    admin.send_line("/reset");
    for (Peer* peer : {&alice, &bob}) {
        peer->expect_next("INFO The room was reset by admin.");
        peer->expect_next(in_public);
        EXPECT_FALSE(any_contains(peer->lines_until_echo(), "forgotten"));
    }
    EXPECT_EQ(admin.lines_until_echo().back(),
              "INFO Everyone is in public, nobody is blocked, and what was said is "
              "forgotten.");
    settle({&alice, &bob, &carol});
    expect_answers(alice, {{"hello", "SAY alice hello"}});
    EXPECT_EQ(carol.expect_next(), "SAY alice hello");
    EXPECT_TRUE(any_contains(answers_to(alice, "/rooms"), "ROOMS 2 "));
    EXPECT_FALSE(any_contains(answers_to(bob, "/join lab"), "PAST"));
    Peer dave(server.port(), "dave");
    EXPECT_EQ(dave.lines_until_echo().size(), 1U) << "there is one line in public's past: hello";
}

// ---------------------------------------------------------------------------------------------------------------------
// Help

// Returns the commands in a /help.
std::set<std::string> commands_in(const Lines& help) {
    std::set<std::string> names;
    for (const std::string& line : help) {
        if (const auto name = re("^(?:INFO|.* --) /([a-z]+) ").find(line)) names.insert(*name);
    }
    return names;
}

const std::set<std::string> for_users{"help",  "who",  "rooms", "create", "join", "leave", "me",   "msg",
                                      "reply", "time", "quote", "ignore", "echo", "quit",  "exit", "shutdown"};
const std::set<std::string> for_owners{"kick", "close", "topic"};
const std::set<std::string> for_admins{"unregister", "fire",  "out",     "ban",  "unban",
                                       "bans",       "block", "unblock", "reset"};

TEST(Help, ListsWhatOneMayUseNow) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), admin = admin_of(server);
    std::set<std::string> all = for_users;
    EXPECT_EQ(commands_in(answers_to(alice, "/help")), all);
    go(alice, "/create den");
    go(bob, "/join den");
    EXPECT_EQ(commands_in(answers_to(bob, "/help")), all);
    all.insert(for_owners.begin(), for_owners.end());
    EXPECT_EQ(commands_in(answers_to(alice, "/help")), all);
    go(alice, "/leave");
    EXPECT_EQ(commands_in(answers_to(bob, "/help")), all) << "bob owns the room now";
    EXPECT_EQ(commands_in(answers_to(alice, "/help")), for_users);
    all.insert(for_admins.begin(), for_admins.end());
    EXPECT_EQ(commands_in(answers_to(admin, "/help")), all);

    server.write("/help\n");
    std::string log = log_of(server);
    Lines lines;
    for (std::size_t end = 0; (end = log.find('\n')) != std::string::npos; log.erase(0, end + 1)) {
        lines.push_back(log.substr(0, end));
    }
    for (const char* name : {"create", "join", "leave", "ignore", "quit", "exit"}) all.erase(name);
    EXPECT_EQ(commands_in(lines), all) << "the operator has no connection";
}

TEST(Help, OfACommandIsItsFormAndAnExample) {
    Server server;
    Peer alice(server.port(), "alice");
    settle({&alice});
    for (const auto& names : {for_users, for_owners, for_admins}) {
        for (const std::string& name : names) {
            alice.send_line("/help " + name);
            EXPECT_NO_THROW(alice.expect_next(re("^INFO /(" + name + ") .*; for example: /\\1\\b"))) << name;
        }
    }
    expect_answers(alice, {{"/help /JOIN",
                            "INFO /join ROOM [CODE] goes to a room, by name or number; for example: "
                            "/join den 12345"},
                           {"/help nonsense", "ERR There is no such command"}});
}

TEST(Help, NamesTheNearestOfWhatOneMayUse) {
    Server server;
    Peer alice(server.port(), "alice"), admin = admin_of(server);
    expect_answers(alice, {{"/jion den", "ERR There is no command /jion; did you mean /join ROOM [CODE]?"},
                           {"/ROMS", "ERR There is no command /ROMS; did you mean /rooms?"},
                           {"/craete den", "ERR There is no command /craete; did you mean /create NAME [CODE]?"},
                           {"/whoo", "ERR There is no command /whoo; did you mean /who [NAME]?"},
                           {"/blok bob", "ERR There is no command /blok; /help lists them."},
                           {"/nonsense", "ERR There is no command /nonsense; /help lists them."}});
    expect_answers(admin, {{"/blok bob", "ERR There is no command /blok; did you mean /block NAME?"}});
}

}  // namespace
