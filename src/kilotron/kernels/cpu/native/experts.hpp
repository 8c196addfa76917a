// A mixture of experts: tokens sorted by expert, two products for all experts at once, and the weighted sum per token.
#pragma once
#include "linear.hpp"

namespace kilotron::KILOTRON_ISA {

// A token's experts, weighted and summed in ascending order of expert, so in the same order for any way of choosing.
static void sum_choices(const ExpertsCall& call, int64_t token, const int64_t* places, const float* output) {
    const int64_t hidden = call.gate_up[0].inputs;
    with_type(call.dtype, [&](auto type) {
        using Type = decltype(type);
        auto* result = static_cast<typename Type::Item*>(call.result) + token * hidden;
        for (int64_t column = 0; column < hidden; column += kPanel) {
            const int64_t left = hidden - column;
            Vec total = zero();
            for (int64_t last = -1, turn = 0; turn < call.chosen; turn++) {
                // The least place beyond the last one: places ascend with experts.
                int64_t next = -1;
                for (int64_t choice = token * call.chosen; choice < (token + 1) * call.chosen; choice++)
                    if (places[choice] > last && (next < 0 || places[choice] < places[next])) next = choice;
                last = places[next];
                const Vec value = read_some<F32>(output + last * hidden + column, left);
                total = fma(value, splat(call.expert_weights[next]), total);
            }
            write_some<Type>(result + column, total, left);
        }
    });
}

static void run_experts(const ExpertsCall& call, Workspace& workspace, int threads) {
    const int64_t pairs = call.tokens * call.chosen;
    const int64_t hidden = call.gate_up[0].inputs, ffn = call.down[0].inputs, item = item_bytes(call.dtype);
    // [experts + 1] first sorted place, then [pairs] place of each (token, choice), then two calls for each expert.
    const int64_t calls_bytes = 2 * call.num_experts * static_cast<int64_t>(sizeof(LinearCall));
    const int64_t index_bytes = round_up((call.num_experts + 1 + pairs) * 8, 64);
    std::byte* memory = workspace.reserve(Workspace::kExpertIndex, index_bytes + calls_bytes);
    auto* starts = reinterpret_cast<int64_t*>(memory);
    int64_t* places = starts + call.num_experts + 1;
    auto* up_calls = reinterpret_cast<LinearCall*>(memory + index_bytes);
    LinearCall* down_calls = up_calls + call.num_experts;
    for (int64_t expert = 0; expert <= call.num_experts; expert++) starts[expert] = 0;
    for (int64_t pair = 0; pair < pairs; pair++) starts[call.expert_ids[pair] + 1]++;
    for (int64_t expert = 0; expert < call.num_experts; expert++) starts[expert + 1] += starts[expert];
    for (int64_t pair = 0; pair < pairs; pair++) places[pair] = starts[call.expert_ids[pair]]++;
    // Each start has moved to the next expert's; walking back restores them.
    for (int64_t expert = call.num_experts; expert > 0; expert--) starts[expert] = starts[expert - 1];
    starts[0] = 0;

    std::byte* sorted = workspace.reserve(Workspace::kExpertInput, pairs * hidden * item);
    std::byte* middle = workspace.reserve(Workspace::kExpertHidden, pairs * ffn * item);
    auto* output = reinterpret_cast<float*>(workspace.reserve(Workspace::kExpertOutput, pairs * hidden * 4));
    WorkRanges copies(pairs, threads);
    run_threads(threads, [&](int thread) {
        for (int64_t pair; (pair = copies.take(thread)) >= 0;)
            std::memcpy(sorted + places[pair] * hidden * item,
                        static_cast<const std::byte*>(call.x) + pair / call.chosen * call.x_stride * item, hidden * item);
    });
    int64_t num_calls = 0;
    for (int64_t expert = 0; expert < call.num_experts; expert++) {
        const int64_t first = starts[expert], rows = starts[expert + 1] - first;
        if (rows == 0) continue;
        up_calls[num_calls] = {&call.gate_up[expert], rows, sorted + first * hidden * item, hidden,
                               middle + first * ffn * item, ffn, nullptr, 0, call.dtype, call.dtype};
        down_calls[num_calls++] = {&call.down[expert], rows, middle + first * ffn * item, ffn,
                                   output + first * hidden, hidden, nullptr, 0, call.dtype, DType::f32};
    }
    run_linear(up_calls, num_calls, workspace, threads);
    run_linear(down_calls, num_calls, workspace, threads);

    WorkRanges tokens(call.tokens, threads);
    run_threads(threads, [&](int thread) {
        for (int64_t token; (token = tokens.take(thread)) >= 0;) sum_choices(call, token, places, output);
    });
}

}  // namespace kilotron::KILOTRON_ISA
