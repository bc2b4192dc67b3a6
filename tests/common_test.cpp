// common.hpp, function by function. What is a character and what is harmful is said here once more, in other words, so
// that the tests do not take the code's own word for it.
#include "common.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>

#include <array>
#include <clocale>
#include <cstdio>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

using namespace std::string_literals;

const std::string replaced = "\uFFFD";

std::string what_throws(const std::function<void()>& act) {
    try {
        act();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "nothing is thrown";
}

// ---------------------------------------------------------------------------------------------------------------------
// 1. Errors

TEST(Errors, AreToldBySymbolAndText) {
    EXPECT_EQ(error_text(EADDRINUSE), "EADDRINUSE (Address already in use)");
    EXPECT_EQ(error_text(ECONNREFUSED), "ECONNREFUSED (Connection refused)");
    EXPECT_TRUE(error_text(EMFILE).starts_with("EMFILE (")) << error_text(EMFILE);
    EXPECT_TRUE(error_text(EPIPE).starts_with("EPIPE (")) << error_text(EPIPE);
    EXPECT_TRUE(error_text(9999).starts_with("errno 9999 (")) << error_text(9999);
}

TEST(Errors, AreThrownWithTheCallAndTheAdvice) {
    EXPECT_EQ(what_throws([] { errno = ENOENT, throw_errno("open x"); }), "open x: ENOENT (No such file or directory)");
    EXPECT_EQ(what_throws([] { errno = EADDRINUSE, throw_errno("bind", "is one running?"); }),
              "bind: EADDRINUSE (Address already in use): is one running?");
}

// ---------------------------------------------------------------------------------------------------------------------
// 2. Descriptors

bool is_open(int fd) { return fcntl(fd, F_GETFD) != -1; }

Fd open_null() { return Fd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

TEST(Descriptors, HaveOneOwner) {
    static_assert(!std::is_copy_constructible_v<Fd> && !std::is_copy_assignable_v<Fd>);
    int number = -1;
    {
        Fd first = open_null();
        number = first.get();
        Fd second = std::move(first);
        EXPECT_EQ(second.get(), number);
        EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): what a move leaves is what is tested
        EXPECT_TRUE(second);
        EXPECT_TRUE(is_open(number));
    }
    EXPECT_FALSE(is_open(number));
}

TEST(Descriptors, AreClosedOnce) {
    Fd first = open_null();
    const int number = first.get();
    first = Fd();
    EXPECT_FALSE(first);
    EXPECT_FALSE(is_open(number));
    const Fd other = open_null();  // takes the lowest number that is free, which is the one just closed
    ASSERT_EQ(other.get(), number);
    first = Fd();
    { const Fd empty = std::move(first); }
    EXPECT_TRUE(is_open(number));
}

TEST(Descriptors, AreClosedWhenAnotherTakesTheirPlace) {
    Fd kept = open_null();
    Fd other = open_null();
    const int first = kept.get();
    const int second = other.get();
    kept = std::move(other);
    other = Fd();
    EXPECT_EQ(kept.get(), second);
    EXPECT_FALSE(is_open(first));
    EXPECT_TRUE(is_open(second));
}

TEST(Descriptors, NoneIsFalseAndMinusOne) {
    const Fd none;
    EXPECT_FALSE(none);
    EXPECT_EQ(none.get(), -1);
    EXPECT_TRUE(Fd(dup(STDERR_FILENO)));
}

bool readable(const Wakeup& wakeup) {
    pollfd event{wakeup.fd(), POLLIN, 0};
    return poll(&event, 1, 0) == 1;
}

TEST(Wakeups, StaySetUntilCleared) {
    const Wakeup wakeup;
    EXPECT_FALSE(readable(wakeup));
    wakeup.set();
    EXPECT_TRUE(readable(wakeup));
    EXPECT_TRUE(readable(wakeup));
    wakeup.clear();
    EXPECT_FALSE(readable(wakeup));
    wakeup.clear();
    wakeup.set();
    EXPECT_TRUE(readable(wakeup));
}

TEST(Wakeups, NeverBlockHoweverOftenTheyAreSetAndKeepErrno) {
    const Wakeup wakeup;
    errno = ENOENT;
    for (int i = 0; i < 200000; ++i) wakeup.set();  // more than any pipe holds
    EXPECT_EQ(errno, ENOENT);
    wakeup.clear();
    EXPECT_FALSE(readable(wakeup));
}

TEST(Wakeups, AreNotInherited) { EXPECT_EQ(fcntl(Wakeup().fd(), F_GETFD), FD_CLOEXEC); }

// ---------------------------------------------------------------------------------------------------------------------
// 3. Text

// Returns the bytes of a code point by the table of RFC 3629; of a surrogate too, which is not allowed.
std::string utf8(char32_t code) {
    const auto byte = [](char32_t value) { return static_cast<char>(static_cast<unsigned char>(value)); };
    const auto tail = [&](int shift) { return byte(0x80 | (code >> shift & 0x3F)); };
    if (code < 0x80) return {byte(code)};
    if (code < 0x800) return {byte(0xC0 | code >> 6), tail(0)};
    if (code < 0x10000) return {byte(0xE0 | code >> 12), tail(6), tail(0)};
    return {byte(0xF0 | code >> 18), tail(12), tail(6), tail(0)};
}

// Returns a code point as it is usually written: "U+202E".
std::string point(char32_t code) {
    std::array<char, 16> text{};
    return {text.data(),
            static_cast<std::size_t>(std::snprintf(text.data(), text.size(), "U+%04X", static_cast<unsigned>(code)))};
}

bool is_surrogate(char32_t code) { return code >= 0xD800 && code <= 0xDFFF; }

// Every character that must not reach a screen, file or log.
const std::set<char32_t>& hostile() {
    static const std::set<char32_t> all = [] {
        std::set<char32_t> set = {
            0x00AD,                                                              // soft hyphen
            0x061C,  0x200E,  0x200F,  0x202A,  0x202B, 0x202C, 0x202D, 0x202E,  // bidirectional controls:
            0x2066,  0x2067,  0x2068,  0x2069,  0x206A, 0x206B, 0x206C, 0x206D, 0x206E, 0x206F,  // marks, isolates, old
            0x180E,  0x200B,  0x2060,  0x2061,  0x2062, 0x2063, 0x2064, 0x2065, 0xFEFF,          // invisible
            0x2028,  0x2029,                                                                     // separators
            0x1BCA0, 0x1BCA1, 0x1BCA2, 0x1BCA3,                                                  // shorthand
        };
        for (char32_t c = 0; c < 0x20; ++c) set.insert(c);           // C0
        for (char32_t c = 0x7F; c < 0xA0; ++c) set.insert(c);        // DEL and C1
        for (char32_t c = 0xFFF0; c < 0xFFFC; ++c) set.insert(c);    // annotations, and unassigned like them
        for (char32_t c = 0x1D173; c < 0x1D17B; ++c) set.insert(c);  // music
        for (char32_t c = 0xE0000; c < 0xE0100; ++c) set.insert(c);  // tags, and unassigned like them
        return set;
    }();
    return all;
}

// Decodes all of text; what is not UTF-8 counts as a harmful NUL.
std::vector<char32_t> codes_in(std::string_view text) {
    std::vector<char32_t> codes;
    while (!text.empty()) {
        const Character next = decode_utf8(text);
        codes.push_back(next.valid ? next.code : 0);
        text.remove_prefix(next.bytes);
    }
    return codes;
}

TEST(Threads, HaveANameHoweverLongItIs) {
    std::array<char, 100> name{};
    std::thread([&] {
        name_thread("fd00:1234:5678:9abc::1234:5678");
        pthread_getname_np(pthread_self(), name.data(), name.size());
    }).join();
    EXPECT_TRUE(std::string_view(name.data()).starts_with("fd00:1234:5678:")) << name.data();
}

TEST(Text, EveryCharacterIsDecodedAndNoOther) {
    for (char32_t code = 0; code <= 0x10FFFF; ++code) {
        const std::string bytes = utf8(code);
        const Character found = decode_utf8(bytes + "x");
        if (is_surrogate(code)) {
            ASSERT_FALSE(found.valid) << point(code);
            ASSERT_EQ(found.bytes, 1U) << point(code);
        } else {
            ASSERT_TRUE(found.valid) << point(code);
            ASSERT_EQ(found.code, code);
            ASSERT_EQ(found.bytes, bytes.size()) << point(code);
        }
    }
}

TEST(Text, WhatIsNotUtf8IsOneBadByte) {
    const std::vector<std::string> bad = {
        "\x80",
        "\xBF",
        "\xC0\x80",
        "\xC1\xBF",
        "\xC3",
        "\xC3(",
        "\xE0\x80\x80",
        "\xE0\x9F\xBF",
        "\xE4\xBD",
        "\xE4(\xA0",
        "\xED\xA0\x80",
        "\xED\xBF\xBF",
        "\xF0\x9F\x98",
        "\xF0\x9F\x98(",
        "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80",
        "\xF8\x88\x80\x80",
        "\xFC",
        "\xFE",
        "\xFF",
    };
    for (const std::string& bytes : bad) {
        const Character found = decode_utf8(bytes);
        EXPECT_FALSE(found.valid) << testing::PrintToString(bytes);
        EXPECT_EQ(found.bytes, 1U);
        EXPECT_EQ(found.code, U'\uFFFD');
    }
}

TEST(Text, HarmfulIsWhatMovesTheCursorTurnsTheOrderOrHides) {
    for (char32_t code = 0; code <= 0x10FFFF; ++code)
        ASSERT_EQ(is_harmful(code), hostile().contains(code)) << point(code);
}

TEST(Text, CleanKeepsEveryHarmlessCharacterAndReplacesTheOthers) {
    for (char32_t code = 0; code <= 0x10FFFF; ++code) {
        const std::string bytes = utf8(code);
        std::string wanted = hostile().contains(code) ? replaced : bytes;
        if (code == '\t') wanted = " ";
        if (is_surrogate(code)) wanted = replaced + replaced + replaced;
        ASSERT_EQ(clean("a" + bytes + "b"), "a" + wanted + "b") << point(code);
    }
}

TEST(Text, EachBadByteIsReplacedByItself) {
    EXPECT_EQ(clean("caf\xE9 au lait"), "caf" + replaced + " au lait");
    EXPECT_EQ(clean("\xE4\xBD!"), replaced + replaced + "!");
    EXPECT_EQ(clean("\xC3\xC3\xA9"), replaced + "é");
    EXPECT_EQ(clean("\xF0\x9F\x98"), replaced + replaced + replaced);
    EXPECT_EQ(clean("\xC0\xAF"), replaced + replaced);
    EXPECT_EQ(clean("\xFF"), replaced);
    EXPECT_EQ(clean("\x1B[2J\x07\x9B"), replaced + "[2J" + replaced + replaced);
    EXPECT_EQ(clean("a\0b\rc"s), "a" + replaced + "b" + replaced + "c");
    EXPECT_EQ(clean(""), "");
}

TEST(Text, WhatPeopleWritePassesWhole) {
    const std::vector<std::string> texts = {
        "é ñ ß Ω я 你好 こんにちは 안녕 مرحبا שלום नमस्ते",
        "e\u0301",                                                 // é of two code points
        "\u0646\u0645\u06CC\u200C\u062E\u0648\u0627\u0647\u0645",  // Persian, with the non-joiner
        "👨\u200D👩\u200D👧\u200D👦 👩🏽\u200D🚀 🏳\uFE0F\u200D🌈 ❤\uFE0F ☎\uFE0E 1\uFE0F\u20E3",
        "\u845B\U000E0100",  // an ideograph's variation
        "🇳🇱🇯🇵",
        "🏴\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F",  // England
        "a > b && \"c\" < 'd' \\ $HOME `ls` %s # ~",
    };
    for (const std::string& text : texts) EXPECT_EQ(clean(text), text);
}

TEST(Text, TagsCountOnlyRightAfterTheBlackFlag) {
    const std::string tag = "\U000E0067";
    EXPECT_EQ(clean("🏴x" + tag), "🏴x" + replaced);
    EXPECT_EQ(clean("🏁" + tag), "🏁" + replaced);
    EXPECT_EQ(clean("🏴" + tag + "x" + tag), "🏴" + tag + "x" + replaced);
    EXPECT_EQ(clean("🏴\U000E0001"), "🏴" + replaced);
    EXPECT_EQ(clean("🏴\U000E001F"), "🏴" + replaced);
    EXPECT_EQ(clean("🏴\U000E0080"), "🏴" + replaced);
    EXPECT_EQ(clean("🏴\x80" + tag), "🏴" + replaced + replaced);
}

TEST(Text, TelnetsCommandsHaveTheirLengths) {
    EXPECT_EQ(telnet_command("hello"), 0U);
    EXPECT_EQ(telnet_command("\xFF"), 0U);          // cut off, or no command at all
    EXPECT_EQ(telnet_command("\xFF\xFF"), 0U);      // a byte 255 as such
    EXPECT_EQ(telnet_command("\xFF\xEF"), 0U);      // below the commands
    EXPECT_EQ(telnet_command("\xFF\xF4rest"), 2U);  // interrupt
    EXPECT_EQ(telnet_command("\xFF\xF0rest"), 2U);
    for (const char option : {'\xFB', '\xFC', '\xFD', '\xFE'}) {
        EXPECT_EQ(telnet_command("\xFF"s + option + "\x01rest"), 3U);
        EXPECT_EQ(telnet_command("\xFF"s + option), 2U);
    }
    EXPECT_EQ(telnet_command("\xFF\xFA\x1F\0\x50\0\x18\xFF\xF0rest"s), 9U);
    EXPECT_EQ(telnet_command("\xFF\xFA\x1F rest"), 8U);
}

TEST(Text, TelnetsCommandsAreTakenOut) {
    EXPECT_EQ(clean("\xFF\xFD\x01\xFF\xFB\x1F"
                    "alice"),
              "alice");
    EXPECT_EQ(clean("ali\xFF\xF4\xFF\xFD\x06"
                    "ce"),
              "alice");
    EXPECT_EQ(clean("a\xFF\xFA\x18\0xterm\xFF\xF0z"s), "az");
    EXPECT_EQ(clean("end\xFF\xFD"), "end");
    EXPECT_EQ(clean("\xC3\xFF\xF1\xA9"), replaced + replaced);  // they do not join what they part
}

// Returns a text of random bytes, most of them from what is difficult.
std::string random_bytes(std::mt19937& random) {
    static const std::vector<std::string> parts = {
        "\xFF",  "\xFF\xFA", "\xFF\xF0", "\xFB", "\xF0\x9F", "\x8F\xB4", "\U000E0067", "🏴", "\t",     "\r",
        "\x1B[", "\xC3",     "\xA9",     "é",    "\u202E",   "x",        "\u2028",     "\0"s,  "\u200D", "👩",
    };
    std::string text;
    for (auto left = random() % 20; left > 0; --left) {
        text += random() % 3 == 0 ? std::string(1, static_cast<char>(random() % 256)) : parts[random() % parts.size()];
    }
    return text;
}

TEST(Text, CleanHoldsItsPromisesForAnyBytes) {
    std::mt19937 random(1);  // NOLINT(bugprone-random-generator-seed): so that a failure comes again
    for (int round = 0; round < 50000; ++round) {
        const std::string text = random_bytes(random);
        const std::string result = clean(text);
        ASSERT_LE(result.size(), 3 * text.size()) << testing::PrintToString(text);
        ASSERT_EQ(clean(result), result) << testing::PrintToString(text);
        bool in_flag = false;
        for (const char32_t code : codes_in(result)) {
            const bool tag = in_flag && code >= 0xE0020 && code <= 0xE007F;
            in_flag = tag || code == U'🏴';
            ASSERT_TRUE(tag || !hostile().contains(code)) << testing::PrintToString(text);
        }
    }
}

TEST(Text, TheWorstLineFitsIntoALineFromTheServer) {
    const std::string worst = clean(std::string(max_line, '\x80'));
    EXPECT_EQ(worst.size(), 3 * max_line);
    EXPECT_LT(("PAST 2026-11-20T14:02:05Z SAY abcdefghijkl " + worst).size(), max_server_line);
}

// Lets text go to another place than the standard output for a while.
class OutputTo {
   public:
    explicit OutputTo(int fd) : kept_(dup(STDOUT_FILENO)) {
        std::fflush(stdout);
        dup2(fd, STDOUT_FILENO);
    }
    OutputTo(const OutputTo&) = delete;
    OutputTo& operator=(const OutputTo&) = delete;
    ~OutputTo() { dup2(kept_.get(), STDOUT_FILENO); }

   private:
    Fd kept_;
};

TEST(Screen, HasTheWidthOfTheTerminal) {
    const Fd master(posix_openpt(O_RDWR | O_NOCTTY));
    ASSERT_TRUE(master && grantpt(master.get()) == 0 && unlockpt(master.get()) == 0);
    const Fd terminal(open(ptsname(master.get()), O_RDWR | O_NOCTTY));
    winsize size{24, 33, 0, 0};
    ASSERT_EQ(ioctl(master.get(), TIOCSWINSZ, &size), 0);
    const OutputTo there(terminal.get());
    EXPECT_EQ(screen_width(), 33U);
}

TEST(Screen, HasNoWidthWhereThereIsNone) {
    const Fd null(open("/dev/null", O_WRONLY));
    const OutputTo there(null.get());
    EXPECT_EQ(screen_width(), 0U);
}

// The tests below count columns, for which the locale has to know the characters.
class Wrapping : public testing::Test {
   protected:
    void SetUp() override {
        for (const char* name : {"C.UTF-8", "en_US.UTF-8", "UTF-8"}) {
            if (std::setlocale(LC_CTYPE, name) != nullptr) return;
        }
        GTEST_SKIP() << "there is no UTF-8 locale here";
    }
    void TearDown() override { std::setlocale(LC_CTYPE, "C"); }
};

std::vector<std::string> rows_of(const std::string& text) {
    std::vector<std::string> rows(1);
    for (const char c : text) {
        if (c == '\n') {
            rows.emplace_back();
        } else {
            rows.back() += c;
        }
    }
    return rows;
}

std::size_t columns_of(const std::string& row) {
    std::size_t columns = 0;
    for (const char32_t code : codes_in(row)) columns += code < 0x300 ? 1U : code == 0x301 ? 0U : 2U;
    return columns;
}

const std::string indent(8, ' ');

TEST_F(Wrapping, LeavesWhatFits) {
    const std::string full(20, 'x');
    EXPECT_EQ(wrapped("", 20), "");
    EXPECT_EQ(wrapped(full, 20), full);
    EXPECT_EQ(wrapped(full + "\n" + full + "\n", 20), full + "\n" + full + "\n");
}

TEST_F(Wrapping, IndentsWhereALineGoesOn) {
    EXPECT_EQ(wrapped(std::string(45, 'x'), 20), std::string(20, 'x') + "\n" + indent + std::string(12, 'x') + "\n" +
                                                     indent + std::string(12, 'x') + "\n" + indent + "x");
    EXPECT_EQ(wrapped(std::string(21, 'x') + "\nab\n", 20), std::string(20, 'x') + "\n" + indent + "x\nab\n");
}

TEST_F(Wrapping, BreaksAtSpacesAndWithinAWordThatIsTooLong) {
    const auto rows = [](const std::string& text) { return rows_of(wrapped(text, 20)); };
    using Rows = std::vector<std::string>;
    EXPECT_EQ(rows("12:00 alice: the quick fox"), (Rows{"12:00 alice: the ", indent + "quick fox"}));
    EXPECT_EQ(rows("12:00 alice: the fox ran"), (Rows{"12:00 alice: the fox", indent + "ran"}));  // its space is gone
    EXPECT_EQ(rows("12:00 alice: " + std::string(13, 'x') + " end"),
              (Rows{"12:00 alice: ", indent + std::string(12, 'x'), indent + "x end"}));
    EXPECT_EQ(rows("a " + std::string(20, 'x')), (Rows{"a " + std::string(18, 'x'), indent + "xx"}));
    EXPECT_EQ(rows("12:00 bob: a\n12:00 bob: " + std::string(12, 'x')),
              (Rows{"12:00 bob: a", "12:00 bob: ", indent + std::string(12, 'x')}));
}

TEST_F(Wrapping, NeverSplitsAWideCharacterNorPartsAnAccent) {
    EXPECT_EQ(wrapped(std::string(19, 'x') + "你", 20), std::string(19, 'x') + "\n" + indent + "你");
    EXPECT_EQ(wrapped(std::string(18, 'x') + "你", 20), std::string(18, 'x') + "你");
    EXPECT_EQ(wrapped(std::string(19, 'x') + "e\u0301", 20), std::string(19, 'x') + "e\u0301");
}

TEST_F(Wrapping, CutsNothingWithoutColumnsOrWithTooFew) {
    const std::string text(100, 'x');
    EXPECT_EQ(wrapped(text, 0), text);
    EXPECT_EQ(wrapped(text, 9), text);
    EXPECT_NE(wrapped(text, 10), text);
}

TEST_F(Wrapping, HoldsItsPromisesForAnyLinesAndWidth) {
    std::mt19937 random(2);  // NOLINT(bugprone-random-generator-seed): so that a failure comes again
    const std::vector<std::string> parts = {"a", "word ", "你", "é", "e\u0301", "👩", "\n", "SAY admin "};
    for (int round = 0; round < 5000; ++round) {
        std::string text;
        for (auto left = random() % 80; left > 0; --left) text += parts[random() % parts.size()];
        const std::size_t columns = 10 + random() % 40;
        const std::string result = wrapped(text, columns);
        std::string rejoined = result, letters = text;  // a space may be gone where a row ends
        for (std::size_t at = 0; (at = rejoined.find("\n" + indent, at)) != std::string::npos;) rejoined.erase(at, 9);
        for (std::string* side : {&rejoined, &letters}) std::erase(*side, ' ');
        ASSERT_EQ(rejoined, letters) << columns;
        for (const std::string& row : rows_of(result)) ASSERT_LE(columns_of(row), columns) << row;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// 4. Lines

const std::string too_long = "(too long)";

// Returns the lines that came so far.
std::vector<std::string> take_lines(LineBuffer& buffer) {
    std::vector<std::string> lines;
    while (const std::optional<Line> line = buffer.next()) {
        EXPECT_TRUE(!line->too_long || line->text.empty());
        lines.push_back(line->too_long ? too_long : line->text);
    }
    return lines;
}

void append(std::vector<std::string>& lines, const std::vector<std::string>& more) {
    lines.insert(lines.end(), more.begin(), more.end());
}

// Returns the lines of a stream that comes in pieces, of which next_size gives the sizes, and then ends.
std::vector<std::string> lines_of(std::string_view stream, const std::function<std::size_t()>& next_size,
                                  std::size_t limit = max_line) {
    LineBuffer buffer(limit);
    std::vector<std::string> lines;
    while (!stream.empty()) {
        const std::string_view piece = stream.substr(0, next_size());
        stream.remove_prefix(piece.size());
        buffer.add(piece);
        append(lines, take_lines(buffer));
    }
    if (const std::optional<Line> last = buffer.last()) lines.push_back(last->too_long ? too_long : last->text);
    EXPECT_FALSE(buffer.last());
    return lines;
}

std::vector<std::string> lines_of(std::string_view stream, std::size_t limit = max_line) {
    return lines_of(
        stream, [&] { return stream.size(); }, limit);
}

using Strings = std::vector<std::string>;

TEST(Lines, ComeByteByByte) {
    const auto one = [] { return 1; };
    EXPECT_EQ(lines_of("hello\nyou\r\n\nthere\n", one), (Strings{"hello", "you", "", "there"}));
    LineBuffer buffer(max_line);
    for (const char c : "hello"s) {
        buffer.add(std::string(1, c));
        EXPECT_FALSE(buffer.next());
    }
    buffer.add("\n");
    EXPECT_EQ(buffer.next()->text, "hello");
    EXPECT_FALSE(buffer.next());
}

TEST(Lines, ComeFiveHundredAtOnce) {
    std::string stream;
    Strings wanted;
    for (int i = 0; i < 500; ++i) {
        wanted.push_back("line " + std::to_string(i));
        stream += wanted.back() + "\n";
    }
    EXPECT_EQ(lines_of(stream), wanted);
}

TEST(Lines, LoseOneCarriageReturnBeforeTheEnd) {
    EXPECT_EQ(lines_of("a\r\nb\r\r\nc\rd\n\r\n"), (Strings{"a", "b\r", "c\rd", ""}));
    EXPECT_EQ(lines_of("last\r"), Strings{"last"});
}

TEST(Lines, KeepEveryOtherByte) {
    const std::string text = "\0\t\x1B\xFF\x80 é"s;
    EXPECT_EQ(lines_of(text + "\n"), Strings{text});
}

TEST(Lines, HaveALimitThatDoesNotCountTheirEnd) {
    const std::string most(max_line, 'x');
    const std::string more(max_line + 1, 'x');
    EXPECT_EQ(lines_of(most + "\nnext\n"), (Strings{most, "next"}));
    EXPECT_EQ(lines_of(most + "\r\nnext\n"), (Strings{most, "next"}));
    EXPECT_EQ(lines_of(more + "\nnext\n"), (Strings{too_long, "next"}));
    EXPECT_EQ(lines_of(more + "\r\nnext\n"), (Strings{too_long, "next"}));
    EXPECT_EQ(lines_of(most + "\r\r\nnext\n"), (Strings{too_long, "next"}));
}

TEST(Lines, WithoutAnEndHaveTheSameLimit) {
    const std::string most(max_line, 'x');
    EXPECT_EQ(lines_of(most), Strings{most});
    EXPECT_EQ(lines_of(most + "\r"), Strings{most});
    EXPECT_EQ(lines_of(most + "x"), Strings{too_long});
    EXPECT_EQ(lines_of(most + "xyz"), Strings{too_long});
}

TEST(Lines, ThatNeverEndAreToldOfOnceAsSoonAsIsCertain) {
    LineBuffer buffer(10);
    buffer.add("0123456789\r");
    EXPECT_FALSE(buffer.next());  // the end may follow
    buffer.add("x");
    const std::optional<Line> line = buffer.next();
    ASSERT_TRUE(line);
    EXPECT_TRUE(line->too_long);
    EXPECT_EQ(line->text, "");
    for (int i = 0; i < 1000; ++i) {
        buffer.add("more and more");
        EXPECT_FALSE(buffer.next());
    }
    buffer.add("\nnext\n");
    EXPECT_EQ(take_lines(buffer), Strings{"next"});
}

TEST(Lines, ThatNeverEndLeaveNothingAtTheEnd) {
    LineBuffer buffer(10);
    buffer.add("0123456789 and on");
    EXPECT_EQ(take_lines(buffer), Strings{too_long});
    buffer.add("and on");
    EXPECT_FALSE(buffer.next());
    EXPECT_FALSE(buffer.last());
    buffer.add("and on");
    EXPECT_FALSE(buffer.last());
}

TEST(Lines, ThatAreTooLongDoNotRunTogether) {
    EXPECT_EQ(lines_of("0123456789A\n0123456789B\nC\n0123456789D", 10), (Strings{too_long, too_long, "C", too_long}));
}

TEST(Lines, LastOneCountsWithoutItsEnd) {
    EXPECT_EQ(lines_of("a\nb"), (Strings{"a", "b"}));
    EXPECT_EQ(lines_of("a\n"), Strings{"a"});
    EXPECT_EQ(lines_of(""), Strings{});
    EXPECT_EQ(lines_of("\n"), Strings{""});
}

// The same said simply, for a stream that is all there.
Strings split(std::string_view stream, std::size_t limit) {
    Strings lines;
    while (!stream.empty()) {
        std::string line(stream.substr(0, stream.find('\n')));
        stream.remove_prefix(std::min(line.size() + 1, stream.size()));
        if (line.ends_with('\r')) line.pop_back();
        lines.push_back(line.size() > limit ? too_long : line);
    }
    return lines;
}

TEST(Lines, AreTheSameHoweverTheStreamIsCut) {
    std::mt19937 random(3);  // NOLINT(bugprone-random-generator-seed): so that a failure comes again
    for (int round = 0; round < 20000; ++round) {
        const std::size_t limit = 5 + random() % 10;
        std::string stream;
        for (auto left = random() % 120; left > 0; --left) stream += "abcdefgh\r\r\n\n"[random() % 12];
        const auto cut = [&] { return 1 + random() % (1 + random() % 40); };
        ASSERT_EQ(lines_of(stream, cut, limit), split(stream, limit)) << testing::PrintToString(stream) << limit;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// 5. Words

TEST(Words, TrimTakesTheSpacesAround) {
    EXPECT_EQ(trim(" \t a  b \r"), "a  b");
    EXPECT_EQ(trim("a"), "a");
    EXPECT_EQ(trim(""), "");
    EXPECT_EQ(trim(" \t "), "");
}

TEST(Words, AreTakenOneByOne) {
    std::string_view text = "/msg bob  two spaces";
    EXPECT_EQ(take_word(text), "/msg");
    EXPECT_EQ(take_word(text), "bob");
    EXPECT_EQ(text, " two spaces");
    EXPECT_EQ(take_word(text), "");
    text = "one";
    EXPECT_EQ(take_word(text), "one");
    EXPECT_EQ(text, "");
    EXPECT_EQ(take_word(text), "");
    text = "one ";
    EXPECT_EQ(take_word(text), "one");
    EXPECT_EQ(text, "");
}

TEST(Words, AreCounted) {
    EXPECT_EQ(count_words(""), 0);
    EXPECT_EQ(count_words("   "), 0);
    EXPECT_EQ(count_words("one"), 1);
    EXPECT_EQ(count_words("  one   two "), 2);
    EXPECT_EQ(count_words("one two three"), 3);
}

TEST(Numbers, AreWholeAndInRange) {
    EXPECT_EQ(parse_number("0", 0, 65535), 0);
    EXPECT_EQ(parse_number("65535", 0, 65535), 65535);
    EXPECT_EQ(parse_number("007", 0, 65535), 7);
    EXPECT_EQ(parse_number("-5", -10, 10), -5);
    for (const char* text : {"", " 1", "1 ", "+1", "1x", "x", "0x10", "1.5", "65536", "-1", "99999999999999999999"}) {
        EXPECT_EQ(parse_number(text, 0, 65535), std::nullopt) << text;
    }
}

TEST(Names, AreMadeOfAsciiLettersAndDigitsInAnyLocale) {
    for (int i = 0; i < 256; ++i) {
        const char c = static_cast<char>(i);
        EXPECT_EQ(is_digit(c), "0123456789"s.find(c) != std::string::npos) << i;
        EXPECT_EQ(is_letter(c), "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"s.find(c) != std::string::npos)
            << i;
        EXPECT_EQ(valid_name("a"s + c + "c"), is_letter(c) || is_digit(c)) << i;
        EXPECT_EQ(valid_name(c + "bc"s), is_letter(c)) << i;
    }
}

TEST(Names, HaveThreeToTwelveCharacters) {
    for (const char* name : {"bob", "Bob", "BOB", "b2b", "abcdefghijkl", "admin"})
        EXPECT_TRUE(valid_name(name)) << name;
    for (const char* name : {"", "a", "ab", "abcdefghijklm", "1bob", "bo b", "bob ", " bob", "böb", "bob\n", "a-b"}) {
        EXPECT_FALSE(valid_name(name)) << name;
    }
}

TEST(Names, AreComparedWithoutCase) {
    EXPECT_EQ(fold("AbZz09"), "abzz09");
    EXPECT_EQ(fold("[\\]^_`@{ÀÉ"), "[\\]^_`@{ÀÉ");  // the neighbours of the letters stay
    EXPECT_TRUE(same_name("Alice", "aLICE"));
    EXPECT_FALSE(same_name("alice", "alicia"));
    EXPECT_FALSE(same_name("alice", "alic"));
    EXPECT_FALSE(same_name("bob@", "bob`"));
}

TEST(Times, AreUtcOnTheWire) {
    EXPECT_EQ(utc_time(0), "1970-01-01T00:00:00Z");
    EXPECT_EQ(utc_time(951782400), "2000-02-29T00:00:00Z");
    EXPECT_EQ(utc_time(4102444799), "2099-12-31T23:59:59Z");
}

TEST(Times, AreLocalForPeople) {
    setenv("TZ", "XYZ-2", 1);  // two hours east
    tzset();
    EXPECT_EQ(local_time(0, "%Y-%m-%d %H:%M:%S %Z"), "1970-01-01 02:00:00 XYZ");
    EXPECT_EQ(utc_time(0), "1970-01-01T00:00:00Z");
    EXPECT_EQ(local_time(0, ""), "");
    unsetenv("TZ");
    tzset();
}

// ---------------------------------------------------------------------------------------------------------------------
// 6. Addresses

TEST(Addresses, HaveOneForm) {
    EXPECT_EQ(normal_address("127.0.0.1"), "127.0.0.1");
    EXPECT_EQ(normal_address("2001:0DB8:0:0::0001"), "2001:db8::1");
    EXPECT_EQ(normal_address("0:0:0:0:0:0:0:1"), "::1");
    EXPECT_EQ(normal_address("::"), "::");
    EXPECT_EQ(normal_address("::FFFF:10.0.0.1"), "10.0.0.1");  // as a server would have it that took IPv4 as IPv6
    EXPECT_EQ(normal_address("0::ffff:a00:1/112"), "10.0.0.0/16");
    EXPECT_EQ(normal_address("::ffff:10.0.0.1/95"), "::fffe:0:0/95");
}

TEST(Addresses, OfANetworkHaveOneFormToo) {
    EXPECT_EQ(normal_address("10.1.2.3/16"), "10.1.0.0/16");
    EXPECT_EQ(normal_address("10.255.255.255/9"), "10.128.0.0/9");
    EXPECT_EQ(normal_address("10.1.2.3/32"), "10.1.2.3");
    EXPECT_EQ(normal_address("10.1.2.3/0"), "0.0.0.0/0");
    EXPECT_EQ(normal_address("2001:DB8:FFFF::1/33"), "2001:db8:8000::/33");
    EXPECT_EQ(network_of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
    EXPECT_EQ(network_of("10.1.2.3"), "10.1.2.3");
}

TEST(Addresses, AreNothingElse) {
    for (const char* text :
         {"",         "bob",        "1",          "1.2.3",     "1.2.3.4.5", "256.1.1.1",    "1.2.3.4 ",
          " 1.2.3.4", "1.2.3.4/",   "1.2.3.4/33", "1.2.3.4/x", "1.2.3/8",   "::/129",       "::/-1",
          "::/8/8",   "1.2.3.4:80", ":::",        "::g",       "[::1]",     "fe80::1%eth0", "1:2:3:4:5:6:7:8:9"}) {
        EXPECT_EQ(normal_address(text), "") << text;
    }
}

TEST(Addresses, AreToldWithoutPortOrZone) {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(80);
    v4.sin_addr.s_addr = htonl(0xC0A80107);
    EXPECT_EQ(address_text(reinterpret_cast<sockaddr*>(&v4), sizeof v4), "192.168.1.7");
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_scope_id = 1;
    inet_pton(AF_INET6, "fe80::1", &v6.sin6_addr);
    EXPECT_EQ(address_text(reinterpret_cast<sockaddr*>(&v6), sizeof v6), "fe80::1");
    sockaddr unknown{};
    unknown.sa_family = AF_UNIX;
    EXPECT_EQ(address_text(&unknown, 0), "?");
}

std::string first_of(const AddressList& found) { return address_text(found->ai_addr, found->ai_addrlen); }

TEST(Addresses, AreResolvedForTcp) {
    const AddressList found = resolve("127.0.0.1", "12345");
    EXPECT_EQ(first_of(found), "127.0.0.1");
    EXPECT_EQ(found->ai_socktype, SOCK_STREAM);
    EXPECT_EQ(reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_port, htons(12345));
    EXPECT_EQ(found->ai_next, nullptr);
    EXPECT_EQ(first_of(resolve("::1", "1")), "::1");
}

TEST(Addresses, OfEveryInterfaceAreToListenOn) {
    std::set<std::string> all;
    const AddressList found = resolve("", "0");
    for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
        all.insert(address_text(at->ai_addr, at->ai_addrlen));
    }
    EXPECT_TRUE(all.contains("0.0.0.0") || all.contains("::")) << testing::PrintToString(all);
    EXPECT_FALSE(all.contains("127.0.0.1"));
}

TEST(Addresses, ThatCannotBeFoundAreToldOf) {
    const std::string error = what_throws([] { resolve("127.0.0.1", "no-such-service"); });
    EXPECT_TRUE(error.starts_with("getaddrinfo 127.0.0.1: ")) << error;
    EXPECT_GT(error.size(), "getaddrinfo 127.0.0.1: "s.size());
}

}  // namespace
