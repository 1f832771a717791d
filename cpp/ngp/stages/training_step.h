// READ THIS FIRST: one training step of a radiance field, for every device.
//
// `Exec` is the execution policy of a device: where arrays live and how bodies are launched. Each stage below is named
// as its file in stages/; the formulas and per-ray bodies that stages run are shared (formulas/, stages/*.h). A policy
// may fuse adjacent stages into one where that is faster: it then offers `rays_to_gradients`, and the stages inside are
// the same bodies in the same order. Options exist once, in the plan; no policy has options of its own.
#pragma once

#include <ngp/stages/compositing.h>
#include <ngp/stages/occupancy.h>
#include <ngp/stages/rays.h>

namespace ngp {

// What a step does, decided on the host before it starts.
struct StepPlan {
    uint32_t step = 0;      // finished steps
    int64_t batch_size = 0; // contributing samples aimed for
    int n_rays = 0;
    int n_images = 0;
    OccupancyUpdate occupancy;
    SampleTrainingRays sample; // options of rays; scene and destination are the policy's
    CompositeOptions composite;
};

// What a step did.
struct StepResult {
    float loss = 0;      // mean over rays and channels
    int64_t rays = 0;    // that were traced: fewer than planned if their samples filled the batch
    int64_t samples = 0; // that contributed
    int64_t samples_evaluated = 0;
};

template <typename Exec>
concept FusesRaysToGradients = requires(Exec& exec, const StepPlan& plan) { exec.rays_to_gradients(plan); };

template <typename Exec>
StepResult training_step(Exec& exec, const StepPlan& plan) {
    // 1. occupancy: where samples are worth taking, from the weights as they are
    if (plan.occupancy.uniform_samples > 0) exec.update_occupancy(plan);

    if constexpr (FusesRaysToGradients<Exec>) {
        exec.rays_to_gradients(plan); // 2 to 6
    } else {
        exec.sample_rays(plan);        // 2. rays: pixels, targets, backgrounds; samples in occupied cells
        exec.encode(plan);             // 3. encoding
        exec.networks_forward(plan);   // 4. mlp
        exec.composite_and_loss(plan); // 5. compositing and loss: gradients of the raw outputs, contributing samples
        exec.networks_backward(plan);  // 6. mlp: weight gradients, encoding gradients
    }
    exec.scatter_gradients(plan); // 7. encoding gradients to table entries
    exec.optimize(plan);          // 8. optimizer
    return exec.result();
}

} // namespace ngp
