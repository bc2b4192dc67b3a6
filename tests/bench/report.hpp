// What the benchmark tells: tables in Markdown, a line of JSON for each row, and a picture.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "load.hpp"

namespace bench {

enum class Kind { talk, steady, deaf, storm };  // which of its figures are of interest, and so in its table

struct Row {
    std::string server;
    Outcome outcome;      // medians of the rounds
    std::string failure;  // if it could not be measured: why
};

struct Section {
    std::string key;    // "talk-100-10-1"
    std::string title;  // for the reader
    Kind kind = Kind::talk;
    std::vector<Row> rows;

    [[nodiscard]] const Row* row(const std::string& server) const;
    // Returns a figure of one server divided by that of another; 0 if there is none.
    [[nodiscard]] double ratio(const std::string& figure, const std::string& of, const std::string& to) const;
};

// Returns the median of each figure over the rounds, but the sum of what must not be: lost, doubled, disordered.
Outcome medians(const std::vector<Outcome>& rounds);

void write_table(std::ostream& out, const Section& section);
void write_json(std::ostream& out, const Section& section);
void write_goals(std::ostream& out, const std::vector<Section>& sections);
void write_picture(std::ostream& out, const std::vector<Section>& sections);

}  // namespace bench
