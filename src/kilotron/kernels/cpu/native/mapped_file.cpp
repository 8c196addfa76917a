#include "mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace kilotron {

MappedFile::MappedFile(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0) return;
    struct stat status;
    if (::fstat(file, &status) == 0 && status.st_size > 0) {
        void* mapping = ::mmap(nullptr, status.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (mapping != MAP_FAILED) {
            data_ = static_cast<const std::byte*>(mapping);
            size_ = status.st_size;
            // Larger pages, and what is not in memory yet from now on; refusals cost speed only.
            ::madvise(mapping, size_, MADV_HUGEPAGE);
            ::madvise(mapping, size_, MADV_WILLNEED);
        }
    } else {
        errno = EINVAL;
    }
    const int error = errno;
    ::close(file);
    errno = error;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace kilotron
