#include "report.hpp"

#include <algorithm>
#include <iomanip>
#include <numeric>
#include <set>
#include <sstream>

namespace bench {

namespace {

constexpr const char* ours = "Chatroom";
constexpr const char* gather = "limit: gather";
constexpr const char* forward = "limit: forward";
constexpr const char* inspircd = "InspIRCd";

double value(const Outcome& outcome, const std::string& figure) {
    const auto found = outcome.find(figure);
    return found == outcome.end() ? 0 : found->second;
}

std::string number(double value, int digits) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(digits) << value;
    return text.str();
}

struct Column {
    const char* title;
    const char* figure;
    double unit;  // the figure is divided by it
    int digits;
};

const std::vector<Column>& columns_of(Kind kind) {
    static const std::vector<Column> talk = {{"deliveries/s (million)", "per_second", 1e6, 2},
                                             {"p50 ms", "p50_us", 1000, 2},
                                             {"p99 ms", "p99_us", 1000, 2},
                                             {"p99.9 ms", "p999_us", 1000, 2},
                                             {"CPU µs/delivery", "cpu_us", 1, 2},
                                             {"KiB/client", "kib_per_client", 1, 1}};
    static const std::vector<Column> steady = {{"p50 µs", "p50_us", 1, 0},
                                               {"p99 µs", "p99_us", 1, 0},
                                               {"p99.9 µs", "p999_us", 1, 0},
                                               {"CPU µs/delivery", "cpu_us", 1, 2}};
    static const std::vector<Column> deaf = {{"deliveries/s (million)", "per_second", 1e6, 2},
                                             {"p99 ms", "p99_us", 1000, 2},
                                             {"longest silence ms", "silence_ms", 1, 1},
                                             {"dropped", "dropped", 1, 0},
                                             {"peak MiB more", "peak_mib", 1, 1}};
    static const std::vector<Column> storm = {{"all in, all told, s", "login_s", 1, 2},
                                              {"a line to all, ms", "to_all_us", 1000, 1},
                                              {"KiB/client", "kib_per_client", 1, 1},
                                              {"shutdown s", "shutdown_s", 1, 2}};
    switch (kind) {
        case Kind::steady: return steady;
        case Kind::deaf: return deaf;
        case Kind::storm: return storm;
        default: return talk;
    }
}

const char* main_figure(Kind kind) {
    return kind == Kind::storm ? "login_s" : kind == Kind::steady ? "p99_us" : "per_second";
}

double errors(const Outcome& outcome) {
    return value(outcome, "lost") + value(outcome, "doubled") + value(outcome, "disordered");
}

}  // namespace

const Row* Section::row(const std::string& server) const {
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.server == server; });
    return found == rows.end() || !found->failure.empty() ? nullptr : &*found;
}

double Section::ratio(const std::string& figure, const std::string& of, const std::string& to) const {
    const Row* above = row(of);
    const Row* below = row(to);
    if (above == nullptr || below == nullptr || value(below->outcome, figure) == 0) return 0;
    return value(above->outcome, figure) / value(below->outcome, figure);
}

Outcome medians(const std::vector<Outcome>& rounds) {
    static const std::set<std::string> summed = {"lost", "doubled", "disordered"};
    Outcome result;
    if (rounds.empty()) return result;
    for (const auto& [figure, ignored] : rounds[0]) {
        std::vector<double> values(rounds.size());
        std::transform(rounds.begin(), rounds.end(), values.begin(),
                       [&, &name = figure](const Outcome& round) { return value(round, name); });
        std::sort(values.begin(), values.end());
        const std::size_t middle = values.size() / 2;
        result[figure] = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
        if (summed.contains(figure)) result[figure] = std::accumulate(values.begin(), values.end(), 0.0);
    }
    return result;
}

// ---------------------------------------------------------------------------------------------------------
// Tables and JSON

void write_table(std::ostream& out, const Section& section) {
    const std::string figure = main_figure(section.kind);
    const std::vector<Column>& columns = columns_of(section.kind);
    out << "\n**" << section.title << "**\n\n| server |";
    for (const Column& column : columns) out << ' ' << column.title << " |";
    out << " to gather | to InspIRCd | lost, doubled, disordered |\n|---|";
    for (std::size_t i = 0; i < columns.size() + 3; ++i) out << "---:|";
    out << '\n';
    for (const Row& row : section.rows) {
        out << "| " << row.server << " |";
        if (!row.failure.empty()) {
            out << ' ' << row.failure << " |\n";
            continue;
        }
        for (const Column& column : columns) {
            const bool known = row.outcome.contains(column.figure);
            out << ' ' << (known ? number(value(row.outcome, column.figure) / column.unit, column.digits) : "") << " |";
        }
        for (const char* other : {gather, inspircd}) {
            const double ratio = section.ratio(figure, row.server, other);
            out << ' ' << (ratio == 0 ? "" : number(ratio, 2)) << " |";
        }
        out << ' ' << number(errors(row.outcome), 0) << " |\n";
    }
    out << std::flush;
}

void write_json(std::ostream& out, const Section& section) {
    const std::string figure = main_figure(section.kind);
    for (const Row& row : section.rows) {
        out << R"({"workload": ")" << section.key << R"(", "server": ")" << row.server << '"';
        if (!row.failure.empty()) out << R"(, "failure": ")" << row.failure << '"';
        for (const auto& [name, measured] : row.outcome) out << ", \"" << name << "\": " << number(measured, 3);
        out << ", \"ratio_of\": \"" << figure << "\", \"ratio_to\": {";
        const char* comma = "";
        for (const Row& other : section.rows) {
            const double ratio = section.ratio(figure, row.server, other.server);
            if (ratio == 0) continue;
            out << comma << '"' << other.server << "\": " << number(ratio, 3);
            comma = ", ";
        }
        out << "}}" << std::endl;
    }
}

// ---------------------------------------------------------------------------------------------------------
// The goals

namespace {

// Writes the rows of the table, each of which holds a figure against what it is to be.
class Goals {
   public:
    Goals(std::ostream& out, const std::vector<Section>& sections) : out_(out), sections_(sections) {}

    // A figure of ours, divided by that of another if both were measured; or as it is.
    void ratio(const std::string& key, const std::string& figure, const char* other, double least, double most) {
        const Section* section = find(key);
        const double is = section == nullptr ? 0 : section->ratio(figure, ours, other);
        if (is > 0) tell(*section, figure + " to " + other, is, least, most);
    }
    void figure(const std::string& key, const std::string& figure, double least, double most) {
        const Section* section = find(key);
        if (section == nullptr || section->row(ours) == nullptr) return;
        tell(*section, figure, value(section->row(ours)->outcome, figure), least, most);
    }
    // The same of ours in two workloads.
    void change(const std::string& key, const std::string& before, const char* figure, double least, double most) {
        const Section* one = find(key);
        const Section* other = find(before);
        if (one == nullptr || other == nullptr || one->row(ours) == nullptr || other->row(ours) == nullptr) return;
        const double ratio = value(one->row(ours)->outcome, figure) / value(other->row(ours)->outcome, figure);
        tell(*one, std::string(figure) + " to " + before, ratio, least, most);
    }

   private:
    const Section* find(const std::string& key) const {
        const auto found =
            std::find_if(sections_.begin(), sections_.end(), [&](const auto& s) { return s.key == key; });
        return found == sections_.end() ? nullptr : &*found;
    }
    void tell(const Section& section, const std::string& what, double is, double least, double most) {
        out_ << "| " << section.title << " | " << what << " | ";
        out_ << (least > 0 ? "at least " + number(least, 2) : "at most " + number(most, 2)) << " | " << number(is, 2);
        out_ << " | " << (is >= least && is <= most ? "yes" : "**no**") << " |\n";
    }

    std::ostream& out_;
    const std::vector<Section>& sections_;
};

}  // namespace

void write_goals(std::ostream& out, const std::vector<Section>& sections) {
    constexpr double any = 1e9;
    out << "\n**The goals**\n\n| workload | figure | to be | is | met |\n|---|---|---|---:|---|\n";
    Goals goals(out, sections);
    for (const char* key : {"talk-100-10-1", "talk-500-10-1", "talk-900-10-1", "talk-100-10-1-ordinary"}) {
        goals.ratio(key, "per_second", inspircd, 1.5, any);
        goals.ratio(key, "cpu_us", gather, 0, 1);
    }
    for (const char* key : {"talk-100-10-16", "talk-100-10-16-ordinary"}) {
        goals.ratio(key, "per_second", inspircd, 1.7, any);
        goals.ratio(key, "per_second", gather, 0.85, any);
    }
    goals.ratio("steady", "p50_us", forward, 0, 1.1);
    goals.ratio("steady", "p99_us", forward, 0, 1.2);
    goals.change("deaf", "talk-100-10-1", "per_second", 0.95, any);
    goals.figure("deaf", "silence_ms", 0, 20);
    goals.figure("deaf", "dropped", 10, 10);
    goals.figure("deaf", "peak_mib", 0, 20);
    goals.ratio("storm-10000", "login_s", inspircd, 0, 0.5);
    goals.figure("storm-10000", "kib_per_client", 0, 16);
    goals.ratio("storm-10000", "to_all_us", gather, 0, 1.1);
    goals.figure("storm-10000", "shutdown_s", 0, 1);
    goals.change("flood", "flood-none", "p99_us", 0, 1.1);
    out << std::flush;
}

// ---------------------------------------------------------------------------------------------------------
// The picture: deliveries a second against the gathering limit, a group of bars for each workload.

namespace {

// Writes a title to the left of x. Its third part and what follows get a line of their own: so it fits in any font.
void write_label(std::ostream& out, int x, int y, const std::string& title) {
    const std::size_t comma = title.find(", ", title.find(", ") + 1);
    const std::size_t rest = comma == std::string::npos ? 0 : comma + 2;
    for (const std::string& line : {title.substr(0, rest), title.substr(rest)}) {
        if (line.empty()) continue;
        out << "<text x='" << x << "' y='" << y << "' text-anchor='end'>"
            << line.substr(0, line.find_last_not_of(' ') + 1) << "</text>\n";
        y += 15;
    }
}

}  // namespace

void write_picture(std::ostream& out, const std::vector<Section>& sections) {
    static constexpr std::pair<const char*, const char*> colours[] = {
        {ours, "#1b6ca8"},     {forward, "#9a9a9a"},  {"send under a lock", "#d08c2e"},
        {inspircd, "#7a4f9a"}, {"ngIRCd", "#3f8f5f"}, {"ncat --chat", "#b5484d"}};
    constexpr int left = 250, scale = 280, bar = 13, top = 64;
    std::ostringstream bars;
    int y = top;
    for (const Section& section : sections) {
        if (section.kind != Kind::talk && section.kind != Kind::deaf) continue;
        write_label(bars, left - 10, y + 12, section.title);
        for (const auto& [server, colour] : colours) {
            const double ratio = section.ratio("per_second", server, gather);
            if (ratio == 0) continue;
            const double width = std::min(ratio, 1.8) * scale;
            bars << "<rect x='" << left << "' y='" << y << "' width='" << number(width, 1) << "' height='" << bar - 2
                 << "' fill='" << colour << "'/><text class='s' x='" << number(left + width + 4, 1) << "' y='" << y + 9
                 << "'>" << number(ratio, 2) << "</text>\n";
            y += bar;
        }
        y += 12;
    }
    out << "<svg xmlns='http://www.w3.org/2000/svg' width='800' height='" << y + 10 << "' viewBox='0 0 800 " << y + 10
        << "'>\n<style>text{font:12px "
           "sans-serif;fill:#222}.s{font-size:10px}.t{font-size:15px;font-weight:bold}</style>\n"
        << "<rect width='100%' height='100%' fill='white'/>\n<text class='t' x='10' y='22'>Deliveries a second, "
        << "compared with a server that has no protocol and gathers (1.0)</text>\n";
    int x = 10;
    for (const auto& [server, colour] : colours) {
        out << "<rect x='" << x << "' y='36' width='11' height='11' fill='" << colour << "'/><text x='" << x + 16
            << "' y='46'>" << server << "</text>\n";
        x += 130;
    }
    out << "<line x1='" << left + scale << "' y1='" << top - 4 << "' x2='" << left + scale << "' y2='" << y
        << "' stroke='#222' stroke-dasharray='3 3'/>\n"
        << bars.str() << "</svg>\n";
}

}  // namespace bench
