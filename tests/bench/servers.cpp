#include "servers.hpp"

#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include "poller.hpp"

#ifndef __linux__
extern char** environ;
#endif

namespace bench {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

// ---------------------------------------------------------------------------------------------------------
// The contenders. Their limits on floods and on connections are off, and they look up nothing about who connects.

const Protocol irc{Protocol::irc, false, "PRIVMSG #bench :", "\r\n"};

constexpr const char* inspircd_settings = R"(<server name="irc.bench" description="bench" network="bench" id="1BB">
<admin name="bench" nick="bench" email="bench@localhost">
<connect name="all" allow="*" timeout="60" pingfreq="600" hardsendq="1048576" softsendq="1048576" recvq="65536"
  threshold="1000000" commandrate="1000000000" fakelag="no" localmax="20000" globalmax="20000" limit="20000"
  maxconnwarn="no" resolvehostnames="no" useident="no">
<performance softlimit="20000" clonesonconnect="no" somaxconn="4096" netbuffersize="65534">
<options defaultmodes="nt">
)";

constexpr const char* ngircd_settings = R"(
Name = irc.bench
Info = bench
Listen = 127.0.0.1
MotdPhrase = bench
[Limits]
MaxConnections = 0
MaxConnectionsIP = 0
MaxPenaltyTime = 0
PingTimeout = 600
PongTimeout = 600
[Options]
DNS = no
Ident = no
PAM = no
SyslogFacility = none
)";

std::vector<std::string> inspircd(const fs::path& directory, int port) {
    std::ofstream(directory / "motd") << "bench\n";
    std::ofstream(directory / "conf") << inspircd_settings << "<bind address=\"127.0.0.1\" port=\"" << port
                                      << "\" type=\"clients\">\n<pid file=\"" << (directory / "pid").string()
                                      << "\">\n<files motd=\"" << (directory / "motd").string() << "\">\n";
    return {"inspircd", "--nofork", "--nolog", "--runasroot", "--config", directory / "conf"};
}

// (Started by root it becomes nobody, who must be able to read the file.)
std::vector<std::string> ngircd(const fs::path& directory, int port) {
    std::ofstream(directory / "conf") << "[Global]\nPorts = " << port << ngircd_settings;
    return {"ngircd", "-n", "-f", directory / "conf"};
}

std::vector<std::string> ncat(const fs::path& /*directory*/, int port) {
    return {"ncat", "--listen", "--chat", "--max-conns", "1000", "127.0.0.1", std::to_string(port)};
}

std::vector<Contender> all_contenders(const std::string& server, const std::string& limits) {
    const Protocol plain{};
    const auto chatroom = [server](const fs::path& directory, int /*port*/) -> std::vector<std::string> {
        return {server,
                "--port",
                "0",
                "--bind",
                "127.0.0.1",
                "--bans",
                directory / "bans.txt",
                "--rate",
                "0",
                "--max-per-ip",
                "0",
                "--max-clients",
                "12000",
                "--idle",
                "0"};
    };
    const auto limit = [limits](const std::string& kind) {
        return [=](const fs::path&, int) { return std::vector<std::string>{limits, kind}; };
    };
    return {{"Chatroom", {Protocol::chatroom}, 12000, chatroom, true, true},
            {"limit: gather", plain, 12000, limit("gather")},
            {"limit: forward", plain, 12000, limit("forward")},
            {"send under a lock", plain, 1000, limit("threads")},
            {"InspIRCd", irc, 12000, inspircd, false},
            {"ngIRCd", {Protocol::irc, false, irc.say, irc.end, 8}, 12000, ngircd, false},
            {"ncat --chat", {Protocol::greeted, false, "", "\n", 8}, 900, ncat, false}};
}

// path: a list of directories, "/bin:/usr/bin".
bool is_found(const std::string& program, const std::string& path) {
    if (program.find('/') != std::string::npos) return access(program.c_str(), X_OK) == 0;
    std::istringstream directories(path);
    for (std::string directory; std::getline(directories, directory, ':');) {
        if (access((fs::path(directory) / program).c_str(), X_OK) == 0) return true;
    }
    return false;
}

int free_port() {
    int port = 0;
    bind_loopback(port);
    return port;
}

// (It leaves politely: ncat ends if one whom it has accepted is gone before it has looked who that is.)
bool accepts(int port) {
    const Fd socket(::socket(AF_INET, SOCK_STREAM, 0));
    const sockaddr_in address = loopback(port);
    if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return false;
    const timeval patience{1, 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    shutdown(socket.get(), SHUT_WR);
    std::array<char, 1024> ignored{};
    while (recv(socket.get(), ignored.data(), ignored.size(), 0) > 0) {
    }
    return true;
}

// Returns the number in the line "listening on port N" of a server's output; 0 if it is not there yet.
int announced_port(const fs::path& output) {
    std::ifstream file(output);
    static constexpr std::string_view start = "listening on port ";
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with(start) && !file.eof()) return std::stoi(line.substr(start.size()));
    }
    return 0;
}

// Starts a program with its output in a file.
pid_t start(const std::vector<std::string>& command, const fs::path& output) {
    std::vector<char*> arguments(command.size() + 1);  // a null pointer ends them
    std::transform(command.begin(), command.end(), arguments.begin(),
                   [](const std::string& word) { return const_cast<char*>(word.c_str()); });
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    pid_t pid = -1;
    const int error = posix_spawnp(&pid, arguments[0], &files, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    if (error != 0) throw std::runtime_error(command[0] + ": " + error_text(error));
    return pid;
}

}  // namespace

std::vector<Contender> find_contenders(const std::string& server, const std::string& limits) {
    // Daemons are often in a directory that only root's PATH has.
    const char* known = std::getenv("PATH");
    const std::string path = std::string(known == nullptr ? "/usr/bin" : known) + ":/usr/sbin:/usr/local/sbin";
    setenv("PATH", path.c_str(), 1);
    std::vector<Contender> contenders = all_contenders(server, limits);
    std::erase_if(contenders, [&](const Contender& contender) {
        const std::string program = contender.command(fs::temp_directory_path() / "none", 0)[0];
        if (is_found(program, path)) return false;
        std::cerr << contender.name << " is left out: there is no program '" << program << "'.\n";
        return true;
    });
    return contenders;
}

// ---------------------------------------------------------------------------------------------------------
// A running server

Server::Server(const Contender& contender, const std::vector<std::string>& more_arguments) {
    std::string name = fs::temp_directory_path() / "bench-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) throw_errno("mkdtemp");
    directory_ = name;
    fs::permissions(directory_, fs::perms(0755));
    port_ = contender.announces_port ? 0 : free_port();
    std::vector<std::string> command = contender.command(directory_, port_);
    command.insert(command.end(), more_arguments.begin(), more_arguments.end());
    pid_ = start(command, directory_ / "output");
    wait_until_it_listens(contender);
}

Server::~Server() {
    if (pid_ > 0) {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    std::error_code ignored;
    fs::remove_all(directory_, ignored);
}

void Server::wait_until_it_listens(const Contender& contender) {
    for (int tries = 0; tries < 500; ++tries) {
        if (has_ended()) break;
        if (contender.announces_port) port_ = announced_port(directory_ / "output");
        if (contender.announces_port ? port_ != 0 : accepts(port_)) return;
        std::this_thread::sleep_for(20ms);
    }
    std::ostringstream output;
    output << std::ifstream(directory_ / "output").rdbuf();
    throw std::runtime_error(contender.name + " does not listen; it said:\n" + output.str());
}

double Server::cpu_seconds() const {
#ifdef __APPLE__
    return 0;
#else
    clockid_t clock{};
    timespec used{};
    if (clock_getcpuclockid(pid_, &clock) != 0 || clock_gettime(clock, &used) != 0) return 0;
    return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
#endif
}

double Server::resident_kib(bool peak) const {
    std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
    const std::string wanted = peak ? "VmHWM:" : "VmRSS:";
    for (std::string word; status >> word;) {
        double kib = 0;
        if (word == wanted && status >> kib) return kib;
    }
    return 0;
}

void Server::ask_to_end() const {
    if (pid_ > 0) kill(pid_, SIGTERM);  // kill() would take -1 for everybody
}

bool Server::has_ended() {
    if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
    return pid_ == -1;
}

}  // namespace bench
