#include "layers.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace nb = nanobind;

namespace kilotron {

namespace {

// A whole number that is not negative; None stands for 0.
int64_t count_of(nb::handle object, const char* name) {
    int64_t value = 0;
    if (!object.is_none() && (!nb::try_cast(object, value) || value < 0)) refuse(name, "a number that is not negative");
    return value;
}

float number_of(nb::handle object, const char* name) {
    float value = 0;
    if (!object.is_none() && !nb::try_cast(object, value)) refuse(name, "a number");
    return value;
}

const void* data_of(const std::vector<std::byte>& weights) { return weights.empty() ? nullptr : weights.data(); }

}  // namespace

DecoderLayers::DecoderLayers(nb::handle layers) {
    for (nb::handle described : layers) layers_.push_back(layer_of(described));
    if (layers_.empty()) refuse("layers", "at least one");
}

DecoderLayers::Layer DecoderLayers::layer_of(nb::handle described) {
    if (layers_.empty()) {
        const Array weight(described.attr("input_norm").attr("weight"), "input_norm", 1);
        kind_ = weight.kind;
        dtype_ = weight.dtype();
        hidden_size_ = weight.shape[0];
    }
    Layer layer{};
    layer.input_norm = norm_of(described.attr("input_norm"), "input_norm");
    layer.mlp_norm = norm_of(described.attr("mlp_norm"), "mlp_norm");
    layer.qkv = matrix_of(described, "linear_qkv");
    layer.proj = matrix_of(described, "linear_proj");
    layer.fc1 = matrix_of(described, "linear_fc1");
    layer.fc2 = matrix_of(described, "linear_fc2");
    if (layer.qkv->inputs != hidden_size_ || layer.proj->outputs != hidden_size_ || layer.fc1->inputs != hidden_size_ ||
        layer.fc2->outputs != hidden_size_ || layer.fc2->inputs != layer.fc1->outputs)
        refuse("layers", "matrices that fit each other");
    if (const nb::object norms = described.attr("head_norms"); !norms.is_none()) {
        layer.query_weight = weights_of(norms.attr("query_weight"), "head_norms");
        layer.key_weight = weights_of(norms.attr("key_weight"), "head_norms");
        layer.head_epsilon = number_of(norms.attr("epsilon"), "epsilon");
        layer.head_weight_offset = number_of(norms.attr("weight_offset"), "weight_offset");
    }
    const nb::object options = described.attr("attention");
    layer.scale = number_of(options.attr("scale"), "scale");
    layer.softcap = number_of(options.attr("softcap"), "softcap");
    layer.window = count_of(options.attr("window"), "window");
    layer.terms = ScoreTerms(options.attr("sinks"), options.attr("position_bias"));
    layer.rotation = count_of(described.attr("rotation"), "rotation");
    layer.kv_layer = count_of(described.attr("kv_layer"), "kv_layer");
    first_width_ = std::max({first_width_, hidden_size_, layer.proj->inputs});
    second_width_ = std::max({second_width_, layer.qkv->outputs, layer.fc1->outputs});
    return layer;
}

DecoderLayers::Norm DecoderLayers::norm_of(nb::handle norm, const char* name) const {
    std::string kind;
    if (!nb::try_cast(norm.attr("kind"), kind) || (kind != "RMSNorm" && kind != "LayerNorm"))
        refuse(name, "RMSNorm or LayerNorm");
    Norm result{kind == "LayerNorm", weights_of(norm.attr("weight"), name), {}, 0, 0};
    result.epsilon = number_of(norm.attr("epsilon"), "epsilon");
    result.weight_offset = number_of(norm.attr("weight_offset"), "weight_offset");
    if (const nb::object bias = norm.attr("bias"); !bias.is_none()) result.bias = weights_of(bias, name);
    const size_t bytes = hidden_size_ * item_bytes(dtype_);
    if (result.weight.size() != bytes || (!result.bias.empty() && result.bias.size() != bytes))
        refuse(name, "as many numbers as the hidden states have");
    return result;
}

DecoderLayers::Weights DecoderLayers::weights_of(nb::handle weight, const char* name) const {
    const Array array(weight, name, 1);
    array.expect_kind(kind_);
    if (array.shape[0] < 1) refuse(name, "at least one number");
    const auto* bytes = array.as<std::byte>();
    return {bytes, bytes + array.shape[0] * item_bytes(dtype_)};
}

const Matrix* DecoderLayers::matrix_of(nb::handle layer, const char* name) {
    const PackedMatrix* packed = nullptr;
    nb::object object = layer.attr(name);
    if (!nb::try_cast(object, packed) || packed == nullptr) refuse(name, "a packed matrix");
    if (!packed->view().takes(dtype_)) refuse(name, "the dtype of the norms");
    matrices_.push_back(std::move(object));
    return &packed->view();
}

LayersCall DecoderLayers::check(nb::handle hidden, nb::tuple rotations, std::vector<KVLayer> kv_layers,
                                nb::handle slots, const StepRows& rows, nb::handle result) const {
    const Array input(hidden, "hidden", 2), output(result, "result", 2);
    const int64_t tokens = rows.num_tokens();
    for (const Array* array : {&input, &output}) {
        array->expect_kind(kind_);
        array->expect_shape(0, tokens);
        array->expect_shape(1, hidden_size_);
    }
    output.expect_contiguous();
    std::vector<RotationView> views;
    for (nb::handle rotation : rotations) {
        nb::tuple pair;
        if (rotation.is_none())
            views.emplace_back();
        else if (nb::try_cast(rotation, pair) && pair.size() == 2)
            views.emplace_back(pair[0], pair[1], tokens);
        else
            refuse("rotations", "pairs of cos and sin");
    }
    const Slots places(slots, tokens);
    for (const Layer& layer : layers_) {
        if (layer.kv_layer >= kv_layers.size()) refuse("kv_layers", "one for each layer");
        if (layer.rotation >= views.size()) refuse("rotations", "one for each layer");
        const KVLayer& kv = kv_layers[layer.kv_layer];
        kv.check_dtype(dtype_);
        rows.check_against(kv.view);
        places.check_against(kv.view);
        views[layer.rotation].check_against(kv.view);
        const int64_t kv_size = kv.view.heads * kv.view.channels, query_size = layer.proj->inputs;
        if (query_size % kv_size != 0 || layer.qkv->outputs != query_size + 2 * kv_size)
            refuse("kv_layers", "heads that fit the matrices");
        layer.terms.check_against(query_size / kv.view.channels);
        const size_t head_bytes = kv.view.channels * item_bytes(dtype_);
        for (const Weights* weights : {&layer.query_weight, &layer.key_weight})
            if (!weights->empty() && weights->size() != head_bytes) refuse("kv_layers", "heads that fit their norms");
    }
    return {input.data, input.strides[0],     output.data,   tokens, std::move(views),
            std::move(kv_layers), places.data(), &rows};
}

// The operations of one call.
class LayersRun {
  public:
    using Layer = DecoderLayers::Layer;

    LayersRun(const DecoderLayers& layers, const LayersCall& call, const Kernels& kernels, Workspace& workspace,
              int threads)
        : layers_(layers), call_(call), kernels_(kernels), workspace_(workspace), threads_(threads) {
        const int64_t item = item_bytes(layers.dtype_);
        const int64_t first_bytes = round_up(call.tokens * layers.first_width_ * item, 64);
        first_ = workspace.reserve(Workspace::kLayers, first_bytes + call.tokens * layers.second_width_ * item);
        second_ = first_ + first_bytes;
    }

    // `hidden` may be the call's result: each number is read before it is written.
    void run(const Layer& layer, const void* hidden, int64_t hidden_stride) {
        const int64_t hidden_size = layers_.hidden_size_;
        norm(layer.input_norm, hidden, hidden_stride);
        linear(*layer.qkv, first_, second_, nullptr, 0);
        append(layer);
        attend(layer);
        linear(*layer.proj, second_, call_.result, hidden, hidden_stride);
        norm(layer.mlp_norm, call_.result, hidden_size);
        linear(*layer.fc1, first_, second_, nullptr, 0);
        linear(*layer.fc2, second_, call_.result, call_.result, hidden_size);
    }

  private:
    void norm(const DecoderLayers::Norm& norm, const void* x, int64_t stride) {
        const NormCall call{x, call_.tokens, 1, layers_.hidden_size_, stride, 0, first_, norm.weight.data(),
                            data_of(norm.bias), norm.epsilon, norm.weight_offset, layers_.dtype_};
        (norm.is_layer_norm ? kernels_.layer_norm : kernels_.rms_norm)(call, threads_);
    }

    void linear(const Matrix& matrix, const void* x, void* result, const void* residual, int64_t residual_stride) {
        const LinearCall call{&matrix, call_.tokens, x, matrix.inputs, result, matrix.outputs,
                              residual, residual_stride, layers_.dtype_, layers_.dtype_};
        kernels_.linear(&call, 1, workspace_, threads_);
    }

    // Queries, keys and values lie in the second buffer; the queries go to the first.
    void append(const Layer& layer) {
        const KVLayerView& kv = call_.kv_layers[layer.kv_layer].view;
        const int64_t query_size = layer.proj->inputs, kv_size = kv.heads * kv.channels;
        const auto heads_from = [&](int64_t number, int64_t size) {
            return Heads{second_ + number * item_bytes(layers_.dtype_), layer.qkv->outputs, kv.channels,
                         size / kv.channels};
        };
        const RotationView& rotation = call_.rotations[layer.rotation];
        const AppendCall call{kv,
                              layers_.dtype_,
                              heads_from(0, query_size),
                              heads_from(query_size, kv_size),
                              heads_from(query_size + kv_size, kv_size),
                              first_,
                              data_of(layer.query_weight),
                              data_of(layer.key_weight),
                              layer.head_epsilon,
                              layer.head_weight_offset,
                              rotation.cosines,
                              rotation.sines,
                              rotation.half_rotated,
                              call_.slots,
                              call_.tokens};
        kernels_.rotate_and_append(call, workspace_, threads_);
    }

    void attend(const Layer& layer) {
        const KVLayerView& kv = call_.kv_layers[layer.kv_layer].view;
        const std::vector<AttentionRow>& rows = call_.rows->rows();
        AttentionCall call{kv, layers_.dtype_, rows.data(), static_cast<int64_t>(rows.size()), first_, second_,
                           layer.proj->inputs / kv.channels, layer.scale, layer.softcap, layer.window,
                           nullptr, nullptr, 0};
        layer.terms.add_to(call);
        kernels_.attention(call, workspace_, threads_);
    }

    const DecoderLayers& layers_;
    const LayersCall& call_;
    const Kernels& kernels_;
    Workspace& workspace_;
    const int threads_;
    std::byte *first_, *second_;
};

void DecoderLayers::run(const LayersCall& call, const Kernels& kernels, Workspace& workspace, int threads) const {
    if (call.tokens == 0) return;
    LayersRun run(*this, call, kernels, workspace, threads);
    const void* hidden = call.hidden;
    int64_t stride = call.hidden_stride;
    for (const Layer& layer : layers_) {
        run.run(layer, hidden, stride);
        hidden = call.result;
        stride = hidden_size_;
    }
}

}  // namespace kilotron
