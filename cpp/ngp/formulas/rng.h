// PCG32 generator (O'Neill 2014, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
// Random Number Generation"): 64-bit LCG state, XSH-RR output, jump-ahead by Brown's 1994 method.
#pragma once

#include <ngp/formulas/half.h>

namespace ngp {

struct Pcg32 {
    uint64_t state = 0x853c49e6748fea9bULL;
    uint64_t increment = 0xda3e39cb94b95bdbULL;

    static constexpr uint64_t multiplier = 0x5851f42d4c957f2dULL;

    NGP_HD static Pcg32 seeded(uint64_t seed, uint64_t sequence = 1) {
        Pcg32 r;
        r.state = 0;
        r.increment = (sequence << 1) | 1u;
        r.next();
        r.state += seed;
        r.next();
        return r;
    }
    // Uniform 32-bit integer.
    NGP_HD uint32_t next() {
        uint64_t old = state;
        state = old * multiplier + increment;
        uint32_t xorshifted = uint32_t(((old >> 18) ^ old) >> 27);
        uint32_t rotation = uint32_t(old >> 59);
        return (xorshifted >> rotation) | (xorshifted << ((32u - rotation) & 31u));
    }
    // Uniform float in [0, 1) with 23 random bits.
    NGP_HD float next_float() { return bits_to_float((next() >> 9) | 0x3f800000u) - 1.0f; }

    // Skips `delta` draws in O(log delta).
    NGP_HD void advance(uint64_t delta) {
        uint64_t mult = multiplier, plus = increment, acc_mult = 1, acc_plus = 0;
        for (; delta > 0; delta >>= 1) {
            if (delta & 1) {
                acc_mult *= mult;
                acc_plus = acc_plus * mult + plus;
            }
            plus = (mult + 1) * plus;
            mult *= mult;
        }
        state = acc_mult * state + acc_plus;
    }
};

} // namespace ngp
