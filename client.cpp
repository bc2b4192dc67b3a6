// client.cpp: the chat client. One thread, the reader, takes what the server sends to the screen; the other, the
// writer, takes what is typed to the server.
//
//   Client::read()          section 6   the reader: waits for the server, and shows each line that comes
//   PlainClient::write()    section 7   the writer: waits for the keyboard, and sends each line that is typed
//
// The words that lines from the server begin with are defined in docs/protocol.md.

#include <getopt.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/wait.h>
#include <termios.h>

#include <chrono>
#include <clocale>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <iomanip>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "common.hpp"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// ---------------------------------------------------------------------------------------------------------
// 1. The terminal
//
// Its settings belong to who started us, and are given back on every way out, a crash included. What signal handlers
// need is global, and what they call is async-signal-safe. Without a terminal, in a pipe, none of this does anything.

enum TerminalMode { as_found, typing_hidden };

termios terminal_as_found;                            // when its mode was changed
volatile std::sig_atomic_t terminal_mode = as_found;  // if it is another, the terminal has to be given back
volatile std::sig_atomic_t helper = 0;                // the process of --via, which must not outlive us

// Any thread, and signal handlers.
void set_terminal(TerminalMode mode) {
    if (mode == terminal_mode) return;
    if (terminal_mode == as_found && tcgetattr(STDIN_FILENO, &terminal_as_found) != 0) return;
    termios wanted = terminal_as_found;
    if (mode == typing_hidden) wanted.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    terminal_mode = mode;
    tcsetattr(STDIN_FILENO, TCSANOW, &wanted);
}

bool on_terminal() { return isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0; }

// Whatever ends us, the terminal is as it was; then the signal does what it always does.
void end_by_signal(int number) {
    set_terminal(as_found);
    if (helper > 0) kill(static_cast<pid_t>(helper), SIGTERM);
    raise(number);
}

void handle_signals() {
    struct sigaction action {};
    action.sa_handler = end_by_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_NODEFER;
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
        sigaction(number, &action, nullptr);
    }
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, nullptr);
}

// The standard input, line by line: a terminal's, or a pipe's.
class Keyboard {
   public:
    // Gives the next line; nothing at the end of the input, or when `stop` is set. Blocks until then.
    std::optional<Line> read_line(const Wakeup& stop) {
        while (true) {
            if (std::optional<Line> line = lines_.next()) return line;
            if (at_end_) return lines_.last();
            std::array<pollfd, 2> polled{{{STDIN_FILENO, POLLIN, 0}, {stop.fd(), POLLIN, 0}}};
            if (poll(polled.data(), polled.size(), -1) < 0) continue;
            if (polled[1].revents != 0) return std::nullopt;
            std::array<char, 2048> bytes{};
            const ssize_t count = ::read(STDIN_FILENO, bytes.data(), bytes.size());
            if (count > 0) lines_.add({bytes.data(), static_cast<std::size_t>(count)});
            at_end_ = count == 0 || (count < 0 && errno != EINTR);
        }
    }

    // Asks a question before there is a connection; an empty answer, or none, takes the other.
    std::string ask(const std::string& question, const std::string& otherwise) {
        std::cout << question << (otherwise.empty() ? "" : " [" + otherwise + "]") << ": " << std::flush;
        const std::optional<Line> answer = read_line(Wakeup());
        if (!answer && otherwise.empty()) throw std::runtime_error("the input ended before a server was chosen");
        const std::string text(answer ? trim(answer->text) : "");
        return text.empty() ? otherwise : text;
    }

   private:
    LineBuffer lines_{max_line};
    bool at_end_ = false;
};

// ---------------------------------------------------------------------------------------------------------
// 2. The width of text
//
// What a person takes for one character, a grapheme, may be many: e and an accent, a family of emoji with joiners, the
// two letters of a flag. On the screen and in the line that is typed they stay together.

constexpr char32_t joiner = 0x200D;

bool is_flag_letter(char32_t code) { return code >= 0x1F1E6 && code <= 0x1F1FF; }

// Gives the columns of a character by itself; 1 for what the locale does not know.
int columns_of(char32_t code) {
    const int columns = wcwidth(static_cast<wchar_t>(code));
    return columns < 0 ? 1 : columns;
}

// Accents, variation selectors, skin colours, and the tags of a flag change the character before them.
bool is_attached(char32_t code) {
    const bool skin = code >= 0x1F3FB && code <= 0x1F3FF;
    const bool tag = code >= 0xE0020 && code <= 0xE007F;
    return code >= 0x300 && (skin || tag || code == joiner || columns_of(code) == 0);
}

// Gives the bytes of the first grapheme of a text, which is not empty. Bounded, whatever the text is.
std::size_t grapheme(std::string_view text) {
    constexpr int most_characters = 16;
    constexpr char32_t first_symbol = 0x2190;  // joiners join nothing before it
    Character last = decode_utf8(text);
    std::size_t bytes = last.bytes;
    bool half_a_flag = is_flag_letter(last.code);
    for (int count = 1; bytes < text.size() && count < most_characters; ++count) {
        const Character next = decode_utf8(text.substr(bytes));
        const bool joined = last.code == joiner && next.code >= first_symbol;
        const bool flag = half_a_flag && is_flag_letter(next.code);
        if (!is_attached(next.code) && !joined && !flag) break;
        half_a_flag = false;
        bytes += next.bytes;
        last = next;
    }
    return bytes;
}

// Gives the columns of a grapheme: 1 or 2.
int grapheme_columns(std::string_view text) {
    const Character first = decode_utf8(text);
    const bool flag = is_flag_letter(first.code) && text.size() > first.bytes;
    const bool as_emoji = text.find("\xEF\xB8\x8F") != std::string_view::npos;  // U+FE0F
    return flag || as_emoji ? 2 : std::max(columns_of(first.code), 1);
}

int columns_of(std::string_view text) {
    int columns = 0;
    for (std::size_t bytes = 0; !text.empty(); text.remove_prefix(bytes)) {
        bytes = grapheme(text);
        columns += grapheme_columns(text.substr(0, bytes));
    }
    return columns;
}

// Gives text with spaces behind it, or cut off, so that it takes so many columns.
std::string padded(std::string_view text, int columns) {
    std::string result;
    for (std::size_t bytes = 0; !text.empty(); text.remove_prefix(bytes)) {
        bytes = grapheme(text);
        const int wide = grapheme_columns(text.substr(0, bytes));
        if (wide > columns) break;
        result += text.substr(0, bytes);
        columns -= wide;
    }
    return result.append(static_cast<std::size_t>(std::max(columns, 0)), ' ');
}

// ---------------------------------------------------------------------------------------------------------
// 3. Finding a server
//
// A question goes to everybody on the local networks (docs/protocol.md, "Discovery"). Anybody may answer it: what comes
// is a stranger's claim, and is checked, cleaned and bounded.

struct Address {
    std::string host, port;
};

// Understands HOST, HOST:PORT, V6 and [V6]:PORT. Throws a UsageError at a port that is none.
Address read_address(const std::string& text, const std::optional<std::string>& port = {}) {
    Address address{text, std::string(default_port)};
    const std::size_t bracket = text.starts_with('[') ? text.find(']') : std::string::npos;
    const std::size_t colon = text.rfind(':');
    if (bracket != std::string::npos) {
        address.host = text.substr(1, bracket - 1);
        if (bracket + 1 < text.size()) address.port = text.substr(std::min(bracket + 2, text.size()));
    } else if (colon != std::string::npos && colon == text.find(':')) {
        address = {text.substr(0, colon), text.substr(colon + 1)};
    }
    if (port) address.port = *port;
    if (!parse_number(address.port, 1, 65535)) throw UsageError("a port is a number from 1 to 65535");
    return address;
}

struct Found {
    Address address;
    std::string people, title;
    bool password = false;
};

constexpr std::size_t most_found = 64;

using Interfaces = std::unique_ptr<ifaddrs, decltype(&freeifaddrs)>;

Interfaces list_interfaces() {
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) throw_errno("getifaddrs");
    return {list, freeifaddrs};
}

// The sockets' calls know addresses of all families by this type.
sockaddr* generic(sockaddr_in& address) { return reinterpret_cast<sockaddr*>(&address); }

in_addr_t internet_address(const sockaddr* address) {
    return address != nullptr && address->sa_family == AF_INET
               ? reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr
               : INADDR_ANY;
}

void ask_everybody(const Fd& socket, const std::string& question, const ifaddrs* interfaces) {
    std::vector<in_addr_t> everybody{htonl(0x7FFFFFFF)};  // 127.255.255.255: all on this machine
    for (const ifaddrs* at = interfaces; at != nullptr; at = at->ifa_next) {
        if ((at->ifa_flags & IFF_BROADCAST) == 0 || internet_address(at->ifa_addr) == INADDR_ANY) continue;
        everybody.push_back(internet_address(at->ifa_broadaddr));
    }
    for (const in_addr_t address : everybody) {
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(discovery_port);
        to.sin_addr.s_addr = address;
        sendto(socket.get(), question.data(), question.size(), 0, generic(to), sizeof to);  // some networks refuse
    }
}

// Takes an answer apart, or gives nothing if it is none to our question.
std::optional<Found> read_answer(std::string_view answer, std::string_view nonce) {
    if (answer.size() > question_bytes || take_word(answer) != answer_word || take_word(answer) != nonce) return {};
    Found found;
    found.address.port = take_word(answer);
    found.people = take_word(answer);
    const std::string_view login = take_word(answer);
    found.password = login == "password";
    found.title = clean(answer);
    const bool right = parse_number(found.address.port, 1, 65535) && parse_number(found.people, 0, 1000000);
    return right && (found.password || login == "open") ? std::optional(found) : std::nullopt;
}

// A server on this machine answers on each of its networks: it is taken for one.
std::string sender_text(sockaddr_in& from, const ifaddrs* interfaces) {
    for (const ifaddrs* at = interfaces; at != nullptr; at = at->ifa_next) {
        if (internet_address(at->ifa_addr) == from.sin_addr.s_addr) return "127.0.0.1";
    }
    return address_text(generic(from), sizeof from);
}

void add_if_new(std::vector<Found>& all, const Found& found) {
    const bool known = std::any_of(all.begin(), all.end(), [&](const Found& other) {
        return other.address.host == found.address.host && other.address.port == found.address.port;
    });
    if (!known && all.size() < most_found) all.push_back(found);
}

// Takes in the answers that come until a time.
void collect_answers(const Fd& socket, std::string_view nonce, const ifaddrs* interfaces, Clock::time_point until,
                     std::vector<Found>& all) {
    while (Clock::now() < until) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
        pollfd polled{socket.get(), POLLIN, 0};
        if (poll(&polled, 1, static_cast<int>(left.count())) <= 0) continue;
        std::array<char, question_bytes + 1> bytes{};  // one more, to see that an answer is too long
        sockaddr_in from{};
        socklen_t length = sizeof from;
        const ssize_t count = recvfrom(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT, generic(from), &length);
        if (count <= 0) continue;
        std::optional<Found> found = read_answer({bytes.data(), static_cast<std::size_t>(count)}, nonce);
        if (!found) continue;
        found->address.host = sender_text(from, interfaces);
        add_if_new(all, *found);
    }
}

// Gives the servers that answer within a second. Throws if this cannot be asked at all.
std::vector<Found> find_servers() {
    const Interfaces interfaces = list_interfaces();
    const Fd socket(::socket(AF_INET, SOCK_DGRAM, 0));
    const int yes = 1;
    if (!socket || setsockopt(socket.get(), SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes) != 0) throw_errno("socket");
    std::random_device random;
    const std::string nonce = std::to_string(random()) + std::to_string(random());
    std::vector<Found> all;
    for (int round = 0; round < 2; ++round) {  // a datagram may be lost on its way
        ask_everybody(socket, make_question(nonce), interfaces.get());
        collect_answers(socket, nonce, interfaces.get(), Clock::now() + 500ms, all);
    }
    return all;
}

void print(const std::vector<Found>& all) {
    for (std::size_t i = 0; i < all.size(); ++i) {
        const Found& found = all[i];
        std::cout << std::setw(3) << i + 1 << "  " << padded(found.title, 30) << "  "
                  << padded(found.address.host + ':' + found.address.port, 21) << "  " << found.people << " there"
                  << (found.password ? ", password needed\n" : "\n");
    }
}

// Lets the person choose a server, or say where there is one.
Address choose_server(Keyboard& keyboard) {
    std::vector<Found> all;
    if (on_terminal()) {  // in a pipe nobody could look at the list, and answer it
        std::cout << "Looking for servers on the local network ..." << std::endl;
        all = find_servers();
        std::cout << (all.empty() ? "None has answered.\n" : "");
    }
    if (all.empty()) {
        const std::string host = keyboard.ask("Host", "127.0.0.1");
        return host.find(':') != std::string::npos
                   ? read_address(host)
                   : read_address(host, keyboard.ask("Port", std::string(default_port)));
    }
    print(all);
    while (true) {
        const std::string answer = keyboard.ask("Its number, or another HOST:PORT", all.size() == 1 ? "1" : "");
        const std::optional<long> number = parse_number(answer, 1, static_cast<long>(all.size()));
        if (number) return all[static_cast<std::size_t>(*number - 1)].address;
        if (!answer.empty() && !parse_number(answer, 0, LONG_MAX)) return read_address(answer);
    }
}

// ---------------------------------------------------------------------------------------------------------
// 4. The connection
//
// A TCP connection, or a program that was started to reach the server in its own way (--via): then its standard input
// and output are our socket's other end, and what it says on its standard error is told as well.

constexpr auto connect_limit = 5s;

// Where the server is, looked up once: whoever comes back does not have to wait for name servers.
struct Target {
    std::string name;  // for the person
    std::string via;   // a command; empty: the addresses
    AddressList addresses{nullptr, freeaddrinfo};
};

// Connects, and gives 0 or the error's number; ETIMEDOUT also if `stop` was set. Blocks for connect_limit at most.
int connect_within_limit(const Fd& socket, const addrinfo& to, const Wakeup& stop) {
    fcntl(socket.get(), F_SETFL, O_NONBLOCK);
    if (connect(socket.get(), to.ai_addr, to.ai_addrlen) != 0 && errno != EINPROGRESS) return errno;
    std::array<pollfd, 2> polled{{{socket.get(), POLLOUT, 0}, {stop.fd(), POLLIN, 0}}};
    const int limit = std::chrono::milliseconds(connect_limit).count();
    int ready = 0;
    do ready = poll(polled.data(), polled.size(), limit);
    while (ready < 0 && errno == EINTR);
    if (polled[0].revents == 0) return ETIMEDOUT;
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    fcntl(socket.get(), F_SETFL, 0);
    return error;
}

std::string connect_advice(int error) {
    if (error == ETIMEDOUT) return "no answer within 5 seconds: is the address right, and does a firewall let it in?";
    return error_text(error) + (error == ECONNREFUSED ? ": is a server running there?" : "");
}

// Tries the addresses in turn. Throws if none answers, with what was wrong with each.
Fd connect_to(const Target& target, const Wakeup& stop) {
    std::string problem = "connect to " + target.name + ":";
    for (const addrinfo* at = target.addresses.get(); at != nullptr; at = at->ai_next) {
        Fd socket(::socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol));
        const int error = socket ? connect_within_limit(socket, *at, stop) : errno;
        if (error == 0) return socket;
        const bool several = target.addresses->ai_next != nullptr;
        const std::string which = several ? address_text(at->ai_addr, at->ai_addrlen) + ": " : "";
        problem += (at == target.addresses.get() ? " " : "; ") + which + connect_advice(error);
    }
    throw std::runtime_error(problem);
}

// In the child, after fork(): becomes the command. What is called here is async-signal-safe.
[[noreturn]] void become(char* const* arguments, int socket, int errors, bool may_ask) {
    dup2(socket, STDIN_FILENO);
    dup2(socket, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    signal(SIGPIPE, SIG_DFL);
    if (!may_ask) setsid();  // without a terminal, where a question of its own would disturb the screen
    execv("/bin/sh", arguments);
    _exit(127);
}

class Connection {
   public:
    // Blocks until there is one. may_ask: a command may use the terminal, as ssh does to ask for a password. Throws.
    Connection(const Target& target, const Wakeup& stop, bool may_ask) {
        if (target.via.empty()) {
            socket_ = connect_to(target, stop);
        } else {
            start(target.via, may_ask);
        }
        const int yes = 1;  // so that the system finds out when the other side has vanished without a word
        setsockopt(socket_.get(), SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection() { end_helper(); }

    // Blocks until the system has taken the text. False: the connection is broken.
    [[nodiscard]] bool send_text(std::string_view text) const {
        while (!text.empty()) {
            const ssize_t sent = send(socket_.get(), text.data(), text.size(), 0);
            if (sent < 0 && errno != EINTR) return false;
            text.remove_prefix(sent < 0 ? 0 : static_cast<std::size_t>(sent));
        }
        return true;
    }

    // Gives the lines that have come, cleaned: the server is not trusted to have done it (promise 3). Nothing at the
    // end of the connection. Blocks until then. Only the reader.
    std::optional<std::vector<std::string>> receive() {
        std::vector<std::string> lines;
        while (lines.empty()) {
            std::array<pollfd, 2> polled{{{socket_.get(), POLLIN, 0}, {errors_.get(), POLLIN, 0}}};
            if (poll(polled.data(), polled.size(), -1) < 0) continue;
            if (polled[1].revents != 0 && !fill(errors_, told_)) errors_ = Fd();
            const bool over = polled[0].revents != 0 && !fill(socket_, inbox_);
            if (over) hear_last_words();
            while (const std::optional<Line> line = told_.next()) {
                if (!line->text.empty()) lines.push_back("INFO " + clean(line->text));
            }
            while (const std::optional<Line> line = inbox_.next()) {
                lines.push_back(line->too_long ? "ERR The server sent a line that is too long." : clean(line->text));
            }
            if (over && lines.empty()) return std::nullopt;
        }
        return lines;
    }

    // Any thread: the other's recv() or send() ends.
    void end() const { shutdown(socket_.get(), SHUT_RDWR); }

   private:
    // Adds what is there to be read. False at the end.
    static bool fill(const Fd& from, LineBuffer& lines) {
        std::array<char, 65536> bytes{};
        const ssize_t count = ::read(from.get(), bytes.data(), bytes.size());
        if (count > 0) lines.add({bytes.data(), static_cast<std::size_t>(count)});
        return count > 0 || (count < 0 && errno == EINTR);
    }

    void start(const std::string& command, bool may_ask) {
        std::array<int, 2> sockets{}, errors{};
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets.data()) != 0) throw_errno("socketpair");
        socket_ = Fd(sockets[0]);
        const Fd its_socket(sockets[1]);
        if (pipe(errors.data()) != 0) throw_errno("pipe");
        errors_ = Fd(errors[0]);
        const Fd its_errors(errors[1]);
        for (const int fd : {sockets[0], sockets[1], errors[0], errors[1]}) fcntl(fd, F_SETFD, FD_CLOEXEC);
        std::string shell = "sh", option = "-c", line = "exec " + command;
        const std::array<char*, 4> arguments{shell.data(), option.data(), line.data(), nullptr};
        helper_ = fork();
        if (helper_ < 0) throw_errno("fork");
        if (helper_ == 0) become(arguments.data(), its_socket.get(), its_errors.get(), may_ask);
        helper = static_cast<std::sig_atomic_t>(helper_);
    }

    // A command that has ended may have said why.
    void hear_last_words() {
        if (helper_ <= 0) return;
        pollfd polled{errors_.get(), POLLIN, 0};
        while (errors_ && poll(&polled, 1, 200) > 0 && fill(errors_, told_)) continue;
        const int status = end_helper();
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
            told_.add("\nThe command ended with status " + std::to_string(WEXITSTATUS(status)) + ".\n");
        }
    }

    // Ends the command, if it has not ended by itself, and gives its status.
    int end_helper() {
        int status = 0;
        if (helper_ <= 0) return status;
        end();
        bool gone = waitpid(helper_, &status, WNOHANG) != 0;
        if (!gone) kill(helper_, SIGTERM);
        for (int i = 0; i < 100 && !gone; ++i) {
            std::this_thread::sleep_for(10ms);
            gone = waitpid(helper_, &status, WNOHANG) != 0;
        }
        if (!gone && kill(helper_, SIGKILL) == 0) waitpid(helper_, &status, 0);
        helper = 0;
        helper_ = 0;
        return status;
    }

    Fd socket_, errors_;
    pid_t helper_ = 0;  // 0: there is none
    LineBuffer inbox_{max_server_line}, told_{max_line};
};

// ---------------------------------------------------------------------------------------------------------
// 5. What the server's words look like
//
// A line begins with the time and then with who speaks: "alice:" for what is said, "*" for /me, "alice -> bob:" in
// private; "--" and "!!" are the server's notices and refusals, and "==" is /echo. No name looks like these marks. So
// they are told apart without colours too.

enum class Style : unsigned char { plain, faint, error, whisper, mention, mark, bar, button, chosen, names };

// What is shown of a line, but for the time.
struct Entry {
    std::time_t time = 0;
    Style style = Style::plain;
    std::size_t name = 0;  // bytes of the text that are the speaker's name
    std::string text = {};
};

// Gives the time of day, and the date if it is not today's.
std::string time_shown(std::time_t time) {
    const char* day = "%Y-%m-%d";
    const bool today = local_time(time, day) == local_time(std::time(nullptr), day);
    return local_time(time, today ? "%H:%M" : "%Y-%m-%d %H:%M");
}

// Gives a time on the wire (utc_time()) as a time; 0 if it is none.
std::time_t wire_time(const std::string& text) {
    std::tm parts{};
    const char* end = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    return end == nullptr ? 0 : timegm(&parts);
}

struct Form {
    std::string_view word;
    std::size_t fields;
    std::string_view look;  // %1 to %5 are fields, %t is the text behind them
    Style style;
};

constexpr Form forms[] = {
    {"SAY", 1, "%1: %t", Style::plain},
    {"ME", 1, "* %1 %t", Style::plain},
    {"MSG", 2, "%1 -> %2: %t", Style::whisper},
    {"BLOCKED", 1, "(blocked) %1: %t", Style::faint},
    {"ECHO", 0, "== %t", Style::plain},
    {"ERR", 0, "!! %t", Style::error},
    {"REFUSE", 0, "!! %t", Style::error},
    {"BAN", 0, "!! %t", Style::error},
    {"JOIN", 1, "-- %1 %t", Style::faint},
    {"LEAVE", 1, "-- %1 %t", Style::faint},
    {"OWNER", 1, "-- %1 %t", Style::faint},
    {"ROOM", 3, "-- %t", Style::faint},
    {"WHO", 2, "-- %2 in %1: %t", Style::faint},
    {"ROOMS", 1, "-- %1 %t", Style::faint},
    {"LIST", 5, "-- %1 %2: %3 in it, made by %4 at %5, %t", Style::faint},
    {"BYE", 1, "-- %t", Style::faint},
    {"INFO", 0, "-- %t", Style::faint},
    {"WELCOME", 1, "-- %t", Style::faint},
    {"NICK", 0, "-- %t", Style::faint},
    {"PASS", 0, "-- %t", Style::faint},
    {"NEWPASS", 0, "-- %t", Style::faint},
    {"", 0, "-- %t", Style::faint},  // a word of a newer server
};

// A line from the server, taken apart. It views the line, which has to outlive it.
struct Message {
    explicit Message(std::string_view line) : past(line.starts_with("PAST ")), text(line) {
        if (past) {
            take_word(text);
            time = wire_time(std::string(take_word(text)));
        }
        const std::string_view whole = text;
        word = take_word(text);
        form = std::find_if(std::begin(forms), std::end(forms) - 1, [&](const Form& f) { return f.word == word; });
        if (form->word.empty()) text = whole;
        for (std::size_t i = 0; i < form->fields; ++i) fields.at(i) = take_word(text);
    }

    // Gives what it looks like to a person.
    [[nodiscard]] Entry entry() const {
        Entry entry{time, form->style, form->look.starts_with("%1") ? fields[0].size() : 0};
        for (std::size_t i = 0; i < form->look.size(); ++i) {
            if (form->look[i] != '%') {
                entry.text += form->look[i];
                continue;
            }
            const char which = form->look[++i];
            entry.text += which == 't' ? text : fields.at(static_cast<std::size_t>(which - '1'));
        }
        return entry;
    }

    bool past;
    std::time_t time = std::time(nullptr);
    std::string_view word, text;
    std::array<std::string_view, 5> fields = {};
    const Form* form = nullptr;
};

// ---------------------------------------------------------------------------------------------------------
// 6. The client: what both forms share
//
// It knows where it is: in which room, with whom, and what the server waits for. The reader keeps that up to date, and
// when the connection breaks it comes back. How lines are shown and typed is left to the two forms, plain and screen.

// What the line that is typed next answers.
enum class Question { none, name, password, new_password, repeated_password };

struct RoomListed {
    long number = 0, people = 0;
    std::string name, creator;
    std::time_t created = 0;
    bool code = false;  // is needed
};

struct Options {
    std::optional<std::string> name, host, port, via;
    bool plain = false, list = false;
    std::string color = "auto", bell = "mention";
};

class Client {
   public:
    Client(Target target, const Options& options) : target_(std::move(target)), name_to_send_(options.name) {
        server_ = std::make_shared<Connection>(target_, over_, true);
    }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    virtual ~Client() = default;

    // Blocks until the chat is over, and gives the exit status.
    int run() {
        std::thread reader(&Client::read, this);
        if (wait_until([this] { return heard_; })) write();
        reader.join();
        set_terminal(as_found);
        say_goodbye();
        return status_;
    }

   protected:
    // What the forms do in their own ways. The first two are called with the mutex held.
    virtual void show(const Message& message, Entry entry) = 0;
    virtual void changed() = 0;  // lines have been shown, or a question came: time to let the person see it
    virtual void write() = 0;    // the writer: blocks until the chat is over
    virtual void say_goodbye() {
        if (!why_.empty()) std::cerr << why_ << std::endl;
    }
    [[nodiscard]] virtual bool anybody_looks() const { return true; }

    // The writer: waits until something holds; false if the chat is over before.
    template <typename Condition>
    bool wait_until(Condition holds) {
        Lock lock(mutex_);
        happened_.wait(lock, [&] { return ended_ || holds(); });
        return !ended_;
    }

    // The writer: takes a line that the person has entered, to be sent by flush(). False: not now.
    bool submit(const Lock& lock, const std::string& text) {
        if (question_ == Question::none && !welcome_) return false;
        if (question_ >= Question::password && !take_password(lock, text)) return true;
        if (question_ == Question::none) leaving_ = same_name(trim(text), "/quit") || same_name(trim(text), "/exit");
        question_ = Question::none;
        (outgoing_ += text) += '\n';
        return true;
    }

    // The writer: sends what was submitted. Blocks while the server takes nothing, so without the mutex.
    void flush() {
        Lock lock(mutex_);
        const std::string text = std::exchange(outgoing_, "");
        const std::shared_ptr<Connection> server = server_;
        lock.unlock();
        if (!server->send_text(text)) server->end();
    }

    // Any thread: ends the chat from our side.
    void give_up(const Lock& /*held*/, const std::string& why) {
        if (!why.empty()) why_ = "client: " + why;
        leaving_ = true;
        ended_ = true;
        happened_.notify_all();
        over_.set();
        server_->end();
    }

    // Shows something of our own.
    void tell(const Lock& /*held*/, std::string_view line) {
        const Message message(line);
        show(message, message.entry());
    }

    const Target target_;
    Wakeup over_;  // set once, when the chat is over

    // All that follows is guarded by the mutex.
    std::mutex mutex_;
    std::condition_variable happened_;
    Question question_ = Question::none;
    bool welcome_ = false;                        // the login is complete, and the connection stands
    bool ended_ = false;                          // the chat is over
    std::string why_;                             // it is, if the server has not told why
    std::string farewell_;                        // what the server told
    std::string trouble_;                         // what is wrong with the connection now
    std::string name_;                            // ours, as the server has it
    std::string room_ = "public";                 // where we are
    std::string code_ = "-";                      // of that room
    std::string owner_;                           // of that room
    std::map<std::string, std::string> members_;  // of that room: folded name to name
    std::deque<std::string> speakers_;            // who spoke last comes first
    std::vector<RoomListed> rooms_;               // as listed last

   private:
    static constexpr std::size_t most_listed = 10000;  // members or rooms: a server could name a million
    static constexpr std::size_t most_speakers = 100;

    // ---- The reader

    void read() {
        do {
            const std::shared_ptr<Connection> server = server_;
            while (std::optional<std::vector<std::string>> lines = server->receive()) {
                const Lock lock(mutex_);
                for (const std::string& line : *lines) take(lock, line);
                heard_ = true;
                changed();
                happened_.notify_all();
                if (dismissed_ || !anybody_looks()) break;
            }
        } while (come_back());
        const Lock lock(mutex_);
        if (!dismissed_ && why_.empty()) why_ = "client: the connection was lost";
        give_up(lock, "");
    }

    void take(const Lock& lock, std::string_view line) {
        struct Act {
            std::string_view word;
            void (Client::*act)(const Lock&, const Message&);
        };
        static constexpr Act acts[] = {
            {"NICK", &Client::asked_name},
            {"PASS", &Client::asked_password},
            {"NEWPASS", &Client::asked_new},
            {"WELCOME", &Client::welcomed},
            {"ROOM", &Client::entered},
            {"WHO", &Client::named},
            {"OWNER", &Client::owned},
            {"JOIN", &Client::joined},
            {"LEAVE", &Client::left},
            {"SAY", &Client::said},
            {"ME", &Client::said},
            {"ROOMS", &Client::list_begins},
            {"LIST", &Client::listed},
            {"BYE", &Client::turned_away},
            {"REFUSE", &Client::turned_away},
            {"BAN", &Client::turned_away},
        };
        const Message message(line);
        if (dismissed_) return;
        show(message, message.entry());
        for (const Act& known : acts) {
            if (known.word == message.word && !message.past) (this->*known.act)(lock, message);
        }
    }

    // ---- The login

    // Passwords are kept in memory alone, to come back with.
    bool take_password(const Lock& lock, const std::string& text) {
        if (question_ == Question::new_password && on_terminal()) {
            question_ = Question::repeated_password;
            password_ = text;
            tell(lock, "INFO The same once more, please.");
            return false;
        }
        if (question_ == Question::repeated_password && text != password_) {
            question_ = Question::new_password;
            tell(lock, "ERR That was not the same. Once again: the new password, please.");
            return false;
        }
        password_ = text;
        return true;
    }

    void answer(const std::string& text) {
        if (!server_->send_text(text + '\n')) server_->end();
    }

    void asked_name(const Lock& lock, const Message& /*message*/) {
        if (name_to_send_ && !name_to_send_->empty()) {
            answer(std::exchange(*name_to_send_, ""));
        } else if (returning_) {  // the server has not yet noticed that we were gone
            server_->end();
        } else if (name_to_send_ && isatty(STDIN_FILENO) == 0) {  // what comes from a pipe is no name, but to be said
            give_up(lock, "the server did not take the name");
        } else {
            question_ = Question::name;
        }
    }

    void asked_password(const Lock& /*held*/, const Message& /*message*/) {
        if (returning_ && !password_to_send_.empty()) return answer(std::exchange(password_to_send_, ""));
        question_ = Question::password;
    }

    void asked_new(const Lock& /*held*/, const Message& /*message*/) { question_ = Question::new_password; }

    void welcomed(const Lock& /*held*/, const Message& message) {
        name_ = message.fields[0];
        welcome_ = true;
        wait_ = 1s;
        trouble_.clear();
        if (std::exchange(returning_, false) && !same_name(room_, "public")) {
            answer("/join " + room_ + (code_ == "-" ? "" : ' ' + code_));
        }
    }

    // ---- The room, who is in it, and the others

    void entered(const Lock& /*held*/, const Message& message) {
        room_ = message.fields[0];
        code_ = message.fields[1];
        owner_.clear();
        members_.clear();
    }

    void add_member(std::string_view name) {
        if (valid_name(name) && members_.size() < most_listed) members_[fold(name)] = name;
    }

    void named(const Lock& /*held*/, const Message& message) {
        if (!same_name(message.fields[0], room_)) return;
        for (std::string_view rest = message.text; !rest.empty();) add_member(take_word(rest));
    }

    void owned(const Lock& /*held*/, const Message& message) { owner_ = message.fields[0]; }
    void joined(const Lock& /*held*/, const Message& message) { add_member(message.fields[0]); }
    void left(const Lock& /*held*/, const Message& message) { members_.erase(fold(message.fields[0])); }

    void said(const Lock& /*held*/, const Message& message) {
        const std::string speaker(message.fields[0]);
        if (!valid_name(speaker) || (!speakers_.empty() && speakers_.front() == speaker)) return;
        speakers_.erase(std::remove(speakers_.begin(), speakers_.end(), speaker), speakers_.end());
        speakers_.push_front(speaker);
        if (speakers_.size() > most_speakers) speakers_.pop_back();
    }

    void list_begins(const Lock& /*held*/, const Message& message) {
        listing_.clear();
        to_be_listed_ = static_cast<std::size_t>(parse_number(message.fields[0], 0, most_listed).value_or(most_listed));
    }

    void listed(const Lock& /*held*/, const Message& message) {
        const auto number = [&](std::size_t i) { return parse_number(message.fields.at(i), 0, LONG_MAX).value_or(0); };
        listing_.push_back({number(0), number(2), std::string(message.fields[1]), std::string(message.fields[3]),
                            wire_time(std::string(message.fields[4])), message.text == "CODE"});
        if (listing_.size() < to_be_listed_) return;
        rooms_ = std::exchange(listing_, {});
        to_be_listed_ = most_listed;
    }

    // ---- The end, and coming back

    // Who was dropped for being slow may come back. Who was silent for too long may not: the limit would be none.
    void turned_away(const Lock& /*held*/, const Message& message) {
        const bool slow = message.word == "BYE" && message.fields[0] == "SLOW";
        farewell_ = message.text;
        dismissed_ = !slow;
        status_ = message.word == "BYE" && message.fields[0] == "QUIT" ? 0 : 1;
    }

    // After 1, 2, 4 ... 30 seconds. False: the chat is over. Else the next lines are those of a login.
    bool come_back() {
        constexpr auto longest_wait = 30s;
        Lock lock(mutex_);
        if (name_.empty() || dismissed_ || leaving_ || !on_terminal()) return false;
        welcome_ = false;
        returning_ = true;
        question_ = Question::none;
        for (std::string problem = "The connection was lost"; !ended_;) {
            const std::chrono::seconds wait = std::exchange(wait_, std::min(wait_ * 2, longest_wait));
            trouble_ = "trying again in " + std::to_string(wait.count()) + " s";
            if (wait < longest_wait) tell(lock, "ERR " + problem + "; " + trouble_ + ".");
            changed();
            happened_.wait_for(lock, wait, [this] { return ended_; });
            lock.unlock();
            problem = connect_again();
            lock.lock();
            if (problem.empty()) return !ended_;
        }
        return false;
    }

    // Says what went wrong, if anything did. Blocks for connect_limit at most, without the mutex.
    std::string connect_again() {
        try {
            auto server = std::make_shared<Connection>(target_, over_, false);
            const Lock lock(mutex_);
            server_ = std::move(server);
            name_to_send_ = name_;
            password_to_send_ = password_;
            outgoing_.clear();
            return "";
        } catch (const std::exception& error) {
            return error.what();
        }
    }

    // Guarded by the mutex.
    std::shared_ptr<Connection> server_;       // replaced by the reader alone
    std::string outgoing_;                     // lines, to be sent by flush()
    bool heard_ = false;                       // the server's first line is here
    bool dismissed_ = false;                   // the server has ended the chat for good
    bool leaving_ = false;                     // we have
    int status_ = 1;                           // what to exit with
    std::optional<std::string> name_to_send_;  // when asked: from --name, or to come back; empty once it was sent
    std::string password_, password_to_send_;  // likewise
    bool returning_ = false;                   // to a chat in which we were before
    std::chrono::seconds wait_ = 1s;           // before the next try to come back
    std::vector<RoomListed> listing_;          // of an answer that is not complete
    std::size_t to_be_listed_ = most_listed;   // how many there will be
};

// ---------------------------------------------------------------------------------------------------------
// 7. The plain form
//
// Lines in, lines out: on a terminal, and in pipes, where the next line is read only when it is the server's turn to
// take one. The end of the input means /quit.

class PlainClient : public Client {
   public:
    PlainClient(Target target, const Options& options, Keyboard& keyboard)
        : Client(std::move(target), options), keyboard_(keyboard) {}

   private:
    void show(const Message& /*message*/, Entry entry) override {
        std::cout << wrapped(time_shown(entry.time) + ' ' + entry.text, screen_width()) << '\n';
    }

    void changed() override {
        std::cout << std::flush;
        if (question_ >= Question::password) set_terminal(typing_hidden);
    }

    [[nodiscard]] bool anybody_looks() const override { return static_cast<bool>(std::cout); }

    void write() override {
        while (wait_until([this] { return welcome_ || question_ != Question::none; })) {
            const std::optional<Line> line = keyboard_.read_line(over_);
            Lock lock(mutex_);
            if (!line) return leave(lock);
            take(lock, *line);
            changed();
            lock.unlock();
            flush();
        }
    }

    void take(const Lock& lock, const Line& line) {
        if (terminal_mode == typing_hidden) std::cout << std::endl;
        set_terminal(as_found);
        if (line.too_long) {
            std::cerr << "client: that line has more than " << max_line << " bytes and was not sent\n";
        } else if (!submit(lock, line.text)) {
            tell(lock, "ERR There is no connection: that line was not sent.");
        }
    }

    void leave(Lock& lock) {
        if (ended_) return;
        if (!welcome_) return give_up(lock, "the input ended before the login was complete");
        submit(lock, "/quit");
        lock.unlock();
        flush();
    }

    Keyboard& keyboard_;
};

// ---------------------------------------------------------------------------------------------------------
// 8. Starting

constexpr const char* usage = R"( [OPTION]... [HOST [PORT] | HOST:PORT]
  --name NAME     log in under this name
  --via COMMAND   reach the server through a program's standard input and output: 'ssh -W localhost:12345 HOST'
  --list          list the servers on the local network
  --plain         lines in, lines out, without a screen
  --color WHEN    auto, always or never
  --bell WHEN     off; private: on a private message; mention: on one's own name too; all: whatever is said
  --help          show this
  --version       show the version
Without HOST it looks for servers on the local network, and asks.
)";

std::string one_of(const std::string& name, const std::string& given, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), given) != known.end()) return given;
    std::string all;
    for (const std::string& value : known) all += (all.empty() ? "" : value == known.back() ? " or " : ", ") + value;
    throw UsageError(name + " takes " + all + ", not '" + given + "'");
}

// Throws a UsageError at a wrong one; --help and --version answer and exit.
Options read_options(int argc, char** argv) {
    enum { name, via, list, plain, color, bell, help_text, version_text };
    static const option known[] = {{"name", required_argument, nullptr, name},
                                   {"via", required_argument, nullptr, via},
                                   {"list", no_argument, nullptr, list},
                                   {"plain", no_argument, nullptr, plain},
                                   {"color", required_argument, nullptr, color},
                                   {"bell", required_argument, nullptr, bell},
                                   {"help", no_argument, nullptr, help_text},
                                   {"version", no_argument, nullptr, version_text},
                                   {}};
    Options options;
    for (int found = 0; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
        switch (found) {
            case name: options.name = optarg; break;
            case via: options.via = optarg; break;
            case list: options.list = true; break;
            case plain: options.plain = true; break;
            case color: options.color = one_of("--color", optarg, {"auto", "always", "never"}); break;
            case bell: options.bell = one_of("--bell", optarg, {"off", "private", "mention", "all"}); break;
            case help_text: std::cout << "usage: " << argv[0] << usage; std::exit(0);
            case version_text: std::cout << "chatroom " << version << '\n'; std::exit(0);
            default: throw UsageError("");  // getopt_long() has said what is wrong
        }
    }
    if (options.name && !valid_name(*options.name)) {
        throw UsageError("a name is 3 to 12 letters and digits, a letter first");
    }
    if (optind < argc) options.host = argv[optind++];
    if (optind < argc) options.port = argv[optind++];
    if (optind < argc) throw UsageError("there is no use for '" + std::string(argv[optind]) + "'");
    if (options.via && options.host) throw UsageError("with --via it is the command that knows the host");
    if (options.host) read_address(*options.host, options.port);
    return options;
}

int list_servers() {
    const std::vector<Found> all = find_servers();
    print(all);
    if (all.empty()) std::cerr << "No server has answered.\n";
    return all.empty() ? 1 : 0;
}

Target find_target(const Options& options, Keyboard& keyboard) {
    if (options.via) return {*options.via, *options.via};
    const Address address = options.host ? read_address(*options.host, options.port) : choose_server(keyboard);
    return {address.host + " port " + address.port, "", resolve(address.host, address.port)};
}

int run(const Options& options) {
    handle_signals();
    if (options.list) return list_servers();
    Keyboard keyboard;
    return PlainClient(find_target(options, keyboard), options, keyboard).run();
}

}  // namespace

int main(int argc, char** argv) {
    std::setlocale(LC_CTYPE, "");
    try {
        return run(read_options(argc, argv));
    } catch (const UsageError& error) {
        std::cerr << argv[0] << ": " << error.what() << (*error.what() == 0 ? "" : "; ")
                  << "--help shows the options\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
