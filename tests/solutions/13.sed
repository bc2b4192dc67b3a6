# --motd FILE: what is in the file is told to everyone who has logged in.
/^    std::string exit_code; /a\
    std::string motd;       // a file whose lines everyone is told after the login; empty: none

/^\/\/ The thread of one client, which it owns\.$/i\
// Tells a client the message of the day, of 20 lines at most. Reads the file without the mutex: a slow disk holds up\
// nobody else. A client's own thread.\
void tell_motd(Client& client) {\
    if (options.motd.empty()) return;\
    const Fd file(open(options.motd.c_str(), O_RDONLY | O_CLOEXEC));\
    if (!file) return log_event(concat("open ", options.motd, ": ", error_text(errno)));\
    std::array<char, 8192> bytes{};\
    std::size_t size = 0;\
    ssize_t count = 0;\
    while ((count = read(file.get(), bytes.data() + size, bytes.size() - size)) > 0) size += static_cast<std::size_t>(count);\
    LineBuffer lines(max_line);\
    lines.add({bytes.data(), size});\
    for (int told = 0; told < 20; ++told) {\
        std::optional<Line> line = lines.next();\
        if (!line) line = lines.last();\
        if (!line) return;\
        if (!line->too_long) tell(client, concat("INFO ", clean(line->text)));\
    }\
}\

/^            while (const std::optional<std::string> line = read_line(\*client)) handle_line/i\
            tell_motd(*client);

/^  --help            show this$/i\
  --motd FILE       what is told to everyone who has logged in

/^        {"no-discovery", /i\
        {"motd", required_argument, [] { options.motd = optarg; }},
