// Paged attention with an online softmax over tiles of 64 positions, counted from position 0. The query heads that
// share a key-value head are further rows of the same products, so keys and values are read once for all of them.
#pragma once
#include <cmath>

#include "elementwise.hpp"
#include "linear.hpp"

namespace kilotron::KILOTRON_ISA {

constexpr float kLog2OfE = 1.44269504f;
constexpr int64_t kQueryRows = KILOTRON_AMX ? 64 : 48;  // rows of queries (tokens times heads) that pass over the keys

// What one thread needs for a task: `rows` queries of `channels` (padded).
class AttentionScratch {
  public:
    AttentionScratch(std::byte* memory, int64_t rows, int64_t channels) {
        std::byte* next = memory;
        const auto take = [&](int64_t bytes) {
            std::byte* taken = next;
            next += round_up(bytes, 64);
            return taken;
        };
        query = take(rows * channels * 4);
        weights = take(rows * kKeyTile * 4);
        scores = reinterpret_cast<float*>(take(rows * kKeyTile * 4));
        output = reinterpret_cast<float*>(take(rows * channels * 4));
        totals = reinterpret_cast<float*>(take(rows * kPanel * 4));
        maxima = reinterpret_cast<float*>(take(rows * 4));
        for (std::byte** two_tiles : {&keys, &values, &decoded_keys, &joined_values})
            *two_tiles = take(2 * kKeyTile * (channels + kPanel) * 4);
        bytes = next - memory;
    }

    static int64_t size(int64_t rows, int64_t channels) {
        return AttentionScratch(nullptr, rows, channels).bytes;
    }

    std::byte* query;    // [rows][channels], as the products want them
    std::byte* weights;  // [rows][64], the same
    float* scores;       // [rows][64]
    float* output;       // [rows][channels]
    float* totals;       // [rows][16], sums of weights lane by lane
    float* maxima;       // [rows]
    std::byte* keys;     // two tiles gathered from blocks that do not hold whole groups
    std::byte* values;
    std::byte* decoded_keys;  // two tiles of int8 as bf16
    std::byte* joined_values;  // two tiles as bf16, 32 positions together
    int64_t bytes;
};

// One row of the step, one key-value head, a stretch of new tokens.
template <typename Type, bool is_int8>
class AttentionTask {
  public:
    static constexpr Format format = is_int8                       ? Format::i8
                                     : std::is_same_v<Type, F32> ? Format::f32
                                     : std::is_same_v<Type, F16> ? Format::f16
                                                                 : Format::bf16;
    using Layout = Stored<Type, is_int8>;
    using Item = typename Type::Item;
    using Input = typename Operand<format>::Input;
    // Tiles multiply bf16 only, and take in 32 positions of values at a time, whatever the block size: their order of
    // additions depends on it.
    static constexpr bool uses_tiles = KILOTRON_AMX && (format == Format::bf16 || is_int8);

    AttentionTask(const AttentionCall& call, const AttentionRow& row, int64_t head, int64_t first, int64_t tokens,
                  AttentionScratch& scratch)
        : call_(call), row_(row), head_(head), first_(first), tokens_(tokens),
          group_(call.query_heads / call.kv.heads), channels_(call.kv.padded_channels()), scratch_(scratch) {}

    void run() {
        const int64_t rows = tokens_ * group_;
        load_queries();
        std::memset(scratch_.output, 0, rows * channels_ * sizeof(float));
        std::memset(scratch_.totals, 0, rows * kPanel * sizeof(float));
        for (int64_t r = 0; r < rows; r++) start_row(r);
        const int64_t last_position = row_.num_computed + first_ + tokens_ - 1;
        const int64_t first_tile = find_first_tile(), last_tile = last_position / kKeyTile;
        Tile present = locate(first_tile, head_, last_position);
        for (int64_t tile = first_tile; tile <= last_tile; tile++) {
            // After the last tile the next head's first one: the same thread most likely computes that.
            const bool is_last = tile == last_tile;
            const int64_t next_head = head_ + 1 < call_.kv.heads ? head_ + 1 : head_;
            const Tile next = is_last ? locate(first_tile, next_head, last_position) : locate(tile + 1, head_, last_position);
            score(present, next, rows);
            if (call_.position_bias == nullptr)
                weigh<false>(tile, present, rows);
            else
                weigh<true>(tile, present, rows);
            mix(present, next, rows);
            present = next;
        }
        store_results();
    }

  private:
    // 64 positions: four groups of 16 keys, and of 16 values.
    struct Tile {
        const std::byte* keys[kQuad];
        const std::byte* values[kQuad];
        const float* key_scales[kQuad];  // int8 only
        const float* value_scales[kQuad];
    };

    // A sink is what a row has seen before its first position: a weight of 1, and no value.
    void start_row(int64_t r) {
        scratch_.maxima[r] = call_.sinks == nullptr ? -INFINITY : call_.sinks[query_head_of(r)] * kLog2OfE;
        if (call_.sinks != nullptr) scratch_.totals[r * kPanel] = 1;
    }

    int64_t query_head_of(int64_t r) const { return head_ * group_ + r % group_; }

    int64_t position_of(int64_t r) const { return row_.num_computed + first_ + r / group_; }

    // Tiles before it are outside of every query's window.
    int64_t find_first_tile() const {
        if (call_.window == 0) return 0;
        const int64_t first_seen = row_.num_computed + first_ - call_.window + 1;
        return first_seen > 0 ? first_seen / kKeyTile : 0;
    }

    const Item* query_of(int64_t r) const {
        const int64_t token = row_.first_token + first_ + r / group_, head = query_head_of(r);
        return static_cast<const Item*>(call_.query) + (token * call_.query_heads + head) * call_.kv.channels;
    }

    void load_queries() {
        auto* to = reinterpret_cast<Input*>(scratch_.query);
        for (int64_t r = 0; r < tokens_ * group_; r++, to += channels_) {
            const Item* from = query_of(r);
            for (int64_t c = 0; c < channels_; c += kPanel) {
                const int64_t left = call_.kv.channels - c;
                const Vec values = left > 0 ? read_some<Type>(from + c, left) : zero();
                if constexpr (std::is_same_v<Input, float>)
                    store(to + c, values);
                else
                    store_bf16(to + c, values);
            }
        }
    }

    // Finds the tile's groups. Those beyond the last position are the null block's: zeros.
    Tile locate(int64_t tile, int64_t head, int64_t last_position) {
        const KVLayerView& kv = call_.kv;
        Tile found;
        half_ = 1 - half_;
        for (int64_t g = 0; g < kQuad; g++) {
            const int64_t position = tile * kKeyTile + g * kPanel;
            if (position <= last_position && kv.block_size % kPanel != 0) {
                gather(g, position, head, last_position, found);
            } else {
                const bool is_there = position <= last_position;
                const int64_t block = is_there ? row_.blocks[position / kv.block_size] : 0;
                const int64_t group = is_there ? position % kv.block_size / kPanel : 0;
                found.keys[g] = kv.keys(block, head, group);
                found.values[g] = kv.values(block, head, group);
            }
            if constexpr (is_int8) {
                found.key_scales[g] = reinterpret_cast<const float*>(found.keys[g] + kv.numbers_bytes());
                found.value_scales[g] = reinterpret_cast<const float*>(found.values[g] + kv.numbers_bytes());
                if (uses_tiles) decode_keys(g, found);
            }
            if (uses_tiles && kv.value_span() == kPanel) join_values(g, found);
        }
        return found;
    }

    std::byte* scratch_group(std::byte* memory, int64_t g) const {
        return memory + (half_ * kQuad + g) * kPanel * (channels_ + kPanel) * 4;
    }

    // Copies 16 positions from blocks that do not hold whole groups into a group of their own.
    void gather(int64_t g, int64_t first, int64_t head, int64_t last_position, Tile& found) {
        const KVLayerView& kv = call_.kv;
        using Item = typename Layout::Item;
        std::byte *keys = scratch_group(scratch_.keys, g), *values = scratch_group(scratch_.values, g);
        std::memset(keys, 0, kv.group_bytes());
        std::memset(values, 0, kv.group_bytes());
        for (int64_t lane = 0; lane < kPanel && first + lane <= last_position; lane++) {
            const int64_t block = row_.blocks[(first + lane) / kv.block_size], offset = (first + lane) % kv.block_size;
            const int64_t from = offset % kPanel;
            const std::byte* block_keys = kv.keys(block, head, offset / kPanel);
            const std::byte* block_values = kv.values(block, head, offset / kPanel);
            const auto copy = [](std::byte* to, int64_t to_index, const std::byte* source, int64_t index, auto unit) {
                using Unit = decltype(unit);
                reinterpret_cast<Unit*>(to)[to_index] = reinterpret_cast<const Unit*>(source)[index];
            };
            for (int64_t c = 0; c < channels_; c++) {
                copy(keys, Layout::key_index(c, lane), block_keys, Layout::key_index(c, from), Item());
                copy(values, Layout::value_index(c, lane, kPanel), block_values, Layout::value_index(c, from, kPanel), Item());
            }
            if constexpr (is_int8) {
                copy(keys + kv.numbers_bytes(), lane, block_keys + kv.numbers_bytes(), from, float());
                copy(values + kv.numbers_bytes(), lane, block_values + kv.numbers_bytes(), from, float());
            }
        }
        found.keys[g] = keys;
        found.values[g] = values;
    }

    void decode_keys(int64_t g, Tile& found) {
        auto* keys = reinterpret_cast<uint16_t*>(scratch_group(scratch_.decoded_keys, g));
        decode_panel<Format::i8>(found.keys[g], nullptr, nullptr, channels_, keys);
        found.keys[g] = reinterpret_cast<const std::byte*>(keys);
    }

    void join_values(int64_t g, Tile& found) {
        std::byte* span = scratch_group(scratch_.joined_values, g - g % 2);
        for (int64_t block = 0; block < channels_ / kPanel; block++) {
            std::byte* to = span + panel_bytes(Format::bf16, (2 * block + g % 2) * kPanel);
            const std::byte* from = found.values[g] + panel_bytes(format, block * kPanel);
            if constexpr (is_int8)
                decode_panel<Format::i8>(from, nullptr, nullptr, kPanel, reinterpret_cast<uint16_t*>(to));
            else
                std::memcpy(to, from, panel_bytes(Format::bf16, kPanel));
        }
        found.values[g] = span;
    }

    // Where many rows pass over the keys, what comes next is in the cache from the rows before.
    static bool reads_ahead(int64_t rows) { return rows <= kPanel; }

    void score(const Tile& tile, const Tile& next, int64_t rows) {
        Segment segment;
        segment.first_input = 0;
        segment.inputs = channels_;
        for (int64_t g = 0; g < kQuad; g++) {
            segment.panels[g] = tile.keys[g];
            segment.ahead[g] = reads_ahead(rows) ? next.keys[g] : nullptr;
        }
        multiply(&segment, 1, scratch_.query, channels_, scratch_.scores, kKeyTile, rows, kQuad, true);
    }

    // Scores to weights of the online softmax; rescales what was summed under a lower maximum.
    template <bool has_bias>
    void weigh(int64_t tile, const Tile& groups, int64_t rows) {
        for (int64_t r = 0; r < rows; r++) {
            const int64_t position = position_of(r) - tile * kKeyTile;  // within the tile, or beyond it
            const int64_t begin = call_.window == 0 ? 0 : position - call_.window + 1;
            if (begin <= 0 && position >= kKeyTile - 1)
                weigh_row<true, has_bias>(r, begin, position, groups);
            else
                weigh_row<false, has_bias>(r, begin, position, groups);
        }
    }

    // Of 16 positions of which the first lies `distance` before the query. What a query does not see may get anything.
    Vec bias_of(int64_t r, int64_t distance) const {
        const float* biases = call_.position_bias + query_head_of(r) * call_.num_distances;
        const int64_t first = call_.num_distances - 1 - distance;
        if (first <= 1 - kPanel) return splat(biases[0]);
        if (first >= 0 && first + kPanel <= call_.num_distances) return load(biases + first);
        float part[kPanel];
        for (int64_t lane = 0; lane < kPanel; lane++) {
            const int64_t column = first + lane < 0 ? 0 : first + lane;
            part[lane] = biases[column < call_.num_distances ? column : call_.num_distances - 1];
        }
        return load(part);
    }

    // One row, which sees the positions from `begin` to `end` of the tile, both included; its own is `end`.
    template <bool sees_all, bool has_bias>
    KILOTRON_INLINE void weigh_row(int64_t r, int64_t begin, int64_t end, const Tile& groups) {
        // Scores in units of ln 2, so that weights are powers of two.
        const float scale = call_.softcap != 0 ? call_.scale / call_.softcap : call_.scale * kLog2OfE;
        [[maybe_unused]] const float bias_scale = call_.softcap != 0 ? 1 / call_.softcap : kLog2OfE;
        const auto is_seen = [&](int64_t g) { return sees_all || (end >= g * kPanel && begin < (g + 1) * kPanel); };
        const auto only_seen = [&](Vec value, int64_t g, float other) {
            return sees_all ? value : masked(value, begin - g * kPanel, end - g * kPanel, other);
        };
        Vec scores[kQuad], best = splat(-INFINITY);
        for (int64_t g = 0; g < kQuad; g++) {
            if (!is_seen(g)) continue;
            Vec value = mul(load(scratch_.scores + r * kKeyTile + g * kPanel), splat(scale));
            if constexpr (is_int8) value = mul(value, load(groups.key_scales[g]));
            if constexpr (has_bias) value = fma(bias_of(r, end - g * kPanel), splat(bias_scale), value);
            if (call_.softcap != 0) value = mul(tanh(value), splat(call_.softcap * kLog2OfE));
            scores[g] = only_seen(value, g, -INFINITY);
            best = max(best, scores[g]);
        }
        Input* weights = reinterpret_cast<Input*>(scratch_.weights) + r * kKeyTile;
        const float old_maximum = scratch_.maxima[r], tile_maximum = max_of(best);
        const float maximum = tile_maximum > old_maximum ? tile_maximum : old_maximum;
        float* totals = scratch_.totals + r * kPanel;
        Vec total = load(totals);
        if (maximum > old_maximum) {
            const Vec factor = exp2(splat(old_maximum - maximum));
            total = mul(total, factor);
            float* output = scratch_.output + r * channels_;
            for (int64_t c = 0; c < channels_; c += kPanel) store(output + c, mul(load(output + c), factor));
            scratch_.maxima[r] = maximum;
        }
        for (int64_t g = 0; g < kQuad; g++) {
            Vec weight = zero();
            if (is_seen(g)) {
                weight = only_seen(exp2(sub(scores[g], splat(maximum))), g, 0.0f);
                total = add(total, weight);
            }
            if constexpr (is_int8) weight = mul(weight, load(groups.value_scales[g]));
            if constexpr (std::is_same_v<Input, float>)
                store(weights + g * kPanel, weight);
            else
                store_bf16(weights + g * kPanel, weight);
        }
        store(totals, total);
    }

    // Lanes from `begin` to `end`, both included, stay; the others become `other`.
    static Vec masked(Vec value, int64_t begin, int64_t end, float other) {
        if (begin <= 0 && end >= kPanel - 1) return value;
        alignas(64) static constexpr float lanes[kPanel] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Vec lane = load(lanes);
        const float low = static_cast<float>(begin < 0 ? 0 : begin), high = static_cast<float>(end > 15 ? 15 : end);
        value = select_less(lane, splat(low), splat(other), value);
        return select_less(splat(high), lane, splat(other), value);
    }

    void mix(const Tile& tile, const Tile& next, int64_t rows) {
        const int64_t span = uses_tiles ? kInputs : call_.kv.value_span(), spans = kKeyTile / span;
        const int64_t channel_block = panel_bytes(uses_tiles ? Format::bf16 : format, span);
        Segment segments[kQuad];
        for (int64_t panel = 0; panel < channels_ / kPanel; panel += kQuad) {
            const int64_t left = channels_ / kPanel - panel, panels = left < kQuad ? left : kQuad;
            for (int64_t n = 0; n < spans; n++) {
                const int64_t group = n * span / kPanel;
                segments[n].first_input = n * span;
                segments[n].inputs = span;
                for (int64_t p = 0; p < panels; p++) {
                    segments[n].panels[p] = tile.values[group] + (panel + p) * channel_block;
                    segments[n].ahead[p] =
                        reads_ahead(rows) ? next.values[group] + (panel + p) * channel_block : nullptr;
                }
            }
            multiply(segments, spans, scratch_.weights, kKeyTile, scratch_.output + panel * kPanel, channels_, rows,
                     panels, false);
        }
    }

    void multiply(const Segment* segments, int64_t num_segments, const std::byte* x, int64_t x_stride, float* sums,
                  int64_t sums_stride, int64_t rows, int64_t panels, bool is_first) {
#if KILOTRON_AMX
        if constexpr (uses_tiles) {
            const TileRows tiles = {reinterpret_cast<const uint16_t*>(x), x_stride, kInputs, kPanel * x_stride};
            accumulate_with_tiles(segments, num_segments, tiles, sums, sums_stride, rows, panels, is_first);
            return;
        }
#endif
        accumulate_vectors<format, false>(segments, num_segments, reinterpret_cast<const Input*>(x), x_stride, sums,
                                          sums_stride, rows, panels, is_first);
    }

    void store_results() {
        for (int64_t r = 0; r < tokens_ * group_; r++) {
            const float total = sum(load(scratch_.totals + r * kPanel));
            const int64_t token = row_.first_token + first_ + r / group_, head = query_head_of(r);
            auto* to = static_cast<Item*>(call_.result) + (token * call_.query_heads + head) * call_.kv.channels;
            for (int64_t c = 0; c < call_.kv.channels; c += kPanel)
                write_some<Type>(to + c, div(load(scratch_.output + r * channels_ + c), splat(total)),
                                 call_.kv.channels - c);
        }
    }

    const AttentionCall& call_;
    const AttentionRow& row_;
    int64_t head_, first_, tokens_, group_, channels_;
    AttentionScratch& scratch_;
    int64_t half_ = 0;  // where the next gathered tile goes: two are in use at a time
};

static void run_attention(const AttentionCall& call, Workspace& workspace, int threads) {
    const int64_t group = call.query_heads / call.kv.heads;
    const int64_t tokens_per_task = group < kQueryRows ? kQueryRows / group : 1;
    const int64_t scratch_rows = tokens_per_task * group, channels = call.kv.padded_channels();
    const int64_t scratch_bytes = round_up(AttentionScratch::size(scratch_rows, channels), 4096);
    std::byte* memory = workspace.reserve(Workspace::kPerThread, threads * scratch_bytes);
    int64_t num_tasks = 0;
    for (int64_t r = 0; r < call.num_rows; r++) num_tasks += divide_up(call.rows[r].num_new, tokens_per_task);
    num_tasks *= call.kv.heads;
    WorkRanges tasks(num_tasks, threads);
    run_threads(threads, [&](int thread) {
        AttentionScratch scratch(memory + thread * scratch_bytes, scratch_rows, channels);
        [[maybe_unused]] const TileUse tiles{};
        for (int64_t task; (task = tasks.take(thread)) >= 0;) {
            int64_t within = task / call.kv.heads;
            const AttentionRow* row = call.rows;
            while (within >= divide_up(row->num_new, tokens_per_task)) {
                within -= divide_up(row->num_new, tokens_per_task);
                row++;
            }
            const int64_t first = within * tokens_per_task, left = row->num_new - first;
            const int64_t tokens = left < tokens_per_task ? left : tokens_per_task;
            with_type(call.dtype, [&](auto type) {
                using Type = decltype(type);
                const int64_t head = task % call.kv.heads;
                if (call.kv.format == Format::i8)
                    AttentionTask<Type, true>(call, *row, head, first, tokens, scratch).run();
                else
                    AttentionTask<Type, false>(call, *row, head, first, tokens, scratch).run();
            });
        }
    });
}

}  // namespace kilotron::KILOTRON_ISA
