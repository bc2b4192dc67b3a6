// The server over TCP, at its terminal, and from the command line: names and passwords, what newcomers are told, every
// command in right and wrong use, bans, the log, the options.
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "harness.hpp"

using namespace harness;

namespace {

int count_matching(const Lines& lines, const Pattern& pattern) {
    return static_cast<int>(
        std::ranges::count_if(lines, [&](const auto& line) { return pattern.find(line).has_value(); }));
}

// Types each line at the server's terminal, and waits for the answer to it.
void expect_at_terminal(Server& server, const Answers& answers) {
    for (const auto& [line, answer] : answers) {
        server.mark();
        server.write(line + "\n");
        EXPECT_NO_THROW(server.wait_output(answer)) << line;
    }
}

// Tries to log in, and expects to be rejected.
void expect_banned(const Server& server, const std::string& name, const PeerOptions& options = {}) {
    Peer peer(server.port(), options);
    peer.send_line(name);
    peer.expect(starts("BAN "));
    EXPECT_EQ(peer.expect_eof(), Lines{});
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

TEST(Names, AreAskedForInWordsThatNcCanShow) {
    Server server;
    Peer peer(server.port());
    peer.expect_next(starts("INFO This is Chatroom"));
    peer.expect_next(starts("NICK Your name?"));
}

TEST(Names, HaveThreeToTwelveLettersAndDigitsALetterFirst) {
    Server server;
    Peer peer(server.port());
    peer.expect(starts("NICK"));
    for (const char* bad : {"ab", "abcdefghijklm", "1abc", "al ice", "al-ice", "\xC3\xA5lice", "ali\x01", "/who",
                            "a.b.c", "\xEF\xBD\x81\xEF\xBD\x82\xEF\xBD\x83"}) {
        peer.send_line(bad);
        EXPECT_NO_THROW(peer.expect_next(starts("ERR A name is 3 to 12"))) << bad;
        peer.expect_next(starts("NICK"));
    }
    peer.send_line("aBcdefghij12");
    peer.expect_next(starts("WELCOME aBcdefghij12 "));
    EXPECT_EQ(Peer(server.port()).login("abc"), (Lines{"aBcdefghij12", "abc"}));
}

TEST(Names, AreUniqueWithoutRegardToCase) {
    Server server;
    Peer alice(server.port(), "alice"), second(server.port());
    second.expect(starts("NICK"));
    for (const char* name : {"alice", "ALICE", "  Alice "}) {
        second.send_line(name);
        second.expect_next(starts("ERR Somebody here has the name"));
        second.expect_next(starts("NICK"));
    }
    alice.send_line("/quit");
    alice.expect_eof();
    second.send_line("Alice");
    second.expect_next(starts("WELCOME Alice "));
}

TEST(Names, OfTheServerCannotBeTaken) {
    Server server;
    Peer peer(server.port());
    peer.expect(starts("NICK"));
    for (const char* name : {"server", "SERVER"}) {
        peer.send_line(name);
        peer.expect_next(starts("ERR The server itself"));
        peer.expect_next(starts("NICK"));
    }
}

TEST(Names, MayBeSentWithoutWaitingForTheQuestion) {
    Server server;
    Peer peer(server.port());
    peer.send_raw("al\nalice\nhello\n/quit\nlost\n");
    peer.expect(starts("ERR"));
    peer.expect(starts("WELCOME alice "));
    peer.expect_who();
    EXPECT_EQ(peer.expect_eof(), (Lines{"SAY alice hello", "BYE QUIT Goodbye, alice."}));
}

// ---------------------------------------------------------------------------------------------------------------------
// The admin's password

TEST(Password, MakesAnAdminOnceAndInAnyCase) {
    Server server;
    Peer admin(server.port());
    admin.send_raw("ADMIN\n" + server.password() + "\n/bans\n");  // without waiting for the questions
    admin.expect(starts("PASS "));
    admin.expect_next(starts("WELCOME ADMIN "));
    admin.expect("INFO Bans: 0.");
    Peer second(server.port());
    second.expect(starts("NICK"));
    second.send_line("admin");
    second.expect_next(starts("PASS "));
    second.send_line(server.password());
    second.expect_next(starts("ERR Somebody here has the name"));
    second.expect_next(starts("NICK "));
}

TEST(Password, ThatIsWrongThreeTimesClosesTheConnection) {
    Server server;
    Peer peer(server.port());
    peer.expect(starts("NICK"));
    peer.send_line("admin");
    for (const char* wrong : {"wrong", "letmeinn", "letmei"}) {
        peer.expect(starts("PASS "));
        peer.send_line(wrong);
    }
    Lines last = peer.expect_eof();
    EXPECT_EQ(count_matching(last, starts("PASS")), 0);
    ASSERT_FALSE(last.empty());
    EXPECT_EQ(last.back(), "REFUSE Three wrong passwords.");
    EXPECT_EQ(server.output().find("letmei"), std::string::npos) << "what was tried is in the log";
}

TEST(Password, MayBeRightAtTheThirdTry) {
    Server server;
    Peer peer(server.port());
    peer.send_raw("admin\n \nLETMEIN\n" + server.password() + "\n");
    peer.expect(starts("WELCOME admin "));
}

// Sends so many wrong passwords from there, over as many connections as it takes, and says how many were looked at.
int try_wrong(const Server& server, int count, const PeerOptions& from = {}) {
    int looked_at = 0;
    for (; count > 0; count -= 3) {
        Peer peer(server.port(), from);
        peer.send_raw("admin\na\nb\nc\n");
        looked_at += count_matching(peer.expect_eof(), starts("ERR That is not the password"));
    }
    return looked_at;
}

TEST(Password, CannotBeGuessedOverManyConnections) {
    Server server;
    EXPECT_EQ(try_wrong(server, 30), 20);
    Peer peer(server.port());
    peer.send_raw("admin\n" + server.password() + "\n");
    peer.expect(starts("ERR Too many attempts: wait"));
    need_address(second_address);
    Peer other(server.port(), {.from = second_address});
    other.login("admin", server.password());
}

TEST(Password, IsGuessedAtNoMoreForRightOnesInBetween) {
    Server server;
    for (int i = 0; i < 25; ++i) {
        Peer admin = admin_of(server);
        admin.send_line("/quit");
        admin.expect_eof();
    }
    EXPECT_EQ(try_wrong(server, 18), 18);
    admin_of(server);
}

TEST(Password, IsRandomAndPrintedOnceWithoutOneInTheEnvironment) {
    std::vector<std::string> passwords;
    for (int i = 0; i < 2; ++i) {
        Server server({.admin_password = ""});
        passwords.push_back(server.wait_output(re("^admin password: (\\S{12,})$")));
        try_wrong(server, 3);
        Peer admin(server.port());
        admin.login("admin", passwords.back());
        admin.send_line("/shutdown");
        EXPECT_EQ(server.wait_exit(), 0);
        EXPECT_EQ(count_in(server.output() + server.errors(), passwords.back()), 1);
    }
    EXPECT_NE(passwords[0], passwords[1]);
}

TEST(Password, OfTheEnvironmentIsNeverPrinted) {
    Server server;
    server.wait_output(re("^admin password: .*CHAT_ADMIN_PASSWORD$"));
    admin_of(server).lines_until_echo();
    server.signal(SIGTERM);
    EXPECT_EQ(server.wait_exit(), 0);
    EXPECT_EQ(count_in(server.output() + server.errors(), server.password()), 0);
}

TEST(Password, CannotBeReadFromTheEnvironment) {
    Server server({.admin_password = "Zanzibar77"});
    std::string environment;
    try {
        environment = read_file("/proc/" + std::to_string(server.pid()) + "/environ");
    } catch (const Failure&) {
        GTEST_SKIP() << "this system does not show it";
    }
    EXPECT_EQ(count_in(environment, "Zanzibar77"), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Joining and leaving

TEST(Joining, TellsWhereOneIsAndWhoElse) {
    Server server;
    Peer alice(server.port());
    alice.send_line("alice");
    alice.expect(starts("WELCOME alice Welcome, alice."));
    alice.expect_next(starts("ROOM public - - You are in public."));
    alice.expect_next(re("^WHO public 1 alice$"));
    EXPECT_EQ(Peer(server.port()).login("bob"), (Lines{"alice", "bob"}));
    alice.expect_next("JOIN bob joined.");
}

TEST(Joining, ShowsTheLastFiftyLinesWithTheirTimes) {
    Server server;
    Peer alice(server.port(), "alice");
    std::string before = utc_now();
    for (int i = 1; i <= 58; ++i) alice.send_line("line " + std::to_string(i));
    alice.send_line("/me waves");
    alice.lines_until_echo();
    server.write("from the operator\n");
    alice.expect("SAY server");
    std::string after = utc_now();

    Peer bob(server.port(), "bob");
    Lines past = bob.lines_until_echo();
    ASSERT_EQ(past.size(), 50U);
    Lines said;
    for (const std::string& line : past) {
        std::string time = line.substr(5, 20);
        EXPECT_TRUE(line.starts_with("PAST ") && before <= time && time <= after) << line;
        said.push_back(line.substr(26));
    }
    EXPECT_EQ(said[0], "SAY alice line 11");
    EXPECT_EQ(said[47], "SAY alice line 58");
    EXPECT_EQ(said[48], "ME alice waves");
    EXPECT_EQ(said[49], "SAY server from the operator");
}

TEST(Joining, ShowsNothingPrivateOfThePast) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    for (const char* line : {"/msg bob secret", "/echo secret", "/nonsense secret"}) alice.send_line(line);
    alice.lines_until_echo();
    Peer carol(server.port(), "carol");
    EXPECT_EQ(carol.lines_until_echo(), Lines{});
}

TEST(Leaving, IsToldWithItsReason) {
    Server server;
    Peer alice(server.port(), "alice"), admin = admin_of(server);
    Peer quits(server.port(), "quits"), ends(server.port(), "ends"), breaks(server.port(), "breaks");
    Peer kicked(server.port(), "kicked"), banned(server.port(), "banned");
    alice.lines_until_echo();
    quits.send_line("/quit");
    alice.expect_next("LEAVE quits left.");
    ends.half_close();
    alice.expect_next("LEAVE ends left.");
    EXPECT_EQ(count_matching(ends.expect_eof(), "BYE QUIT You ended the connection."), 1);
    breaks.lines_until_echo();  // nothing may be under way to it: the server could notice the end by that
    breaks.reset();
    alice.expect_next("LEAVE breaks lost the connection.");
    admin.send_line("/kick kicked");
    alice.expect_next("LEAVE kicked was kicked by admin.");
    server.write("/ban banned\n");
    alice.expect_next("LEAVE banned was banned by server.");
    alice.send_line("/who");
    alice.expect_next(re("^WHO public 2 alice admin$"));
}

TEST(Leaving, BeforeTheLoginIsCompleteIsNotTold) {
    Server server;
    Peer alice(server.port(), "alice"), half(server.port());
    half.send_line("ab");
    half.expect(starts("ERR"));
    half.half_close();
    server.wait_output(re("^.* - -- 127.0.0.1 left\\.$"));
    EXPECT_EQ(alice.lines_until_echo(), Lines{});
}

// ---------------------------------------------------------------------------------------------------------------------
// What everyone may use

TEST(Commands, AreNotSaidAndTheirNamesHaveNoCase) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    expect_answers(alice, {{"/WHO", "WHO public 2 alice bob"},
                           {"/Echo Hi", "ECHO Hi"},
                           {"/nonsense", "ERR There is no command /nonsense;"},
                           {"/", "ERR There is no command /;"},
                           {"  /who", "WHO public 2 alice bob"},
                           {"\t/echo  Hi ", "ECHO Hi"},
                           {"/ who", "ERR There is no command /;"}});
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(Commands, AreSaidAfterASecondSlash) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    expect_answers(alice, {{"//etc/passwd", "SAY alice /etc/passwd"},
                           {"  //quit", "SAY alice /quit"},
                           {"///", "SAY alice //"},
                           {"not /who", "SAY alice not /who"}});
    EXPECT_EQ(bob.lines_until_echo(),
              (Lines{"SAY alice /etc/passwd", "SAY alice /quit", "SAY alice //", "SAY alice not /who"}));
    alice.send_line("/help");
    EXPECT_TRUE(contains(alice.lines_until_echo().back(), "//text says /text"));
}

TEST(Commands, GivenInTheWrongFormAreExplained) {
    Server server;
    Peer admin = admin_of(server);
    expect_answers(admin,
                   {{"/me", "ERR The form is: /me TEXT"},
                    {"/echo  ", "ERR The form is: /echo TEXT"},
                    {"/msg", "ERR The form is: /msg NAME TEXT"},
                    {"/msg admin ", "ERR The form is: /msg NAME TEXT"},
                    {"/reply", "ERR The form is: /reply TEXT"},
                    {"/ignore", "ERR The form is: /ignore NAME"},
                    {"/kick", "ERR The form is: /kick NAME"},
                    {"/fire", "ERR The form is: /fire NAME"},
                    {"/ban", "ERR The form is: /ban NAME-OR-ADDRESS"},
                    {"/unban", "ERR The form is: /unban NAME-OR-ADDRESS"},
                    {"/time now", "ERR The form is: /time"},
                    {"/rooms den", "ERR The form is: /rooms"},
                    {"/close den", "ERR The form is: /close"},
                    {"/reset all", "ERR The form is: /reset"},
                    {"/quit  bye", "ERR The form is: /quit"},
                    {"/ban not-a-name", "ERR That is neither a name that can be banned, nor an address or a network."},
                    {"/unban 1.2.3", "ERR That is neither a name that can be banned, nor an address or a network."}});
}

TEST(Commands, OfTheAdminAreRefusedToOthers) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    for (const char* command : {"/fire bob", "/ban bob", "/unban bob", "/bans"}) {
        alice.send_line(command);
        EXPECT_NO_THROW(alice.expect_next(starts("ERR Only the admin may use /"))) << command;
    }
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(Help, ListsWhatOneMayUse) {
    Server server;
    Peer alice(server.port(), "alice"), admin = admin_of(server);
    alice.expect("JOIN admin");
    Lines all{"help", "who",   "rooms", "create", "join",       "leave",    "me",      "msg",   "reply", "ignore",
              "time", "quote", "echo",  "quit",   "exit",       "shutdown", "kick",    "close", "topic", "fire",
              "out",  "ban",   "unban", "bans",   "unregister", "block",    "unblock", "reset"};
    for (Peer* peer : {&alice, &admin}) {
        peer->send_line("/help");
        Lines help = peer->lines_until_echo();
        std::size_t theirs = peer == &alice ? 16 : all.size();
        EXPECT_EQ(help.size(), theirs + 1);
        for (std::size_t i = 0; i < all.size(); ++i) {
            EXPECT_EQ(count_matching(help, re("^INFO /" + all[i] + " ")), i < theirs ? 1 : 0) << all[i];
        }
    }
    expect_answers(alice,
                   {{"/help msg", "INFO /msg NAME TEXT "},
                    {"/help /MSG", "INFO /msg NAME TEXT "},
                    {"/help kick",
                     "INFO /kick NAME moves NAME out of your room; in public, disconnects NAME; for example: /kick "},
                    {"/help nonsense", "ERR There is no such command; /help lists them."}});
}

TEST(Commands, TimeAndQuoteAndEchoAnswerToOneAlone) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    alice.send_line("/time");
    alice.expect_next(re("^INFO It is [A-Z][a-z]+day, [0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} \\S+\\.$"));
    alice.send_line("/quote");
    alice.expect_next(re("^INFO \".+\" - .+"));
    alice.send_line("/echo  one  two ");
    alice.expect_next(re("^ECHO one  two$"));
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(Commands, MeSaysWhatOneDoes) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    alice.send_line("/me waves to all");
    for (Peer* peer : {&alice, &bob}) peer->expect_next(re("^ME alice waves to all$"));
}

TEST(Commands, QuitAndExitSayGoodbye) {
    Server server;
    for (const char* command : {"/quit", "/exit"}) {
        Peer alice(server.port(), "alice");
        alice.lines_until_echo();
        alice.send_line(command);
        EXPECT_EQ(alice.expect_eof(), Lines{"BYE QUIT Goodbye, alice."});
    }
}

TEST(PrivateMessage, IsForTwoAlone) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol"),
        admin = admin_of(server);
    for (Peer* peer : {&alice, &bob, &carol}) peer->expect("JOIN admin");
    alice.send_line("/msg BOB  how are  you?");
    for (Peer* peer : {&alice, &bob}) peer->expect_next(re("^MSG alice bob how are  you\\?$"));
    bob.send_line("/reply fine");
    for (Peer* peer : {&bob, &alice}) peer->expect_next(re("^MSG bob alice fine$"));
    alice.send_line("/reply good");
    bob.expect_next(re("^MSG alice bob good$"));
    for (Peer* peer : {&carol, &admin}) EXPECT_EQ(peer->lines_until_echo(), Lines{});
}

TEST(PrivateMessage, ThatCannotBeDeliveredIsToldSo) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    expect_answers(alice, {{"/reply hello", "ERR Nobody has sent you"},
                           {"/msg nobody hello", "ERR Nobody here is called nobody."},
                           {"/msg alice note to myself", "MSG alice alice note to myself"},
                           {"/reply another", "MSG alice alice another"}});
    bob.send_line("/msg alice bye");
    bob.send_line("/quit");
    alice.expect("LEAVE bob");
    expect_answers(alice, {{"/reply wait", "ERR Whoever sent you the last private message has left."}});
}

TEST(Ignore, HidesAllThatOneSaysFromOneAlone) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol");
    for (Peer* peer : {&alice, &bob}) peer->expect("JOIN carol");
    expect_answers(alice, {{"/ignore BOB", "INFO You no longer hear bob."}});
    expect_answers(bob, {{"hello", "SAY bob hello"},
                         {"/me waves", "ME bob waves"},
                         {"/msg alice psst", "ERR alice has chosen not to hear you"}});
    EXPECT_EQ(carol.lines_until_echo(), (Lines{"SAY bob hello", "ME bob waves"}));
    EXPECT_EQ(alice.lines_until_echo(), Lines{});
    expect_answers(alice, {{"/ignore bob", "INFO You hear bob again."}});
    bob.send_line("back");
    alice.expect_next("SAY bob back");
}

TEST(Ignore, HidesWhatOneHasSaidFromTheHistoryToo) {
    Server server({.args = {"--rooms", "den"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), carol(server.port(), "carol");
    const auto history_for_alice = [&] {
        alice.send_line("/join den");
        alice.send_line("/leave");
        Lines lines = alice.lines_until_echo();
        std::erase_if(lines, [](const std::string& line) { return !line.starts_with("PAST "); });
        for (std::string& line : lines) line.erase(0, std::string("PAST 2026-01-31T12:00:00Z ").size());
        return lines;
    };
    expect_answers(bob, {{"hello", "SAY bob hello"}, {"/me waves", "ME bob waves"}});
    expect_answers(carol, {{"hello, bob", "SAY carol hello, bob"}});
    const Lines all{"SAY bob hello", "ME bob waves", "SAY carol hello, bob"};
    EXPECT_EQ(history_for_alice(), all);
    expect_answers(alice, {{"/ignore bob", "INFO You no longer hear bob."}});
    EXPECT_EQ(history_for_alice(), Lines{"SAY carol hello, bob"});
    expect_answers(alice, {{"/ignore bob", "INFO You hear bob again."}});
    EXPECT_EQ(history_for_alice(), all);
}

TEST(Ignore, IsForOthersWhoAreHere) {
    Server server;
    Peer alice(server.port(), "alice");
    alice.lines_until_echo();
    expect_answers(alice, {{"/ignore alice", "ERR Not yourself"},
                           {"/ignore server", "ERR Not yourself, and not the server."},
                           {"/ignore nobody", "ERR Nobody here is called nobody."}});
    const Peer admin = admin_of(server);
    alice.expect("JOIN admin");
    expect_answers(alice, {{"/ignore ADMIN", "ERR The admin cannot be ignored."}});
}

// ---------------------------------------------------------------------------------------------------------------------
// What the admin may use

TEST(Kick, DisconnectsUntilTheNextLogin) {
    Server server;
    Peer admin = admin_of(server);
    for (const char* command : {"/kick ALICE", "/fire alice"}) {
        Peer alice(server.port(), "alice");
        admin.expect("JOIN alice");
        admin.send_line(command);
        EXPECT_EQ(alice.expect_eof(), Lines{"BYE KICK You were kicked by admin."});
        admin.expect_next("INFO alice was disconnected.");
        admin.expect_next("LEAVE alice was kicked by admin.");
    }
}

TEST(Kick, IsForOthersWhoAreHere) {
    Server server;
    Peer admin = admin_of(server);
    admin.lines_until_echo();
    for (const char* command : {"/kick", "/fire"}) {
        std::string kick = command;
        expect_answers(admin, {{kick + " admin", "ERR That is yourself"},
                               {kick + " server", "ERR That is the operator"},
                               {kick + " nobody", "ERR Nobody here is called nobody"}});
    }
}

TEST(Ban, OfSomebodyWhoIsOnTheListByHandAlreadyDisconnectsAsWell) {
    TempDir dir;
    const std::string file = dir.path() / "list";
    Server server({.args = {"--bans", file}});
    Peer admin = admin_of(server), bob(server.port(), "bob");
    admin.expect("JOIN bob");
    write_file(file, "bob\n");
    expect_answer(admin, "/ban bob", "ERR bob is banned already.");
    EXPECT_NO_THROW(bob.expect("BYE BAN You were banned by admin."));
    expect_banned(server, "bob");
}

TEST(Ban, OfANameLastsOverARestartUntilItIsLifted) {  // promise 5
    TempDir dir;
    std::string file = dir.path() / "list";
    {
        Server server({.args = {"--bans", file}});
        Peer admin = admin_of(server), bob(server.port(), "bob");
        admin.expect("JOIN bob");
        expect_answer(admin, "/ban BOB", "INFO BOB is banned.");
        bob.expect("BYE BAN You were banned by admin.");
        bob.expect_eof();
        admin.expect_next("INFO bob came from 127.0.0.1, as you do.");
        admin.expect_next("LEAVE bob was banned by admin.");
        expect_answers(admin, {{"/ban bob", "ERR bob is banned already."}, {"/ban absent", "INFO absent is banned."}});
        expect_banned(server, "Bob");
        server.signal(SIGKILL);  // what was acknowledged is on the disk
        EXPECT_EQ(server.wait_exit(), -SIGKILL);
    }
    Server server({.args = {"--bans", file}});
    expect_banned(server, "bob");
    expect_banned(server, "absent");
    Peer admin = admin_of(server);
    admin.send_line("/bans");
    admin.expect(re("^INFO BOB +# by admin at [0-9-]{10}T[0-9:]{8}Z$"));
    admin.expect_next(re("^INFO absent +# by admin at "));
    admin.expect_next("INFO Bans: 2.");
    expect_answers(admin, {{"/unban bob", "INFO bob is no longer banned."}, {"/unban bob", "ERR bob is not banned"}});
    Peer bob(server.port(), "bob");
    expect_banned(server, "absent");
}

TEST(Ban, OfAnAddressDisconnectsAllWhoComeFromThere) {
    need_address(second_address);
    Server server;
    PeerOptions there{.from = second_address};
    Peer admin = admin_of(server), here(server.port(), "here"), bob(server.port(), there), carol(server.port(), there);
    bob.login("bob");
    carol.login("carol");
    admin.expect("JOIN carol");
    expect_answer(admin, "/ban " + second_address, "INFO 127.0.0.2 is banned.");
    for (Peer* peer : {&bob, &carol}) EXPECT_EQ(count_matching(peer->expect_eof(), starts("BYE BAN ")), 1);
    expect_banned(server, "dave", there);
    EXPECT_EQ(count_matching(here.lines_until_echo(), starts("LEAVE")), 2);
    admin.send_line("/unban 127.0.0.2");
    admin.expect("INFO 127.0.0.2 is no longer banned.");
    Peer(server.port(), there).login("bob");
}

TEST(Ban, OfANameTellsTheAddressAndHowToBanItToo) {
    need_address(second_address);
    Server server;
    Peer admin = admin_of(server), bob(server.port(), {.from = second_address});
    bob.login("bob");
    admin.expect("JOIN bob");
    expect_answer(admin, "/ban bob", "INFO bob is banned. /unban undoes it.");
    admin.expect_next(re("^INFO bob came from 127\\.0\\.0\\.2: /ban 127\\.0\\.0\\.2 bans that too\\.$"));
    bob.expect_eof();
}

TEST(Ban, OfTheAdminsOwnAddressIsAskedForTwice) {
    Server server;
    Peer admin = admin_of(server), bob(server.port(), "bob");
    admin.expect("JOIN bob");
    const std::string warning = "INFO You come from 127.0.0.1 yourself, and could not log in again. To do it, type the";
    expect_answers(admin, {{"/ban 127.0.0.0/8", warning},
                           {"/ban 127.0.0.1", warning},
                           {"/bans", "INFO Bans: 0."},
                           {"/ban 127.0.0.0/8", warning + " same again within ten seconds."}});
    admin.send_line("/ban 127.0.0.0/8");
    admin.expect_next("INFO 127.0.0.0/8 is banned.");
    EXPECT_EQ(bob.expect_eof().back(), "BYE BAN You were banned by admin.");
    expect_banned(server, "admin");
    expect_at_terminal(server, {{"/unban 127.0.0.0/8", "-- 127.0.0.0/8 is no longer banned."},
                                {"/ban 127.0.0.1", "-- 127.0.0.1 is banned."}});
}

TEST(Ban, OfANetworkHoldsForItsAddressesAlone) {
    need_address(second_address);
    Server server;
    Peer admin = admin_of(server), bob(server.port(), {.from = second_address});
    bob.login("bob");
    admin.expect("JOIN bob");
    admin.send_line("/ban 127.0.0.3/31");
    admin.expect_next("INFO 127.0.0.2/31 is banned.");
    admin.expect_next("LEAVE bob was banned");
    expect_answers(admin, {{"/ban 127.0.0.2/31", "ERR 127.0.0.2/31 is banned already."},
                           {"/ban 127.0.0.2/33", "ERR That is neither a name"}});
    EXPECT_EQ(bob.expect_eof().back(), "BYE BAN You were banned by admin.");
    expect_banned(server, "bob", {.from = second_address});
    const Peer carol(server.port(), "carol");
    expect_answers(admin, {{"/unban 127.0.0.2/31", "INFO 127.0.0.2/31 is no longer banned."}});
    Peer(server.port(), {.from = second_address}).login("bob");
}

TEST(Bans, OfLinesThatBanNobodyAreTold) {
    TempDir dir;
    const std::filesystem::path file = dir.path() / "bans";
    write_file(file, "# a comment\nalice\n10.1.0\n2001:db8::/32 # a network\nbob, carol\n");
    Server server({.args = {"--bans", file}});
    const std::string why = ": no name, address or network; it bans nobody.";
    for (const char* line : {", line 3", ", line 5"}) server.wait_output("-- " + file.string() + line + why);
    EXPECT_EQ(count_in(server.output(), why), 2);
    Peer admin = admin_of(server);
    admin.lines_until_echo();
    admin.send_line("/bans");
    for (const std::string& line :
         {std::string("alice"), file.string() + ", line 3" + why, std::string("2001:db8::/32 # a network"),
          file.string() + ", line 5" + why, std::string("Bans: 2. Lines that ban nobody: 2.")}) {
        admin.expect_next("INFO " + line);
    }
}

TEST(Ban, OfAnAddressDisconnectsThoseWhoAreLoggingIn) {
    need_address(second_address);
    Server server;
    Peer half(server.port(), {.from = second_address});
    half.expect(starts("NICK"));
    server.write("/ban 127.0.0.2\n");
    server.wait_output("127.0.0.2 was banned by server.");
    half.send_line("alice");
    half.expect_next("BAN Your address is banned.");
    half.expect_eof();
}

// An IPv4 address is sometimes written as one of IPv6 (RFC 4291, 2.5.5.2): it is the same one.
TEST(Ban, OfAnAddressHoldsHoweverItIsWritten) {
    Server server;
    Peer bob(server.port(), "bob");
    expect_at_terminal(server, {{"/ban ::FFFF:127.0.0.1", "-- 127.0.0.1 is banned."}});
    EXPECT_EQ(bob.expect_eof().back(), "BYE BAN You were banned by server.");
    expect_banned(server, "carol");
    expect_at_terminal(server, {{"/unban ::ffff:127.0.0.1", "-- 127.0.0.1 is no longer banned."}});
}

TEST(Ban, IsNotForTheAdminNorTheServer) {
    Server server;
    Peer admin = admin_of(server);
    admin.lines_until_echo();
    expect_answers(admin,
                   {{"/ban admin", "ERR That is neither a name that can be banned, nor an address or a network."},
                    {"/ban SERVER", "ERR That is neither a name that can be banned, nor an address or a network."}});
}

TEST(Bans, EditedByHandAreShownInLinesOfTheProtocolsLength) {
    Server server;
    write_file(server.bans(), "mallory # " + std::string(20000, '\xE4') + "\n");
    Peer admin = admin_of(server);
    admin.send_line("/bans");
    EXPECT_LE(admin.expect(starts("INFO mallory")).size(), 16384U);
    admin.expect_next("INFO Bans: 1.");
}

TEST(Bans, EditedByHandCountFromTheNextLogin) {
    Server server;
    std::string list = "# a comment: dave\r\n\r\n  Bob  # since yesterday\r\n#erin\r\n";
    write_file(server.bans(), list + "carol#why\r\n0:0:0::1");
    expect_banned(server, "BOB");
    expect_banned(server, "carol");
    for (const char* name : {"dave", "erin", "yesterday", "why"}) Peer(server.port(), name);
    Peer admin = admin_of(server);
    admin.send_line("/bans");
    admin.expect("INFO   Bob  # since yesterday");
    admin.expect_next("INFO carol#why");
    admin.expect_next("INFO 0:0:0::1");
    admin.expect_next("INFO Bans: 3.");

    // A change by command keeps what was written by hand.
    for (const char* who : {"carol", "::1"}) {
        admin.send_line(std::string("/unban ") + who);
        admin.expect(std::string("INFO ") + who + " is no longer banned.");
    }
    EXPECT_EQ(read_file(server.bans()), list);
    write_file(server.bans(), "");
    Peer(server.port(), "bob");
}

TEST(Bans, ThatCannotBeReadRejectNewcomersAndHarmNobodyElse) {
    Server server;
    Peer admin = admin_of(server), alice(server.port(), "alice");
    admin.expect("JOIN alice");
    std::filesystem::create_directory(server.bans());
    Peer bob(server.port());
    bob.send_line("bob");
    bob.expect(starts("REFUSE The server has a problem"));
    bob.expect_eof();
    server.wait_output(re("^.* - -- .*EISDIR \\(.*bans\\.txt|^.*bans\\.txt: EISDIR"));
    for (const char* command : {"/ban carol", "/unban carol", "/bans"}) {
        admin.send_line(command);
        EXPECT_NO_THROW(admin.expect_next(starts("ERR That could not be done: "))) << command;
    }
    EXPECT_EQ(alice.lines_until_echo(), Lines{});
    std::filesystem::remove(server.bans());
    Peer(server.port(), "bob");
}

TEST(Bans, ThatCannotBeReadAtTheStartEndIt) {
    TempDir dir;
    Process server(server_path(), {.args = {"--port", "0", "--bind", "127.0.0.1", "--bans", dir.path()}});
    EXPECT_EQ(server.wait_exit(), 1);
    EXPECT_EQ(server.errors().find("server: read " + dir.path().string() + ": EISDIR ("), 0U);
    EXPECT_EQ(server.output(), "");
}

TEST(Bans, ThatCannotBeWrittenAreToldAndBanNobody) {
    TempDir dir;
    Server server({.args = {"--bans", dir.path() / "missing" / "bans.txt"}});
    Peer admin = admin_of(server), alice(server.port(), "alice");
    admin.expect("JOIN alice");
    admin.send_line("/ban alice");
    admin.expect_next(re("^ERR That could not be done: open .*/missing/bans\\.txt: ENOENT \\(No such"));
    server.wait_output(re("^.* - -- ban failed: open .*ENOENT"));
    EXPECT_EQ(alice.lines_until_echo(), Lines{});
    EXPECT_EQ(count_matching(admin.lines_until_echo(), "banned"), 0);
    Peer(server.port(), "bob");
}

TEST(Bans, AreKeptInTheWorkingDirectoryWhereNoneIsYet) {
    TempDir dir;
    Server server({.args = {"--bans", "bans.txt"}, .launch = {.directory = dir.path()}});
    Peer admin = admin_of(server);
    admin.lines_until_echo();
    expect_answers(admin, {{"/ban bob", "INFO bob is banned."}});
    EXPECT_EQ(read_file(dir.path() / "bans.txt").find("bob "), 0U);
    expect_banned(server, "bob");
}

TEST(Bans, BehindALinkStayThere) {
    TempDir dir;
    write_file(dir.path() / "real", "carol\n");
    std::filesystem::create_symlink("real", dir.path() / "link");
    Server server({.args = {"--bans", dir.path() / "link"}});
    expect_at_terminal(server, {{"/ban bob", "bob is banned"}});
    EXPECT_TRUE(std::filesystem::is_symlink(dir.path() / "link"));
    EXPECT_EQ(read_file(dir.path() / "real").find("carol\nbob "), 0U);
}

TEST(Shutdown, ByTheAdminTellsEverybodyAndEndsWithZero) {
    Server server;
    Peer admin = admin_of(server), alice(server.port(), "alice"), half(server.port());
    admin.expect("JOIN alice");
    half.expect(starts("NICK"));
    alice.lines_until_echo();
    admin.send_line("/shutdown");
    for (Peer* peer : {&admin, &alice, &half})
        EXPECT_EQ(peer->expect_eof(), Lines{"BYE SHUTDOWN The server shuts down."});
    EXPECT_EQ(server.wait_exit(), 0);
    server.wait_output(re("^.* - -- shutdown by admin\\.$"));
}

// ---------------------------------------------------------------------------------------------------------------------
// The operator's terminal

TEST(Operator, SpeaksToEverybodyInPlainText) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    server.write("Good morning\r\n  \n/me bows\n");
    for (Peer* peer : {&alice, &bob}) {
        peer->expect(re("^SAY server Good morning$"));
        peer->expect_next(re("^ME server bows$"));
    }
    server.wait_output(re("^.* - server: Good morning$"));
    server.wait_output(re("^.* - \\* server bows$"));
}

TEST(Operator, MayDoAllThatTheAdminMay) {
    Server server;
    Peer admin = admin_of(server), alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    expect_at_terminal(server, {{"/help", "/shutdown"},
                                {"/who", "-- public 3 admin alice bob"},
                                {"/time", "-- It is "},
                                {"/quote", "-- \""},
                                {"/echo hello", "-- hello"},
                                {"/kick bob", "-- bob was disconnected."},
                                {"/ban alice", "-- alice is banned."},
                                {"/bans", "-- Bans: 1."},
                                {"/unban alice", "-- alice is no longer banned."},
                                {"/fire admin", "-- admin was disconnected."}});
    EXPECT_EQ(count_matching(bob.expect_eof(), "BYE KICK You were kicked by server."), 1);
    EXPECT_EQ(count_matching(alice.expect_eof(), "BYE BAN You were banned by server."), 1);
    EXPECT_EQ(count_matching(admin.expect_eof(), "BYE KICK You were kicked by server."), 1);
    server.write("/shutdown\n");
    EXPECT_EQ(server.wait_exit(), 0);
}

TEST(Operator, SpeaksInPrivate) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    server.write("/msg alice a word\n");
    alice.expect_next(re("^MSG server alice a word$"));
    alice.send_line("/reply yes?");
    alice.expect_next(re("^MSG alice server yes\\?$"));
    server.wait_output("alice -> server: yes?");
    server.write("/reply nothing\n");
    alice.expect_next(re("^MSG server alice nothing$"));
    EXPECT_EQ(bob.lines_until_echo(), Lines{});
}

TEST(Operator, IsToldWhatIsWrong) {
    Server server;
    expect_at_terminal(server,
                       {{"/nonsense", "-- There is no command /nonsense;"},
                        {"/msg nobody hello", "-- Nobody here is called nobody"},
                        {"/kick", "-- The form is: /kick NAME"},
                        {"/kick server", "-- That is yourself"},
                        {"/ignore server", "-- Only a client"},
                        {"/ban server", "-- That is neither a name that can be banned, nor an address or a network."},
                        {"/quit", "-- Only a client"},
                        {"/exit", "-- Only a client"},
                        {std::string(5000, 'x'), "-- That line was too long."},
                        {"/echo \x1B[2J", "-- \xEF\xBF\xBD[2J"}});
}

TEST(Operator, IsNotNeeded) {
    Server closed, without({.launch = {.stdin_null = true}});
    closed.write("the last words\n");
    closed.close_stdin();
    closed.wait_output("server: the last words");
    for (Server* server : {&closed, &without}) {
        Peer alice(server->port(), "alice");
        alice.send_line("hello");
        alice.expect("SAY alice hello");
    }
}

TEST(Operator, MayEndWithALineWithoutItsEnd) {
    Server server;
    server.write("/shutdown");
    server.close_stdin();
    EXPECT_EQ(server.wait_exit(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The log

TEST(Log, HasALineForEachEventAndMessage) {
    Server server;
    Peer admin = admin_of(server), alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.send_line("hello");
    alice.send_line("/me waves");
    alice.send_line("/quit");
    admin.expect("LEAVE alice");
    for (const char* line : {"/ban carol", "/unban carol", "/kick bob"}) admin.send_line(line);
    admin.expect("LEAVE bob");
    admin.send_line("/shutdown");
    EXPECT_EQ(server.wait_exit(), 0);
    for (const char* event :
         {"- -- admin logged in from 127\\.0\\.0\\.1\\.", "- -- alice logged in from 127\\.0\\.0\\.1\\.",
          "public -- alice joined\\.", "public alice: hello", "public \\* alice waves", "public -- alice left\\.",
          "- -- carol was banned by admin\\.", "- -- carol was unbanned by admin\\.",
          "public -- bob was kicked by admin\\.", "- -- shutdown by admin\\.", "- -- the server has shut down\\."}) {
        std::string line = std::string("^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} ") + event + "$";
        EXPECT_NO_THROW(server.wait_output(re(line))) << event;
    }
    EXPECT_EQ(server.errors(), "");
}

TEST(Log, TellsThatAPrivateMessageWasSentAndNotWhatIsInIt) {
    Server server;
    Peer alice(server.port(), "alice"), bob(server.port(), "bob");
    alice.expect("JOIN bob");
    alice.send_line("/msg bob xyzzy");
    bob.expect("MSG");
    bob.send_line("/reply xyzzy");
    alice.expect("MSG bob");
    alice.send_line("/echo xyzzy");
    alice.send_line("done");
    server.wait_output("alice: done");
    server.wait_output("- -- alice sent bob a private message.");
    server.wait_output("- -- bob sent alice a private message.");
    EXPECT_EQ(count_in(server.output(), "xyzzy"), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// The command line

// Runs the server with options that end it, and returns what it ended with.
struct Ended {
    explicit Ended(const Lines& args) : process(server_path(), {.args = args}), status(process.wait_exit()) {}
    Process process;
    int status;
};

TEST(Options, HelpAndVersionAreAnswered) {
    Ended help({"--help"}), of_version({"--version"});
    EXPECT_EQ(help.status, 0);
    for (const char* option : {"--port", "--bind", "--bans", "--rate", "--max-clients", "--max-per-ip", "--help",
                               "--version", "CHAT_ADMIN_PASSWORD"}) {
        EXPECT_EQ(count_in(help.process.output(), option), 1) << option;
    }
    EXPECT_EQ(of_version.status, 0);
    of_version.process.wait_output(re("^chatroom-server [0-9]+\\.[0-9]+$"));
    EXPECT_EQ(help.process.errors() + of_version.process.errors(), "");
}

TEST(Options, ThatAreWrongAreToldWithStatusTwo) {
    const std::vector<std::pair<Lines, std::string>> wrong = {
        {{"--nonsense"}, "--nonsense"},
        {{"-x"}, "x"},
        {{"--port"}, "port"},
        {{"--help=all"}, "help"},
        {{"12345"}, "unexpected argument '12345'"},
        {{"--port", "65536"}, "--port takes a number from 0 to 65535, not '65536'"},
        {{"--port", "http"}, "--port takes a number"},
        {{"--port", "12 "}, "--port takes a number"},
        {{"--port", ""}, "--port takes a number"},
        {{"--rate", "-1"}, "--rate takes a number"},
        {{"--i", "5"}, "ambiguous"},
        {{"--rate", "0x10"}, "--rate takes a number"},
        {{"--max-clients", "0"}, "--max-clients takes a number"},
        {{"--max-per-ip", "99999999999999999999"}, "--max-per-ip takes a number"},
        {{"--title", std::string(129, 'x')}, "--title takes at most 128 bytes"},
    };
    for (const auto& [args, message] : wrong) {
        Ended server(args);
        EXPECT_EQ(server.status, 2) << message;
        EXPECT_EQ(server.process.output(), "") << message;
        EXPECT_NO_THROW(server.process.wait_error(message));
        EXPECT_NO_THROW(server.process.wait_error("--help shows the options\n"));
    }
}

TEST(Options, GivenTwiceCountAsTheLastTime) {
    Server server({.args = {"--max-clients", "1", "--max-clients", "2"}});
    Peer alice(server.port(), "alice"), bob(server.port(), "bob"), third(server.port());
    third.expect(starts("REFUSE The server is full: it takes 2"));
}

TEST(Options, ThatCannotBeHadNameTheError) {
    Server first;
    std::string port = std::to_string(first.port());
    Ended second({"--bind", "127.0.0.1", "--port", port, "--bans", first.bans()});
    EXPECT_EQ(second.status, 1);
    second.process.wait_error(re("^server: bind: EADDRINUSE \\(.*" + port + "\\?$"));
    Ended nowhere({"--bind", "no.such.host.invalid", "--port", "0", "--bans", first.bans()});
    EXPECT_EQ(nowhere.status, 1);
    nowhere.process.wait_error(re("^server: getaddrinfo no\\.such\\.host\\.invalid: "));
    Ended elsewhere({"--bind", "192.0.2.1", "--port", "0", "--bans", first.bans()});  // of documents, RFC 5737
    EXPECT_EQ(elsewhere.status, 1);
    elsewhere.process.wait_error(re("^server: bind: EADDRNOTAVAIL \\("));
}

TEST(Options, BindListensThereAlone) {
    need_address(second_address);
    Server server({.args = {"--bind", second_address}});
    Peer alice(server.port(), {.host = second_address});
    alice.login("alice");
    EXPECT_THROW(Peer(server.port(), "bob"), Failure);
}

TEST(Options, BindTakesAnAddressOfIpv6) {
    need_address("::1");
    Server server({.args = {"--bind", "::1"}});
    PeerOptions there{.host = "::1"};
    Peer alice(server.port(), there);
    alice.login("alice");
    server.wait_output("alice logged in from ::1");
    server.write("/ban 0:0::1\n");
    alice.expect("BYE BAN");
    expect_banned(server, "bob", there);
}

}  // namespace
