// The paged KV cache and the rows of a step as the module holds them, and what must hold before kernels touch either.
#pragma once
#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "memory.hpp"
#include "types.hpp"

namespace kilotron {

// One layer of a cache; all layers share its memory, which goes when the last of them does.
struct KVLayer {
    std::shared_ptr<Buffer> memory;
    KVLayerView view;

    // Raises TypeError unless activations of this dtype can go into the cache, and come out of it.
    void check_dtype(DType dtype) const;
};

std::vector<KVLayer> allocate_kv(int64_t num_layers, int64_t num_blocks, int64_t block_size, int64_t heads,
                                 int64_t channels, const std::string& dtype);

// Where the keys and values of a step's tokens go.
class Slots {
  public:
    Slots(nanobind::handle slots, int64_t tokens);

    // Raises TypeError unless all of them lie in the cache, behind its null block.
    void check_against(const KVLayerView& kv) const;
    const int64_t* data() const { return data_; }

  private:
    const int64_t* data_;
    int64_t least_ = INT64_MAX, greatest_ = INT64_MIN;
};

// cos and sin of a step's tokens; null where the model does not rotate.
struct RotationView {
    const float* cosines = nullptr;
    const float* sines = nullptr;
    int64_t half_rotated = 0;

    RotationView() = default;
    RotationView(nanobind::handle cosines, nanobind::handle sines, int64_t tokens);

    // Raises TypeError unless heads have so many channels.
    void check_against(const KVLayerView& kv) const;
};

// What a layer adds to the scores of attention, held for its calls.
class ScoreTerms {
  public:
    ScoreTerms() = default;
    // [query heads] and [query heads][distances] float32, or None.
    ScoreTerms(nanobind::handle sinks, nanobind::handle position_bias);

    // Raises TypeError unless they are of so many query heads.
    void check_against(int64_t query_heads) const;
    // Lets the call point to them.
    void add_to(AttentionCall& call) const;

  private:
    std::vector<float> sinks_, position_bias_;
    int64_t num_distances_ = 0;
};

// The rows of one step: sizes and block tables, held for all layers.
class StepRows {
  public:
    StepRows(nanobind::handle num_computed, nanobind::handle num_new, nanobind::handle block_table, int64_t block_size);
    StepRows(const StepRows&) = delete;
    StepRows& operator=(const StepRows&) = delete;

    // Raises TypeError unless their blocks are blocks of this cache.
    void check_against(const KVLayerView& kv) const;
    const std::vector<AttentionRow>& rows() const { return rows_; }
    int64_t num_tokens() const { return num_tokens_; }

  private:
    std::vector<int32_t> blocks_;
    std::vector<AttentionRow> rows_;
    int64_t num_tokens_ = 0, last_block_ = 0, block_size_ = 0;
};

}  // namespace kilotron
