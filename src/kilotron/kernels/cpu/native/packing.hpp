// Brings weights into panels.
#pragma once
#include <vector>

#include "memory.hpp"
#include "types.hpp"

namespace kilotron {

// A weight as it was stored: [outputs][inputs], rows `stride` elements apart.
struct PlainWeight {
    const void* data;
    DType dtype;
    int64_t outputs, inputs, stride;
};

// A weight as small whole numbers, all arrays contiguous: values [outputs][inputs], scales and zeros [outputs][groups].
struct QuantizedWeight {
    const int8_t* values;
    const float* scales;
    const int8_t* zeros;
    int64_t outputs, inputs, groups;
    int bits;
};

// A packed matrix and the memory it lives in.
class PackedMatrix {
  public:
    // `bias` is [outputs] in float32, or null. With a gate the first half of the outputs goes through the activation and
    // multiplies the second.
    static PackedMatrix pack(const PlainWeight& weight, const float* bias, Activation activation, bool is_gated,
                             int threads);
    static PackedMatrix pack(const QuantizedWeight& weight, const float* bias, Activation activation, bool is_gated,
                             int threads);

    const Matrix& view() const { return view_; }
    int64_t bytes() const { return static_cast<int64_t>(panels_.size() + scales_.size() + offsets_.size()); }

  private:
    PackedMatrix(Format format, int64_t outputs, int64_t inputs, Activation activation, bool is_gated);
    // The stored output behind a lane of a panel, or -1 for padding.
    int64_t output_of(int64_t panel, int64_t lane) const;
    void set_bias(const float* bias);

    Matrix view_{};
    Buffer panels_, bias_, scales_, offsets_;
};

}  // namespace kilotron
