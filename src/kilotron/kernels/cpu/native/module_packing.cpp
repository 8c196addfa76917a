// Bindings of packed matrices. Arguments are checked here; see kernels/cpu/backend.py for what they mean.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "bindings.hpp"
#include "mapped_file.hpp"
#include "packing.hpp"

namespace nb = nanobind;

namespace kilotron {

namespace {

constexpr int kMostThreads = 256;        // as in threads.hpp
constexpr int64_t kLargestGroup = 1024;  // as kDecodeChunk in linear.hpp

constexpr std::array<std::pair<const char*, Format>, 5> kFormats{{{"float32", Format::f32},
                                                                  {"float16", Format::f16},
                                                                  {"bfloat16", Format::bf16},
                                                                  {"int8", Format::i8},
                                                                  {"int4", Format::i4}}};
constexpr std::array<std::pair<const char*, Function>, 6> kFunctions{{{"silu", Function::silu},
                                                                      {"gelu", Function::gelu},
                                                                      {"gelu_tanh", Function::gelu_tanh},
                                                                      {"quick_gelu", Function::quick_gelu},
                                                                      {"relu", Function::relu},
                                                                      {"relu2", Function::relu2}}};

Activation activation_of(const std::optional<std::string>& name, bool is_gated, std::optional<float> clamp,
                         float linear_offset) {
    Activation activation{Function::none, is_gated, clamp.value_or(0.0f), linear_offset};
    if (clamp && !(*clamp > 0 && std::isfinite(*clamp))) throw nb::value_error("clamp must be positive, or None");
    if (!std::isfinite(linear_offset)) throw nb::value_error("linear_offset must be finite");
    if (!name) return activation;
    const auto* known = std::find_if(kFunctions.begin(), kFunctions.end(), [&](auto f) { return *name == f.first; });
    if (known == kFunctions.end()) throw nb::value_error(("activation " + *name + " is unknown").c_str());
    activation.function = known->second;
    return activation;
}

void check_gate(int64_t outputs, bool is_gated) {
    if (is_gated && outputs % 2 != 0) refuse("weight", "an even number of outputs, half of them gates");
}

std::vector<float> bias_of(nb::handle bias, int64_t outputs) {
    if (bias.is_none()) return {};
    const Array array(bias, "bias", 1);
    array.expect_kind(Kind::f32);
    array.expect_shape(0, outputs);
    return {array.as<float>(), array.as<float>() + outputs};
}

PackedMatrix pack_plain(nb::handle weight, nb::handle bias, const std::optional<std::string>& activation, bool is_gated,
                        std::optional<float> clamp, float linear_offset, int threads) {
    const Array array(weight, "weight", 2);
    const PlainWeight plain{array.data, array.dtype(), array.shape[0], array.shape[1], array.strides[0]};
    if (plain.inputs < 1) refuse("weight", "at least one input");
    check_gate(plain.outputs, is_gated);
    check_threads(threads);
    const std::vector<float> biases = bias_of(bias, plain.outputs);
    const Activation kind = activation_of(activation, is_gated, clamp, linear_offset);
    nb::gil_scoped_release released;
    return PackedMatrix::pack(plain, biases.empty() ? nullptr : biases.data(), kind, threads);
}

PackedMatrix pack_quantized(nb::handle values, nb::handle scales, nb::handle zeros, int bits, nb::handle bias,
                            const std::optional<std::string>& activation, bool is_gated, std::optional<float> clamp,
                            float linear_offset, int threads) {
    const Array value_array(values, "values", 2), scale_array(scales, "scales", 2), zero_array(zeros, "zeros", 2);
    const int64_t outputs = value_array.shape[0], inputs = value_array.shape[1], groups = scale_array.shape[1];
    for (const Array* array : {&value_array, &scale_array, &zero_array}) array->expect_contiguous();
    value_array.expect_kind(Kind::i8);
    scale_array.expect_kind(Kind::f32);
    scale_array.expect_shape(0, outputs);
    zero_array.expect_kind(Kind::i8);
    zero_array.expect_shape(0, outputs);
    zero_array.expect_shape(1, groups);
    if (inputs < 1) refuse("values", "at least one input");
    if (bits != 4 && bits != 8) throw nb::value_error("bits must be 4 or 8");
    const bool has_even_groups = groups >= 1 && inputs % groups == 0 && inputs / groups % kInputs == 0;
    if (groups != 1 && (!has_even_groups || inputs / groups > kLargestGroup))
        refuse("scales", "one group, or groups of a multiple of 32 and at most 1024 inputs");
    const int8_t* zero = zero_array.as<int8_t>();
    const int8_t largest = bits == 4 ? 16 : 0;
    if (std::any_of(zero, zero + outputs * groups, [&](int8_t z) { return z < 0 || z > largest; }))
        refuse("zeros", bits == 4 ? "values within 0 and 16" : "0 everywhere");
    check_gate(outputs, is_gated);
    check_threads(threads);
    const std::vector<float> biases = bias_of(bias, outputs);
    const Activation kind = activation_of(activation, is_gated, clamp, linear_offset);
    const QuantizedWeight weight{value_array.as<int8_t>(), scale_array.as<float>(), zero, outputs, inputs, groups, bits};
    nb::gil_scoped_release released;
    return PackedMatrix::pack(weight, biases.empty() ? nullptr : biases.data(), kind, threads);
}

// What a matrix is apart from its numbers, as `map_packed` takes it.
nb::dict describe(const PackedMatrix& packed) {
    const Matrix& view = packed.view();
    nb::dict facts;
    for (const auto& [name, format] : kFormats)
        if (format == view.format) facts["format"] = name;
    const Activation& activation = view.activation;
    facts["activation"] = nb::none();
    for (const auto& [name, function] : kFunctions)
        if (function == activation.function) facts["activation"] = name;
    facts["is_gated"] = activation.is_gated;
    facts["clamp"] = activation.clamp != 0 ? nb::object(nb::float_(activation.clamp)) : nb::object(nb::none());
    facts["linear_offset"] = activation.linear_offset;
    facts["outputs"] = view.outputs;
    facts["inputs"] = view.inputs;
    facts["num_groups"] = view.num_groups;
    facts["has_bias"] = view.bias != nullptr;
    return facts;
}

void write_packed(const PackedMatrix& packed, int file) {
    bool is_written = false;
    int error = 0;
    {
        nb::gil_scoped_release released;
        is_written = packed.write_to(file);
        error = errno;
    }
    if (!is_written) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        throw nb::python_error();
    }
}

std::shared_ptr<MappedFile> open_file(const std::string& path) {
    auto file = std::make_shared<MappedFile>(path);
    if (file->data() == nullptr) {
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
        throw nb::python_error();
    }
    return file;
}

PackedMatrix map_packed(const std::shared_ptr<MappedFile>& file, int64_t offset, const std::string& format,
                        const std::optional<std::string>& activation, bool is_gated, std::optional<float> clamp,
                        float linear_offset, int64_t outputs, int64_t inputs, int64_t num_groups, bool has_bias) {
    constexpr int64_t most = INT32_MAX;
    const Format kind = format_named(format);
    const bool is_quantized = kind == Format::i8 || kind == Format::i4;
    if (outputs < 0 || outputs > most || inputs < 1 || inputs > most) refuse("outputs and inputs", "sizes below 2^31");
    if (num_groups != 1 && (!is_quantized || num_groups < 1 || inputs % num_groups != 0 ||
                            inputs / num_groups % kInputs != 0 || inputs / num_groups > kLargestGroup))
        refuse("num_groups", "one group, or groups of a multiple of 32 and at most 1024 inputs");
    const PackedShape shape{kind,   activation_of(activation, is_gated, clamp, linear_offset),
                            outputs, inputs, num_groups, has_bias};
    std::optional<PackedMatrix> packed = PackedMatrix::map(file, offset, shape);
    if (!packed) refuse("offset", "the place of a matrix within the file");
    return std::move(*packed);
}

}  // namespace

Format format_named(const std::string& name) {
    for (const auto& [known, format] : kFormats)
        if (name == known) return format;
    throw nb::value_error(("format " + name + " is unknown").c_str());
}

void check_threads(int threads) {
    if (threads < 1 || threads > kMostThreads)
        throw nb::value_error(("threads must be within 1 and " + std::to_string(kMostThreads)).c_str());
}

void bind_packing(nb::module_& m) {
    m.attr("PACKED_LAYOUT") = kPackedLayout;
    nb::class_<PackedMatrix>(m, "PackedMatrix")
        .def_prop_ro("num_bytes", &PackedMatrix::bytes)
        .def_prop_ro("outputs", [](const PackedMatrix& packed) { return packed.view().outputs; })
        .def_prop_ro("inputs", [](const PackedMatrix& packed) { return packed.view().inputs; })
        .def_prop_ro("stored_bytes", &PackedMatrix::stored_bytes)
        .def("describe", &describe)
        .def("write_to", &write_packed, nb::arg("file"));
    nb::class_<MappedFile>(m, "MappedFile")
        .def_static("open", &open_file, nb::arg("path"))
        .def_prop_ro("num_bytes", &MappedFile::size);
    m.def("map_packed", &map_packed, nb::arg("file"), nb::arg("offset"), nb::kw_only(), nb::arg("format"),
          nb::arg("activation").none(), nb::arg("is_gated"), nb::arg("clamp").none(), nb::arg("linear_offset"),
          nb::arg("outputs"), nb::arg("inputs"), nb::arg("num_groups"), nb::arg("has_bias"));
    m.def("pack_plain", &pack_plain, nb::arg("weight"), nb::arg("bias").none(), nb::arg("activation").none(),
          nb::arg("is_gated"), nb::arg("clamp").none(), nb::arg("linear_offset"), nb::arg("threads"));
    m.def("pack_quantized", &pack_quantized, nb::arg("values"), nb::arg("scales"), nb::arg("zeros"), nb::arg("bits"),
          nb::arg("bias").none(), nb::arg("activation").none(), nb::arg("is_gated"), nb::arg("clamp").none(),
          nb::arg("linear_offset"), nb::arg("threads"));
}

}  // namespace kilotron
