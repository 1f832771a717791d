#include "memory.cuh"

#include <algorithm>

namespace ngp::cuda {

Context::Context(int device, int64_t max_bytes) : device_(device), max_bytes_(max_bytes) {
    DeviceGuard guard(device);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "device attribute");
}

Context::~Context() {
    if (stream_) cudaStreamDestroy(stream_);
}

int64_t Context::available() const {
    DeviceGuard guard(device_);
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "free memory");
    return max_bytes_ > 0 ? std::min<int64_t>(int64_t(free), std::max<int64_t>(0, max_bytes_ - bytes_)) : int64_t(free);
}

void* Context::allocate(int64_t bytes, const char* what) {
    DeviceGuard guard(device_);
    void* p = nullptr;
    const bool allowed = max_bytes_ == 0 || bytes_ + bytes <= max_bytes_;
    const cudaError_t status = allowed ? cudaMalloc(&p, size_t(bytes)) : cudaErrorMemoryAllocation;
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        constexpr int64_t mib = 1 << 20;
        const auto in_mib = [](int64_t b) { return (b + mib - 1) / mib; };
        if (!allowed)
            fail("device memory: ", what, " needs ", in_mib(bytes), " MiB, but max_device_bytes allows ",
                 in_mib(max_bytes_), " MiB, of which ", in_mib(bytes_),
                 " are in use; raise it, or use fewer or smaller images, a smaller network or batch");
        fail("device memory: ", what, " needs ", in_mib(bytes), " MiB, but of the device's ", in_mib(int64_t(total)),
             " MiB only ", in_mib(int64_t(free)), " are free (this Testbed holds ", in_mib(bytes_),
             "); close other programs, or use fewer or smaller images, a smaller network or batch");
    }
    check(status, "allocating ", bytes, " bytes for ", what);
    bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, bytes_);
    return p;
}

void Context::release(void* p, int64_t bytes) noexcept {
    cudaFree(p); // waits for work that uses it
    bytes_ -= bytes;
}

} // namespace ngp::cuda
