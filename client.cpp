// client.cpp: the chat client. One thread, the reader, takes what the server sends to the screen; the other, the
// writer, takes what is typed to the server.
//
//   read_server()     section 4   the reader: waits in recv(), and shows each line that comes
//   write_server()    section 4   the writer: waits for the keyboard, and sends each line that is typed
//
// The words that lines from the server begin with are defined in docs/protocol.md.

#include <getopt.h>
#include <poll.h>
#include <termios.h>

#include <clocale>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <thread>

#include "common.hpp"

namespace {

// ---------------------------------------------------------------------------------------------------------
// 1. The terminal
//
// Without one, in a pipe, everything works as well: lines in, lines out.

termios terminal_as_found;                        // by hide_typing()
volatile std::sig_atomic_t typing_is_hidden = 0;  // then the terminal has to be given back

// Any thread, and signal handlers: tcsetattr() is async-signal-safe.
void show_typing() {
    if (typing_is_hidden == 0) return;
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal_as_found);
    typing_is_hidden = 0;
}

// For a password. Does nothing where the input is no terminal.
void hide_typing() {
    if (typing_is_hidden != 0 || tcgetattr(STDIN_FILENO, &terminal_as_found) != 0) return;
    typing_is_hidden = 1;
    termios hidden = terminal_as_found;
    hidden.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &hidden);
}

// Whatever ends us, the terminal shows again what is typed; then the signal does what it always does.
void handle_signals() {
    struct sigaction action {};
    action.sa_handler = [](int number) {
        show_typing();
        raise(number);
    };
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_NODEFER;
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaction(number, &action, nullptr);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, nullptr);
}

// The keyboard, or whatever the standard input is.
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
            const ssize_t count = read(STDIN_FILENO, bytes.data(), bytes.size());
            if (count > 0) lines_.add({bytes.data(), static_cast<std::size_t>(count)});
            at_end_ = count == 0 || (count < 0 && errno != EINTR);
        }
    }

    // Asks a question before there is a connection; an empty answer, or none, takes the other.
    std::string ask(const std::string& question, const std::string& otherwise) {
        std::cout << question << " [" << otherwise << "]: " << std::flush;
        const std::optional<Line> answer = read_line(Wakeup());
        const std::string text(answer ? trim(answer->text) : "");
        return text.empty() ? otherwise : text;
    }

   private:
    LineBuffer lines_{max_line};
    bool at_end_ = false;
};

// ---------------------------------------------------------------------------------------------------------
// 2. The connection

class Connection {
   public:
    // Tries the addresses of the host in turn. Blocks until one answers; throws if none does.
    Connection(const std::string& host, const std::string& port) {
        const AddressList addresses = resolve(host, port);
        int error = 0;
        for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
            socket_ = Fd(::socket(at->ai_family, at->ai_socktype, at->ai_protocol));
            if (socket_ && connect(socket_.get(), at->ai_addr, at->ai_addrlen) == 0) return;
            error = errno;
        }
        errno = error;
        throw_errno("connect to " + host + " port " + port, error == ECONNREFUSED ? "is a server running there?" : "");
    }

    // Blocks until the system has taken the line. False: the connection is broken.
    bool send_line(std::string_view line) const {
        const std::string text = std::string(line) + '\n';
        for (std::string_view rest = text; !rest.empty();) {
            const ssize_t sent = send(socket_.get(), rest.data(), rest.size(), 0);
            if (sent < 0 && errno != EINTR) return false;
            rest.remove_prefix(sent < 0 ? 0 : static_cast<std::size_t>(sent));
        }
        return true;
    }

    // Gives the next line, cleaned: the server is not trusted to have done it (promise 3). Nothing at the end of the
    // connection. Blocks until then. Only the reader.
    std::optional<std::string> read_line() {
        while (true) {
            if (const std::optional<Line> line = lines_.next()) {
                return line->too_long ? "ERR The server sent a line that is too long." : clean(line->text);
            }
            if (!(std::cout << std::flush)) return std::nullopt;  // nobody reads what we print
            std::array<char, 4096> bytes{};
            const ssize_t count = recv(socket_.get(), bytes.data(), bytes.size(), 0);
            if (count > 0) lines_.add({bytes.data(), static_cast<std::size_t>(count)});
            if (count == 0 || (count < 0 && errno != EINTR)) return std::nullopt;
        }
    }

    // Any thread: the other's recv() or send() ends.
    void end() const { shutdown(socket_.get(), SHUT_RDWR); }

   private:
    Fd socket_;
    LineBuffer lines_{max_server_line};
};

// ---------------------------------------------------------------------------------------------------------
// 3. What the server's words look like
//
// A line begins with the time and then with who speaks: "alice:" for what is said, "*" for /me, "alice -> bob:" in
// private; "--" and "!!" are the server's notices and refusals, and "==" is /echo. No name looks like these marks.

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
    int fields;
    std::string_view look;  // %1 to %5 are fields, %t is the text behind them
};

constexpr Form forms[] = {
    {"SAY", 1, "%1: %t"},
    {"ME", 1, "* %1 %t"},
    {"MSG", 2, "%1 -> %2: %t"},
    {"BLOCKED", 1, "(blocked) %1: %t"},
    {"ECHO", 0, "== %t"},
    {"ERR", 0, "!! %t"},
    {"REFUSE", 0, "!! %t"},
    {"BAN", 0, "!! %t"},
    {"JOIN", 1, "-- %1 %t"},
    {"LEAVE", 1, "-- %1 %t"},
    {"OWNER", 1, "-- %1 %t"},
    {"ROOM", 3, "-- %t"},
    {"WHO", 2, "-- %2 in %1: %t"},
    {"ROOMS", 1, "-- %1 %t"},
    {"LIST", 5, "-- %1 %2: %3 in it, made by %4 at %5, %t"},
    {"BYE", 1, "-- %t"},
    {"INFO", 0, "-- %t"},
    {"WELCOME", 1, "-- %t"},
    {"NICK", 0, "-- %t"},
    {"PASS", 0, "-- %t"},
    {"NEWPASS", 0, "-- %t"},
};

// Gives what a line from the server looks like to a person, without the time.
std::string in_words(std::string_view line) {
    std::string_view text = line;
    const std::string_view word = take_word(text);
    const auto* form = std::find_if(std::begin(forms), std::end(forms), [&](const Form& f) { return f.word == word; });
    if (form == std::end(forms)) return "-- " + std::string(line);  // a word of a newer server
    std::array<std::string_view, 5> fields;
    for (int i = 0; i < form->fields; ++i) fields.at(static_cast<std::size_t>(i)) = take_word(text);
    std::string result;
    for (std::size_t i = 0; i < form->look.size(); ++i) {
        if (form->look[i] != '%') {
            result += form->look[i];
        } else {
            const char which = form->look[++i];
            result += which == 't' ? text : fields.at(static_cast<std::size_t>(which - '1'));
        }
    }
    return result;
}

void show(std::string_view line) {
    std::time_t time = std::time(nullptr);
    if (line.starts_with("PAST ")) {
        take_word(line);
        time = wire_time(std::string(take_word(line)));
    }
    std::cout << wrapped(time_shown(time) + ' ' + in_words(line), screen_width()) << '\n';
}

// ---------------------------------------------------------------------------------------------------------
// 4. The two threads

// What the threads tell each other.
struct Session {
    std::mutex mutex;
    std::condition_variable changed;
    bool may_send = false;  // guarded: the server has asked a question, or the login is complete
    bool welcome = false;   // guarded: the login is complete
    bool ended = false;     // guarded
    Wakeup over;            // set with `ended`: gets the writer out of poll()

    bool gave_up = false;  // guarded: we ended it ourselves, and have said why

    int status = 1;                   // only the reader, until it is joined
    std::optional<std::string> name;  // likewise: from --name, empty once it has been sent

    void note(bool& what, bool value) {
        const std::scoped_lock lock(mutex);
        what = value;
        changed.notify_all();
    }
};

// Ends the connection from our side.
void give_up(Session& session, const Connection& server, const std::string& why) {
    std::cerr << "client: " << why << std::endl;
    session.note(session.gave_up, true);
    server.end();
}

// Answers NICK or PASS, or lets the writer do it.
void take_question(Session& session, const Connection& server, bool password) {
    if (!password && session.name && !session.name->empty()) {
        server.send_line(std::exchange(*session.name, ""));
        return;
    }
    if (!password && session.name && isatty(STDIN_FILENO) == 0) {  // what comes from a pipe is no name, but to be said
        return give_up(session, server, "the server did not take the name");
    }
    session.note(session.may_send, true);
}

// The reader: shows what the server sends, until the end of the connection.
void read_server(Session& session, Connection& server) {
    bool said_why = false;
    while (!said_why && std::cout) {
        const std::optional<std::string> line = server.read_line();
        if (!line) break;
        std::string_view rest = *line;
        const std::string_view word = take_word(rest);
        if (word == "PASS" || word == "NEWPASS") hide_typing();  // before it is asked for, or keys could be seen
        show(*line);
        if (word == "NICK") take_question(session, server, false);
        if (word == "PASS" || word == "NEWPASS") take_question(session, server, true);
        if (word == "WELCOME") {
            session.note(session.welcome, true);
            session.note(session.may_send, true);
        }
        said_why = word == "BYE" || word == "REFUSE" || word == "BAN";
        session.status = word == "BYE" && take_word(rest) == "QUIT" ? 0 : 1;
    }
    std::cout << std::flush;
    if (const std::scoped_lock lock(session.mutex); !said_why && !session.gave_up && std::cout) {
        std::cerr << "client: the connection was lost\n";
    }
    session.note(session.ended, true);
    session.over.set();
    server.end();
}

// Waits until the server listens to a line of ours; false if it will not any more.
bool wait_to_send(Session& session) {
    std::unique_lock lock(session.mutex);
    session.changed.wait(lock, [&] { return session.may_send || session.ended; });
    session.may_send = session.welcome;  // during the login each question takes one line
    return !session.ended;
}

// The writer: sends what is typed. The end of the input means /quit.
void write_server(Session& session, const Connection& server, Keyboard& keyboard) {
    while (const std::optional<Line> line = keyboard.read_line(session.over)) {
        if (!wait_to_send(session)) return;
        if (typing_is_hidden != 0) std::cout << std::endl;
        show_typing();
        if (line->too_long) {
            std::cerr << "client: that line has more than " << max_line << " bytes and was not sent\n";
        } else if (!server.send_line(line->text)) {
            return;
        }
    }
    if (!wait_to_send(session)) return;
    if (const std::scoped_lock lock(session.mutex); session.welcome) {
        server.send_line("/quit");
        return;
    }
    give_up(session, server, "the input ended before the login was complete");
}

// ---------------------------------------------------------------------------------------------------------
// 5. Starting

std::string_view program;  // the name that it was started by

constexpr const char* usage = R"( [OPTION]... [HOST [PORT]]
  --name NAME   log in under this name
  --plain       lines in, lines out, without a screen
  --help        show this
  --version     show the version
Without HOST it asks for host and port.
)";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Options {
    std::optional<std::string> name, host, port;
};

// Throws a UsageError at a wrong one; --help and --version answer and exit.
Options read_options(int argc, char** argv) {
    enum { name, plain, help_text, version_text };
    static const option known[] = {{"name", required_argument, nullptr, name},
                                   {"plain", no_argument, nullptr, plain},
                                   {"help", no_argument, nullptr, help_text},
                                   {"version", no_argument, nullptr, version_text},
                                   {}};
    Options options;
    for (int found = 0; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
        switch (found) {
            case name: options.name = optarg; break;
            case plain: break;  // the only form there is
            case help_text: std::cout << "usage: " << program << usage; std::exit(0);
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
    if (options.port && !parse_number(*options.port, 1, 65535)) throw UsageError("a port is a number from 1 to 65535");
    return options;
}

int run(const Options& options) {
    handle_signals();
    Keyboard keyboard;
    const std::string host = options.host ? *options.host : keyboard.ask("Host", "127.0.0.1");
    const std::string port = options.port   ? *options.port
                             : options.host ? std::string(default_port)
                                            : keyboard.ask("Port", std::string(default_port));
    if (!parse_number(port, 1, 65535)) throw std::runtime_error("a port is a number from 1 to 65535");
    Connection server(host, port);
    Session session;
    session.name = options.name;
    std::thread reader([&] { read_server(session, server); });
    write_server(session, server, keyboard);
    reader.join();
    show_typing();
    return session.status;
}

}  // namespace

int main(int argc, char** argv) {
    program = argv[0];
    program.remove_prefix(program.rfind('/') + 1);
    std::setlocale(LC_CTYPE, "");
    try {
        return run(read_options(argc, argv));
    } catch (const UsageError& error) {
        std::cerr << program << ": " << error.what() << (*error.what() == 0 ? "" : "; ")
                  << "--help shows the options\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << program << ": " << error.what() << '\n';
        return 1;
    }
}
