// The renderer for models of every shape.
#include "general_network.cuh"
#include "render_kernel.cuh"

namespace ngp::cuda {

void render_general(Context& context, const RenderJob& job, bool normals) {
    launch_render<GeneralNetwork>(context, job, normals);
}

int64_t render_general_scratch(const Context& context, const ModelView& model, bool normals) {
    return render_scratch<GeneralNetwork>(context, model, normals);
}

} // namespace ngp::cuda
