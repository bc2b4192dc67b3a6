// Fuzzes common.hpp: framing, cleaning, names, numbers, addresses, wrapping.
#include <clocale>
#include <vector>

#include "common.hpp"
#include "fuzz.hpp"

using fuzz::Bytes;
using fuzz::require;

namespace {

std::vector<std::string> lines_of(LineBuffer& buffer, bool at_end) {
    std::vector<std::string> lines;
    while (const std::optional<Line> line = buffer.next()) lines.push_back(line->too_long ? "\n" : line->text);
    if (!at_end) return lines;
    while (const std::optional<Line> line = buffer.last()) lines.push_back(line->too_long ? "\n" : line->text);
    return lines;
}

// However the bytes are cut up, the lines are the same (promise 3), and none is longer than the limit.
void frame(Bytes bytes) {
    const std::size_t limit = 1 + bytes.byte() % 32, piece = 1 + bytes.byte() % 7;
    const std::string_view all = bytes.rest();
    LineBuffer whole(limit), pieces(limit);
    whole.add(all);
    const std::vector<std::string> lines = lines_of(whole, true);
    std::vector<std::string> others;
    for (std::size_t at = 0; at < all.size(); at += piece) {
        pieces.add(all.substr(at, piece));
        for (std::string& line : lines_of(pieces, false)) others.push_back(std::move(line));
    }
    for (std::string& line : lines_of(pieces, true)) others.push_back(std::move(line));
    require(lines == others, "the lines do not depend on how the bytes are cut up");
    for (const std::string& line : lines) require(line.size() <= limit, "no line is longer than the limit");
}

void check_clean(std::string_view text) {
    const std::string cleaned = clean(text);
    require(cleaned.size() <= 3 * text.size(), "cleaning makes a text at most three times as long");
    require(clean(cleaned) == cleaned, "what is clean stays as it is");
    for (std::string_view rest = cleaned; !rest.empty();) {
        const Character next = decode_utf8(rest);
        require(next.valid, "what is clean is UTF-8");
        require(next.code >= 0x20 && next.code != 0x7F, "what is clean has no control character");
        rest.remove_prefix(next.bytes);
    }
    require(count_characters(cleaned) <= cleaned.size(), "a character has a byte or more");
}

void check_names(std::string_view text) {
    const std::string folded = fold(text);
    require(fold(folded) == folded && same_name(text, folded), "a folded name is the same name");
    if (valid_name(text))
        require(clean(text) == text && text.size() >= 3 && text.size() <= 12, "a name is 3 to 12 letters");
    if (const auto number = parse_number(text, -1000, 1000))
        require(*number >= -1000 && *number <= 1000, "a range holds");
    if (text.find('\0') != std::string_view::npos) return;
    const std::string address = normal_address(std::string(text));
    require(address.empty() || normal_address(address) == address, "an address is written in one way");
    const std::string cleaned = clean(text);  // as is all that words are taken from
    std::string_view rest = trim(cleaned);
    int words = 0;
    for (; !rest.empty(); rest = trim(rest)) words += take_word(rest).empty() ? 0 : 1;
    require(words == count_words(cleaned), "the words that are counted are those that are taken");
}

// But for spaces, of which one at a row's end is dropped, a text is as it was without the ends that wrapping adds; and
// no line begins in a row of its own but the first (promise 3).
void check_wrapped(std::string_view text, std::size_t columns) {
    std::string cleaned = clean(text), rows = wrapped(cleaned, columns);
    for (std::size_t at = 0; columns >= 10 && (at = rows.find('\n', at)) != std::string::npos; rows.erase(at, 1))
        require(rows.compare(at, 9, "\n        ") == 0, "a row after the first is indented");
    std::erase(cleaned, ' ');
    std::erase(rows, ' ');
    require(rows == cleaned, "wrapping changes nothing but spaces and ends");
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*count*/, char*** /*arguments*/) {
    std::setlocale(LC_CTYPE, "C.UTF-8");
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const unsigned columns = bytes.byte() % 100;
    const std::string_view text = Bytes(bytes).rest();
    frame(bytes);
    check_clean(text);
    check_names(text);
    check_wrapped(text, columns);
    return 0;
}
