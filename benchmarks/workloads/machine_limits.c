/* The two limits of a machine: bytes per second that all cores read from memory (2 MiB pages where the system gives
   them), and operations per second of the fastest matrix or vector unit, on registers alone.

   cc -O3 -march=native -fopenmp machine_limits.c -o machine_limits && OMP_NUM_THREADS=2 ./machine_limits [GIB]

   Prints one JSON object; each figure is the best of several runs, since a limit is what can be reached. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { READ_RUNS = 9, PEAK_RUNS = 9, STREAMS = 8, CHAINS = 12 };
static const size_t HUGE_PAGE = 2 << 20;

typedef int64_t lanes __attribute__((vector_size(64)));

static double read_bytes_per_s(size_t num_bytes) {
  lanes *data = aligned_alloc(HUGE_PAGE, num_bytes);
  if (!data) return 0;
  madvise(data, num_bytes, MADV_HUGEPAGE);
  size_t count = num_bytes / sizeof(lanes) / STREAMS * STREAMS;
  #pragma omp parallel for schedule(static)
  for (size_t i = 0; i < count; i++) data[i] = (lanes){(int64_t)i};
  double best = 0;
  volatile int64_t sink = 0;
  for (int run = 0; run < READ_RUNS; run++) {
    int64_t sum = 0;
    double start = omp_get_wtime();
    #pragma omp parallel reduction(+ : sum)
    {
      lanes sums[STREAMS] = {0};
      #pragma omp for schedule(static)
      for (size_t i = 0; i < count; i += STREAMS)
        for (int j = 0; j < STREAMS; j++) sums[j] += data[i + j];
      for (int j = 0; j < STREAMS; j++) sum += sums[j][0] + sums[j][7];
    }
    double rate = count * sizeof(lanes) / (omp_get_wtime() - start);
    sink += sum;
    if (rate > best) best = rate;
  }
  free(data);
  return best;
}

/* Each unit: its name, operations per call of `work`, and `work` itself, whose result must be used. */
#if defined(__AMX_BF16__)
static const char *const UNIT = "AMX bf16";
static const long CALLS = 3000000;
static const double OPERATIONS_PER_CALL = 4.0 * 16 * 16 * 32 * 2;
static float work(long calls) {
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes_per_row[16]; uint8_t rows[16]; } config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; i++) { config.bytes_per_row[i] = 64; config.rows[i] = 16; }
  __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc 12 sees only 8 bytes of it read */
  _tile_loadconfig(&config);
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
  for (long i = 0; i < calls; i++) {
    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 0;
}
#elif defined(__AVX512BF16__)
static const char *const UNIT = "AVX512-BF16 dot";
static const long CALLS = 60000000;
static const double OPERATIONS_PER_CALL = CHAINS * 32 * 2;
static float work(long calls) {
  __m512 sums[CHAINS];
  __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) sums[j] = _mm512_set1_ps((float)j);
  for (long i = 0; i < calls; i++)
    _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) {
      sums[j] = _mm512_dpbf16_ps(sums[j], ones, ones);
      __asm__ volatile("" : "+v"(sums[j]));
    }
  _Pragma("GCC unroll 12") for (int j = 1; j < CHAINS; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}
#elif defined(__AVX512F__)
static const char *const UNIT = "AVX-512 FMA fp32";
static const long CALLS = 60000000;
static const double OPERATIONS_PER_CALL = CHAINS * 16 * 2;
static float work(long calls) {
  __m512 sums[CHAINS], half = _mm512_set1_ps(0.5f);
  _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) sums[j] = _mm512_set1_ps((float)j);
  for (long i = 0; i < calls; i++)
    _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) {
      sums[j] = _mm512_fmadd_ps(sums[j], half, half);
      __asm__ volatile("" : "+v"(sums[j]));
    }
  _Pragma("GCC unroll 12") for (int j = 1; j < CHAINS; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}
#elif defined(__AVX2__) && defined(__FMA__)
static const char *const UNIT = "AVX2 FMA fp32";
static const long CALLS = 60000000;
static const double OPERATIONS_PER_CALL = CHAINS * 8 * 2;
static float work(long calls) {
  __m256 sums[CHAINS], half = _mm256_set1_ps(0.5f);
  _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) sums[j] = _mm256_set1_ps((float)j);
  for (long i = 0; i < calls; i++)
    _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) {
      sums[j] = _mm256_fmadd_ps(sums[j], half, half);
      __asm__ volatile("" : "+x"(sums[j]));
    }
  _Pragma("GCC unroll 12") for (int j = 1; j < CHAINS; j++) sums[0] = _mm256_add_ps(sums[0], sums[j]);
  return sums[0][0];
}
#else
typedef float floats __attribute__((vector_size(16)));
static const char *const UNIT = "vector fp32, as the compiler has it";
static const long CALLS = 60000000;
static const double OPERATIONS_PER_CALL = CHAINS * 4 * 2;
static float work(long calls) {
  floats sums[CHAINS], half = {0.5f, 0.5f, 0.5f, 0.5f};
  _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) sums[j] = half * (float)j;
  for (long i = 0; i < calls; i++)
    _Pragma("GCC unroll 12") for (int j = 0; j < CHAINS; j++) sums[j] = sums[j] * half + half;
  _Pragma("GCC unroll 12") for (int j = 1; j < CHAINS; j++) sums[0] += sums[j];
  return sums[0][0];
}
#endif

static double peak_flops_per_s(void) {
#if defined(__AMX_BF16__)
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return 0; /* ask the kernel for tile registers */
#endif
  double best = 0;
  volatile float sink = 0;
  for (int run = 0; run < PEAK_RUNS; run++) {
    float sum = 0;
    double start = omp_get_wtime();
    #pragma omp parallel reduction(+ : sum)
    sum += work(CALLS);
    double rate = omp_get_max_threads() * (double)CALLS * OPERATIONS_PER_CALL / (omp_get_wtime() - start);
    sink += sum;
    if (rate > best) best = rate;
  }
  return best;
}

int main(int count, char **words) {
  size_t gib = count > 1 ? strtoul(words[1], NULL, 10) : 1;
  double bytes_per_s = read_bytes_per_s(gib << 30);
  double flops_per_s = peak_flops_per_s();
  printf("{\"bytes_per_s\": %.6g, \"flops_per_s\": %.6g, \"unit\": \"%s\"}\n", bytes_per_s, flops_per_s, UNIT);
  return bytes_per_s == 0 || flops_per_s == 0;
}
