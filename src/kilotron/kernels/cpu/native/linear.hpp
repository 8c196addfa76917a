// x @ matrix with bias, activation and residual, for one matrix or many at once (experts).
#pragma once
#include "accumulate.hpp"
#include "threads.hpp"
#include "workspace.hpp"
#if KILOTRON_AMX
#include "tiles.hpp"
#endif

namespace kilotron::KILOTRON_ISA {

#if !KILOTRON_AMX
struct TileUse {};
#endif

constexpr int64_t kRowChunk = KILOTRON_AMX ? 384 : 192;  // most rows whose sums stay in the cache while a quad passes
constexpr int64_t kChunkBytes = 5 << 18;  // of those rows of x, as bf16
constexpr int64_t kInputChunk = 4096;   // inputs of a quad of panels that stay in the cache while rows pass
constexpr int64_t kDecodeChunk = 1024;  // inputs of a quantized quad that are decoded at a time; the largest group
constexpr int64_t kFewRows = 32;        // so few that a quad is decoded in pieces for the first-level cache,
constexpr int64_t kDecodePiece = 256;   // of so many inputs
constexpr int64_t kSegments = 16;       // groups of inputs that one call takes in
constexpr int64_t kRowsToDecode = 7;    // from so many rows on, quantized panels are decoded to bf16 once

// Sums of a quad, and what is needed to make them, for one thread.
struct alignas(64) QuadScratch {
    float sums[kRowChunk][kQuad * kPanel];
    float parts[kRowChunk][kQuad * kPanel];
    uint16_t decoded[kQuad][kDecodeChunk * kPanel];
};

// Whether a format's inputs are given as float32 rather than bf16.
static inline bool takes_floats(Format format) { return !KILOTRON_BF16 || !is_exact_in_bf16(format); }

// Whether rows of x are wanted in the order of tiles: [blocks of 16][padded inputs / 32][16][32], and where there are
// fewer than 16 rows, so many in place of 16.
static inline bool takes_tiles(Format format) { return KILOTRON_AMX && is_exact_in_bf16(format); }

static inline int64_t rows_of_block(int64_t rows) { return rows < kPanel ? rows : kPanel; }

// Rows that a thread takes at a time: all alike, so that none is left with a few.
static inline int64_t rows_of_chunk(const Matrix& matrix, int64_t rows) {
    constexpr int64_t unit = 2 * kPanel;
    const int64_t fitting = kChunkBytes / (2 * matrix.padded_inputs) / unit * unit;
    const int64_t most = fitting < kRowChunk / 2 ? kRowChunk / 2 : fitting < kRowChunk ? fitting : kRowChunk;
    return round_up(divide_up(rows, divide_up(rows, most)), unit);
}

template <Format format, bool has_scales>
static void accumulate(const Segment* segments, int64_t num_segments, const void* x, int64_t x_stride, float* sums,
                       int64_t rows, [[maybe_unused]] int64_t block_rows, int64_t panels, bool is_first) {
    using Input = typename Operand<format>::Input;
#if KILOTRON_AMX
    if constexpr (format == Format::bf16 && !has_scales) {
        const TileRows tiles = {static_cast<const uint16_t*>(x), kInputs, kInputs * block_rows, kPanel * x_stride};
        accumulate_with_tiles(segments, num_segments, tiles, sums, kQuad * kPanel, rows, panels, is_first);
        return;
    }
#endif
    accumulate_vectors<format, has_scales>(segments, num_segments, static_cast<const Input*>(x), x_stride, sums,
                                           kQuad * kPanel, rows, panels, is_first);
}

// Whole numbers of a quantized segment as bf16, in the same order of panels.
template <Format format>
static void decode_panel(const std::byte* panel, const uint8_t* offsets, const std::byte* ahead, int64_t inputs,
                         uint16_t* decoded) {
    const IntVec less = format == Format::i4 ? load_offsets<format>(offsets) : splat_int(0);
    for (int64_t first = 0; first < inputs / 2; first += kPairsPerStep) {
        const std::byte* step = panel + panel_bytes(format, 2 * first);
        if (ahead != nullptr)
            read_ahead(ahead + panel_bytes(format, 2 * first), panel_bytes(format, 2 * kPairsPerStep));
#pragma GCC unroll 8
        for (int64_t pair = 0; pair < kPairsPerStep; pair++) {
            const auto both = Operand<format>::load(step, pair, less);
            uint16_t* to = decoded + (first + pair) * 2 * kPanel;
            if constexpr (std::is_same_v<typename Operand<format>::Input, float>)
                store_int(to, bit_or(shift_right<16>(bits_of(both.even)), bit_and(bits_of(both.odd), splat_int(-65536))));
            else
                std::memcpy(to, &both, sizeof(both));
        }
    }
}

// One quad of panels, one chunk of rows.
class Quad {
  public:
    Quad(const LinearCall& call, const void* x, int64_t x_stride, int64_t first_panel, QuadScratch& scratch)
        : call_(call), matrix_(*call.matrix), x_(x), x_stride_(x_stride), first_panel_(first_panel),
          panels_(matrix_.num_panels - first_panel < kQuad ? matrix_.num_panels - first_panel : kQuad),
          block_rows_(rows_of_block(call.rows)), scratch_(scratch) {}

    void run(int64_t first_row, int64_t rows) {
        const int64_t x_bytes = takes_floats(matrix_.format) ? 4 : 2;
        const void* x = static_cast<const std::byte*>(x_) + first_row * x_stride_ * x_bytes;
        for (int64_t input = 0; input < matrix_.padded_inputs; input += kInputChunk) {
            const int64_t left = matrix_.padded_inputs - input;
            take_in(x, rows, input, left < kInputChunk ? left : kInputChunk);
        }
        finish(first_row, rows);
    }

  private:
    void take_in(const void* x, int64_t rows, int64_t input, int64_t inputs) {
        switch (matrix_.format) {
            case Format::f32: return take_plain<Format::f32>(x, rows, input, inputs);
            case Format::f16: return take_plain<Format::f16>(x, rows, input, inputs);
            case Format::bf16: return take_plain<Format::bf16>(x, rows, input, inputs);
            case Format::i8: return take_quantized<Format::i8>(x, rows, input, inputs);
            case Format::i4: return take_quantized<Format::i4>(x, rows, input, inputs);
        }
    }

    const std::byte* panel(int64_t number, int64_t input) const {
        const int64_t bytes = panel_bytes(matrix_.format, matrix_.padded_inputs);
        return matrix_.panels + (first_panel_ + number) * bytes + panel_bytes(matrix_.format, input);
    }

    // How far beyond each byte of a chunk of inputs lies what this thread most likely needs next: the following inputs,
    // or the next quad's first ones. 0: nothing.
    int64_t distance_ahead(int64_t input, int64_t inputs) const {
        if (input + inputs < matrix_.padded_inputs) return panel_bytes(matrix_.format, inputs);
        return first_panel_ + 2 * kQuad > matrix_.num_panels ? 0 : panel(kQuad, 0) - panel(0, input);
    }

    Segment segment(int64_t input, int64_t inputs, int64_t distance) const {
        Segment result;
        result.first_input = input;
        result.inputs = inputs;
        for (int64_t p = 0; p < panels_; p++) {
            result.panels[p] = panel(p, input);
            result.ahead[p] = distance == 0 ? nullptr : result.panels[p] + distance;
            if (matrix_.scales == nullptr) continue;
            const int64_t group = (first_panel_ + p) * matrix_.num_groups + input / matrix_.group_size;
            result.scales[p] = matrix_.scales + group * kPanel;
            result.offsets[p] = matrix_.offsets + group * kPanel;
        }
        return result;
    }

    template <Format format>
    void take_plain(const void* x, int64_t rows, int64_t input, int64_t inputs) {
        const Segment one = segment(input, inputs, distance_ahead(input, inputs));
        accumulate<format, false>(&one, 1, x, x_stride_, scratch_.sums[0], rows, block_rows_, panels_, input == 0);
    }

    template <Format format>
    void take_quantized(const void* x, int64_t rows, int64_t input, int64_t inputs) {
        const bool is_decoded = KILOTRON_AMX || rows >= kRowsToDecode;
        const bool is_whole = matrix_.num_groups == 1;
        const int64_t distance = distance_ahead(input, inputs);
        Segment segments[kSegments];
        int64_t count = 0, first_of_segments = input;
        for (int64_t begin = input, end; begin < input + inputs; begin = end) {
            const int64_t group_end = (begin / matrix_.group_size + 1) * matrix_.group_size;
            end = group_end < input + inputs ? group_end : input + inputs;
            if (is_decoded) {
                // A group is never cut: its sum is rounded before the scale is applied.
                const int64_t most = is_whole && rows <= kFewRows ? kDecodePiece : kDecodeChunk;
                if (end - begin > most) end = begin + most;
                take_decoded<format>(segment(begin, end - begin, distance), x, rows, begin == 0, is_whole);
                continue;
            }
            segments[count++] = segment(begin, end - begin, distance);
            if (count < kSegments && end < input + inputs) continue;
            const bool is_first = first_of_segments == 0;
            if (is_whole)
                accumulate<format, false>(segments, count, x, x_stride_, scratch_.sums[0], rows, block_rows_, panels_,
                                          is_first);
            else
                accumulate<format, true>(segments, count, x, x_stride_, scratch_.sums[0], rows, block_rows_, panels_,
                                         is_first);
            first_of_segments = end;
            count = 0;
        }
    }

    // A single scale for all inputs is applied at the end, one per group as the groups pass.
    template <Format format>
    void take_decoded(Segment one, const void* x, int64_t rows, bool is_first, bool is_whole) {
        for (int64_t p = 0; p < panels_; p++) {
            decode_panel<format>(one.panels[p], one.offsets[p], one.ahead[p], one.inputs, scratch_.decoded[p]);
            one.panels[p] = reinterpret_cast<const std::byte*>(scratch_.decoded[p]);
            one.ahead[p] = nullptr;
        }
        float* sums = is_whole ? scratch_.sums[0] : scratch_.parts[0];
        accumulate<Format::bf16, false>(&one, 1, x, x_stride_, sums, rows, block_rows_, panels_, is_whole ? is_first : true);
        if (is_whole) return;
        for (int64_t p = 0; p < panels_; p++) {
            const Vec scale = load(one.scales[p]);
            for (int64_t r = 0; r < rows; r++) {
                float* total = scratch_.sums[r] + p * kPanel;
                const Vec before = is_first ? zero() : load(total);
                store(total, fma(load(scratch_.parts[r] + p * kPanel), scale, before));
            }
        }
    }

    // Sums to results: scale, bias, activation, residual, and the one rounding.
    void finish(int64_t first_row, int64_t rows) {
        with_type(call_.result_dtype, [&](auto type) {
            using Type = decltype(type);
            using Item = typename Type::Item;
            for (int64_t r = 0; r < rows; r++) {
                const int64_t row = first_row + r;
                auto* result = static_cast<Item*>(call_.result) + row * call_.result_stride;
                const auto* residual = static_cast<const Item*>(call_.residual);
                if (residual != nullptr) residual += row * call_.residual_stride;
                const bool is_gated = matrix_.activation.is_gated;
                const int64_t step = is_gated ? 2 : 1;
                for (int64_t p = 0; p < panels_; p += step) {
                    const int64_t column = (first_panel_ + p) / step * kPanel;
                    Vec value = activate(matrix_.activation, sum_of(r, p));
                    if (is_gated) value = mul(value, adjust_linear(matrix_.activation, sum_of(r, p + 1)));
                    const int64_t left = matrix_.outputs - column;
                    if (residual != nullptr) value = add(value, read_some<Type>(residual + column, left));
                    write_some<Type>(result + column, value, left);
                }
            }
        });
    }

    Vec sum_of(int64_t row, int64_t p) const {
        Vec value = load(scratch_.sums[row] + p * kPanel);
        const int64_t panel = first_panel_ + p;
        if (matrix_.scales != nullptr && matrix_.num_groups == 1) value = mul(value, load(matrix_.scales + panel * kPanel));
        return matrix_.bias == nullptr ? value : add(value, load(matrix_.bias + panel * kPanel));
    }

    const LinearCall& call_;
    const Matrix& matrix_;
    const void* x_;
    int64_t x_stride_;
    int64_t first_panel_;
    int64_t panels_;
    int64_t block_rows_;
    QuadScratch& scratch_;
};

// A row of x in the form the loop wants, zero beyond the inputs there are.
static void prepare_row(const LinearCall& call, int64_t row, std::byte* prepared) {
    const Matrix& matrix = *call.matrix;
    const bool as_floats = takes_floats(matrix.format), as_tiles = takes_tiles(matrix.format);
    const int64_t block_rows = rows_of_block(call.rows);
    const int64_t first = as_tiles ? row / kPanel * kPanel * matrix.padded_inputs + row % kPanel * kInputs
                                   : row * matrix.padded_inputs;
    const int64_t tile_stride = as_tiles ? block_rows * kInputs : kInputs;
    with_type(call.x_dtype, [&](auto type) {
        using Type = decltype(type);
        const auto* x = static_cast<const typename Type::Item*>(call.x) + row * call.x_stride;
        for (int64_t input = 0; input < matrix.padded_inputs; input += kPanel) {
            const int64_t left = matrix.inputs - input;
            const Vec values = left > 0 ? read_some<Type>(x + input, left) : zero();
            const int64_t to = first + input / kInputs * tile_stride + input % kInputs;
            if (as_floats)
                store(reinterpret_cast<float*>(prepared) + to, values);
            else
                store_bf16(reinterpret_cast<uint16_t*>(prepared) + to, values);
        }
    });
}

// Runs the calls, all of whose matrices have the same inputs and format.
static void run_linear(const LinearCall* calls, int64_t num_calls, Workspace& workspace, int threads) {
    const Matrix& matrix = *calls[0].matrix;
    const bool as_tiles = takes_tiles(matrix.format);
    const DType wanted = takes_floats(matrix.format) ? DType::f32 : DType::bf16;
    const bool is_copied = as_tiles || calls[0].x_dtype != wanted || matrix.inputs != matrix.padded_inputs;
    // Rows that a call's prepared x takes up: whole blocks, but for a single one.
    const auto prepared_rows_of = [&](const LinearCall& call) {
        return as_tiles && call.rows > kPanel ? round_up(call.rows, kPanel) : call.rows;
    };
    const auto num_tasks_of = [&](const LinearCall& call) {
        return divide_up(call.rows, rows_of_chunk(matrix, call.rows)) * divide_up(call.matrix->num_panels, kQuad);
    };
    int64_t num_rows = 0, num_prepared = 0, num_tasks = 0;
    for (int64_t c = 0; c < num_calls; c++) {
        num_rows += calls[c].rows;
        num_prepared += prepared_rows_of(calls[c]);
        num_tasks += num_tasks_of(calls[c]);
    }
    const int64_t row_bytes = matrix.padded_inputs * item_bytes(wanted);
    std::byte* prepared = is_copied ? workspace.reserve(Workspace::kInput, num_prepared * row_bytes) : nullptr;
    auto* scratch =
        reinterpret_cast<QuadScratch*>(workspace.reserve(Workspace::kPerThread, threads * sizeof(QuadScratch)));
    WorkRanges rows(is_copied ? num_rows : 0, threads), tasks(num_tasks, threads);
    run_threads(threads, [&](int thread) {
        if (is_copied) {
            for (int64_t row; (row = rows.take(thread)) >= 0;) {
                int64_t call = 0;
                std::byte* to = prepared;
                for (; row >= calls[call].rows; call++) {
                    row -= calls[call].rows;
                    to += prepared_rows_of(calls[call]) * row_bytes;
                }
                prepare_row(calls[call], row, to);
            }
#pragma omp barrier
        }
        [[maybe_unused]] const TileUse tiles{};
        for (int64_t task; (task = tasks.take(thread)) >= 0;) {
            int64_t call = 0;
            const std::byte* from = prepared;
            for (int64_t count; task >= (count = num_tasks_of(calls[call])); call++) {
                task -= count;
                from += is_copied ? prepared_rows_of(calls[call]) * row_bytes : 0;
            }
            const LinearCall& one = calls[call];
            const int64_t quads = divide_up(one.matrix->num_panels, kQuad), chunk = rows_of_chunk(matrix, one.rows);
            const int64_t first_row = task / quads * chunk, left = one.rows - first_row;
            Quad quad(one, is_copied ? from : one.x, is_copied ? matrix.padded_inputs : one.x_stride,
                      task % quads * kQuad, scratch[thread]);
            quad.run(first_row, left < chunk ? left : chunk);
        }
    });
}

}  // namespace kilotron::KILOTRON_ISA
