// The client: one thread, the reader, brings what the server sends to the screen; another one, the writer, brings what
// is typed to the server. Each of them waits for one thing alone.

#include "common.hpp"

namespace {

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

// The reader: until the server ends the connection.
void read_lines(Connection& server) {
    for (auto lines = server.receive(); !lines.empty(); lines = server.receive()) {
        for (const std::string& line : lines) std::cout << look_of(line) << '\n';
        std::cout << std::flush;
    }
}

// The writer: until the input ends.
void write_lines(const Connection& server) {
    for (std::string line; std::getline(std::cin, line);) server.send_text(line + "\n");
    server.end_sending();
}

[[noreturn]] void run(const std::string& host, const std::string& port) {
    Connection server(connect_to(host, port));
    std::thread(write_lines, std::cref(server)).detach();
    read_lines(server);
    std::cout << "-- The connection has ended." << std::endl;
    std::_Exit(0);  // the writer still waits for the keyboard, and nothing here can wake it
}

}  // namespace

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    try {
        run(argc > 2 ? argv[2] : "127.0.0.1", argc > 1 ? argv[1] : "12345");
    } catch (const std::exception& error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
}
