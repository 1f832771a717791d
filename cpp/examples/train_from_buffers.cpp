// Trains a NeRF from images in memory, renders a view that it was not trained on, asks for densities, and saves and
// loads the result. No files are needed: the "photographs" are of a shaded ball and a box, drawn by the program itself.
// It prints what it finds and returns 0 only if that is as expected.
//
//   train_from_buffers [SNAPSHOT.ingp]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <memory>
#include <ngp/ngp.h>
#include <string>
#include <vector>

using ngp::Vec2;
using ngp::Vec3;

// --- the scene that we photograph, in our own units and axes (y up)

const Vec3 ball_center{-0.4f, 0.1f, 0.0f};
const float ball_radius = 0.5f;
const ngp::Aabb box{{0.2f, -0.4f, -0.3f}, {0.8f, 0.2f, 0.3f}};

struct Surface {
    float distance = INFINITY; // along the ray; infinite where there is nothing
    Vec3 color;                // sRGB
};

Surface look(Vec3 origin, Vec3 direction) {
    const Vec3 light = ngp::normalize({0.5f, 0.8f, 0.3f});
    // Painted, because paint shows depth: the shape of evenly coloured surfaces is hard to see.
    const auto shade = [&](Vec3 color, Vec3 p, Vec3 normal) {
        const float paint = 0.7f + 0.1f * (std::sin(15 * p.x) + std::sin(15 * p.y) + std::sin(15 * p.z));
        return color * (paint * (0.6f + 0.4f * ngp::dot(normal, light)));
    };
    Surface seen;

    const Vec3 to_center = ball_center - origin;
    const float along = ngp::dot(to_center, direction);
    const float half_chord2 = ball_radius * ball_radius - ngp::dot(to_center, to_center) + along * along;
    if (half_chord2 > 0 && along > 0) {
        seen.distance = along - std::sqrt(half_chord2);
        const Vec3 p = origin + direction * seen.distance;
        seen.color = shade({1.0f, 0.6f, 0.2f}, p, (p - ball_center) / ball_radius);
    }
    const Vec2 inside = ngp::intersect(box, origin, direction); // both FLT_MAX on a miss
    if (inside.y > 0 && inside.x < std::min(seen.distance, 1e3f)) {
        seen.distance = inside.x;
        const Vec3 p = origin + direction * inside.x, q = (p - box.center()) / (0.5f * box.diag().x); // faces at +-1
        Vec3 normal;
        for (int axis = 0; axis < 3; ++axis)
            if (std::fabs(q[axis]) == ngp::max_component(ngp::abs3(q))) normal[axis] = q[axis];
        seen.color = shade({0.3f, 0.6f, 1.0f}, p, normal);
    }
    return seen;
}

// --- cameras and images

// Camera-to-world matrix in OpenGL axes: its columns are right, up and back, which CameraMatrix, named after NGP's own
// axes, calls right, down and forward. The library converts.
ngp::CameraMatrix looking_at(Vec3 from, Vec3 at) {
    const Vec3 back = ngp::normalize(from - at), right = ngp::normalize(ngp::cross({0, 1, 0}, back));
    return {right, ngp::cross(back, right), back, from};
}

// Camera `i` of `n`, spread evenly over a sphere without its poles.
ngp::CameraMatrix camera_of(float i, float n) {
    const float height = 0.85f * (2 * (i + 0.5f) / n - 1), angle = 2.39996f * i,
                across = std::sqrt(1 - height * height);
    return looking_at(Vec3{across * std::cos(angle), height, across * std::sin(angle)} * 3.0f, {0, 0, 0});
}

ngp::CameraModel intrinsics(int size) {
    ngp::CameraModel model; // perspective, principal point in the middle
    model.width = model.height = size;
    model.focal = {1.6f * float(size), 1.6f * float(size)}; // pixels
    return model;
}

// What a camera sees through the middle of pixel (x, y), and `forward`, the part of its view axis in a step along that
// ray.
Surface look_through(const ngp::CameraMatrix& pose, const ngp::CameraModel& model, int x, int y,
                     float* forward = nullptr) {
    const Vec3 d =
        model.ray_direction({(float(x) + 0.5f) / float(model.width), (float(y) + 0.5f) / float(model.height)});
    const Vec3 direction = ngp::normalize(pose.rotate({d.x, -d.y, -d.z})); // y down, z forward -> y up, z back
    if (forward) *forward = -ngp::dot(direction, pose.forward);
    return look(pose.position, direction);
}

std::vector<uint8_t> photograph(const ngp::CameraMatrix& pose, const ngp::CameraModel& model) {
    std::vector<uint8_t> rgba(size_t(model.width) * size_t(model.height) * 4, 0); // sRGB, straight alpha
    for (int y = 0; y < model.height; ++y)
        for (int x = 0; x < model.width; ++x) {
            const Surface seen = look_through(pose, model, x, y);
            uint8_t* pixel = rgba.data() + 4 * (size_t(y) * size_t(model.width) + size_t(x));
            if (!std::isfinite(seen.distance)) continue; // transparent
            for (int c = 0; c < 3; ++c) pixel[c] = uint8_t(std::lround(255 * std::clamp(seen.color[c], 0.0f, 1.0f)));
            pixel[3] = 255;
        }
    return rgba;
}

// Peak signal-to-noise ratio over sRGB values on black; renderings are linear light, premultiplied by alpha.
double psnr(const ngp::ChannelImages& rendered, const std::vector<uint8_t>& photo) {
    double sum = 0;
    for (size_t i = 0; i < rendered.alpha.size(); ++i)
        for (size_t c = 0; c < 3; ++c) {
            const float value = std::clamp(ngp::linear_to_srgb(rendered.rgb[3 * i + c]), 0.0f, 1.0f);
            const float expected = float(photo[4 * i + c]) / 255 * float(photo[4 * i + 3]) / 255;
            sum += double(value - expected) * double(value - expected);
        }
    return -10 * std::log10(sum / double(3 * rendered.alpha.size()));
}

bool expect(bool holds, const char* what) {
    if (!holds) std::printf("UNEXPECTED: %s\n", what);
    return holds;
}

// A network smaller than the default one, for a small scene. Keys are those of instant-ngp's configurations.
const char* const small_network = R"({
  "loss": {"otype": "Huber"},
  "optimizer": {"otype": "Ema", "decay": 0.95, "nested": {"otype": "Adam", "learning_rate": 1e-2, "epsilon": 1e-15}},
  "encoding": {"otype": "HashGrid", "n_levels": 8, "n_features_per_level": 2, "log2_hashmap_size": 14},
  "network": {"otype": "FullyFusedMLP", "activation": "ReLU", "n_neurons": 32, "n_hidden_layers": 1},
  "dir_encoding": {"otype": "SphericalHarmonics", "degree": 4},
  "rgb_network": {"otype": "FullyFusedMLP", "activation": "ReLU", "n_neurons": 32, "n_hidden_layers": 1}
})";

bool run(const std::string& snapshot) {
    // Training data: images, which the dataset keeps alive through `owner`, and their cameras.
    constexpr int n_views = 24;
    const ngp::CameraModel model = intrinsics(64);
    ngp::NerfDataset dataset; // its record.world maps our cube [-1.5, 1.5]^3 onto the scene box
    for (int i = 0; i < n_views; ++i) {
        const ngp::CameraMatrix pose = camera_of(float(i), n_views);
        const auto pixels = std::make_shared<const std::vector<uint8_t>>(photograph(pose, model));
        const ngp::ImageView image{pixels->data(), ngp::PixelType::U8, 4, model.width, model.height};
        dataset.add_view("view " + std::to_string(i), pose, model, image, pixels);
    }

    ngp::Testbed testbed(ngp::TestbedMode::Nerf);
    testbed.set_dataset(std::move(dataset));
    testbed.reload_network_from_json(small_network, "small_network"); // the name is for error messages
    std::printf("training %lld parameters on %d views\n", (long long)testbed.n_params(), n_views);
    testbed.fit(500, std::nullopt, 1 << 14, [](const ngp::Testbed& t) { // or by time, or until this returns false
        if (t.training_step() % 100 == 0) std::printf("step %u: loss %.5f\n", t.training_step(), double(t.loss()));
        return true;
    });

    // A view from between the training cameras: colour, alpha and depth from one pass, in our units.
    const ngp::CameraMatrix pose = camera_of(11.5f, n_views);
    const ngp::ChannelImages view = testbed.render_channels(pose, model, {.normal = false});
    const double quality = psnr(view, photograph(pose, model));
    std::printf("held-out view: PSNR %.2f dB\n", quality);
    bool good = expect(quality > 26, "PSNR must be above 26 dB");

    double depth_error = 0;
    int n_depths = 0;
    for (int y = 0; y < model.height; ++y)
        for (int x = 0; x < model.width; ++x) {
            const size_t i = size_t(y) * size_t(model.width) + size_t(x);
            float forward = 0;
            const Surface seen = look_through(pose, model, x, y, &forward);
            if (!std::isfinite(seen.distance) || view.alpha[i] < 0.9f) continue;
            depth_error += std::fabs(view.depth[i] - seen.distance * forward); // along the view axis
            ++n_depths;
        }
    depth_error /= std::max(n_depths, 1);
    std::printf("mean depth error over %d pixels: %.4f\n", n_depths, depth_error);
    good &= expect(n_depths > 1000 && depth_error < 0.08, "surfaces must be where they are");

    // Density per unit of length: just under the ball's surface, in the air above it, and outside the scene box.
    const Vec3 points[] = {ball_center + Vec3{0, 0.95f * ball_radius, 0}, {-0.4f, 1.0f, 0}, {0, 5, 0}};
    const ngp::QueryResult query = testbed.query(points, nullptr, 3, /*occupancy=*/false);
    std::printf("density in the ball %.3g, in the air %.3g, outside %.3g\n", double(query.density[0]),
                double(query.density[1]), double(query.density[2]));
    good &= expect(query.density[0] > 20, "the ball must be dense");
    good &= expect(query.density[1] < 0.02f * query.density[0], "the air must be clear");
    good &= expect(query.density[2] == 0, "there must be nothing outside the scene box");

    // A snapshot holds the network, the cameras and the settings, but no images. Its parameters have 16 bits, so that
    // renderings agree to less than a step of 8 bits; with include_optimizer_state they would be the same.
    testbed.save_snapshot(snapshot);
    ngp::Testbed other;
    other.load_snapshot(snapshot);
    const ngp::ChannelImages again = other.render_channels(pose, model, {.normal = false});
    float difference = 0;
    for (size_t i = 0; i < view.rgb.size(); ++i)
        difference = std::max(difference, std::fabs(view.rgb[i] - again.rgb[i]));
    std::printf("loaded from %s: step %u, largest difference %.5f\n", snapshot.c_str(), other.training_step(),
                double(difference));
    good &= expect(other.training_step() == testbed.training_step(), "training steps must agree");
    good &= expect(difference < 1.0f / 255, "renderings must agree");
    return good;
}

int main(int argc, char** argv) {
    try {
        return run(argc > 1 ? argv[1] : "train_from_buffers.ingp") ? 0 : 1;
    } catch (const ngp::Error& e) { // wrong input: the message names the thing and the remedy
        std::fprintf(stderr, "error: %s\n", e.what());
    } catch (const std::exception& e) { // out of memory and the like
        std::fprintf(stderr, "error: %s\n", e.what());
    }
    return 1;
}
