// Brings weights into panels.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <span>

#include "mapped_file.hpp"
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

// What a packed matrix is, apart from its numbers.
struct PackedShape {
    Format format;
    Activation activation;
    int64_t outputs;  // columns of the result
    int64_t inputs;
    int64_t num_groups;
    bool has_bias;
};

// A packed matrix and the memory it lives in, which is its own or part of a file.
class PackedMatrix {
  public:
    // `bias` is [outputs] in float32, or null. With a gate the first half of the outputs goes through the activation and
    // multiplies the second.
    static PackedMatrix pack(const PlainWeight& weight, const float* bias, const Activation& activation,
                             int threads);
    static PackedMatrix pack(const QuantizedWeight& weight, const float* bias, const Activation& activation,
                             int threads);

    // The one that `write_to` wrote at a place of a file; nothing where the file has no room for it there.
    static std::optional<PackedMatrix> map(std::shared_ptr<const MappedFile> file, int64_t offset,
                                           const PackedShape& shape);

    const Matrix& view() const { return view_; }
    int64_t bytes() const;

    // Appends the matrix to an open file; false with errno set where the system refuses.
    bool write_to(int file) const;
    // How much that is.
    int64_t stored_bytes() const;

  private:
    // The parts of the matrix in memory and in a file, each rounded up to whole lines there.
    enum Part { kPanels, kScales, kOffsets, kBias, kNumParts };
    using PartSizes = std::array<int64_t, kNumParts>;

    explicit PackedMatrix(const PackedShape& shape);
    PartSizes part_sizes() const;
    void allocate();
    // Lets the view point to the parts, of which each begins where this says.
    void look_at(const std::array<const std::byte*, kNumParts>& parts);
    // The stored output behind a lane of a panel, or -1 for padding.
    int64_t output_of(int64_t panel, int64_t lane) const;
    void set_bias(const float* bias);

    Matrix view_{};
    bool has_bias_;
    std::array<Buffer, kNumParts> buffers_;
    std::shared_ptr<const MappedFile> file_;
};

}  // namespace kilotron
