#include "memory.cuh"

#include "shared_memory.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {
constexpr int64_t most_idle_shared = 256 << 20;
}

Context::Context(int device, int64_t max_bytes, int max_shared_bytes)
    : device_(device), max_bytes_(max_bytes),
      shared_(std::make_shared<BlockPool>(BlockPool::Kind::Device, device, most_idle_shared)) {
    DeviceGuard guard(device);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "device attribute");
    check(cudaDeviceGetAttribute(&device_shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "device attribute");
    max_shared_bytes_ = max_shared_bytes > 0 ? std::min(device_shared_bytes_, max_shared_bytes) : device_shared_bytes_;
}

Context::~Context() {
    if (stream_) cudaStreamDestroy(stream_);
    shared_->trim(); // what is in use keeps the pool
}

int64_t Context::bytes() const { return bytes_ + shared_->bytes(); }

int64_t Context::available() const {
    DeviceGuard guard(device_);
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "free memory");
    return max_bytes_ > 0 ? std::min<int64_t>(int64_t(free), std::max<int64_t>(0, max_bytes_ - bytes()))
                          : int64_t(free);
}

void* Context::allocate(int64_t bytes, const char* what) {
    DeviceGuard guard(device_);
    const auto attempt = [&](void** p) {
        if (!allowed(bytes)) return cudaErrorMemoryAllocation;
        const cudaError_t status = cudaMalloc(p, size_t(bytes));
        if (status == cudaErrorMemoryAllocation) cudaGetLastError(); // must not meet the next caller
        return status;
    };
    void* p = nullptr;
    cudaError_t status = attempt(&p);
    if (status == cudaErrorMemoryAllocation && shared_->trim() > 0) status = attempt(&p);
    if (status == cudaErrorMemoryAllocation) fail_for_memory(bytes, what);
    check(status, "allocating ", bytes, " bytes for ", what);
    bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, this->bytes());
    return p;
}

std::shared_ptr<SharedMemory> Context::share(int64_t bytes, const char* what) {
    DeviceGuard guard(device_);
    std::shared_ptr<SharedMemory> block = allowed(bytes) ? shared_->allocate(bytes, stream_) : nullptr;
    if (!block && shared_->trim() > 0 && allowed(bytes)) block = shared_->allocate(bytes, stream_);
    if (!block) fail_for_memory(bytes, what);
    peak_bytes_ = std::max(peak_bytes_, this->bytes());
    return block;
}

void Context::fail_for_memory(int64_t bytes, const char* what) const {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    constexpr int64_t mib = 1 << 20;
    const auto in_mib = [](int64_t b) { return (b + mib - 1) / mib; };
    if (!allowed(bytes))
        fail("device memory: ", what, " needs ", in_mib(bytes), " MiB, but max_device_bytes allows ",
             in_mib(max_bytes_), " MiB, of which ", in_mib(this->bytes()),
             " are in use; raise it, or use fewer or smaller images, a smaller network or batch");
    fail("device memory: ", what, " needs ", in_mib(bytes), " MiB, but of the device's ", in_mib(int64_t(total)),
         " MiB only ", in_mib(int64_t(free)), " are free (this Testbed holds ", in_mib(this->bytes()),
         "); close other programs, or use fewer or smaller images, a smaller network or batch");
}

void Context::release(void* p, int64_t bytes) noexcept {
    cudaFree(p); // waits for work that uses it
    bytes_ -= bytes;
}

} // namespace ngp::cuda
