#include <ngp/core/buffer.h>
#include <ngp/core/check.h>
#include <ngp/core/memory.h>

namespace ngp {

namespace {

class PlainMemory final : public SharedMemory {
  public:
    explicit PlainMemory(int64_t bytes) : SharedMemory(allocator().allocate(size_t(bytes)), bytes, host_memory) {}
    ~PlainMemory() override { allocator().deallocate(static_cast<char*>(data()), size_t(bytes())); }

  private:
    static CacheAlignedAllocator<char> allocator() { return {}; }
};

} // namespace

std::shared_ptr<SharedMemory> allocate_host_memory(int64_t bytes) { return std::make_shared<PlainMemory>(bytes); }

#if !defined(NGP_HAVE_CUDA) // else in cuda/shared_memory.cu
int cuda_device_of_pointer(const void*, int) { return host_memory; }

std::shared_ptr<SharedMemory> copy_to_host(const void*, int64_t, int) {
    fail("this build has no CUDA engine, so that nothing lies on a device");
}
#endif

} // namespace ngp
