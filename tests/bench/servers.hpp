// The servers that are compared: how each is started, how one logs in to it and speaks, and what it uses.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace bench {

// What a client has to say to a kind of server.
struct Protocol {
    enum Login { greeted, chatroom, irc };  // greeted: one is in as soon as any line comes
    Login login = greeted;
    bool echoes = true;      // who says something gets it, too
    std::string say = {};    // goes before a text
    std::string end = "\n";  // goes behind it
    int at_once = 1000;      // logins: where the queue of the listener is short, more would wait for seconds
};

struct Contender {
    std::string name;
    Protocol protocol;
    int max_clients;  // beyond which it is not tried
    // Returns the command that starts it, in a directory of its own where files can be put. It listens on the port, or,
    // if that is 0, on any, and prints which.
    std::function<std::vector<std::string>(const std::filesystem::path& directory, int port)> command;
    bool announces_port = true;
    bool ours = false;
};

// Returns those that are on this machine, and says on standard error which are not. `server` and `limits` are the paths
// of our own.
std::vector<Contender> find_contenders(const std::string& server, const std::string& limits);

// A running server. Throws std::runtime_error if it does not listen within some seconds.
class Server {
   public:
    Server(const Contender& contender, const std::vector<std::string>& more_arguments);
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    ~Server();  // kills it

    [[nodiscard]] int port() const { return port_; }
    [[nodiscard]] double cpu_seconds() const;            // used so far, by all its threads
    [[nodiscard]] double resident_kib(bool peak) const;  // now, or at most so far: only on Linux, else 0
    void ask_to_end() const;
    bool has_ended();  // never blocks

   private:
    void wait_until_it_listens(const Contender& contender);

    std::filesystem::path directory_;
    int port_ = 0;
    pid_t pid_ = -1;  // -1: it has ended
};

}  // namespace bench
