// Arrays that results are handed out in. Copies share their memory, which may outlive what made it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace ngp {

// Where arguments and results lie: in the host's memory, or in that of a Testbed's own device, if it has any.
enum class Placement : uint8_t { Host, Device };

constexpr int host_memory = -1; // in place of a device's number

class SharedMemory {
  public:
    // Whose work may still use the memory when its last owner lets go: nobody's, that of CUDA's legacy default stream,
    // or anyone's. Memory of CUDA is not reused or freed before that work is done.
    enum class Users : uint8_t { None, DefaultStream, Anyone };

    SharedMemory(void* data, int64_t bytes, int device) : data_(data), bytes_(bytes), device_(device) {}
    SharedMemory(const SharedMemory&) = delete;
    virtual ~SharedMemory() = default;

    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }
    int device() const { return device_; } // or host_memory
    Users users() const { return users_; }
    void add_users(Users users) {
        for (Users known = users_; known < users && !users_.compare_exchange_weak(known, users);) {
        }
    }

  private:
    void* data_;
    int64_t bytes_;
    int device_;
    std::atomic<Users> users_{Users::None};
};

// Plain memory of the host, not initialised. Raises std::bad_alloc.
std::shared_ptr<SharedMemory> allocate_host_memory(int64_t bytes);

// Floats in shared memory.
class SharedArray {
  public:
    SharedArray() = default;
    SharedArray(std::shared_ptr<SharedMemory> memory, size_t size) : memory_(std::move(memory)), size_(size) {}

    // On a device: for its kernels and copies only.
    float* data() const { return memory_ ? static_cast<float*>(memory_->data()) : nullptr; }
    size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    int device() const { return memory_ ? memory_->device() : host_memory; }
    const std::shared_ptr<SharedMemory>& memory() const { return memory_; }

    // In host memory.
    float* begin() const { return data(); }
    float* end() const { return data() + size_; }
    float& operator[](size_t i) const { return data()[i]; }

  private:
    std::shared_ptr<SharedMemory> memory_;
    size_t size_ = 0;
};

// --- memory of CUDA devices; builds without CUDA have none

// Number of the device that the memory at `p` belongs to, or host_memory. Memory that the driver moves between devices
// counts as that of `preferred`.
int cuda_device_of_pointer(const void* p, int preferred);

// Copies from memory of a device into that of the host, after the work in the legacy default stream; page-locked where
// possible. Raises ngp::Error.
std::shared_ptr<SharedMemory> copy_to_host(const void* from, int64_t bytes, int device);

} // namespace ngp
