// What the machine's memory can do: the other ceiling, beside `Kernels::multiply_rate`.
#pragma once
#include <cstdint>

namespace kilotron {

// Bytes per second that so many threads read together out of a buffer of so many bytes, which should be larger than all
// caches. The best of many short runs.
double read_bandwidth(int64_t bytes, int threads);

}  // namespace kilotron
