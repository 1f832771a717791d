// Memory and streams of one device. Nothing here is global: an engine owns its context, its stream and its buffers.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>
#include <memory>
#include <ngp/core/check.h>
#include <ngp/core/memory.h>
#include <utility>
#include <vector>

namespace ngp::cuda {

// Raises ngp::Error if a call of the CUDA runtime failed; `what` says which.
template <typename... Parts>
void check(cudaError_t status, const Parts&... what) {
    if (status == cudaSuccess) return;
    cudaGetLastError(); // an error that is not sticky must not meet the next caller
    fail("CUDA: ", what..., ": ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ")");
}

// Makes a device current for the calling thread while it lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "current device");
        if (previous_ != device) check(cudaSetDevice(device), "device ", device);
    }
    ~DeviceGuard() { cudaSetDevice(previous_); }
    DeviceGuard(const DeviceGuard&) = delete;

  private:
    int previous_ = 0;
};

class BlockPool; // shared_memory.cuh

// A device with a stream, and the account of what is allocated on it. Buffers keep a pointer to it.
class Context {
  public:
    // `max_bytes` 0: no limit but the device's.
    explicit Context(int device, int64_t max_bytes = 0, int max_shared_bytes = 0);
    ~Context();
    Context(const Context&) = delete;

    int device() const { return device_; }
    cudaStream_t stream() const { return stream_; }
    int multiprocessors() const { return multiprocessors_; }
    int max_shared_bytes() const { return max_shared_bytes_; }       // of a block
    int device_shared_bytes() const { return device_shared_bytes_; } // ... as the device has it
    int64_t bytes() const;                                           // allocated now, shared memory included
    int64_t peak_bytes() const { return peak_bytes_; }
    // Bytes that can still be allocated.
    int64_t available() const;
    void wait() const { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

    // Raises ngp::Error with the numbers if there is not enough; `what` names the purpose.
    void* allocate(int64_t bytes, const char* what);
    void release(void* p, int64_t bytes) noexcept;
    // Memory that may outlive the context, for work in its stream.
    std::shared_ptr<SharedMemory> share(int64_t bytes, const char* what);

  private:
    bool allowed(int64_t bytes) const { return max_bytes_ == 0 || this->bytes() + bytes <= max_bytes_; }
    [[noreturn]] void fail_for_memory(int64_t bytes, const char* what) const;

    int device_;
    int64_t max_bytes_;
    std::shared_ptr<BlockPool> shared_;
    cudaStream_t stream_ = nullptr;
    int multiprocessors_ = 0, max_shared_bytes_ = 0, device_shared_bytes_ = 0;
    int64_t bytes_ = 0, peak_bytes_ = 0;
};

// An array on the device; not initialised.
template <typename T>
class DeviceArray {
  public:
    DeviceArray() = default;
    DeviceArray(Context& context, int64_t size, const char* what) : context_(&context), size_(size) {
        if (size > 0) data_ = static_cast<T*>(context.allocate(size * int64_t(sizeof(T)), what));
    }
    DeviceArray(DeviceArray&& o) noexcept { swap(o); }
    DeviceArray& operator=(DeviceArray&& o) noexcept {
        DeviceArray taken(std::move(o));
        swap(taken);
        return *this;
    }
    ~DeviceArray() {
        if (data_) context_->release(data_, bytes());
    }

    // Room for `size` elements at least. If there was not, what was there is lost: its memory may serve.
    void reserve(Context& context, int64_t size, const char* what) {
        if (size_ >= size) return;
        *this = {};
        *this = DeviceArray(context, size, what);
    }

    T* data() const { return data_; }
    int64_t size() const { return size_; }
    int64_t bytes() const { return size_ * int64_t(sizeof(T)); }

    // Asynchronous, in the context's stream.
    void zero() {
        if (data_) check(cudaMemsetAsync(data_, 0, size_t(bytes()), context_->stream()), "memset");
    }
    // From host memory; returns when `from` may be reused.
    void upload(const T* from, int64_t n, int64_t at = 0) {
        NGP_CHECK_LE(at + n, size_);
        if (n > 0)
            check(cudaMemcpyAsync(data_ + at, from, size_t(n) * sizeof(T), cudaMemcpyHostToDevice, context_->stream()),
                  "copy to the device");
        context_->wait();
    }
    void upload(const std::vector<T>& from) { upload(from.data(), int64_t(from.size())); }
    void download(T* to, int64_t n, int64_t at = 0) const {
        NGP_CHECK_LE(at + n, size_);
        if (n > 0)
            check(cudaMemcpyAsync(to, data_ + at, size_t(n) * sizeof(T), cudaMemcpyDeviceToHost, context_->stream()),
                  "copy from the device");
        context_->wait();
    }
    std::vector<T> download() const {
        std::vector<T> v(static_cast<size_t>(size_));
        download(v.data(), size_);
        return v;
    }

  private:
    void swap(DeviceArray& o) noexcept {
        std::swap(context_, o.context_);
        std::swap(data_, o.data_);
        std::swap(size_, o.size_);
    }

    Context* context_ = nullptr;
    T* data_ = nullptr;
    int64_t size_ = 0;
};

// Page-locked host memory that the device can read and write in place.
template <typename T>
class PinnedArray {
  public:
    PinnedArray() = default;
    explicit PinnedArray(int64_t size) : size_(size) {
        if (size > 0)
            check(cudaHostAlloc(reinterpret_cast<void**>(&data_), size_t(size) * sizeof(T), cudaHostAllocMapped),
                  "page-locked host memory of ", size * int64_t(sizeof(T)), " bytes");
    }
    PinnedArray(PinnedArray&& o) noexcept : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
    PinnedArray& operator=(PinnedArray&& o) noexcept {
        std::swap(data_, o.data_);
        std::swap(size_, o.size_);
        return *this;
    }
    ~PinnedArray() {
        if (data_) cudaFreeHost(data_);
    }

    T* data() const { return data_; } // valid on both sides: unified addressing
    int64_t size() const { return size_; }

  private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

} // namespace ngp::cuda
