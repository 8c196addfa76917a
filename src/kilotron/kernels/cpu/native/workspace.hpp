// Memory that outlives a call and is reused by the next.
#pragma once
#include <cstddef>

#include "memory.hpp"

namespace kilotron {

// One growing buffer per use, so that two uses in one call do not meet.
class Workspace {
  public:
    enum Use { kInput, kExpertIndex, kExpertInput, kExpertHidden, kExpertOutput, kPerThread, kPieces, kLayers, kNumUses };

    // At least so many bytes; what they held is lost when they grow.
    std::byte* reserve(Use use, size_t bytes);

  private:
    Buffer buffers_[kNumUses];
};

}  // namespace kilotron
