// IEEE binary16 as a storage format: conversions with round-to-nearest-even, bit-exact with hardware conversion.
#pragma once

#include <cstring>
#include <ngp/formulas/hd.h>

namespace ngp {

NGP_HD float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
NGP_HD uint32_t float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

NGP_HD float half_to_float(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) { // zero or subnormal: mantissa * 2^-24, exact in float
        float v = float(mantissa) * 5.9604644775390625e-8f;
        return bits_to_float(float_to_bits(v) | sign);
    }
    return bits_to_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

NGP_HD uint16_t float_to_half(float f) {
    uint32_t u = float_to_bits(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu;
    if (a >= 0x7f800000u) return uint16_t(sign | 0x7c00u | (a > 0x7f800000u ? 0x200u : 0u));
    if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00u); // rounds to 65536 or more
    if (a < 0x38800000u) {                                 // below 2^-14: subnormal
        // Adding 0.5 aligns the mantissa so that the hardware's own rounding keeps the right bits.
        float v = bits_to_float(a) + 0.5f;
        return uint16_t(sign | (float_to_bits(v) - 0x3f000000u));
    }
    uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
    return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

} // namespace ngp
