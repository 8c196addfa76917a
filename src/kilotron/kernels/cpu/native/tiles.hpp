// `accumulate` on AMX: tiles of 16 rows by 32 inputs of bf16 times 32 inputs by 16 outputs.
//
// A tile instruction sums its even inputs and its odd inputs apart, adds the two and then adds to the output: another
// order than the vector code's, and the same for every number of rows, because here tiles serve a single row too.
#pragma once
#include "accumulate.hpp"

namespace kilotron::KILOTRON_ISA {

#if KILOTRON_AMX_EMULATED

// The tile registers in memory, for machines without them: what the manual says each instruction computes (Intel
// Architecture Instruction Set Extensions Programming Reference, TDPBF16PS).
struct EmulatedTiles {
    uint8_t rows[8];
    uint16_t row_bytes[8];
    alignas(64) std::byte data[8][16][64];
};
static thread_local EmulatedTiles tiles;

static inline float bf16_to_float(uint16_t x) {
    const uint32_t bits = uint32_t{x} << 16;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}
static void tile_load(int tile, const void* base, int64_t stride) {
    for (int r = 0; r < tiles.rows[tile]; r++)
        std::memcpy(tiles.data[tile][r], static_cast<const std::byte*>(base) + r * stride, tiles.row_bytes[tile]);
}
static void tile_store(int tile, void* base, int64_t stride) {
    for (int r = 0; r < tiles.rows[tile]; r++)
        std::memcpy(static_cast<std::byte*>(base) + r * stride, tiles.data[tile][r], tiles.row_bytes[tile]);
}
static void tile_zero(int tile) { std::memset(tiles.data[tile], 0, sizeof(tiles.data[tile])); }
static void tile_multiply(int sums, int left, int right) {
    for (int r = 0; r < tiles.rows[sums]; r++) {
        const auto* x = reinterpret_cast<const uint16_t*>(tiles.data[left][r]);
        auto* result = reinterpret_cast<float*>(tiles.data[sums][r]);
        float even[16] = {}, odd[16] = {};
        for (int pair = 0; pair < tiles.row_bytes[left] / 4; pair++) {
            const auto* w = reinterpret_cast<const uint16_t*>(tiles.data[right][pair]);
            for (int n = 0; n < 16; n++) {
                even[n] = __builtin_fmaf(bf16_to_float(x[2 * pair]), bf16_to_float(w[2 * n]), even[n]);
                odd[n] = __builtin_fmaf(bf16_to_float(x[2 * pair + 1]), bf16_to_float(w[2 * n + 1]), odd[n]);
            }
        }
        for (int n = 0; n < 16; n++) result[n] += even[n] + odd[n];
    }
}
static void configure_tiles(const uint8_t* rows, const uint16_t* row_bytes) {
    std::memcpy(tiles.rows, rows, sizeof(tiles.rows));
    std::memcpy(tiles.row_bytes, row_bytes, sizeof(tiles.row_bytes));
}
static void release_tiles() {}

#define KILOTRON_TILE_LOAD(tile, base, stride) tile_load(tile, base, stride)
#define KILOTRON_TILE_STORE(tile, base, stride) tile_store(tile, base, stride)
#define KILOTRON_TILE_ZERO(tile) tile_zero(tile)
#define KILOTRON_TILE_MULTIPLY(sums, left, right) tile_multiply(sums, left, right)

#else

static inline void configure_tiles(const uint8_t* rows, const uint16_t* row_bytes) {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    std::memcpy(config.rows, rows, 8);
    std::memcpy(config.row_bytes, row_bytes, 16);
    __asm__ volatile("" : : "r"(&config) : "memory");  // gcc 12 believes that only 8 bytes of it are read
    _tile_loadconfig(&config);
}
static inline void release_tiles() { _tile_release(); }

#define KILOTRON_TILE_LOAD(tile, base, stride) _tile_loadd(tile, base, stride)
#define KILOTRON_TILE_STORE(tile, base, stride) _tile_stored(tile, base, stride)
#define KILOTRON_TILE_ZERO(tile) _tile_zero(tile)
#define KILOTRON_TILE_MULTIPLY(sums, left, right) _tile_dpbf16ps(sums, left, right)

#endif

// Tiles 0-3 hold sums (two row blocks by two panels), 4-5 rows of x, 6-7 panels.
static inline void configure_for(int64_t upper_rows, int64_t lower_rows, int64_t inputs) {
    const auto upper = static_cast<uint8_t>(upper_rows), lower = static_cast<uint8_t>(lower_rows ? lower_rows : 1);
    const auto pairs = static_cast<uint8_t>(inputs / 2);
    const auto x_bytes = static_cast<uint16_t>(inputs * 2);
    const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, pairs, pairs};
    const uint16_t row_bytes[8] = {64, 64, 64, 64, x_bytes, x_bytes, 64, 64};
    configure_tiles(rows, row_bytes);
}

// Up to 32 rows and 2 panels of all segments, each of which has a multiple of `tile_inputs`.
template <bool has_lower, bool has_right>
static void accumulate_tiles(const Segment* segments, int64_t num_segments, int64_t panel, const uint16_t* x,
                             int64_t x_stride, int64_t upper_rows, int64_t tile_inputs, float* sums,
                             int64_t sums_stride, bool is_first, ReadAhead& ahead) {
    const uint16_t* lower_x = x + upper_rows * x_stride;
    float* lower_sums = sums + upper_rows * sums_stride;
    const int64_t sums_bytes = sums_stride * 4, x_bytes = x_stride * 2;
    if (is_first) {
        KILOTRON_TILE_ZERO(0);
        if (has_right) KILOTRON_TILE_ZERO(1);
        if (has_lower) KILOTRON_TILE_ZERO(2);
        if (has_lower && has_right) KILOTRON_TILE_ZERO(3);
    } else {
        KILOTRON_TILE_LOAD(0, sums, sums_bytes);
        if (has_right) KILOTRON_TILE_LOAD(1, sums + kPanel, sums_bytes);
        if (has_lower) KILOTRON_TILE_LOAD(2, lower_sums, sums_bytes);
        if (has_lower && has_right) KILOTRON_TILE_LOAD(3, lower_sums + kPanel, sums_bytes);
    }
    for (int64_t s = 0; s < num_segments; s++) {
        const Segment& segment = segments[s];
        for (int64_t input = 0; input < segment.inputs; input += tile_inputs) {
            const int64_t offset = panel_bytes(Format::bf16, input), column = segment.first_input + input;
            ahead.lines(has_right ? 32 : 16);
            KILOTRON_TILE_LOAD(4, x + column, x_bytes);
            KILOTRON_TILE_LOAD(6, segment.panels[panel] + offset, 64);
            KILOTRON_TILE_MULTIPLY(0, 4, 6);
            if (has_right) {
                KILOTRON_TILE_LOAD(7, segment.panels[panel + 1] + offset, 64);
                KILOTRON_TILE_MULTIPLY(1, 4, 7);
            }
            if (has_lower) {
                KILOTRON_TILE_LOAD(5, lower_x + column, x_bytes);
                KILOTRON_TILE_MULTIPLY(2, 5, 6);
                if (has_right) KILOTRON_TILE_MULTIPLY(3, 5, 7);
            }
        }
    }
    KILOTRON_TILE_STORE(0, sums, sums_bytes);
    if (has_right) KILOTRON_TILE_STORE(1, sums + kPanel, sums_bytes);
    if (has_lower) KILOTRON_TILE_STORE(2, lower_sums, sums_bytes);
    if (has_lower && has_right) KILOTRON_TILE_STORE(3, lower_sums + kPanel, sums_bytes);
}

// The twin of `accumulate_vectors` for bf16. Segments are at least `tile_inputs` long and multiples of it: 32, or the
// 16 positions of attention's values.
static void accumulate_with_tiles(const Segment* segments, int64_t num_segments, const uint16_t* x, int64_t x_stride,
                                  float* sums, int64_t sums_stride, int64_t rows, int64_t panels, bool is_first,
                                  ReadAhead& ahead) {
    const int64_t tile_inputs = segments[0].inputs % kInputs ? kPanel : kInputs;
    for (int64_t row = 0; row < rows; row += 2 * kPanel) {
        const int64_t left = rows - row;
        const int64_t upper = left < kPanel ? left : kPanel;
        const int64_t lower = left <= kPanel ? 0 : (left < 2 * kPanel ? left : 2 * kPanel) - kPanel;
        configure_for(upper, lower, tile_inputs);
        const uint16_t* from = x + row * x_stride;
        for (int64_t panel = 0; panel < panels; panel += 2) {
            float* to = sums + row * sums_stride + panel * kPanel;
            const bool has_right = panel + 1 < panels;
            const auto call = lower ? (has_right ? accumulate_tiles<true, true> : accumulate_tiles<true, false>)
                                    : (has_right ? accumulate_tiles<false, true> : accumulate_tiles<false, false>);
            call(segments, num_segments, panel, from, x_stride, upper, tile_inputs, to, sums_stride, is_first, ahead);
        }
    }
    release_tiles();
}

}  // namespace kilotron::KILOTRON_ISA
