// Plain data that crosses between the module (compiled once) and the kernels (compiled once per instruction set).
//
// A packed matrix is cut into panels of 16 outputs. A panel stores, for each pair of inputs, 16 outputs side by side:
//   bf16, int8   [inputs / 2][16][2]       int4   [inputs / 4][16][2], two input pairs share a byte (low nibble first)
//   f32, f16     [inputs][16]
// The same layout holds keys (16 positions are the outputs of a product with a query) and values (channels are the
// outputs, 16 or 32 positions the inputs). It is the order of AMX tiles ("VNNI"), and every instruction set reads it.
#pragma once
#include <cstddef>
#include <cstdint>

// Code of a header that several instruction sets compile must never be shared between them by the linker: what one of
// them made of it may not run on a machine of another. So it is static, in a namespace of its own, or always inlined.
#define KILOTRON_INLINE [[gnu::always_inline]] inline

namespace kilotron {

// Counts up with every change of the layout of panels, since files hold them.
constexpr int kPackedLayout = 1;

constexpr int64_t kPanel = 16;    // outputs in a panel, and positions in a group of the KV cache
constexpr int64_t kQuad = 4;      // panels computed together
constexpr int64_t kInputs = 32;   // inputs are padded with zeros to a multiple of this: one AMX tile
constexpr int64_t kMostChannels = 1024;  // of one attention head
constexpr int64_t kKeyTile = 64;  // positions that one step of the online softmax takes in, aligned to position 0

static constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

enum class DType : uint8_t { f32, f16, bf16 };
enum class Format : uint8_t { f32, f16, bf16, i8, i4 };
enum class Function : uint8_t { none, silu, gelu, gelu_tanh, quick_gelu, relu, relu2 };

// What follows a product. Gated: the first half of the outputs goes through the function and multiplies the second.
struct Activation {
    Function function = Function::none;
    bool is_gated = false;
    float clamp = 0;          // 0: none; else what enters the function is at most this, the second half within +- this
    float linear_offset = 0;  // added to the second half
};

static constexpr int64_t item_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }
static constexpr Format format_of(DType dtype) {
    return dtype == DType::f32 ? Format::f32 : dtype == DType::f16 ? Format::f16 : Format::bf16;
}
// Bytes of one panel with so many inputs.
static constexpr int64_t panel_bytes(Format format, int64_t inputs) {
    switch (format) {
        case Format::f32: return inputs * kPanel * 4;
        case Format::f16:
        case Format::bf16: return inputs * kPanel * 2;
        case Format::i8: return inputs * kPanel;
        case Format::i4: return inputs * kPanel / 2;
    }
    return 0;
}

// A weight matrix in panels. Gated: panels alternate between the gate's 16 outputs and the 16 they multiply.
struct Matrix {
    Format format;
    Activation activation;
    int64_t inputs;         // as the caller counts them
    int64_t padded_inputs;  // a multiple of kInputs; the panels hold zeros beyond `inputs`
    int64_t outputs;        // columns of the result
    int64_t num_panels;
    const std::byte* panels;
    const float* bias;      // [num_panels * 16], or null
    // i8, i4: weight = (value - zero) * scale.
    const float* scales;    // [num_panels][num_groups][16], or null
    const uint8_t* offsets; // i4: 16 - zero, the same shape
    int64_t group_size;     // inputs that share a scale; padded_inputs when all do
    int64_t num_groups;

    // Whether activations of this dtype can be multiplied with it.
    KILOTRON_INLINE bool takes(DType dtype) const {
        return format == Format::i8 || format == Format::i4 || format == format_of(dtype);
    }
};

// result = activation(x @ matrix + bias) + residual, all row-major with strides in elements.
struct LinearCall {
    const Matrix* matrix;
    int64_t rows;
    const void* x;
    int64_t x_stride;
    void* result;
    int64_t result_stride;
    const void* residual;  // or null
    int64_t residual_stride;
    DType x_dtype;
    DType result_dtype;    // also the residual's
};

// One layer of the paged KV cache: [blocks][heads][key part, value part], each part in groups of 16 positions. A group
// of int8 is followed by 16 float scales, one for each position: number = value * scale. Two groups of values that lie
// in one block and are not int8 are one span of 32 positions, a whole AMX tile of inputs.
struct KVLayerView {
    std::byte* data;
    Format format;  // f32, f16, bf16 or i8
    int64_t num_blocks;
    int64_t block_size;
    int64_t heads;
    int64_t channels;

    KILOTRON_INLINE int64_t padded_channels() const { return round_up(channels, kInputs); }
    KILOTRON_INLINE int64_t groups_per_block() const { return divide_up(block_size, kPanel); }
    KILOTRON_INLINE int64_t numbers_bytes() const { return panel_bytes(format, padded_channels()); }
    KILOTRON_INLINE int64_t group_bytes() const { return numbers_bytes() + (format == Format::i8 ? kPanel * 4 : 0); }
    KILOTRON_INLINE int64_t part_bytes() const { return groups_per_block() * group_bytes(); }
    KILOTRON_INLINE int64_t block_bytes() const { return 2 * heads * part_bytes(); }
    KILOTRON_INLINE std::byte* keys(int64_t block, int64_t head, int64_t group) const {
        return data + block * block_bytes() + 2 * head * part_bytes() + group * group_bytes();
    }
    KILOTRON_INLINE int64_t value_span() const {
        return format != Format::i8 && block_size % (2 * kPanel) == 0 ? 2 * kPanel : kPanel;
    }
    // The span of values that a group belongs to.
    KILOTRON_INLINE std::byte* values(int64_t block, int64_t head, int64_t group) const {
        return keys(block, head, group - group % (value_span() / kPanel)) + part_bytes();
    }
};

// A tensor [tokens][heads][channels] whose channels are contiguous.
struct Heads {
    void* data;
    int64_t token_stride;
    int64_t head_stride;
    int64_t heads;
};

struct AppendCall {
    KVLayerView kv;
    DType dtype;            // of queries, keys and values
    Heads query, keys, values;
    void* rotated_query;    // [tokens][query heads][channels], contiguous
    const void* query_weight;  // [channels] of the norm of each head, or null; the same for keys
    const void* key_weight;
    float epsilon;
    float weight_offset;
    const float* cosines;   // [tokens][rotated / 2], or null
    const float* sines;
    int64_t half_rotated;
    const int64_t* slots;   // [tokens]
    int64_t tokens;
};

// The rows of one step.
struct AttentionRow {
    int64_t first_token;    // index of the row's first new token in the step
    int64_t num_computed;
    int64_t num_new;
    const int32_t* blocks;  // block ids in order of position
    int64_t num_blocks;
};

struct AttentionCall {
    KVLayerView kv;
    DType dtype;            // of the query and the result
    const AttentionRow* rows;
    int64_t num_rows;
    const void* query;      // [tokens][query heads][channels], contiguous
    void* result;           // the same
    int64_t query_heads;
    float scale;
    float softcap;          // 0: none
    int64_t window;         // 0: sees everything
    const float* sinks;          // [query heads], or null
    const float* position_bias;  // [query heads][distances], the greatest distance first; or null
    int64_t num_distances;
};

struct NormCall {
    const void* x;          // [outer][inner][size]
    int64_t outer, inner, size;
    int64_t outer_stride, inner_stride;
    void* result;           // contiguous
    const void* weight;
    const void* bias;       // or null
    float epsilon;
    float weight_offset;
    DType dtype;
};

struct ExpertsCall {
    const Matrix* gate_up;  // [experts]
    const Matrix* down;     // [experts]
    int64_t num_experts;
    const void* x;
    int64_t x_stride;
    const int64_t* expert_ids;    // [tokens][chosen]
    const float* expert_weights;  // [tokens][chosen]
    int64_t tokens, chosen;
    void* result;           // [tokens][hidden], contiguous
    DType dtype;
};

// Rows of logits; `rows` and what follows has `num_rows` entries each.
struct RowsCall {
    const float* logits;    // [all rows][columns], contiguous columns
    int64_t stride;         // between rows
    int64_t columns;
    int64_t num_rows;
    const int64_t* rows;    // which rows of the logits
    const float* best;      // the greatest logit of each
    const float* inverse_temperatures;
    const float* thresholds;  // or null; tokens whose exponent is below weigh nothing
};

// Memory that outlives a call and is reused by the next; grows on demand.
class Workspace;

// What one instruction set offers. Nothing here throws; arguments were checked before.
struct Kernels {
    const char* name;
    void (*linear)(const LinearCall* calls, int64_t num_calls, Workspace& workspace, int threads);
    void (*rotate_and_append)(const AppendCall& call, Workspace& workspace, int threads);
    void (*attention)(const AttentionCall& call, Workspace& workspace, int threads);
    void (*rms_norm)(const NormCall& call, int threads);
    void (*layer_norm)(const NormCall& call, int threads);
    void (*experts)(const ExpertsCall& call, Workspace& workspace, int threads);
    void (*max_of_rows)(const RowsCall& call, float* best, int64_t* ids, Workspace& workspace, int threads);
    void (*weigh)(const float* exponents, int64_t count, int64_t* weights, int threads);
    void (*sum_weights)(const RowsCall& call, int64_t* totals, Workspace& workspace, int threads);
    void (*draw)(const RowsCall& call, const double* uniforms, int64_t* tokens, Workspace& workspace, int threads);
    void (*list_greatest)(const RowsCall& call, int64_t count, float* values, int64_t* ids, Workspace& workspace,
                          int threads);
    double (*multiply_rate)(Format format, int threads);  // floating-point operations per second, on registers alone
};

extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;
extern const Kernels kAmxEmulatedKernels;  // the tile code on machines without tiles: for tests, slow

}  // namespace kilotron
