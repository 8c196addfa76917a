// Aligned memory, on huge pages where it is large and the system grants them.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace kilotron {

// Zeroed memory, aligned to 2 MiB when it is at least that large and to 64 bytes otherwise. Owned; moves, never copies.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t bytes) {
        if (bytes == 0) return;
        const size_t alignment = bytes >= kHugePage ? kHugePage : kPage;
        mapped_bytes_ = bytes + alignment;
        mapping_ = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mapping_ == MAP_FAILED) {
            mapping_ = nullptr;
            throw std::bad_alloc();
        }
        const auto address = (reinterpret_cast<uintptr_t>(mapping_) + alignment - 1) / alignment * alignment;
        data_ = reinterpret_cast<std::byte*>(address);
        bytes_ = bytes;
        guard_beyond(bytes);
        if (bytes >= kHugePage) ::madvise(data_, bytes, MADV_HUGEPAGE);  // a refusal costs speed only
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (mapping_ == nullptr) return;
#ifdef __SANITIZE_ADDRESS__
        ASAN_UNPOISON_MEMORY_REGION(mapping_, mapped_bytes_);
#endif
        ::munmap(mapping_, mapped_bytes_);
    }

    // Sanitized builds: whoever touches what lies before the first byte or behind so many is caught, as in the heap.
    void guard_beyond([[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
        ASAN_POISON_MEMORY_REGION(mapping_, mapped_bytes_);
        ASAN_UNPOISON_MEMORY_REGION(data_, bytes);
#endif
    }

    std::byte* data() const { return data_; }
    size_t size() const { return bytes_; }

  private:
    static constexpr size_t kHugePage = size_t{1} << 21;
    static constexpr size_t kPage = 4096;

    void swap(Buffer& other) noexcept {
        std::swap(mapping_, other.mapping_);
        std::swap(mapped_bytes_, other.mapped_bytes_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    void* mapping_ = nullptr;
    size_t mapped_bytes_ = 0;
    std::byte* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace kilotron
