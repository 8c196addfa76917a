// Decoder layers as one operation: what `rms_norm`, `linear`, `rotate_and_append`, `paged_attention` and so on would do
// one after the other, without the way through Python in between. Adds no arithmetic, and so changes no bit.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "arrays.hpp"
#include "cache.hpp"
#include "packing.hpp"
#include "workspace.hpp"

namespace kilotron {

// One step through all layers, checked.
struct LayersCall {
    const void* hidden;  // [tokens][hidden size]
    int64_t hidden_stride;
    void* result;        // the same, contiguous
    int64_t tokens;
    std::vector<RotationView> rotations;
    std::vector<KVLayer> kv_layers;  // owned: another thread may change the list they came in
    const int64_t* slots;
    const StepRows* rows;
};

class DecoderLayers {
  public:
    // From a sequence of `DecoderLayer` (kernels/interface.py). Matrices are shared, weights of norms copied.
    explicit DecoderLayers(nanobind::handle layers);
    DecoderLayers(const DecoderLayers&) = delete;
    DecoderLayers& operator=(const DecoderLayers&) = delete;

    // Raises TypeError unless everything fits every layer.
    LayersCall check(nanobind::handle hidden, nanobind::tuple rotations, std::vector<KVLayer> kv_layers,
                     nanobind::handle slots, const StepRows& rows, nanobind::handle result) const;
    void run(const LayersCall& call, const Kernels& kernels, Workspace& workspace, int threads) const;

  private:
    friend class LayersRun;

    using Weights = std::vector<std::byte>;  // in the dtype of the activations; empty: none
    struct Norm {
        bool is_layer_norm;
        Weights weight, bias;
        float epsilon, weight_offset;
    };
    struct Layer {
        Norm input_norm, mlp_norm;
        const Matrix *qkv, *proj, *fc1, *fc2;
        Weights query_weight, key_weight;
        float head_epsilon, head_weight_offset;
        float scale, softcap;
        int64_t window;
        ScoreTerms terms;
        size_t rotation, kv_layer;
    };

    Layer layer_of(nanobind::handle described);
    Norm norm_of(nanobind::handle norm, const char* name) const;
    Weights weights_of(nanobind::handle weight, const char* name) const;
    const Matrix* matrix_of(nanobind::handle layer, const char* name);

    std::vector<nanobind::object> matrices_;  // kept alive
    std::vector<Layer> layers_;
    Kind kind_ = Kind::other;
    DType dtype_ = DType::f32;
    int64_t hidden_size_ = 0;
    // Operations read one of two buffers and write the other: the widest rows of norms and queries, and of the rest.
    int64_t first_width_ = 0, second_width_ = 0;
};

}  // namespace kilotron
