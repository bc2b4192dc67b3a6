// The terminal: what arrives does not tear the line that is being typed. The keys come to us one by one, and what is on
// the screen is ours: so before a line is shown, the one that is typed is wiped away, and is drawn again below it.

#include <termios.h>

#include "common.hpp"

namespace {

using Lock = std::unique_lock<std::mutex>;

enum TerminalMode { original, key_by_key };

termios original_settings;                           // of the terminal, when its mode was first changed
std::atomic<TerminalMode> terminal_mode = original;  // if it is another, the terminal has to be restored

// Any thread, and signal handlers. Does nothing where there is no terminal.
void set_terminal(TerminalMode mode) {
    if (mode == terminal_mode) return;
    if (terminal_mode == original && tcgetattr(STDIN_FILENO, &original_settings) != 0) return;
    termios wanted = original_settings;
    if (mode == key_by_key) wanted.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
    terminal_mode = mode;
    tcsetattr(STDIN_FILENO, TCSANOW, &wanted);
}

// Whatever ends us, the terminal is as it was; then the signal does what it always does.
void end_by_signal(int number) {
    set_terminal(original);
    raise(number);
}

// Decides what each signal does. For main(), before any thread is started.
void handle_signals() {
    struct sigaction action {};
    action.sa_handler = end_by_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_NODEFER;
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGABRT, SIGSEGV}) sigaction(number, &action, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
}

class Connection {
   public:
    explicit Connection(Fd socket) : socket_(std::move(socket)) {}

    // Returns the lines that have come, cleaned: the server is not trusted to have done it. None: the connection has
    // ended. Blocks until then. Only the reader.
    std::vector<std::string> receive() {
        std::vector<std::string> lines;
        while (receive_into(lines) && lines.empty()) continue;
        return lines;
    }

    // Sends all of text. A connection that is broken takes everything; it is the reader that finds out. May block.
    void send_text(std::string_view text) const {
        while (!text.empty()) {
            const ssize_t count = send(socket_.get(), text.data(), text.size(), 0);
            if (count < 0 && errno != EINTR) return;
            text.remove_prefix(count < 0 ? 0 : static_cast<std::size_t>(count));
        }
    }

    // Nothing more will be sent. The server then ends the connection from its side.
    void end_sending() const { shutdown(socket_.get(), SHUT_WR); }

   private:
    // Waits until something comes, and adds the lines that are whole now. False: the connection has ended.
    bool receive_into(std::vector<std::string>& lines) {
        std::array<char, 65536> bytes{};
        const ssize_t count = recv(socket_.get(), bytes.data(), bytes.size(), 0);
        if (count > 0) inbox_.add({bytes.data(), static_cast<std::size_t>(count)});
        while (const std::optional<Line> line = inbox_.next()) {
            lines.push_back(line->too_long ? "ERR The server sent a line that is too long." : clean(line->text));
        }
        return count > 0 || (count < 0 && errno == EINTR);
    }

    const Fd socket_;
    LineBuffer inbox_{max_server_line};
};

// Tries the addresses in turn. Throws if none answers, with what was wrong with the last.
Fd connect_to(const std::string& host, const std::string& port) {
    const AddressList addresses = resolve(host, port);
    for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
        Fd socket(::socket(at->ai_family, at->ai_socktype, at->ai_protocol));
        if (socket && connect(socket.get(), at->ai_addr, at->ai_addrlen) == 0) return socket;
    }
    throw_errno("connect to " + host);
}

struct Form {
    std::string_view word;
    std::size_t fields;
    std::string_view look;  // %1 to %3 are fields, %t is the text behind them
};

constexpr Form forms[] = {
    {"SAY", 1, "%1: %t"},    {"ME", 1, "* %1 %t"},     {"ERR", 0, "!! %t"},      {"REFUSE", 0, "!! %t"},
    {"JOIN", 1, "-- %1 %t"}, {"LEAVE", 1, "-- %1 %t"}, {"OWNER", 1, "-- %1 %t"}, {"ROOM", 3, "-- %t"},
    {"BYE", 1, "-- %t"},     {"INFO", 0, "-- %t"},     {"WELCOME", 1, "-- %t"},  {"NICK", 0, "-- %t"},
    {"PASS", 0, "-- %t"},    {"NEWPASS", 0, "-- %t"},  {"", 0, "-- %t"},  // a word of a newer server
};

// Returns what a line from the server looks like to a person.
std::string look_of(std::string_view text) {
    const std::string_view word = text.substr(0, text.find(' '));
    const Form* form =
        std::find_if(std::begin(forms), std::end(forms) - 1, [&](const Form& known) { return known.word == word; });
    if (!form->word.empty()) take_word(text);
    std::array<std::string_view, 3> fields;
    for (std::size_t i = 0; i < form->fields; ++i) fields.at(i) = take_word(text);
    std::string look;
    for (std::size_t i = 0; i < form->look.size(); ++i) {
        if (form->look[i] != '%') {
            look += form->look[i];
            continue;
        }
        const char which = form->look[++i];
        look += which == 't' ? text : fields.at(static_cast<std::size_t>(which - '1'));
    }
    return look;
}

class Client {
   public:
    explicit Client(Fd socket) : server_(std::move(socket)) {}

    // Starts both threads. Blocks until the chat is over.
    void run() {
        set_terminal(key_by_key);
        std::thread reader(&Client::read_lines, this);
        std::thread writer(&Client::write_lines, this);
        writer.join();
        reader.join();
        set_terminal(original);
        std::cout << "-- The connection has ended." << std::endl;
    }

   private:
    // The reader: until the server ends the connection.
    void read_lines() {
        for (auto lines = server_.receive(); !lines.empty(); lines = server_.receive()) {
            const Lock lock(mutex_);
            erase();
            for (const std::string& line : lines) show(line);
            draw();
        }
        stop_.set();
    }

    // The writer: until the input ends, or the reader has ended.
    void write_lines() {
        std::array<pollfd, 2> polled{{{STDIN_FILENO, POLLIN, 0}, {stop_.fd(), POLLIN, 0}}};
        while (true) {
            if (poll(polled.data(), polled.size(), -1) < 0) continue;
            if (polled[1].revents != 0) return;
            std::array<char, 1024> keys{};
            const ssize_t count = read(STDIN_FILENO, keys.data(), keys.size());
            if (count < 0 && errno == EINTR) continue;
            if (count <= 0 || keys[0] == end_of_input) return server_.end_sending();
            server_.send_text(press({keys.data(), static_cast<std::size_t>(count)}));
        }
    }

    // Returns the lines that are complete now. Locks.
    std::string press(std::string_view keys) {
        std::string entered;
        const Lock lock(mutex_);
        erase();
        for (const char key : keys) press(key, entered);
        draw();
        return entered;
    }

    // What follows is called with the mutex held.

    void press(char key, std::string& entered) {
        if (key == '\n') {
            (entered += std::exchange(typed_, "")) += '\n';
            hidden_ = false;
        } else if (key == backspace || key == '\b') {
            while (!typed_.empty() && is_continuation(typed_.back())) typed_.pop_back();
            if (!typed_.empty()) typed_.pop_back();
        } else if (static_cast<unsigned char>(key) >= ' ') {
            typed_ += key;
        }
    }

    // Whether a byte is not the first of its character in UTF-8.
    static bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80; }

    void show(const std::string& line) {
        std::cout << look_of(line) << '\n';
        if (line.starts_with("PASS ") || line.starts_with("NEWPASS ")) hidden_ = true;
    }

    // Wipes away the line that is typed.
    static void erase() {
        if (terminal_mode == key_by_key) std::cout << "\r\33[K";
    }

    // Draws it again: its end, if it is longer than a row of the screen.
    void draw() const {
        std::string_view seen = hidden_ || terminal_mode == original ? "" : std::string_view(typed_);
        while (count_characters(seen) >= std::max<std::size_t>(screen_width(), 2))
            seen.remove_prefix(decode_utf8(seen).bytes);
        std::cout << seen << std::flush;
    }

    static constexpr char end_of_input = '\4', backspace = '\177';  // Ctrl-D, and what the key sends

    Connection server_;
    Wakeup stop_;  // set when the chat is over: wakes the writer

    // Guarded by the mutex, as is the screen.
    std::mutex mutex_;
    std::string typed_;
    bool hidden_ = false;  // a password is typed
};

}  // namespace

int main(int argc, char** argv) {
    handle_signals();
    try {
        Client(connect_to(argc > 2 ? argv[2] : "127.0.0.1", argc > 1 ? argv[1] : "12345")).run();
        return 0;
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
