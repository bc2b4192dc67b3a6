#include "load.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

namespace bench {

using namespace std::chrono_literals;

namespace {

constexpr auto late = 3s;           // what has not come by then is lost
constexpr auto login_limit = 120s;  // for all together
constexpr double warm_up = 0.3;     // seconds that are not measured
constexpr std::string_view padding = "|the quick brown fox jumps over the lazy dog";

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::uint32_t nanoseconds(Clock::duration time) {
    const auto count = std::chrono::nanoseconds(time).count();
    return static_cast<std::uint32_t>(std::min<long long>(count, std::numeric_limits<std::uint32_t>::max()));
}

// Returns the value below which a part of them is, in microseconds. Puts them in order.
double quantile(std::vector<std::uint32_t>& values, double part) {
    if (values.empty()) return 0;
    const auto last = static_cast<double>(values.size() - 1);
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(std::floor(part * last));
    std::nth_element(values.begin(), at, values.end());
    return *at / 1000.0;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------
// Coming in

Crowd::Crowd(Protocol protocol, int port, const Plan& plan)
    : protocol_(std::move(protocol)), port_(port), plan_(plan), talkers_(static_cast<std::size_t>(plan.talkers)) {}

double Crowd::log_in() {
    const auto start = Clock::now();
    while (in_ < plan_.clients || !all_notices_came()) {
        while (std::cmp_less(clients_.size(), std::min(plan_.clients, in_ + protocol_.at_once))) connect_one();
        pass(100);
        if (ended_ > 0) throw std::runtime_error("the server ended a connection");
        if (Clock::now() - start > login_limit) throw std::runtime_error("the login of all takes too long");
    }
    const double seconds = seconds_since(start);
    for (int i = plan_.clients - plan_.deaf; i < plan_.clients; ++i) {
        poller_.remove(clients_[static_cast<std::size_t>(i)]->socket.get());
    }
    return seconds;
}

// Everyone is told of all who came later; on IRC also of oneself. The other protocols do not tell.
bool Crowd::all_notices_came() const {
    const long all = plan_.clients;
    if (protocol_.login == Protocol::greeted) return true;
    return notices_ >= all * (all - 1) / 2 + (protocol_.login == Protocol::irc ? all : 0);
}

void Crowd::connect_one() {
    auto client = std::make_unique<Client>();
    const int number = static_cast<int>(clients_.size());
    client->name = "b" + std::to_string(100000 + number);
    client->next.resize(talkers_.size());
    client->socket = Fd(::socket(AF_INET, SOCK_STREAM, 0));
    const int fd = client->socket.get();
    if (fd < 0) throw_errno("socket");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, plan_.quick ? 1 : 0);
    if (number >= plan_.clients - plan_.deaf) set_option(fd, SOL_SOCKET, SO_RCVBUF, 4096);
    const linger no_wait{1, 0};  // closing resets: the port is free again at once
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &no_wait, sizeof no_wait);
    const sockaddr_in address = loopback(port_);
    const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
    if (result != 0 && errno != EINPROGRESS) throw_errno("connect");
    if (std::cmp_less_equal(by_fd_.size(), fd)) by_fd_.resize(static_cast<std::size_t>(fd) + 1);
    by_fd_[static_cast<std::size_t>(fd)] = client.get();
    poller_.add(fd);
    if (protocol_.login == Protocol::chatroom) queue(*client, client->name + "\n");
    if (protocol_.login == Protocol::irc) queue(*client, "NICK " + client->name + "\r\nUSER b 0 * :b\r\n");
    clients_.push_back(std::move(client));
}

// What the server says that is not a line of the talk.
void Crowd::on_control(Client& client, std::string_view line) {
    const auto has = [&](std::string_view part) { return line.find(part) != std::string_view::npos; };
    bool welcome = protocol_.login == Protocol::greeted;
    if (protocol_.login == Protocol::chatroom) {
        if (line.starts_with("JOIN ")) ++notices_;
        welcome = line.starts_with("WHO ");
    } else if (protocol_.login == Protocol::irc) {
        if (has(" JOIN ")) {
            ++notices_;
        } else if (line.starts_with("PING ")) {
            queue(client, "PONG" + std::string(line.substr(4)) + "\r\n");
        } else if (!client.in && has(" 001 ")) {
            queue(client, "JOIN #bench\r\n");
        }
        welcome = !client.in && has(" 366 ");
    }
    if (welcome && !std::exchange(client.in, true)) ++in_;
}

// ---------------------------------------------------------------------------------------------------------
// Sending and receiving

void Crowd::queue(Client& client, std::string_view text) {
    client.outbox += text;
    if (client.queued || flush(client)) return;
    client.queued = true;
    unsent_.push_back(&client);
}

// Says whether all has been sent.
bool Crowd::flush(Client& client) {
    const ssize_t sent = send(client.socket.get(), client.outbox.data(), client.outbox.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) client.outbox.clear();  // the connection is over: recv() will tell
    if (sent > 0) client.outbox.erase(0, static_cast<std::size_t>(sent));
    return client.outbox.empty();
}

void Crowd::pass(int timeout_ms) {
    if (flooding_ && clients_.back()->outbox.empty()) {
        std::string lines;
        while (lines.size() < 65536) lines += "a flood\n";
        queue(*clients_.back(), lines);
    }
    std::erase_if(unsent_, [](Client* client) { return !(client->queued = !flush(*client)); });
    for (const int fd : poller_.wait(unsent_.empty() ? timeout_ms : std::min(timeout_ms, 1))) {
        receive(*by_fd_[static_cast<std::size_t>(fd)]);
    }
}

void Crowd::receive(Client& client) {
    const std::size_t kept = client.partial.copy(buffer_.data(), client.partial.size());
    const ssize_t count = recv(client.socket.get(), buffer_.data() + kept, buffer_.size() - kept, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) return end(client);
#ifdef TCP_QUICKACK
    if (plan_.quick) set_option(client.socket.get(), IPPROTO_TCP, TCP_QUICKACK, 1);  // holds until the next recv()
#endif
    const auto now = Clock::now();
    std::string_view bytes(buffer_.data(), kept + static_cast<std::size_t>(count));
    for (std::size_t stop = 0; (stop = bytes.find('\n')) != std::string_view::npos; bytes.remove_prefix(stop + 1)) {
        on_line(client, bytes.substr(0, stop), now);
    }
    client.partial = bytes;
}

void Crowd::end(Client& client) {
    ++ended_;
    poller_.remove(client.socket.get());
    client.outbox.clear();
    client.socket = Fd();
}

void Crowd::on_line(Client& client, std::string_view line, Clock::time_point now) {
    const std::size_t bar = line.find('|');
    if (bar == std::string_view::npos) return on_control(client, line);
    on_delivery(client, line.substr(bar + 1), now);
}

// ---------------------------------------------------------------------------------------------------------
// Talking, and checking what arrives

void Crowd::say(std::size_t number) {
    Talker& talker = talkers_[number];
    Line& line = talker.lines[talker.said % window];
    line.said = Clock::now();
    line.missing = plan_.clients - plan_.deaf - (protocol_.echoes ? 0 : 1);
    const std::string text = "|" + std::to_string(number) + "|" + std::to_string(talker.said);
    queue(*clients_[number], protocol_.say + text + std::string(padding) + protocol_.end);
    ++talker.said;
    ++talker.in_flight;
}

void Crowd::on_delivery(Client& client, std::string_view payload, Clock::time_point now) {
    std::size_t number = 0;
    std::uint32_t which = 0;
    const char* const stop = payload.data() + payload.size();
    const char* const bar = std::from_chars(payload.data(), stop, number).ptr;
    if (bar == stop || number >= talkers_.size()) return;
    std::from_chars(bar + 1, stop, which);
    Talker& talker = talkers_[number];
    std::uint32_t& expected = client.next[number];
    if (which < expected) ++doubled_;
    if (which > expected) ++disordered_;
    if (which < expected || talker.said - which > window) return;
    expected = which + 1;

    Line& line = talker.lines[which % window];
    latencies_.push_back(nanoseconds(now - line.said));
    if (--line.missing == 0) {
        all_latencies_.push_back(latencies_.back());
        --talker.in_flight;
    }
    if (deliveries_++ > 0) silence_ = std::max(silence_, now - heard_);
    heard_ = now;
}

void Crowd::say_what_is_due() {
    if (plan_.rate == 0) {
        for (std::size_t i = 0; i < talkers_.size(); ++i) {
            while (talkers_[i].in_flight < plan_.in_flight) say(i);
        }
        return;
    }
    const auto interval = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(1 / plan_.rate));
    for (; due_ <= Clock::now(); due_ += interval) {
        if (talkers_[next_talker_].in_flight < static_cast<int>(window)) say(next_talker_);
        next_talker_ = (next_talker_ + 1) % talkers_.size();
    }
}

// What has not arrived although it was waited for.
int Crowd::lost() const {
    int missing = 0;
    for (const Talker& talker : talkers_) {
        for (const Line& line : talker.lines) missing += line.missing;
    }
    return missing;
}

Outcome Crowd::talk(double seconds, const std::function<double()>& cpu) {
    due_ = Clock::now();
    const auto talk_until = [&](Clock::time_point end) {
        while (Clock::now() < end) {
            say_what_is_due();
            pass(0);  // asleep, the clients would have to be woken again and again, at the expense of who is measured
        }
    };
    const auto warm =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(warm_up));
    talk_until(warm);
    deliveries_ = 0;
    silence_ = {};
    latencies_.clear();
    all_latencies_.clear();
    const double cpu_before = cpu();
    const auto start = Clock::now();
    talk_until(start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
    Outcome outcome = summary(seconds_since(start), cpu() - cpu_before);

    const auto patience = Clock::now() + late;
    while (lost() > 0 && Clock::now() < patience) pass(10);
    outcome["lost"] = lost();
    outcome["doubled"] = static_cast<double>(doubled_);
    outcome["disordered"] = static_cast<double>(disordered_);
    return outcome;
}

Outcome Crowd::summary(double seconds, double cpu) {
    const auto deliveries = static_cast<double>(deliveries_);
    return {{"deliveries", deliveries},
            {"per_second", deliveries / seconds},
            {"p50_us", quantile(latencies_, 0.5)},
            {"p99_us", quantile(latencies_, 0.99)},
            {"p999_us", quantile(latencies_, 0.999)},
            {"to_all_us", quantile(all_latencies_, 0.5)},
            {"silence_ms", static_cast<double>(nanoseconds(silence_)) / 1e6},
            {"cpu_us", deliveries_ == 0 ? 0 : cpu * 1e6 / deliveries}};
}

Outcome Crowd::read_out() {
    const int before = ended_;
    for (int i = plan_.clients - plan_.deaf; i < plan_.clients; ++i) {
        poller_.add(clients_[static_cast<std::size_t>(i)]->socket.get());
    }
    const auto patience = Clock::now() + late;
    while (ended_ - before < plan_.deaf && Clock::now() < patience) pass(50);
    return {{"dropped", ended_ - before}};
}

}  // namespace bench
