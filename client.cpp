// client.cpp: the chat client. One thread, the reader, shows what the server sends; the writer sends what is typed.
//
// Part A, the chat, is a whole client by itself, and reads from top to bottom in an evening. Part B, what people rely
// on, is for looking things up: signals, keys, the full-screen form, finding a server, --via, options.
//
// The way of a line from the keyboard to the server, as function names, and that of one from the server to the screen:
//    PlainClient::write()       section 5   the writer waits for a line, and enter_line() says what it is for;
//    ScreenClient::write()      section 11  or for keys: press(), and with Enter say()
//    Client::submit()           section 4   queues the line; send_next() sends it when it is its turn
//    Connection::send_line()    section 2   gives it to the socket
//    Connection::receive()      section 2   the reader waits in read() for what the server sends, one's own line too
//    Client::handle_lines()     section 4   takes the lines: handle_line() keeps what is known up to date
//    show(), refresh()          section 5   print them; in section 11, draw() paints them

#include <ifaddrs.h>
#include <net/if.h>
#include <sys/wait.h>
#include <termios.h>

#include <climits>
#include <cstring>
#include <iomanip>
#include <random>
#include <set>
#include <sstream>

#include "common.hpp"

namespace {

// ==== Part A: the chat =================================================================================

// ---- 1. The terminal ----------------------------------------------------------------------------------
// Its settings belong to whoever started us, and are restored on every way out (section 6).

enum TerminalMode { original, typing_hidden, whole_screen };

std::atomic<TerminalMode> terminal_mode = original;  // if it is another, the terminal has to be restored

// Any thread, and signal handlers. Does nothing where there is no terminal.
void set_terminal(TerminalMode mode);

// Returns whether the terminal, if there is one, is ours: after Ctrl-Z and `bg` it is the shell's.
bool in_foreground() {
    const pid_t group = tcgetpgrp(STDIN_FILENO);
    return group < 0 || group == getpgrp();
}

// Returns whether a person is at both ends: typing, and looking.
bool on_terminal() { return isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0; }

// Any thread. Adds what can be read to a buffer that has add(). Returns false at the end. Blocks until then.
bool read_into(auto& buffer, int fd) {
    std::array<char, 16384> bytes{};
    const ssize_t count = read(fd, bytes.data(), bytes.size());
    if (count > 0) buffer.add({bytes.data(), static_cast<std::size_t>(count)});
    return count > 0 || (count < 0 && errno == EINTR);
}

// The standard input, line by line: a terminal's, or a pipe's. One thread at a time.
class Keyboard {
   public:
    // Returns the next line; nothing at the end of the input, or when `stop` is set. Blocks until then.
    std::optional<Line> read_line(const Wakeup& stop) {
        while (true) {
            if (std::optional<Line> line = lines_.next()) return line;
            if (at_end_) return lines_.last();
            if (!wait_for(STDIN_FILENO, POLLIN, stop)) return std::nullopt;
            at_end_ = !read_into(lines_, STDIN_FILENO);
        }
    }

    // Asks a question, and returns the answer, or the default. Blocks. Throws if the input ends without a default.
    std::string ask(const std::string& question, const std::string& by_default) {
        std::cout << question << (by_default.empty() ? "" : " [" + by_default + "]") << ": " << std::flush;
        const std::optional<Line> answer = read_line(Wakeup());
        if (!answer && by_default.empty()) throw std::runtime_error("the input ended before a server was chosen");
        const std::string text(answer ? trim(answer->text) : "");
        return text.empty() ? by_default : text;
    }

   private:
    LineBuffer lines_{max_line};
    bool at_end_ = false;
};

// ---- 2. The connection --------------------------------------------------------------------------------
// TCP to the server, or a command that reaches it in its own way (--via, section 13), which makes no difference here.

constexpr int connect_limit = 5000;  // milliseconds

// Where the server is, looked up once: a client that reconnects does not have to wait for name servers.
struct Target {
    std::string name;  // for the person
    std::string via;   // a command; empty: the addresses
    AddressList addresses{nullptr, freeaddrinfo};
};

class Connection {
   public:
    explicit Connection(Fd socket) : socket_(std::move(socket)) {}
    virtual ~Connection() = default;

    // The reader waits here. Returns lines, cleaned, since the server is not trusted (promise 3); none at the end.
    std::vector<std::string> receive() {
        std::vector<std::string> lines;
        while (receive_into(lines) && lines.empty()) continue;
        return lines;
    }

    // Never blocks: one line always fits; a server that has not taken the last is gone, as the reader will find out.
    void send_line(const std::string& line) const {
        const std::string text = line + '\n';
        const ssize_t sent = send(socket_.get(), text.data(), text.size(), MSG_DONTWAIT);
        if (sent < 0 ? errno == EAGAIN : std::cmp_less(sent, text.size())) end();
    }

    int fd() const { return socket_.get(); }

    // Any thread: the reader's receive() ends. The socket is closed when nobody uses it any more.
    void end() const { shutdown(socket_.get(), SHUT_RDWR); }

   protected:
    // Waits until something comes, and adds the lines that are whole now. False: the connection has ended.
    virtual bool receive_into(std::vector<std::string>& lines) {
        const bool open = read_into(inbox_, socket_.get());
        while (const std::optional<Line> line = inbox_.next())
            lines.push_back(line->too_long ? "ERR The server sent a line that is too long." : clean(line->text));
        return open;
    }

   private:
    const Fd socket_;
    LineBuffer inbox_{max_server_line};
};

// Starts a command, and returns the connection to it. may_ask: it may use the terminal, as ssh does to ask for a
// password. Does not wait for the command. Throws if it cannot be started. (Section 13)
std::shared_ptr<Connection> start_helper(const std::string& command, bool may_ask);

// Connects, and waits for the first words, for twice connect_limit at most. Returns 0, or what went wrong as an errno.
int connect_within_limit(const Fd& socket, const addrinfo& to, const Wakeup& stop) {
    fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
    fcntl(socket.get(), F_SETFL, O_NONBLOCK);
    watch_for_vanishing(socket);
    if (connect(socket.get(), to.ai_addr, to.ai_addrlen) != 0 && errno != EINPROGRESS) return errno;
    if (!wait_for(socket.get(), POLLOUT, stop, connect_limit)) return ETIMEDOUT;
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    fcntl(socket.get(), F_SETFL, 0);
    return error == 0 && !wait_for(socket.get(), POLLIN, stop, connect_limit) ? ENOMSG : error;
}

std::string connect_advice(int error) {
    if (error == ETIMEDOUT) return "no answer within 5 seconds: is the address right, and does a firewall let it in?";
    if (error == ENOMSG) return "connected, but nothing was said within 5 seconds: is that a chat server?";
    return error_text(error) + (error == ECONNREFUSED ? ": is a server running there?" : "");
}

// Tries the addresses in turn, and blocks for connect_within_limit() at each. Throws if none answers, saying why.
Fd connect_to(const Target& target, const Wakeup& stop) {
    std::string problem = "connect to " + target.name + ":";
    for (const addrinfo* at = target.addresses.get(); at != nullptr; at = at->ai_next) {
        Fd socket(::socket(at->ai_family, at->ai_socktype, at->ai_protocol));
        const int error = socket ? connect_within_limit(socket, *at, stop) : errno;
        if (error == 0) return socket;
        if (at != target.addresses.get()) problem += ';';
        if (target.addresses->ai_next != nullptr) problem += ' ' + address_text(at->ai_addr, at->ai_addrlen) + ':';
        problem += ' ' + connect_advice(error);
    }
    throw std::runtime_error(problem);
}

// Returns a connection to the server. Blocks, or throws, as connect_to() does. may_ask: as in start_helper().
std::shared_ptr<Connection> open_connection(const Target& target, const Wakeup& stop, bool may_ask) {
    if (!target.via.empty()) return start_helper(target.via, may_ask);
    return std::make_shared<Connection>(connect_to(target, stop));
}

// ---- 3. The server's words ----------------------------------------------------------------------------
// What lines look like: "alice:" for what is said, "*" for /me, "alice -> bob:" in private, "--" for a notice, "!!" for
// an error, "==" for /echo. No name looks like these marks. Any thread may call what is here; none blocks or throws.

enum class Style : unsigned char { plain, faint, error, whisper, mention, mark, bar, button, chosen, names };

// What is shown of a line, but for the time.
struct Entry {
    std::time_t time = 0;
    Style style = Style::plain;
    std::size_t name = 0;  // bytes of the text that are the speaker's name
    std::string text = {};
};

// Returns the time of day, and the date if it is not today's.
std::string time_shown(std::time_t time) {
    const char* day = "%Y-%m-%d";
    const bool today = local_time(time, day) == local_time(std::time(nullptr), day);
    return local_time(time, today ? "%H:%M" : "%Y-%m-%d %H:%M");
}

// Returns a time on the wire (utc_time()) as a time; 0 if it is none.
std::time_t wire_time(const std::string& text) {
    std::tm parts{};
    const char* end = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    return end == nullptr ? 0 : timegm(&parts);
}

std::string counted(std::string_view count, const char* one, const char* several) {
    return std::string(count) + ' ' + (count == "1" ? one : several);
}

struct Form {
    std::string_view word;
    std::size_t fields;
    std::string_view look;  // %1 to %5 are fields, and letters what Message::part() makes of them
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
    {"ROOM", 3, "── %1 ── %t", Style::mark},
    {"TOPIC", 1, "-- topic of %1: %t", Style::faint},
    {"WHO", 2, "-- %2 in %1: %t", Style::faint},
    {"ROOMS", 1, "-- %r", Style::faint},
    {"LIST", 5, "-- %1: %2, %p, %c, made by %4 on %d", Style::faint},
    {"BYE", 1, "-- %t", Style::faint},
    {"INFO", 0, "-- %t", Style::faint},
    {"WELCOME", 1, "-- %t", Style::faint},
    {"NICK", 0, "-- %t", Style::faint},
    {"PASS", 0, "-- %t", Style::faint},
    {"NEWPASS", 0, "-- %t", Style::faint},
    {"HELPER", 0, "-- %t", Style::faint},  // not the server's: see section 13
    {"", 0, "-- %t", Style::faint},        // a word of a newer server
};

// A line from the server, taken apart. It views the line, which has to outlive it.
struct Message {
    explicit Message(std::string_view line) : past(line.starts_with("PAST ")), text(line) {
        if (past) {
            take_word(text);
            time = wire_time(std::string(take_word(text)));
        }
        word = text.substr(0, text.find(' '));
        form = std::find_if(std::begin(forms), std::end(forms) - 1, [&](const Form& f) { return f.word == word; });
        if (!form->word.empty()) take_word(text);
        for (std::size_t i = 0; i < form->fields; ++i) fields.at(i) = take_word(text);
    }

    // Returns what it looks like to a person.
    Entry entry() const {
        Entry entry{time, form->style, form->look.starts_with("%1") ? fields[0].size() : 0};
        for (std::size_t i = 0; i < form->look.size(); ++i) {
            const char c = form->look[i];
            entry.text += c == '%' ? part(form->look[++i]) : std::string(1, c);
        }
        return entry;
    }

    std::string part(char which) const {
        switch (which) {
            case 't': return std::string(text);
            case 'r': return counted(fields[0], "room", "rooms");
            case 'p': return counted(fields[2], "person", "people");
            case 'c': return text == "CODE" ? "with a code" : "no code";
            case 'd': return local_time(wire_time(std::string(fields[4])), "%Y-%m-%d at %H:%M");
            default: return std::string(fields.at(static_cast<std::size_t>(which - '1')));
        }
    }

    bool is_speech() const { return word == "SAY" || word == "ME" || word == "MSG"; }

    bool past;  // said before we came
    std::time_t time = std::time(nullptr);
    std::string_view word, text;
    std::array<std::string_view, 5> fields = {};
    const Form* form = nullptr;
};

// ---- 4. The client: what both forms share -------------------------------------------------------------
// It knows where it is, and what the server waits for; the reader keeps that up to date, and reconnects. How lines are
// shown and typed is left to the two forms, plain and screen.
//
// What is typed goes where it was meant to go (promise 7): lines wait in one queue, each for the room in which it was
// begun. One at a time is sent, and stays there until it is answered: so it is known where we are before the next one
// goes, and what a broken connection has swallowed is sent again.
//
// One mutex guards what the reader and the writer share. All that follows is called with the mutex held, except what
// says that it locks it. While it is held, nothing waits for the socket or the keyboard.

// What the line that is typed next answers.
enum class Question { none, name, password, new_password, repeated_password };

struct OwnLine {
    std::string text;
    std::string room;      // in which it was begun; empty: for whichever it is, and not the person's
    std::string leads_to;  // the room to which it brings us; "?": that is not known; empty: none
    bool speaks = false;   // it comes back, if it is not refused
    bool bound = false;    // to `room`: it is said there, or does something to it
};

class Client {
   public:
    // Connects: blocks and throws as open_connection() does. name: to log in with; none: the person is asked.
    Client(Target target, std::optional<std::string> name)
        : target_(std::move(target)), server_(open_connection(target_, stop_, true)), name_to_send_(std::move(name)) {}
    virtual ~Client() = default;

    // Starts both threads. Blocks until the chat is over, tells why it is, and returns the exit status. Locks.
    int run() {
        std::thread reader(&Client::read, this);
        std::thread writer([this] {
            name_thread("writer");
            Lock lock(mutex_);
            changed_.wait(lock, [this] { return greeted_ || ended_; });
            write(lock);
        });
        writer.join();
        reader.join();
        if (exit_status_ != 0 && in_foreground()) tcflush(STDIN_FILENO, TCIFLUSH);  // half a line is not the shell's
        set_terminal(original);
        std::cout << last_words_ << (last_words_.empty() ? "" : "\n") << std::flush;
        if (lines_waiting() > 0) error_ += (error_.empty() ? "" : "; ") + unsent(lines_waiting());
        if (!error_.empty()) std::cerr << program_name << ": " << error_ << std::endl;
        return exit_status_;
    }

   protected:
    // What the forms do in their own ways.
    virtual void show(const Message& message) = 0;
    virtual void refresh() = 0;          // lines have been shown, or a question came: time to let the person see it
    virtual void write(Lock& lock) = 0;  // the writer: blocks, with the mutex released, until the chat is over

    // Returns what a line of the person's would be, if it were queued now.
    OwnLine own_line(const std::string& text) const {
        OwnLine line{text, heading(), ""};
        std::string_view rest = trim(text);
        const bool is_text = !rest.starts_with('/') || rest.starts_with("//");
        const std::string command = fold(take_word(rest));
        rest = trim(rest);
        const std::string room(take_word(rest));
        line.speaks = is_text || command == "/me" || command == "/msg" || command == "/reply";
        line.bound = is_text || command == "/me" || command == "/kick" || command == "/close" || command == "/topic";
        if ((command == "/leave" || command == "/close") && line.room != "public") line.leads_to = "public";
        if (command == "/password") line.leads_to = "?";  // what is typed ahead may be an answer
        if (command == "/join" || command == "/create") line.leads_to = valid_name(room) ? room : "?";
        if (line.room == "?") line.leads_to.clear();  // it will not be sent
        return line;
    }

    // The writer: queues a line for the room that heading() returns. False: not now.
    bool submit(const std::string& text) {
        if (name_.empty() || waiting_.size() >= max_waiting) return false;
        const bool empty = trim(clean(text)).empty();  // the server would not answer that
        if (!empty) waiting_.push_back(own_line(text));
        send_next();
        return true;
    }

    // Asks for the list of rooms by itself. Nothing waits for the answer: not every server has one.
    void list_rooms() { server_->send_line("/rooms"); }

    // Returns the room in which we are once the lines that wait are done; "?" if that is not known.
    std::string heading() const {
        const auto last = std::find_if(waiting_.rbegin(), waiting_.rend(), [](auto& l) { return !l.leads_to.empty(); });
        return last == waiting_.rend() ? room_ : last->leads_to;
    }

    // Returns how many of the person's lines are not answered yet.
    long lines_waiting() const {
        return std::count_if(waiting_.begin(), waiting_.end(), [](const auto& line) { return !line.room.empty(); });
    }

    // Returns whether the server may ask something next: it has had an answer, or /password.
    bool may_be_asked() const { return answered_ != Question::none || heading() == "?"; }

    // Returns whether the connection has broken, and we are not in again.
    bool returning() const { return !logged_in_ && !name_.empty(); }

    // Returns whether the server has answered all that it was sent, and waits for the next line.
    bool is_idle() const { return logged_in_ && waiting_.empty() && open_question() == 0 && !may_be_asked(); }

    // Returns the number of the question that is open; 0 if none is.
    unsigned open_question() const { return question_ == Question::none ? 0 : question_number_; }

    // The writer: sends the answer to the question that is open.
    void answer(const std::string& text) {
        const Question question = question_;
        if (question >= Question::password && !accept_password(text)) return;
        set_question(Question::none);
        answered_ = text.empty() ? Question::new_password : question;  // after an empty one nothing more may be asked
        server_->send_line(text);
    }

    static bool is_quit(std::string_view line) {
        return same_name(trim(line), "/quit") || same_name(trim(line), "/exit");
    }

    // The writer: ends the chat as the person wishes, through the server if it would take that for a command.
    void quit() {
        const bool again = std::exchange(exit_status_, 0) == 0;
        const bool is_command = logged_in_ && open_question() == 0 && !may_be_asked();
        if (again || !is_command) return end_chat();
        server_->send_line("/quit");
    }

    // Any thread: ends the chat. error: what to tell, if neither the person wishes it nor the server has said why.
    void end_chat(const std::string& error = "") {
        if (!error.empty()) error_ = error, exit_status_ = 1;
        ended_ = true;
        changed_.notify_all();
        stop_.set();
        server_->end();
    }

    // The writer: tells the server, now and then, that there is somebody, by an empty line, which it skips.
    void show_life() {
        if (!is_idle() || Clock::now() - last_life_ < std::chrono::seconds(30)) return;
        last_life_ = Clock::now();
        server_->send_line("");
    }

    // The writer: forgets the person's lines that are not sent yet, and returns how many.
    std::size_t withdraw() {
        const OwnLine* sent = sent_ ? &waiting_.front() : nullptr;
        return std::erase_if(waiting_, [&](const OwnLine& line) { return &line != sent && !line.room.empty(); });
    }

    // Shows something of our own, in the server's words.
    void show_notice(std::string_view line) { show(Message(line)); }

    const Target target_;
    Wakeup stop_;                        // set once, when the chat is over
    std::chrono::milliseconds pace_{0};  // the reader's pause after what it has shown: more is shown at once

    // All that follows is guarded by the mutex.
    std::mutex mutex_;
    std::condition_variable changed_;  // what the writer and reconnect() wait for
    Question question_ = Question::none;
    bool greeted_ = false;         // the server's first line is here
    std::deque<OwnLine> waiting_;  // not answered yet
    bool logged_in_ = false;       // we are in a room; false again when the connection breaks
    bool ended_ = false;           // the chat is over
    std::string over_;             // why the server has ended it, as long as the person has not decided what then
    bool banned_ = false;          // by which there is no way back
    std::string error_;            // why it is, if the server has not said
    std::string last_words_;       // the server's, if they vanish with the screen
    std::string trouble_;          // what is wrong with the connection now
    std::string name_;             // ours, as the server has it; empty before the login
    std::string room_ = "public";  // where we are
    std::string code_ = "-";       // of that room
    std::string refused_;          // the room to which the line before would have led us; empty: it did, or led nowhere

   private:
    static constexpr std::size_t max_waiting = 10000;
    static constexpr std::chrono::seconds first_delay{1}, max_delay{30};  // before reconnecting

    // ---- The reader

    // Locks, as do handle_lines() and reconnect().
    void read() {
        name_thread("reader");
        do {
            while (handle_lines(server_->receive())) std::this_thread::sleep_for(pace_);
        } while (reconnect());
        const Lock lock(mutex_);
        if (!ended_) end_chat("the connection was lost");
    }

    // False: the connection has ended, or what may still come does not matter any more. Locks.
    bool handle_lines(const std::vector<std::string>& lines) {
        if (lines.empty()) return false;
        const Lock lock(mutex_);
        for (const std::string& line : lines) handle_line(line);
        if (notice_ != nullptr) show_notice("INFO " + clean(std::exchange(notice_, nullptr)));
        send_next();
        refresh();
        changed_.notify_all();
        return !ended_;
    }

    // Shows a line, and keeps what we know up to date.
    void handle_line(std::string_view line) {
        if (ended_ || !over_.empty()) return;
        const Message message(line);
        const std::string_view word = message.word, name = message.fields[0];
        greeted_ |= word != "HELPER";
        const bool answered = word == "NICK" || (word == "PASS" && !password_to_send_.empty());
        if (!answered || !returning()) show(message);  // on the way back we answer by ourselves
        if (message.past) return;
        if (sent_ && answers(message, waiting_.front())) confirm_line(word == "ERR");
        if (word == "NICK") answer_name();
        if (word == "PASS") answer_password();
        if (word == "NEWPASS") set_question(Question::new_password);
        if (word == "ERR" && answered_ != Question::none) typed_password_.clear();
        if (word == "INFO" && answered_ >= Question::new_password) complete_password();
        if (word == "WELCOME") complete_login(name);
        if (word == "ROOM") enter_room(name, message.fields[1]);
        if (word == "BYE" || word == "REFUSE" || word == "BAN") end_by_server(message);
    }

    // ---- Our lines

    // Returns whether what the server says answers a line of ours: that is said, or carried out, or refused.
    bool answers(const Message& message, const OwnLine& line) const {
        static const std::set<std::string_view> unasked = {"SAY",   "ME",    "MSG",   "BLOCKED", "JOIN",
                                                           "LEAVE", "OWNER", "ROOMS", "LIST",    "HELPER"};
        if (message.word == "ERR") return true;
        if (same_name(trim(line.text), "/password")) return message.word == "PASS";
        const bool there = line.leads_to == "?" || same_name(message.fields[0], line.leads_to);
        if (!line.leads_to.empty()) return message.word == "ROOM" && there;
        const bool ours = message.is_speech() && !message.past && same_name(message.fields[0], name_);
        const bool listed = message.word == "ROOMS" && same_name(trim(line.text), "/rooms");
        return ours || listed || (!line.speaks && !unasked.contains(message.word));
    }

    void confirm_line(bool refused) {
        const OwnLine& line = waiting_.front();
        if (line.speaks) last_said_ = line.text;
        refused_ = refused && !line.room.empty() ? line.leads_to : "";
        waiting_.pop_front();
        sent_ = false;
    }

    // Sends the next line, if it is its turn. Lines that were begun in another room are not sent, and that is told.
    void send_next() {
        if (!logged_in_ || sent_ || open_question() != 0 || answered_ != Question::none) return;
        const auto is_for = [this](const OwnLine& line) { return line.room.empty() || same_name(line.room, room_); };
        const auto next = std::find_if(waiting_.begin(), waiting_.end(), is_for);
        const auto lost = next - waiting_.begin();
        waiting_.erase(waiting_.begin(), next);
        if (lost > 0) show_notice("ERR You are in " + room_ + " now: " + unsent(lost));
        sent_ = !waiting_.empty();
        if (sent_) server_->send_line(waiting_.front().text);
    }

    std::string unsent(long count) const {
        return counted(std::to_string(count), "line was", "lines were") + " not sent" +
               (last_said_.empty() ? "." : "; the last one that was: " + last_said_);
    }

    // ---- The login, and other questions

    void set_question(Question question) {
        question_ = question;
        answered_ = Question::none;
        ++question_number_;
    }

    // The server has accepted the password that was typed last, or /password is over without a new one.
    void complete_password() {
        if (!typed_password_.empty()) password_ = std::exchange(typed_password_, "");
        set_question(Question::none);
    }

    // False: that is not an answer to send yet. Passwords are kept in memory alone, to reconnect with.
    bool accept_password(const std::string& text) {
        const bool first = question_ == Question::new_password && on_terminal() && !text.empty();
        const bool again = question_ == Question::repeated_password && !text.empty() && text != typed_password_;
        typed_password_ = text;
        if (!first && !again) return true;
        const std::string problem = again ? "That was not the same. The new one, please." : password_problem(text);
        set_question(problem.empty() ? Question::repeated_password : Question::new_password);
        show_notice(problem.empty() ? "INFO The same once more, please." : "ERR " + problem);
        return false;
    }

    void answer_name() {
        if (name_to_send_ && !name_to_send_->empty()) {
            server_->send_line(std::exchange(*name_to_send_, ""));
        } else if (returning() && !by_hand_) {  // the server has not yet noticed that we were gone
            server_->end();
        } else if (name_to_send_ && isatty(STDIN_FILENO) == 0) {  // what comes from a pipe is no name, but to be said
            end_chat("the server did not take the name");
        } else {
            set_question(Question::name);
        }
    }

    void answer_password() {
        if (password_to_send_.empty() || !returning()) return set_question(Question::password);
        server_->send_line(std::exchange(password_to_send_, ""));
    }

    void complete_login(std::string_view name) {
        complete_password();
        name_ = valid_name(name) ? name : "";
        delay_ = first_delay;
    }

    void enter_room(std::string_view name, std::string_view code) {
        const bool has_code = code.size() == 5 && std::all_of(code.begin(), code.end(), is_digit);
        room_ = valid_name(name) ? name : "?";
        code_ = has_code ? code : "-";
        refused_.clear();
        logged_in_ = true;
    }

    // ---- The end, and reconnecting

    // No end by the server is undone without the person. But a refusal on the way back may pass: a full server's, say.
    void end_by_server(const Message& message) {
        if (message.word == "REFUSE" && returning()) return server_->end();
        exit_status_ = message.word == "BYE" && message.fields[0] == "QUIT" ? 0 : 1;
        if (exit_status_ == 0 || terminal_mode != whole_screen) return end_chat();
        over_ = message.text.empty() ? "The end." : message.text;  // on the screen, the person may join again
        banned_ = message.word == "BAN" || message.fields[0] == "BAN";
        server_->end();
    }

    // After 1, 2, 4 ... 30 seconds. False: the chat is over. Else the next lines are those of a login. Locks.
    bool reconnect() {
        Lock lock(mutex_);
        const bool in_login = name_.empty() && terminal_mode == whole_screen;  // what is typed is not for the shell
        if (in_login && !ended_ && over_.empty()) handle_line("BYE LOST The connection was lost."), refresh();
        by_hand_ = !over_.empty();
        changed_.wait(lock, [this] { return ended_ || over_.empty(); });
        if (ended_ || exit_status_ == 0 || (!by_hand_ && (name_.empty() || !on_terminal()))) return false;
        prepare_return();
        std::string problem = by_hand_ ? "Joining again" : "The connection was lost";
        while (!ended_ && !problem.empty()) {
            const std::chrono::seconds delay = std::exchange(delay_, std::min(delay_ * 2, max_delay));
            trouble_ = "trying again in " + std::to_string(delay.count()) + " s";
            if (delay < max_delay) show_notice("ERR " + problem + "; " + trouble_ + ".");
            refresh();
            changed_.wait_for(lock, delay, [this] { return ended_; });
            lock.unlock();
            problem = connect_again();
            lock.lock();
        }
        return !ended_;
    }

    // After the login we are in public: what goes first is to join the room where we were.
    void prepare_return() {
        const std::string join = "/join " + room_ + (code_ == "-" ? "" : ' ' + code_);
        const bool known = !waiting_.empty() && waiting_.front().text == join;
        if (valid_name(room_) && room_ != "public" && !known) waiting_.push_front({join, "", room_});
        logged_in_ = sent_ = false;
        set_question(Question::none);
        typed_password_.clear();
    }

    // Returns what went wrong, if anything did. Blocks as open_connection() does. Locks, but not while it blocks.
    std::string connect_again() {
        try {
            std::shared_ptr<Connection> server = open_connection(target_, stop_, false);
            const Lock lock(mutex_);
            server_ = std::move(server);
            trouble_.clear();
            name_to_send_ = name_;
            password_to_send_ = password_;
            return "";
        } catch (const std::exception& error) {
            return error.what();
        }
    }

    // Guarded by the mutex.
    std::shared_ptr<Connection> server_;                   // replaced by the reader alone
    int exit_status_ = 1;                                  // 0: the person wishes to leave
    const char* notice_ = std::getenv("CHATROOM_NOTICE");  // shown once, at the beginning
    std::optional<std::string> name_to_send_;     // when asked: from --name, or to reconnect; empty once it was sent
    std::string password_, password_to_send_;     // likewise
    std::string typed_password_;                  // not accepted yet
    unsigned question_number_ = 0;                // another one whenever something is asked, or is not any more
    Question answered_ = Question::none;          // what the server has got an answer to, and not yet replied
    bool sent_ = false;                           // the first line that waits is with the server
    bool by_hand_ = false;                        // the person has joined again, and may be asked for another name
    std::string last_said_;                       // of our lines, as far as we know
    std::chrono::seconds delay_ = first_delay;    // before the next try to reconnect
    Clock::time_point last_life_ = Clock::now();  // when the server was told of it
};

// ---- 5. The plain form --------------------------------------------------------------------------------
// Lines in, lines out: on a terminal, or in a pipe, where each is read when it is its turn. The end means /quit.

class PlainClient : public Client {
   public:
    // As Client(). The keyboard has to outlive it.
    PlainClient(Target target, std::optional<std::string> name, Keyboard& keyboard)
        : Client(std::move(target), std::move(name)), keyboard_(keyboard) {}

   private:
    // What was true when a line may have been begun, which the kernel edits: when the one before it was done.
    struct Begun {
        unsigned question;  // open_question()
        std::string room;
    };

    void show(const Message& message) override {
        if (message.word == "PASS" || message.word == "NEWPASS") set_terminal(typing_hidden);  // before it is asked for
        const std::string typed = std::exchange(typed_last_, "");
        const bool stands_above = !typed.empty() && message.text == clean(typed) && !message.past;
        if (stands_above && message.word == "SAY" && message.fields[0] == name_) return;
        Entry entry = message.entry();
        if (message.word == "ROOM") entry.text = "-- " + message.part('1') + " -- " + message.part('t');
        std::cout << wrapped(time_shown(entry.time) + ' ' + entry.text, screen_width()) << '\n';
        const bool refused = message.word == "ERR" && logged_in_ && heading() == "?";
        if (!typed_ || !refused || !wait_for(STDIN_FILENO, POLLIN, stop_, 0)) return;
        tcflush(STDIN_FILENO, TCIFLUSH);  // it may be a password, or for the room that is not there
        show_notice("ERR What you typed meanwhile was not sent.");
    }

    void refresh() override {
        std::cout << std::flush;
        if (!std::cout && !ended_) end_chat("write: " + error_text(errno));
        const bool secret = question_ >= Question::password;
        const bool for_question = begun_ && begun_->question != 0;  // what was begun hidden stays so
        if (secret || !for_question) set_terminal(secret ? typing_hidden : original);
        if (!begun_ && takes_line()) begun_ = Begun{open_question(), heading()};
    }

    bool takes_line() const { return open_question() != 0 || (typed_ ? !name_.empty() && !may_be_asked() : is_idle()); }

    void write(Lock& lock) override {
        while (changed_.wait(lock, [this] { return ended_ || begun_; }), !ended_) {
            lock.unlock();
            const std::optional<Line> line = keyboard_.read_line(stop_);
            lock.lock();
            if (!line && !ended_) name_.empty() ? end_chat("the input ended before the login was complete") : quit();
            if (!line) return;
            if (terminal_mode == typing_hidden) std::cout << '\n';
            enter_line(*line, *std::exchange(begun_, std::nullopt));
            refresh();
        }
    }

    void enter_line(const Line& line, const Begun& begun) {
        if (line.too_long) {
            std::cerr << program_name << ": that line has more than " << max_line << " bytes and was not sent\n";
        } else if (typed_ && begun.question != open_question()) {
            show_notice("ERR That line was not sent: it was begun before the server's question, or for another one.");
        } else if (open_question() != 0) {
            answer(line.text);
        } else if (is_quit(line.text)) {
            quit();
        } else {
            say(line.text, typed_ ? begun.room : heading());
        }
    }

    void say(const std::string& text, const std::string& room) {
        const std::string line = text.empty() ? held_ : text;
        const bool is_elsewhere = !same_name(room, heading()) && !same_name(room, refused_);
        held_ = is_elsewhere && own_line(line).bound ? line : "";
        if (!held_.empty()) {
            show_notice("ERR You are in " + heading() + " now: Enter alone says there what you have just typed.");
        } else if (!submit(line)) {
            show_notice("ERR Too much waits already: that line was not sent.");
        } else if (returning() && !line.empty()) {
            show_notice("INFO That line waits until the connection is back.");
        } else if (on_terminal()) {
            typed_last_ = text;
        }
    }

    const bool typed_ = isatty(STDIN_FILENO) != 0;
    std::optional<Begun> begun_;  // the line that is typed now
    std::string held_;            // a line that was begun in another room
    std::string typed_last_;      // stands in the terminal's last row: it need not be shown when it comes back
    Keyboard& keyboard_;
};

// ==== Part B: what people rely on ======================================================================

// ---- 6. The terminal's modes, and signals -------------------------------------------------------------
// What signal handlers need is global, and what they call is async-signal-safe.

termios original_settings;                           // the terminal's, to which it is restored
std::atomic<bool> restored_for_good = false;         // a signal ends us: no thread changes the terminal any more
std::atomic<pid_t> helper_pid = 0;                   // the command of --via, which must not outlive us
std::atomic<const Wakeup*> screen_signal = nullptr;  // wakes the writer after a signal that concerns the screen
std::atomic<bool> reopen_screen = true;              // the writer has to, once we are in the foreground
static_assert(std::atomic<TerminalMode>::is_always_lock_free && std::atomic<const Wakeup*>::is_always_lock_free);

// The window's title is saved; the other screen, no wrapping, reports of mouse, focus and pastes. And all of it undone.
constexpr std::string_view open_screen = "\33[22;2t\33[?1049h\33[?7l\33[?1000;1006h\33[?1004h\33[?2004h";
constexpr std::string_view close_screen = "\33[?2004l\33[?1004l\33[?1000;1006l\33[?7h\33[?25h\33[m\33[?1049l\33[23;2t";

// Any thread, and signal handlers. Blocks until the terminal has the bytes, or is gone; if impatient, half a second.
void write_to_terminal(std::string_view bytes, bool patient) {
    const int flags = fcntl(STDOUT_FILENO, F_GETFL) & ~O_NONBLOCK;
    if (!patient) fcntl(STDOUT_FILENO, F_SETFL, flags | O_NONBLOCK);
    for (int tries = 0; !bytes.empty() && (patient || tries < 5);) {
        const ssize_t written = write(STDOUT_FILENO, bytes.data(), bytes.size());
        if (written < 0 && errno != EINTR && errno != EAGAIN) break;
        pollfd output{STDOUT_FILENO, POLLOUT, 0};
        if (written < 0) poll(&output, 1, 100), ++tries;
        bytes.remove_prefix(written < 0 ? 0 : static_cast<std::size_t>(written));
    }
    if (!patient) fcntl(STDOUT_FILENO, F_SETFL, flags);
}

void set_terminal(TerminalMode mode) {
    if (mode == terminal_mode || (mode != original && restored_for_good)) return;
    if (terminal_mode == original && tcgetattr(STDIN_FILENO, &original_settings) != 0) return;
    termios wanted = original_settings;
    if (mode != original) wanted.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    if (mode == whole_screen) {  // keys come one by one and as they are: Ctrl-C in a paste is none
        wanted.c_lflag &= ~static_cast<tcflag_t>(ICANON | IEXTEN | ISIG);
        wanted.c_iflag &= ~static_cast<tcflag_t>(IXON | ICRNL | INLCR | IGNCR | ISTRIP);
    }
    if (terminal_mode == whole_screen) {
        write_to_terminal(close_screen, false);
        tcflush(STDIN_FILENO, TCIFLUSH);  // what was typed ahead is not for the shell
    }
    terminal_mode = mode;
    const int when = mode == typing_hidden ? TCSAFLUSH : TCSANOW;  // no answer is typed ahead
    while (tcsetattr(STDIN_FILENO, when, &wanted) != 0 && errno == EINTR) continue;
    if (mode == whole_screen) write_to_terminal(open_screen, false);
}

// Whatever ends us, the terminal is as it was; only then the signal does what it always does: Ctrl-C may come twice.
void end_by_signal(int number) {
    const int saved = errno;
    if (restored_for_good.exchange(true)) return;  // that is under way
    set_terminal(original);
    if (helper_pid > 0) kill(helper_pid, SIGTERM);
    catch_signal(number, SIG_DFL);
    raise(number);
    errno = saved;
}

void wake_writer() {
    const Wakeup* writer = screen_signal;
    if (writer != nullptr) writer->set();
}

// Ctrl-Z: the shell gets the terminal as it was. We set it again after `fg`; after `bg` SIGTTOU stops us, if we try.
void stop_by_signal(int number) {
    const int saved = errno;
    const TerminalMode mode = terminal_mode;
    set_terminal(original);
    catch_signal(number, SIG_DFL);
    sigset_t none{};
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, nullptr);  // the thread sanitizer blocks it, in spite of SA_NODEFER
    raise(number);                                 // here it stops
    catch_signal(number, stop_by_signal, SA_NODEFER);
    reopen_screen = true;
    if (screen_signal == nullptr) set_terminal(mode);  // the plain form's
    wake_writer();
    errno = saved;
}

// Decides what each signal does: nearly all would end us. For main(), before any thread is started.
void handle_signals() {
    for (int number = 1; number < NSIG; ++number) catch_signal(number, end_by_signal, SA_NODEFER);
    for (const int number : {SIGCHLD, SIGURG, SIGTTIN, SIGTTOU}) catch_signal(number, SIG_DFL);
#ifdef SIGINFO  // where there is this one, it is ignored, and so is SIGIO
    for (const int number : {SIGINFO, SIGIO}) catch_signal(number, SIG_DFL);
#endif
    for (const int number : {SIGWINCH, SIGCONT}) catch_signal(number, [](int) { wake_writer(); });
    catch_signal(SIGTSTP, stop_by_signal, SA_NODEFER);
    catch_signal(SIGPIPE, SIG_IGN);
}

// ---- 7. The width of text -----------------------------------------------------------------------------
// What a person takes for one character, a grapheme, may be many: e and an accent, a family of emoji with joiners, the
// two letters of a flag. On the screen and in the line they stay together. Any thread; nothing here blocks or throws.

constexpr char32_t joiner = 0x200D;

bool is_flag_letter(char32_t code) { return code >= 0x1F1E6 && code <= 0x1F1FF; }

// Returns the columns of a character by itself; 1 for what the locale does not know.
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

// Returns the bytes of the first grapheme of a text, which is not empty. Bounded, whatever the text is.
std::size_t grapheme(std::string_view text) {
    constexpr int max_characters = 16;
    constexpr char32_t first_symbol = 0x2190;  // joiners join nothing before it
    Character last = decode_utf8(text);
    std::size_t bytes = last.bytes;
    bool half_a_flag = is_flag_letter(last.code);
    for (int count = 1; bytes < text.size() && count < max_characters; ++count) {
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

// Returns the columns of a grapheme: 1 or 2.
int grapheme_columns(std::string_view text) {
    const Character first = decode_utf8(text);
    const bool flag = is_flag_letter(first.code) && text.size() > first.bytes;
    const bool as_emoji = text.find("\xEF\xB8\x8F") != std::string_view::npos;  // U+FE0F
    return flag || as_emoji ? 2 : std::max(columns_of(first.code), 1);
}

// Takes the first grapheme off a text, which is not empty.
std::string_view take_grapheme(std::string_view& text) {
    const std::string_view first = text.substr(0, grapheme(text));
    text.remove_prefix(first.size());
    return first;
}

int columns_of(std::string_view text) {
    int columns = 0;
    while (!text.empty()) columns += grapheme_columns(take_grapheme(text));
    return columns;
}

// Returns text with spaces behind it, or cut off, so that it takes so many columns.
std::string padded(std::string_view text, int columns) {
    std::string result;
    while (!text.empty()) {
        const std::string_view next = take_grapheme(text);
        const int wide = grapheme_columns(next);
        if (wide > columns) break;
        result += next;
        columns -= wide;
    }
    return result.append(static_cast<std::size_t>(std::max(columns, 0)), ' ');
}

// ---- 8. Keys, and the line that is typed --------------------------------------------------------------
// A terminal sends a key as one byte or as a sequence of them. Keys, which is the writer's, finds out which key it was;
// an Editor is the line that is typed with them. It belongs to whoever holds the mutex; nothing here blocks or throws.

// clang-format off
enum class Key {
    text, paste, too_large_paste, enter, escape, tab, interrupt, suspend, abort, redraw, info, rooms,
    backspace, erase, erase_or_quit, kill_before, kill_after, kill_word, kill_word_after, put_back,
    left, right, word_left, word_right, up, down, home, end, page_up, page_down, wheel_up, wheel_down,
    click, focus_in, focus_out, unknown
};

// ESC O and a letter, as some terminals send it, is looked up as ESC [ and that letter. "1;3" is Alt, "1;5" Ctrl.
const std::map<std::string_view, Key> sequences = {
    {"\x01", Key::home},         {"\x02", Key::left},         {"\x03", Key::interrupt},    {"\x04", Key::erase_or_quit},
    {"\x05", Key::end},          {"\x06", Key::right},        {"\x07", Key::info},         {"\x08", Key::backspace},
    {"\t", Key::tab},            {"\n", Key::enter},          {"\x0B", Key::kill_after},   {"\x0C", Key::redraw},
    {"\r", Key::enter},          {"\x0E", Key::down},         {"\x10", Key::up},           {"\x12", Key::rooms},
    {"\x15", Key::kill_before},  {"\x17", Key::kill_word},    {"\x19", Key::put_back},     {"\x1A", Key::suspend},
    {"\x1C", Key::abort},        {"\33", Key::escape},        {"\x7F", Key::backspace},    {"\33\x7F", Key::kill_word},
    {"\33b", Key::word_left},    {"\33f", Key::word_right},   {"\33[A", Key::up},           {"\33[11~", Key::info},
    {"\33[B", Key::down},        {"\33[C", Key::right},       {"\33[D", Key::left},        {"\33[H", Key::home},
    {"\33[F", Key::end},         {"\33[I", Key::focus_in},    {"\33[O", Key::focus_out},   {"\33[P", Key::info},
    {"\33[Q", Key::rooms},       {"\33[1~", Key::home},       {"\33[3~", Key::erase},      {"\33[4~", Key::end},
    {"\33[5~", Key::page_up},    {"\33[6~", Key::page_down},  {"\33[7~", Key::home},       {"\33[8~", Key::end},
    {"\33[12~", Key::rooms},     {"\33d", Key::kill_word_after}, {"\33[1;3C", Key::word_right},
    {"\33[1;3D", Key::word_left}, {"\33[1;5C", Key::word_right},  {"\33[1;5D", Key::word_left},
};
// clang-format on

struct Typed {
    Key key = Key::unknown;
    std::string text = {};    // what was typed or pasted
    int row = 0, column = 0;  // of a click
};

class Keys {
   public:
    static constexpr std::size_t max_text = 64, max_sequence = 65536, max_paste = 1024UL * 1024;  // bytes

    void add(std::string_view bytes) { bytes_ += bytes; }
    void put_back(const std::string& text) { bytes_.insert(0, text); }

    // How long to wait for the rest of a key, in milliseconds; -1: there is none. If it does not come, what is there is
    // Escape, half a character, or a paste or an answer of the terminal that does not end.
    int patience() const {
        const bool long_one = bytes_.starts_with(paste_begins) || (bytes_.size() > 2 && is_answer());
        return bytes_.empty() ? -1 : long_one ? 1000 : 50;
    }

    // Returns the next key, or nothing until more bytes are added. `all`: no more will come for what is unfinished.
    std::optional<Typed> next(bool all) {
        if (bytes_.empty()) return std::nullopt;
        if (bytes_.starts_with(paste_begins)) return pasted(all);
        std::size_t length = key_length();
        if (length == 0 && !all) return std::nullopt;
        if (length == 0) length = bytes_[0] == '\33' ? bytes_.size() : 1;
        std::string bytes = bytes_.substr(0, length);
        bytes_.erase(0, length);
        if (!is_control(bytes[0])) return Typed{Key::text, bytes};
        if (bytes.starts_with("\33[<")) return mouse(bytes);
        if (bytes.starts_with("\33O")) bytes[1] = '[';
        const auto found = sequences.find(bytes);
        return Typed{found == sequences.end() ? Key::unknown : found->second};
    }

   private:
    static constexpr std::string_view paste_begins = "\33[200~", paste_ends = "\33[201~";

    // Returns the bytes of the first key, or of the text before the next one, as far as max_text: a line takes such a
    // piece as a whole or not at all. 0: they are not all here.
    std::size_t key_length() const {
        if (bytes_[0] == '\33') return sequence_length();
        if (is_control(bytes_[0])) return 1;
        std::size_t end = 0;
        while (end < std::min(bytes_.size(), max_text) && !is_control(bytes_[end])) {
            const Character next = decode_utf8(std::string_view(bytes_).substr(end));
            if (!next.valid && bytes_.size() - end < 4) break;  // the rest of it may be on its way
            end += next.bytes;
        }
        return end;
    }

    static bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == '\x7F'; }

    // ESC [ and parameters up to a letter or ~; ESC O and one more; or ESC and a character.
    std::size_t sequence_length() const {
        if (bytes_.size() < 2) return 0;
        if (is_answer()) return answer_length();
        if (bytes_[1] == 'O') return bytes_.size() < 3 ? 0 : 3;
        if (bytes_[1] != '[') return bytes_[1] == '\33' ? 1 : 2;
        std::size_t end = 2;
        while (end < bytes_.size() && bytes_[end] >= ' ' && bytes_[end] < '@') ++end;
        if (end == bytes_.size()) return end > max_sequence ? end : 0;
        return end + (bytes_[end] >= '@' && bytes_[end] <= '~' ? 1 : 0);
    }

    // A terminal's answer to a program that asked it: ESC ] or ESC P and the like, up to a control character or ESC \.
    std::size_t answer_length() const {
        const auto last = std::find_if(bytes_.begin() + 2, bytes_.end(), is_control);
        const std::string end(last, bytes_.end());
        const std::size_t length = bytes_.size() - end.size();
        if (end.empty() || end == "\33") return length > max_sequence ? length : 0;
        return length + (end[0] == '\a' ? 1 : end.starts_with("\33\\") ? 2 : 0);
    }

    bool is_answer() const {
        return bytes_[0] == '\33' && std::string_view("]P_^X").find(bytes_[1]) != std::string_view::npos;
    }

    // ESC [ < BUTTON ; COLUMN ; ROW, and M if it was pressed.
    static Typed mouse(const std::string& bytes) {
        int button = -1, column = 0, row = 0;
        char what = '\0';
        sscanf(bytes.c_str(), "\33[<%4d;%4d;%4d%c", &button, &column, &row, &what);
        if (what != 'M') return {};
        if (button == 0) return {Key::click, "", row - 1, column - 1};
        return {button == 64 ? Key::wheel_up : button == 65 ? Key::wheel_down : Key::unknown};
    }

    // Of a paste that is too large only its beginning and its end, or half of that, are kept.
    std::optional<Typed> pasted(bool all) {
        constexpr std::size_t begin = paste_begins.size();
        const std::size_t end = bytes_.find(paste_ends);
        if (end == std::string::npos && bytes_.size() > max_paste) {
            bytes_.erase(begin, bytes_.size() - begin - paste_ends.size());
            too_large_ = true;
        }
        if (end == std::string::npos && !all) return std::nullopt;
        const std::string text = bytes_.substr(begin, end - begin);
        bytes_.erase(0, end == std::string::npos ? end : end + paste_ends.size());
        return std::exchange(too_large_, false) ? Typed{Key::too_large_paste} : Typed{Key::paste, text};
    }

    std::string bytes_;
    bool too_large_ = false;  // the paste that has begun
};

class Editor {
   public:
    const std::string& text() const { return text_; }
    std::string_view before_cursor() const { return std::string_view(text_).substr(0, cursor_); }

    // Replaces what stands from `from` to the cursor; false, and nothing, if the line would become too long. It is
    // cleaned together with what stands before it, whose rest it may be: the tags of a flag, for instance.
    bool replace_from(std::size_t from, std::string_view bytes) {
        const std::string before = clean(text_.substr(0, from).append(bytes)), after = text_.substr(cursor_);
        if (before.size() + after.size() > max_line) return false;
        text_ = before + after;
        move_to(before.size());
        return true;
    }
    bool insert(std::string_view bytes) { return replace_from(cursor_, bytes); }

    // Adds the line to the history, for Up and Down, and leaves an empty one.
    void finish() {
        if (history_.empty() || history_.back() != text_) history_.push_back(text_);
        if (history_.size() > max_history) history_.pop_front();
        recalled_ = history_.size();
        erase(0, text_.size());
    }

    // Does what the key stands for, if it is one for editing.
    void press(Key key) {
        switch (key) {
            case Key::left: return move_to(left());
            case Key::right: return move_to(right());
            case Key::word_left: return move_to(word_left());
            case Key::word_right: return move_to(word_right());
            case Key::home: return move_to(0);
            case Key::end: return move_to(text_.size());
            case Key::backspace: return erase(left(), cursor_);
            case Key::erase_or_quit:
            case Key::erase: return erase(cursor_, right());
            case Key::kill_before: return kill(0, cursor_);
            case Key::kill_after: return kill(cursor_, text_.size());
            case Key::kill_word: return kill(word_left(), cursor_);
            case Key::kill_word_after: return kill(cursor_, word_right());
            case Key::put_back: insert(killed_); return;
            case Key::up: return recall(recalled_ - 1);
            case Key::down: return recall(recalled_ + 1);
            default: return;
        }
    }

   private:
    static constexpr std::size_t max_history = 500;

    // Returns where the first grapheme begins at or after a byte: only there the cursor may stand.
    std::size_t boundary(std::size_t at) const {
        std::size_t found = 0;
        while (found < at) found += grapheme(std::string_view(text_).substr(found));
        return found;
    }

    // What was typed or erased may have joined two graphemes.
    void move_to(std::size_t at) { cursor_ = boundary(at); }

    void erase(std::size_t from, std::size_t to) {
        text_.erase(from, to - from);
        move_to(from);
    }

    void kill(std::size_t from, std::size_t to) {
        if (from < to) killed_ = text_.substr(from, to - from);
        erase(from, to);
    }

    std::size_t left() const {
        std::size_t before = 0;
        for (std::size_t at = 0; at < cursor_; at += grapheme(std::string_view(text_).substr(at))) before = at;
        return before;
    }

    std::size_t right() const { return boundary(std::min(cursor_ + 1, text_.size())); }

    std::size_t word_left() const {
        std::size_t at = cursor_;
        while (at > 0 && text_[at - 1] == ' ') --at;
        while (at > 0 && text_[at - 1] != ' ') --at;
        return at;
    }

    std::size_t word_right() const {
        const std::size_t word = std::min(text_.find_first_not_of(' ', cursor_), text_.size());
        return std::min(text_.find(' ', word), text_.size());
    }

    // Shows a line of the history; behind the last one is what was being typed.
    void recall(std::size_t which) {
        if (which > history_.size()) return;  // before the first, too
        if (recalled_ == history_.size()) draft_ = text_;
        recalled_ = which;
        text_ = which == history_.size() ? draft_ : history_[which];
        move_to(text_.size());
    }

    std::string text_;
    std::size_t cursor_ = 0;  // a byte of text_, the first of a grapheme, or its end
    std::deque<std::string> history_;
    std::size_t recalled_ = 0;  // the line of history_ that is shown; its end: none
    std::string killed_;        // to be put back
    std::string draft_;         // what was typed before an older line was recalled
};

// ---- 9. Rows, and the display -------------------------------------------------------------------------
// All that is to be seen is painted anew each time, as the rows of a screen, from top to bottom; what would not fit is
// left out. The display compares them with what the terminal shows, and sends those that differ. The mutex is held.

// What ESC [ m takes, with colours and without, in the order of Style; the last ones are for names.
constexpr std::pair<std::string_view, std::string_view> looks[] = {
    {"", ""},   {"90", "2"}, {"1;31", "1"}, {"33", "4"}, {"1", "1"},  {"33", "1"}, {"97;44", "7"}, {"30;47", "1;7"},
    {"7", "7"}, {"32", "1"}, {"35", "1"},   {"36", "1"}, {"94", "1"}, {"92", "1"}, {"95", "1"},    {"96", "1"},
};

// The same name always has the same colour.
Style style_of_name(std::string_view name) {
    constexpr auto first = static_cast<std::size_t>(Style::names);
    return static_cast<Style>(first + std::hash<std::string>()(fold(name)) % (std::size(looks) - first));
}

struct Piece {
    std::string text;
    Style style;
    std::function<void()> click = {};  // what a click on it does
};
using Row = std::vector<Piece>;

// Cuts a row off, or adds spaces, so that it takes so many columns.
void fit(Row& row, int columns) {
    for (Piece& piece : row) {
        const int wide = columns_of(piece.text);
        if (wide > columns) piece.text = padded(piece.text, columns);
        columns -= std::min(wide, columns);
    }
    row.push_back({padded("", columns), Style::plain});
}

bool ascii_only = false;  // the terminal shows nothing else: its locale is not of UTF-8

class Display {
   public:
    explicit Display(bool colors) : colors_(colors) {}

    // The terminal may show anything: next time all is sent.
    void invalidate() { shown_.clear(); }

    // Makes the terminal show a title and rows as wide as it is, with the cursor in the last one. Blocks until it does.
    void show(const std::string& title, const std::vector<Row>& rows, int cursor, bool bell) {
        std::vector<std::string> wanted = {"\33]2;" + title + '\a'};
        for (std::size_t i = 0; i < rows.size(); ++i) wanted.push_back(rendered(rows[i], i));
        wanted.push_back(cursor_at(rows.size() - 1, cursor));
        std::string out = bell ? "\a" : "";
        if (wanted.size() != shown_.size()) {
            out += "\33[m\33[2J";
            shown_.assign(wanted.size(), "");
        }
        for (std::size_t i = 0; i < wanted.size(); ++i) out += wanted[i] != shown_[i] ? wanted[i] : "";
        if (!out.empty()) out += wanted.back();
        shown_ = std::move(wanted);
        write_to_terminal(out, true);
    }

   private:
    static std::string cursor_at(std::size_t row, int column) {
        return "\33[" + std::to_string(row + 1) + ';' + std::to_string(column + 1) + 'H';
    }

    // Returns what makes the terminal show a row. Terminals do not agree on how wide some graphemes are: they are
    // written over spaces, in case they are narrower, and behind them and before what has a style the cursor is set.
    std::string rendered(const Row& row, std::size_t number) const {
        std::string all = cursor_at(number, 0);
        int column = 0;
        for (const Piece& piece : row) {
            const auto& [color, without] = looks[static_cast<std::size_t>(piece.style)];
            const std::string look(colors_ ? color : without);
            if (piece.style != Style::plain) all += cursor_at(number, column);
            all += "\33[0" + (look.empty() ? "" : ';' + look) + 'm';
            for (std::string_view rest = piece.text; !rest.empty();) {
                const std::string_view next = take_grapheme(rest);
                const std::string text = printed(next);
                const bool doubtful = text.size() > decode_utf8(text).bytes;
                if (doubtful) all += "  " + cursor_at(number, column);
                all += text;
                column += grapheme_columns(next);
                if (doubtful) all += cursor_at(number, column);
            }
        }
        return all;
    }

    // Returns a grapheme so that nothing in it is attached to what stands before it, or to what comes.
    static std::string printed(std::string_view grapheme) {
        std::string text(columns_of(decode_utf8(grapheme).code) == 0 ? " " : "");  // for an accent to stand on
        text += grapheme;
        while (text.ends_with("\u200D")) text.resize(text.size() - 3);  // joiners that have nothing to join
        if (!ascii_only) return text;
        if (text == "─" || text == "│") return text == "─" ? "-" : "|";
        const bool ascii = decode_utf8(text).code < 0x80;
        return ascii ? text.substr(0, 1) : std::string(static_cast<std::size_t>(grapheme_columns(grapheme)), '?');
    }

    bool colors_;
    std::vector<std::string> shown_;  // what makes the terminal show what it does: the title, each row, the cursor
};

// ---- 10. The scrollback -------------------------------------------------------------------------------
// What was said, wrapped at words when it is shown and as wide as the screen is then. Lines have numbers that they keep
// when older ones are removed. Used with the client's mutex held; nothing here blocks or throws.

// Cuts text at words into rows of so many columns: the first one, and those after it.
std::vector<std::string_view> wrap(std::string_view text, int first, int others) {
    std::vector<std::string_view> rows;
    std::size_t start = 0, word = 0;  // where the row and the last word in it begin
    int column = 0, word_column = 0, room = first;
    for (std::size_t at = 0, bytes = 0; at < text.size(); at += bytes) {
        bytes = grapheme(text.substr(at));
        const int wide = grapheme_columns(text.substr(at, bytes));
        column += wide;
        if (text[at] == ' ') {  // at the end of a row it may stand over
            word = at + bytes;
            word_column = column;
        } else if (column > room && at > start) {
            if (word <= start) word = at, word_column = column - wide;
            rows.push_back(text.substr(start, word - start));
            start = word;
            column -= word_column;
            room = others;
        }
    }
    rows.push_back(text.substr(start));
    return rows;
}

// Returns a rule with a text in it, if there is any. It is at least so wide.
Row ruled(const std::string& text, int columns, Style rule, Style style) {
    std::string rest;
    while (columns-- > 0) rest += "─";
    return {{"──", rule}, {text.empty() ? "" : ' ' + text + ' ', style}, {rest, rule}};
}

class Scrollback {
   public:
    void add(Entry entry) {
        bytes_ += entry.text.size();
        entries_.push_back(std::move(entry));
        while (entries_.size() > max_entries || bytes_ > max_bytes) {
            bytes_ -= entries_.front().text.size();
            entries_.pop_front();
            ++first_;
        }
    }

    // Whether the window shows the latest, and goes with them.
    bool follows() const { return !bottom_; }
    void follow() { bottom_.reset(); }

    // The next line that is added will be the first one unread, unless one is.
    void mark() { mark_ = mark_.value_or(first_ + entries_.size()); }
    void unmark() { mark_.reset(); }

    // Returns the rows for a window of so many: the last ones, or those that were scrolled to.
    std::vector<Row> rows(int height, int columns) const {
        std::vector<Row> rows;
        const Bottom bottom = bottom_.value_or(Bottom{last(), 0});
        for (std::size_t number = bottom.number + 1;
             number-- > first_ && std::cmp_less(rows.size(), height + bottom.hidden);) {
            const std::vector<Row> older = rows_of(number, columns);
            rows.insert(rows.begin(), older.begin(), older.end());
        }
        rows.resize(rows.size() - std::min(rows.size(), static_cast<std::size_t>(bottom.hidden)));
        rows.erase(rows.begin(), rows.end() - std::min<long>(height, std::ssize(rows)));
        return rows;
    }

    // Moves the window of so many rows up by some, or down. It stays within what there is.
    void scroll(long up, int height, int columns) {
        if (entries_.empty()) return;
        const auto size = [&](std::size_t number) { return static_cast<long>(rows_of(number, columns).size()); };
        Bottom at = bottom_.value_or(Bottom{last(), 0});
        if (at.number < first_) at = {first_, 0};
        at.hidden += up;
        for (; at.number > first_ && at.hidden >= size(at.number); --at.number) at.hidden -= size(at.number);
        while (at.number < last() && at.hidden < 0) at.hidden += size(++at.number);
        if (at.number == last() && at.hidden <= 0) return follow();
        at.hidden = std::min(at.hidden, size(at.number) - 1);
        bottom_ = at;
        const long missing = height - static_cast<long>(rows(height, columns).size());
        if (missing > 0) scroll(-missing, height, columns);  // there is nothing older
    }

   private:
    static constexpr std::size_t max_entries = 10000;
    static constexpr std::size_t max_bytes = 8UL * 1024 * 1024;

    struct Bottom {
        std::size_t number;  // of the lowest line in the window
        long hidden;         // how many of its rows are below the window
    };

    std::size_t last() const { return first_ + entries_.size() - 1; }
    const Entry& at(std::size_t number) const { return entries_[number - first_]; }

    // Returns a line as it is shown: with a rule above it where the day changes, or where somebody left off.
    std::vector<Row> rows_of(std::size_t number, int columns) const {
        const Entry& entry = at(number);
        const auto day = [](std::time_t time) { return local_time(time, "%A, %Y-%m-%d"); };
        std::vector<Row> rows;
        const bool timed = entry.time != 0;
        if (timed && day(entry.time) != day(number > first_ ? at(number - 1).time : std::time(nullptr)))
            rows.push_back(ruled(day(entry.time), columns, Style::faint, Style::faint));
        if (number == mark_) rows.push_back(ruled("new", columns, Style::mark, Style::mark));
        const std::string stamp = timed && columns >= 40 ? local_time(entry.time, "%H:%M ") : "";
        const int width = static_cast<int>(stamp.size());
        const std::string indent(static_cast<std::size_t>(columns < 12 ? 1 : width + 2), ' ');  // promise 3
        for (const std::string_view part :
             wrap(entry.text, columns - width, columns - static_cast<int>(indent.size()))) {
            const bool begins = part.data() == entry.text.data();
            const std::size_t name = begins ? std::min(entry.name, part.size()) : 0;
            rows.push_back({{begins ? stamp : indent, Style::faint},
                            {std::string(part.substr(0, name)), style_of_name(part.substr(0, name))},
                            {std::string(part.substr(name)), entry.style}});
        }
        return rows;
    }

    std::deque<Entry> entries_;
    std::size_t bytes_ = 0;            // of their texts
    std::size_t first_ = 0;            // the number of the oldest one that is kept
    std::optional<Bottom> bottom_;     // none: the window shows the latest
    std::optional<std::size_t> mark_;  // the first line unread
};

// ---- 11. The full-screen form -------------------------------------------------------------------------
// Three views, the chat, the list of rooms and a page of help, over one line at the bottom in which one types, or
// answers a question. Each change paints everything again. A click on something that can be clicked is the same as the
// key that is named on it. As in the client, all is called with the mutex held, except what says that it locks it.

enum class View { chat, rooms, info };

constexpr std::string_view info_text =
    R"(This is Chatroom: you talk with everybody who is in the same room. Enter sends what you type.

Keys
F1 or Ctrl-G          this page
F2 or Ctrl-R          the rooms, and how to make one
PgUp, PgDn, wheel     what was said before
Up, Down              what you typed before
Tab                   completes a command, a name or a room; again: the next one
Ctrl-A E B F U K W    to the start, to the end, back, forward; erase to the start, to the end, a word
Alt-B F D, Ctrl-Y     a word back, a word forward, erase it; put back what was erased
Esc                   leaves a question or this page; lines that wait are not sent
Ctrl-L                redraws the screen
Ctrl-Z, Ctrl-C        stops the client until fg; ends it
Shift and the mouse   selects text, as elsewhere

In the list of rooms, the arrows and Enter or a double click go to one; c creates one; x shuts the server down.

/help /who /rooms /time /quote   /help COMMAND explains one
/msg NAME TEXT   /reply TEXT   /ignore NAME   /me TEXT   /echo TEXT
/create ROOM CODE   /join ROOM CODE   /leave   /password   /quit   /exit   /shutdown CODE
The owner of a room: /kick NAME   /close   /topic TEXT
The admin: /fire /out /ban /unban /bans /block /unblock /unregister /reset

Marks: -- is a notice, !! says that something was wrong, * what somebody does, a -> b: a message in private.)";

class ScreenClient : public Client {
   public:
    // As Client(). bell_when: all, mention, private or off. The terminal is changed only when write() begins.
    ScreenClient(Target target, std::optional<std::string> name, std::string bell_when, bool colors)
        : Client(std::move(target), std::move(name)), bell_when_(std::move(bell_when)), display_(colors) {
        screen_signal = &signal_;
        pace_ = 8ms;
        std::istringstream help{std::string(info_text)};
        for (std::string line; std::getline(help, line);) help_.add({.text = line});
    }
    ~ScreenClient() override { screen_signal = nullptr; }

   private:
    // As it is shown: its number, its name, how many are in it, whether it has a code, who made it, and when.
    using ListedRoom = std::array<std::string, 6>;

    // A question: the server's, or one of ours.
    struct Prompt {
        std::string label;
        bool secret;
        std::function<void(const std::string&)> then;
        unsigned number = 0;            // open_question()
        std::string_view at_once = {};  // letters that are an answer without Enter
        Editor editor = {};
    };

    // ---- What comes (the reader)

    void show(const Message& message) override {
        const bool answers_us = message.word == "ROOMS" || message.word == "LIST";  // the list of rooms shows it
        const bool beside = message.word == "WHO" && entered_just_now_;             // and the margin this
        entered_just_now_ = message.word == "ROOM" || beside;
        if (message.word == "ROOM") view_ = View::chat;
        if (message.word == "ERR" && view_ != View::chat) status_ = message.text;
        if (!message.past) note(message);
        if (message.is_speech()) keep(names_, message.fields[0]);
        if (!greeted_) std::cout << message.text << std::endl;  // the screen is not open yet, and may never be
        if (answers_us || beside) return;
        Entry entry = message.entry();
        announce(message, entry);
        scrollback_.add(std::move(entry));
    }

    // Keeps what the margin and the list of rooms show up to date.
    void note(const Message& message) {
        const std::string_view word = message.word, name = message.fields[0];
        if (word == "ROOM") owner_.clear(), topic_.clear(), members_.clear(), keep(room_names_, name);
        if (word == "TOPIC" && same_name(name, room_)) topic_ = message.text;
        if (word == "WHO" && same_name(name, room_)) add_members(message.text);
        if (word == "JOIN") add_members(name);
        if (word == "LEAVE") members_.erase(fold(name));
        if (word == "OWNER") owner_ = name;
        if (word == "LIST") list_room(message);
        if (word == "ROOMS") listing_.clear(), left_to_list_ = parse_number(name, 0, LONG_MAX).value_or(0);
        if (word == "WELCOME") list_due_ = true, status_.clear();
        if (word == "BYE" || word == "REFUSE" || word == "BAN") last_words_ = message.text, over_since_ = Clock::now();
    }

    static void keep(std::set<std::string>& names, std::string_view name) {
        if (valid_name(name) && names.size() < max_listed) names.emplace(name);
    }

    void add_members(std::string_view names) {
        while (!names.empty()) {
            const std::string_view name = take_word(names);
            if (valid_name(name) && members_.size() < max_listed) members_[fold(name)] = name;
            keep(names_, name);
        }
    }

    // The list is shown when it is complete.
    void list_room(const Message& message) {
        const auto& [number, name, people, owner, time] = message.fields;
        keep(room_names_, name);
        if (valid_name(name) && valid_name(owner) && listing_.size() < max_listed) {
            listing_.push_back({padded(number, 5), std::string(name), padded(people, 8),
                                message.text == "CODE" ? "CODE" : "NO CODE", std::string(owner),
                                local_time(wire_time(std::string(time)), "%Y-%m-%d %H:%M")});
        }
        if (--left_to_list_ == 0) rooms_ = std::exchange(listing_, {});
    }

    // Draws attention to what somebody else says now.
    void announce(const Message& message, Entry& entry) {
        if (!message.is_speech() || message.past || same_name(message.fields[0], name_)) return;
        const bool whisper = message.word == "MSG";
        const bool mention = !whisper && has_word(message.text, name_);
        if (mention) entry.style = Style::mention;
        if (is_away()) scrollback_.mark(), ++unread_;
        const bool wanted =
            bell_when_ == "all" || (bell_when_ != "off" && whisper) || (bell_when_ == "mention" && mention);
        if (!wanted || Clock::now() - last_bell_ < bell_pause) return;
        bell_ = true;
        last_bell_ = Clock::now();
    }

    // Returns whether a name stands in a text as a word of its own.
    static bool has_word(std::string_view text, std::string_view name) {
        std::string words = ' ' + fold(text) + ' ';
        for (char& c : words) c = is_letter(c) || is_digit(c) ? c : ' ';
        return words.find(' ' + fold(name) + ' ') != std::string::npos;
    }

    // Returns whether the person does not see what comes in.
    bool is_away() const { return !focused_ || view_ != View::chat || !scrollback_.follows(); }

    void refresh() override {
        if (list_due_ && is_idle()) list_due_ = false, list_rooms();
        if (terminal_mode == whole_screen && in_foreground()) draw();
    }

    // ---- What is typed (the writer)

    void write(Lock& lock) override {
        while (!ended_) {
            const bool ours = in_foreground();
            if (ours && reopen_screen.exchange(false)) {
                set_terminal(whole_screen);
                display_.invalidate();
            }
            refresh();
            const bool timeout = !wait(lock, ours);
            while (const std::optional<Typed> typed = keys_.next(timeout)) press(*typed);
            if (timeout && view_ == View::rooms && Clock::now() - last_key_ < attention_span) list_due_ = true;
        }
    }

    // Waits for keys, if the terminal is ours, for a signal, or for the end of the chat. False: the time is over.
    bool wait(Lock& lock, bool ours) {
        const int patience = keys_.patience(), refresh = view_ == View::rooms ? refresh_wait : -1;
        const int limit = patience >= 0 ? patience : refresh;
        std::array<pollfd, 3> polled{
            {{ours ? STDIN_FILENO : -1, POLLIN, 0}, {signal_.fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}}};
        lock.unlock();
        const int ready = poll(polled.data(), polled.size(), ours ? limit : background_wait);
        const bool gone = polled[0].revents != 0 && !read_into(keys_, STDIN_FILENO);
        lock.lock();
        if (gone) end_chat("the terminal is gone");
        if (polled[1].revents != 0) signal_.clear(), display_.invalidate();  // another size, say
        return ready != 0;
    }

    void press(const Typed& typed) {
        last_key_ = Clock::now();
        switch (typed.key) {
            case Key::focus_in: focused_ = true; return;
            case Key::focus_out: focused_ = false; return scrollback_.unmark();
            case Key::redraw: return display_.invalidate();
            case Key::interrupt: kill(0, SIGINT); return;  // as the terminal does elsewhere: all that run with us
            case Key::suspend: set_terminal(original), kill(0, SIGTSTP); return;  // first, while it is ours
            case Key::abort: kill(0, SIGQUIT); return;
            case Key::click: return click(typed);
            case Key::rooms: return open(View::rooms);
            case Key::info: return open(View::info);
            default: break;
        }
        status_.clear();
        show_life();
        if (typed.key != Key::tab) candidates_.clear();
        if (!over_.empty()) return press_at_end(typed.key);
        if (typed.key == Key::escape && view_ != View::chat && !prompt_) return open(View::chat);
        if (prompt() != nullptr) return press_in_line(typed, prompt()->editor);
        if (view_ == View::chat) return press_in_line(typed, line_);
        if (view_ == View::rooms) return press_in_rooms(typed);
        scroll(typed.key);
    }

    // Enter joins again, by reconnect(), but it may have been meant for the line that was being typed.
    void press_at_end(Key key) {
        const bool meant = Clock::now() - over_since_ > reading_time;
        if (key == Key::enter && meant && !banned_) over_.clear(), last_words_.clear(), changed_.notify_all();
        if (key == Key::escape || key == Key::erase_or_quit) return end_chat();
        scroll(key);
    }

    void click(const Typed& typed) {
        const auto row = static_cast<std::size_t>(typed.row);
        int column = 0;
        for (const Piece& piece : row < screen_.size() ? screen_[row] : Row()) {
            column += columns_of(piece.text);
            if (typed.column >= column) continue;
            if (piece.click) piece.click();
            return;
        }
    }

    void open(View view) {
        view_ = view;
        if (view == View::rooms) list_due_ = true;
        if (view == View::info) scroll(Key::home);
    }

    Scrollback& shown() { return view_ == View::info ? help_ : scrollback_; }
    int margin() const { return view_ == View::chat && columns_ >= wide ? 20 : 0; }
    void scroll(Key key) { shown().scroll(-rows_down(key), height_, columns_ - margin()); }

    // Returns how many rows down a key goes, in whatever is shown; up is negative.
    long rows_down(Key key) const {
        switch (key) {
            case Key::up: return -1;
            case Key::down: return 1;
            case Key::wheel_up: return -3;
            case Key::wheel_down: return 3;
            case Key::page_up: return -std::max(height_ - 1, 1);
            case Key::page_down: return std::max(height_ - 1, 1);
            case Key::home: return -many;
            case Key::end: return many;
            default: return 0;
        }
    }

    // ---- The chat, and the line

    // Returns the question that has the keyboard, if any. What was begun keeps it until Enter or Esc (promise 7).
    Prompt* prompt() {
        if (prompt_) return &*prompt_;
        if (answer_ && !answer_->editor.text().empty()) return &*answer_;
        if (view_ == View::chat && !line_.text().empty()) return nullptr;
        if (answer_ && answer_->number != open_question()) answer_.reset();
        if (!answer_ && open_question() != 0) ask_for_server();
        return answer_ ? &*answer_ : nullptr;
    }

    // An answer that comes when nobody asks any more, or asks something else, becomes nothing.
    void ask_for_server() {
        static constexpr const char* labels[] = {"", "Your name: ", "Password: ", "New password: ", "Once more: "};
        const auto then = [this, number = open_question()](const std::string& text) {
            if (number == open_question()) return answer(text);
            status_ = "That was not sent: the question is over.";
        };
        answer_ =
            Prompt{labels[static_cast<std::size_t>(question_)], question_ >= Question::password, then, open_question()};
    }

    void press_in_line(const Typed& typed, Editor& editor) {
        const bool in_chat = &editor == &line_;
        if (in_chat && line_.text().empty()) begun_in_ = heading();
        switch (typed.key) {
            case Key::text:
                if (prompt_ && typed.text.find_first_not_of(prompt_->at_once) != 0) return answer_at_once(typed.text);
                if (!editor.insert(typed.text)) status_ = "The line is as long as a line may be.";
                return;
            case Key::paste: return paste(typed.text, editor);
            case Key::too_large_paste: status_ = "That is too large to be pasted, and was left out."; return;
            case Key::enter: return enter();
            case Key::escape: return leave_line();
            case Key::tab: return in_chat ? complete() : void();
            case Key::page_up:
            case Key::page_down:
            case Key::wheel_up:
            case Key::wheel_down: return scroll(typed.key);
            default: break;
        }
        if (typed.key == Key::erase_or_quit && editor.text().empty()) return quit();
        editor.press(typed.key);
    }

    void answer_at_once(const std::string& text) {
        prompt_->editor.insert(text.substr(0, 1));
        keys_.put_back(text.substr(1));
        enter();
    }

    void enter() {
        if (prompt() == nullptr) return say();
        const Prompt done = *std::exchange(prompt_ ? prompt_ : answer_, std::nullopt);
        done.then(done.editor.text());
    }

    // Esc gives the keyboard to what waits for it. It answers a question about a password with nothing: that goes back.
    void leave_line() {
        if (prompt() != nullptr) {
            const bool goes_back = !prompt_ && answer_->secret && answer_->number == open_question();
            (prompt_ ? prompt_ : answer_).reset();
            if (goes_back) answer("");
        } else if (question_ != Question::none && !line_.text().empty()) {
            line_.finish();
        } else if (withdraw() > 0) {
            status_ = "What waited is not sent.";
        }
    }

    void say() {
        const std::string text = line_.text();
        const std::string_view command = trim(text);
        if (command.empty()) return;
        if (is_quit(command)) return quit();
        if (same_name(command, "/rooms")) {
            open(View::rooms);
        } else if (!same_name(begun_in_, heading()) && own_line(text).bound) {
            status_ = "Enter says it in " + heading() + ": you are no longer in " + begun_in_ + '.';
            begun_in_ = heading();
            return;
        } else if (!submit(text)) {
            status_ = "That cannot be sent now: the line stays here.";
            return;
        }
        line_.finish();
        scrollback_.unmark();
        scrollback_.follow();
    }

    // What is pasted in one line is as if it were typed; several lines are sent as they are, if that was meant.
    void paste(std::string text, Editor& editor) {
        std::replace(text.begin(), text.end(), '\r', '\n');
        std::istringstream stream(text);
        std::vector<std::string> lines;
        for (std::string line; std::getline(stream, line);) {
            line = clean(line);
            if (line.size() > max_line) status_ = "A line of it is too long, and was left out.";
            if (!line.empty() && line.size() <= max_line) lines.push_back(line);
        }
        if (lines.size() > 1 && &editor == &line_) {
            ask("Send " + std::to_string(lines.size()) + " lines? y or n ", false,
                [this, lines, room = heading()](const std::string& no) {
                    if (no.empty() || same_name(no, "y")) submit_all(lines, room);
                });
            prompt_->at_once = "yYnN";
        } else if (!lines.empty() && !editor.insert(lines[0])) {
            status_ = "That does not fit in a line.";
        }
    }

    void submit_all(const std::vector<std::string>& lines, const std::string& room) {
        const bool here = same_name(room, heading());
        const bool all = here && std::all_of(lines.begin(), lines.end(), [this](auto& line) { return submit(line); });
        if (!all) status_ = here ? "Not all was sent: too much waits." : "Nothing was sent: it was for " + room + '.';
    }

    // Tab: replaces the word before the cursor by the next of what it may become.
    void complete() {
        if (candidates_.empty()) find_candidates(std::string(line_.before_cursor()));
        if (candidates_.empty()) return;
        line_.replace_from(completed_from_, candidates_.front());
        std::rotate(candidates_.begin(), candidates_.begin() + 1, candidates_.end());
    }

    // Finds what the last word of a text may become, with what comes behind it.
    void find_candidates(const std::string& before) {
        completed_from_ = before.rfind(' ') + 1;
        const std::string word = fold(before.substr(completed_from_));
        const std::string start = fold(trim(before.substr(0, completed_from_)));
        const bool at_start = start.empty(), command = at_start && word.starts_with('/');
        const auto add = [&](std::string_view name) {
            const std::string whole = std::string(name) + (at_start && !command ? ": " : " ");
            const bool known = std::find(candidates_.begin(), candidates_.end(), whole) != candidates_.end();
            if (fold(whole).starts_with(word) && name != name_ && !known && candidates_.size() < 100)
                candidates_.push_back(whole);
        };
        if (command) {  // the page of help names all commands
            for (std::size_t at = 0; (at = info_text.find('/', at)) != std::string_view::npos; ++at)
                add(info_text.substr(at, info_text.find_first_of(" \n", at) - at));
        } else if (start == "/join") {
            list_due_ = true;  // so that the next Tab knows new ones too
            for (const std::string& room : room_names_) add(room);
        } else {
            for (const auto& [key, name] : members_) add(name);
            for (const std::string& name : names_) add(name);
        }
    }

    // ---- The list of rooms, and the page of help

    // Returns where the chosen room stands in the list; at its start, if it is not there.
    long chosen_index() const {
        const auto found =
            std::find_if(rooms_.begin(), rooms_.end(), [&](const auto& room) { return room[1] == chosen_; });
        return found == rooms_.end() ? 0 : found - rooms_.begin();
    }

    void choose(long step) {
        if (rooms_.empty()) return;
        const long index = std::clamp(chosen_index() + step, 0L, static_cast<long>(rooms_.size()) - 1);
        chosen_ = rooms_[static_cast<std::size_t>(index)][1];
    }

    void press_in_rooms(const Typed& typed) {
        if (typed.key == Key::enter) return join();
        if (typed.key != Key::text) return choose(rows_down(typed.key));
        keys_.put_back(typed.text.substr(1));  // it came with what was typed next
        if (typed.text[0] == 'c') create();
        if (typed.text[0] == 'r') list_due_ = true;
        if (typed.text[0] == 'i') open(View::info);
        if (typed.text[0] == 'x') shut_down();
    }

    void join() {
        if (rooms_.empty()) return;
        const ListedRoom& room = rooms_[static_cast<std::size_t>(chosen_index())];
        const std::string& name = room[1];
        if (same_name(name, room_)) {
            view_ = View::chat;
        } else if (room[3] == "CODE" && !same_name(name_, "admin")) {
            ask("The code of " + name + ": ", true,
                [this, name](const std::string& code) { code.empty() ? void() : move("/join " + name + ' ' + code); });
        } else {
            move("/join " + name);
        }
    }

    void move(const std::string& command) {
        if (!submit(command)) status_ = "That cannot be done now.";
    }

    void create() {
        ask("The new room's name: ", false, [this](const std::string& name) {
            if (name.empty()) return;
            ask("Five digits, or no code: ", false,
                [this, name](const std::string& code) { move("/create " + name + ' ' + code); });
        });
    }

    void shut_down() {
        ask("Exit code, to shut the server down: ", true, [this](const std::string& code) {
            if (!code.empty()) submit("/shutdown " + code);
        });
    }

    void ask(const std::string& label, bool secret, std::function<void(const std::string&)> then) {
        prompt_ = Prompt{label, secret, std::move(then)};
    }

    // ---- Painting

    void draw() {
        winsize size{};
        const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0;
        constexpr int max = 1000;  // rows or columns
        const int rows = known ? std::min<int>(size.ws_row, max) : 24;
        columns_ = known ? std::min<int>(size.ws_col, max) : 80;
        const int height = rows - (rows >= 6 ? 3 : rows >= 3 ? 2 : 1);
        height_ = std::max(height, 1);
        if (!over_.empty()) view_ = View::chat;  // which says why
        if (!is_away()) unread_ = 0;
        screen_ = view_ == View::rooms ? room_rows() : line_rows();
        screen_.resize(static_cast<std::size_t>(height));
        if (margin() > 0) add_margin();
        if (rows >= 3) screen_.insert(screen_.begin(), bar());
        if (rows >= 6) screen_.push_back(ruled(state(), columns_, Style::faint, Style::mark));
        int cursor = 0;
        screen_.push_back(last_row(cursor));
        for (Row& row : screen_) fit(row, columns_);
        const std::string news = unread_ > 0 ? '(' + std::to_string(unread_) + ") " : "";
        display_.show(news + room_ + " - Chatroom", screen_, cursor, std::exchange(bell_, false));
    }

    Piece button(const std::string& label, const Typed& key) {
        return {label, Style::button, [this, key] { press(key); }};
    }

    Row bar() {
        std::string text = ' ' + room_ + (code_ == "-" ? "" : "  code " + code_);
        if (!members_.empty()) text += "  " + counted(std::to_string(members_.size()), "person", "people");
        text += "  " + (!trouble_.empty() ? trouble_ : topic_.empty() ? target_.name : topic_ + "  " + target_.name);
        const bool is_wide = columns_ >= wide;
        return {{padded(text, columns_ - (is_wide ? 20 : 9)), Style::bar},
                button(is_wide ? " F1 Info " : " F1 ", {Key::info}),
                {" ", Style::bar},
                button(is_wide ? " F2 Rooms " : " F2 ", {Key::rooms})};
    }

    std::vector<Row> line_rows() {
        if (!shown().follows()) scroll(Key::unknown);  // older lines may be gone
        return shown().rows(height_, columns_ - margin());
    }

    void add_margin() {
        auto member = members_.begin();
        for (Row& row : screen_) {
            fit(row, columns_ - margin());
            row.push_back({"│ ", Style::faint});
            const auto left = std::distance(member, members_.end());
            if (&row == &screen_.back() && left > 1) {
                row.push_back({"and " + std::to_string(left) + " more", Style::faint});
            } else if (left > 0) {
                const std::string& name = (member++)->second;
                const char* mark = name == owner_ ? " owner" : same_name(name, "admin") ? " admin" : "";
                row.insert(row.end(), {{name, style_of_name(name)}, {mark, Style::faint}});
            }
        }
    }

    std::vector<Row> room_rows() {
        std::vector<Row> rows(1);
        for (int column = 0;
             const Piece& each : {button(" Enter Join ", {Key::enter}), button(" c Create ", {Key::text, "c"}),
                                  button(" r Reload ", {Key::text, "r"}), button(" x Exit code ", {Key::text, "x"}),
                                  button(" i Info ", {Key::text, "i"})}) {
            const int width = columns_of(each.text);
            if (column > 0 && column + width > columns_) rows.emplace_back(), column = 0;
            rows.back().insert(rows.back().end(), {each, {" ", Style::plain}});
            column += width + 1;
        }
        rows.push_back({{room_row({"No.", "Room", "People", "Code", "Made by", "Made"}), Style::faint}});
        height_ = std::max(height_ - static_cast<int>(rows.size()), 1);
        const long chosen = chosen_index();
        first_row_ = std::clamp(first_row_, chosen - height_ + 1, chosen);
        for (long i = first_row_; i < std::min<long>(first_row_ + height_, std::ssize(rooms_)); ++i) {
            const ListedRoom& room = rooms_[static_cast<std::size_t>(i)];
            const auto choose_or_join = [this, name = room[1]] {
                if (std::exchange(chosen_, name) == name) join();
            };
            const Style style = i == chosen ? Style::chosen : Style::plain;
            rows.push_back({{padded(room_row(room), columns_), style, choose_or_join}});
        }
        return rows;
    }

    static std::string room_row(const ListedRoom& cells) {
        return ' ' + padded(cells[0], 5) + padded(cells[1], 13) + padded(cells[2], 8) + padded(cells[3], 9) +
               padded(cells[4], 13) + cells[5];
    }

    // Returns what the person should know now; it stands between the view and the line.
    std::string state() {
        if (!status_.empty()) return status_;
        if (open_question() != 0 && (prompt() == nullptr || prompt()->number != open_question()))
            return "Press Enter or Esc first: the server is asking something";
        if (line_.text().size() + Keys::max_text > max_line) return "The line is nearly as long as a line may be.";
        if (lines_waiting() > (returning() ? 0 : 1)) return "Lines waiting: " + std::to_string(lines_waiting());
        std::string news = unread_ > 0 ? std::to_string(unread_) + " new" : "";
        if (view_ != View::chat || scrollback_.follows()) return news;
        return news + (news.empty() ? "" : ", ") + "PgDn goes down";
    }

    // Returns the line that is typed, if one is, and sets the cursor's column.
    Row last_row(int& cursor) {
        if (!over_.empty()) {
            Row row = {button(" Esc Leave ", {Key::escape}), {' ' + over_, Style::mark}};
            if (!banned_) row.insert(row.begin(), {button(" Enter Join again ", {Key::enter}), {" ", Style::plain}});
            return row;
        }
        const Prompt* asked = prompt();
        if (asked != nullptr) return typed_row({asked->label, Style::mark}, asked->editor, asked->secret, cursor);
        const std::string label = name_.empty() ? "" : name_ + "> ";
        if (view_ == View::chat) return typed_row({label, style_of_name(name_)}, line_, false, cursor);
        const char* keys = view_ == View::rooms ? " Arrows choose, Enter joins." : " PgDn and PgUp show the rest.";
        return {button(" Esc Back ", {Key::escape}), {keys, Style::faint}};
    }

    // A line that is too wide is scrolled to the left, by half of the space there is each time.
    Row typed_row(Piece label, const Editor& editor, bool secret, int& cursor) const {
        const int start = std::min(columns_of(label.text), columns_ * 2 / 3), room = columns_ - start;
        const int before = columns_of(editor.before_cursor()), step = std::max(room / 2, 1);
        int hidden = before < room ? 0 : ((before - room) / step + 1) * step;
        cursor = std::min(start + before - hidden, columns_ - 1);
        label.text = padded(label.text, start);
        const std::string stars(static_cast<std::size_t>(columns_of(editor.text())), '*');
        std::string_view text = secret ? stars : editor.text();
        while (hidden > 0 && !text.empty()) hidden -= grapheme_columns(take_grapheme(text));
        const char* half = hidden < 0 ? " " : "";  // of a wide grapheme
        return {label, {half + std::string(text), Style::plain}};
    }

    static constexpr int refresh_wait = 3000, background_wait = 1000;  // milliseconds
    static constexpr std::chrono::milliseconds bell_pause{1000}, reading_time{1000};
    static constexpr auto attention_span = 60s;       // whoever types nothing is idle, whatever we ask by ourselves
    static constexpr std::size_t max_listed = 10000;  // members or rooms: a server could name a million
    static constexpr long many = 1000000;             // rows: more than there are
    static constexpr int wide = 64;                   // columns from which on there is a margin

    // Only the writer.
    Keys keys_;
    Wakeup signal_;  // set after a signal that concerns the screen

    // Guarded by the mutex.
    const std::string bell_when_;
    Display display_;
    View view_ = View::chat;
    Scrollback scrollback_, help_;
    std::string owner_, topic_;                   // of the room
    std::map<std::string, std::string> members_;  // of the room: folded name to name
    std::set<std::string> names_, room_names_;    // of people and rooms, seen since the start
    std::vector<ListedRoom> rooms_, listing_;     // as listed last, and in an answer that is not complete
    long left_to_list_ = 0;                       // how many there will be
    bool list_due_ = false;                       // is to be asked for, when we are idle
    Editor line_;                                 // what is typed into the chat
    std::string begun_in_;                        // the room in which it was begun
    std::optional<Prompt> prompt_, answer_;       // a question of ours, and the server's
    std::string status_;                          // shown until the next key
    bool focused_ = true;                         // of the terminal's window, if it reports that
    bool entered_just_now_ = false;               // a WHO line belongs to a ROOM line
    bool bell_ = false;                           // is to be rung
    Clock::time_point last_bell_, last_key_, over_since_;
    int unread_ = 0;
    std::vector<Row> screen_;              // as drawn last
    int columns_ = 1;                      // of it
    int height_ = 1;                       // of what can be scrolled there
    long first_row_ = 0;                   // of the rooms
    std::string chosen_;                   // a room
    std::vector<std::string> candidates_;  // for what is being completed: the next one first
    std::size_t completed_from_ = 0;
};

// ---- 12. Finding a server -----------------------------------------------------------------------------
// A question goes to everybody on the local networks (docs/protocol.md, "Discovery"). Anybody may answer it: what comes
// is a stranger's claim, and is checked, cleaned and bounded.

struct Address {
    std::string host, port;
    bool operator==(const Address&) const = default;
};

// Understands HOST, HOST:PORT, V6 and [V6]:PORT. Throws a UsageError at a port that is none.
Address read_address(const std::string& text, const std::optional<std::string>& port = {}) {
    const std::size_t colon = text.rfind(':');
    const bool has_port = colon != std::string::npos && (colon == text.find(':') || text[colon - 1] == ']');
    std::string host = text.substr(0, has_port ? colon : text.size());
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (host.empty()) throw UsageError("the host is missing");
    if (port && has_port) throw UsageError("there are two ports");
    const std::string number = has_port ? text.substr(colon + 1) : port.value_or(std::string(default_port));
    const bool right = parse_number(number, 1, 65535) && host.find(']') == std::string::npos;
    if (!right) throw UsageError("a port is a number from 1 to 65535");
    return {host, number};
}

struct Found {
    Address address;
    std::string people, title;
    bool password = false;
};

// This machine's IPv4 networks; its loopback, where everybody is 127.255.255.255, is one of them.
struct Networks {
    std::set<in_addr_t> own;             // this machine's addresses
    std::vector<sockaddr_in> everybody;  // where a question reaches all
};

Networks list_networks() {
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) throw_errno("getifaddrs");
    const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, freeifaddrs);
    Networks networks;
    for (const ifaddrs* at = list; at != nullptr; at = at->ifa_next) {
        const bool reaches_all = (at->ifa_flags & (IFF_BROADCAST | IFF_LOOPBACK)) != 0;
        if (!reaches_all || at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET) continue;
        const auto* own = reinterpret_cast<sockaddr_in*>(at->ifa_addr);
        const auto* mask = reinterpret_cast<sockaddr_in*>(at->ifa_netmask);
        networks.own.insert(own->sin_addr.s_addr);
        sockaddr_in& everybody = networks.everybody.emplace_back(*own);
        everybody.sin_port = htons(discovery_port);
        everybody.sin_addr.s_addr |= ~mask->sin_addr.s_addr;
    }
    return networks;
}

// Adds the server whose answer has come, if it is a new one: one on this machine answers on each of its networks.
void add_answer(const Fd& socket, std::string_view nonce, const Networks& networks, std::vector<Found>& all) {
    constexpr std::size_t max_found = 64;
    sockaddr_in from{};
    const std::string datagram = receive_datagram(socket, from);
    std::string_view answer = datagram;
    if (answer.size() > question_bytes || take_word(answer) != answer_word || take_word(answer) != nonce) return;
    const bool ours = networks.own.contains(from.sin_addr.s_addr);
    Found found;
    found.address.host = ours ? "127.0.0.1" : address_text(generic(from), sizeof from);
    found.address.port = take_word(answer);
    found.people = take_word(answer);
    const std::string_view login = take_word(answer);
    found.password = login == "password";
    found.title = clean(answer);
    const bool right = parse_number(found.address.port, 1, 65535) && parse_number(found.people, 0, 1000000);
    const auto is_same = [&](const Found& other) { return other.address == found.address; };
    if (!right || (!found.password && login != "open") || std::any_of(all.begin(), all.end(), is_same)) return;
    if (all.size() < max_found) all.push_back(found);
}

// Returns the servers that answer within a second; blocks as long. Throws if they cannot be asked at all.
std::vector<Found> find_servers() {
    const Networks networks = list_networks();
    const Fd socket(::socket(AF_INET, SOCK_DGRAM, 0));
    if (!socket) throw_errno("socket");
    set_option(socket, SOL_SOCKET, SO_BROADCAST, 1);
    std::random_device random;
    const std::string nonce = std::to_string(random()) + std::to_string(random());
    const std::string question = make_question(nonce);
    std::vector<Found> all;
    for (int round = 0; round < 2; ++round) {             // a datagram may be lost on its way
        for (sockaddr_in everybody : networks.everybody)  // some networks refuse
            sendto(socket.get(), question.data(), question.size(), 0, generic(everybody), sizeof everybody);
        for (const auto until = Clock::now() + std::chrono::milliseconds(500); Clock::now() < until;) {
            pollfd polled{socket.get(), POLLIN, 0};
            if (poll(&polled, 1, 10) > 0) add_answer(socket, nonce, networks, all);
        }
    }
    return all;
}

void print_servers(const std::vector<Found>& all) {
    for (int number = 1; const Found& found : all) {
        std::cout << std::setw(3) << number++ << "  " << padded(found.title, 30) << "  "
                  << padded(found.address.host + ':' + found.address.port, 21) << "  " << found.people << " there"
                  << (found.password ? ", password needed\n" : "\n");
    }
}

// Returns the address that the person chooses or types. Blocks; throws if the input ends, a UsageError at a wrong port.
Address choose_server(Keyboard& keyboard) {
    std::vector<Found> all;
    if (on_terminal()) {  // in a pipe nobody could look at the list, and answer it
        std::cout << "Looking for servers on the local network ..." << std::endl;
        all = find_servers();
        std::cout << (all.empty() ? "None has answered.\n" : "");
    }
    print_servers(all);
    while (!all.empty()) {
        const std::string answer = keyboard.ask("Its number, or another HOST:PORT", all.size() == 1 ? "1" : "");
        const std::optional<long> number = parse_number(answer, 1, static_cast<long>(all.size()));
        if (number) return all[static_cast<std::size_t>(*number - 1)].address;
        if (!answer.empty() && !parse_number(answer, 0, LONG_MAX)) return read_address(answer);
    }
    const Address address = read_address(keyboard.ask("Host", "127.0.0.1"));
    return read_address(address.host, keyboard.ask("Port", address.port));
}

// ---- 13. The helper command ---------------------------------------------------------------------------
// A program that reaches the server in its own way (--via): its standard input and output are our socket's other end,
// and its standard error is shown. Only the reader calls what is here, but for the first start, which comes before it.

class HelperConnection : public Connection {
   public:
    HelperConnection(Fd socket, Fd errors, pid_t pid)
        : Connection(std::move(socket)), errors_(std::move(errors)), pid_(pid) {}
    ~HelperConnection() override { end_helper(); }

   private:
    bool receive_into(std::vector<std::string>& lines) override {
        std::array<pollfd, 2> polled{{{fd(), POLLIN, 0}, {errors_.get(), POLLIN, 0}}};
        if (poll(polled.data(), polled.size(), -1) < 0) return true;
        if (polled[1].revents != 0 && !read_into(messages_, errors_.get())) errors_ = Fd();
        const bool open = polled[0].revents == 0 || Connection::receive_into(lines);
        if (!open) end_helper();
        while (const std::optional<Line> line = messages_.next()) {
            if (!line->text.empty()) lines.push_back("HELPER " + clean(line->text));
        }
        return open;
    }

    // Ends the command if it does not end by itself, and takes its last words. Blocks for about a second at most.
    void end_helper() {
        constexpr int patience = 20, limit = 120;  // hundredths of a second: for its own end, and for any
        if (pid_ == 0) return;
        end();
        int status = 0, waited = 0;
        for (; waitpid(pid_, &status, WNOHANG) == 0; ++waited) {
            if (waited == patience || waited == limit) kill(pid_, waited == limit ? SIGKILL : SIGTERM);
            std::this_thread::sleep_for(10ms);
        }
        helper_pid = pid_ = 0;
        pollfd polled{errors_.get(), POLLIN, 0};
        if (poll(&polled, 1, 0) > 0) read_into(messages_, errors_.get());
        if (waited > patience) return;  // how it ended is our doing
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
            messages_.add("\nThe command ended with status " + std::to_string(WEXITSTATUS(status)) + ".\n");
        } else if (WIFSIGNALED(status)) {
            messages_.add("\nThe command was ended by a signal: " + std::string(strsignal(WTERMSIG(status))) + ".\n");
        }
    }

    Fd errors_;
    pid_t pid_;  // 0: it has ended
    LineBuffer messages_{max_line};
};

// In the child, after fork(): runs the command in our place. What is called here is async-signal-safe.
[[noreturn]] void exec_helper(const char* line, int socket, int errors, bool may_ask, const sigset_t& signals) {
    dup2(socket, STDIN_FILENO);
    dup2(socket, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    signal(SIGPIPE, SIG_DFL);
    pthread_sigmask(SIG_SETMASK, &signals, nullptr);
    if (!may_ask) setsid();  // without a terminal, where a question of its own would disturb the screen
    execl("/bin/sh", "sh", "-c", line, static_cast<char*>(nullptr));
    _exit(127);
}

std::shared_ptr<Connection> start_helper(const std::string& command, bool may_ask) {
    std::array<int, 2> sockets{}, errors{};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets.data()) != 0) throw_errno("socketpair");
    Fd our_socket(sockets[0]);
    const Fd its_socket(sockets[1]);
    if (pipe(errors.data()) != 0) throw_errno("pipe");
    Fd our_errors(errors[0]);
    const Fd its_errors(errors[1]);
    for (const int fd : {sockets[0], sockets[1], errors[0], errors[1]}) fcntl(fd, F_SETFD, FD_CLOEXEC);
    const std::string line = "exec " + command;
    sigset_t all{}, before{};
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);  // a signal that ends us ends the helper too, once its number is known
    const pid_t pid = fork();
    if (pid > 0) helper_pid = pid;
    if (pid != 0) pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (pid < 0) throw_errno("fork");
    if (pid == 0) exec_helper(line.c_str(), its_socket.get(), its_errors.get(), may_ask, before);
    return std::make_shared<HelperConnection>(std::move(our_socket), std::move(our_errors), pid);
}

// ---- 14. Starting -------------------------------------------------------------------------------------
// What the options ask for decides which form is run.

struct Options {
    std::optional<std::string> name, via;
    std::optional<Address> address;
    bool plain = false, list = false;
    std::string color = "auto", bell = "mention";
};

constexpr const char* usage = R"( [OPTION]... [HOST [PORT]]
  --name NAME     log in under this name
  --via COMMAND   reach the server through a program's standard input and output: 'ssh -W localhost:12345 HOST'
  --list          list the servers on the local network
  --plain         lines in, lines out, without a screen
  --color WHEN    auto, always or never
  --bell WHEN     off; private: on a private message; mention: on one's own name too; all: whatever is said
  --help          show this
  --version       show the version
HOST may be HOST:PORT or [IPV6]:PORT. Without it, it looks for servers on the local network, and asks.
)";

// Returns an option's argument. Throws a UsageError if it is none of those.
std::string one_of(const std::string& option, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), optarg) != known.end()) return optarg;
    std::string all;
    for (const std::string& value : known) all += (all.empty() ? "" : value == known.back() ? " or " : ", ") + value;
    throw UsageError(option + " takes " + all + ", not '" + optarg + "'");
}

// Throws a UsageError at a wrong one.
Options read_options(int argc, char** argv) {
    Options options;
    const std::vector<std::string> colors = {"auto", "always", "never"}, bells = {"off", "private", "mention", "all"};
    const std::vector<KnownOption> known = {
        {"name", required_argument, [&] { options.name = optarg; }},
        {"via", required_argument, [&] { options.via = optarg; }},
        {"list", no_argument, [&] { options.list = true; }},
        {"plain", no_argument, [&] { options.plain = true; }},
        {"color", required_argument, [&] { options.color = one_of("--color", colors); }},
        {"bell", required_argument, [&] { options.bell = one_of("--bell", bells); }},
    };
    read_command_line(argc, argv, "chatroom", usage, known);
    if (options.name && !valid_name(*options.name))
        throw UsageError("a name is 3 to 12 letters and digits, a letter first");
    const std::vector<std::string> rest(argv + optind, argv + argc);
    if (rest.size() > 2) throw UsageError("unexpected argument '" + rest[2] + "'");
    if (options.via && trim(*options.via).empty()) throw UsageError("--via takes a command");
    if (options.via && !rest.empty()) throw UsageError("with --via it is the command that knows the host");
    if (options.list && !rest.empty()) throw UsageError("--list takes no host");
    if (rest.size() == 1) options.address = read_address(rest[0]);
    if (rest.size() == 2) options.address = read_address(rest[0], rest[1]);
    return options;
}

int list_servers() {
    const std::vector<Found> all = find_servers();
    print_servers(all);
    if (all.empty()) std::cerr << "No server has answered.\n";
    return all.empty() ? 1 : 0;
}

Target find_target(const Options& options, Keyboard& keyboard) {
    if (options.via) return {clean(*options.via), *options.via};
    const Address address = options.address ? *options.address : choose_server(keyboard);
    return {address.host + " port " + address.port, "", resolve(address.host, address.port)};
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

int run(const Options& options) {
    const bool is_chosen = !(environment("LC_ALL") + environment("LC_CTYPE") + environment("LANG")).empty();
    ascii_only = is_chosen && MB_CUR_MAX == 1 && std::setlocale(LC_CTYPE, "") != nullptr;  // null: not installed here
    if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");  // wcwidth() has to know the characters that are sent
    handle_signals();
    if (options.list) return list_servers();
    Keyboard keyboard;
    Target target = find_target(options, keyboard);
    const std::string terminal = environment("TERM");
    const bool plain = options.plain || !on_terminal() || terminal.empty() || terminal == "dumb";
    if (plain) return PlainClient(std::move(target), options.name, keyboard).run();
    const bool colors = options.color == "always" || (options.color == "auto" && environment("NO_COLOR").empty());
    return ScreenClient(std::move(target), options.name, options.bell, colors).run();
}

}  // namespace

int main(int argc, char** argv) {
    return run_program(argv[0], [&] { return run(read_options(argc, argv)); });
}
