#include "images.cuh"

#include <cstring>
#include <ngp/core/parallel.h>

namespace ngp::cuda {

namespace {

constexpr int64_t alignment = 256;

int64_t aligned(int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

// Pixels that are on a device are where they are needed; what lies beside them is in host memory in any case.
bool stays(const ImageView& image, bool holds_pixels) { return holds_pixels && image.device != host_memory; }

} // namespace

DeviceImages::DeviceImages(Context& context, const std::vector<TrainingView>& views, int64_t budget) {
    given_ = views;
    struct Move {
        const void* from;
        int64_t bytes, at;
    };
    std::vector<Move> moves;
    int64_t total = 0;
    for (TrainingView& view : given_)
        for_each_plane(view.image, [&](const void* data, int64_t bytes, bool holds_pixels) {
            if (stays(view.image, holds_pixels)) return data;
            moves.push_back({data, bytes, total});
            total += aligned(bytes);
            return data;
        });
    if (views.empty()) return;
    on_device_ = total <= budget;
    uint8_t* base;
    if (on_device_) {
        pixels_ = {context, total, "training images"};
        base = pixels_.data();
        for (const Move& m : moves) pixels_.upload(static_cast<const uint8_t*>(m.from), m.bytes, m.at);
    } else {
        pinned_ = PinnedArray<uint8_t>(total);
        base = pinned_.data();
        parallel_for(int64_t(moves.size()), [&](int64_t k, int) {
            const Move& m = moves[size_t(k)];
            std::memcpy(base + m.at, m.from, size_t(m.bytes));
        });
    }
    size_t next = 0;
    for (TrainingView& view : given_)
        for_each_plane(view.image, [&](const void* data, int64_t, bool holds_pixels) -> const void* {
            return stays(view.image, holds_pixels) ? data : base + moves[next++].at;
        });
    views_ = {context, int64_t(given_.size()), "training views"};
    views_.upload(given_);
}

void DeviceImages::set_cameras(const CameraCorrections& corrections) {
    if (given_.empty()) return;
    std::vector<TrainingView> views = given_;
    for (size_t i = 0; i < views.size(); ++i) views[i] = corrected(corrections, i, views[i]);
    views_.upload(views);
}

} // namespace ngp::cuda
