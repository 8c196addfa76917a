#define KILOTRON_ISA amx
#define KILOTRON_AVX512 1
#define KILOTRON_BF16 1
#define KILOTRON_AMX 1
#include "kernels.hpp"

namespace kilotron {
extern const Kernels kAmxKernels = KILOTRON_ISA::make_kernels("amx");
}
