// Fuzzes a whole server: up to four clients talk to it at once, each a conversation of lines that mean something and of
// bytes that mean nothing. The server runs in this process, started by its own main(): so the fuzzer sees which code a
// conversation leads to. What it sends must be by the protocol, and every connection must end.
//
// The fuzzer would wait most of the time for the hash of a password, and now and then for long for a busy disk: here
// the hash is a cheap one, and the files are in memory where the system has a place for that.
#define main program_main
#include "../../server.cpp"
#undef main

#include <cstring>
#include <sstream>

#include "fuzz.hpp"

extern "C" {
static char* cheap_hash(const char* password, const char* setting, char* result, std::size_t size) {
    std::size_t sum = 5381;
    for (const char* at = password; *at != 0; ++at) sum = sum * 33 + static_cast<unsigned char>(*at);
    const std::string_view all(setting);
    const std::string salt(all.substr(0, std::min(all.rfind('$') + 1, all.size())));
    std::snprintf(result, size, "%s%043zu", salt.c_str(), sum);
    return result;
}

char* crypt(const char* password, const char* setting) noexcept {
    static thread_local char result[512];
    return cheap_hash(password, setting, result, sizeof result);
}

#ifdef __GLIBC__
char* crypt_r(const char* password, const char* setting, crypt_data* data) noexcept {
    return cheap_hash(password, setting, data->output, sizeof data->output);
}
#endif
}

namespace {

using fuzz::Bytes;
using fuzz::require;

std::string directory;
std::string port;
std::atomic<bool> exiting = false;

// ---------------------------------------------------------------------------------------------------------------------
// The server

void remove_directory() {
    for (const char* file : {"/bans.txt", "/users.txt"}) std::filesystem::remove(directory + file);
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
}

void run_server() {
    std::string arguments[] = {"server",
                               "--port",
                               "0",
                               "--bind",
                               "127.0.0.1",
                               "--no-discovery",
                               "--rate",
                               "0",
                               "--idle",
                               "0",
                               "--max-per-ip",
                               "0",
                               "--bans",
                               directory + "/bans.txt",
                               "--users",
                               directory + "/users.txt",
                               "--rooms",
                               "lab"};
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    program_main(static_cast<int>(pointers.size()) - 1, pointers.data());
    if (exiting) return;
    std::fprintf(stderr, "the server has ended\n");
    std::_Exit(77);
}

// Reads the log, and finds the port in it.
void read_log(int log) {
    std::string text;
    std::array<char, 4096> bytes{};
    for (ssize_t count = 0; (count = ::read(log, bytes.data(), bytes.size())) > 0;) {
        if (!port.empty()) continue;
        text.append(bytes.data(), static_cast<std::size_t>(count));
        const std::size_t at = text.find("listening on port "), end = text.find("\nexit code");
        if (end == std::string::npos) continue;
        const Lock lock(chat.mutex);
        std::istringstream(text.substr(at + 18)) >> port;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The clients

const char* const lines[] = {
    "alice",
    "bob",
    "carol",
    "ALICE",
    "admin",
    "letmein",
    "green tea",
    "black coffee",
    "wrong",
    "",
    "hello",
    "/help",
    "/help msg",
    "/who",
    "/who all",
    "/who bob",
    "/rooms",
    "/time",
    "/quote",
    "/echo hello",
    "/me waves",
    "/msg alice hello",
    "/msg bob hello",
    "/msg server hello",
    "/reply hello",
    "/ignore alice",
    "/ignore bob",
    "/create den",
    "/create den 12345",
    "/join den",
    "/join den 12345",
    "/join den 00000",
    "/join 1",
    "/join 2",
    "/join lab",
    "/leave",
    "/quit",
    "/exit",
    "/kick alice",
    "/kick bob",
    "/topic news",
    "/topic",
    "/fire bob",
    "/out alice",
    "/ban carol",
    "/ban 10.1.0.0/16",
    "/ban ::1",
    "/unban carol",
    "/bans",
    "/block bob",
    "/unblock bob",
    "/reset",
    "/password",
    "/unregister bob",
    "/unregister alice",
    "/nonsense",
    "/msg",
    "// not a command",
};

const std::set<std::string_view> words = {"NICK",  "PASS", "NEWPASS", "REFUSE",  "BAN", "WELCOME", "ROOM",  "WHO",
                                          "PAST",  "SAY",  "ME",      "BLOCKED", "MSG", "JOIN",    "LEAVE", "OWNER",
                                          "ROOMS", "LIST", "ECHO",    "INFO",    "ERR", "BYE",     "TOPIC"};

// Makes a call again that a signal has interrupted: libFuzzer has an alarm every half minute.
auto uninterrupted(auto call) {
    auto result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
}

// One connection of a conversation, from an address of the conversation's own: limits count by the address.
class Talker {
   public:
    explicit Talker(in_addr_t address) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(address);
        bind(socket_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at);
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        at.sin_port = htons(static_cast<in_port_t>(std::stoi(port)));
        const auto call = [&] { return connect(socket_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at); };
        require(uninterrupted(call) == 0 || errno == EISCONN, "the server takes connections");
    }

    void send(std::string_view bytes) {
        for (const char c : bytes) letters_ += is_letter(c) ? fold({&c, 1}) : "";
        if (letters_.find("shutdown") != std::string::npos || letters_.find("close") != std::string::npos) return;
        if (!over_) ::send(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    }

    void read_some() {
        std::array<char, 16384> bytes{};
        for (ssize_t count = 0; (count = recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT)) > 0;) {
            take({bytes.data(), static_cast<std::size_t>(count)});
        }
    }

    void reset() {
        const linger at_once{1, 0};
        setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        socket_ = Fd();
        over_ = true;
    }

    void half_close() {
        if (!std::exchange(over_, true)) shutdown(socket_.get(), SHUT_WR);
    }

    // Reads to the end of the connection, which must come.
    void finish() {
        if (!socket_) return;
        half_close();
        std::array<char, 16384> bytes{};
        while (true) {
            pollfd readable{socket_.get(), POLLIN, 0};
            const int ready = uninterrupted([&] { return poll(&readable, 1, 30'000); });
            require(ready > 0, "a connection ends when its client has ended it");
            const ssize_t count = recv(socket_.get(), bytes.data(), bytes.size(), 0);
            if (count <= 0) break;
            take({bytes.data(), static_cast<std::size_t>(count)});
        }
    }

   private:
    void take(std::string_view bytes) {
        received_ += bytes;
        for (std::size_t end = 0; (end = received_.find('\n')) != std::string::npos; received_.erase(0, end + 1)) {
            const std::string_view line = std::string_view(received_).substr(0, end);
            require(line.size() <= max_server_line, "a line from the server has at most 16,384 bytes");
            require(words.contains(line.substr(0, line.find(' '))), "a line from the server begins with a word");
            require(clean(line) == line, "a line from the server is clean");
        }
    }

    Fd socket_;
    std::string received_, letters_;
    bool over_ = false;
};

void converse(Talker& talker, unsigned action, Bytes& bytes) {
    switch (action) {
        case 4: return talker.send(bytes.text(bytes.byte()));
        case 5: {
            const std::size_t count = bytes.byte() * 40;
            return talker.send(std::string(count, static_cast<char>(bytes.byte())) + "\n");
        }
        case 6: {
            const unsigned how = bytes.byte() % 4;
            return how == 0 ? talker.reset() : how == 1 ? talker.half_close() : talker.read_some();
        }
        default: return talker.send(lines[bytes.byte() % std::size(lines)] + std::string("\n"));
    }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*count*/, char*** /*arguments*/) {
    const std::filesystem::path memory = "/dev/shm";
    const bool exists = access(memory.c_str(), W_OK) == 0;
    std::string name = (exists ? memory : std::filesystem::temp_directory_path()) / "chatroom-fuzz-XXXXXX";
    require(mkdtemp(name.data()) != nullptr, "there is a directory for bans and accounts");
    directory = name;
    setenv("CHAT_ADMIN_PASSWORD", "letmein", 1);
    int ends[2];
    require(pipe(ends) == 0, "there is a pipe");
    dup2(ends[1], STDOUT_FILENO);
    close(ends[1]);
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    close(nothing);
    std::thread(read_log, ends[0]).detach();
    static std::thread server(run_server);
    while (true) {
        const Lock lock(chat.mutex);
        if (!port.empty()) break;
    }
    std::atexit([] {
        exiting = true;
        kill(getpid(), SIGTERM);
        server.join();
        remove_directory();
    });
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static unsigned number = 0;
    if (++number % 200 == 0) {  // or bans would gather, and nobody could log in
        std::ofstream(directory + "/bans.txt").close();
        std::ofstream(directory + "/users.txt").close();
    }
    Bytes bytes(data, size);
    std::list<Talker> talkers;
    std::array<Talker*, 4> by_number{};
    while (!bytes.empty()) {
        const unsigned byte = bytes.byte();
        Talker*& talker = by_number.at(byte % 4);
        if (talker == nullptr) {
            talkers.emplace_back((127U << 24U) + (1U << 16U) + number % 60'000 + 1);
            talker = &talkers.back();
        }
        converse(*talker, byte / 4 % 8, bytes);
    }
    for (Talker& talker : talkers) talker.half_close();
    for (Talker& talker : talkers) talker.finish();
    return 0;
}
