// What the fuzz targets share. Each is a function that libFuzzer calls with bytes that it makes up; what must not be is
// found by the sanitizers, or by require(). See docs/testing.md.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace fuzz {

// Ends the program, which makes libFuzzer keep the bytes that led here.
inline void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "this does not hold: %s\n", what);
    std::abort();
}

// The bytes of one try, taken from the front.
class Bytes {
   public:
    Bytes(const std::uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

    bool empty() const { return rest_.empty(); }

    unsigned byte() {
        if (rest_.empty()) return 0;
        const auto first = static_cast<unsigned char>(rest_.front());
        rest_.remove_prefix(1);
        return first;
    }

    std::string_view text(std::size_t size) {
        const std::string_view taken = rest_.substr(0, size);
        rest_.remove_prefix(taken.size());
        return taken;
    }

    std::string_view rest() { return text(rest_.size()); }

   private:
    std::string_view rest_;
};

}  // namespace fuzz
