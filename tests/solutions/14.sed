# /roll [SIDES]: rolls dice for all to see.
/^void me(Lock& lock, Client& user, std::string_view rest) {/i\
// A die of 6 sides, or of as many as somebody asks for. All in the room see what it shows.\
void roll(Lock& lock, Client& user, std::string_view rest) {\
    const std::optional<long> sides = trim(rest).empty() ? 6 : parse_number(trim(rest), 2, 1000000);\
    if (!sides) return error(lock, user, "A die has 2 to 1000000 sides.");\
    static std::mt19937 random{std::random_device{}()};  // guarded by chat.mutex\
    const long shown = std::uniform_int_distribution<long>(1, *sides)(random);\
    say(lock, user, "ME", concat("rolls ", std::to_string(shown), " of ", std::to_string(*sides)));\
}\

/^    {"msg", "NAME TEXT", everyone, msg, /i\
    {"roll", "[SIDES]", everyone, roll, "rolls a die", "/roll 20", true},

/^#include <set>$/i\
#include <random>
