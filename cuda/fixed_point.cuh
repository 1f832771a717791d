// Sums that do not depend on the order of additions: of integers, in units of 2^-30. Values beyond +-4096 count as
// that, so that a million of them fit; what is not finite counts as nothing.
#pragma once

#include "memory.cuh"

#include <cmath>
#include <ngp/formulas/hd.h>

namespace ngp::cuda {

using FixedSum = long long;
constexpr double fixed_sum_unit = 1.0 / (1 << 30);

__device__ __forceinline__ FixedSum to_fixed_sum(float v) {
    constexpr float largest = 4096.0f;
    return isfinite(v) ? __float2ll_rn(clamp_to(v, -largest, largest) * float(1 << 30)) : 0;
}
__device__ __forceinline__ void add_fixed(FixedSum* at, FixedSum v) {
    if (v != 0) atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(v));
}
__device__ __forceinline__ FixedSum warp_sum_of_fixed(FixedSum v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// Adds a value of each lane of a warp to sums of its own `row`: once, if all lanes that take part have the same one.
class WarpRows {
  public:
    // By the whole warp. `row` counts only where `active`.
    __device__ WarpRows(bool active, int64_t row) {
        const unsigned lanes = __ballot_sync(0xffffffffu, active);
        const int64_t first = __shfl_sync(0xffffffffu, row, lanes ? __ffs(int(lanes)) - 1 : 0);
        same_ = __all_sync(0xffffffffu, !active || row == first);
        row_ = same_ ? first : row;
        adds_ = same_ ? lanes != 0 && (threadIdx.x & 31) == 0 : active;
    }
    // By the whole warp; lanes that are not active give 0.
    __device__ void add(FixedSum* sums, int stride, int column, FixedSum v) const {
        if (same_) v = warp_sum_of_fixed(v);
        if (adds_) add_fixed(sums + row_ * stride + column, v);
    }

  private:
    int64_t row_;
    bool same_, adds_;
};

} // namespace ngp::cuda
