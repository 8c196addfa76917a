#define KILOTRON_ISA amx_emulated
#define KILOTRON_AVX512 1
#define KILOTRON_BF16 1
#define KILOTRON_AMX 1
#define KILOTRON_AMX_EMULATED 1
#include "kernels.hpp"

namespace kilotron {
extern const Kernels kAmxEmulatedKernels = KILOTRON_ISA::make_kernels("amx_emulated");
}
