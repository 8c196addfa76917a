// All kernels of one instruction set. Included once by each kernels_*.cpp, which defines KILOTRON_ISA and what it has.
#pragma once
#include "attention.hpp"
#include "elementwise.hpp"
#include "experts.hpp"
#include "linear.hpp"
#include "multiply_rate.hpp"
#include "sampling.hpp"

namespace kilotron::KILOTRON_ISA {

constexpr Kernels make_kernels(const char* name) {
    return {name,           run_linear,      run_rotate_and_append, run_attention, run_rms_norm,
            run_layer_norm, run_experts,     run_max_of_rows,       run_weigh,     run_sum_weights,
            run_draw,       run_list_greatest, multiply_rate};
}

}  // namespace kilotron::KILOTRON_ISA
