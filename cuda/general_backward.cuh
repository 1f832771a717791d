// Training's backward pass through encoding and networks for shapes that only GeneralNetwork covers.
//
// Samples go in chunks through two kernels: one runs each sample forward and backward by a thread of its own and keeps
// every layer's inputs X and output gradients dY, feature-major; the other forms the weight gradients dY X^T from them.
// How many samples there are only the device knows, so the host launches the chunks of the whole capacity and those
// past the end return at once. Every sum has a fixed order: the same samples give the same bytes.
#pragma once

#include "memory.cuh"
#include "model.cuh"

namespace ngp {
struct NerfModelShape;
}

namespace ngp::cuda {

// Elements at a fixed distance, so that they can be members of larger records.
template <typename T>
struct Strided {
    const T* first = nullptr;
    int64_t stride = sizeof(T); // bytes

    Strided() = default;
    NGP_HD Strided(const T* p, int64_t stride_bytes = sizeof(T)) : first(p), stride(stride_bytes) {}
    NGP_HD const T& operator[](int64_t i) const {
        return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(first) + i * stride);
    }
};

// The samples; all pointers are the device's.
struct BackwardInput {
    Strided<Vec3> positions;           // NGP space
    Strided<Vec3> directions;          // unit
    Strided<RawSample> d_raw;          // gradients with respect to the raw outputs
    const int32_t* rows = nullptr;     // of the model's extra dimensions; null: sample i has row i
    const float* max_levels = nullptr; // of each sample (level_cut.h); null: all see all levels
    const uint32_t* n = nullptr;
    int64_t capacity = 0; // more samples than that are ignored
    // Where the gradients of directions, each component as if independent, and of the extra dimensions go, a row of
    // those a sample; null: not wanted.
    Vec3* d_directions = nullptr;
    float* d_extra_dims = nullptr;

    NGP_HD int64_t row(int64_t i) const { return rows ? rows[i] : i; }
};

class GeneralBackward {
  public:
    GeneralBackward(Context& context, const NerfModelShape& shape);

    // Writes the gradient of every encoding output to d_encoding, [capacity][position.n_out] and 16-byte aligned, where
    // there is a sample, and adds to weight_gradient (canonical order: density network, rgb network). Asynchronous and
    // fit for capture into a graph. One run at a time: the scratch memory is this object's.
    void run(cudaStream_t stream, const ModelView& model, const BackwardInput& input, float* d_encoding,
             float* weight_gradient);

  private:
    // Part of one matrix's gradient that a block forms.
    struct WeightTile {
        int x_row, d_row; // first rows in inputs_ and d_outputs_
        int n_in, n_out;  // size
        uint32_t weight;  // first element in the canonical gradient
        int stride;       // from one output's to the next
    };
    friend struct WeightGradientJob;

    int n_encoded_ = 0; // outputs, without padding
    uint32_t n_weights_ = 0;
    int64_t chunk_ = 0; // samples
    int n_tiles_ = 0;
    int n_slices_ = 1;                      // of a chunk; each has sums of its own
    DeviceArray<float> inputs_, d_outputs_; // [row][chunk]
    DeviceArray<float> sums_;               // [slice][weights], if there are several
    DeviceArray<WeightTile> tiles_;
};

} // namespace ngp::cuda
