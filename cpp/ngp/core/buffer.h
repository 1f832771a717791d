// Cache-line aligned arrays. Large ones ask for huge pages: tables are read at random, and a translation miss costs as
// much as a cache miss.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ngp {

template <typename T>
struct CacheAlignedAllocator {
    using value_type = T;
    CacheAlignedAllocator() = default;
    template <typename U>
    CacheAlignedAllocator(const CacheAlignedAllocator<U>&) {}
    T* allocate(size_t n) {
        void* p = ::operator new(n * sizeof(T), alignment(n));
#if defined(__linux__)
        if (n * sizeof(T) >= huge_page) madvise(p, n * sizeof(T), MADV_HUGEPAGE);
#endif
        return static_cast<T*>(p);
    }
    void deallocate(T* p, size_t n) { ::operator delete(p, alignment(n)); }
    template <typename U>
    bool operator==(const CacheAlignedAllocator<U>&) const {
        return true;
    }

  private:
    static constexpr size_t huge_page = size_t(2) << 20;
    static std::align_val_t alignment(size_t n) {
        return std::align_val_t(n * sizeof(T) >= huge_page ? huge_page : 64);
    }
};

template <typename T>
using AlignedVector = std::vector<T, CacheAlignedAllocator<T>>;

} // namespace ngp
