#include "images.cuh"

#include <cstring>
#include <ngp/core/parallel.h>

namespace ngp::cuda {

namespace {

constexpr int64_t alignment = 256;

int64_t bytes_of(const ImageView& image) {
    return int64_t(image.width) * image.height * image.channels * (image.type == PixelType::U8 ? 1 : 4);
}

} // namespace

DeviceImages::DeviceImages(Context& context, const std::vector<TrainingView>& views, int64_t budget) {
    std::vector<int64_t> begin;
    int64_t total = 0;
    std::vector<size_t> on_host; // the others are where they are needed
    for (size_t i = 0; i < views.size(); ++i) {
        begin.push_back(total);
        if (views[i].image.device != host_memory) continue;
        on_host.push_back(i);
        total += (bytes_of(views[i].image) + alignment - 1) / alignment * alignment;
    }
    if (views.empty()) return;
    on_device_ = total <= budget;
    uint8_t* base;
    if (on_device_) {
        pixels_ = {context, total, "training images"};
        base = pixels_.data();
        for (const size_t i : on_host)
            pixels_.upload(static_cast<const uint8_t*>(views[i].image.pixels), bytes_of(views[i].image), begin[i]);
    } else {
        pinned_ = PinnedArray<uint8_t>(total);
        base = pinned_.data();
        parallel_for(int64_t(on_host.size()), [&](int64_t k, int) {
            const size_t i = on_host[size_t(k)];
            std::memcpy(base + begin[i], views[i].image.pixels, size_t(bytes_of(views[i].image)));
        });
    }
    given_ = views;
    for (const size_t i : on_host) given_[i].image.pixels = base + begin[i];
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
