// Matrix fragments of a warp: loads from shared memory and products on the tensor cores (PTX ISA, "Matrix fragments for
// mma.m16n8k16" and "ldmatrix").
//
// A fragment of 16 x 16 halves is 4 registers of two halves. With g = lane / 4 and t = lane % 4, register r holds row
// g + 8*(r % 2), columns 2t + 8*(r / 2) and the next. Products of two n8 columns tiles leave their float results where
// a 16 x 16 fragment of the next product needs its halves, so that activations go from layer to layer in registers.
#pragma once

#include <cstdint>
#include <cuda_fp16.h>

namespace ngp::cuda {

struct Fragment { // 16 x 16 halves
    uint32_t r[4];
};

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned).
__device__ __forceinline__ Fragment load_matrices(const __half* row) {
    Fragment f;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(shared_address(row))
                 : "memory");
    return f;
}
__device__ __forceinline__ Fragment load_matrices_transposed(const __half* row) {
    Fragment f;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(shared_address(row))
                 : "memory");
    return f;
}

// All of the following take a row-major array of halves in shared memory whose rows are `stride` apart.

// Left operand: a[row0 + 0..15][column0 + 0..15].
__device__ __forceinline__ Fragment load_left(const __half* a, int stride, int row0, int column0, int lane) {
    const int matrix = lane >> 3;
    return load_matrices(a + (row0 + (matrix & 1) * 8 + (lane & 7)) * stride + column0 + (matrix >> 1) * 8);
}
// Left operand that is the transpose of a[k0 + 0..15][row0 + 0..15].
__device__ __forceinline__ Fragment load_left_transposed(const __half* a, int stride, int k0, int row0, int lane) {
    const int matrix = lane >> 3;
    return load_matrices_transposed(a + (k0 + (matrix >> 1) * 8 + (lane & 7)) * stride + row0 + (matrix & 1) * 8);
}
// Two right operands, columns n0 + 0..7 and n0 + 8..15, of a matrix stored by rows: b[k0 + 0..15][n0 + 0..15].
__device__ __forceinline__ Fragment load_right(const __half* b, int stride, int k0, int n0, int lane) {
    const int matrix = lane >> 3;
    return load_matrices_transposed(b + (k0 + (matrix & 1) * 8 + (lane & 7)) * stride + n0 + (matrix >> 1) * 8);
}
// The same of a matrix stored by columns, b[n0 + 0..15][k0 + 0..15]: what weights [out][in] are to a forward pass.
__device__ __forceinline__ Fragment load_right_by_columns(const __half* b, int stride, int k0, int n0, int lane) {
    const int matrix = lane >> 3;
    return load_matrices(b + (n0 + (matrix >> 1) * 8 + (lane & 7)) * stride + k0 + (matrix & 1) * 8);
}
// One right operand of 32 rows, of a matrix stored by columns: b[n0 + 0..7][k0 + 0..31]; registers 0 and 1 are those of
// rows k0 + 0..15.
__device__ __forceinline__ Fragment load_narrow_right_by_columns(const __half* b, int stride, int k0, int n0,
                                                                 int lane) {
    return load_matrices(b + (n0 + (lane & 7)) * stride + k0 + (lane >> 3) * 8);
}

// c += a * b for 16 x 8 results: c[0], c[1] in row g, columns 2t and 2t+1; c[2], c[3] in row g + 8.
__device__ __forceinline__ void multiply_add(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[2]), "r"(a.r[3]), "r"(b1));
#endif
}

// Two floats to two halves, the first in the low bits.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    const __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&h);
}
// The same; values beyond the largest half become it, since an infinity would spread to all that it is multiplied with.
__device__ __forceinline__ uint32_t pack_saturated(float low, float high) {
    constexpr float largest = 65504.0f;
    return pack_halves(fminf(fmaxf(low, -largest), largest), fminf(fmaxf(high, -largest), largest));
}
__device__ __forceinline__ __half2 as_half2(uint32_t u) { return *reinterpret_cast<const __half2*>(&u); }
__device__ __forceinline__ uint32_t as_bits(__half2 h) { return *reinterpret_cast<const uint32_t*>(&h); }

// Results of two n8 tiles as one fragment.
__device__ __forceinline__ Fragment to_fragment(const float (&low)[4], const float (&high)[4]) {
    return {pack_halves(low[0], low[1]), pack_halves(low[2], low[3]), pack_halves(high[0], high[1]),
            pack_halves(high[2], high[3])};
}
__device__ __forceinline__ Fragment relu(Fragment f) {
    for (uint32_t& r : f.r) r = as_bits(__hmax2(as_half2(r), __half2{}));
    return f;
}
// d where h > 0, else 0: the backward pass of a ReLU whose output is h.
__device__ __forceinline__ uint32_t where_positive(uint32_t d, uint32_t h) {
    return d & __hgt2_mask(as_half2(h), __half2{});
}

// Stores to and loads from a row-major array, 16 x 16 at (row0, column0); each lane its own registers.
__device__ __forceinline__ void store_fragment(const Fragment& f, __half* a, int stride, int row0, int column0,
                                               int lane) {
#pragma unroll
    for (int r = 0; r < 4; ++r)
        *reinterpret_cast<uint32_t*>(a + (row0 + (lane >> 2) + 8 * (r & 1)) * stride + column0 + 2 * (lane & 3) +
                                     8 * (r >> 1)) = f.r[r];
}
__device__ __forceinline__ Fragment load_fragment(const __half* a, int stride, int row0, int column0, int lane) {
    Fragment f;
#pragma unroll
    for (int r = 0; r < 4; ++r)
        f.r[r] = *reinterpret_cast<const uint32_t*>(a + (row0 + (lane >> 2) + 8 * (r & 1)) * stride + column0 +
                                                    2 * (lane & 3) + 8 * (r >> 1));
    return f;
}

// 16*Rows x In times the transpose of weights [Out][In].
template <int Rows, int In, int Out>
__device__ __forceinline__ void layer_forward(const __half* weights, int stride, const Fragment (&in)[Rows][In / 16],
                                              Fragment (&out)[Rows][Out / 16], bool rectify, int lane) {
#pragma unroll
    for (int n = 0; n < Out / 16; ++n) {
        float sum[Rows][2][4] = {};
#pragma unroll
        for (int k = 0; k < In / 16; ++k) {
            const Fragment w = load_right_by_columns(weights, stride, 16 * k, 16 * n, lane);
#pragma unroll
            for (int m = 0; m < Rows; ++m) {
                multiply_add(sum[m][0], in[m][k], w.r[0], w.r[1]);
                multiply_add(sum[m][1], in[m][k], w.r[2], w.r[3]);
            }
        }
#pragma unroll
        for (int m = 0; m < Rows; ++m) {
            out[m][n] = to_fragment(sum[m][0], sum[m][1]);
            if (rectify) out[m][n] = relu(out[m][n]);
        }
    }
}

// 16*Rows x Out (gradients of a layer's outputs) times the first 16*Columns columns of weights [Out][In].
template <int Rows, int Out, int Columns>
__device__ __forceinline__ void layer_backward(const __half* weights, int stride,
                                               const Fragment (&d_out)[Rows][Out / 16], Fragment (&d_in)[Rows][Columns],
                                               int lane) {
#pragma unroll
    for (int n = 0; n < Columns; ++n) {
        float sum[Rows][2][4] = {};
#pragma unroll
        for (int k = 0; k < Out / 16; ++k) {
            const Fragment w = load_right(weights, stride, 16 * k, 16 * n, lane);
#pragma unroll
            for (int m = 0; m < Rows; ++m) {
                multiply_add(sum[m][0], d_out[m][k], w.r[0], w.r[1]);
                multiply_add(sum[m][1], d_out[m][k], w.r[2], w.r[3]);
            }
        }
#pragma unroll
        for (int m = 0; m < Rows; ++m) d_in[m][n] = to_fragment(sum[m][0], sum[m][1]);
    }
}

} // namespace ngp::cuda
