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

// Tiles 0-3 hold sums (two row blocks by two panels), 4-5 rows of x, 6-7 panels. A configuration takes as long as ten
// tile products, so a thread keeps its tiles configured from one call to the next, until a `TileUse` ends.
class TileUse {
  public:
    TileUse() = default;
    TileUse(const TileUse&) = delete;
    TileUse& operator=(const TileUse&) = delete;
    ~TileUse() {
        if (shapes() == 0) return;
        release_tiles();
        shapes() = 0;
    }

    static void configure(int64_t upper_rows, int64_t lower_rows) {
        const auto upper = static_cast<uint8_t>(upper_rows), lower = static_cast<uint8_t>(lower_rows ? lower_rows : 1);
        const int32_t wanted = upper << 8 | lower;
        if (shapes() == wanted) return;
        const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, kInputs / 2, kInputs / 2};
        const uint16_t row_bytes[8] = {64, 64, 64, 64, 64, 64, 64, 64};
        configure_tiles(rows, row_bytes);
        shapes() = wanted;
    }

  private:
    static int32_t& shapes() {  // what this thread's tiles are configured for; 0: nothing
        static thread_local int32_t configured = 0;
        return configured;
    }
};

constexpr int64_t kTileBytes = 1024;

// Rows of x in blocks of 16, each cut into tiles of 32 inputs.
struct TileRows {
    const uint16_t* data;
    int64_t row_stride;    // all strides in elements
    int64_t tile_stride;   // from a tile to that of the next inputs
    int64_t block_stride;
};

// Up to 32 rows and 2 panels of all segments, each of which has a multiple of 32 inputs.
template <bool has_lower, bool has_right>
static void accumulate_tiles(const Segment* segments, int64_t num_segments, int64_t panel, const TileRows& x,
                             float* sums, int64_t sums_stride, bool is_first, int64_t first_ahead,
                             int64_t bytes_ahead) {
    float* lower_sums = sums + kPanel * sums_stride;
    const int64_t sums_bytes = sums_stride * 4, x_bytes = x.row_stride * 2;
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
        const uint16_t* upper_x = x.data + segment.first_input / kInputs * x.tile_stride;
        const std::byte* left = segment.panels[panel];
        const std::byte* right = segment.panels[has_right ? panel + 1 : panel];
        const bool is_ahead = segment.ahead[panel] != nullptr && bytes_ahead != 0;
        int64_t from_ahead = first_ahead;
        for (int64_t input = 0; input < segment.inputs; input += kInputs) {
            if (is_ahead) {
                read_ahead(segment.ahead[panel] + from_ahead, bytes_ahead);
                if (has_right) read_ahead(segment.ahead[panel + 1] + from_ahead, bytes_ahead);
                from_ahead += kTileBytes;
            }
            KILOTRON_TILE_LOAD(4, upper_x, x_bytes);
            KILOTRON_TILE_LOAD(6, left, 64);
            KILOTRON_TILE_MULTIPLY(0, 4, 6);
            if (has_right) {
                KILOTRON_TILE_LOAD(7, right, 64);
                KILOTRON_TILE_MULTIPLY(1, 4, 7);
            }
            if (has_lower) {
                KILOTRON_TILE_LOAD(5, upper_x + x.block_stride, x_bytes);
                KILOTRON_TILE_MULTIPLY(2, 5, 6);
                if (has_right) KILOTRON_TILE_MULTIPLY(3, 5, 7);
            }
            upper_x += x.tile_stride;
            left += kTileBytes;
            right += kTileBytes;
        }
    }
    KILOTRON_TILE_STORE(0, sums, sums_bytes);
    if (has_right) KILOTRON_TILE_STORE(1, sums + kPanel, sums_bytes);
    if (has_lower) KILOTRON_TILE_STORE(2, lower_sums, sums_bytes);
    if (has_lower && has_right) KILOTRON_TILE_STORE(3, lower_sums + kPanel, sums_bytes);
}

// The twin of `accumulate_vectors` for bf16, within a `TileUse`. Segments have multiples of 32 inputs.
static void accumulate_with_tiles(const Segment* segments, int64_t num_segments, TileRows x, float* sums,
                                  int64_t sums_stride, int64_t rows, int64_t panels, bool is_first) {
    // Each pair of row blocks reads its share of the lines ahead, so that memory is busy all the time.
    constexpr int64_t lines = kTileBytes / 64;
    const int64_t row_pairs = divide_up(rows, 2 * kPanel);
    for (int64_t row = 0; row < rows; row += 2 * kPanel) {
        const int64_t left = rows - row;
        const int64_t upper = left < kPanel ? left : kPanel;
        const int64_t lower = left <= kPanel ? 0 : (left < 2 * kPanel ? left : 2 * kPanel) - kPanel;
        const int64_t pair = row / (2 * kPanel);
        const int64_t first_ahead = pair * lines / row_pairs, end_ahead = (pair + 1) * lines / row_pairs;
        TileUse::configure(upper, lower);
        for (int64_t panel = 0; panel < panels; panel += 2) {
            float* to = sums + row * sums_stride + panel * kPanel;
            const bool has_right = panel + 1 < panels;
            const auto call = lower ? (has_right ? accumulate_tiles<true, true> : accumulate_tiles<true, false>)
                                    : (has_right ? accumulate_tiles<false, true> : accumulate_tiles<false, false>);
            call(segments, num_segments, panel, x, to, sums_stride, is_first, 64 * first_ahead,
                 64 * (end_ahead - first_ahead));
        }
        x.data += 2 * x.block_stride;
    }
}

}  // namespace kilotron::KILOTRON_ISA
