// Errors. Everything that a caller can get wrong raises ngp::Error with a message that names the thing and the remedy;
// NGP_CHECK guards the library's own invariants and prints both expressions and both values.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ngp {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Builds a message from parts, e.g. fail("width is ", w, "; it must be positive").
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream s;
    (s << ... << parts);
    throw Error(s.str());
}

} // namespace ngp

#define NGP_CHECK_OP(a, op, b)                                                                                         \
    do {                                                                                                               \
        const auto& ngp_a = (a);                                                                                       \
        const auto& ngp_b = (b);                                                                                       \
        if (!(ngp_a op ngp_b))                                                                                         \
            ::ngp::fail(__FILE__, ":", __LINE__, ": check failed: " #a " " #op " " #b " (", ngp_a, " vs ", ngp_b,      \
                        ")");                                                                                          \
    } while (false)
#define NGP_CHECK_EQ(a, b) NGP_CHECK_OP(a, ==, b)
#define NGP_CHECK_LE(a, b) NGP_CHECK_OP(a, <=, b)
