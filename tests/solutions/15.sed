# --history FILE: what was said in public survives a restart.
/^    std::string exit_code; /a\
    std::string history;    // a file that keeps what was said in public while the server does not run; empty: none

/^\/\/ Runs the server until it is to stop\. Throws/i\
// Takes what was said in public before the last end. Nobody else runs yet.\
void load_history() {\
    std::ifstream file(options.history);\
    for (std::string line; std::getline(file, line);) {\
        std::string_view rest = line;\
        if (take_word(rest) != "PAST" || take_word(rest).empty() || line.size() > max_server_line) continue;\
        take_word(rest);\
        const std::string_view name = take_word(rest);\
        if (valid_name(name)) public_room().history.push_back({fold(name), clean(line)});\
        if (public_room().history.size() > history_lines) public_room().history.pop_front();\
    }\
}\
\
// Keeps it. No client is left, and so the mutex guards nothing any more. The old file stands until the new one is whole.\
void save_history() {\
    if (options.history.empty()) return;\
    const std::string beside = options.history + ".new";\
    std::string text;\
    for (const auto& [key, line] : public_room().history) text += line + '\\n';\
    const Fd file(open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));\
    std::string_view rest = text;\
    while (!rest.empty()) {\
        const ssize_t written = write(file.get(), rest.data(), rest.size());\
        if (written < 0 && errno != EINTR) return log_event(concat("write ", beside, ": ", error_text(errno)));\
        rest.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(written, 0)));\
    }\
    if (fsync(file.get()) != 0 || rename(beside.c_str(), options.history.c_str()) != 0) {\
        log_event(concat("rename ", beside, ": ", error_text(errno)));\
    }\
}\

/^    const std::string password = prepare();$/a\
    load_history();

/^    end_clients();$/a\
    save_history();

/^  --help            show this$/i\
  --history FILE    what was said in public is kept there while the server does not run

/^        {"no-discovery", /i\
        {"history", required_argument, [] { options.history = optarg; }},
