// The test harness: programs to start, peers that connect to them, and a deadline on every wait. A first test:
//
//     TEST(Rooms, EveryoneHearsWhatIsSaid) {
//         Server server;
//         Peer alice(server.port(), "alice"), bob(server.port(), "bob");
//         alice.send_line("hello");
//         bob.expect("SAY alice hello");
//     }
//
// Nothing sleeps to give others time: each wait is for an event, and ends at its deadline. What fails throws
// Failure, which GoogleTest reports with the line of the test it was called from and the whole conversation
// until then. The conversations of all other programs and peers of a failed test are printed when these are
// destroyed.
//
// Use from the test's own thread; elsewhere by std::async, whose get() hands a Failure on. Start programs
// before threads: a program started while another thread opens a descriptor might inherit it.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>
#include <termios.h>

#include <chrono>
#include <concepts>
#include <deque>
#include <filesystem>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace harness {

using Clock = std::chrono::steady_clock;
using Lines = std::vector<std::string>;

// ---------------------------------------------------------------------------------------------------------------------
// Deadlines, patterns, conversations

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Ends the test as skipped, from however deep within it.
[[noreturn]] void skip(const std::string& why);

// Until when to wait, and which line of the test waits. A number of seconds converts to it; four times as
// many are granted when CHATROOM_SLOW is set, as it is for programs slowed down by sanitizers. Without a number it is
// long enough for a busy machine: what comes in time costs none of it.
struct Deadline {
    Deadline(double seconds = 20, const char* file = __builtin_FILE(), int line = __builtin_LINE());
    int left_ms() const;  // 0 when it has passed; what poll() takes
    bool passed() const { return left_ms() == 0; }

    Clock::time_point at;
    const char* file;
    int line;
};

// What to wait for: a substring, a regular expression `re(...)`, or a predicate on a string_view. A peer
// holds it against one line, a process against all that it has printed since mark().
struct Pattern {
    using Find = std::function<std::optional<std::string>(std::string_view)>;

    Pattern(const char* substring) : Pattern(std::string(substring)) {}
    Pattern(const std::string& substring);
    Pattern(std::string meaning_, Find find_) : meaning(std::move(meaning_)), find(std::move(find_)) {}
    template <std::predicate<std::string_view> P>
    Pattern(P holds)
        : Pattern("a text for which the test's predicate holds", [holds](std::string_view text) {
              return holds(text) ? std::optional(std::string(text)) : std::nullopt;
          }) {}

    std::string meaning;  // for the report
    Find find;            // returns what was found
};

Pattern re(const std::string& expression);  // finds its first group, or all of it; ^ and $ are ends of lines
Pattern starts(const std::string& prefix);  // a text that begins so

// What was sent (>), what came (<, and ! on stderr), what happened (.), and when; only the latest of a long
// one.
class Transcript {
   public:
    explicit Transcript(std::string who) : name(std::move(who)) {}
    Transcript(Transcript&&) = default;
    Transcript& operator=(Transcript&&) = default;
    ~Transcript();  // prints it if the test has failed
    void note(char kind, std::string_view bytes);
    std::string text() const;
    [[noreturn]] void fail(const std::string& why, const Deadline& until);  // throws Failure

    std::string name;

   private:
    Clock::time_point begin_ = Clock::now();
    std::deque<std::string> entries_;
    bool told_ = false;  // in a Failure already
};

// The only owner of a descriptor, which no program that is started inherits.
class Descriptor {
   public:
    Descriptor() = default;
    Descriptor(int fd, const std::string& call);  // throws Failure naming the call if fd is -1
    Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept;
    ~Descriptor() { close(); }
    void close();
    void never_block() const;
    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

   private:
    int fd_ = -1;
};

// ---------------------------------------------------------------------------------------------------------------------
// Small helpers

bool contains(std::string_view text, std::string_view part);
int count_in(std::string_view text, std::string_view part);
Lines lines_of(const std::string& text);
std::string numbered(const std::string& text, int first, int last);  // text and a number on each line
std::string utc_now();                                               // as in 2026-01-31T12:00:00Z

// A fresh directory, removed at the end with all that is in it.
class TempDir {
   public:
    TempDir();
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    ~TempDir();
    const std::filesystem::path& path() const { return path_; }

   private:
    std::filesystem::path path_;
};

std::string read_file(const std::filesystem::path& file);  // throws Failure if it cannot
void write_file(const std::filesystem::path& file, std::string_view bytes);

// Whether `holds` came true in time. It looks again and again with a pause: only for what no event tells.
bool eventually(const std::function<bool()>& holds, Deadline until = {});

// Of a running process, from Linux's /proc; -1 elsewhere.
long thread_count(pid_t pid);
long descriptor_count(pid_t pid);
long resident_bytes(pid_t pid);

bool has_address(const std::string& address);           // of this machine: ::1 and 127.0.0.2 may be missing
void need_address(const std::string& address);          // skips the test if it is
inline const std::string second_address = "127.0.0.2";  // of this machine too; to the server it is another one
std::string server_path();                              // CHATROOM_SERVER, else ./server
std::string client_path();                              // CHATROOM_CLIENT, else ./client

// ---------------------------------------------------------------------------------------------------------------------
// Programs

struct Window {
    unsigned short rows = 24;
    unsigned short columns = 80;
};

struct Launch {
    std::vector<std::string> args = {};
    std::vector<std::string> env = {};                // NAME=VALUE sets, NAME takes away; the last one counts
    std::string directory = {};                       // to run in; empty: where the test runs
    bool stdin_null = false;                          // /dev/null instead of a pipe that stays open
    std::vector<std::pair<int, rlim_t>> limits = {};  // soft and hard, as in {RLIMIT_NOFILE, 20}
    std::optional<Window> terminal = {};              // a terminal of this size instead of pipes
};

// A running program, on pipes or on a terminal. Its output is read only within the calls below, and by none
// of them after pause_reading(): so a full pipe can be had. Its stderr is always read. A sanitizer's report
// fails the test.
class Process {
   public:
    explicit Process(const std::string& program, const Launch& launch = {});
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    virtual ~Process();  // kills and reaps it if it still runs

    void write(std::string_view bytes, Deadline until = {});  // to stdin or keyboard; blocks until it is taken
    void close_stdin();
    void close_stdout();  // as if its reader were gone; with a terminal, nothing
    void signal(int number);

    // Wait until stdout (the screen), or stderr, has it since mark(), and return what was found. Throw at the
    // deadline, and as soon as the program has ended without it.
    std::string wait_output(const Pattern& wanted, Deadline until = {});
    std::string wait_error(const Pattern& wanted, Deadline until = {});
    int wait_exit(Deadline until = {});  // the exit status, or minus the signal that ended it
    bool running();                      // never blocks

    void mark();  // takes in what is there; later waits see only what comes after it
    void pause_reading(bool paused) { paused_ = paused; }
    const std::string& output() const { return output_; }  // all that has been read of stdout, or the screen's bytes
    const std::string& errors() const { return errors_; }
    pid_t pid() const { return pid_; }
    Transcript& transcript() { return transcript_; }

    // On a terminal only.
    void resize(Window size);      // the program gets SIGWINCH
    termios modes() const;         // also after its end
    void wait_until_read() const;  // until the program has read all that was typed
    bool echoes() const { return (modes().c_lflag & ECHO) != 0; }
    void hang_up();  // the terminal is gone; the program gets SIGHUP

   private:
    void start(const std::string& program, const Launch& launch, int in, int out, int err);
    bool step(const Deadline& until, bool to_write = false);
    bool collect(Descriptor& from, std::string& to, char kind);
    void collect_all();
    std::string wait_in(const std::string& text, std::size_t from, const Pattern& wanted, const Deadline& until);

    Transcript transcript_;
    pid_t pid_ = -1;
    Descriptor in_, out_, err_;       // the test's ends; with a terminal in_ and out_ are its master
    Descriptor slave_;                // kept open, so that a terminal can be looked at after the program's end
    Descriptor exit_;                 // the watcher writes the program's status here
    std::thread watcher_;             // waits for the end, which poll() cannot
    std::optional<int> status_ = {};  // as from waitpid, once it has ended
    std::string output_, errors_;
    std::size_t output_mark_ = 0, errors_mark_ = 0;
    bool paused_ = false;
};

// A program on a terminal, 24 by 80 unless launch.terminal says otherwise. Where the system has no terminal to give, in
// a chroot without /dev/pts say, the test is skipped.
struct Pty : Process {
    explicit Pty(const std::string& program, Launch launch = {});
    void type(std::string_view bytes, Deadline until = {}) { write(bytes, until); }
    std::string wait_screen_text(const Pattern& wanted, Deadline until = {}) { return wait_output(wanted, until); }
};

struct ServerOptions {
    int rate = 0;                            // no limit, as for max_per_ip
    int max_per_ip = 0;                      //
    std::vector<std::string> args = {};      // come last, and so override
    std::string admin_password = "letmein";  // in CHAT_ADMIN_PASSWORD; empty: not set, the server makes its own
    Launch launch = {};                      // all but args
};

// A chat server on a free port of 127.0.0.1, with its ban list in a directory of its own (a base, to outlive
// the process). Constructed once it listens. The destructor ends it by SIGTERM, and fails the test unless it
// ends with 0.
class Server : private TempDir, public Process {
   public:
    explicit Server(const ServerOptions& options = {}, Deadline until = {});
    ~Server() override;
    int port() const { return port_; }
    const std::string& password() const { return password_; }
    std::filesystem::path bans() const { return path() / "bans.txt"; }

   private:
    std::string password_;
    int port_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Peers

struct PeerOptions {
    std::string host = "127.0.0.1";
    std::string from = {};   // source address, such as 127.0.0.2, to look like another machine
    int receive_buffer = 0;  // bytes; small for a peer that never reads, 0 for the system's default
    bool deaf = false;       // does not even read while it waits for room to send
};

// One end of a TCP connection, speaking lines. All waits throw Failure at their deadline. Reads only within
// its calls.
class Peer {
   public:
    explicit Peer(int port, const PeerOptions& options = {}, Deadline until = {});  // connects
    Peer(int port, const char* name, Deadline until = {});                          // and logs in
    Peer(Descriptor socket, std::string label);

    // Answers NICK, and PASS if there is a password, and reads on to the end of WHO; returns the names in it.
    Lines login(const std::string& name, const std::string& password = {}, Deadline until = {});
    Lines expect_who(Deadline until = {});  // the names of the next, complete WHO

    void send_line(std::string_view line, Deadline until = {});  // adds the \n
    void send_raw(std::string_view bytes, Deadline until = {});  // exactly these; blocks until the system took them
    bool try_send(std::string_view bytes, Deadline until = {});  // likewise; false if it did not, or all is over

    std::string expect(const Pattern& wanted, Deadline until = {});            // skips lines until one matches
    std::string expect_next(const Pattern& wanted = "", Deadline until = {});  // the very next line, which must match

    // To see that something did not come, without waiting for it not to: what came before the line that
    // matches `marker`, or before the answer to an /echo sent now.
    Lines lines_until(const Pattern& marker, Deadline until = {});
    Lines lines_until_echo(Deadline until = {});
    void expect_none_until(const Pattern& unwanted, const Pattern& marker, Deadline until = {});

    // Wait for the end and return the lines before it: an end between two lines; or any, a reset too.
    Lines expect_eof(Deadline until = {});
    Lines expect_closed(Deadline until = {});

    void half_close();  // nothing more will be sent
    void reset();       // ends the connection with RST
    void close() { socket_.close(); }
    Transcript& transcript() { return transcript_; }

   private:
    bool wait(short events, const Deadline& until);
    void receive();
    std::string seek(const Pattern& wanted, const Deadline& until, Lines* skipped);
    bool next_line(std::string& line, const std::string& awaited, const Deadline& until);

    Transcript transcript_;
    Descriptor socket_;
    std::string inbox_;              // bytes of a line that is not yet complete
    std::deque<std::string> lines_;  // complete, not yet asked for
    bool ended_ = false, reset_ = false, deaf_ = false;
};

Peer admin_of(const Server& server);  // logged in

// Sends a line; the very next line that comes begins with the answer.
void expect_answer(Peer& peer, const std::string& line, const std::string& answer, Deadline until = {});

// Sends each line, and expects one line as the answer, which begins so. What came before is skipped.
using Answers = std::vector<std::pair<std::string, std::string>>;
void expect_answers(Peer& peer, const Answers& answers, Deadline until = {});

// Waits for connections, as a server that does as the test says.
class Listener {
   public:
    explicit Listener(const std::string& host = "127.0.0.1");
    int port() const;
    Peer accept(Deadline until = {});

   private:
    Descriptor socket_;
};

}  // namespace harness
