// 3D Morton (Z-order) codes of 10 bits a coordinate: x in bit 0, y in bit 1, z in bit 2 (specification D.5).
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

NGP_HD uint32_t spread_bits3(uint32_t v) {
    v = (v * 0x00010001u) & 0xff0000ffu;
    v = (v * 0x00000101u) & 0x0f00f00fu;
    v = (v * 0x00000011u) & 0xc30c30c3u;
    v = (v * 0x00000005u) & 0x49249249u;
    return v;
}
NGP_HD uint32_t gather_bits3(uint32_t v) {
    v &= 0x49249249u;
    v = (v | (v >> 2)) & 0xc30c30c3u;
    v = (v | (v >> 4)) & 0x0f00f00fu;
    v = (v | (v >> 8)) & 0xff0000ffu;
    v = (v | (v >> 16)) & 0x0000ffffu;
    return v;
}
NGP_HD uint32_t morton3(uint32_t x, uint32_t y, uint32_t z) {
    return spread_bits3(x) | (spread_bits3(y) << 1) | (spread_bits3(z) << 2);
}

} // namespace ngp
