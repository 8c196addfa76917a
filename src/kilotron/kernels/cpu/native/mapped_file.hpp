// A file that lies in memory, read only: its pages are the system's, shared by all who map it.
#pragma once
#include <cstddef>
#include <string>

namespace kilotron {

class MappedFile {
  public:
    // Where that fails, `data` is null and errno says why. The file must not shrink while it is mapped.
    explicit MappedFile(const std::string& path);
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile();

    const std::byte* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace kilotron
