// The Python module: checks every argument, then calls the kernels of the chosen instruction set without the GIL.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "bindings.hpp"
#include "cache.hpp"
#include "layers.hpp"
#include "measure.hpp"
#include "packing.hpp"
#include "workspace.hpp"

namespace nb = nanobind;

namespace kilotron {

namespace {

// Tiles must be asked for once per process (Linux: ARCH_REQ_XCOMP_PERM, feature 18); the system may refuse.
bool may_use_tiles() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// __builtin_cpu_supports knows no AMX in gcc 12: leaf 7, EDX bits 22 (bf16) and 24 (tiles).
bool has_tiles() {
    uint32_t a = 7, b = 0, c = 0, d = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (d >> 22 & 1) != 0 && (d >> 24 & 1) != 0 && may_use_tiles();
}

bool is_supported(const Kernels& kernels) {
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (&kernels == &kAvx2Kernels) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (&kernels == &kAvx512Kernels) return avx512;
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (&kernels == &kAmxKernels) return bf16 && has_tiles();
    return bf16;
}

// Best first; the emulation is for tests.
const std::vector<const Kernels*>& all_kernels() {
    static const std::vector<const Kernels*> all{&kAmxKernels, &kAvx512Bf16Kernels, &kAvx512Kernels, &kAvx2Kernels,
                                                 &kAmxEmulatedKernels};
    return all;
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : all_kernels())
        if (is_supported(*kernels)) names.emplace_back(kernels->name);
    return names;
}

const Kernels& find_kernels(const std::string& isa) {
    for (const Kernels* kernels : all_kernels())
        if (kernels->name == isa && is_supported(*kernels)) return *kernels;
    throw nb::value_error(("instruction set " + isa + " is unknown or does not run on this machine").c_str());
}

double checked_read_bandwidth(int64_t bytes, int threads) {
    check_threads(threads);
    if (bytes < int64_t{1} << 20) throw nb::value_error("bytes must be at least 1 MiB");
    nb::gil_scoped_release released;
    return read_bandwidth(bytes, threads);
}

// The operations, on one instruction set. One call at a time: they share the memory between calls.
class CpuKernels {
  public:
    CpuKernels(const std::string& isa, int threads) : kernels_(find_kernels(isa)) { set_threads(threads); }

    std::string isa() const { return kernels_.name; }
    int threads() const { return threads_; }
    void set_threads(int threads) {
        check_threads(threads);
        threads_ = threads;
    }

    void linear(nb::handle x, const PackedMatrix& matrix, nb::handle residual, nb::handle result) {
        const Array input(x, "x", 2), output(result, "result", 2);
        const Matrix& view = matrix.view();
        input.expect_shape(1, view.inputs);
        check_compatible(view, input.dtype());
        output.expect_shape(0, input.shape[0]);
        output.expect_shape(1, view.outputs);
        LinearCall call{&view, input.shape[0], input.data, input.strides[0], output.data, output.strides[0],
                        nullptr, 0, input.dtype(), output.dtype()};
        if (!residual.is_none()) {
            const Array added(residual, "residual", 2);
            added.expect_kind(output.kind);
            added.expect_shape(0, input.shape[0]);
            added.expect_shape(1, view.outputs);
            call.residual = added.data;
            call.residual_stride = added.strides[0];
        }
        if (call.rows == 0) return;
        run([&] { kernels_.linear(&call, 1, workspace_, threads_); });
    }

    void rms_norm(nb::handle x, nb::handle weight, float epsilon, float weight_offset, nb::handle result) {
        NormCall call = norm_call(x, weight, nb::none(), epsilon, result);
        call.weight_offset = weight_offset;
        run([&] { kernels_.rms_norm(call, threads_); });
    }

    void layer_norm(nb::handle x, nb::handle weight, nb::handle bias, float epsilon, nb::handle result) {
        const NormCall call = norm_call(x, weight, bias, epsilon, result);
        run([&] { kernels_.layer_norm(call, threads_); });
    }

    void rotate_and_append(nb::handle heads, nb::handle query_weight, nb::handle key_weight, float epsilon,
                           float weight_offset, nb::handle cosines, nb::handle sines, const KVLayer& kv,
                           nb::handle slots, nb::handle result) {
        const Array all(heads, "heads", 3), output(result, "result", 3);
        const int64_t tokens = all.shape[0], channels = kv.view.channels;
        const int64_t query_heads = all.shape[1] - 2 * kv.view.heads;
        if (query_heads < 0) refuse("heads", "queries, keys and values");
        AppendCall call{};
        call.kv = kv.view;
        call.dtype = all.dtype();
        kv.check_dtype(call.dtype);
        const Heads first = heads_of(all, call.dtype, tokens, all.shape[1], channels);
        const int64_t head_bytes = first.head_stride * item_bytes(call.dtype);
        const auto heads_from = [&](int64_t number, int64_t count) {
            return Heads{static_cast<std::byte*>(first.data) + number * head_bytes, first.token_stride,
                         first.head_stride, count};
        };
        call.query = heads_from(0, query_heads);
        call.keys = heads_from(query_heads, kv.view.heads);
        call.values = heads_from(query_heads + kv.view.heads, kv.view.heads);
        heads_of(output, call.dtype, tokens, query_heads, channels);
        output.expect_contiguous();
        call.rotated_query = output.data;
        call.query_weight = gain_of(query_weight, "query_weight", all.kind, channels);
        call.key_weight = gain_of(key_weight, "key_weight", all.kind, channels);
        call.epsilon = epsilon;
        call.weight_offset = weight_offset;
        if (!cosines.is_none()) {
            const RotationView rotation(cosines, sines, tokens);
            rotation.check_against(kv.view);
            call.cosines = rotation.cosines;
            call.sines = rotation.sines;
            call.half_rotated = rotation.half_rotated;
        }
        const Slots places(slots, tokens);
        places.check_against(kv.view);
        call.slots = places.data();
        call.tokens = tokens;
        run([&] { kernels_.rotate_and_append(call, workspace_, threads_); });
    }

    void paged_attention(nb::handle query, const KVLayer& kv, const StepRows& rows, float scale, int64_t window,
                         float softcap, nb::handle sinks, nb::handle position_bias, nb::handle result) {
        const Array queries(query, "query", 3), output(result, "result", 3);
        const int64_t heads = queries.shape[1];
        const DType dtype = queries.dtype();
        kv.check_dtype(dtype);
        rows.check_against(kv.view);
        for (const Array* array : {&queries, &output}) {
            heads_of(*array, dtype, rows.num_tokens(), heads, kv.view.channels);
            array->expect_contiguous();
        }
        if (heads == 0 || heads % kv.view.heads != 0) refuse("query", "a multiple of the cache's heads");
        if (window < 0) throw nb::value_error("window must be positive, or 0 for none");
        const ScoreTerms terms(sinks, position_bias);
        terms.check_against(heads);
        AttentionCall call{kv.view,      dtype,       rows.rows().data(), static_cast<int64_t>(rows.rows().size()),
                           queries.data, output.data, heads,
                           scale,        softcap,     window,             nullptr,
                           nullptr,      0};
        terms.add_to(call);
        run([&] { kernels_.attention(call, workspace_, threads_); });
    }

    void run_layers(nb::handle hidden, const DecoderLayers& layers, nb::tuple rotations,
                    std::vector<KVLayer> kv_layers, nb::handle slots, const StepRows& rows, nb::handle result) {
        const LayersCall call = layers.check(hidden, rotations, std::move(kv_layers), slots, rows, result);
        run([&] { layers.run(call, kernels_, workspace_, threads_); });
    }

    void mix_experts(nb::handle x, const std::vector<const PackedMatrix*>& gate_up,
                     const std::vector<const PackedMatrix*>& down, nb::handle expert_ids, nb::handle expert_weights,
                     nb::handle result) {
        const Array input(x, "x", 2), ids(expert_ids, "expert_ids", 2), weights(expert_weights, "expert_weights", 2);
        const Array output(result, "result", 2);
        const int64_t tokens = input.shape[0], num_experts = static_cast<int64_t>(gate_up.size());
        if (gate_up.empty() || gate_up.size() != down.size()) refuse("experts", "as many of one kind as of the other");
        const std::vector<Matrix> up = views_of(gate_up, input.dtype()), back = views_of(down, input.dtype());
        if (up[0].outputs != back[0].inputs || back[0].outputs != up[0].inputs)
            refuse("experts", "sizes that fit each other");
        input.expect_shape(1, up[0].inputs);
        ids.expect_kind(Kind::i64);
        ids.expect_contiguous();
        ids.expect_shape(0, tokens);
        weights.expect_kind(Kind::f32);
        weights.expect_contiguous();
        weights.expect_shape(0, tokens);
        weights.expect_shape(1, ids.shape[1]);
        if (ids.shape[1] < 1) refuse("expert_ids", "at least one expert for each token");
        output.expect_kind(input.kind);
        output.expect_contiguous();
        output.expect_shape(0, tokens);
        output.expect_shape(1, up[0].inputs);
        const int64_t* id = ids.as<int64_t>();
        if (std::any_of(id, id + tokens * ids.shape[1], [&](int64_t e) { return e < 0 || e >= num_experts; }))
            refuse("expert_ids", "numbers below " + std::to_string(num_experts));
        if (tokens == 0) return;
        const ExpertsCall call{up.data(), back.data(), num_experts, input.data,   input.strides[0], id,
                               weights.as<float>(), tokens, ids.shape[1], output.data, input.dtype()};
        run([&] { kernels_.experts(call, workspace_, threads_); });
    }

    double multiply_rate(const std::string& format) {
        const Format wanted = format_named(format);
        double rate = 0.0;
        run([&] { rate = kernels_.multiply_rate(wanted, threads_); });
        return rate;
    }

    void max_of_rows(nb::handle logits, nb::handle best, nb::handle ids) {
        const Array maxima(best, "best", 1), columns(ids, "ids", 1);
        RowsCall call = logits_call(logits);
        call.num_rows = Array(logits, "logits", 2).shape[0];
        float* values = column_of<float>(maxima, Kind::f32, call.num_rows);
        int64_t* places = column_of<int64_t>(columns, Kind::i64, call.num_rows);
        run([&] { kernels_.max_of_rows(call, values, places, workspace_, threads_); });
    }

    void weigh(nb::handle exponents, nb::handle weights) {
        const Array input(exponents, "exponents", 2), output(weights, "weights", 2);
        input.expect_kind(Kind::f32);
        output.expect_kind(Kind::i64);
        for (const Array* array : {&input, &output}) array->expect_contiguous();
        for (int axis = 0; axis < 2; axis++) output.expect_shape(axis, input.shape[axis]);
        const int64_t count = input.shape[0] * input.shape[1];
        run([&] { kernels_.weigh(input.as<float>(), count, output.as<int64_t>(), threads_); });
    }

    void sum_weights(nb::handle logits, nb::handle rows, nb::handle best, nb::handle inverse_temperatures,
                     nb::handle thresholds, nb::handle totals) {
        const RowsCall call = rows_call(logits, rows, best, inverse_temperatures, thresholds);
        int64_t* sums = column_of<int64_t>(Array(totals, "totals", 1), Kind::i64, call.num_rows);
        run([&] { kernels_.sum_weights(call, sums, workspace_, threads_); });
    }

    void draw(nb::handle logits, nb::handle rows, nb::handle best, nb::handle inverse_temperatures,
              nb::handle thresholds, nb::handle uniforms, nb::handle tokens) {
        const RowsCall call = rows_call(logits, rows, best, inverse_temperatures, thresholds);
        const double* numbers = column_of<double>(Array(uniforms, "uniforms", 1), Kind::f64, call.num_rows);
        if (std::any_of(numbers, numbers + call.num_rows, [](double u) { return !(u >= 0 && u < 1); }))
            refuse("uniforms", "numbers from 0 to below 1");
        int64_t* drawn = column_of<int64_t>(Array(tokens, "tokens", 1), Kind::i64, call.num_rows);
        run([&] { kernels_.draw(call, numbers, drawn, workspace_, threads_); });
    }

    void list_greatest(nb::handle logits, nb::handle rows, nb::handle values, nb::handle ids) {
        const Array listed(values, "values", 2), places(ids, "ids", 2);
        RowsCall call = logits_call(logits);
        choose_rows(call, logits, rows);
        const int64_t count = listed.shape[1];
        listed.expect_kind(Kind::f32);
        places.expect_kind(Kind::i64);
        for (const Array* array : {&listed, &places}) {
            array->expect_contiguous();
            array->expect_shape(0, call.num_rows);
            array->expect_shape(1, count);
        }
        if (count < 1 || count > call.columns) refuse("values", "at least one column and no more than the logits");
        if (call.num_rows == 0) return;
        run([&] {
            kernels_.list_greatest(call, count, listed.as<float>(), places.as<int64_t>(), workspace_, threads_);
        });
    }

  private:
    template <typename Item>
    static Item* column_of(const Array& array, Kind kind, int64_t size) {
        array.expect_kind(kind);
        array.expect_contiguous();
        array.expect_shape(0, size);
        return array.as<Item>();
    }

    static RowsCall logits_call(nb::handle logits) {
        const Array input(logits, "logits", 2);
        input.expect_kind(Kind::f32);
        if (input.shape[1] < 1 || input.shape[1] > INT32_MAX) refuse("logits", "at least one column");
        RowsCall call{};
        call.logits = input.as<float>();
        call.stride = input.strides[0];
        call.columns = input.shape[1];
        return call;
    }

    static void choose_rows(RowsCall& call, nb::handle logits, nb::handle rows) {
        const Array chosen(rows, "rows", 1);
        const int64_t most = Array(logits, "logits", 2).shape[0];
        call.num_rows = chosen.shape[0];
        call.rows = column_of<int64_t>(chosen, Kind::i64, call.num_rows);
        if (std::any_of(call.rows, call.rows + call.num_rows, [&](int64_t row) { return row < 0 || row >= most; }))
            refuse("rows", "numbers below " + std::to_string(most));
    }

    static RowsCall rows_call(nb::handle logits, nb::handle rows, nb::handle best, nb::handle inverse_temperatures,
                              nb::handle thresholds) {
        RowsCall call = logits_call(logits);
        choose_rows(call, logits, rows);
        call.best = column_of<float>(Array(best, "best", 1), Kind::f32, call.num_rows);
        call.inverse_temperatures =
            column_of<float>(Array(inverse_temperatures, "inverse_temperatures", 1), Kind::f32, call.num_rows);
        if (!thresholds.is_none())
            call.thresholds = column_of<float>(Array(thresholds, "thresholds", 1), Kind::f32, call.num_rows);
        return call;
    }

    template <typename Work>
    void run(const Work& work) {
        nb::gil_scoped_release released;
        const std::scoped_lock lock(mutex_);
        work();
    }

    static void check_compatible(const Matrix& matrix, DType dtype) {
        if (!matrix.takes(dtype)) refuse("x", "the dtype of the packed weight");
    }

    static std::vector<Matrix> views_of(const std::vector<const PackedMatrix*>& packed, DType dtype) {
        std::vector<Matrix> views;
        for (const PackedMatrix* matrix : packed) {
            if (matrix == nullptr) refuse("experts", "packed matrices");
            const Matrix& view = matrix->view();
            check_compatible(view, dtype);
            const Matrix& first = packed[0]->view();
            if (view.inputs != first.inputs || view.outputs != first.outputs || view.format != first.format)
                refuse("experts", "equal sizes and formats");
            views.push_back(view);
        }
        return views;
    }

    static Heads heads_of(const Array& array, DType dtype, int64_t tokens, int64_t heads, int64_t channels) {
        if (array.dtype() != dtype) refuse("queries, keys and values", "one dtype");
        array.expect_shape(0, tokens);
        array.expect_shape(1, heads);
        array.expect_shape(2, channels);
        return {array.data, array.strides[0], array.strides[1], heads};
    }

    static const void* gain_of(nb::handle weight, const char* name, Kind kind, int64_t size) {
        if (weight.is_none()) return nullptr;
        const Array gain(weight, name, 1);
        gain.expect_kind(kind);
        gain.expect_shape(0, size);
        return gain.data;
    }

    static NormCall norm_call(nb::handle x, nb::handle weight, nb::handle bias, float epsilon, nb::handle result) {
        const Array input(x, "x", 2, 3), output(result, "result", 2, 3);
        const int last = input.ndim() - 1;
        NormCall call{};
        call.x = input.data;
        call.outer = input.shape[0];
        call.inner = last == 2 ? input.shape[1] : 1;
        call.size = input.shape[last];
        if (call.size < 1) refuse("x", "at least one number in a row");
        call.outer_stride = input.strides[0];
        call.inner_stride = last == 2 ? input.strides[1] : 0;
        call.epsilon = epsilon;
        call.dtype = input.dtype();
        call.weight = gain_of(weight, "weight", input.kind, call.size);
        call.bias = gain_of(bias, "bias", input.kind, call.size);
        output.expect_kind(input.kind);
        output.expect_contiguous();
        output.expect_axes(input.ndim());
        for (int axis = 0; axis <= last; axis++) output.expect_shape(axis, input.shape[axis]);
        call.result = output.data;
        return call;
    }

    const Kernels& kernels_;
    int threads_ = 1;
    Workspace workspace_;
    std::mutex mutex_;
};

}  // namespace

}  // namespace kilotron

NB_MODULE(_native, m) {
    using namespace kilotron;
    // An interrupt may leave a traceback, and with it weights, alive until the interpreter has gone.
    nb::set_leak_warnings(false);
    m.doc() = "Kernels for CPUs. Arguments are checked here; see kernels/cpu/backend.py for what they mean.";
    m.def("supported_isas", &supported_isas);
    m.def("read_bandwidth", &checked_read_bandwidth, nb::arg("bytes"), nb::arg("threads"));
    bind_packing(m);
    nb::class_<KVLayer>(m, "KVLayer")
        .def_prop_ro("heads", [](const KVLayer& layer) { return layer.view.heads; })
        .def_prop_ro("num_bytes", [](const KVLayer& layer) {
            return layer.view.block_bytes() * layer.view.num_blocks;
        })
        // [blocks][bytes of a block], in place; the array holds the layer, and the layer the memory.
        .def_prop_ro("blocks", [](const KVLayer& layer) {
            const size_t shape[] = {static_cast<size_t>(layer.view.num_blocks),
                                    static_cast<size_t>(layer.view.block_bytes())};
            return nb::ndarray<nb::numpy, uint8_t>(layer.view.data, 2, shape);
        });
    m.def("allocate_kv", &allocate_kv, nb::arg("num_layers"), nb::arg("num_blocks"), nb::arg("block_size"),
          nb::arg("heads"), nb::arg("channels"), nb::arg("dtype"));
    nb::class_<StepRows>(m, "StepRows")
        .def(nb::init<nb::handle, nb::handle, nb::handle, int64_t>(), nb::arg("num_computed"), nb::arg("num_new"),
             nb::arg("block_table"), nb::arg("block_size"));
    nb::class_<DecoderLayers>(m, "DecoderLayers").def(nb::init<nb::handle>(), nb::arg("layers"));
    nb::class_<CpuKernels>(m, "CpuKernels")
        .def(nb::init<const std::string&, int>(), nb::arg("isa"), nb::arg("threads"))
        .def_prop_ro("isa", &CpuKernels::isa)
        .def_prop_rw("threads", &CpuKernels::threads, &CpuKernels::set_threads)
        .def("linear", &CpuKernels::linear, nb::arg("x"), nb::arg("matrix"), nb::arg("residual").none(),
             nb::arg("result"))
        .def("rms_norm", &CpuKernels::rms_norm)
        .def("layer_norm", &CpuKernels::layer_norm, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(),
             nb::arg("epsilon"), nb::arg("result"))
        .def("rotate_and_append", &CpuKernels::rotate_and_append, nb::arg("heads"), nb::arg("query_weight").none(),
             nb::arg("key_weight").none(), nb::arg("epsilon"), nb::arg("weight_offset"), nb::arg("cosines").none(), nb::arg("sines").none(), nb::arg("kv"), nb::arg("slots"), nb::arg("result"))
        .def("paged_attention", &CpuKernels::paged_attention, nb::arg("query"), nb::arg("kv"), nb::arg("rows"),
             nb::arg("scale"), nb::arg("window"), nb::arg("softcap"), nb::arg("sinks").none(),
             nb::arg("position_bias").none(), nb::arg("result"))
        .def("run_layers", &CpuKernels::run_layers)
        .def("mix_experts", &CpuKernels::mix_experts)
        .def("max_of_rows", &CpuKernels::max_of_rows)
        .def("weigh", &CpuKernels::weigh)
        .def("sum_weights", &CpuKernels::sum_weights, nb::arg("logits"), nb::arg("rows"), nb::arg("best"),
             nb::arg("inverse_temperatures"), nb::arg("thresholds").none(), nb::arg("totals"))
        .def("draw", &CpuKernels::draw, nb::arg("logits"), nb::arg("rows"), nb::arg("best"),
             nb::arg("inverse_temperatures"), nb::arg("thresholds").none(), nb::arg("uniforms"), nb::arg("tokens"))
        .def("list_greatest", &CpuKernels::list_greatest)
        .def("multiply_rate", &CpuKernels::multiply_rate, nb::arg("format"));
}
