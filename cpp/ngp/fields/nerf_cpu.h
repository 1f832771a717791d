// Scratch memory and execution policy of the CPU's NeRF engine.
#pragma once

#include <memory>
#include <ngp/core/buffer.h>
#include <ngp/cpu/kernels.h>
#include <ngp/fields/nerf.h>

namespace ngp {

// Owns a NerfWorkspace. Memory is not touched before it is used.
class CpuWorkspace {
  public:
    explicit CpuWorkspace(const NerfModelShape& shape);
    CpuWorkspace(const CpuWorkspace&) = delete;
    NerfWorkspace& get() { return workspace_; }
    int64_t bytes() const { return bytes_; }

  private:
    static void grow(NerfWorkspace& w, int64_t rows);
    template <typename T>
    T* allocate(int64_t n);

    struct Free {
        void operator()(void* p) const;
    };
    NerfWorkspace workspace_;
    std::vector<std::unique_ptr<void, Free>> memory_;
    std::vector<std::unique_ptr<void, Free>> rows_;
    int64_t bytes_ = 0;
};

// One lane of a training step: the chunks that it works through in order add to the same sums, whatever thread runs it.
struct CpuLane {
    AlignedVector<float> density_gradient, rgb_gradient; // packed
    GradientTiles tiles;
    AlignedVector<float> tile_memory;
    double loss = 0;
    int64_t samples = 0, evaluated = 0, marching_ns = 0;
};

} // namespace ngp
