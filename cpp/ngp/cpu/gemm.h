// The one matrix product that the networks need, blocked for the register file.
//
//   C[r][c] = sum_k A(r, k) * B[k][c],   A(r, k) = a[r*a_row + k*a_col],   B and C row-major
//
// Tiles are sample-major: with rows = samples this is a layer forward (B = weights [in][out]) and its input gradient
// (B = weights [out][in]); with rows = output features and k = samples, A is the transposed gradient tile and the same
// loop gives the weight gradient. No operand is ever transposed in memory, which is why tiles are not feature-major.
// Every element sums over k in ascending order.
#pragma once

#include <ngp/cpu/simd.h>

namespace ngp::NGP_ISA {

enum class Epilogue {
    Store,      // C = product
    Relu,       // C = max(product, 0)
    Mask,       // C = mask > 0 ? product : 0
    Accumulate, // C += product
};

struct GemmOperands {
    const float* a;
    int64_t a_row, a_col;
    const float* b;
    int b_stride;
    float* c;
    int c_stride;
    const float* mask = nullptr; // same stride as C
};

template <int rows, int vectors, Epilogue epilogue>
NGP_HD void gemm_block(const GemmOperands& g, int row, int column, int k_count) {
    VecF acc[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) acc[r][v] = VecF{};
    const float* a = g.a + row * g.a_row;
    const float* b = g.b + column;
    for (int k = 0; k < k_count; ++k, a += g.a_col, b += g.b_stride) {
        VecF bv[vectors];
        for (int v = 0; v < vectors; ++v) bv[v] = load<VecF>(b + v * vector_width);
        for (int r = 0; r < rows; ++r) {
            const VecF av = splat(a[r * g.a_row]);
            for (int v = 0; v < vectors; ++v) acc[r][v] = multiply_add(av, bv[v], acc[r][v]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = int64_t(row + r) * g.c_stride + column + v * vector_width;
            VecF value = acc[r][v];
            if constexpr (epilogue == Epilogue::Relu) value = positive_part(value);
            if constexpr (epilogue == Epilogue::Mask) value = load<VecF>(g.mask + at) > 0.0f ? value : VecF{};
            if constexpr (epilogue == Epilogue::Accumulate) value += load<VecF>(g.c + at);
            store(g.c + at, value);
        }
}

// All rows of a strip of `vectors` vectors.
template <int block_rows, int vectors, Epilogue epilogue>
void gemm_strip(const GemmOperands& g, int rows, int column, int k_count) {
    int row = 0;
    for (; row + block_rows <= rows; row += block_rows)
        gemm_block<block_rows, vectors, epilogue>(g, row, column, k_count);
    if constexpr (block_rows > 4)
        for (; row + 4 <= rows; row += 4) gemm_block<4, vectors, epilogue>(g, row, column, k_count);
    for (; row < rows; ++row) gemm_block<1, vectors, epilogue>(g, row, column, k_count);
}

// columns: a multiple of 16.
template <Epilogue epilogue>
void gemm(const GemmOperands& g, int rows, int columns, int k_count) {
#if defined(__AVX512F__)
    // 32 registers: 6x4 accumulators, 12x2, 14x1
    int column = 0;
    for (; column + 64 <= columns; column += 64) gemm_strip<6, 4, epilogue>(g, rows, column, k_count);
    for (; column + 32 <= columns; column += 32) gemm_strip<12, 2, epilogue>(g, rows, column, k_count);
    for (; column < columns; column += 16) gemm_strip<14, 1, epilogue>(g, rows, column, k_count);
#elif defined(__AVX2__)
    for (int column = 0; column < columns; column += 16) gemm_strip<6, 2, epilogue>(g, rows, column, k_count);
#elif defined(__ARM_NEON)
    for (int column = 0; column < columns; column += 16) gemm_strip<6, 4, epilogue>(g, rows, column, k_count);
#else
    for (int column = 0; column < columns; column += 8) gemm_strip<6, 2, epilogue>(g, rows, column, k_count);
#endif
}

} // namespace ngp::NGP_ISA
