// Norms, and the rotation of queries and keys on their way into the cache.
#pragma once
#include <cmath>
#include <type_traits>

#include "simd.hpp"
#include "threads.hpp"
#include "workspace.hpp"

namespace kilotron::KILOTRON_ISA {

// Below so many numbers a second thread costs more than it saves.
constexpr int64_t kFewNumbers = 16384;

template <typename Call, typename Row>
static void for_norm_rows(const Call& call, int threads, const Row& row) {
    const int64_t count = call.outer * call.inner;
    const int64_t chunk = divide_up(kFewNumbers, 4 * call.size);
    if (count * call.size < kFewNumbers) threads = 1;
    WorkRanges chunks(divide_up(count, chunk), threads);
    run_threads(threads, [&](int thread) {
        for (int64_t taken; (taken = chunks.take(thread)) >= 0;)
            for (int64_t r = taken * chunk; r < count && r < (taken + 1) * chunk; r++)
                row(r, r / call.inner * call.outer_stride + r % call.inner * call.inner_stride);
    });
}

// Sums f(x) over a row, 16 lanes apart until the end; the order depends on the size alone.
template <typename Type, typename Function>
static float sum_over(const typename Type::Item* x, int64_t size, const Function& f) {
    Vec sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * kPanel <= size; i += 4 * kPanel)
        for (int lane = 0; lane < 4; lane++) sums[lane] = f(sums[lane], Type::read(x + i + lane * kPanel), kPanel);
    for (; i < size; i += kPanel) {
        const int64_t left = size - i < kPanel ? size - i : kPanel;
        sums[0] = f(sums[0], read_some<Type>(x + i, left), left);
    }
    return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

// x / rms(x) * (weight + offset) for one row.
template <typename Type>
static void rms_norm_row(const typename Type::Item* x, const typename Type::Item* weight, int64_t size, float epsilon,
                         float weight_offset, typename Type::Item* result) {
    const float squares = sum_over<Type>(x, size, [](Vec s, Vec v, int64_t) { return fma(v, v, s); });
    const Vec scale = splat(1.0f / std::sqrt(squares / static_cast<float>(size) + epsilon));
    for (int64_t i = 0; i < size; i += kPanel) {
        const int64_t left = size - i;
        Vec value = mul(read_some<Type>(x + i, left), scale);
        const Vec gain = add(read_some<Type>(weight + i, left), splat(weight_offset));
        if (weight_offset == 0) {
            // As models are trained: rounded to the activations' type before the weight is applied.
            typename Type::Item rounded[kPanel];
            Type::write(rounded, value);
            value = Type::read(rounded);
        }
        write_some<Type>(result + i, mul(value, gain), left);
    }
}

static void run_rms_norm(const NormCall& call, int threads) {
    with_type(call.dtype, [&](auto type) {
        using Type = decltype(type);
        using Item = typename Type::Item;
        for_norm_rows(call, threads, [&](int64_t row, int64_t offset) {
            rms_norm_row<Type>(static_cast<const Item*>(call.x) + offset, static_cast<const Item*>(call.weight),
                               call.size, call.epsilon, call.weight_offset,
                               static_cast<Item*>(call.result) + row * call.size);
        });
    });
}

static void run_layer_norm(const NormCall& call, int threads) {
    with_type(call.dtype, [&](auto type) {
        using Type = decltype(type);
        using Item = typename Type::Item;
        for_norm_rows(call, threads, [&](int64_t row, int64_t offset) {
            const Item* x = static_cast<const Item*>(call.x) + offset;
            Item* result = static_cast<Item*>(call.result) + row * call.size;
            const auto size = static_cast<float>(call.size);
            const float mean = sum_over<Type>(x, call.size, [](Vec s, Vec v, int64_t) { return add(s, v); }) / size;
            const float squares = sum_over<Type>(x, call.size, [&](Vec s, Vec v, int64_t count) {
                float deviations[kPanel];
                store(deviations, sub(v, splat(mean)));
                for (int64_t i = count; i < kPanel; i++) deviations[i] = 0;
                const Vec deviation = load(deviations);
                return fma(deviation, deviation, s);
            });
            const Vec scale = splat(1.0f / std::sqrt(squares / size + call.epsilon));
            for (int64_t i = 0; i < call.size; i += kPanel) {
                const int64_t left = call.size - i;
                const Vec value = mul(sub(read_some<Type>(x + i, left), splat(mean)), scale);
                const Vec gain = read_some<Type>(static_cast<const Item*>(call.weight) + i, left);
                Vec shifted = mul(value, gain);
                if (call.bias != nullptr)
                    shifted = add(shifted, read_some<Type>(static_cast<const Item*>(call.bias) + i, left));
                write_some<Type>(result + i, shifted, left);
            }
        });
    });
}

// Rotates one head of one token, half-split layout; the last channels are copied. `from` and `to` may not overlap.
template <typename Type>
static void rotate_head(const AppendCall& call, int64_t token, const typename Type::Item* from,
                        typename Type::Item* to) {
    const int64_t half = call.half_rotated, channels = call.kv.channels;
    const float* cosines = call.cosines + token * half;
    const float* sines = call.sines + token * half;
    for (int64_t c = 0; c < half; c += kPanel) {
        const int64_t left = half - c;
        const Vec first = read_some<Type>(from + c, left), second = read_some<Type>(from + half + c, left);
        const Vec cosine = read_some<F32>(cosines + c, left), sine = read_some<F32>(sines + c, left);
        write_some<Type>(to + c, sub(mul(first, cosine), mul(second, sine)), left);
        write_some<Type>(to + half + c, add(mul(second, cosine), mul(first, sine)), left);
    }
    std::memcpy(to + 2 * half, from + 2 * half, (channels - 2 * half) * sizeof(*to));
}

// One head of queries or keys on its way: normed and rotated as the call says.
template <typename Type>
static void prepare_head(const AppendCall& call, int64_t token, const typename Type::Item* from, const void* weight,
                         typename Type::Item* to) {
    using Item = typename Type::Item;
    Item normed[kMostChannels];
    if (weight != nullptr) {
        rms_norm_row<Type>(from, static_cast<const Item*>(weight), call.kv.channels, call.epsilon, call.weight_offset,
                           normed);
        from = normed;
    }
    if (call.cosines != nullptr)
        rotate_head<Type>(call, token, from, to);
    else
        std::memcpy(to, from, call.kv.channels * sizeof(Item));
}

template <typename Type>
static const typename Type::Item* head_of(const Heads& heads, int64_t token, int64_t head) {
    return static_cast<const typename Type::Item*>(heads.data) + token * heads.token_stride + head * heads.head_stride;
}

// One key or value as the cache stores it: as it is, or as int8 with a scale.
struct AsItIs {
    template <typename Type>
    static float store(const typename Type::Item* from, int64_t size, typename Type::Item* to) {
        std::memcpy(to, from, size * sizeof(*to));
        return 1.0f;
    }
};
struct AsInt8 {
    // Gives the scale: the greatest magnitude is 127. What is not finite makes the scale NaN, so that it is not lost.
    template <typename Type>
    static float store(const typename Type::Item* from, int64_t size, int8_t* to) {
        Vec best = zero(), nothing = zero();
        for (int64_t c = 0; c < size; c += kPanel) {
            const Vec value = read_some<Type>(from + c, size - c);
            best = max(best, absolute(value));
            nothing = fma(value, zero(), nothing);
        }
        const float scale = max_of(best) / 127.0f + sum(nothing);
        const Vec inverse = splat(scale > 0 ? 1.0f / scale : 0.0f);
        for (int64_t c = 0; c < size; c += kPanel) {
            uint16_t narrow[kPanel];
            store_narrow(narrow, to_int(round_even(mul(read_some<Type>(from + c, size - c), inverse))));
            for (int64_t i = 0; i < kPanel && c + i < size; i++) to[c + i] = static_cast<int8_t>(narrow[i]);
        }
        return scale;
    }
};

// How the cache holds numbers of a type: `Item` in memory, `kStep` inputs side by side (see types.hpp).
template <typename Type, bool is_int8>
struct Stored {
    using Item = std::conditional_t<is_int8, int8_t, typename Type::Item>;
    using Way = std::conditional_t<is_int8, AsInt8, AsItIs>;
    static constexpr int64_t kStep = is_int8 || std::is_same_v<Type, BF16> ? 2 : 1;

    static int64_t key_index(int64_t channel, int64_t lane) {
        return (channel / kStep * kPanel + lane) * kStep + channel % kStep;
    }
    static int64_t value_index(int64_t channel, int64_t lane, int64_t span) {
        const int64_t block = channel / kPanel * kPanel * span;
        return block + (lane / kStep * kPanel + channel % kPanel) * kStep + lane % kStep;
    }
};

// Keys of consecutive lanes into their group, `kStep` channels at a time.
template <typename Layout>
static void write_keys(const typename Layout::Item* rows, int64_t stride, int64_t count, int64_t channels, int64_t lane,
                       std::byte* group) {
    struct Unit {
        typename Layout::Item items[Layout::kStep];
    };
    auto* to = reinterpret_cast<Unit*>(group) + lane;
    for (int64_t unit = 0; unit < divide_up(channels, Layout::kStep); unit++)
        for (int64_t i = 0; i < count; i++)
            std::memcpy(to + unit * kPanel + i, rows + i * stride + unit * Layout::kStep, sizeof(Unit));
}

// One value into its span: 16 channels lie side by side, with those of the neighbouring position between.
template <typename Layout>
static void write_value(const typename Layout::Item* value, int64_t channels, int64_t lane, int64_t span,
                        std::byte* values) {
    auto* to = reinterpret_cast<typename Layout::Item*>(values);
    for (int64_t c = 0; c < channels; c += kPanel) {
        const int64_t left = channels - c < kPanel ? channels - c : kPanel;
        if constexpr (std::is_same_v<typename Layout::Item, uint16_t> && Layout::kStep == 2) {
            uint16_t part[kPanel] = {};
            std::memcpy(part, value + c, left * sizeof(part[0]));
            uint16_t* line = to + Layout::value_index(c, lane / 2 * 2, span);
            const IntVec fresh = widen_u16(part), before = load_int(line);
            store_int(line, lane % 2 ? bit_or(bit_and(before, splat_int(0xffff)), shift_left<16>(fresh))
                                     : bit_or(bit_and(before, splat_int(-65536)), fresh));
        } else {
            for (int64_t i = 0; i < left; i++) to[Layout::value_index(c + i, lane, span)] = value[c + i];
        }
    }
}

// Writes keys and values of tokens whose slots follow each other within one span. Who writes the first position of a
// group of keys or a span of values clears it, so that what an earlier owner left (a NaN, say) never meets a position
// that is still masked.
template <typename Type, bool is_int8>
static void append_run(const AppendCall& call, int64_t token, int64_t count, int64_t head) {
    using Layout = Stored<Type, is_int8>;
    using Item = typename Layout::Item;
    const KVLayerView& kv = call.kv;
    const int64_t slot = call.slots[token], block = slot / kv.block_size, first = slot % kv.block_size;
    const int64_t span = kv.value_span();
    std::byte* values = kv.values(block, head, first / kPanel);
    if (first % span == 0) std::memset(values, 0, span / kPanel * kv.group_bytes());
    Item rows[kPanel * kMostChannels];
    Item value[kMostChannels];
    typename Type::Item key[kMostChannels];
    const int64_t stride = kv.padded_channels();
    for (int64_t done = 0, part; done < count; done += part, token += part) {
        const int64_t offset = first + done, lane = offset % kPanel;
        part = count - done < kPanel - lane ? count - done : kPanel - lane;
        std::byte* keys = kv.keys(block, head, offset / kPanel);
        if (lane == 0) std::memset(keys, 0, kv.group_bytes());
        for (int64_t i = 0; i < part; i++) {
            Item* row = rows + i * stride;
            prepare_head<Type>(call, token + i, head_of<Type>(call.keys, token + i, head), call.key_weight, key);
            const float key_scale = Layout::Way::template store<Type>(key, kv.channels, row);
            if (kv.channels % 2) row[kv.channels] = 0;
            const float value_scale =
                Layout::Way::template store<Type>(head_of<Type>(call.values, token + i, head), kv.channels, value);
            write_value<Layout>(value, kv.channels, (offset + i) % span, span, values);
            if constexpr (is_int8) {
                reinterpret_cast<float*>(keys + kv.numbers_bytes())[lane + i] = key_scale;
                reinterpret_cast<float*>(values + kv.numbers_bytes())[lane + i] = value_scale;
            }
        }
        write_keys<Layout>(rows, stride, part, kv.channels, lane, keys);
    }
}

// How many tokens from `token` on have slots that follow each other within one span of values.
static int64_t run_length(const AppendCall& call, int64_t token) {
    const int64_t slot = call.slots[token], offset = slot % call.kv.block_size, span = call.kv.value_span();
    const int64_t in_span = span - offset % span, in_block = call.kv.block_size - offset;
    const int64_t room = in_span < in_block ? in_span : in_block;
    int64_t count = 1;
    while (count < room && token + count < call.tokens && call.slots[token + count] == slot + count) count++;
    return count;
}

// Threads share runs, not tokens: two tokens may write to one span, which one of them clears.
static void run_rotate_and_append(const AppendCall& call, Workspace& workspace, int threads) {
    const int64_t query_heads = call.query.heads;
    if (call.tokens * (query_heads + call.kv.heads) * call.kv.channels < kFewNumbers) threads = 1;
    auto* starts = reinterpret_cast<int64_t*>(workspace.reserve(Workspace::kPerThread, (call.tokens + 1) * 8));
    int64_t num_runs = 0;
    for (int64_t token = 0; token < call.tokens; token += run_length(call, token)) starts[num_runs++] = token;
    starts[num_runs] = call.tokens;
    WorkRanges runs(num_runs, threads);
    run_threads(threads, [&](int thread) {
        for (int64_t run; (run = runs.take(thread)) >= 0;)
            with_type(call.dtype, [&](auto type) {
                using Type = decltype(type);
                for (int64_t token = starts[run]; token < starts[run + 1]; token++)
                    for (int64_t head = 0; head < query_heads; head++)
                        prepare_head<Type>(call, token, head_of<Type>(call.query, token, head), call.query_weight,
                                           static_cast<typename Type::Item*>(call.rotated_query) +
                                               (token * query_heads + head) * call.kv.channels);
                const auto append = call.kv.format == Format::i8 ? append_run<Type, true> : append_run<Type, false>;
                for (int64_t head = 0; head < call.kv.heads; head++)
                    append(call, starts[run], starts[run + 1] - starts[run], head);
            });
    });
}

}  // namespace kilotron::KILOTRON_ISA
