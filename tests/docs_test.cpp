// README.md and docs/, held against the programs: what is quoted stands in the file that it is said to come from, what
// is shown of a terminal was printed by a run, links lead somewhere, and options, commands, words of the wire and
// limits are those of the sources. docs/testing.md says how a fence names what it is held against.
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <set>

#include "harness.hpp"
#include "network.hpp"

using namespace harness;
namespace fs = std::filesystem;

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// The documents, taken apart

struct Fence {
    fs::path file;
    std::size_t line = 0;  // of its first line
    Lines info;            // the words behind the backticks
    Lines lines;

    std::string kind() const { return info.empty() ? "" : info[0]; }
    std::string place() const { return file.string() + ':' + std::to_string(line); }
};

struct Document {
    fs::path file;
    Lines prose;  // all lines; those of fences are empty
    std::vector<Fence> fences;
};

Lines words_of(const std::string& text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}

std::size_t indentation(const std::string& line) { return std::min(line.find_first_not_of(' '), line.size()); }

Document read_document(const fs::path& file) {
    Document document{file, {}, {}};
    std::size_t number = 0, indent = 0;
    bool inside = false;
    for (const std::string& line : lines_of(read_file(file))) {
        ++number;
        const std::size_t here = indentation(line);
        const bool mark = line.compare(here, 3, "```") == 0;
        if (mark && !inside) {
            document.fences.push_back({file, number + 1, words_of(line.substr(here + 3)), {}});
            indent = here;
        } else if (!mark && inside) {
            document.fences.back().lines.push_back(line.substr(std::min(indent, here)));
        }
        document.prose.push_back(mark || inside ? "" : line);
        if (mark) inside = !inside;
    }
    EXPECT_FALSE(inside) << file << " ends within a fence";
    return document;
}

const std::vector<Document>& documents() {
    static const std::vector<Document> all = [] {
        std::vector<Document> found{read_document("README.md")};
        for (const auto& entry : fs::recursive_directory_iterator("docs")) {
            if (entry.path().extension() == ".md") found.push_back(read_document(entry.path()));
        }
        return found;
    }();
    return all;
}

// Calls see(place, text) for each `code span`.
template <typename See>
void for_each_span(const Document& document, See see) {
    static const std::regex span("``(.+?)``|`([^`]+)`");
    for (std::size_t i = 0; i < document.prose.size(); ++i) {
        const std::string& line = document.prose[i];
        for (std::sregex_iterator it(line.begin(), line.end(), span), end; it != end; ++it) {
            const std::string text = (*it)[2].matched ? (*it)[2] : (*it)[1];
            see(document.file.string() + ':' + std::to_string(i + 1), text);
        }
    }
}

// Returns what a pattern's first group finds in a text, once each.
std::set<std::string> found_in(const std::string& text, const std::string& pattern) {
    const std::regex expression(pattern);
    std::set<std::string> found;
    for (std::sregex_iterator it(text.begin(), text.end(), expression), end; it != end; ++it) found.insert((*it)[1]);
    return found;
}

std::string between(const std::string& text, const std::string& from, const std::string& to) {
    const std::size_t start = text.find(from);
    if (start == std::string::npos) throw Failure("there is no '" + from + "'");
    return text.substr(start, text.find(to, start + from.size()) - start);
}

// ---------------------------------------------------------------------------------------------------------------------
// Quotes

// Pieces of a quote, between lines that stand for lines left out.
std::vector<Lines> pieces_of(const Lines& lines) {
    static const std::regex left_out(" *(//|#)? *\\.\\.\\. *");
    std::vector<Lines> pieces(1);
    for (const std::string& line : lines) {
        if (std::regex_match(line, left_out)) {
            pieces.emplace_back();
        } else {
            pieces.back().push_back(line);
        }
    }
    std::erase_if(pieces, [](const Lines& piece) { return piece.empty(); });
    return pieces;
}

// Returns how many lines of a piece stand in a file from a line on, where the file's are indented by so much more.
std::size_t matching(const Lines& file, std::size_t at, const Lines& piece, std::size_t indent) {
    std::size_t count = 0;
    for (; count < piece.size() && at + count < file.size(); ++count) {
        const std::string wanted = piece[count].empty() ? "" : std::string(indent, ' ') + piece[count];
        if (file[at + count] != wanted) break;
    }
    return count;
}

// Returns what is wrong with a quote, if anything: its pieces have to stand in the file in this order.
std::string problem_of_quote(const Lines& quote, const std::string& path) {
    const Lines file = lines_of(read_file(path));
    std::string first_wrong;
    for (const std::size_t indent : {0U, 4U, 8U, 12U, 16U}) {
        std::size_t at = 0;
        std::string wrong;
        for (const Lines& piece : pieces_of(quote)) {
            std::size_t best = 0, found = file.size();
            for (std::size_t i = at; i < file.size() && found == file.size(); ++i) {
                const std::size_t count = matching(file, i, piece, indent);
                best = std::max(best, count);
                if (count == piece.size()) found = i;
            }
            if (found == file.size()) {
                wrong = piece[best];
                break;
            }
            at = found + piece.size();
        }
        if (wrong.empty()) return "";
        if (indent == 0) first_wrong = wrong;
    }
    return "this line does not stand in " + path + ", or not behind the one before it:\n" + first_wrong;
}

std::string problem_of_diff(const Fence& fence) {
    Lines before, after;
    for (const std::string& line : fence.lines) {
        const char mark = line.empty() ? ' ' : line[0];
        const bool left_out = line.find_first_not_of(" .") == std::string::npos && contains(line, "...");
        const std::string text = left_out ? "..." : line.empty() ? "" : line.substr(1);
        if (mark != '+') before.push_back(text);
        if (mark != '-') after.push_back(text);
    }
    const std::string problem = problem_of_quote(before, fence.info.at(1));
    return problem.empty() ? problem_of_quote(after, fence.info.at(2)) : problem;
}

TEST(Fences, SayWhatTheyAreHeldAgainst) {
    const std::map<std::string, std::size_t> files = {{"cpp", 1}, {"python", 1}, {"diff", 2}, {"console", 0},
                                                      {"sh", 0},  {"text", 0},   {"ini", 0}};
    for (const Document& document : documents()) {
        for (const Fence& fence : document.fences) {
            const auto kind = files.find(fence.kind());
            ASSERT_NE(kind, files.end()) << fence.place() << ": what is it? See docs/testing.md";
            const bool by_hand = fence.info == Lines{"console", "by", "hand"};
            EXPECT_EQ(by_hand ? 0 : fence.info.size() - 1, kind->second) << fence.place() << ": how many files?";
            if (by_hand) continue;
            for (std::size_t i = 1; i < fence.info.size(); ++i)
                EXPECT_TRUE(fs::exists(fence.info[i])) << fence.place() << ": there is no " << fence.info[i];
        }
    }
}

TEST(Fences, QuoteWhatStandsInTheFile) {
    for (const Document& document : documents()) {
        for (const Fence& fence : document.fences) {
            if (fence.kind() == "cpp" || fence.kind() == "python") {
                EXPECT_EQ(problem_of_quote(fence.lines, fence.info.at(1)), "") << fence.place();
            } else if (fence.kind() == "diff") {
                EXPECT_EQ(problem_of_diff(fence), "") << fence.place();
            }
        }
    }
}

TEST(Quotes, AreFoundWrong) {
    const TempDir place;
    const std::string file = place.path() / "file";
    write_file(file, "one\n    two\n\n    three\nfour\n");
    EXPECT_EQ(problem_of_quote({"one", "    two"}, file), "");
    EXPECT_EQ(problem_of_quote({"two", "", "three"}, file), "");
    EXPECT_EQ(problem_of_quote({"one", "    // ...", "four"}, file), "");
    EXPECT_NE(problem_of_quote({"one", "four"}, file), "");
    EXPECT_NE(problem_of_quote({"four", "...", "one"}, file), "");
    EXPECT_NE(problem_of_quote({"one", "  two"}, file), "");
    EXPECT_NE(problem_of_quote({"tw"}, file), "");
}

// ---------------------------------------------------------------------------------------------------------------------
// Terminals

// What a fence shows, as commands and as what they print.
struct Session {
    explicit Session(const Fence& fence) : place(fence.place()) {
        bool goes_on = false;
        for (const std::string& line : fence.lines) {
            const bool is_command = line.starts_with("$ ");
            if (is_command || goes_on) {
                commands += (is_command ? line.substr(2) : line) + '\n';
                goes_on = line.ends_with('\\');
            } else {
                output.push_back(line);
            }
        }
    }

    std::string shown() const {
        std::string all;
        for (const std::string& line : output) all += line + '\n';
        return all;
    }

    std::string place, commands;
    Lines output;
};

// Returns a line as a pattern: any number matches any, and so do spaces; "..." is anything.
std::regex pattern_of(const std::string& line) {
    static const std::regex special("[.*+?^${}()|\\[\\]\\\\/]"), dots("\\\\\\.\\\\\\.\\\\\\."), number("[0-9]+"),
        spaces(" +");
    std::string text = std::regex_replace(line, special, "\\$&");
    text = std::regex_replace(text, number, "[0-9]+");
    text = std::regex_replace(text, spaces, " +");
    text = std::regex_replace(text, dots, ".*");
    return std::regex(text + "\\s*");
}

bool matches(const Lines& shown, std::size_t i, const Lines& printed, std::size_t j) {
    if (i == shown.size()) return j == printed.size();
    if (shown[i] == "...") {
        for (std::size_t next = j; next <= printed.size(); ++next) {
            if (matches(shown, i + 1, printed, next)) return true;
        }
        return false;
    }
    return j < printed.size() && std::regex_match(printed[j], pattern_of(shown[i])) &&
           matches(shown, i + 1, printed, j + 1);
}

TEST(Sessions, AreComparedLineByLine) {
    EXPECT_TRUE(matches({"port 12345", "...", "end"}, 0, {"port 7", "a", "b", "end"}, 0));
    EXPECT_TRUE(matches({"a (b) ... c"}, 0, {"a  (b) x y c"}, 0));
    EXPECT_FALSE(matches({"port 12345"}, 0, {"port x"}, 0));
    EXPECT_FALSE(matches({"one"}, 0, {"one", "two"}, 0));
    EXPECT_FALSE(matches({"one", "two"}, 0, {"one"}, 0));
    EXPECT_FALSE(matches({"a.c"}, 0, {"abc"}, 0));
}

#ifdef __linux__
// A session that runs, in a network of its own, and in a directory that looks like the top of the project.
class SessionRun {
   public:
    explicit SessionRun(Session session) : session_(std::move(session)) {
        network_.raise_loopback();
        for (const auto& entry : fs::directory_iterator(".")) {
            const fs::path there = place_.path() / entry.path().filename();
            if (entry.path().filename() == "bans.txt") {
                fs::copy(entry.path(), there);
            } else {
                fs::create_symlink(fs::absolute(entry.path()), there);
            }
        }
        network_.inside([&] {
            shell_ = std::make_unique<Process>("/usr/bin/setsid",
                                               Launch{.args = {"/bin/sh", "-c", "exec 2>&1\n" + session_.commands},
                                                      .env = {"LC_ALL=C.UTF-8"},
                                                      .directory = place_.path().string(),
                                                      .stdin_null = true});
        });
    }

    SessionRun(const SessionRun&) = delete;
    SessionRun& operator=(const SessionRun&) = delete;

    // setsid(1) has made a process group of the shell and of all that it has started, which may still run.
    ~SessionRun() {
        if (shell_ != nullptr) ::kill(-shell_->pid(), SIGKILL);
    }

    // Waits for its end. Returns what is wrong with it, if anything.
    std::string problem() {
        shell_->wait_exit(Deadline(60));
        const Lines printed = lines_of(shell_->output());
        if (matches(session_.output, 0, printed, 0)) return "";
        return session_.place + ": this is what a run printed:\n" + shell_->output();
    }

   private:
    const Session session_;
    const TempDir place_;
    const Network network_;
    std::unique_ptr<Process> shell_;
};

// Returns which programs a session needs that are not on every system, and not on this one.
Lines missing_tools(const Session& session) {
    Lines missing;
    for (const std::string tool : {"nc", "ss", "strace", "python3", "script", "mosquitto_sub"}) {
        if (!std::regex_search(session.commands, std::regex("(^|[\\s|&(;])" + tool + " "))) continue;
        if (Process("/bin/sh", {.args = {"-c", "command -v " + tool}}).wait_exit() != 0) missing.push_back(tool);
    }
    return missing;
}

// Six at a time, since they wait more than they work. One that fails is run once more by itself: a "sleep 0.2" in it
// may have been too short for a busy machine.
TEST(Sessions, PrintWhatIsShown) {
    if (!Network::can_be_made()) GTEST_SKIP() << "no networks of our own: who is not root";
    std::vector<Session> sessions;
    std::set<std::string> missing;
    for (const Document& document : documents()) {
        for (const Fence& fence : document.fences) {
            if (fence.info != Lines{"console"}) continue;
            const Lines tools = missing_tools(Session(fence));
            missing.insert(tools.begin(), tools.end());
            if (tools.empty()) sessions.emplace_back(fence);
        }
    }
    constexpr std::size_t at_once = 6;
    for (std::size_t first = 0; first < sessions.size(); first += at_once) {
        std::vector<std::unique_ptr<SessionRun>> runs;
        const std::size_t end = std::min(first + at_once, sessions.size());
        for (std::size_t i = first; i < end; ++i) runs.push_back(std::make_unique<SessionRun>(sessions[i]));
        for (std::size_t i = first; i < end; ++i) {
            const std::string problem = runs[i - first]->problem();
            const std::string again = problem.empty() ? "" : SessionRun(sessions[i]).problem();
            EXPECT_TRUE(again.empty()) << again << "\nThis is what it shows:\n" << sessions[i].shown();
        }
    }
    if (missing.empty()) return;
    std::string names;
    for (const std::string& tool : missing) names += " " + tool;
    GTEST_SKIP() << "the sessions that need what is not here:" << names;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Links

// Returns the anchors of a document's headings, as GitHub makes them.
std::set<std::string> anchors_of(const fs::path& file) {
    std::set<std::string> anchors;
    std::map<std::string, int> seen;
    for (const std::string& line : read_document(file).prose) {
        const std::size_t level = line.find_first_not_of('#');
        if (level == 0 || level > 6 || level == std::string::npos || line[level] != ' ') continue;
        std::string anchor;
        for (const char c : line.substr(level + 1)) {
            const auto byte = static_cast<unsigned char>(c);
            if (c == ' ') anchor += '-';
            if (byte >= 0x80 || std::isalnum(byte) != 0 || c == '-' || c == '_')
                anchor += static_cast<char>(std::tolower(byte));
        }
        const int times = seen[anchor]++;
        anchors.insert(times == 0 ? anchor : anchor + '-' + std::to_string(times));
    }
    return anchors;
}

std::string problem_of_link(const Document& from, const std::string& link) {
    if (link.starts_with("http://") || link.starts_with("https://")) return "";
    const std::size_t hash = std::min(link.find('#'), link.size());
    const fs::path file = hash == 0 ? from.file : from.file.parent_path() / link.substr(0, hash);
    if (!fs::exists(file)) return "there is no such file";
    if (hash == link.size()) return "";
    return anchors_of(file).contains(link.substr(hash + 1)) ? "" : "there is no such heading";
}

TEST(Links, LeadSomewhere) {
    const std::regex pattern("\\]\\(([^)\\s]+)\\)");
    for (const Document& document : documents()) {
        std::string text;
        for (const std::string& line : document.prose) text += line + '\n';
        text = std::regex_replace(text, std::regex("`[^`\\n]*`"), "");
        for (const std::string& link : found_in(text, "\\]\\(\\s*([^)\\s]+)\\s*\\)"))
            EXPECT_EQ(problem_of_link(document, link), "") << document.file << " has a link to " << link;
    }
}

TEST(Links, AreFoundWrong) {
    const Document readme = read_document("README.md");
    EXPECT_EQ(problem_of_link(readme, "docs/design.md#threads"), "");
    EXPECT_NE(problem_of_link(readme, "docs/design.md#no-such-heading"), "");
    EXPECT_NE(problem_of_link(readme, "docs/no_such_file.md"), "");
}

// ---------------------------------------------------------------------------------------------------------------------
// Options

struct Program {
    std::string source, path, man_page;
    std::string calls;  // what a command line calls it, as a pattern

    std::set<std::string> options;  // by the table in its source, and the two that both have

    Program(const std::string& file, std::string program, std::string page, std::string names)
        : source(file),
          path(std::move(program)),
          man_page(std::move(page)),
          calls(std::move(names)),
          options(found_in(read_file(file) + read_file("common.hpp"), "\\{\"([a-z-]+)\", (?:required|no)_argument")) {}

    std::string usage() const {
        Process process(path, {.args = {"--help"}});
        process.wait_exit();
        return process.output();
    }
};

const std::vector<Program>& programs() {
    static const std::vector<Program> both = {
        {"server.cpp", server_path(), "docs/man/chatroom-server.1", "\\./server|chatroom-server"},
        {"client.cpp", client_path(), "docs/man/chatroom.1", "\\./client|chatroom"}};
    return both;
}

TEST(Options, AreTheSameInTableUsageAndManPage) {
    for (const Program& program : programs()) {
        EXPECT_GT(program.options.size(), 5U);
        EXPECT_EQ(program.options, found_in(program.usage(), "\\n  --([a-z-]+)"));
        EXPECT_EQ(program.options, found_in(read_file(program.man_page), "\\.It Fl -([a-z-]+)")) << program.man_page;
    }
}

// "--idle SECONDS ... (240)" in the usage: the man page says 240 too.
TEST(Options, HaveTheDefaultsThatTheManPageSays) {
    for (const Program& program : programs()) {
        const std::string usage = program.usage(), page = read_file(program.man_page);
        const std::regex line("\\n  --([a-z-]+)[^\\n]*\\(([0-9]+)");
        for (std::sregex_iterator it(usage.begin(), usage.end(), line), end; it != end; ++it) {
            const std::string part = between(page, ".It Fl -" + (*it)[1].str() + " ", ".It Fl");
            EXPECT_TRUE(contains(part, (*it)[2].str())) << program.man_page << ": --" << (*it)[1] << " is " << (*it)[2];
        }
    }
}

// Expects the options in calls of the programs to be theirs. What is quoted is --via's own command.
void check_calls(const std::string& place, const std::string& command) {
    if (!contains(command, "--")) return;
    for (const Program& program : programs()) {
        const std::regex call("(?:^|[\\s`(])(?:" + program.calls + ")((?: [^|&;>]*)?)");
        for (std::sregex_iterator it(command.begin(), command.end(), call), end; it != end; ++it) {
            const std::string rest = std::regex_replace((*it)[1].str(), std::regex("'[^']*'|\"[^\"]*\""), "");
            for (const std::string& option : found_in(rest, " --([a-z-]+)"))
                EXPECT_TRUE(program.options.contains(option)) << place << ": --" << option << " in " << command;
        }
    }
}

// Expects an option that stands by itself to be that of one of the programs.
void check_option(const std::string& place, const std::string& text) {
    std::smatch option;
    if (!text.starts_with("--") || !std::regex_match(text, option, std::regex("--([a-z-]+)( .*)?"))) return;
    const bool known = std::any_of(programs().begin(), programs().end(),
                                   [&](const Program& program) { return program.options.contains(option[1]); });
    EXPECT_TRUE(known) << place << ": " << text;
}

TEST(Options, ThatTheDocumentsNameExist) {
    for (const Document& document : documents()) {
        for_each_span(document, check_calls);
        for_each_span(document, check_option);
        for (const Fence& fence : document.fences) {
            if (fence.kind() != "sh" && fence.kind() != "console") continue;
            for (const std::string& line : fence.lines) check_calls(fence.place(), line);
        }
    }
}

TEST(Targets, ThatTheDocumentsNameExist) {
    const std::string makefile = read_file("Makefile");
    const std::set<std::string> targets = found_in(makefile, "\\n([a-z-]+):");
    const auto check = [&](const std::string& place, const std::string& text) {
        if (!contains(text, "make ")) return;
        for (const std::string& target : found_in(text, "(?:^|&& |\\$ )make (?:-j[0-9]* )?([a-z][a-z0-9-]*)(?![=\\w])"))
            EXPECT_TRUE(targets.contains(target) || target.starts_with("check-")) << place << ": make " << target;
    };
    for (const Document& document : documents()) {
        for_each_span(document, check);
        for (const Fence& fence : document.fences) {
            for (const std::string& line : fence.lines) check(fence.place(), line);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Commands and the wire

std::set<std::string> commands() {
    return found_in(between(read_file("server.cpp"), "constexpr Command commands[]", "\n};"), "\\n    \\{\"([a-z]+)\"");
}

// Besides paths, and commands that only exercises and steps have.
TEST(Commands, ThatTheDocumentsNameExist) {
    const std::set<std::string> known = commands(),
                                others = {"tmp", "proc", "dev", "etc", "nick", "roll", "topic", "usr"};
    EXPECT_GT(known.size(), 20U);
    for (const Document& document : documents()) {
        for_each_span(document, [&](const std::string& place, const std::string& text) {
            std::smatch command;
            if (!text.starts_with('/') || !std::regex_match(text, command, std::regex("/([a-z]+)([ /].*)?"))) return;
            EXPECT_TRUE(known.contains(command[1]) || others.contains(command[1])) << place << ": " << text;
        });
    }
}

TEST(Commands, AreNamedInTheDocuments) {
    std::string all = read_file("docs/man/chatroom-server.1") + read_file("docs/man/chatroom.1");
    for (const Document& document : documents()) all += read_file(document.file);
    const std::set<std::string> named = found_in(all, "/([a-z]+)");
    for (const std::string& command : commands()) EXPECT_TRUE(named.contains(command)) << '/' << command;
}

// By the table in docs/protocol.md: the words, with how many fields each has.
std::map<std::string, std::size_t> wire_words() {
    const std::string table = between(read_file("docs/protocol.md"), "| word | fields | text | when |", "\n\n");
    const std::regex row("\\n\\| `([A-Z]+)` \\| ([^|]*)\\|");
    std::map<std::string, std::size_t> words;
    for (std::sregex_iterator it(table.begin(), table.end(), row), end; it != end; ++it)
        words[(*it)[1]] = words_of((*it)[2]).size();
    return words;
}

TEST(Wire, HasTheWordsOfTheProtocol) {
    const std::string server = read_file("server.cpp");
    const auto words = wire_words();
    EXPECT_GT(words.size(), 15U);
    for (const auto& [word, fields] : words)
        EXPECT_TRUE(contains(server, '"' + word + ' ') || contains(server, '"' + word + '"')) << word;
    for (const std::string& word : found_in(server, "concat\\(\"([A-Z]{2,}) "))
        EXPECT_TRUE(words.contains(word)) << word << " is not in docs/protocol.md";
}

// PAST is in front of another word, and has no form of its own.
TEST(Wire, HasTheFieldsThatTheClientExpects) {
    const std::string forms = between(read_file("client.cpp"), "constexpr Form forms[]", "\n};");
    const std::regex form("\\{\"([A-Z]+)\", ([0-9])");
    std::map<std::string, std::size_t> known = {{"PAST", 1}};
    for (std::sregex_iterator it(forms.begin(), forms.end(), form), end; it != end; ++it)
        known[(*it)[1]] = static_cast<std::size_t>(std::stoi((*it)[2]));
    known.erase("HELPER");  // no server's, but what a command of --via says
    EXPECT_EQ(known, wire_words());
}

// ---------------------------------------------------------------------------------------------------------------------
// Limits and functions

// A number in a source, as in "max_stall = 10s", and where a document says it: "%" stands for "10 seconds".
struct Limit {
    std::string source, name, document, words;
};

const std::vector<Limit> limits = {
    {"common.hpp", "max_line", "docs/protocol.md", "at most % bytes"},
    {"common.hpp", "max_server_line", "docs/protocol.md", "at most % bytes"},
    {"common.hpp", "question_bytes", "docs/protocol.md", "% bytes"},
    {"server.cpp", "burst", "docs/man/chatroom-server.1", "after a burst of %"},
    {"server.cpp", "max_said", "docs/design.md", "% said in rooms"},
    {"server.cpp", "max_mail", "docs/design.md", "% of mail in all"},
    {"server.cpp", "pause_backlog", "docs/design.md", "% for one client"},
    {"server.cpp", "max_backlog", "docs/design.md", "more than % for one client"},
    {"server.cpp", "max_stall", "docs/design.md", "takes none of it for %"},
    {"server.cpp", "history_lines", "docs/protocol.md", "its last % lines"},
    {"server.cpp", "close_limit", "docs/design.md", "% for the last lines"},
    {"server.cpp", "shutdown_limit", "docs/design.md", "in % each"},
    {"server.cpp", "answer_limit", "docs/design.md", "| login | % for each answer"},
    {"server.cpp", "login_limit", "docs/design.md", "% for all of them"},
    {"server.cpp", "max_attempts", "docs/protocol.md", "after % wrong attempts"},
    {"common.hpp", "min_password", "docs/protocol.md", "at least % characters"},
    {"common.hpp", "max_password", "docs/protocol.md", "at most % bytes"},
    {"server.cpp", "max_wrong_passwords", "docs/design.md", "% passwords in a row"},
    {"client.cpp", "max_found", "docs/design.md", "at most % are kept"},
};

// Returns a definition's number as documents write it: "4,096", "64 KiB", "10 seconds", "0.4 seconds",
// "five minutes".
std::string number_in(const std::string& source, const std::string& name) {
    std::smatch found;
    const std::regex definition("\\b" + name + " = ([0-9]+)(?:UL)?((?: \\* 1024)*)(m?s)?;");
    const std::string text = read_file(source);
    if (!std::regex_search(text, found, definition)) return "no " + name + " in " + source;
    const long number = std::stol(found[1]), power = static_cast<long>(found[2].length()) / 7;
    if (found[3] == "ms") return "0." + std::to_string(number / 100) + " seconds";
    const std::vector<std::string> minutes = {"a minute", "two minutes", "three minutes", "four minutes",
                                              "five minutes"};
    if (found[3] == "s" && number % 60 == 0) return minutes.at(static_cast<std::size_t>(number / 60 - 1));
    if (found[3] == "s") return std::to_string(number) + " seconds";
    if (power > 0 && number == 1024) return "1 " + std::string(power == 2 ? "GiB" : "MiB");
    if (power > 0) return std::to_string(number) + (power == 2 ? " MiB" : " KiB");
    const std::string digits = std::to_string(number);
    return digits.size() < 4 ? digits : digits.substr(0, digits.size() - 3) + ',' + digits.substr(digits.size() - 3);
}

TEST(Limits, AreWhatTheDocumentsSay) {
    for (const Limit& limit : limits) {
        const std::string number = number_in(limit.source, limit.name);
        const std::string words = std::regex_replace(limit.words, std::regex("%"), number);
        const std::string document = std::regex_replace(read_file(limit.document), std::regex("\\s+"), " ");
        EXPECT_TRUE(contains(document, words)) << limit.document << ": " << words;
    }
}

TEST(Limits, AreAllInTheDocuments) {
    std::set<std::string> known;
    for (const Limit& limit : limits) known.insert(limit.name);
    const std::string section = between(read_file("server.cpp"), "1. Limits", "2. Clients and rooms");
    for (const std::string& name : found_in(section, "\nconstexpr (?:auto|int|std::size_t) (\\w+) = "))
        EXPECT_TRUE(known.contains(name)) << name << " is in no document; add it here when it is";
}

// Adds all names in a text. (A regular expression takes a minute for as much.)
void add_names(const std::string& text, std::set<std::string>& names) {
    const auto in_name = [](char c) { return c == '_' || std::isalnum(static_cast<unsigned char>(c)) != 0; };
    for (auto at = text.begin(); at != text.end();) {
        const auto start = std::find_if(at, text.end(), in_name);
        at = std::find_if_not(start, text.end(), in_name);
        names.emplace(start, at);
    }
}

// Returns the names in all that may define or call a function.
std::set<std::string> names_in_sources() {
    std::set<std::string> names;
    for (const char* folder : {".", "tests", "tests/bench", "tests/fuzz", "docs/tutorial/steps"}) {
        for (const auto& entry : fs::directory_iterator(folder)) {
            const std::string ending = entry.path().extension();
            if (ending == ".cpp" || ending == ".hpp" || ending == ".py") add_names(read_file(entry.path()), names);
        }
    }
    return names;
}

// Functions of the system that the documents explain, and the sources do not need.
const std::set<std::string> explained = {"select", "epoll_wait", "epoll_ctl", "epoll_create1",
                                         "kqueue", "fork",       "sendall"};

TEST(Functions, ThatTheDocumentsNameExist) {
    const std::set<std::string> known = names_in_sources();
    for (const Document& document : documents()) {
        for_each_span(document, [&](const std::string& place, const std::string& text) {
            if (!contains(text, "()")) return;
            for (const std::string& name : found_in(text, "\\b([a-z_][a-z_0-9]*)\\(\\)"))
                EXPECT_TRUE(known.contains(name) || explained.contains(name)) << place << ": no " << name << "()";
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Chapter 13, which leads through the real programs

std::string part_a(const std::string& file) {
    return between(read_file(file), "Part A: the chat", " Part B: what people rely on");
}

// Definitions of functions: a line that begins at the left, or within a class, with a type, a name and "(".
std::set<std::string> functions_in(const std::string& text) {
    const std::regex definition(
        "^(?:    )?(?:\\[\\[\\w+\\]\\] )?(?:static |virtual |explicit |constexpr |const )*[\\w:<>,*& ]*?[\\w>*&] "
        "[*&]?([a-z_]\\w*)\\((?:[^;]*|[^;{]*\\{.*)$");
    std::set<std::string> names;
    for (const std::string& line : lines_of(text)) {
        std::smatch found;
        const std::size_t indent = indentation(line);
        if (indent != 0 && indent != 4) continue;
        if (!std::regex_search(line, found, definition)) continue;
        if (indent == 4 && !contains(line, "{") && !line.ends_with(',')) continue;
        const std::set<std::string> no_names = {"if", "while", "for", "switch", "return", "catch"};
        const std::string first = line.substr(indent, line.find_first_of(" (", indent) - indent);
        if (!no_names.contains(found[1]) && !no_names.contains(first) && first != "//" && first != "else")
            names.insert(found[1]);
    }
    return names;
}

std::string chapter_13() {
    for (const Document& document : documents()) {
        if (document.file.filename().string().starts_with("13")) return read_file(document.file);
    }
    return "";
}

TEST(Chapter13, MentionsEverySection) {
    const std::string chapter = chapter_13();
    if (chapter.empty()) GTEST_SKIP() << "chapter 13 has not been written yet";
    for (const Program& program : programs()) {
        for (const std::string& section :
             found_in(read_file(program.source), "\\n// -[-\\n/ ]*[0-9]+\\. ([^\\n]+?)(?: -+)?\\n"))
            EXPECT_TRUE(contains(chapter, section)) << program.source << ", section '" << section << "'";
    }
}

TEST(Chapter13, MentionsEveryFunctionOfPartA) {
    const std::string chapter = chapter_13();
    if (chapter.empty()) GTEST_SKIP() << "chapter 13 has not been written yet";
    const std::set<std::string> mentioned = found_in(chapter, "\\b([a-z_]\\w*)\\(");
    for (const Program& program : programs()) {
        const std::set<std::string> functions = functions_in(part_a(program.source));
        EXPECT_GT(functions.size(), 40U);
        for (const std::string& name : functions)
            EXPECT_TRUE(mentioned.contains(name)) << program.source << ": " << name << "()";
    }
}

TEST(Chapter13, FindsFunctions) {
    EXPECT_EQ(
        functions_in("void quit(const Lock& lock) {\n    if (x) y();\n    return z(1);\n}\nint f(int,\n      int) {\n"
                     "void g();\nclass C {\n    static bool h() {\n    void i() const { j(); }\n    x_.k(1);\n"),
        (std::set<std::string>{"quit", "f", "h", "i"}));
}

}  // namespace
