#define KILOTRON_ISA avx512
#define KILOTRON_AVX512 1
#define KILOTRON_BF16 0
#define KILOTRON_AMX 0
#include "kernels.hpp"

namespace kilotron {
extern const Kernels kAvx512Kernels = KILOTRON_ISA::make_kernels("avx512");
}
