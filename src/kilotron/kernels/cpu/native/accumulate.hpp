// The one loop that everything rests on: sums[rows][panels * 16] += x[rows][inputs] @ panels, a segment of inputs after
// the other. Linear layers, experts, and both products of attention are calls of `accumulate`.
//
// An output is one chain of multiply-adds in ascending order of inputs, in registers while a segment lasts and exact in
// memory between calls. So its bits depend neither on the number of rows nor on how the work was cut.
#pragma once
#include "operands.hpp"

namespace kilotron::KILOTRON_ISA {

// A stretch of inputs. All panels of a call have the same number of them, a multiple of 16.
struct Segment {
    const std::byte* panels[kQuad];
    int64_t first_input;  // column of x
    int64_t inputs;
    // Formats with scales: the segment's sum times the scale is what is added; [16] for each panel.
    const float* scales[kQuad];
    const uint8_t* offsets[kQuad];
    // What will be needed soon, as long as each panel, is read ahead meanwhile; null: nothing.
    const std::byte* ahead[kQuad];
};

KILOTRON_INLINE static void read_ahead(const std::byte* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch((const char*)from + line, _MM_HINT_T1);
}

constexpr int64_t kPairsPerStep = 8;

template <Format format, int rows, int panels, bool has_scales>
static void accumulate_block(const Segment* segments, int64_t num_segments, const typename Operand<format>::Input* x,
                             int64_t x_stride, float* sums, int64_t sums_stride, bool is_first, int first_ahead,
                             int end_ahead) {
    using Op = Operand<format>;
    Vec total[rows][panels];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            total[r][p] = is_first ? zero() : load(sums + r * sums_stride + p * kPanel);
    for (int64_t s = 0; s < num_segments; s++) {
        const Segment& segment = segments[s];
        const auto* input = x + segment.first_input;
        Vec part[has_scales ? rows : 1][has_scales ? panels : 1];
        IntVec offsets[panels];
        for (int p = 0; p < panels; p++) {
            offsets[p] = format == Format::i4 ? load_offsets<format>(segment.offsets[p]) : splat_int(0);
            if constexpr (has_scales)
                for (int r = 0; r < rows; r++) part[r][p] = zero();
        }
        for (int64_t first = 0; first < segment.inputs / 2; first += kPairsPerStep) {
            for (int p = first_ahead; p < end_ahead; p++)
                if (segment.ahead[p] != nullptr)
                    read_ahead(segment.ahead[p] + panel_bytes(format, 2 * first), panel_bytes(format, 2 * kPairsPerStep));
#pragma GCC unroll 8
            for (int64_t pair = 0; pair < kPairsPerStep; pair++) {
                typename Op::Pair weights[panels];
#pragma GCC unroll 4
                for (int p = 0; p < panels; p++)
                    weights[p] = Op::load(segment.panels[p] + panel_bytes(format, 2 * first), pair, offsets[p]);
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                    for (int p = 0; p < panels; p++) {
                        const auto* pair_of_x = input + r * x_stride + 2 * (first + pair);
                        if constexpr (has_scales)
                            part[r][p] = Op::multiply(part[r][p], weights[p], pair_of_x);
                        else
                            total[r][p] = Op::multiply(total[r][p], weights[p], pair_of_x);
                    }
            }
        }
        if constexpr (has_scales)
            for (int p = 0; p < panels; p++) {
                const Vec scale = load(segment.scales[p]);
                for (int r = 0; r < rows; r++) total[r][p] = fma(part[r][p], scale, total[r][p]);
            }
    }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) store(sums + r * sums_stride + p * kPanel, total[r][p]);
}

template <Format format, int rows, bool has_scales>
static inline void accumulate_rows(const Segment* segments, int64_t num_segments,
                                   const typename Operand<format>::Input* x, int64_t x_stride, float* sums,
                                   int64_t sums_stride, int64_t panels, bool is_first, int first_ahead,
                                   int end_ahead) {
#if KILOTRON_AVX512
    if (panels == kQuad) {
        accumulate_block<format, rows, kQuad, has_scales>(segments, num_segments, x, x_stride, sums, sums_stride,
                                                          is_first, first_ahead, end_ahead);
        return;
    }
#endif
    Segment one[kQuad];  // as many segments as attention's values have in a tile
    for (int64_t p = 0; p < panels; p++) {
        const int is_ahead = p >= first_ahead && p < end_ahead;
        for (int64_t begin = 0; begin < num_segments; begin += kQuad) {
            const int64_t count = num_segments - begin < kQuad ? num_segments - begin : kQuad;
            for (int64_t s = 0; s < count; s++) {
                one[s] = segments[begin + s];
                one[s].panels[0] = one[s].panels[p];
                one[s].scales[0] = one[s].scales[p];
                one[s].offsets[0] = one[s].offsets[p];
                one[s].ahead[0] = one[s].ahead[p];
            }
            accumulate_block<format, rows, 1, has_scales>(one, count, x, x_stride, sums + p * kPanel, sums_stride,
                                                          is_first && begin == 0, 0, is_ahead);
        }
    }
}

// sums[rows][panels * 16] (+)= x @ segments; `is_first` overwrites them.
template <Format format, bool has_scales>
static void accumulate_vectors(const Segment* segments, int64_t num_segments,
                               const typename Operand<format>::Input* x, int64_t x_stride, float* sums,
                               int64_t sums_stride, int64_t rows, int64_t panels, bool is_first) {
    // With scales every sum takes two registers.
    constexpr int most_rows = has_scales ? 3 : 6;
    const int64_t blocks = divide_up(rows, most_rows);
    int64_t row = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t count = rows / blocks + (block < rows % blocks);
        const auto* from = x + row * x_stride;
        float* to = sums + row * sums_stride;
        // Each block of rows reads its share of the panels ahead, so that memory is busy all the time.
        const auto first_ahead = static_cast<int>(block * panels / blocks);
        const auto end_ahead = static_cast<int>((block + 1) * panels / blocks);
        switch (count) {
#define KILOTRON_ROWS(n)                                                                                             \
    case n:                                                                                                          \
        if constexpr (n <= most_rows)                                                                                \
            accumulate_rows<format, n, has_scales>(segments, num_segments, from, x_stride, to, sums_stride, panels, \
                                                   is_first, first_ahead, end_ahead);                               \
        break;
            KILOTRON_ROWS(1)
            KILOTRON_ROWS(2)
            KILOTRON_ROWS(3)
            KILOTRON_ROWS(4)
            KILOTRON_ROWS(5)
            KILOTRON_ROWS(6)
#undef KILOTRON_ROWS
            default: break;
        }
        row += count;
    }
}

}  // namespace kilotron::KILOTRON_ISA
