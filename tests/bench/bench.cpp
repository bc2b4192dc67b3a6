// `make bench`: runs every server through every workload, in turn and several times, and tells the medians.
//
//   bench SERVER LIMITS FOLDER [quick | WORKLOAD...]         as in make bench ONLY='Chatroom, InspIRCd' WORKLOAD=steady
//
// SERVER and LIMITS are the programs of our own to start. Tables go to standard output, progress to standard error, and
// performance.svg and results.jsonl into FOLDER. Read on in load.hpp (the clients), servers.cpp (what is compared),
// limits.cpp (what cannot be beaten), and report.cpp.

#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <set>
#include <stdexcept>

#include "load.hpp"
#include "report.hpp"
#include "servers.hpp"

namespace {

using namespace bench;

struct Workload {
    std::string key;
    std::string title;
    Kind kind;
    Plan plan;
    double seconds = 1.5;                     // to talk
    std::vector<std::string> arguments = {};  // for our server; none of the others is tried then
    std::set<std::string> without = {};       // who is left out, since it would take too long
    int rounds = 3;
};

std::vector<Workload> all_workloads() {
    const auto talk = [](int clients, int talkers, int in_flight, bool quick = true) {
        const std::string key = "talk-" + std::to_string(clients) + "-" + std::to_string(talkers) + "-" +
                                std::to_string(in_flight) + (quick ? "" : "-ordinary");
        const std::string title = std::to_string(clients) + " clients, " + std::to_string(talkers) + " talk, " +
                                  std::to_string(in_flight) + " in flight" + (quick ? "" : ", ordinary sockets");
        return Workload{key, title, Kind::talk, {clients, talkers, in_flight, 0, 0, false, quick}};
    };
    const auto storm = [](int clients, int rounds, const std::set<std::string>& without) {
        const std::string number = std::to_string(clients);
        return Workload{"storm-" + number, number + " log in", Kind::storm, {clients, 1, 1}, 2, {}, without, rounds};
    };
    const std::vector<std::string> rated = {"--rate", "10"};
    return {talk(100, 10, 1),
            talk(100, 10, 16),
            talk(500, 10, 1),
            talk(900, 10, 1),
            talk(100, 10, 1, false),
            talk(100, 10, 16, false),
            talk(10, 10, 1),
            talk(100, 1, 1),
            talk(100, 100, 1),
            {"steady", "200 lines/s to 100 listeners", Kind::steady, {100, 40, 0, 200}},
            {"flood-none", "the same with --rate 10", Kind::steady, {101, 40, 0, 200}, 2, rated},
            {"flood", "the same while one floods", Kind::steady, {101, 40, 0, 200, 0, true}, 2, rated},
            {"deaf", "100 clients, 10 talk, 10 never read", Kind::deaf, {100, 10, 1, 0, 10}, 5, {}, {}, 2},
            storm(1000, 3, {}),
            storm(10000, 1, {"send under a lock", "ngIRCd"})};
}

// What a quick run has instead.
std::vector<Workload> shortened(std::vector<Workload> workloads) {
    std::erase_if(workloads, [](const Workload& workload) { return workload.key == "storm-10000"; });
    for (Workload& workload : workloads) {
        workload.seconds = workload.kind == Kind::deaf ? 2 : 0.4;
        workload.rounds = 1;
    }
    return workloads;
}

// Leaves those that the environment's ONLY names, if it is set.
std::vector<Contender> choose(std::vector<Contender> contenders) {
    const char* only = std::getenv("ONLY");
    if (only == nullptr) return contenders;
    std::erase_if(contenders, [&](const Contender& contender) {
        return std::string_view(only).find(contender.name) == std::string_view::npos;
    });
    return contenders;
}

bool takes_part(const Contender& contender, const Workload& workload) {
    return workload.plan.clients <= contender.max_clients && !workload.without.contains(contender.name) &&
           (workload.arguments.empty() || contender.ours);
}

// Returns the seconds until the server has ended, while all its clients are there and read.
double shut_down(Server& server, Crowd& crowd) {
    const auto start = Clock::now();
    server.ask_to_end();
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    while (!server.has_ended() && seconds() < 10) crowd.pass(2);
    return seconds();
}

// Lets a server tidy up for three seconds in which nobody says anything.
void rest(Crowd& crowd) {
    const auto start = Clock::now();
    while (Clock::now() - start < std::chrono::seconds(3)) crowd.pass(100);
}

// Runs one server through one workload.
Outcome measure(const Contender& contender, const Workload& workload) {
    Server server(contender, workload.arguments);
    const double memory = server.resident_kib(false);
    Crowd crowd(contender.protocol, server.port(), workload.plan);
    const double login = crowd.log_in();
    crowd.flood(workload.plan.flood);
    Outcome outcome = crowd.talk(workload.seconds, [&] { return server.cpu_seconds(); });
    if (workload.kind == Kind::storm) rest(crowd);
    outcome["login_s"] = login;
    outcome["kib_per_client"] = (server.resident_kib(false) - memory) / workload.plan.clients;
    outcome["peak_mib"] = (server.resident_kib(true) - memory) / 1024;
    if (workload.plan.deaf > 0) outcome.merge(crowd.read_out());
    if (workload.kind == Kind::storm) outcome["shutdown_s"] = shut_down(server, crowd);
    return outcome;
}

class Progress {
   public:
    explicit Progress(int steps) : steps_(steps) {}
    void step(const Workload& workload, int round, const std::string& server) {
        const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - start_).count();
        std::cerr << "\r\033[K[" << ++step_ << '/' << steps_ << ", " << seconds << " s] " << workload.title
                  << ", round " << round + 1 << ": " << server << std::flush;
    }

   private:
    int steps_, step_ = 0;
    Clock::time_point start_ = Clock::now();
};

// Runs all servers through one workload, in turn, so that whatever else the machine does concerns each of them.
Section run(const Workload& workload, const std::vector<Contender>& contenders, Progress& progress) {
    Section section{workload.key, workload.title, workload.kind, {}};
    std::vector<std::vector<Outcome>> outcomes(contenders.size());
    std::vector<std::string> failures(contenders.size());
    for (int round = 0; round < workload.rounds; ++round) {
        for (std::size_t i = 0; i < contenders.size(); ++i) {
            if (!takes_part(contenders[i], workload) || !failures[i].empty()) continue;
            progress.step(workload, round, contenders[i].name);
            try {
                outcomes[i].push_back(measure(contenders[i], workload));
            } catch (const std::exception& error) {
                failures[i] = error.what();
            }
        }
    }
    for (std::size_t i = 0; i < contenders.size(); ++i) {
        if (takes_part(contenders[i], workload)) {
            section.rows.push_back({contenders[i].name, medians(outcomes[i]), failures[i]});
        }
    }
    return section;
}

void run_all(const std::vector<Workload>& workloads, const std::vector<Contender>& contenders,
             const std::string& folder) {
    int steps = 0;
    for (const Workload& workload : workloads) {
        for (const Contender& contender : contenders) steps += takes_part(contender, workload) ? workload.rounds : 0;
    }
    Progress progress(steps);
    std::ofstream results(folder + "/results.jsonl"), picture(folder + "/performance.svg");
    if (!results || !picture) throw std::runtime_error("cannot write into " + folder);
    std::vector<Section> sections;
    for (const Workload& workload : workloads) {
        sections.push_back(run(workload, contenders, progress));
        std::cerr << "\r\033[K" << std::flush;
        write_table(std::cout, sections.back());
        write_json(results, sections.back());
    }
    write_goals(std::cout, sections);
    write_picture(picture, sections);
    if (!results.flush() || !picture.flush()) throw std::runtime_error("cannot write into " + folder);
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() < 3) {
        std::cerr << "usage: bench SERVER LIMITS FOLDER [quick | WORKLOAD...]\n";
        return 2;
    }
    try {
        std::signal(SIGPIPE, SIG_IGN);
        rlimit files{};
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;  // inherited by the servers
        setrlimit(RLIMIT_NOFILE, &files);
        std::vector<Workload> workloads = all_workloads();
        const std::set<std::string> wanted(arguments.begin() + 3, arguments.end());
        if (wanted.contains("quick")) {
            workloads = shortened(workloads);
        } else if (!wanted.empty()) {
            std::erase_if(workloads, [&](const Workload& workload) { return !wanted.contains(workload.key); });
        }
        run_all(workloads, choose(find_contenders(arguments[0], arguments[1])), arguments[2]);
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "bench: " << error.what() << '\n';
        return 1;
    }
}
