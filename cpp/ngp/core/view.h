// A pointer and its shape; kernels take these instead of bare pointers.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

// `size` elements.
template <typename T>
struct View {
    T* data = nullptr;
    int64_t size = 0;
    NGP_HD T& operator[](int64_t i) const { return data[i]; }
};

// Row-major `rows` x `cols`, `stride` elements from row to row.
template <typename T>
struct View2 {
    T* data = nullptr;
    int64_t rows = 0;
    int cols = 0;
    int stride = 0;
    NGP_HD T* row(int64_t i) const { return data + i * stride; }
};

} // namespace ngp
