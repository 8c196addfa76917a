#include "cache.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace nb = nanobind;

namespace kilotron {

void KVLayer::check_dtype(DType dtype) const {
    if (view.format != Format::i8 && view.format != format_of(dtype))
        refuse("queries, keys and values", "the dtype of the cache");
}

std::vector<KVLayer> allocate_kv(int64_t num_layers, int64_t num_blocks, int64_t block_size, int64_t heads,
                                 int64_t channels, const std::string& dtype) {
    if (num_layers < 1 || num_blocks < 1 || block_size < 1 || heads < 1 || channels < 1 || channels > kMostChannels)
        throw nb::value_error("the sizes of a KV cache must be positive, and channels at most 1024");
    const std::pair<const char*, Format> formats[] = {
        {"float32", Format::f32}, {"float16", Format::f16}, {"bfloat16", Format::bf16}, {"int8", Format::i8}};
    const auto* format = std::find_if(std::begin(formats), std::end(formats), [&](auto f) { return dtype == f.first; });
    if (format == std::end(formats))
        throw nb::value_error(("dtype " + dtype + " of a KV cache is none of float32, float16, bfloat16, int8").c_str());
    const double wanted = 8.0 * kMostChannels * num_layers * num_blocks * heads * (block_size + 1.0 * kPanel);
    if (wanted > static_cast<double>(INT64_MAX)) throw nb::value_error("a KV cache of these sizes is too large");
    KVLayerView view{nullptr, format->second, num_blocks, block_size, heads, channels};
    const int64_t layer_bytes = view.block_bytes() * num_blocks;
    auto memory = std::make_shared<Buffer>(num_layers * layer_bytes);
    std::vector<KVLayer> layers;
    for (int64_t layer = 0; layer < num_layers; layer++) {
        view.data = memory->data() + layer * layer_bytes;
        layers.push_back({memory, view});
    }
    return layers;
}

Slots::Slots(nb::handle slots, int64_t tokens) {
    const Array array(slots, "slots", 1);
    array.expect_kind(Kind::i64);
    array.expect_contiguous();
    array.expect_shape(0, tokens);
    data_ = array.as<int64_t>();
    for (int64_t token = 0; token < tokens; token++) {
        least_ = std::min(least_, data_[token]);
        greatest_ = std::max(greatest_, data_[token]);
    }
}

void Slots::check_against(const KVLayerView& kv) const {
    const int64_t least = kv.block_size, most = kv.num_blocks * least;
    if (least_ < least || greatest_ >= most)
        refuse("slots", "places in this cache behind the null block (" + std::to_string(least) + " to " +
                            std::to_string(most - 1) + ")");
}

RotationView::RotationView(nb::handle cosines_array, nb::handle sines_array, int64_t tokens) {
    const Array cosine(cosines_array, "cos", 2), sine(sines_array, "sin", 2);
    for (const Array* array : {&cosine, &sine}) {
        array->expect_kind(Kind::f32);
        array->expect_contiguous();
        array->expect_shape(0, tokens);
        array->expect_shape(1, cosine.shape[1]);
    }
    cosines = cosine.as<float>();
    sines = sine.as<float>();
    half_rotated = cosine.shape[1];
}

void RotationView::check_against(const KVLayerView& kv) const {
    if (2 * half_rotated > kv.channels) refuse("cos", "at most half as many columns as channels");
}

ScoreTerms::ScoreTerms(nb::handle sinks, nb::handle position_bias) {
    if (!sinks.is_none()) {
        const Array array(sinks, "sinks", 1);
        array.expect_kind(Kind::f32);
        if (array.shape[0] < 1) refuse("sinks", "at least one");
        sinks_.assign(array.as<float>(), array.as<float>() + array.shape[0]);
    }
    if (!position_bias.is_none()) {
        const Array array(position_bias, "position_bias", 2);
        array.expect_kind(Kind::f32);
        num_distances_ = array.shape[1];
        if (array.shape[0] < 1 || num_distances_ < 1) refuse("position_bias", "at least one head and one distance");
        for (int64_t head = 0; head < array.shape[0]; head++) {
            const float* row = array.as<float>() + head * array.strides[0];
            position_bias_.insert(position_bias_.end(), std::make_reverse_iterator(row + num_distances_),
                                  std::make_reverse_iterator(row));
        }
    }
}

void ScoreTerms::check_against(int64_t query_heads) const {
    if (!sinks_.empty() && static_cast<int64_t>(sinks_.size()) != query_heads)
        refuse("sinks", "one for each of " + std::to_string(query_heads) + " query heads");
    if (!position_bias_.empty() && static_cast<int64_t>(position_bias_.size()) != query_heads * num_distances_)
        refuse("position_bias", "a row for each of " + std::to_string(query_heads) + " query heads");
}

void ScoreTerms::add_to(AttentionCall& call) const {
    call.sinks = sinks_.empty() ? nullptr : sinks_.data();
    call.position_bias = position_bias_.empty() ? nullptr : position_bias_.data();
    call.num_distances = num_distances_;
}

StepRows::StepRows(nb::handle num_computed, nb::handle num_new, nb::handle block_table, int64_t block_size) {
    const Array computed(num_computed, "num_computed", 1), fresh(num_new, "num_new", 1);
    const Array table(block_table, "block_table", 2);
    const int64_t count = computed.shape[0];
    computed.expect_kind(Kind::i64);
    fresh.expect_kind(Kind::i64);
    fresh.expect_shape(0, count);
    table.expect_kind(Kind::i64);
    table.expect_shape(0, count);
    if (block_size < 1 || block_size > INT32_MAX) throw nb::value_error("block_size must be positive and below 2^31");
    block_size_ = block_size;
    const int64_t most = table.shape[1] * block_size;
    blocks_.resize(count * table.shape[1]);
    for (int64_t row = 0; row < count; row++) {
        const int64_t old = computed.as<int64_t>()[row], added = fresh.as<int64_t>()[row];
        if (old < 0 || added < 1 || added > most || old > most - added)
            refuse("num_new", "positive sizes that fit the block table");
        int32_t* blocks = blocks_.data() + row * table.shape[1];
        for (int64_t b = 0; b < table.shape[1]; b++) {
            const int64_t block = table.as<int64_t>()[row * table.strides[0] + b];
            if (block < 0 || block > INT32_MAX) refuse("block_table", "block ids");
            blocks[b] = static_cast<int32_t>(block);
            last_block_ = std::max(last_block_, block);
        }
        rows_.push_back({num_tokens_, old, added, blocks, table.shape[1]});
        num_tokens_ += added;
    }
}

void StepRows::check_against(const KVLayerView& kv) const {
    if (last_block_ >= kv.num_blocks || block_size_ != kv.block_size)
        refuse("rows", "blocks of this cache (" + std::to_string(kv.num_blocks) + " of " +
                           std::to_string(kv.block_size) + " tokens)");
}

}  // namespace kilotron
