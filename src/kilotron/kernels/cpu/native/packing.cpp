#include "packing.hpp"

#include <omp.h>

#include <cstring>

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

}  // namespace

PackedMatrix::PackedMatrix(Format format, int64_t outputs, int64_t inputs, Activation activation, bool is_gated) {
    view_.format = format;
    view_.activation = activation;
    view_.is_gated = is_gated;
    view_.inputs = inputs;
    view_.padded_inputs = round_up(inputs, kInputs);
    view_.outputs = is_gated ? outputs / 2 : outputs;
    view_.num_panels = divide_up(view_.outputs, kPanel) * (is_gated ? 2 : 1);
    view_.group_size = view_.padded_inputs;
    view_.num_groups = 1;
    panels_ = Buffer(view_.num_panels * panel_bytes(format, view_.padded_inputs));
    view_.panels = panels_.data();
}

int64_t PackedMatrix::output_of(int64_t panel, int64_t lane) const {
    const int64_t output = (view_.is_gated ? panel / 2 : panel) * kPanel + lane;
    if (output >= view_.outputs) return -1;
    return view_.is_gated && panel % 2 ? view_.outputs + output : output;
}

void PackedMatrix::set_bias(const float* bias) {
    if (bias == nullptr) return;
    bias_ = Buffer(view_.num_panels * kPanel * sizeof(float));
    auto* packed = reinterpret_cast<float*>(bias_.data());
    for (int64_t panel = 0; panel < view_.num_panels; panel++)
        for (int64_t lane = 0; lane < kPanel; lane++)
            if (const int64_t output = output_of(panel, lane); output >= 0) packed[panel * kPanel + lane] = bias[output];
    view_.bias = packed;
}

PackedMatrix PackedMatrix::pack(const PlainWeight& weight, const float* bias, Activation activation, bool is_gated,
                                int threads) {
    PackedMatrix packed(format_of(weight.dtype), weight.outputs, weight.inputs, activation, is_gated);
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
        std::byte* to = packed.panels_.data() + panel * bytes;
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

PackedMatrix PackedMatrix::pack(const QuantizedWeight& weight, const float* bias, Activation activation, bool is_gated,
                                int threads) {
    PackedMatrix packed(weight.bits == 8 ? Format::i8 : Format::i4, weight.outputs, weight.inputs, activation, is_gated);
    packed.set_bias(bias);
    Matrix& view = packed.view_;
    view.num_groups = weight.groups;
    if (weight.groups > 1) view.group_size = weight.inputs / weight.groups;
    const int64_t count = view.num_panels * view.num_groups * kPanel;
    packed.scales_ = Buffer(count * sizeof(float));
    packed.offsets_ = Buffer(count);
    auto* scales = reinterpret_cast<float*>(packed.scales_.data());
    auto* offsets = reinterpret_cast<uint8_t*>(packed.offsets_.data());
    view.scales = scales;
    view.offsets = offsets;
    const int64_t bytes = panel_bytes(view.format, view.padded_inputs);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < view.num_panels; panel++) {
        auto* to = reinterpret_cast<uint8_t*>(packed.panels_.data()) + panel * bytes;
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
