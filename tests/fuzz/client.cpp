// Fuzzes what the client does with bytes from the server and from the keyboard: messages, keys, the line that is
// edited, rows, the display, and the scrollback.
#define main program_main
#include "../../client.cpp"
#undef main

#include "fuzz.hpp"

namespace {

using fuzz::Bytes;
using fuzz::require;

Entry entry_of(std::string_view line) {
    Entry entry = Message(line).entry();
    entry.text = clean(entry.text);
    entry.name = std::min(entry.name, entry.text.size());
    return entry;
}

// Returns a row as wide as a screen.
Row fitted(Row row, int columns) {
    fit(row, columns);
    int wide = 0;
    for (const Piece& piece : row) wide += columns_of(piece.text);
    require(wide == columns, "a row is as wide as the screen");
    return row;
}

void check(const Editor& editor) {
    require(editor.text().size() <= max_line, "a line that is typed is not longer than a line may be");
    require(std::string_view(editor.text()).starts_with(editor.before_cursor()), "the cursor is in the line");
}

// Returns the keys, written down, that come of bytes in pieces of so many.
std::string keys_of(std::string_view bytes, std::size_t piece) {
    Keys keys;
    std::string all;
    const auto write_down = [&](bool more) {
        while (const std::optional<Typed> typed = keys.next(!more)) {
            const std::string number = std::to_string(static_cast<int>(typed->key));
            all += (typed->key == Key::text ? "" : '<' + number + '>') + typed->text;
        }
    };
    for (; !bytes.empty(); bytes.remove_prefix(std::min(piece, bytes.size()))) {
        keys.add(bytes.substr(0, piece));
        write_down(true);
    }
    write_down(false);
    return all;
}

// Types, as a terminal would send it; then draws what was typed.
void type(Bytes bytes) {
    Keys keys;
    Editor editor;
    const std::size_t height = 1 + bytes.byte() % 40;
    const int columns = static_cast<int>(1 + bytes.byte() % 120);
    const auto press_all = [&](bool all) {
        while (const std::optional<Typed> typed = keys.next(all)) {
            if (typed->key == Key::text || typed->key == Key::paste) editor.insert(typed->text);
            if (typed->key == Key::enter) editor.finish();
            editor.press(typed->key);
            check(editor);
        }
    };
    const std::size_t piece = 1 + bytes.byte() % 16;
    const std::string_view rest = bytes.rest();
    require(keys_of(rest, piece) == keys_of(rest, rest.size()), "a key that comes in pieces is that key");
    for (bytes = Bytes(reinterpret_cast<const std::uint8_t*>(rest.data()), rest.size()); !bytes.empty();) {
        keys.add(bytes.text(piece));
        press_all(false);
    }
    press_all(true);
    editor.replace_from(editor.before_cursor().size() / 2 == 0 ? 0 : editor.before_cursor().size(), "replaced");
    std::vector<Row> rows(height, fitted({{editor.text(), Style::plain}}, columns));
    Display display(true);
    display.show("", rows, 0, false);
    rows[0] = fitted({{"before", Style::error}, {editor.text(), Style::bar}, {"behind", Style::plain}}, columns);
    display.show("a title", rows, columns - 1, true);
}

void read(Bytes bytes) {
    Scrollback scrollback;
    while (!bytes.empty()) {
        const unsigned action = bytes.byte();
        if (action < 192) scrollback.add(entry_of(bytes.text(action)));
        const int height = static_cast<int>(1 + action % 30), columns = static_cast<int>(10 + bytes.byte() % 110);
        if (action % 5 == 0) scrollback.scroll(static_cast<long>(bytes.byte()) - 128, height, columns);
        if (action % 7 == 0) scrollback.mark();
        if (action % 11 == 0) scrollback.follow();
        if (action % 3 != 0) continue;
        const auto rows = scrollback.rows(height, columns);
        require(std::cmp_less_equal(rows.size(), height), "no more rows than the window has");
        for (const Row& row : rows) fitted(row, columns);
    }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*count*/, char*** /*arguments*/) {
    std::setlocale(LC_ALL, "C.UTF-8");
    const int nothing = open("/dev/null", O_WRONLY);  // takes what the display shows; libFuzzer writes to stderr
    dup2(nothing, STDOUT_FILENO);
    close(nothing);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    bytes.byte() % 2 == 0 ? type(bytes) : read(bytes);
    return 0;
}
