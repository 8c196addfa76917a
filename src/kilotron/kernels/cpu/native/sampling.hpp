// Passes over rows of logits: the greatest of each, the weights of its tokens, a draw among them, the most likely ones.
//
// A token's weight is floor(e^exponent * 2^44), exponent = (logit - best of the row) * inverse temperature. Sums of
// weights are exact, so a row may be cut into pieces, and threads may share them, without changing a bit of a result.
#pragma once
#include <algorithm>

#include "simd.hpp"
#include "threads.hpp"
#include "workspace.hpp"

namespace kilotron::KILOTRON_ISA {

// Columns of a row that one thread takes at a time. Sums of halves of weights, below 2^22 each, fit 32 bits in it.
constexpr int64_t kPiece = 4096;
constexpr int64_t kFewLogits = 16384;  // below so many a second thread costs more than it saves
constexpr int kHalfBits = 22;
constexpr int64_t kDeepestGroup = 64;
constexpr float kLowest = -__builtin_inff();

// One row, its numbers in every lane.
struct Tempered {
    const float* logits;
    Vec best, inverse_temperature, threshold;

    Vec exponents(Vec logit) const { return mul(sub(logit, best), inverse_temperature); }
};

static Tempered row_of(const RowsCall& call, int64_t row) {
    return {call.logits + call.rows[row] * call.stride, splat(call.best[row]), splat(call.inverse_temperatures[row]),
            splat(call.thresholds == nullptr ? kLowest : call.thresholds[row])};
}

// 16 of a row's columns; beyond its end -inf, which is no token.
static inline Vec read_columns(const float* p, int64_t left) {
    if (left >= kPanel) return load(p);
    float part[kPanel];
    for (int64_t i = 0; i < kPanel; i++) part[i] = i < left ? p[i] : kLowest;
    return load(part);
}

// 16 weights as high * 2^22 + low; 32 bits hold each half, and every instruction set adds such numbers.
struct Weights {
    IntVec high, low;
};

// Both products are exact, and so is the difference: it has no more digits than the weight itself.
static inline Weights weigh(Vec exponents) {
    const Vec scaled = mul(exp(exponents), splat(0x1p44f));
    const Vec high = round_down(mul(scaled, splat(0x1p-22f)));
    const Vec low = round_down(fma(high, splat(-0x1p22f), scaled));
    return {to_int(high), to_int(low)};
}

// Weights of 16 columns; 0 for those below the row's threshold.
static inline Weights weigh_columns(const Tempered& row, int64_t column, int64_t left) {
    const Vec exponents = row.exponents(read_columns(row.logits + column, left));
    return weigh(select_less(exponents, row.threshold, splat(kLowest), exponents));
}

static inline void widen(const Weights& weights, int64_t* wide) {
    int32_t high[kPanel], low[kPanel];
    store_int(high, weights.high);
    store_int(low, weights.low);
    for (int64_t i = 0; i < kPanel; i++) wide[i] = int64_t{high[i]} * (1 << kHalfBits) + low[i];
}

static inline int64_t total_of(const Weights& weights) {
    int64_t wide[kPanel], total = 0;
    widen(weights, wide);
    for (const int64_t weight : wide) total += weight;
    return total;
}

// Calls work(row, piece) for every piece of every row.
template <typename Work>
static void for_pieces(const RowsCall& call, int threads, const Work& work) {
    const int64_t pieces = divide_up(call.columns, kPiece);
    if (call.num_rows * call.columns < kFewLogits) threads = 1;
    WorkRanges all(call.num_rows * pieces, threads);
    run_threads(threads, [&](int thread) {
        for (int64_t taken; (taken = all.take(thread)) >= 0;) work(taken / pieces, taken % pieces);
    });
}

// The greatest of some columns; NaN if one of them is.
static float max_of_piece(const float* x, int64_t size) {
    Vec best = splat(kLowest);
    IntVec nans = splat_int(0);
    for (int64_t i = 0; i < size; i += kPanel) {
        const Vec value = read_columns(x + i, size - i);
        best = max(value, best);
        nans = select_nan(value, splat_int(1), nans);
    }
    int32_t has_nan[kPanel];
    store_int(has_nan, nans);
    for (const int32_t is_nan : has_nan)
        if (is_nan) return __builtin_nanf("");
    return max_of(best);
}

static int64_t find_value(const float* x, int64_t size, float value) {
    for (int64_t i = 0; i < size; i += kPanel) {
        const uint32_t reach = at_least(read_columns(x + i, size - i), splat(value));
        if (reach != 0) return i + __builtin_ctz(reach);
    }
    return 0;
}

// Reads logits, stride, columns and num_rows of the call.
static void run_max_of_rows(const RowsCall& call, float* best, int64_t* ids, Workspace& workspace, int threads) {
    const int64_t pieces = divide_up(call.columns, kPiece);
    auto* maxima =
        reinterpret_cast<float*>(workspace.reserve(Workspace::kPieces, call.num_rows * pieces * sizeof(float)));
    for_pieces(call, threads, [&](int64_t row, int64_t piece) {
        const int64_t first = piece * kPiece, left = call.columns - first;
        maxima[row * pieces + piece] =
            max_of_piece(call.logits + row * call.stride + first, left < kPiece ? left : kPiece);
    });
    for (int64_t row = 0; row < call.num_rows; row++) {
        int64_t piece = 0;
        for (int64_t p = 0; p < pieces; p++) {
            const float value = maxima[row * pieces + p];
            if (value > maxima[row * pieces + piece] || value != value) piece = p;
            if (value != value) break;
        }
        const int64_t first = piece * kPiece, left = call.columns - first;
        best[row] = maxima[row * pieces + piece];
        const float* x = call.logits + row * call.stride + first;
        ids[row] = first + find_value(x, left < kPiece ? left : kPiece, best[row]);
    }
}

static void run_weigh(const float* exponents, int64_t count, int64_t* weights, int threads) {
    if (count < kFewLogits) threads = 1;
    WorkRanges pieces(divide_up(count, kPiece), threads);
    run_threads(threads, [&](int thread) {
        for (int64_t piece; (piece = pieces.take(thread)) >= 0;)
            for (int64_t i = piece * kPiece; i < count && i < (piece + 1) * kPiece; i += kPanel) {
                int64_t wide[kPanel];
                const int64_t left = count - i < kPanel ? count - i : kPanel;
                widen(weigh(read_columns(exponents + i, left)), wide);
                std::memcpy(weights + i, wide, left * sizeof(int64_t));
            }
    });
}

// The total of every piece of every row, [rows][pieces].
static int64_t* sum_pieces(const RowsCall& call, Workspace& workspace, int threads) {
    const int64_t pieces = divide_up(call.columns, kPiece);
    auto* sums =
        reinterpret_cast<int64_t*>(workspace.reserve(Workspace::kPieces, call.num_rows * pieces * sizeof(int64_t)));
    for_pieces(call, threads, [&](int64_t number, int64_t piece) {
        const Tempered row = row_of(call, number);
        Weights sum = {splat_int(0), splat_int(0)};
        for (int64_t i = piece * kPiece; i < call.columns && i < (piece + 1) * kPiece; i += kPanel) {
            const Weights weights = weigh_columns(row, i, call.columns - i);
            sum = {add(sum.high, weights.high), add(sum.low, weights.low)};
        }
        sums[number * pieces + piece] = total_of(sum);
    });
    return sums;
}

static void run_sum_weights(const RowsCall& call, int64_t* totals, Workspace& workspace, int threads) {
    const int64_t pieces = divide_up(call.columns, kPiece);
    const int64_t* sums = sum_pieces(call, workspace, threads);
    for (int64_t row = 0; row < call.num_rows; row++) {
        totals[row] = 0;
        for (int64_t piece = 0; piece < pieces; piece++) totals[row] += sums[row * pieces + piece];
    }
}

// The first column from `first` on at which the weights so far exceed the target, or the last column.
static int64_t locate(const Tempered& row, int64_t first, int64_t columns, int64_t target) {
    for (int64_t i = first; i < columns; i += kPanel) {
        const Weights weights = weigh_columns(row, i, columns - i);
        const int64_t total = total_of(weights);
        if (target >= total) {
            target -= total;
            continue;
        }
        int64_t wide[kPanel];
        widen(weights, wide);
        for (int64_t lane = 0; lane < kPanel; lane++) {
            if (target < wide[lane]) return i + lane;
            target -= wide[lane];
        }
    }
    return columns - 1;
}

static void run_draw(const RowsCall& call, const double* uniforms, int64_t* tokens, Workspace& workspace, int threads) {
    const int64_t pieces = divide_up(call.columns, kPiece);
    const int64_t* all_sums = sum_pieces(call, workspace, threads);
    for (int64_t number = 0; number < call.num_rows; number++) {
        const int64_t* sums = all_sums + number * pieces;
        int64_t total = 0, piece = 0;
        for (int64_t p = 0; p < pieces; p++) total += sums[p];
        // As find_targets in kernels/reference/exact_weights.py.
        auto target = static_cast<int64_t>(uniforms[number] * static_cast<double>(total));
        for (; piece + 1 < pieces && target >= sums[piece]; piece++) target -= sums[piece];
        tokens[number] = locate(row_of(call, number), piece * kPiece, call.columns, target);
    }
}

// The standard library's algorithms on types of this namespace, so that each instruction set has its own.
struct Candidate {
    float value;
    int32_t id;
};
struct IsBefore {
    KILOTRON_INLINE bool operator()(const Candidate& a, const Candidate& b) const {
        return a.value > b.value || (a.value == b.value && a.id < b.id);
    }
};

// The greatest of each `depth` columns that lie 16 apart; columns of NaN do not count.
static int64_t find_maxima(const float* x, int64_t columns, int64_t depth, float* maxima) {
    int64_t count = 0;
    for (int64_t first = 0; first < columns; first += depth * kPanel, count += kPanel) {
        Vec best = splat(kLowest);
        for (int64_t i = first; i < columns && i < first + depth * kPanel; i += kPanel)
            best = max(read_columns(x + i, columns - i), best);
        store(maxima + count, best);
    }
    return count;
}

// The greatest `count` of a row, in order. As many maxima of groups reach the bound, so as many columns do, and only
// the groups of those have to be looked at again. `maxima` and `found` have room for 16 more than the columns.
static void list_row(const float* x, int64_t columns, int64_t count, float* maxima, Candidate* found, float* values,
                     int64_t* ids) {
    const int64_t wanted = columns / (4 * count);
    const int64_t depth = wanted < 1 ? 1 : wanted > kDeepestGroup ? kDeepestGroup : wanted;
    const int64_t num_maxima = find_maxima(x, columns, depth, maxima);
    float bound = kLowest;
    if (num_maxima > count) {
        for (int64_t i = 0; i < num_maxima; i++) found[i] = {maxima[i], static_cast<int32_t>(i)};
        std::nth_element(found, found + count - 1, found + num_maxima, IsBefore());
        bound = found[count - 1].value;
    }
    int64_t num_found = 0;
    for (int64_t group = 0; group * kPanel < num_maxima; group++) {
        if (at_least(load(maxima + group * kPanel), splat(bound)) == 0) continue;
        for (int64_t i = group * depth * kPanel; i < columns && i < (group + 1) * depth * kPanel; i += kPanel) {
            uint32_t reach = at_least(read_columns(x + i, columns - i), splat(bound));
            if (columns - i < kPanel) reach &= (1u << (columns - i)) - 1;
            for (; reach != 0; reach &= reach - 1) {
                const int64_t id = i + __builtin_ctz(reach);
                found[num_found++] = {x[id], static_cast<int32_t>(id)};
            }
        }
    }
    if (num_found > count) std::nth_element(found, found + count - 1, found + num_found, IsBefore());
    const int64_t listed = num_found < count ? num_found : count;
    std::sort(found, found + listed, IsBefore());
    for (int64_t i = 0; i < count; i++) {
        values[i] = i < listed ? found[i].value : kLowest;
        ids[i] = i < listed ? found[i].id : 0;
    }
}

// Reads logits, stride, columns, rows and num_rows of the call.
static void run_list_greatest(const RowsCall& call, int64_t count, float* values, int64_t* ids, Workspace& workspace,
                              int threads) {
    if (call.num_rows * call.columns < kFewLogits) threads = 1;
    if (threads > call.num_rows) threads = static_cast<int>(call.num_rows);
    const int64_t room = round_up(call.columns, kPanel) + kPanel;
    const int64_t bytes = room * static_cast<int64_t>(sizeof(Candidate) + sizeof(float));
    std::byte* memory = workspace.reserve(Workspace::kPerThread, threads * bytes);
    WorkRanges rows(call.num_rows, threads);
    run_threads(threads, [&](int thread) {
        auto* found = reinterpret_cast<Candidate*>(memory + thread * bytes);
        auto* maxima = reinterpret_cast<float*>(found + room);
        for (int64_t row; (row = rows.take(thread)) >= 0;)
            list_row(call.logits + call.rows[row] * call.stride, call.columns, count, maxima, found,
                     values + row * count, ids + row * count);
    });
}

}  // namespace kilotron::KILOTRON_ISA
