#include <ngp/core/check.h>
#include <ngp/stages/mlp.h>

namespace ngp {

MlpShape mlp_shape(const MlpConfig& c, int n_in_padded, int n_out) {
    if (c.n_hidden < 0 || c.n_hidden + 1 > max_mlp_layers)
        fail("network: n_hidden_layers is ", c.n_hidden, "; it must be from 0 to ", max_mlp_layers - 1);
    if (c.width < 1 || c.width > max_mlp_width)
        fail("network: n_neurons is ", c.width, "; it must be from 1 to ", max_mlp_width);
    MlpShape s;
    s.n_layers = c.n_hidden + 1;
    s.n_in = n_in_padded;
    s.width = c.width;
    s.n_out = (n_out + c.padding - 1) / c.padding * c.padding;
    s.hidden_relu = c.hidden_relu;
    return s;
}

PackedMlp::PackedMlp(const MlpShape& shape) : shape_(shape) {
    size_t n = 0;
    for (int k = 0; k < shape.n_layers; ++k) n += size_t(pad16(shape.in(k))) * size_t(pad16(shape.out(k)));
    forward_.assign(n, 0.0f);
    backward_.assign(n, 0.0f);
}

void PackedMlp::pack(const float* canonical) {
    float *forward = forward_.data(), *backward = backward_.data();
    for (int k = 0; k < shape_.n_layers; ++k) {
        const int n_in = shape_.in(k), n_out = shape_.out(k), in_padded = pad16(n_in), out_padded = pad16(n_out);
        for (int o = 0; o < n_out; ++o)
            for (int i = 0; i < n_in; ++i)
                forward[i * out_padded + o] = backward[o * in_padded + i] = canonical[o * n_in + i];
        canonical += size_t(n_in) * n_out;
        forward += size_t(in_padded) * out_padded;
        backward += size_t(in_padded) * out_padded;
    }
}

void PackedMlp::unpack_gradient(const float* packed, float* canonical) const {
    for (int k = 0; k < shape_.n_layers; ++k) {
        const int n_in = shape_.in(k), n_out = shape_.out(k), in_padded = pad16(n_in);
        for (int o = 0; o < n_out; ++o)
            for (int i = 0; i < n_in; ++i) canonical[o * n_in + i] += packed[o * in_padded + i];
        canonical += size_t(n_in) * n_out;
        packed += size_t(in_padded) * pad16(n_out);
    }
}

} // namespace ngp
