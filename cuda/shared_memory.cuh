// Memory of results: it may outlive the engine that made it, and other libraries may read it in streams of their own.
#pragma once

#include "memory.cuh"

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <ngp/core/memory.h>

namespace ngp::cuda {

// Blocks of one kind of memory of one device. Allocating and freeing them takes milliseconds, so released ones are kept
// for the next that is as large or a little smaller: up to `max_idle` bytes of them, the longest idle ones go first.
// Blocks keep their pool alive.
//
// What may still use a block when it is released (SharedMemory::Users) decides what happens to it: an event says when
// the default stream is done with it, and for the streams of which we know nothing it is freed, since the driver waits
// for all work on the device when it frees.
class BlockPool : public std::enable_shared_from_this<BlockPool> {
  public:
    enum class Kind { PageLocked, Device };

    BlockPool(Kind kind, int device, int64_t max_idle) : kind_(kind), device_(device), max_idle_(max_idle) {}
    ~BlockPool();
    BlockPool(const BlockPool&) = delete;

    // Not initialised; for work in `stream` and what follows it. Null if there is no memory.
    std::shared_ptr<SharedMemory> allocate(int64_t bytes, cudaStream_t stream);
    int64_t bytes() const { return bytes_; } // in use and idle
    // Frees idle blocks; returns their bytes.
    int64_t trim() noexcept;

  private:
    struct Idle {
        void* data;
        int64_t bytes;
        cudaEvent_t done; // null: nothing to wait for
    };
    class Block;

    void* allocate_block(int64_t bytes);
    void release(void* data, int64_t bytes, SharedMemory::Users users) noexcept;
    void free(const Idle& block) noexcept;

    Kind kind_;
    int device_;
    int64_t max_idle_;
    std::atomic<int64_t> bytes_{0};
    std::mutex mutex_;
    std::list<Idle> idle_; // longest idle first
    int64_t idle_bytes_ = 0;
};

// Memory of the host for results that are copied from the device in `stream`: page-locked from a pool that the process
// has for each device; plain if it is small, or if much page-locked memory is in use.
std::shared_ptr<SharedMemory> allocate_for_host(int device, int64_t bytes, cudaStream_t stream);

// Makes `stream` wait for what was put into another stream of the current device.
void wait_for(cudaStream_t stream, cudaStream_t other);

// Whether n floats are finite. Waits.
bool all_finite(Context& context, const float* values, int64_t n);

} // namespace ngp::cuda
