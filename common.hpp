// common.hpp: what both programs need: errors, descriptors, text, lines, words, addresses, discovery, starting.
//
// Up to section 7 no function keeps state of its own: any thread may call it. Only resolve() and wait_for() block.

#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <clocale>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <ctime>
#include <cwchar>
#include <deque>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

inline constexpr std::string_view version = "1.0";
inline constexpr std::string_view default_port = "12345";
inline constexpr std::size_t max_line = 4096;          // bytes of a line to the server, without its end
inline constexpr std::size_t max_server_line = 16384;  // the same from the server: see clean()

// ---- 1. Errors ----------------------------------------------------------------------------------------
// There are two policies: at start an error ends the program; later it ends the one client that it happened to.

// Returns an errno as its symbol and its text: "EADDRINUSE (Address already in use)".
inline std::string error_text(int number) {
#define SYMBOL(name) std::pair(name, #name)
    static constexpr std::pair<int, std::string_view> symbols[] = {
        SYMBOL(EACCES),       SYMBOL(EADDRINUSE), SYMBOL(EADDRNOTAVAIL), SYMBOL(EAGAIN),      SYMBOL(ECONNABORTED),
        SYMBOL(ECONNREFUSED), SYMBOL(ECONNRESET), SYMBOL(EDQUOT),        SYMBOL(EFBIG),       SYMBOL(EHOSTUNREACH),
        SYMBOL(EIO),          SYMBOL(EISDIR),     SYMBOL(EMFILE),        SYMBOL(ENETUNREACH), SYMBOL(ENFILE),
        SYMBOL(ENOBUFS),      SYMBOL(ENOENT),     SYMBOL(ENOMEM),        SYMBOL(ENOSPC),      SYMBOL(ENOTDIR),
        SYMBOL(EPERM),        SYMBOL(EPIPE),      SYMBOL(EROFS),         SYMBOL(ETIMEDOUT),
    };
#undef SYMBOL
    std::string symbol = "errno " + std::to_string(number);
    for (const auto& [known, name] : symbols) {
        if (known == number) symbol = name;
    }
    return symbol + " (" + std::generic_category().message(number) + ")";
}

// Throws errno as "CALL: SYMBOL (text)", followed by what the user can do about it, if anything.
[[noreturn]] inline void throw_errno(const std::string& call, const std::string& advice = "") {
    throw std::runtime_error(call + ": " + error_text(errno) + (advice.empty() ? "" : ": " + advice));
}

// ---- 2. Descriptors -----------------------------------------------------------------------------------

// Owns a file descriptor, and closes it.
class Fd {
   public:
    explicit Fd(int fd = -1) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd() {
        if (fd_ >= 0) ::close(fd_);
    }

    [[nodiscard]] int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

   private:
    int fd_;
};

// A pipe that threads watch with poll() beside other descriptors, to be woken: readable from set() until clear().
class Wakeup {
   public:
    // Throws if there is no descriptor left.
    Wakeup() {
        int ends[2];
        if (pipe(ends) != 0) throw_errno("pipe");
        read_end_ = Fd(ends[0]);
        write_end_ = Fd(ends[1]);
        for (const int end : ends) {
            fcntl(end, F_SETFL, O_NONBLOCK);
            fcntl(end, F_SETFD, FD_CLOEXEC);
        }
    }

    [[nodiscard]] int fd() const { return read_end_.get(); }

    // Also from a signal handler: write() is async-signal-safe, and a full pipe is awake already.
    void set() const noexcept {
        const int saved = errno;
        [[maybe_unused]] const ssize_t written = write(write_end_.get(), "", 1);
        errno = saved;
    }

    void clear() const {
        std::array<char, 64> bytes{};
        while (read(fd(), bytes.data(), bytes.size()) > 0) continue;
    }

   private:
    Fd read_end_, write_end_;
};

// Waits until a descriptor is ready (POLLIN, POLLOUT) or has failed. False: `stop` was set, or `limit` ms are over.
inline bool wait_for(int fd, short events, const Wakeup& stop, int limit = -1) {
    std::array<pollfd, 2> polled{{{fd, events, 0}, {stop.fd(), POLLIN, 0}}};
    while (poll(polled.data(), polled.size(), limit) < 0 && errno == EINTR) continue;
    return polled[0].revents != 0 && polled[1].revents == 0;
}

// Has a signal call a function, which interrupts system calls without SA_RESTART among the flags; see sigaction(2).
inline void catch_signal(int number, void (*handler)(int), int flags = 0) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(number, &action, nullptr);
}

// Names the calling thread, in at most 15 characters, so that `top -H`, gdb and strace show which one it is.
inline void name_thread(const char* name) {
#ifdef __APPLE__
    pthread_setname_np(name);
#else
    pthread_setname_np(pthread_self(), std::string(name).substr(0, 15).c_str());
#endif
}

// ---- 3. Text ------------------------------------------------------------------------------------------

struct Character {
    char32_t code = 0xFFFD;  // what a byte that is not UTF-8 counts as
    std::size_t bytes = 1;
    bool valid = false;
};

// Decodes the first character of text, which is not empty (RFC 3629). A bad byte counts by itself.
inline Character decode_utf8(std::string_view text) {
    static constexpr std::array<char32_t, 5> smallest = {0, 0, 0x80, 0x800, 0x10000};
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    const char32_t first = byte(0);
    if (first < 0x80) return {first, 1, true};
    if (first < 0xC2 || first > 0xF4) return {};
    const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    char32_t code = first & (0x7FU >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0U) != 0x80) return {};
        code = code << 6U | (byte(i) & 0x3FU);
    }
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (code < smallest.at(length) || code > 0x10FFFF || surrogate) return {};
    return {code, length, true};
}

inline std::size_t count_characters(std::string_view text) {
    std::size_t count = 0;
    for (; !text.empty(); text.remove_prefix(decode_utf8(text).bytes)) ++count;
    return count;
}

constexpr std::size_t min_password = 8;    // characters
constexpr std::size_t max_password = 256;  // bytes: crypt(3) has a limit of its own not far above

// Returns what is wrong with a new password; "" if nothing is.
inline const char* password_problem(std::string_view text) {
    const bool fits = count_characters(text) >= min_password && text.size() <= max_password;
    return fits ? "" : "A password has at least 8 characters, and at most 256 bytes.";
}

// Returns whether a character could move the cursor, end a line, turn the reading order or hide: controls, separators,
// bidirectional and invisible format characters, but not the joiners and variation selectors, which scripts need.
inline bool is_harmful(char32_t code) {
    static constexpr std::pair<char32_t, char32_t> ranges[] = {
        {0x00, 0x1F},     {0x7F, 0x9F},       {0xAD, 0xAD},       {0x61C, 0x61C},     {0x180E, 0x180E},
        {0x200B, 0x200B}, {0x200E, 0x200F},   {0x2028, 0x202E},   {0x2060, 0x206F},   {0xFEFF, 0xFEFF},
        {0xFFF0, 0xFFFB}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE00FF},
    };
    return std::any_of(std::begin(ranges), std::end(ranges),
                       [=](auto range) { return range.first <= code && code <= range.second; });
}

// Returns how many bytes of text, which is not empty, are a telnet command at its start (RFC 854).
inline std::size_t telnet_command(std::string_view text) {
    const auto command = static_cast<unsigned char>(text.size() > 1 ? text[1] : '\0');
    if (text[0] != '\xFF' || command < 0xF0 || command == 0xFF) return 0;
    if (command == 0xFA) return std::min(text.find("\xFF\xF0"), text.size() - 2) + 2;  // to IAC SE, or the end
    return std::min<std::size_t>(command > 0xFA ? 3 : 2, text.size());                 // the upper ones name an option
}

// Returns a line as it may be shown on any screen and written to any file (promise 3): tabs become spaces, telnet's
// commands go, and U+FFFD is put for harmful characters and bad bytes, which makes it three times as long at most.
inline std::string clean(std::string_view text) {
    constexpr char32_t black_flag = 0x1F3F4;  // the tags after it name a region: Scotland, say
    std::string result;
    result.reserve(text.size());
    std::size_t bytes = 0;  // of what comes next
    for (bool in_flag = false; !text.empty(); text.remove_prefix(bytes)) {
        bytes = telnet_command(text);
        if (bytes > 0) continue;
        const Character next = decode_utf8(text);
        bytes = next.bytes;
        const bool flag_tag = in_flag && next.code >= 0xE0020 && next.code <= 0xE007F;
        in_flag = flag_tag || next.code == black_flag;
        const bool good = next.valid && (flag_tag || !is_harmful(next.code));
        const std::string_view replacement = next.code == '\t' ? " " : "\xEF\xBF\xBD";  // U+FFFD
        result += good ? text.substr(0, bytes) : replacement;
    }
    return result;
}

// Returns the columns of the terminal that the standard output goes to, 0 if it is none.
inline std::size_t screen_width() {
    winsize size{};
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

// Returns lines as rows for a screen of so many columns (0: as they are), broken at spaces, or within a long word. All
// but a line's first row are indented: what is far behind in a long line cannot pass for another one (promise 3).
inline std::string wrapped(std::string_view lines, std::size_t columns) {
    constexpr std::string_view indent = "        ";
    if (columns < indent.size() + 2) return std::string(lines);
    std::string text;
    std::size_t column = 0, word = 0, word_column = 0;  // where the row's last word begins in text; 0: break nowhere
    for (Character next; !lines.empty(); lines.remove_prefix(next.bytes)) {
        next = decode_utf8(lines);
        const int known = wcwidth(static_cast<wchar_t>(next.code));
        const std::size_t width = known < 0 ? 2 : static_cast<std::size_t>(known);  // unknown: it may be two
        if (next.code != '\n' && column + width > columns) {
            if (word == 0 || next.code == ' ') word = text.size(), word_column = column;
            text.insert(word, '\n' + std::string(indent));
            column -= word_column - indent.size();
            word = 0;
            if (next.code == ' ') continue;
        }
        text += lines.substr(0, next.bytes);
        column += width;
        if (next.code == '\n') column = word = 0;
        if (next.code == ' ' && column > indent.size() + 1) word = text.size(), word_column = column;
    }
    return text;
}

// ---- 4. Lines -----------------------------------------------------------------------------------------
// TCP carries a stream: one recv() may bring half a line, or five hundred. Here they become lines again.

struct Line {
    std::string text;       // without its end
    bool too_long = false;  // then text is empty, and what is left of the line will be thrown away
};

// One thread alone uses a LineBuffer.
class LineBuffer {
   public:
    // limit: the most bytes a line may have, without its end. About that much is kept, however long a line is.
    explicit LineBuffer(std::size_t limit) : limit_(limit) {}

    void add(std::string_view bytes) { bytes_ += bytes; }

    // Returns the next line, or nothing until more bytes are added.
    std::optional<Line> next() {
        while (true) {
            const std::size_t end = bytes_.find('\n', searched_);
            if (end == std::string::npos) return partial();
            std::string line = bytes_.substr(0, end);
            bytes_.erase(0, end + 1);
            searched_ = 0;
            if (line.ends_with('\r')) line.pop_back();
            if (std::exchange(discarding_, false)) continue;
            return line.size() > limit_ ? Line{"", true} : Line{line};
        }
    }

    // At the end of the stream: returns what came after the last line's end, if anything.
    std::optional<Line> last() {
        if (bytes_.empty()) return std::nullopt;
        bytes_ += '\n';
        return next();
    }

   private:
    // Tells of a line that is too long as soon as that is certain, and begins to throw it away.
    std::optional<Line> partial() {
        searched_ = bytes_.size();
        const bool too_long = searched_ > limit_ + 1;  // the one more could be a '\r'
        if (!too_long && !discarding_) return std::nullopt;
        bytes_.clear();
        searched_ = 0;
        if (std::exchange(discarding_, true)) return std::nullopt;
        return Line{"", true};
    }

    std::size_t limit_;
    std::string bytes_;         // received, from the start of the next line on
    std::size_t searched_ = 0;  // bytes of it that are known to hold no '\n'
    bool discarding_ = false;   // the line that is coming in was too long
};

// ---- 5. Words -----------------------------------------------------------------------------------------

// Returns text without the spaces around it.
inline std::string_view trim(std::string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r"), text.size()));
    return text.substr(0, text.find_last_not_of(" \t\r") + 1);
}

// Takes the first word off text, which is left with what follows the one space behind it.
inline std::string_view take_word(std::string_view& text) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(word.size() + 1, text.size()));
    return word;
}

inline int count_words(std::string_view text) {
    int count = 0;
    while (!text.empty()) count += take_word(text).empty() ? 0 : 1;
    return count;
}

// Returns text as a whole number from low to high, or nothing.
inline std::optional<long> parse_number(std::string_view text, long low, long high) {
    long number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    return whole && low <= number && number <= high ? std::optional(number) : std::nullopt;
}

// ASCII alone, and whatever the locale is: unlike isalpha() and its like.
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Returns a name as it is compared: without regard to case.
inline std::string fold(std::string_view name) {
    std::string folded(name);
    for (char& c : folded) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return folded;
}

inline bool same_name(std::string_view a, std::string_view b) { return fold(a) == fold(b); }

// Returns whether a name of a person or a room has the right form: 3 to 12 letters and digits, a letter first.
inline bool valid_name(std::string_view name) {
    return name.size() >= 3 && name.size() <= 12 && is_letter(name[0]) &&
           std::all_of(name.begin(), name.end(), [](char c) { return is_letter(c) || is_digit(c); });
}

// Returns a time in the zone that the system is set to, in a strftime(3) format, of at most 63 bytes as a whole.
inline std::string local_time(std::time_t time, const char* format) {
    std::tm parts{};
    localtime_r(&time, &parts);
    std::array<char, 64> text{};
    return {text.data(), strftime(text.data(), text.size(), format, &parts)};
}

// Returns a time as on the wire, in UTC: "2026-11-20T14:02:05Z".
inline std::string utc_time(std::time_t time) {
    std::tm parts{};
    gmtime_r(&time, &parts);
    std::array<char, 32> text{};
    return {text.data(), strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

// ---- 6. Addresses -------------------------------------------------------------------------------------

// Returns an address or a network ("10.1.0.0/16") as it is always written, with 0 for what does not count, or "".
inline std::string normal_address(const std::string& text) {
    const std::size_t slash = std::min(text.find('/'), text.size());
    std::array<unsigned char, sizeof(in6_addr)> binary{};
    std::array<char, INET6_ADDRSTRLEN> normal{};
    for (const int family : {AF_INET, AF_INET6}) {
        if (inet_pton(family, text.substr(0, slash).c_str(), binary.data()) != 1) continue;
        const long size = family == AF_INET ? 32 : 128;
        const auto bits = slash == text.size() ? size : parse_number(std::string_view(text).substr(slash + 1), 0, size);
        if (!bits) break;
        for (long i = *bits; i < size; ++i) {
            unsigned char& byte = binary.at(static_cast<std::size_t>(i / 8));
            byte = static_cast<unsigned char>(byte & ~(0x80U >> i % 8));
        }
        const std::string address = inet_ntop(family, binary.data(), normal.data(), INET6_ADDRSTRLEN);
        const bool is_mapped = address.starts_with("::ffff:") && address.find('.') != std::string::npos && *bits >= 96;
        if (is_mapped) return normal_address(address.substr(7) + '/' + std::to_string(*bits - 96));  // IPv4 in IPv6
        return *bits == size ? address : address + '/' + std::to_string(*bits);
    }
    return "";
}

// Returns what counts as one place: the address, or for IPv6 its /64, which one machine may use (RFC 4291, 2.5.4).
inline std::string network_of(const std::string& address) {
    return address.find(':') == std::string::npos ? address : normal_address(address + "/64");
}

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// Looks up a host's TCP addresses; an empty host is every interface. Throws if it has none. May block: getaddrinfo(3).
inline AddressList resolve(const std::string& host, const std::string& port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = host.empty() ? AI_PASSIVE : 0;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
    if (error == EAI_SYSTEM) throw_errno("getaddrinfo " + host);
    if (error != 0) throw std::runtime_error("getaddrinfo " + host + ": " + gai_strerror(error));
    return {found, freeaddrinfo};
}

inline void set_option(const Fd& socket, int level, int option, int value) {
    setsockopt(socket.get(), level, option, &value, sizeof value);
}

// Has recv() fail about a minute after the peer has vanished, its cable pulled. The names differ: tcp(7), tcp(4).
inline void watch_for_vanishing(const Fd& socket) {
#ifndef TCP_KEEPIDLE
#define TCP_KEEPIDLE TCP_KEEPALIVE
#endif
    set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);  // asks, when nothing is on its way
    set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, 3);
#ifdef TCP_USER_TIMEOUT
    set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, 60 * 1000);  // when something is, and is not acknowledged
#elif defined(TCP_RXT_CONNDROPTIME)
    set_option(socket, IPPROTO_TCP, TCP_RXT_CONNDROPTIME, 60);
#endif
}

// The sockets' calls know addresses of all families by this type.
inline sockaddr* generic(auto& address) { return reinterpret_cast<sockaddr*>(&address); }

// Returns a socket's address in numbers, without port or zone: "192.168.1.7", "fe80::1".
inline std::string address_text(const sockaddr* address, socklen_t length) {
    std::array<char, NI_MAXHOST> host{};
    const int error = getnameinfo(address, length, host.data(), NI_MAXHOST, nullptr, 0, NI_NUMERICHOST);
    const std::string_view text = error == 0 ? host.data() : "?";
    return std::string(text.substr(0, text.find('%')));
}

// ---- 7. Discovery -------------------------------------------------------------------------------------
// A datagram to everybody asks for servers; an answer is not longer, so nobody is flooded by asking in their name.

inline constexpr in_port_t discovery_port = 12345;  // UDP, whatever TCP port a server listens on
inline constexpr std::string_view question_word = "CHATROOM?";
inline constexpr std::string_view answer_word = "CHATROOM!";
inline constexpr std::size_t question_bytes = 256;  // what is asked with is padded to

// Returns a question; nonce is a word that the answer has to repeat.
inline std::string make_question(std::string_view nonce) {
    std::string question = std::string(question_word) + ' ' + std::string(nonce) + ' ';
    question.resize(question_bytes, ' ');
    return question;
}

// Returns the datagram that has come, or "", and sets whose it is. One byte more is read, to see that it is too long.
inline std::string receive_datagram(const Fd& socket, sockaddr_in& from) {
    std::array<char, question_bytes + 1> bytes{};
    socklen_t length = sizeof from;
    const ssize_t count = recvfrom(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT, generic(from), &length);
    return {bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0))};
}

// ---- 8. Starting --------------------------------------------------------------------------------------
// How both programs read their options, and what becomes of an exception that ends one. For main(), before any thread.

using UsageError = std::invalid_argument;  // the command line is wrong; an empty text: that has been told

inline std::string program_name;  // by which it was started, for messages

struct KnownOption {
    const char* name;           // "port"
    int argument;               // required_argument or no_argument
    std::function<void()> set;  // finds the option's argument in optarg; throws a UsageError if it is wrong
};

// Sets the options that are given; --help and --version are answered, and end the program. optind is then the index of
// what stands behind the options. Throws a UsageError. See getopt_long(3).
inline void read_command_line(int argc, char** argv, const std::string& title, const std::string& usage,
                              std::vector<KnownOption> known) {
    const auto answer = [](const std::string& text) {
        if (!(std::cout << text << std::flush)) throw_errno("write");
        std::exit(0);
    };
    known.push_back({"help", no_argument, [&] { answer("usage: " + program_name + usage); }});
    known.push_back({"version", no_argument, [&] { answer(title + ' ' + std::string(version) + '\n'); }});
    constexpr int first = 256;                    // each has a number of its own, which is no character
    std::vector<option> names(known.size() + 1);  // the last one is all zero
    for (std::size_t i = 0; i < known.size(); ++i)
        names[i] = {known[i].name, known[i].argument, nullptr, first + static_cast<int>(i)};
    for (int found = 0; (found = getopt_long(argc, argv, "", names.data(), nullptr)) != -1;) {
        if (found < first) throw UsageError("");  // getopt_long() has told what is wrong
        known[static_cast<std::size_t>(found - first)].set();
    }
}

// For main(): runs a program, and returns its status: 2 if it throws a UsageError, 1 at any other exception.
inline int run_program(const char* path, const std::function<int()>& run) {
    program_name = std::string_view(path).substr(std::string_view(path).rfind('/') + 1);
    int opened = 0;  // a socket or a pipe of ours must not take the place of a standard descriptor that was closed
    while (opened >= 0 && opened <= STDERR_FILENO) opened = open("/dev/null", O_RDONLY);
    if (opened >= 0) close(opened);
    std::setlocale(LC_CTYPE, "");  // for the width of characters: wrapped()
    const auto fail = [](const std::string& problem, int status) {
        std::cerr << program_name << ": " << problem << '\n';
        return status;
    };
    try {
        return run();
    } catch (const UsageError& error) {
        const std::string problem = error.what();
        return fail(problem + (problem.empty() ? "" : "; ") + "--help shows the options", 2);
    } catch (const std::system_error& error) {  // of std::thread
        return fail("pthread_create: " + error_text(error.code().value()), 1);
    } catch (const std::exception& error) {
        return fail(error.what(), 1);
    }
}
