#include "packing.hpp"

#include <omp.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace kilotron {

namespace {

// 16 rows of 32-bit units, transposed: `result` [units][16]. A null row reads as zeros.
void transpose_units(const uint32_t* const* rows, int64_t units, uint32_t* result) {
    for (int64_t first = 0; first < units; first += 16) {
        const int64_t last = first + 16 < units ? first + 16 : units;
        for (int lane = 0; lane < kPanel; lane++) {
            const uint32_t* row = rows[lane];
            for (int64_t unit = first; unit < last; unit++) {
                uint32_t value = 0;
                if (row != nullptr) std::memcpy(&value, row + unit, sizeof(value));
                result[unit * kPanel + lane] = value;
            }
        }
    }
}

// The same of single 16-bit units.
void transpose_halves(const uint16_t* const* rows, int64_t units, uint16_t* result) {
    for (int64_t unit = 0; unit < units; unit++)
        for (int lane = 0; lane < kPanel; lane++) result[unit * kPanel + lane] = rows[lane] ? rows[lane][unit] : 0;
}

constexpr int64_t kLine = 64;  // of the cache: tiles are read by lines

bool write_all(int file, const void* data, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
        const ssize_t written = ::write(file, static_cast<const std::byte*>(data) + done, bytes - done);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return false;
        done += written;
    }
    return true;
}

}  // namespace

PackedMatrix::PackedMatrix(const PackedShape& shape) : has_bias_(shape.has_bias) {
    view_.format = shape.format;
    view_.activation = shape.activation;
    view_.inputs = shape.inputs;
    view_.padded_inputs = round_up(shape.inputs, kInputs);
    view_.outputs = shape.outputs;
    view_.num_panels = divide_up(shape.outputs, kPanel) * (shape.activation.is_gated ? 2 : 1);
    view_.num_groups = shape.num_groups;
    view_.group_size = shape.num_groups > 1 ? shape.inputs / shape.num_groups : view_.padded_inputs;
}

PackedMatrix::PartSizes PackedMatrix::part_sizes() const {
    const bool has_scales = view_.format == Format::i8 || view_.format == Format::i4;
    const int64_t lanes = view_.num_panels * kPanel, groups = has_scales ? view_.num_groups * lanes : 0;
    return {view_.num_panels * panel_bytes(view_.format, view_.padded_inputs),
            groups * static_cast<int64_t>(sizeof(float)), groups,
            has_bias_ ? lanes * static_cast<int64_t>(sizeof(float)) : 0};
}

void PackedMatrix::allocate() {
    std::array<const std::byte*, kNumParts> parts;
    const PartSizes sizes = part_sizes();
    for (int part = 0; part < kNumParts; part++) {
        buffers_[part] = Buffer(sizes[part]);
        parts[part] = buffers_[part].data();
    }
    look_at(parts);
}

void PackedMatrix::look_at(const std::array<const std::byte*, kNumParts>& parts) {
    const PartSizes sizes = part_sizes();
    view_.panels = parts[kPanels];
    view_.scales = sizes[kScales] != 0 ? reinterpret_cast<const float*>(parts[kScales]) : nullptr;
    view_.offsets = sizes[kOffsets] != 0 ? reinterpret_cast<const uint8_t*>(parts[kOffsets]) : nullptr;
    view_.bias = sizes[kBias] != 0 ? reinterpret_cast<const float*>(parts[kBias]) : nullptr;
}

std::optional<PackedMatrix> PackedMatrix::map(std::shared_ptr<const MappedFile> file, int64_t offset,
                                              const PackedShape& shape) {
    PackedMatrix packed(shape);
    const auto size = static_cast<int64_t>(file->size());
    if (offset < 0 || offset % kLine != 0 || offset > size || packed.stored_bytes() > size - offset) return {};
    std::array<const std::byte*, kNumParts> parts;
    const PartSizes sizes = packed.part_sizes();
    for (int part = 0; part < kNumParts; offset += round_up(sizes[part++], kLine)) parts[part] = file->data() + offset;
    packed.look_at(parts);
    packed.file_ = std::move(file);
    return packed;
}

int64_t PackedMatrix::bytes() const {
    const PartSizes sizes = part_sizes();
    return sizes[kPanels] + sizes[kScales] + sizes[kOffsets];
}

int64_t PackedMatrix::stored_bytes() const {
    int64_t bytes = 0;
    for (const int64_t size : part_sizes()) bytes += round_up(size, kLine);
    return bytes;
}

bool PackedMatrix::write_to(int file) const {
    static constexpr std::byte padding[kLine] = {};
    const PartSizes sizes = part_sizes();
    const std::array<const void*, kNumParts> parts{view_.panels, view_.scales, view_.offsets, view_.bias};
    for (int part = 0; part < kNumParts; part++)
        if (!write_all(file, parts[part], sizes[part]) ||
            !write_all(file, padding, round_up(sizes[part], kLine) - sizes[part]))
            return false;
    return true;
}

int64_t PackedMatrix::output_of(int64_t panel, int64_t lane) const {
    const int64_t output = (view_.activation.is_gated ? panel / 2 : panel) * kPanel + lane;
    if (output >= view_.outputs) return -1;
    return view_.activation.is_gated && panel % 2 ? view_.outputs + output : output;
}

void PackedMatrix::set_bias(const float* bias) {
    if (bias == nullptr) return;
    auto* packed = reinterpret_cast<float*>(buffers_[kBias].data());
    for (int64_t panel = 0; panel < view_.num_panels; panel++)
        for (int64_t lane = 0; lane < kPanel; lane++)
            if (const int64_t output = output_of(panel, lane); output >= 0) packed[panel * kPanel + lane] = bias[output];
}

PackedMatrix PackedMatrix::pack(const PlainWeight& weight, const float* bias, const Activation& activation,
                                int threads) {
    const int64_t outputs = activation.is_gated ? weight.outputs / 2 : weight.outputs;
    PackedMatrix packed({format_of(weight.dtype), activation, outputs, weight.inputs, 1, bias != nullptr});
    packed.allocate();
    packed.set_bias(bias);
    const Matrix& view = packed.view_;
    const int64_t row_bytes = weight.stride * item_bytes(weight.dtype);
    const int64_t bytes = panel_bytes(view.format, view.padded_inputs);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < view.num_panels; panel++) {
        const std::byte* rows[kPanel];
        for (int64_t lane = 0; lane < kPanel; lane++) {
            const int64_t output = packed.output_of(panel, lane);
            rows[lane] = output < 0 ? nullptr : static_cast<const std::byte*>(weight.data) + output * row_bytes;
        }
        std::byte* to = packed.buffers_[kPanels].data() + panel * bytes;
        if (weight.dtype == DType::f32) {
            transpose_units(reinterpret_cast<const uint32_t* const*>(rows), weight.inputs, reinterpret_cast<uint32_t*>(to));
        } else if (weight.dtype == DType::f16) {
            transpose_halves(reinterpret_cast<const uint16_t* const*>(rows), weight.inputs, reinterpret_cast<uint16_t*>(to));
        } else {
            transpose_units(reinterpret_cast<const uint32_t* const*>(rows), weight.inputs / 2, reinterpret_cast<uint32_t*>(to));
            if (weight.inputs % 2) {
                auto* line = reinterpret_cast<uint16_t*>(to) + weight.inputs / 2 * 2 * kPanel;
                for (int64_t lane = 0; lane < kPanel; lane++)
                    if (rows[lane]) line[2 * lane] = reinterpret_cast<const uint16_t*>(rows[lane])[weight.inputs - 1];
            }
        }
    }
    return packed;
}

PackedMatrix PackedMatrix::pack(const QuantizedWeight& weight, const float* bias, const Activation& activation,
                                int threads) {
    const int64_t outputs = activation.is_gated ? weight.outputs / 2 : weight.outputs;
    PackedMatrix packed({weight.bits == 8 ? Format::i8 : Format::i4, activation, outputs, weight.inputs, weight.groups,
                         bias != nullptr});
    packed.allocate();
    packed.set_bias(bias);
    const Matrix& view = packed.view_;
    auto* scales = reinterpret_cast<float*>(packed.buffers_[kScales].data());
    auto* offsets = reinterpret_cast<uint8_t*>(packed.buffers_[kOffsets].data());
    const int64_t bytes = panel_bytes(view.format, view.padded_inputs);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < view.num_panels; panel++) {
        auto* to = reinterpret_cast<uint8_t*>(packed.buffers_[kPanels].data()) + panel * bytes;
        for (int64_t lane = 0; lane < kPanel; lane++) {
            const int64_t output = packed.output_of(panel, lane);
            if (output < 0) continue;
            const int8_t* values = weight.values + output * weight.inputs;
            for (int64_t input = 0; input < weight.inputs; input++) {
                const int64_t pair = input / 2, within = 2 * lane + input % 2;
                if (weight.bits == 8)
                    to[pair * 2 * kPanel + within] = static_cast<uint8_t>(values[input]);
                else
                    to[pair / 2 * 2 * kPanel + within] |= static_cast<uint8_t>((values[input] & 15) << (pair % 2 * 4));
            }
            for (int64_t group = 0; group < weight.groups; group++) {
                const int64_t at = (panel * weight.groups + group) * kPanel + lane;
                scales[at] = weight.scales[output * weight.groups + group];
                offsets[at] = static_cast<uint8_t>(16 - weight.zeros[output * weight.groups + group]);
            }
        }
    }
    return packed;
}

}  // namespace kilotron
