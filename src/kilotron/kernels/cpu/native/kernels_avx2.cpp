#define KILOTRON_ISA avx2
#define KILOTRON_AVX512 0
#define KILOTRON_BF16 0
#define KILOTRON_AMX 0
#include "kernels.hpp"

namespace kilotron {
extern const Kernels kAvx2Kernels = KILOTRON_ISA::make_kernels("avx2");
}
