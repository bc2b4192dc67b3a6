// A small terminal: what a program prints is fed to it, and it knows what a person would see. It understands what the
// client sends and no more; all else is kept in `strange`, for a test to find.
#pragma once

#include <cwchar>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../common.hpp"
#include "harness.hpp"

namespace harness {

class Terminal {
   public:
    struct Cell {
        std::string text = " ";  // a character, and what is attached to it; empty: the second column of a wide one
        std::string style;       // the codes of ESC [ m, without the 0 that begins them
    };

    explicit Terminal(Window size = {}) { resize(size); }

    void resize(Window size) {
        size_ = size;
        for (auto* grid : {&main_, &other_}) {
            grid->resize(size.rows);
            for (std::vector<Cell>& cells : *grid) cells.resize(size.columns);
        }
        row = std::min<int>(row, size.rows - 1);
        column = std::min<int>(column, size.columns - 1);
    }

    void feed(std::string_view bytes) {
        for (waiting_ += bytes; !waiting_.empty();) {
            std::size_t used = step(waiting_);
            if (used == 0) return;  // the rest has not come yet
            waiting_.erase(0, used);
        }
    }

    int rows() const { return size_.rows; }
    const Cell& at(int r, int c) const {
        return grid().at(static_cast<std::size_t>(r)).at(static_cast<std::size_t>(c));
    }

    // A row's text, without the spaces at its end or with them.
    std::string line(int r) const {
        std::string text = whole_line(r);
        return text.erase(text.find_last_not_of(' ') + 1);
    }
    std::string whole_line(int r) const {
        std::string text;
        for (const Cell& cell : grid().at(static_cast<std::size_t>(r))) text += cell.text;
        return text;
    }

    std::string text() const {
        std::string all;
        for (int r = 0; r < size_.rows; ++r) all += line(r) + '\n';
        return all;
    }

    // The row that has a text in it, or -1.
    int find(std::string_view wanted) const {
        for (int r = 0; r < size_.rows; ++r) {
            if (whole_line(r).find(wanted) != std::string::npos) return r;
        }
        return -1;
    }
    bool shows(std::string_view wanted) const { return find(wanted) >= 0; }

    // The column at which a text begins in a row.
    int column_of(int r, std::string_view wanted) const {
        for (int c = 0; c < size_.columns; ++c) {
            std::string rest;
            for (int i = c; i < size_.columns; ++i) rest += at(r, i).text;
            if (rest.starts_with(wanted) && !at(r, c).text.empty()) return c;
        }
        return -1;
    }

    int row = 0, column = 0;  // of the cursor
    bool alternate = false;   // the other screen is shown
    std::set<int> modes = {7, 25};
    std::string title;
    int bells = 0, titles_saved = 0;
    std::size_t printed = 0;  // characters
    std::vector<std::string> strange;

   private:
    using Grid = std::vector<std::vector<Cell>>;
    Grid& grid() { return alternate ? other_ : main_; }
    const Grid& grid() const { return alternate ? other_ : main_; }

    // Takes in the next character or sequence, and returns its bytes; 0 if it is not complete.
    std::size_t step(std::string_view bytes) {
        if (bytes.starts_with("\33[")) return csi(bytes);
        if (bytes.starts_with("\33]")) return osc(bytes);
        if (bytes[0] == '\33') return bytes.size() < 2 ? 0 : odd(bytes.substr(0, 2));
        if (static_cast<unsigned char>(bytes[0]) < 0x20 || bytes[0] == '\x7F') return control(bytes[0]);
        Character next = decode_utf8(bytes);
        if (!next.valid && bytes.size() < 4) return 0;
        if (!next.valid) return odd(bytes.substr(0, 1));
        print(next.code, bytes.substr(0, next.bytes));
        return next.bytes;
    }

    std::size_t odd(std::string_view bytes) {
        strange.emplace_back(bytes);
        return bytes.size();
    }

    std::size_t control(char c) {
        if (c == '\a') {
            ++bells;
        } else if (c == '\r') {
            column = 0;
        } else if (c == '\n') {
            if (++row == size_.rows) scroll();
        } else {
            odd(std::string_view(&c, 1));
        }
        return 1;
    }

    void scroll() {
        --row;
        grid().erase(grid().begin());
        grid().emplace_back(size_.columns);
    }

    std::size_t osc(std::string_view bytes) {
        std::size_t end = bytes.find('\a');
        if (end == bytes.npos) return 0;
        if (bytes.starts_with("\33]2;")) {
            title = bytes.substr(4, end - 4);
        } else {
            odd(bytes.substr(0, end + 1));
        }
        return end + 1;
    }

    std::size_t csi(std::string_view bytes) {
        std::size_t end = 2;
        while (end < bytes.size() && bytes[end] < '@') ++end;
        if (end == bytes.size()) return 0;
        std::string_view whole = bytes.substr(0, end + 1), parameters = bytes.substr(2, end - 2);
        if (!execute(bytes[end], parameters)) odd(whole);
        return whole.size();
    }

    bool execute(char final, std::string_view parameters) {
        bool is_private = parameters.starts_with('?');
        if (is_private) parameters.remove_prefix(1);
        std::vector<int> numbers;
        for (std::string rest(parameters); !rest.empty();) {
            std::size_t end = std::min(rest.find(';'), rest.size());
            numbers.push_back(end == 0 ? 0 : std::stoi(rest.substr(0, end)));
            rest.erase(0, end + 1);
        }
        if (is_private && (final == 'h' || final == 'l')) {
            for (int mode : numbers) set_mode(mode, final == 'h');
        } else if (final == 'H' && numbers.size() == 2) {
            row = std::clamp(numbers[0], 1, int{size_.rows}) - 1;
            column = std::clamp(numbers[1], 1, int{size_.columns}) - 1;
        } else if (final == 'J' && parameters == "2") {
            grid() = Grid(size_.rows, std::vector<Cell>(size_.columns));
        } else if (final == 'K' && numbers.empty()) {
            auto& cells = grid().at(static_cast<std::size_t>(row));
            std::fill(cells.begin() + std::min<int>(column, size_.columns), cells.end(), Cell());
        } else if (final == 'm') {
            style_ = parameters.starts_with("0;") ? parameters.substr(2) : "";
        } else if (final == 't' && numbers.size() == 2 && (numbers[0] == 22 || numbers[0] == 23)) {
            titles_saved += numbers[0] == 22 ? 1 : -1;
        } else {
            return false;
        }
        return true;
    }

    void set_mode(int mode, bool on) {
        modes.erase(mode);
        if (on) modes.insert(mode);
        if (mode != 1049) return;
        if (on) {
            saved_ = {row, column};
            other_ = Grid(size_.rows, std::vector<Cell>(size_.columns));
        } else if (alternate) {
            std::tie(row, column) = saved_;
        }
        alternate = on;
    }

    static bool is_flag_letter(char32_t code) { return code >= 0x1F1E6 && code <= 0x1F1FF; }

    void print(char32_t code, std::string_view bytes) {
        ++printed;
        bool flag = is_flag_letter(code) && is_flag_letter(last_) && !flag_is_whole_;
        int wide = std::max(wcwidth(static_cast<wchar_t>(code)), 0);
        if (is_flag_letter(code)) wide = 2;
        bool skin = code >= 0x1F3FB && code <= 0x1F3FF;
        bool attached = wide == 0 || flag || skin || last_ == 0x200D;
        flag_is_whole_ = flag;
        last_ = code;
        if (attached && column > 0) {
            Cell* cell = &grid()[static_cast<std::size_t>(row)][static_cast<std::size_t>(column - 1)];
            if (cell->text.empty() && column > 1) --cell;
            cell->text += bytes;
            return;
        }
        if (column + wide > size_.columns) {
            if (!modes.contains(7)) {
                column = size_.columns - wide;  // without wrapping the last column is overwritten
            } else {
                control('\r');
                control('\n');
            }
        }
        if (column < 0) column = 0;
        put(column++, std::string(bytes));
        if (wide == 2 && column < size_.columns) put(column++, "");
    }

    // A wide character of which one half is overwritten is gone.
    void put(int c, const std::string& text) {
        std::vector<Cell>& cells = grid()[static_cast<std::size_t>(row)];
        auto i = static_cast<std::size_t>(c);
        bool first_half = !cells[i].text.empty() && i + 1 < cells.size() && cells[i + 1].text.empty();
        if (cells[i].text.empty() && i > 0 && !text.empty()) cells[i - 1].text = " ";
        if (first_half) cells[i + 1].text = " ";
        cells[i] = {text, style_};
    }

    Window size_;
    Grid main_, other_;
    std::pair<int, int> saved_;
    std::string style_, waiting_;
    char32_t last_ = 0;
    bool flag_is_whole_ = false;
};

// A program on a terminal, and what is seen on it.
class OnScreen {
   public:
    explicit OnScreen(const std::string& program, Launch launch = {})
        : terminal(launch.terminal.value_or(Window{})), process(program, std::move(launch)) {}

    void type(std::string_view keys) { process.type(keys); }

    // Waits until the screen is as it should be. The failure shows what was on it instead.
    void wait(const std::string& meaning, const std::function<bool(const Terminal&)>& holds, Deadline until = {}) {
        const auto find = [&](std::string_view) {
            see();
            return holds(terminal) ? std::optional<std::string>("") : std::nullopt;
        };
        try {
            process.wait_output(Pattern("a screen " + meaning, find), until);
        } catch (const Failure& failure) {
            throw Failure(failure.what() + ("\nThe screen:\n" + terminal.text()));
        }
    }
    void wait(const std::string& text, Deadline until = {}) {
        wait(
            "with: " + text, [&](const Terminal& t) { return t.shows(text); }, until);
    }
    void wait_gone(const std::string& text, Deadline until = {}) {
        wait(
            "without: " + text, [&](const Terminal& t) { return !t.shows(text); }, until);
    }

    // Takes in what has been printed.
    void see() {
        terminal.feed(std::string_view(process.output()).substr(seen_));
        seen_ = process.output().size();
    }

    void resize(Window size) {
        process.mark();
        see();
        terminal.resize(size);
        process.resize(size);
    }

    // A press of the mouse's first button, at a row and a column from 0 on.
    void click(int row, int column) {
        std::string place = std::to_string(column + 1) + ';' + std::to_string(row + 1);
        type("\33[<0;" + place + "M\33[<0;" + place + "m");
    }
    void click(const std::string& text) {
        int row = terminal.find(text);
        click(row, terminal.column_of(row, text));
    }

    Terminal terminal;
    Pty process;

   private:
    std::size_t seen_ = 0;
};

}  // namespace harness
