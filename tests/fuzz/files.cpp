// Fuzzes what the server makes of the lines in the ban list and in the file of accounts, which people edit by hand.
#define main program_main
#include "../../server.cpp"
#undef main

#include "fuzz.hpp"

using fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string line(reinterpret_cast<const char*>(data), size);
    const std::string banned = ban_in(line);
    require(fold(banned) == banned, "who is banned is compared without regard to case");
    require(banned.empty() || ban_in(banned) == banned, "a ban that is written back is the same ban");
    const std::string account = account_in(line);
    require(account.empty() || valid_name(account), "an account has a name");
    const std::string hash = hash_in(line);
    require(hash.empty() || hash.starts_with("$"), "a hash is one that crypt(3) could have made");
    return 0;
}
