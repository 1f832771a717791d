#include "shared_memory.cuh"

#include "for_each.cuh"

#include <algorithm>
#include <map>
#include <unistd.h>

namespace ngp::cuda {

namespace {

constexpr int64_t granularity = 4096;           // of blocks
constexpr int64_t least_page_locked = 64 << 10; // copies of less are fast enough without
constexpr int64_t most_idle_page_locked = 512 << 20;

// Makes a device current where nothing may be raised.
class QuietDeviceGuard {
  public:
    explicit QuietDeviceGuard(int device) {
        known_ = cudaGetDevice(&previous_) == cudaSuccess;
        if (known_ && previous_ != device)
            cudaSetDevice(device);
        else
            known_ = false; // nothing to restore
    }
    ~QuietDeviceGuard() {
        if (known_) cudaSetDevice(previous_);
    }
    QuietDeviceGuard(const QuietDeviceGuard&) = delete;

  private:
    int previous_ = 0;
    bool known_ = false;
};

// Page-locked memory can't be swapped out, so that the system must keep enough of the other kind.
int64_t most_page_locked() {
    const int64_t physical = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGE_SIZE));
    return std::min<int64_t>(physical / 4, int64_t(4) << 30);
}
std::atomic<int64_t> page_locked_bytes{0}; // of this process

struct FindNotFinite {
    const float* values;
    int* found;

    __device__ void operator()(int64_t i) const {
        if (!isfinite(values[i])) *found = 1; // all threads write the same
    }
};

} // namespace

class BlockPool::Block final : public SharedMemory {
  public:
    Block(std::shared_ptr<BlockPool> pool, void* data, int64_t bytes)
        : SharedMemory(data, bytes, pool->kind_ == Kind::Device ? pool->device_ : host_memory), pool_(std::move(pool)) {
    }
    ~Block() override { pool_->release(data(), bytes(), users()); }

  private:
    std::shared_ptr<BlockPool> pool_;
};

BlockPool::~BlockPool() { trim(); }

std::shared_ptr<SharedMemory> BlockPool::allocate(int64_t bytes, cudaStream_t stream) {
    const DeviceGuard guard(device_);
    bytes = std::max<int64_t>(1, (bytes + granularity - 1) / granularity) * granularity;
    Idle block{};
    {
        const std::lock_guard lock(mutex_);
        auto best = idle_.end(); // the smallest, and of those the one released last
        for (auto i = idle_.begin(); i != idle_.end(); ++i)
            if (i->bytes >= bytes && i->bytes <= bytes + bytes / 4 && (best == idle_.end() || i->bytes <= best->bytes))
                best = i;
        if (best != idle_.end()) {
            block = *best;
            idle_bytes_ -= block.bytes;
            idle_.erase(best);
        }
    }
    if (block.data && block.done) {
        const cudaError_t status = cudaStreamWaitEvent(stream, block.done, 0);
        cudaEventDestroy(block.done);
        block.done = nullptr;
        if (status != cudaSuccess) {
            cudaGetLastError();
            free(block);
            block = {};
        }
    }
    if (!block.data) {
        block = {allocate_block(bytes), bytes, nullptr};
        if (!block.data && trim() > 0) block.data = allocate_block(bytes);
        if (!block.data) return nullptr;
    }
    try {
        return std::make_shared<Block>(shared_from_this(), block.data, block.bytes);
    } catch (...) {
        free(block);
        throw;
    }
}

void* BlockPool::allocate_block(int64_t bytes) {
    void* p = nullptr;
    if (kind_ == Kind::PageLocked && page_locked_bytes + bytes > most_page_locked()) return nullptr;
    const cudaError_t status =
        kind_ == Kind::Device ? cudaMalloc(&p, size_t(bytes)) : cudaHostAlloc(&p, size_t(bytes), cudaHostAllocPortable);
    if (status != cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    bytes_ += bytes;
    if (kind_ == Kind::PageLocked) page_locked_bytes += bytes;
    return p;
}

void BlockPool::release(void* data, int64_t bytes, SharedMemory::Users users) noexcept {
    const QuietDeviceGuard guard(device_);
    Idle block{data, bytes, nullptr};
    if (users == SharedMemory::Users::DefaultStream &&
        (cudaEventCreateWithFlags(&block.done, cudaEventDisableTiming) != cudaSuccess ||
         cudaEventRecord(block.done, cudaStreamLegacy) != cudaSuccess)) {
        cudaGetLastError();
        users = SharedMemory::Users::Anyone;
    }
    std::list<Idle> leaving;
    try {
        if (users == SharedMemory::Users::Anyone || bytes > max_idle_) {
            leaving.push_back(block);
        } else {
            const std::lock_guard lock(mutex_);
            idle_.push_back(block);
            idle_bytes_ += bytes;
            while (idle_bytes_ > max_idle_) {
                idle_bytes_ -= idle_.front().bytes;
                leaving.splice(leaving.end(), idle_, idle_.begin());
            }
        }
    } catch (...) { // no memory for the list
        free(block);
    }
    for (const Idle& b : leaving) free(b);
}

void BlockPool::free(const Idle& block) noexcept {
    if (block.done) cudaEventDestroy(block.done);
    if (kind_ == Kind::Device)
        cudaFree(block.data);
    else
        cudaFreeHost(block.data);
    cudaGetLastError(); // when the process ends, the driver may be gone before us
    bytes_ -= block.bytes;
    if (kind_ == Kind::PageLocked) page_locked_bytes -= block.bytes;
}

int64_t BlockPool::trim() noexcept {
    std::list<Idle> leaving;
    {
        const std::lock_guard lock(mutex_);
        leaving.swap(idle_);
        idle_bytes_ = 0;
    }
    if (leaving.empty()) return 0;
    const QuietDeviceGuard guard(device_);
    int64_t bytes = 0;
    for (const Idle& b : leaving) {
        bytes += b.bytes;
        free(b);
    }
    return bytes;
}

std::shared_ptr<SharedMemory> allocate_for_host(int device, int64_t bytes, cudaStream_t stream) {
    // Never destroyed: arrays of a Python process may live until after the driver is gone.
    static auto& pools = *new std::map<int, std::shared_ptr<BlockPool>>;
    static std::mutex& mutex = *new std::mutex;
    if (bytes < least_page_locked) return allocate_host_memory(bytes);
    std::shared_ptr<BlockPool> pool;
    {
        const std::lock_guard lock(mutex);
        std::shared_ptr<BlockPool>& known = pools[device];
        if (!known) known = std::make_shared<BlockPool>(BlockPool::Kind::PageLocked, device, most_idle_page_locked);
        pool = known;
    }
    auto block = pool->allocate(bytes, stream);
    return block ? block : allocate_host_memory(bytes);
}

void wait_for(cudaStream_t stream, cudaStream_t other) {
    cudaEvent_t event;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
    cudaError_t status = cudaEventRecord(event, other);
    if (status == cudaSuccess) status = cudaStreamWaitEvent(stream, event, 0);
    cudaEventDestroy(event); // when it is done
    check(status, "waiting for the stream in which an argument is written");
}

bool all_finite(Context& context, const float* values, int64_t n) {
    DeviceArray<int> found(context, 1, "a check for finite values");
    found.zero();
    for_each(context.stream(), n, FindNotFinite{values, found.data()});
    return found.download()[0] == 0;
}

} // namespace ngp::cuda

namespace ngp {

int cuda_device_of_pointer(const void* p, int preferred) {
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, p) != cudaSuccess) {
        cudaGetLastError();
        return host_memory;
    }
    if (attributes.type == cudaMemoryTypeManaged) return preferred;
    return attributes.type == cudaMemoryTypeDevice ? attributes.device : host_memory;
}

std::shared_ptr<SharedMemory> copy_to_host(const void* from, int64_t bytes, int device) {
    using namespace cuda;
    const DeviceGuard guard(device);
    auto to = allocate_for_host(device, bytes, cudaStreamLegacy);
    if (bytes > 0) check(cudaMemcpy(to->data(), from, size_t(bytes), cudaMemcpyDeviceToHost), "copy from the device");
    return to;
}

} // namespace ngp
