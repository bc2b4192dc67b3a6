// Fuzzes what the client does with bytes from the server and from the keyboard: messages, keys, the line that is
// edited, the canvas, the display, and the scrollback.
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
    Canvas canvas(static_cast<int>(1 + bytes.byte() % 40), static_cast<int>(1 + bytes.byte() % 120));
    const auto press_all = [&](bool all) {
        while (const std::optional<Typed> typed = keys.next(all)) {
            if (typed->key == Key::text || typed->key == Key::paste) editor.insert(typed->text);
            if (typed->key == Key::enter) editor.remember(editor.text());
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
    const int column = canvas.put(canvas.rows - 1, 0, editor.text(), Style::plain, canvas.columns, 0);
    require(column >= 0, "what is drawn ends behind where it began");
    Display display(true);
    display.show(canvas, "", false);
    canvas.put(0, canvas.columns / 2, editor.text(), Style::error, canvas.columns, 3);
    display.show(canvas, "a title", true);
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
        Canvas canvas(height, columns);
        for (std::size_t i = 0; i < rows.size(); ++i) {
            int column = 0;
            for (const Piece& piece : rows[i])
                column = canvas.put(static_cast<int>(i), column, piece.text, piece.style, columns);
        }
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
