#include "harness.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <regex>
#include <sstream>
#include <tuple>

extern char** environ;  // NOLINT(readability-redundant-declaration): some systems leave it to us

namespace harness {

namespace fs = std::filesystem;

namespace {

// A peer that is gone is told by send's EPIPE. Programs get the signal's default back before they start.
[[maybe_unused]] const auto no_sigpipe = ::signal(SIGPIPE, SIG_IGN);

std::string printable(std::string_view bytes) {
    std::string result;
    for (char byte : bytes.substr(0, 400)) {
        const bool control = (byte >= 0 && byte < ' ') || byte == 127;
        if (!control) {
            result += byte;
            continue;
        }
        char escape[8];
        std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned char>(byte));
        result += escape;
    }
    return bytes.size() > 400 ? result + "... (" + std::to_string(bytes.size()) + " bytes)" : result;
}

std::string error_of(const std::string& call) { return call + ": " + std::strerror(errno); }

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Deadlines, patterns, conversations

Deadline::Deadline(double seconds, const char* file_, int line_) : file(file_), line(line_) {
    std::chrono::duration<double> patience(seconds * (std::getenv("CHATROOM_SLOW") != nullptr ? 4 : 1));
    at = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
}

int Deadline::left_ms() const {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(at - Clock::now()).count();
    return static_cast<int>(std::clamp<decltype(left)>(left, 0, 1'000'000'000));
}

// GoogleTest takes this exception for one about what has been reported already.
void skip(const std::string& why) {
    const auto report = [&] { GTEST_SKIP() << why; };
    report();
    throw testing::AssertionException(
        testing::TestPartResult(testing::TestPartResult::kSkip, nullptr, -1, why.c_str()));
}

Pattern::Pattern(const std::string& substring)
    : Pattern("'" + substring + "'", [substring](std::string_view text) -> std::optional<std::string> {
          return text.find(substring) == text.npos ? std::nullopt : std::optional(substring);
      }) {}

Pattern re(const std::string& expression) {
    std::regex regex(expression, std::regex::ECMAScript | std::regex::multiline);
    return {"/" + expression + "/", [regex](std::string_view text) -> std::optional<std::string> {
                std::match_results<std::string_view::const_iterator> match;
                if (!std::regex_search(text.begin(), text.end(), match, regex)) return std::nullopt;
                return match.str(match.size() > 1 ? 1 : 0);
            }};
}

Pattern starts(const std::string& prefix) {
    return {"what begins with '" + prefix + "'", [prefix](std::string_view text) -> std::optional<std::string> {
                return text.starts_with(prefix) ? std::optional(prefix) : std::nullopt;
            }};
}

Transcript::~Transcript() {
    bool failed = (std::uncaught_exceptions() > 0 && !testing::Test::IsSkipped()) || testing::Test::HasFailure();
    if (failed && !told_ && !entries_.empty()) std::cerr << text();
}

void Transcript::note(char kind, std::string_view bytes) {
    std::chrono::duration<double> since = Clock::now() - begin_;
    char when[32];
    std::snprintf(when, sizeof when, "%9.3f %c ", since.count(), kind);
    entries_.push_back(when + printable(bytes));
    if (entries_.size() > 200) entries_.pop_front();
}

std::string Transcript::text() const {
    std::string result = "--- " + name + "\n";
    for (const std::string& entry : entries_) result += entry + "\n";
    return result;
}

void Transcript::fail(const std::string& why, const Deadline& until) {
    note('.', "FAILED: " + why);
    told_ = true;
    throw Failure(std::string(until.file) + ":" + std::to_string(until.line) + ": " + name + ": " + why + "\n" +
                  text());
}

Descriptor::Descriptor(int fd, const std::string& call) : fd_(fd) {
    if (fd < 0) throw Failure(error_of(call));
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    other.close();
    return *this;
}

void Descriptor::close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

void Descriptor::never_block() const { ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK); }

// ---------------------------------------------------------------------------------------------------------------------
// Small helpers

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

int count_in(std::string_view text, std::string_view part) {
    int count = 0;
    for (std::size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++count;
    return count;
}

Lines lines_of(const std::string& text) {
    Lines lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

std::string numbered(const std::string& text, int first, int last) {
    std::string lines;
    for (int i = first; i <= last; ++i) lines += text + std::to_string(i) + '\n';
    return lines;
}

std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    char text[32];
    return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now))};
}

TempDir::TempDir() {
    std::string name = fs::temp_directory_path() / "chatroom-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw Failure(error_of("mkdtemp " + name));
    path_ = name;
}

TempDir::~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

std::string read_file(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw Failure(error_of("read " + file.string()));
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const fs::path& file, std::string_view bytes) {
    std::ofstream out(file, std::ios::binary);
    out << bytes << std::flush;
    if (!out) throw Failure(error_of("write " + file.string()));
}

bool eventually(const std::function<bool()>& holds, Deadline until) {
    while (!holds()) {
        if (until.passed()) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
}

static long entries_in(pid_t pid, const char* directory) {
    std::error_code error;
    fs::directory_iterator entries(fs::path("/proc") / std::to_string(pid) / directory, error);
    return error ? -1 : static_cast<long>(std::distance(begin(entries), end(entries)));
}

long thread_count(pid_t pid) { return entries_in(pid, "task"); }

long descriptor_count(pid_t pid) { return entries_in(pid, "fd"); }

long resident_bytes(pid_t pid) {
    std::ifstream statm("/proc/" + std::to_string(pid) + "/statm");
    long total = 0, resident = 0;
    return statm >> total >> resident ? resident * ::sysconf(_SC_PAGESIZE) : -1;
}

std::string server_path() {
    const char* path = std::getenv("CHATROOM_SERVER");
    return path != nullptr ? path : "./server";
}

std::string client_path() {
    const char* path = std::getenv("CHATROOM_CLIENT");
    return path != nullptr ? path : "./client";
}

// ---------------------------------------------------------------------------------------------------------------------
// Programs

namespace {

struct Pipe {
    Descriptor read, write;
    Pipe() {
        int ends[2];
        int made = ::pipe(ends);
        read = Descriptor(made < 0 ? -1 : ends[0], "pipe");
        write = Descriptor(ends[1], "pipe");
    }
};

std::vector<std::string> environment(const std::vector<std::string>& changes) {
    std::vector<std::string> result;
    for (char** entry = environ; *entry != nullptr; ++entry) result.emplace_back(*entry);
    for (const std::string& change : changes) {
        std::string name = change.substr(0, change.find('='));
        std::erase_if(result, [&](const std::string& entry) { return entry.starts_with(name + "="); });
        if (name != change) result.push_back(change);
    }
    return result;
}

std::vector<char*> c_array(std::vector<std::string>& strings) {
    std::vector<char*> result;
    result.reserve(strings.size() + 1);
    for (std::string& string : strings) result.push_back(string.data());
    result.push_back(nullptr);
    return result;
}

// In the child, between fork and exec, where nothing but plain system calls is safe.
bool prepare_child(const Launch& launch, int in, int out, int err) {
    // A test run in the background would hand on that it ignores Ctrl-C.
    for (int number : {SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGCHLD}) {
        ::signal(number, SIG_DFL);
    }
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    if (launch.terminal) {
        ::setsid();
        ::ioctl(in, TIOCSCTTY, 0);
    }
    ::dup2(in, STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    if (!launch.directory.empty() && ::chdir(launch.directory.c_str()) != 0) return false;
    for (auto [resource, limit] : launch.limits) {
        rlimit both{limit, limit};
        if (::setrlimit(resource, &both) != 0) return false;
    }
    return true;
}

// Returns both ends of a pseudo-terminal: the test's, and the program's.
std::pair<Descriptor, Descriptor> new_terminal() {
    const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0) skip(error_of("no terminal can be had here: posix_openpt"));
    Descriptor test_end(master, "posix_openpt");
    const char* name = ::grantpt(master) == 0 && ::unlockpt(master) == 0 ? ::ptsname(master) : nullptr;
    const int slave = name != nullptr ? ::open(name, O_RDWR | O_NOCTTY) : -1;
    if (slave < 0) skip(error_of("no terminal can be had here: open"));
    return {std::move(test_end), Descriptor(slave, "open of a terminal")};
}

}  // namespace

Process::Process(const std::string& program, const Launch& launch) : transcript_(program) {
    if (launch.terminal) {
        std::tie(in_, slave_) = new_terminal();
        out_ = Descriptor(::dup(in_.get()), "dup");
        resize(*launch.terminal);
        in_.never_block();  // and with it out_
        start(program, launch, slave_.get(), slave_.get(), slave_.get());
        return;
    }
    Pipe in, out, err;
    if (launch.stdin_null) in.read = Descriptor(::open("/dev/null", O_RDONLY), "open /dev/null");
    start(program, launch, in.read.get(), out.write.get(), err.write.get());
    if (!launch.stdin_null) in_ = std::move(in.write);
    out_ = std::move(out.read);
    err_ = std::move(err.read);
    for (Descriptor* end : {&in_, &out_, &err_}) {
        if (*end) end->never_block();
    }
}

// Forks, with these as the child's standard descriptors, and sets pid_, exit_ and watcher_.
void Process::start(const std::string& program, const Launch& launch, int in, int out, int err) {
    std::string path = fs::absolute(program);  // launch.directory must not change what is meant
    std::vector<std::string> args = launch.args, env = environment(launch.env);
    args.insert(args.begin(), program);
    std::vector<char*> argv = c_array(args), envp = c_array(env);
    Pipe exit, failed;

    pid_ = ::fork();
    if (pid_ < 0) throw Failure(error_of("fork"));
    if (pid_ == 0) {
        if (prepare_child(launch, in, out, err)) ::execve(path.c_str(), argv.data(), envp.data());
        [[maybe_unused]] ssize_t told = ::write(failed.write.get(), &errno, sizeof errno);
        ::_exit(127);
    }
    failed.write.close();
    // An exec that succeeds closes the pipe. Before it, signals would not yet do to the child what they should.
    if (int error = 0; ::read(failed.read.get(), &error, sizeof error) > 0) {
        ::waitpid(pid_, nullptr, 0);
        throw Failure("start " + path + ": " + std::strerror(error));
    }
    std::string command;
    for (const std::string& arg : args) command += arg + " ";
    transcript_.note('.', command + "(process " + std::to_string(pid_) + ")");
    exit_ = std::move(exit.read);
    watcher_ = std::thread([pid = pid_, tell = std::move(exit.write)] {
        int status = 0;
        while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
        [[maybe_unused]] ssize_t told = ::write(tell.get(), &status, sizeof status);
    });
}

Process::~Process() {
    try {
        if (running()) ::kill(pid_, SIGKILL);
        watcher_.join();
        paused_ = false;
        collect_all();
    } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
    }
    for (const std::string* text : {&output_, &errors_}) {
        if (text->find("Sanitizer: ") != text->npos || text->find(": runtime error: ") != text->npos) {
            ADD_FAILURE() << "a sanitizer's report from " << transcript_.name << ":\n" << *text;
        }
    }
}

// Reads once what there is, without blocking. False: nothing more for now, or at all.
bool Process::collect(Descriptor& from, std::string& to, char kind) {
    char bytes[65536];
    ssize_t count = from ? ::read(from.get(), bytes, sizeof bytes) : 0;
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return errno == EINTR;
    if (count <= 0) {  // the end; of a terminal it is EIO
        from.close();
        return false;
    }
    std::string_view text(bytes, static_cast<std::size_t>(count));
    to += text;
    while (!text.empty()) {
        std::string_view line = text.substr(0, text.find('\n'));
        transcript_.note(kind, line);
        text.remove_prefix(std::min(line.size() + 1, text.size()));
    }
    return true;
}

// Bounded, for programs that print without end.
void Process::collect_all() {
    for (int i = 0; i < 100 && !paused_ && collect(out_, output_, '<'); ++i) continue;
    for (int i = 0; i < 100 && collect(err_, errors_, '!'); ++i) continue;
}

// Waits for one event, and takes it in: output, the program's end, or room in its stdin. False: the deadline
// came.
bool Process::step(const Deadline& until, bool to_write) {
    pollfd events[] = {{paused_ ? -1 : out_.get(), POLLIN, 0},
                       {err_.get(), POLLIN, 0},
                       {exit_.get(), POLLIN, 0},
                       {to_write ? in_.get() : -1, POLLOUT, 0}};
    int ready = ::poll(events, std::size(events), until.left_ms());
    if (ready <= 0) return ready < 0 && errno == EINTR;
    if (events[0].revents != 0) collect(out_, output_, '<');
    if (events[1].revents != 0) collect(err_, errors_, '!');
    if (events[2].revents != 0) {
        int status = 0;
        if (::read(exit_.get(), &status, sizeof status) != sizeof status) throw Failure(error_of("read of a status"));
        exit_.close();
        status_ = status;
        collect_all();  // all that it has printed is there by now
        transcript_.note('.', WIFEXITED(status) ? "ended with " + std::to_string(WEXITSTATUS(status))
                                                : "ended by signal " + std::to_string(WTERMSIG(status)));
    }
    return true;
}

void Process::write(std::string_view bytes, Deadline until) {
    transcript_.note('>', bytes);
    while (!bytes.empty()) {
        ssize_t count = ::write(in_.get(), bytes.data(), bytes.size());
        if (count >= 0) {
            bytes.remove_prefix(static_cast<std::size_t>(count));
        } else if (errno == EAGAIN) {
            if (!step(until, true) || until.passed()) transcript_.fail("it did not take its input", until);
        } else if (errno != EINTR) {
            transcript_.fail(error_of("write to its input"), until);
        }
    }
}

void Process::close_stdin() {
    transcript_.note('.', "stdin closed");
    in_.close();
}

void Process::close_stdout() {
    transcript_.note('.', "stdout closed");
    out_.close();
}

void Process::signal(int number) {
    if (!running()) throw Failure("a signal for " + transcript_.name + ", which has ended\n" + transcript_.text());
    transcript_.note('.', "signal " + std::to_string(number));
    ::kill(pid_, number);
}

bool Process::running() {
    if (!status_) step(0);
    return !status_;
}

std::string Process::wait_output(const Pattern& wanted, Deadline until) {
    return wait_in(output_, output_mark_, wanted, until);
}

std::string Process::wait_error(const Pattern& wanted, Deadline until) {
    return wait_in(errors_, errors_mark_, wanted, until);
}

std::string Process::wait_in(const std::string& text, std::size_t from, const Pattern& wanted, const Deadline& until) {
    for (bool more = true;; more = step(until) && !until.passed()) {
        if (auto found = wanted.find(std::string_view(text).substr(from))) return *found;
        if (status_) transcript_.fail("it ended without " + wanted.meaning, until);
        if (!more) transcript_.fail("waited in vain for " + wanted.meaning, until);
    }
}

int Process::wait_exit(Deadline until) {
    for (bool more = true; !status_; more = step(until) && !until.passed()) {
        if (!more) transcript_.fail("waited in vain for its end", until);
    }
    return WIFEXITED(*status_) ? WEXITSTATUS(*status_) : -WTERMSIG(*status_);
}

void Process::mark() {
    collect_all();
    output_mark_ = output_.size();
    errors_mark_ = errors_.size();
    transcript_.note('.', "mark");
}

void Process::resize(Window size) {
    winsize both{size.rows, size.columns, 0, 0};
    if (::ioctl(in_.get(), TIOCSWINSZ, &both) != 0) throw Failure(error_of("TIOCSWINSZ"));
}

// (On Linux poll(2) has what is on its way to the other end of the terminal delivered first.)
void Process::wait_until_read() const {
    pollfd polled{slave_.get(), POLLIN, 0};
    eventually([&] { return ::poll(&polled, 1, 0) <= 0; });
}

termios Process::modes() const {
    termios result{};
    if (::tcgetattr(in_.get(), &result) != 0) throw Failure(error_of("tcgetattr"));
    return result;
}

void Process::hang_up() {
    transcript_.note('.', "hang up");
    for (Descriptor* end : {&slave_, &in_, &out_}) end->close();
}

static Launch on_terminal(Launch launch) {
    if (!launch.terminal) launch.terminal = Window{};
    launch.env.insert(launch.env.begin(), "TERM=xterm-256color");
    return launch;
}

Pty::Pty(const std::string& program, Launch launch) : Process(program, on_terminal(std::move(launch))) {}

static Launch for_server(const ServerOptions& options, const fs::path& directory) {
    Launch launch = options.launch;
    launch.args = {"--port",         "0",
                   "--no-discovery", "--bind",
                   "127.0.0.1",

                   "--bans",         directory / "bans.txt",
                   "--rate",         std::to_string(options.rate),
                   "--max-per-ip",   std::to_string(options.max_per_ip)};
    launch.args.insert(launch.args.end(), options.args.begin(), options.args.end());
    std::string variable = "CHAT_ADMIN_PASSWORD";
    launch.env.push_back(options.admin_password.empty() ? variable : variable + "=" + options.admin_password);
    return launch;
}

Server::Server(const ServerOptions& options, Deadline until)
    : Process(server_path(), for_server(options, path())), password_(options.admin_password) {
    port_ = std::stoi(wait_output(re("listening on port ([0-9]+)\\s"), until));
}

Server::~Server() {
    try {
        pause_reading(false);
        if (!running()) return;
        try {
            signal(SIGTERM);
        } catch (const Failure&) {  // it has just ended, as the test had asked it to
        }
        int status = wait_exit();
        if (status != 0) ADD_FAILURE() << "the server ended with " << status << "\n" << transcript().text();
    } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Peers

namespace {

struct Address {
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;

    Address() = default;
    Address(const std::string& host, int port) {
        addrinfo hints{}, *found = nullptr;
        hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
        hints.ai_socktype = SOCK_STREAM;
        int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
        if (error != 0) throw Failure(host + ": " + ::gai_strerror(error));
        std::memcpy(&storage, found->ai_addr, found->ai_addrlen);
        size = found->ai_addrlen;
        ::freeaddrinfo(found);
    }
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
    Descriptor socket() const { return {::socket(storage.ss_family, SOCK_STREAM, 0), "socket"}; }
};

std::atomic<int> peer_number = 0;

Descriptor connect_to(int port, const PeerOptions& options, const Deadline& until) {
    Address to(options.host, port);
    Descriptor socket = to.socket();
    if (!options.from.empty()) {
        Address from(options.from, 0);
        if (::bind(socket.get(), from.get(), from.size) != 0) throw Failure(error_of("bind " + options.from));
    }
    if (options.receive_buffer > 0) {  // before the connection is made, when the window is agreed on
        ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUF, &options.receive_buffer, sizeof(int));
    }
    socket.never_block();
    if (::connect(socket.get(), to.get(), to.size) == 0) return socket;
    if (errno == EINPROGRESS) {
        pollfd event{socket.get(), POLLOUT, 0};
        while (::poll(&event, 1, until.left_ms()) < 0 && errno == EINTR) continue;
        int error = event.revents == 0 ? ETIMEDOUT : 0;
        socklen_t size = sizeof error;
        if (error == 0) ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        if (error == 0) return socket;
        errno = error;
    }
    throw Failure(error_of(std::string(until.file) + ":" + std::to_string(until.line) + ": connect to " + options.host +
                           " " + std::to_string(port)));
}

}  // namespace

bool has_address(const std::string& address) {
    Address wanted(address, 0);
    int fd = ::socket(wanted.storage.ss_family, SOCK_STREAM, 0);
    if (fd < 0) return false;
    Descriptor socket(fd, "socket");
    return ::bind(socket.get(), wanted.get(), wanted.size) == 0;
}

void need_address(const std::string& address) {
    if (!has_address(address)) skip(address + " is no address of this machine");
}

Peer::Peer(Descriptor socket, std::string label) : transcript_(std::move(label)), socket_(std::move(socket)) {
    socket_.never_block();
}

Peer::Peer(int port, const PeerOptions& options, Deadline until)
    : Peer(connect_to(port, options, until), "peer " + std::to_string(++peer_number)) {
    deaf_ = options.deaf;
}

Peer::Peer(int port, const char* name, Deadline until) : Peer(port, PeerOptions{}, until) { login(name, "", until); }

Lines Peer::login(const std::string& name, const std::string& password, Deadline until) {
    transcript_.name += " (" + name + ")";
    expect(starts("NICK"), until);
    send_line(name, until);
    if (!password.empty()) {
        expect(starts("PASS"), until);
        send_line(password, until);
    }
    expect(starts("WELCOME " + name), until);
    return expect_who(until);
}

Lines Peer::expect_who(Deadline until) {
    Lines names;
    std::size_t total = 0;
    do {  // a long list comes in several lines
        std::istringstream line(expect(starts("WHO "), until));
        std::string word, room, name;
        line >> word >> room >> total;
        while (line >> name) names.push_back(name);
    } while (names.size() < total);
    return names;
}

void Peer::send_line(std::string_view line, Deadline until) { send_raw(std::string(line) + "\n", until); }

void Peer::send_raw(std::string_view bytes, Deadline until) {
    if (!try_send(bytes, until)) transcript_.fail("not all could be sent", until);
}

bool Peer::try_send(std::string_view bytes, Deadline until) {
    transcript_.note('>', bytes.ends_with('\n') ? bytes.substr(0, bytes.size() - 1) : bytes);
    while (!bytes.empty()) {
        ssize_t count = ::send(socket_.get(), bytes.data(), bytes.size(), 0);
        if (count >= 0) {
            bytes.remove_prefix(static_cast<std::size_t>(count));
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            // A server stops reading from a client that does not read: without this, both would wait forever.
            bool reads = !deaf_ && !ended_;
            if (!wait(reads ? POLLIN | POLLOUT : POLLOUT, until) || until.passed()) return false;
            if (reads) receive();
        } else if (errno != EINTR) {
            transcript_.note('.', error_of("send"));
            return false;
        }
    }
    return true;
}

// False at the deadline.
bool Peer::wait(short events, const Deadline& until) {
    pollfd event{socket_.get(), events, 0};
    int ready = ::poll(&event, 1, until.left_ms());
    return ready > 0 || (ready < 0 && errno == EINTR);
}

// Takes in what has come, without blocking.
void Peer::receive() {
    if (ended_) return;
    char bytes[65536];
    ssize_t count = ::recv(socket_.get(), bytes, sizeof bytes, 0);
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    if (count <= 0) {
        ended_ = true;
        reset_ = count < 0;
        transcript_.note('.', (reset_ ? error_of("recv") : "the other side ended the connection") +
                                  (inbox_.empty() ? "" : ", in the middle of: " + inbox_));
        return;
    }
    std::string_view text(bytes, static_cast<std::size_t>(count));
    for (std::size_t end; (end = text.find('\n')) != text.npos; text.remove_prefix(end + 1)) {
        inbox_ += text.substr(0, end);
        transcript_.note('<', inbox_);
        lines_.push_back(std::exchange(inbox_, {}));
    }
    inbox_ += text;
}

// False when the connection has ended.
bool Peer::next_line(std::string& line, const std::string& awaited, const Deadline& until) {
    for (bool more = true; lines_.empty(); more = wait(POLLIN, until) && !until.passed()) {
        receive();
        if (!lines_.empty()) break;
        if (ended_) return false;
        if (!more) transcript_.fail("waited in vain for " + awaited, until);
    }
    line = std::move(lines_.front());
    lines_.pop_front();
    return true;
}

// Returns the first line that matches, and adds those before it to `skipped`.
std::string Peer::seek(const Pattern& wanted, const Deadline& until, Lines* skipped) {
    for (std::string line; next_line(line, wanted.meaning, until);) {
        if (wanted.find(line)) return line;
        if (until.passed()) transcript_.fail("among all that came there was not " + wanted.meaning, until);
        if (skipped != nullptr) skipped->push_back(std::move(line));
    }
    transcript_.fail("the connection ended before " + wanted.meaning, until);
}

std::string Peer::expect(const Pattern& wanted, Deadline until) { return seek(wanted, until, nullptr); }

Lines Peer::lines_until(const Pattern& marker, Deadline until) {
    Lines before;
    seek(marker, until, &before);
    return before;
}

std::string Peer::expect_next(const Pattern& wanted, Deadline until) {
    std::string line;
    if (!next_line(line, "the next line, " + wanted.meaning, until)) transcript_.fail("the connection ended", until);
    if (!wanted.find(line)) transcript_.fail("the next line is '" + line + "', not " + wanted.meaning, until);
    return line;
}

Lines Peer::lines_until_echo(Deadline until) {
    static std::atomic<int> number = 0;
    std::string mark = "mark " + std::to_string(++number);
    send_line("/echo " + mark, until);
    return lines_until(re("^ECHO " + mark + "$"), until);
}

void Peer::expect_none_until(const Pattern& unwanted, const Pattern& marker, Deadline until) {
    for (const std::string& line : lines_until(marker, until)) {
        if (unwanted.find(line)) transcript_.fail("there came '" + line + "', which should not", until);
    }
}

Lines Peer::expect_closed(Deadline until) {
    Lines last;
    for (std::string line; next_line(line, "the end of the connection", until); last.push_back(line)) {
        if (until.passed()) transcript_.fail("lines come without end", until);
    }
    return last;
}

Lines Peer::expect_eof(Deadline until) {
    Lines last = expect_closed(until);
    if (reset_) transcript_.fail("the connection was reset, not ended", until);
    if (!inbox_.empty()) transcript_.fail("the connection ended in the middle of a line: " + inbox_, until);
    return last;
}

void Peer::half_close() {
    transcript_.note('.', "half close");
    ::shutdown(socket_.get(), SHUT_WR);
}

void Peer::reset() {
    transcript_.note('.', "reset");
    linger at_once{1, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    socket_.close();
}

Peer admin_of(const Server& server) {
    Peer admin(server.port());
    admin.login("admin", server.password());
    return admin;
}

void expect_answer(Peer& peer, const std::string& line, const std::string& answer, Deadline until) {
    peer.send_line(line, until);
    peer.expect_next(starts(answer), until);
}

void expect_answers(Peer& peer, const Answers& answers, Deadline until) {
    peer.lines_until_echo(until);
    for (const auto& [line, answer] : answers) {
        expect_answer(peer, line, answer, until);
        for (const std::string& more : peer.lines_until_echo(until)) {
            peer.transcript().fail("after the answer there came '" + more + "'", until);
        }
    }
}

Listener::Listener(const std::string& host) {
    Address address(host, 0);
    socket_ = address.socket();
    if (::bind(socket_.get(), address.get(), address.size) != 0) throw Failure(error_of("bind " + host));
    if (::listen(socket_.get(), 100) != 0) throw Failure(error_of("listen"));
    socket_.never_block();
}

int Listener::port() const {
    Address address;
    char service[16] = "";
    ::getsockname(socket_.get(), address.get(), &address.size);
    ::getnameinfo(address.get(), address.size, nullptr, 0, service, sizeof service, NI_NUMERICSERV);
    return std::stoi(service);
}

Peer Listener::accept(Deadline until) {
    for (;;) {
        Address from;
        int fd = ::accept(socket_.get(), from.get(), &from.size);
        if (fd >= 0) {
            char host[64] = "";
            ::getnameinfo(from.get(), from.size, host, sizeof host, nullptr, 0, NI_NUMERICHOST);
            return {Descriptor(fd, "accept"), "accepted from " + std::string(host)};
        }
        pollfd event{socket_.get(), POLLIN, 0};
        int ready = ::poll(&event, 1, until.left_ms());
        if (ready == 0) Transcript("listener").fail("nobody connected", until);
    }
}

}  // namespace harness
