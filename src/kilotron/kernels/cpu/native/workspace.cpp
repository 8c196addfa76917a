#include "workspace.hpp"

namespace kilotron {

std::byte* Workspace::reserve(Use use, size_t bytes) {
    if (buffers_[use].size() < bytes) {
        buffers_[use] = Buffer();
        buffers_[use] = Buffer(bytes + bytes / 4);
    }
    buffers_[use].guard_beyond(bytes);
    return buffers_[use].data();
}

}  // namespace kilotron
