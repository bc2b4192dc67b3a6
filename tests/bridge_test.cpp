// docs/bridge.sh, which joins rooms of several servers through an MQTT broker: real servers, and a real mosquitto.
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness.hpp"

using namespace harness;

namespace {

// Returns the path of a program that the system has, or skips the test.
std::string program(const std::string& name) {
    for (const char* directory : {"/usr/bin/", "/usr/sbin/", "/usr/local/bin/", "/usr/local/sbin/",
                                  "/opt/homebrew/bin/", "/opt/homebrew/sbin/"}) {
        if (::access((directory + name).c_str(), X_OK) == 0) return directory + name;
    }
    skip("no " + name + ": apt-get install mosquitto mosquitto-clients");
}

// An MQTT broker, on loopback alone.
class Broker {
   public:
    Broker() {
        for (const char* needed : {"mosquitto", "mosquitto_sub", "mosquitto_pub"}) program(needed);
        start();
    }
    int port() const { return port_; }

    void stop() {
        process_->signal(SIGTERM);
        process_->wait_exit();
    }

    // Waits until as many more bridges are here, each a subscriber and a publisher: one that is still connecting does
    // not outlive the broker's end.
    void wait_for_bridges(int count, Deadline until = {}) {
        const auto enough = [count](std::string_view log) {
            return count_in(log, " 2 chatroom/") >= count && count_in(log, "New client connected") >= 2 * count;
        };
        process_->wait_error(enough, until);
        process_->mark();
    }

    // Says something that no bridge would.
    void publish(const std::string& topic, const std::string& message, bool retained = false) const {
        Launch launch{.args = {"-p", std::to_string(port_), "-t", topic, "-m", message, "-q", "2"}};
        if (retained) launch.args.emplace_back("-r");
        Process process(program("mosquitto_pub"), launch);
        if (process.wait_exit() != 0) throw Failure("mosquitto_pub: " + process.errors());
    }

    void run() {
        process_ =
            std::make_unique<Process>(program("mosquitto"), Launch{.args = {"-c", (place_.path() / "conf").string()}});
        process_->wait_error("running");
    }

   private:
    // It takes no port 0. One that was free may be taken when it starts.
    void start() {
        for (int tries = 1;; ++tries) {
            port_ = Listener().port();
            write_file(place_.path() / "conf",
                       "listener " + std::to_string(port_) +
                           " 127.0.0.1\nallow_anonymous true\nlog_dest stderr\nlog_type "
                           "error\nlog_type notice\nlog_type information\nlog_type subscribe\n");
            try {
                return run();
            } catch (const Failure&) {
                if (tries == 5) throw;
            }
        }
    }

    const TempDir place_;
    int port_ = 0;
    std::unique_ptr<Process> process_;
};

struct Bridge : Process {
    Bridge(const Broker& broker, const Server& server, const std::string& here, const std::string& room = "lab")
        : Process("/bin/sh", {.args = {"docs/bridge.sh", here, room, "127.0.0.1", std::to_string(broker.port()),
                                       "127.0.0.1", std::to_string(server.port())},
                              .env = {"CHATROOM_CLIENT=" + client_path(), "LC_ALL=C.UTF-8"}}) {}
    ~Bridge() override {
        if (running()) signal(SIGTERM);
        wait_exit();
    }
};

std::unique_ptr<Bridge> bridge_up(Broker& broker, const Server& server, const std::string& here) {
    auto bridge = std::make_unique<Bridge>(broker, server, here);
    bridge->wait_error("== ready");
    broker.wait_for_bridges(1);
    return bridge;
}

Peer join(const Server& server, const char* name, const std::string& room = "lab") {
    Peer peer(server.port(), name);
    if (room == "public") return peer;
    peer.send_line("/join " + room);
    peer.expect_who();
    return peer;
}

const ServerOptions with_lab{.args = {"--rooms", "lab"}};

// ---------------------------------------------------------------------------------------------------------------------

// A server, its bridge, and somebody in the room.
struct Site {
    Site(Broker& broker, const std::string& name_, const char* person)
        : name(name_), bridge(bridge_up(broker, server, name_)), peer(join(server, person)), person_name(person) {}

    // Says so many lines, and then the last one.
    void talk(int lines, const std::string& last) {
        for (int i = 1; i <= lines; ++i) say("line " + std::to_string(i));
        say(last);
    }

    void say(const std::string& text) {
        peer.send_line(text);
        said.push_back("SAY mqttlab [" + name + "] " + person_name + ": " + text);
    }

    // Takes in what comes from elsewhere, until that many others have said the last line.
    void listen(int others, const std::string& last) {
        while (others > 0) {
            const std::string line = peer.expect_next();
            if (!line.starts_with("SAY mqttlab ")) continue;
            const std::size_t from = line.find('[') + 1;
            heard[line.substr(from, line.find(']') - from)].push_back(line);
            if (line.ends_with(": " + last)) --others;
        }
    }

    std::string name;
    Server server{with_lab};
    std::unique_ptr<Bridge> bridge;
    Peer peer;
    std::string person_name;
    Lines said;
    std::map<std::string, Lines> heard;
};

// Whatever goes in circles, or twice, comes before the last lines: they are said when all others have been heard.
TEST(Bridge, SaysInEachRoomWhatIsSaidInTheOthersOnce) {
    Broker broker;
    Site north(broker, "north", "alice"), south(broker, "south", "carol"), east(broker, "east", "erin");
    const std::vector<Site*> sites{&north, &south, &east};
    for (Site* site : sites) site->talk(20, "the end");
    for (Site* site : sites) site->listen(2, "the end");
    for (Site* site : sites) site->say("over");
    for (Site* site : sites) site->listen(2, "over");
    EXPECT_EQ(north.heard, (std::map<std::string, Lines>{{"south", south.said}, {"east", east.said}}));
    EXPECT_EQ(south.heard, (std::map<std::string, Lines>{{"north", north.said}, {"east", east.said}}));
    EXPECT_EQ(east.heard, (std::map<std::string, Lines>{{"north", north.said}, {"south", south.said}}));
}

TEST(Bridge, TellsOnlyWhatIsSaidInTheRoomFromNowOn) {
    Broker broker;
    const Server north(with_lab), south(with_lab);
    Peer alice = join(north, "alice"), bob = join(north, "bob", "public"), carol = join(south, "carol");
    alice.send_line("this is history");
    alice.expect("SAY alice this is history");
    const auto from = bridge_up(broker, north, "north"), to = bridge_up(broker, south, "south");
    alice.send_line("/msg mqttlab a secret");
    alice.expect("MSG alice mqttlab a secret");
    bob.send_line("this is public");
    bob.expect("SAY bob this is public");
    alice.send_line("/me waves");
    alice.send_line("  héllo -- You are in public. == ready: " + std::string(3000, 'x'));
    carol.expect_none_until("SAY mqttlab [north] alice", "SAY mqttlab [north] * alice waves");
    carol.expect_next("SAY mqttlab [north] alice:   héllo -- You are in public. == ready: " + std::string(3000, 'x'));
}

TEST(Bridge, TakesNeitherCommandsNorOldMessagesFromTheBroker) {
    Broker broker;
    const Server south(with_lab);
    Peer carol = join(south, "carol");
    broker.publish("chatroom/lab/north", "alice: this was retained", true);
    const auto bridge = bridge_up(broker, south, "south");
    carol.expect("JOIN mqttlab");
    broker.publish("chatroom/lab/north", "/quit");
    broker.publish("chatroom/lab/north", "bob: hello\n/quit");
    broker.publish("chatroom/lab/no/such", "bob: hello");
    broker.publish("chatroom/lab/<b>", "bob: hello");
    broker.publish("chatroom/other/north", "bob: hello");
    broker.publish("chatroom/lab/north", "bob: the end");
    for (const char* line : {"/quit", "bob: hello", "bob: the end"})
        carol.expect_next("SAY mqttlab [north] " + std::string(line));
}

TEST(Bridge, EndsWhenItIsMovedToAnotherRoom) {
    Broker broker;
    const Server north(with_lab), south(with_lab);
    Peer bob = join(north, "bob", "public"), carol = join(south, "carol"), admin = admin_of(north);
    const auto from = bridge_up(broker, north, "north"), to = bridge_up(broker, south, "south");
    admin.send_line("/out mqttlab");
    bob.expect("JOIN mqttlab");
    from->wait_exit();
    carol.send_line("is anybody there?");
    to->wait_error("carol: is anybody there?");
    bob.expect_none_until("SAY mqttlab", "LEAVE mqttlab");
}

TEST(Bridge, EndsWhereThereIsNoSuchRoom) {
    Broker broker;
    const Server north;
    Peer bob = join(north, "bob", "public");
    Bridge bridge(broker, north, "north");
    bridge.wait_error("There is no room");
    bridge.wait_exit();
    bob.expect("LEAVE mqttlab");
}

TEST(Bridge, IsRefusedASecondTimeOnOneServer) {
    Broker broker;
    const Server north(with_lab);
    const auto first = bridge_up(broker, north, "north");
    Bridge second(broker, north, "north2");
    second.wait_error("mqttlab already");
    second.wait_exit();
    EXPECT_TRUE(first->running());
}

TEST(Bridge, GoesOnWhenTheBrokerIsStartedAnew) {
    Broker broker;
    const Server north(with_lab), south(with_lab);
    Peer alice = join(north, "alice"), carol = join(south, "carol");
    const auto from = bridge_up(broker, north, "north"), to = bridge_up(broker, south, "south");
    broker.stop();
    broker.run();
    broker.wait_for_bridges(2);
    alice.send_line("again");
    carol.expect("SAY mqttlab [north] alice: again");
}

TEST(Bridge, LeavesWhenItIsEnded) {
    Broker broker;
    const Server north(with_lab);
    Peer alice = join(north, "alice");
    for (const bool without_broker : {false, true}) {
        for (const int number : {SIGTERM, SIGINT}) {
            const auto bridge = bridge_up(broker, north, "north");
            alice.expect("JOIN mqttlab");
            if (without_broker) broker.stop();
            bridge->signal(number);
            bridge->wait_exit();
            alice.expect("LEAVE mqttlab");
            if (without_broker) broker.run();
        }
    }
}

TEST(Bridge, EndsWithItsServer) {
    Broker broker;
    std::unique_ptr<Bridge> bridge;
    {
        const Server north(with_lab);
        bridge = bridge_up(broker, north, "north");
    }
    bridge->wait_error("The server");
    bridge->wait_exit();
}

TEST(Bridge, EndsWithoutABroker) {
    program("mosquitto_sub");
    int nobody = 0;
    { nobody = Listener().port(); }
    const Server north(with_lab);
    Process bridge("/bin/sh", {.args = {"docs/bridge.sh", "north", "lab", "127.0.0.1", std::to_string(nobody),
                                        "127.0.0.1", std::to_string(north.port())},
                               .env = {"CHATROOM_CLIENT=" + client_path(), "LC_ALL=C.UTF-8"}});
    bridge.wait_error("refused");
    bridge.wait_exit();
}

}  // namespace
