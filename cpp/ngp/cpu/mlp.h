// Fully connected networks on tiles of samples: forward and backward (see gemm.h for the layout).
#pragma once

#include <ngp/cpu/gemm.h>
#include <ngp/stages/mlp.h>

namespace ngp::NGP_ISA {

// Both packings of ngp::PackedMlp.
struct MlpWeights {
    MlpShape shape;
    const float* forward = nullptr;
    const float* backward = nullptr;
};

// Activations of a tile: layer k reads input[k] (rows of `input_stride[k]` floats); the last layer writes `output`.
struct MlpActivations {
    float* input[max_mlp_layers];
    int input_stride[max_mlp_layers];
    float* output;
    int output_stride;
};

// n samples. Inputs must be padded to 16 columns (the padding's weights are zero, so its values must be finite).
inline void mlp_forward(const MlpWeights& mlp, const MlpActivations& t, int n) {
    const float* w = mlp.forward;
    for (int k = 0; k < mlp.shape.n_layers; ++k) {
        const bool last = k == mlp.shape.n_layers - 1;
        const int n_in = pad16(mlp.shape.in(k)), n_out = pad16(mlp.shape.out(k));
        GemmOperands g{t.input[k],
                       t.input_stride[k],
                       1,
                       w,
                       n_out,
                       last ? t.output : t.input[k + 1],
                       last ? t.output_stride : t.input_stride[k + 1]};
        if (last || !mlp.shape.hidden_relu)
            gemm<Epilogue::Store>(g, n, n_out, n_in);
        else
            gemm<Epilogue::Relu>(g, n, n_out, n_in);
        w += int64_t(n_in) * n_out;
    }
}

// Backward through all layers. `d_output` holds dL/d(output) in its first `used_outputs` columns (rows of
// d_output_stride floats). Adds to the packed weight gradient and writes the first `d_input_columns` (rounded up to 16)
// columns of dL/d(input) unless that is 0. `scratch` holds two tiles of n x pad16(width). The result may overwrite
// nothing else.
struct MlpBackward {
    const float* d_output;
    int d_output_stride;
    int used_outputs;
    float* weight_gradient; // null: not wanted
    float* d_input;
    int d_input_stride;
    int d_input_columns;
    float* scratch[2];
};

inline void mlp_backward(const MlpWeights& mlp, const MlpActivations& t, const MlpBackward& b, int n) {
    const MlpShape& s = mlp.shape;
    const float* w = mlp.backward;
    int64_t begin[max_mlp_layers + 1] = {0};
    for (int k = 0; k < s.n_layers; ++k) begin[k + 1] = begin[k] + int64_t(pad16(s.in(k))) * pad16(s.out(k));

    const float* d_out = b.d_output;
    int d_stride = b.d_output_stride, d_count = b.used_outputs;
    for (int k = s.n_layers - 1; k >= 0; --k) {
        const int n_in = pad16(s.in(k));
        if (b.weight_gradient) // [out][in] += d_out^T * input
            gemm<Epilogue::Accumulate>(
                {d_out, 1, d_stride, t.input[k], t.input_stride[k], b.weight_gradient + begin[k], n_in}, d_count, n_in,
                n);
        if (k == 0) {
            if (b.d_input_columns > 0)
                gemm<Epilogue::Store>({d_out, d_stride, 1, w, n_in, b.d_input, b.d_input_stride}, n,
                                      pad16(b.d_input_columns), d_count);
            return;
        }
        // The mask is the activation, laid out like the gradient: both use the activations' stride.
        float* d_in = b.scratch[k & 1];
        GemmOperands g{d_out, d_stride, 1, w + begin[k], n_in, d_in, t.input_stride[k], t.input[k]};
        if (s.hidden_relu)
            gemm<Epilogue::Mask>(g, n, n_in, d_count);
        else
            gemm<Epilogue::Store>(g, n, n_in, d_count);
        d_out = d_in;
        d_stride = t.input_stride[k];
        d_count = n_in;
    }
}

} // namespace ngp::NGP_ISA
