// Draws the pictures in docs/images: what the real client shows on a terminal of 80 columns, as SVG text.
//
//   picture DIRECTORY        `make picture` calls it so
#include <clocale>
#include <fstream>
#include <iostream>
#include <map>
#include <regex>
#include <sstream>

#include "harness.hpp"
#include "terminal.hpp"

using namespace harness;

namespace {

constexpr double cell_width = 8.4, cell_height = 18, margin = 12;  // pixels

struct Colors {
    std::string ink = "#d0d0d0", paper = {};
    bool bold = false;
};

// Returns the colours for the codes of ESC [ m.
Colors colors_of(const std::string& style) {
    static const std::map<int, std::string> inks = {{30, "#101418"}, {31, "#ff6b68"}, {32, "#7ec77e"}, {33, "#d9b36c"},
                                                    {35, "#c792ea"}, {36, "#5fc9c9"}, {90, "#8b949e"}, {92, "#a5e075"},
                                                    {94, "#82aaff"}, {95, "#ff9cce"}, {96, "#89ddff"}, {97, "#ffffff"}};
    static const std::map<int, std::string> papers = {{44, "#2b4f81"}, {47, "#c5cdd5"}};
    Colors colors;
    std::istringstream codes(style);
    for (std::string code; std::getline(codes, code, ';');) {
        const int number = std::stoi(code);
        if (number == 1) colors.bold = true;
        if (number == 7) colors.ink = "#101418", colors.paper = "#d0d0d0";
        if (inks.contains(number)) colors.ink = inks.at(number);
        if (papers.contains(number)) colors.paper = papers.at(number);
    }
    return colors;
}

// Returns the text with the same port and time in every run, so that the pictures change only when the client does.
std::string settled(std::string text) {
    static const std::pair<std::regex, const char*> always[] = {
        {std::regex("port [0-9]{5}"), "port 12345"},
        {std::regex("[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2})"), "2026-09-01$1"},
        {std::regex("\\b[0-9]{2}:[0-9]{2}\\b"), "09:30"}};
    for (const auto& [changing, fixed] : always) text = std::regex_replace(text, changing, fixed);
    return text;
}

std::string escaped(const std::string& text) {
    std::string result;
    for (char c : text) result += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
    return result;
}

// Draws cells of one style that stand side by side. Their place and width do not depend on the viewer's font.
void draw_run(std::ostream& out, int row, int column, int columns, const std::string& text, const std::string& style) {
    const Colors colors = colors_of(style);
    const double x = margin + column * cell_width, y = margin + row * cell_height, width = columns * cell_width;
    if (!colors.paper.empty()) {
        out << "<rect x='" << x << "' y='" << y << "' width='" << width << "' height='" << cell_height << "' fill='"
            << colors.paper << "'/>\n";
    }
    if (text.find_first_not_of(' ') == std::string::npos) return;
    out << "<text x='" << x << "' y='" << y + 13.5 << "' textLength='" << width << "' fill='" << colors.ink << "'"
        << (colors.bold ? " font-weight='bold'" : "") << ">" << escaped(text) << "</text>\n";
}

void draw_row(std::ostream& out, const Terminal& terminal, int row, int columns) {
    for (int from = 0, to = 0; from < columns; from = to) {
        std::string text;
        const std::string style = terminal.at(row, from).style;
        for (to = from; to < columns && terminal.at(row, to).style == style; ++to) text += terminal.at(row, to).text;
        draw_run(out, row, from, to - from, settled(text), style);
    }
}

void draw(const std::string& file, const Terminal& terminal, Window size) {
    std::ofstream out(file);
    const double width = 2 * margin + size.columns * cell_width, height = 2 * margin + size.rows * cell_height;
    out << "<svg xmlns='http://www.w3.org/2000/svg' width='" << width << "' height='" << height << "' viewBox='0 0 "
        << width << ' ' << height << "' font-family='DejaVu Sans Mono,Menlo,Consolas,monospace' font-size='14' "
        << "xml:space='preserve'>\n<rect width='100%' height='100%' rx='8' fill='#101418'/>\n";
    for (int row = 0; row < size.rows; ++row) draw_row(out, terminal, row, size.columns);
    out << "<rect x='" << margin + terminal.column * cell_width << "' y='" << margin + terminal.row * cell_height
        << "' width='" << cell_width << "' height='" << cell_height << "' fill='#d0d0d0' opacity='0.6'/>\n</svg>\n";
    if (!out.flush()) throw Failure("cannot write " + file);
    std::cout << "  " << file << '\n';
}

void draw_all(const std::string& directory) {
    const Window size{20, 80};
    Server server({.args = {"--rooms", "homework,music"}});
    OnScreen alice(client_path(),
                   {.args = {"localhost", std::to_string(server.port()), "--name", "alice", "--color", "always"},
                    .terminal = size});
    alice.wait("Welcome, alice");
    Peer bob(server.port(), "bob"), carol(server.port(), "carol"), admin(server.port());
    admin.login("admin", server.password());
    const std::vector<std::pair<Peer*, std::string>> said = {
        {&admin, "Good morning! Today we write a server that nobody can hold up."},
        {&bob, "Morning! Does every client get a thread of its own?"},
        {&carol, "I read that a thread costs memory, so wouldn't ten thousand of them be too many? 🤔"},
        {&admin, "That is what we are going to measure. Alice, would you take notes?"},
        {&bob, "/msg alice can I copy them later?"},
        {&carol, "/me opens docs/design.md"},
        {&bob, "你好 from the last row 👋"}};
    for (const auto& [who, text] : said) {
        who->send_line(text);
        alice.wait(text.substr(text.starts_with("/me") ? 4 : text.starts_with("/msg") ? 11 : 0, 25));
    }
    alice.type("Sure, I'll put them in /rooms: homework");
    alice.wait("homework");
    draw(directory + "/chat.svg", alice.terminal, size);

    bob.send_line("/create den 12345");
    bob.expect("ROOM den");
    carol.send_line("/join music");
    carol.expect("ROOM music");
    alice.type("\33OQ");
    alice.wait("den ");
    alice.type("\33[B");
    alice.type("\33[B");
    alice.wait("the third room chosen", [](const Terminal& t) { return t.at(5, 1).style == "7"; });
    draw(directory + "/rooms.svg", alice.terminal, size);
}

}  // namespace

int main(int argc, char** argv) {
    std::setlocale(LC_CTYPE, "C.UTF-8");
    try {
        draw_all(argc > 1 ? argv[1] : ".");
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
